package peerws

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A foreignConn is a net.Conn as others are, when its transport is.
func TestForeign_Conn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		f := newForeign(a)
		defer f.Close()
		f.SetDeadline(past)
		if _, err := f.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if _, err := f.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		f.SetReadDeadline(time.Now().Add(time.Second))
		within(t, time.Second, func() {
			if _, err := f.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
		f.SetWriteDeadline(time.Now().Add(time.Second))
		go b.Write([]byte("abc"))
		synctest.Wait()
		f.SetReadDeadline(time.Time{})
		p := make([]byte, 2)
		for _, want := range []string{"ab", "c"} {
			if n, err := f.Read(p); string(p[:n]) != want || err != nil {
				t.Errorf("%q, %v", p[:n], err)
			}
		}
		// What has timed out in the middle is gone on with.
		if n, err := f.Write([]byte("hello")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d, %v", n, err)
		}
		f.SetWriteDeadline(time.Time{})
		if n, err := f.Write([]byte("other")); n != 0 || err != errNotTheSame {
			t.Errorf("%d, %v", n, err)
		}
		got := make(chan string, 1)
		go func() {
			p := make([]byte, 12)
			io.ReadFull(b, p)
			got <- string(p)
		}()
		if n, err := f.Write([]byte("hello, world")); n != 12 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if s := <-got; s != "hello, world" {
			t.Errorf("%q", s)
		}
		b.Close()
		for range 2 {
			if _, err := f.Read(p); err != io.EOF {
				t.Error(err)
			}
		}
		if broken, ended := f.hungUp(); broken || !ended {
			t.Error(broken, ended)
		}
		f.Close()
		if _, err := f.Read(p); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := f.Write(p); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

// An engine whose transport times out although nobody has asked for that ends, and
// does not spin. It takes one such time-out: from a deadline that was left there.
func TestForeign_TimeoutsOfItsOwn(t *testing.T) {
	for _, times := range []int64{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			a, b := memnet.Pipe(0)
			defer b.Close()
			left := times
			rules := &rulesConn{Conn: a}
			rules.read = func(p []byte) (int, error) {
				if left--; left >= 0 {
					return 0, os.ErrDeadlineExceeded
				}
				return a.Read(p)
			}
			rules.broken.Store(true)
			c := newOpenWebSocket(testSettings(), rules, false, nil)
			got := make(chan string, 1)
			c.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
			c.begin()
			if times > 1 {
				if ev := waitEnd(t, c); !errors.Is(ev.Err, os.ErrDeadlineExceeded) || ev.Initiator != InitiatorNetwork {
					t.Errorf("%+v", ev)
				}
				return
			}
			io.WriteString(b, maskedHello)
			if s := <-got; s != "Hello" {
				t.Errorf("%q", s)
			}
			c.Abort()
			waitEnd(t, c)
		})
	}
}

type embedsInterface struct{ net.Conn }

type embedsSocket struct{ *net.TCPConn }

// foreignTransports are for the engine's tests, too.
var foreignTransports = []transport{
	{"not a socket", func(t testing.TB) (net.Conn, net.Conn, bool) {
		a, b := tcpPair(t)
		return newForeign(halfTCP{deadTCP{a}}), b, false
	}},
	{"TLS over what is not a socket", func(t testing.TB) (net.Conn, net.Conn, bool) {
		a, b := tcpPair(t)
		server, client := tlsOver(t, &steadyConn{Conn: newForeign(halfTCP{deadTCP{a}})}, b)
		return steady(server, defaultWriteTimeout), client, false
	}},
	{"somebody else's TLS over what is not a socket", func(t testing.TB) (net.Conn, net.Conn, bool) {
		a, b := tcpPair(t)
		server, client := tlsOver(t, halfTCP{deadTCP{a}}, b)
		return newForeign(server), client, false
	}},
}

// listenDead is listen for transports that are deadTCP, listenWrapped for such as a
// listener makes that only counts.
func listenDead(t testing.TB, c ListenConfig, protocols ...string) *WebSocketListener {
	return listenAs(t, c, protocols, func(c net.Conn) net.Conn { return deadTCP{c} })
}

func listenWrapped(t testing.TB, c ListenConfig, protocols ...string) *WebSocketListener {
	return listenAs(t, c, protocols, func(c net.Conn) net.Conn { return embedsInterface{c} })
}

func listenAs(t testing.TB, c ListenConfig, protocols []string, wrap func(net.Conn) net.Conn) *WebSocketListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Serve(oddListener{ln, wrap}, protocols...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A rulesConn breaks rules once broken is set.
type rulesConn struct {
	net.Conn
	broken      atomic.Bool
	read, write func([]byte) (int, error) // nil: as Conn
}

func (c *rulesConn) Read(p []byte) (int, error) {
	if c.read != nil && c.broken.Load() {
		return c.read(p)
	}
	return c.Conn.Read(p)
}

func (c *rulesConn) Write(p []byte) (int, error) {
	if c.write != nil && c.broken.Load() {
		return c.write(p)
	}
	return c.Conn.Write(p)
}

// Transports that break the rules of io.Reader and io.Writer end the socket, and
// not in a loop.
func TestForeign_BrokenRules(t *testing.T) {
	for name, c := range map[string]struct {
		*rulesConn
		want error
	}{
		"Read of nothing":  {&rulesConn{read: func([]byte) (int, error) { return 0, nil }}, io.ErrNoProgress},
		"Read times out":   {&rulesConn{read: func([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }}, errSelfTimeout},
		"Write half":       {&rulesConn{write: func(p []byte) (int, error) { return len(p) / 2, nil }}, io.ErrShortWrite},
		"Write of nothing": {&rulesConn{write: func(p []byte) (int, error) { return 0, nil }}, io.ErrShortWrite},
		"Write times out":  {&rulesConn{write: func(p []byte) (int, error) { return 0, os.ErrDeadlineExceeded }}, errWriteTimeout},
		"Write fails":      {&rulesConn{write: func(p []byte) (int, error) { return 0, io.ErrClosedPipe }}, io.ErrClosedPipe},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := memnet.Pipe(0)
				defer b.Close()
				c.Conn = a
				d := Dialer{CloseTimeout: oddTime, NetDial: func(context.Context, string, string) (net.Conn, error) {
					go answering(b)
					return c.rulesConn, nil
				}}
				s, err := d.Dial(t.Context(), "ws://there/")
				if err != nil {
					t.Fatal(err)
				}
				s.OnMessage(nil)
				synctest.Wait()
				c.broken.Store(true)
				b.Write(serverMessage([]byte("the Read that goes on comes back")))
				s.SendText("hello")
				within(t, oddTime+foreignGrace, func() {
					ev, _ := s.Wait(t.Context())
					if !errors.Is(ev.Err, c.want) {
						t.Errorf("%+v", ev)
					}
				})
			})
		})
	}
}
