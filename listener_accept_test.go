package peerws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// Who gets in: arguments of Listen, the caps, and what closing does to those
// who wait.

func TestListen_Arguments(t *testing.T) {
	for _, port := range []int{-1, 65536, 70000, math.MaxInt32} {
		l, err := ListenConfig{}.Listen(t.Context(), port)
		wantSyntaxError(t, err, "port", fmt.Sprint(port))
		if l != nil {
			t.Errorf("port %d: a listener", port)
		}
	}
	for _, c := range []struct {
		wrong     string
		protocols []string
	}{
		{"a b", []string{"a b"}},
		{"", []string{""}},
		{"b,c", []string{"a", "b,c"}},
		{"a", []string{"a", "b", "a"}},
		{"ch\xe4t", []string{"ch\xe4t"}},
		{"a\r\nX-Evil: b", []string{"a\r\nX-Evil: b"}},
		{"\"a\"", []string{"\"a\""}},
		{"a/b", []string{"a/b"}},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port
		_, err = ListenConfig{}.Serve(ln, c.protocols...)
		wantSyntaxError(t, err, "protocol", c.wrong)
		ln.Close()
		_, err = ListenConfig{Address: "127.0.0.1"}.Listen(t.Context(), port, c.protocols...)
		wantSyntaxError(t, err, "protocol", c.wrong)
		if ln, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			t.Errorf("protocols %q: the port is half open: %v", c.protocols, err)
			continue
		}
		ln.Close()
	}
}

func TestListen_PortInUse(t *testing.T) {
	l := openPort(t, ListenConfig{})
	_, err := ListenConfig{Address: "127.0.0.1"}.Listen(t.Context(), l.Port())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(l.Port())) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
	if _, ok := errors.AsType[*net.OpError](err); !ok {
		t.Errorf("%T hides the cause", err)
	}
	knock(t, l, upgrade).wantOpen() // the first one is well
}

// After Close the port is free.
func TestListen_PortIsFreeAfterClose(t *testing.T) {
	l := openPort(t, ListenConfig{HTTP: page})
	for range 5 {
		port := l.Port()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		next, err := ListenConfig{Address: "127.0.0.1"}.Listen(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closePort(t, next) })
		l = next
	}
}

// Beyond MaxHandshakes an arrival waits for a place. It gets that of one that is
// over at once, else that of the oldest that has been silent for too long.
func TestMaxHandshakes(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: 3, OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		start := time.Now()
		a := dial()
		time.Sleep(time.Millisecond)
		b, c := dial("GET"), dial(upgradeHead)
		synctest.Wait()
		d := dial(upgrade, maskedHello)
		synctest.Wait()
		c.send("\r\n") // one is over, and its place is free at once
		c.wantOpen()
		d.wantOpen()
		d.wantBytes("echo", hello)
		if took := time.Since(start); took > time.Millisecond {
			t.Errorf("it took %v", took)
		}
		e := dial()
		synctest.Wait()
		f, g := dial(upgrade), dial(upgrade)
		f.wantOpen()
		g.wantOpen()
		if took := time.Since(start); took != silenceGrace {
			t.Errorf("the oldest gave way after %v", took)
		}
		a.wantEnd(start)
		time.Sleep(10 * time.Second) // the rest is thrown out
		synctest.Wait()
		b.wantEnd(time.Now())
		e.wantEnd(time.Now())
		for range 3 {
			dial(upgrade).wantOpen()
		}
		synctest.Wait()
		if s := l.Stats(); s.Refused != 3 || s.Accepted != 7 || s.Open != 7 {
			t.Errorf("%+v", s)
		}
	})
}

// One whose request has been read never gives way, however long Authorize takes.
func TestMaxHandshakes_AskedStays(t *testing.T) {
	c := ListenConfig{MaxHandshakes: 2, Authorize: func(*http.Request) error { time.Sleep(5 * time.Second); return nil }}
	inBubble(t, c, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		start := time.Now()
		var all []*knocker
		for range 6 {
			all = append(all, dial(upgrade))
		}
		for i, k := range all {
			k.wantOpen()
			if took := time.Since(start); took < time.Duration(i/2+1)*5*time.Second {
				t.Errorf("%d after %v", i, took)
			}
		}
		synctest.Wait()
		if s := l.Stats(); s.Refused != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Nor does one whose request lies in the system's buffer unread, but one that
// sends nothing does.
func TestMaxHandshakes_Unread(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if rawConn(conn) == nil {
		t.Skip("no raw path on this system")
	}
	a := &arrival{conn: conn}
	if a.unread() {
		t.Error("nothing has been sent, and is unread")
	}
	io.WriteString(peer, "G")
	raw := rawConn(conn)
	raw.Read(func(fd uintptr) bool { return !sysEmpty(fd) })
	if !a.unread() {
		t.Error("a byte has been sent, and is not seen")
	}
}

// A thousand peers in the same moment are all served.
func TestMaxHandshakes_Burst(t *testing.T) {
	inBubble(t, ListenConfig{MaxConnections: -1}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		var wg sync.WaitGroup
		for range 1000 {
			k := dial()
			wg.Go(func() {
				time.Sleep(silenceGrace / 2) // a slow line
				k.send(upgrade)
				k.wantOpen()
			})
		}
		wg.Wait()
		synctest.Wait()
		if s := l.Stats(); s.Refused != 0 || s.Accepted != 1000 {
			t.Errorf("%+v", s)
		}
	})
}

// Close ends the wait for a place.
func TestMaxHandshakes_Close(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: 1}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		a := dial()
		synctest.Wait()
		b := dial(upgrade)
		synctest.Wait()
		start := time.Now()
		l.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
		a.wantEnd(start)
		b.wantEnd(start)
	})
}

func TestMaxHandshakes_Off(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: -1, MaxConnectionsPerIP: -1}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for range 500 {
			dial()
		}
		synctest.Wait()
		dial(upgrade).wantOpen()
	})
}

// Silent ones never hold more than their places, and are soon gone.
func TestMaxHandshakes_Flood(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: 4}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for range 40 {
			dial()
		}
		synctest.Wait()
		l.mu.Lock()
		pending := len(l.pending)
		l.mu.Unlock()
		if pending != 4 {
			t.Errorf("%d in their handshake", pending)
		}
		start := time.Now()
		dial(upgrade).wantOpen()
		if took := time.Since(start); took > 10*silenceGrace {
			t.Errorf("an honest one waited %v", took)
		}
		time.Sleep(12 * time.Second) // HandshakeTimeout, and what the clock is late
		synctest.Wait()
		if s := l.Stats(); s.Refused != 40 || s.Accepted != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Peers that have been refused and stay to read why hold nobody up.
func TestMaxHandshakes_RefusedGiveWay(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: 4}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for range 16 {
			dial(getPage)
		}
		start := time.Now()
		dial(upgrade).wantOpen()
		if took := time.Since(start); took > silenceGrace {
			t.Errorf("an honest one waited %v", took)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s := l.Stats(); s.Refused != 16 || s.Accepted != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestMaxConnections(t *testing.T) {
	inBubble(t, ListenConfig{MaxConnections: 2}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		a := dial(upgrade) // waits for Accept, and counts
		a.wantOpen()
		b := dial(upgrade)
		b.wantOpen()
		_, body := dial(upgrade).wantRefusal(503)
		if body != errFull.text+"\n" {
			t.Errorf("%q", body)
		}
		dial(swap(keyLine, "")).wantRefusal(400) // is wrong before there is no room
		l.OnConnection(echoing)
		b.send(maskedClose)
		b.wantBytes("close", close1000)
		b.conn.Close()
		synctest.Wait()
		c := dial(upgrade, maskedHello)
		c.wantOpen()
		c.wantBytes("echo", hello)
		dial(upgrade).wantRefusal(503)
		c.conn.(*memnet.Conn).Abort()
		synctest.Wait()
		dial(upgrade).wantOpen()
	})
}

// A place that Authorize refuses is free again.
func TestMaxConnections_Authorize(t *testing.T) {
	c := ListenConfig{MaxConnections: 1, Authorize: func(r *http.Request) error {
		if r.Header.Get("Cookie") == "" {
			return errors.New("no")
		}
		return nil
	}}
	inBubble(t, c, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for range 5 {
			dial(upgrade).wantRefusal(403)
		}
		dial(add("Cookie: a\r\n")).wantOpen()
		dial(add("Cookie: a\r\n")).wantRefusal(503)
	})
}

// from starts a listener in a bubble whose peers come from the address that
// dial is told.
func from(t *testing.T, c ListenConfig, f func(t *testing.T, l *WebSocketListener, dial func(ip string, parts ...string) *knocker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var remote *net.TCPAddr
		ln := memnet.Listen(0)
		ln.OnDial = func(accepted, _ *memnet.Conn) { accepted.SetAddrs(ln.Address, remote) }
		l, err := c.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		var conns []net.Conn
		t.Cleanup(func() { forgetAll(t, l, conns) })
		f(t, l, func(ip string, parts ...string) *knocker {
			t.Helper()
			remote = &net.TCPAddr{IP: net.ParseIP(ip), Port: 1000 + len(conns)}
			conn, err := ln.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
			synctest.Wait()
			return knockOn(t, conn, parts...)
		})
	})
}

func TestMaxConnectionsPerIP(t *testing.T) {
	for name, ips := range map[string]struct{ same, other []string }{
		"IPv4":         {[]string{"203.0.113.7", "203.0.113.7", "::ffff:203.0.113.7"}, []string{"203.0.113.8", "203.0.112.7"}},
		"an IPv6 /64":  {[]string{"2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff", "2001:db8::2"}, []string{"2001:db8:0:1::1", "2001:db9::1"}},
		"loopback":     {[]string{"127.0.0.1", "127.0.0.1", "127.0.0.1"}, []string{"127.0.0.2", "::1"}},
		"IPv6 loopb.":  {[]string{"::1", "::1", "::1"}, []string{"127.0.0.1"}},
		"unspecified?": {[]string{"0.0.0.0", "0.0.0.0", "0.0.0.0"}, []string{"::"}},
	} {
		t.Run(name, func(t *testing.T) {
			from(t, ListenConfig{MaxConnectionsPerIP: 2, OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
				a := dial(ips.same[0], upgrade)
				a.wantOpen()
				b := dial(ips.same[1]) // says nothing yet, and counts
				_, body := dial(ips.same[2]).wantRefusal(503)
				if body != errCrowd.text+"\n" {
					t.Errorf("%q", body)
				}
				for _, ip := range ips.other {
					dial(ip, upgrade).wantOpen()
				}
				b.conn.Close()
				synctest.Wait()
				c := dial(ips.same[2], "GET / HTTP/1.1\r\n\r\n") // a refusal counts until it is read
				c.wantRefusal(426)
				c.conn.Close()
				synctest.Wait()
				d := dial(ips.same[1], upgrade, maskedHello)
				d.wantOpen()
				d.wantBytes("echo", hello)
				dial(ips.same[0]).wantRefusal(503)
				a.conn.Close()
				d.conn.Close()
				synctest.Wait()
				l.mu.Lock()
				if n := len(l.perIP); n != len(ips.other) {
					t.Errorf("%d addresses are counted: %v", n, l.perIP)
				}
				l.mu.Unlock()
			})
		})
	}
}

func TestMaxConnectionsPerIP_Default(t *testing.T) {
	from(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		for range 64 {
			dial("203.0.113.7", upgrade).wantOpen()
		}
		dial("203.0.113.7", upgrade).wantRefusal(503)
		for range 100 { // programs of this machine are not counted
			dial("127.0.0.1", upgrade).wantOpen()
			dial("::1", upgrade).wantOpen()
		}
	})
	from(t, ListenConfig{MaxConnectionsPerIP: -1}, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		for range 200 {
			dial("203.0.113.7", upgrade).wantOpen()
		}
	})
}

func TestAccept_Rules(t *testing.T) {
	inBubble(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		// In order, and none is lost when several wait and several come.
		for range 3 {
			dial(upgrade).wantOpen()
			synctest.Wait()
		}
		for i := range 3 {
			c, err := l.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if port := c.RemoteAddr().(*net.TCPAddr).Port; port != 50000+i {
				t.Errorf("%d: port %d", i, port)
			}
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := l.Accept(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		for range 10 {
			dial(upgrade)
		}
		wg.Wait()

		// A context ends the wait, nothing else.
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("my own cause"))
		defer cancel()
		if _, err := l.Accept(ctx); err == nil || err.Error() != "my own cause" {
			t.Errorf("%v", err)
		}

		// OnConnection takes over also from those who wait.
		for range 3 {
			wg.Go(func() {
				if _, err := l.Accept(t.Context()); err != errHandled {
					t.Errorf("Accept that waited: %v", err)
				}
			})
		}
		synctest.Wait()
		l.OnConnection(echoing)
		wg.Wait()
		if _, err := l.Accept(t.Context()); err != errHandled {
			t.Errorf("Accept: %v", err)
		}
		var errs []error
		for _, err := range l.Connections(t.Context()) {
			errs = append(errs, err)
		}
		if len(errs) != 1 || errs[0] != errHandled {
			t.Errorf("Connections: %v", errs)
		}
		l.OnConnection(nil)
		k := dial(upgrade)
		k.wantOpen()
		if _, err := l.Accept(t.Context()); err != nil {
			t.Errorf("Accept after OnConnection(nil): %v", err)
		}
	})
}

func TestConnections_EndsSilently(t *testing.T) {
	inBubble(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		dial(upgrade).wantOpen()
		for c, err := range l.Connections(ctx) {
			if err != nil || c == nil {
				t.Errorf("a socket: %v, %v", c != nil, err)
			}
			if n++; n < 3 {
				dial(upgrade).wantOpen()
				continue
			}
			cancel()
		}
		if n != 3 {
			t.Errorf("%d connections", n)
		}
		dial(upgrade).wantOpen()
		for range l.Connections(t.Context()) {
			break // that is an end, too
		}
		time.AfterFunc(time.Second, func() { l.Close() })
		for c, err := range l.Connections(t.Context()) {
			t.Errorf("a socket: %v, %v", c != nil, err)
		}
		for c, err := range l.Connections(t.Context()) {
			t.Errorf("after Close: a socket: %v, %v", c != nil, err)
		}
	})
}

// When the transport listener can never accept again, that is told, once,
// everywhere.
func TestListener_Fails(t *testing.T) {
	for _, broken := range []error{
		net.ErrClosed, io.EOF, io.ErrClosedPipe, syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK,
		fmt.Errorf("mux: %w", io.EOF),
	} {
		synctest.Test(t, func(t *testing.T) {
			ln := &failing{Listener: memnet.Listen(0), err: make(chan error, 1)}
			l, err := ListenConfig{}.Serve(ln)
			if err != nil {
				t.Fatal(err)
			}
			var got []error
			ln.err <- &net.OpError{Op: "accept", Net: "tcp", Err: broken}
			for _, err := range l.Connections(t.Context()) {
				got = append(got, err)
			}
			if len(got) != 1 || !errors.Is(got[0], broken) || !errors.Is(got[0], net.ErrClosed) {
				t.Errorf("Connections: %v", got)
			}
			<-l.Done()
			if err := l.Err(); !errors.Is(err, broken) || l.ReadyState() != ListenerClosed {
				t.Errorf("%v, %v", err, l.ReadyState())
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Every error that passes is outlived, however often it comes, and told once.
func TestListener_PassingErrors(t *testing.T) {
	errs := []error{temporaryError{}, errors.New("no reason at all"), io.ErrUnexpectedEOF, os.ErrDeadlineExceeded}
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.ECONNRESET,
		syscall.EPROTO, syscall.EPERM, syscall.EACCES, syscall.ENETDOWN, syscall.ENOPROTOOPT, syscall.EHOSTDOWN,
		syscall.EHOSTUNREACH, syscall.EOPNOTSUPP, syscall.ENETUNREACH, syscall.EINTR, syscall.EAGAIN,
		syscall.ETIMEDOUT, syscall.EPROTONOSUPPORT, syscall.ECONNREFUSED, syscall.EPIPE,
	} {
		errs = append(errs, os.NewSyscallError("accept4", e))
	}
	for _, passing := range errs {
		synctest.Test(t, func(t *testing.T) {
			var told strings.Builder
			ln := &failing{Listener: memnet.Listen(0), err: make(chan error, 20)}
			for range 20 {
				ln.err <- &net.OpError{Op: "accept", Net: "tcp", Err: passing}
			}
			l, err := ListenConfig{OnConnection: echoing, Logger: slog.New(slog.NewTextHandler(&told, nil))}.Serve(ln)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := ln.Listener.(*memnet.Listener).Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			k := knockOn(t, conn, upgrade, maskedHello)
			k.wantOpen()
			k.wantBytes("echo", hello)
			if d := time.Since(start); d < 10*time.Second || d > 20*time.Second {
				t.Errorf("%v: 20 tries took %v", passing, d)
			}
			if l.ReadyState() == ListenerClosed || l.Err() != nil {
				t.Errorf("%v: %v, %v", passing, l.ReadyState(), l.Err())
			}
			conn.Close()
			l.Close()
			synctest.Wait()
			if n := strings.Count(told.String(), "accept failed"); n != 1 {
				t.Errorf("%v: told %d times:\n%s", passing, n, &told)
			}
		})
	}
}

type temporaryError struct{}

func (temporaryError) Error() string   { return "too many open files" }
func (temporaryError) Temporary() bool { return true }
func (temporaryError) Timeout() bool   { return false }

// failing is a listener whose Accept returns the errors it is told.
type failing struct {
	net.Listener
	err chan error
}

func (f *failing) Accept() (net.Conn, error) {
	select {
	case err := <-f.err:
		return nil, err
	default:
	}
	type accepted struct {
		net.Conn
		error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := f.Listener.Accept()
		got <- accepted{c, err}
	}()
	select {
	case err := <-f.err:
		return nil, err
	case a := <-got:
		return a.Conn, a.error
	}
}

func TestClose_Everything(t *testing.T) {
	inBubble(t, ListenConfig{HTTP: page, OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		open, half := dial(upgrade), dial("GET / HT")
		open.wantOpen()
		synctest.Wait()
		if l.ReadyState() != ListenerListening || l.Ready(t.Context()) != nil || l.Err() != nil {
			t.Errorf("%v, %v", l.ReadyState(), l.Err())
		}
		start := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				if _, err := l.Accept(t.Context()); !errors.Is(err, net.ErrClosed) && err != errHandled {
					t.Errorf("Accept: %v", err)
				}
				select {
				case <-l.Done():
				default:
					t.Error("Close has returned, and is not done")
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d > 0 {
			t.Errorf("Close took %v", d)
		}
		half.wantEnd(start)
		if l.ReadyState() != ListenerClosed || l.Err() != nil {
			t.Errorf("%v, %v", l.ReadyState(), l.Err())
		}
		if err := l.Ready(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Ready: %v", err)
		}
		l.OnConnection(nil)
		if _, err := l.Accept(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		open.send(maskedHello) // lives on
		open.wantBytes("echo", hello)
	})
}

func TestClose_WaitingSocketsGet1001(t *testing.T) {
	inBubble(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		k := dial(upgrade)
		k.wantOpen()
		synctest.Wait()
		l.Close()
		k.wantBytes("going away", "\x88\x02\x03\xe9")
		k.send("\x88\x82\x00\x00\x00\x00\x03\xe9")
		if b, err := k.br.ReadByte(); err == nil {
			t.Errorf("%x", b)
		}
	})
}

// An Authorize that hangs holds Close up for its 2 s, and no longer.
func TestClose_WhileAuthorizing(t *testing.T) {
	for name, c := range map[string]struct{ takes, want time.Duration }{"short": {time.Second, time.Second}, "long": {time.Minute, closeGrace}} {
		t.Run(name, func(t *testing.T) {
			for _, first := range []string{"", getPage} {
				started := make(chan struct{})
				cfg := ListenConfig{HTTP: page, HandshakeTimeout: -1, Authorize: func(*http.Request) error { close(started); time.Sleep(c.takes); return nil }}
				inBubble(t, cfg, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
					k := dial(first + upgrade)
					<-started
					start := time.Now()
					if err := l.Close(); err != nil {
						t.Error(err)
					}
					if d := time.Since(start); d != c.want {
						t.Errorf("Close took %v", d)
					}
					k.conn.Close()
					time.Sleep(c.takes)
				})
			}
		})
	}
}

func TestShutdown_Concurrent(t *testing.T) {
	inBubble(t, ListenConfig{OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		polite, silent := dial(upgrade), dial(upgrade)
		polite.wantOpen()
		silent.wantOpen()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := l.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v", err)
				}
			})
		}
		polite.wantBytes("going away", "\x88\x02\x03\xe9")
		polite.send("\x88\x82\x00\x00\x00\x00\x03\xe9")
		polite.wantEnd(start)
		wg.Wait()
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("it took %v", d)
		}
		synctest.Wait()
		if s := l.Stats(); s.Open != 0 {
			t.Errorf("%+v", s)
		}
		if err := l.Shutdown(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// Shutdown also waits for sockets whose handshake ends just then.
func TestShutdown_Races(t *testing.T) {
	for range 50 {
		l := openPort(t, ListenConfig{OnConnection: func(*WebSocket) {}, CloseTimeout: 10 * time.Millisecond})
		var wg sync.WaitGroup
		for range 4 {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer conn.Close()
				io.WriteString(conn, upgrade)
				io.Copy(io.Discard, conn)
			})
		}
		if err := l.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		l.mu.Lock()
		if n := len(l.sockets); n > 0 {
			t.Errorf("%d sockets after Shutdown", n)
		}
		l.mu.Unlock()
		wg.Wait()
	}
}

// An upgrade on a kept-alive connection has been read already: it needs no place.
func TestMaxHandshakes_KeptAlive(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: 1, HTTP: page}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		k := dial(getPage)
		k.wantPage(`GET 127.0.0.1:9000 /page ""`)
		silent := dial()
		synctest.Wait()
		k.send(upgrade)
		k.wantOpen()
		silent.conn.Close()
	})
}

// A slowAddr is a transport whose RemoteAddr waits for the peer's first byte,
// as one does that reads a PROXY protocol header. Its deadlines do nothing.
type slowAddr struct {
	net.Conn
	once   sync.Once
	remote net.Addr
}

func (c *slowAddr) RemoteAddr() net.Addr {
	c.once.Do(func() {
		var b [1]byte
		c.remote = c.Conn.RemoteAddr()
		if _, err := io.ReadFull(c.Conn, b[:]); err == nil {
			c.remote = &net.TCPAddr{IP: net.IPv4(203, 0, 113, b[0]), Port: 4711}
		}
	})
	return c.remote
}

func (c *slowAddr) SetDeadline(time.Time) error      { c.RemoteAddr(); return nil }
func (c *slowAddr) SetReadDeadline(time.Time) error  { c.RemoteAddr(); return nil }
func (c *slowAddr) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

type slowAddrs struct{ *memnet.Listener }

func (l slowAddrs) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowAddr{Conn: c}, nil
}

// A peer that does not let a transport know its address holds up nobody but
// itself, is thrown out in time, and is counted under its address when that is
// known.
func TestAccept_AddressThatBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := memnet.Listen(0)
		l, err := ListenConfig{MaxConnectionsPerIP: 2, OnConnection: echoing}.Serve(slowAddrs{ln})
		if err != nil {
			t.Fatal(err)
		}
		var conns []net.Conn
		defer func() { forgetAll(t, l, conns) }()
		dial := func(parts ...string) *knocker {
			conn, err := ln.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
			return knockOn(t, conn, parts...)
		}
		start := time.Now()
		var silent []*knocker
		for range 5 {
			silent = append(silent, dial())
		}
		synctest.Wait()
		for range 2 {
			k := dial("\x07", upgrade, maskedHello)
			k.wantOpen()
			k.wantBytes("echo", hello)
		}
		dial("\x08", upgrade).wantOpen()
		if took := time.Since(start); took > 0 {
			t.Errorf("silent ones held the others up for %v", took)
		}
		dial("\x07", upgrade).wantRefusal(503)
		for _, k := range silent {
			k.wantEnd(start)
		}
		if took := time.Since(start); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("thrown out after %v", took)
		}
		last := dial()
		synctest.Wait()
		start = time.Now()
		l.Close()
		last.wantEnd(start)
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
	})
}
