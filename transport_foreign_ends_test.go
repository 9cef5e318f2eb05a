package peerws

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// An oddConn is a transport as programs bring them along: a function that is not
// nil stands in for the connection's.
type oddConn struct {
	net.Conn
	deadline    func() error
	close, addr func()
	nilAddr     bool
	inner       bool // close does not close Conn
}

func (c *oddConn) set(do func(time.Time) error, t time.Time) error {
	if c.deadline != nil {
		return c.deadline()
	}
	return do(t)
}

func (c *oddConn) SetDeadline(t time.Time) error      { return c.set(c.Conn.SetDeadline, t) }
func (c *oddConn) SetReadDeadline(t time.Time) error  { return c.set(c.Conn.SetReadDeadline, t) }
func (c *oddConn) SetWriteDeadline(t time.Time) error { return c.set(c.Conn.SetWriteDeadline, t) }

func (c *oddConn) Close() error {
	var err error
	if !c.inner {
		err = c.Conn.Close()
	}
	if c.close != nil {
		c.close()
	}
	return err
}

func (c *oddConn) LocalAddr() net.Addr  { return c.odd(c.Conn.LocalAddr) }
func (c *oddConn) RemoteAddr() net.Addr { return c.odd(c.Conn.RemoteAddr) }

func (c *oddConn) odd(addr func() net.Addr) net.Addr {
	if c.addr != nil {
		c.addr()
	}
	if c.nilAddr {
		return nil
	}
	return addr()
}

// An oddity makes a transport odd. What waits comes back when free is closed.
type oddity struct {
	name string
	pipe bool // over net.Pipe
	make func(c *oddConn, free <-chan struct{})
	mute bool // no handshake comes to its end
}

var oddities = []oddity{
	{name: "wraps another", make: func(*oddConn, <-chan struct{}) {}},
	{name: "net.Pipe", pipe: true, make: func(*oddConn, <-chan struct{}) {}},
	{name: "deadlines fail", make: func(c *oddConn, _ <-chan struct{}) {
		c.deadline = func() error { return errors.ErrUnsupported }
	}},
	{name: "deadlines do nothing", make: func(c *oddConn, _ <-chan struct{}) {
		c.deadline = func() error { return nil }
	}},
	{name: "deadlines do nothing, net.Pipe", pipe: true, make: func(c *oddConn, _ <-chan struct{}) {
		c.deadline = func() error { return nil }
	}},
	{name: "Close waits", make: func(c *oddConn, free <-chan struct{}) {
		c.deadline = func() error { return nil }
		c.close = func() { <-free }
	}},
	{name: "Close waits and ends nothing", make: func(c *oddConn, free <-chan struct{}) {
		c.deadline = func() error { return nil }
		c.close = func() { <-free }
		c.inner = true
	}},
	{name: "Close ends nothing", make: func(c *oddConn, free <-chan struct{}) {
		c.deadline = func() error { return nil }
		c.inner = true
	}},
	{name: "Close ends nothing, deadlines do", make: func(c *oddConn, free <-chan struct{}) {
		c.inner = true
	}},
	{name: "addresses are nil", make: func(c *oddConn, _ <-chan struct{}) { c.nilAddr = true }},
	{name: "addresses wait", mute: true, make: func(c *oddConn, free <-chan struct{}) {
		c.deadline = func() error { return nil }
		c.addr = func() { <-free }
	}},
}

// oddly runs f in a bubble for every oddity. wrap makes a transport odd; in the
// end all that waits in one is let go.
func oddly(t *testing.T, f func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn)) {
	for _, o := range oddities {
		t.Run(o.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				free := make(chan struct{})
				var mu sync.Mutex
				var made []net.Conn
				defer func() {
					close(free)
					for _, c := range made {
						c.Close()
					}
				}()
				f(t, o, func(conn net.Conn) net.Conn {
					c := &oddConn{Conn: conn}
					o.make(c, free)
					mu.Lock()
					defer mu.Unlock()
					made = append(made, conn)
					return c
				})
			})
		})
	}
}

// pair returns two ends of a connection that holds little.
func (o oddity) pair() (a, b net.Conn) {
	if o.pipe {
		return net.Pipe()
	}
	return memnet.Pipe(1 << 10)
}

const oddTime = time.Second // each time-out of these tests

// oddDialer dials the other end of what peer gets.
func oddDialer(o oddity, wrap func(net.Conn) net.Conn, peer func(net.Conn)) Dialer {
	return Dialer{
		NetDial: func(context.Context, string, string) (net.Conn, error) {
			a, b := o.pair()
			go peer(b)
			return wrap(a), nil
		},
		HandshakeTimeout: oddTime, WriteTimeout: oddTime, CloseTimeout: oddTime,
		PingInterval: oddTime, PongTimeout: oddTime, MaxBufferedAmount: 1 << 20,
	}
}

// within fails if f takes longer.
func within(t *testing.T, most time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > most {
		t.Errorf("took %v, longer than %v", took, most)
	}
}

// answering answers the opening request and says nothing more.
func answering(conn net.Conn) {
	q, err := http.ReadRequest(bufio.NewReader(conn))
	if err == nil {
		io.WriteString(conn, accepts(q, "", ""))
	}
}

// A dial through any transport is over in its time, however far it has come.
func TestForeign_DialEnds(t *testing.T) {
	peers := map[string]func(net.Conn){
		"nothing taken": func(net.Conn) {},
		"no answer":     func(c net.Conn) { c.Read(make([]byte, 4<<10)) },
		"half an answer": func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 101 ")
		},
		"half a body": func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 404 No\r\nContent-Length: 100\r\n\r\nnot")
		},
	}
	for name, peer := range peers {
		t.Run(name, func(t *testing.T) {
			oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
				for _, url := range []string{"ws://there/", "wss://there/"} {
					d := oddDialer(o, wrap, peer)
					if url != "ws://there/" && name != "no answer" && name != "nothing taken" {
						break
					}
					within(t, oddTime+foreignGrace, func() {
						_, err := d.Dial(t.Context(), url)
						if name != "half a body" && !errors.Is(err, context.DeadlineExceeded) || err == nil {
							t.Errorf("HandshakeTimeout: %v", err)
						}
					})
					d.HandshakeTimeout = -1
					within(t, oddTime+foreignGrace, func() {
						ctx, cancel := context.WithTimeout(t.Context(), oddTime)
						defer cancel()
						_, err := d.Dial(ctx, url)
						if name != "half a body" && !errors.Is(err, context.DeadlineExceeded) || err == nil {
							t.Errorf("ctx: %v", err)
						}
					})
					c, err := d.NewWebSocket(url)
					if err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					within(t, foreignGrace, func() {
						c.Abort()
						<-c.Done()
					})
				}
			})
		})
	}
}

// ends are the ways in which an open socket comes to its end, its peer being
// silent, with the time that may take.
var ends = []struct {
	name string
	do   func(c *WebSocket)
	by   Initiator
	most time.Duration
}{
	{"Abort", func(c *WebSocket) { c.Abort() }, InitiatorLocal, 0},
	{"Close", func(c *WebSocket) { c.Close() }, InitiatorLocal, 3 * oddTime}, // its frame may be stuck: WriteTimeout
	{"Close, Abort", func(c *WebSocket) { c.Close(); time.Sleep(oddTime / 2); c.Abort() }, InitiatorLocal, oddTime / 2},
	{"PongTimeout", func(*WebSocket) {}, InitiatorTimeout, 3 * oddTime},
	{"stuck, WriteTimeout", func(c *WebSocket) { c.SendBinary(make([]byte, 100<<10)) }, InitiatorTimeout, 3 * oddTime},
	{"stuck, Abort", func(c *WebSocket) { c.SendBinary(make([]byte, 100<<10)); synctest.Wait(); c.Abort() }, InitiatorLocal, 0},
	{"stuck, Close", func(c *WebSocket) { c.SendBinary(make([]byte, 100<<10)); synctest.Wait(); c.Close() }, InitiatorLocal, 4 * oddTime},
	{"stuck, writers wait, Abort", func(c *WebSocket) {
		for range 3 {
			go c.Write(context.Background(), Message{Type: Binary, Data: make([]byte, 1<<20)})
		}
		synctest.Wait()
		c.Abort()
	}, InitiatorLocal, 0},
}

func TestForeign_OpenEnds(t *testing.T) {
	for _, end := range ends {
		t.Run(end.name, func(t *testing.T) {
			oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
				c, err := oddDialer(o, wrap, answering).Dial(t.Context(), "ws://there/")
				if err != nil {
					t.Fatal(err)
				}
				var closes atomic.Int32
				c.OnClose(func(*WebSocket, CloseEvent) { closes.Add(1) })
				c.OnMessage(nil)
				synctest.Wait()
				within(t, end.most+foreignGrace, func() {
					end.do(c)
					<-c.Done()
				})
				ev, _ := c.Wait(t.Context())
				if ev.Initiator != end.by || ev.WasClean || closes.Load() != 1 {
					t.Errorf("%+v, %d OnClose", ev, closes.Load())
				}
			})
		})
	}
}

// A program that reads no more, behind whose back the peer goes away: more has come
// than is ever read ahead, so that only writing can tell.
func TestForeign_GoneUnseen(t *testing.T) {
	oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
		gone := make(chan net.Conn, 1)
		d := oddDialer(o, wrap, func(conn net.Conn) {
			answering(conn)
			go io.Copy(io.Discard, conn)
			go func() {
				for range 20 {
					conn.Write(serverMessage(make([]byte, 20<<10)))
				}
			}()
			gone <- conn
		})
		c, err := d.Dial(t.Context(), "ws://there/")
		if err != nil {
			t.Fatal(err)
		}
		if m, err := c.Read(t.Context()); err != nil || len(m.Data) != 20<<10 {
			t.Fatal(len(m.Data), err)
		}
		peer := <-gone
		time.Sleep(10 * oddTime)
		if c.ReadyState() != Open {
			ev, _ := c.Wait(t.Context())
			t.Errorf("ended while the peer was there: %+v", ev)
		}
		peer.Close()
		within(t, 4*oddTime+2*foreignGrace, func() { <-c.Done() })
	})
}

// An oddListener makes the transports that ln accepts odd.
type oddListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l oddListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

// A pipeListener accepts one end of a pair for each dial.
type pipeListener struct {
	o    oddity
	ch   chan net.Conn
	gone chan struct{}
	once sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.gone:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.gone) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return nowhere{} }

func (l *pipeListener) dial() net.Conn {
	a, b := l.o.pair()
	if a, ok := a.(*memnet.Conn); ok {
		a.SetAddrs(a.LocalAddr(), &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4711})
	}
	l.ch <- a
	return b
}

// serveOddly starts a listener for odd transports.
func serveOddly(t *testing.T, o oddity, wrap func(net.Conn) net.Conn, c ListenConfig) (*WebSocketListener, *pipeListener) {
	c.HandshakeTimeout, c.WriteTimeout, c.CloseTimeout = oddTime, oddTime, oddTime
	c.PingInterval, c.PongTimeout = oddTime, oddTime
	ln := &pipeListener{o: o, ch: make(chan net.Conn), gone: make(chan struct{})}
	l, err := c.Serve(oddListener{ln, wrap})
	if err != nil {
		t.Fatal(err)
	}
	return l, ln
}

func wantNothingLeft(t *testing.T, l *WebSocketListener) {
	t.Helper()
	synctest.Wait()
	if left := leftovers(l); left != "" {
		t.Error("the listener still holds " + left)
	}
}

// A peer that does not come through its opening handshake over any transport is
// thrown out in time, and holds no place after that.
func TestForeign_HandshakeEnds(t *testing.T) {
	oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
		for _, said := range []string{"", "GET / HT", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", "GET /page HTTP/1.1\r\nHost: there\r\n\r\n"} {
			c := ListenConfig{MaxHandshakes: 1, MaxConnectionsPerIP: 5, HTTP: page, TLSConfig: serverConfig()}
			l, ln := serveOddly(t, o, wrap, c)
			within(t, 2*(silenceGrace+foreignGrace)+oddTime+foreignGrace, func() {
				for range 3 { // each needs the only place
					go io.WriteString(ln.dial(), said)
				}
				time.Sleep(oddTime + foreignGrace)
			})
			if said == "" || o.mute {
				time.Sleep(2 * silenceGrace)
				l.mu.Lock()
				if n := len(l.pending); n > 1 {
					t.Errorf("%q: %d still in the handshake", said, n)
				}
				l.mu.Unlock()
			}
			go io.WriteString(ln.dial(), said)
			synctest.Wait()
			within(t, closeGrace+foreignGrace, func() { l.Close() })
			time.Sleep(2 * closeGrace)
			wantNothingLeft(t, l)
		}
	})
}

// An open socket on the listening side ends in its time, whatever its transport
// does, and its place is free again.
func TestForeign_AcceptedEnds(t *testing.T) {
	for _, end := range append(ends, ends[0]) {
		t.Run(end.name, func(t *testing.T) {
			oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
				if o.mute {
					return
				}
				opened := make(chan *WebSocket, 1)
				var closes atomic.Int32
				l, ln := serveOddly(t, o, wrap, ListenConfig{OnConnection: func(c *WebSocket) {
					c.OnClose(func(*WebSocket, CloseEvent) { closes.Add(1) })
					opened <- c
				}})
				k := knockOn(t, ln.dial(), upgrade)
				k.wantOpen()
				c := <-opened
				within(t, end.most+foreignGrace, func() {
					end.do(c)
					<-c.Done()
				})
				ev, _ := c.Wait(t.Context())
				if ev.Initiator != end.by || ev.WasClean || closes.Load() != 1 {
					t.Errorf("%+v, %d OnClose", ev, closes.Load())
				}
				wantNothingLeft(t, l)
				if got := c.RemoteAddr(); got == nil {
					t.Error("RemoteAddr is nil")
				}
				l.Close()
			})
		})
	}
}

// Shutdown ends in time, over any transport.
func TestForeign_Shutdown(t *testing.T) {
	oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
		opened := make(chan *WebSocket, 2)
		l, ln := serveOddly(t, o, wrap, ListenConfig{OnConnection: func(c *WebSocket) { opened <- c }})
		if !o.mute {
			knockOn(t, ln.dial(), upgrade).wantOpen()
			knockOn(t, ln.dial(), upgrade).wantOpen()
			(<-opened).SendBinary(make([]byte, 100<<10))
		}
		ln.dial()
		synctest.Wait()
		within(t, closeGrace+foreignGrace, func() {
			ctx, cancel := context.WithTimeout(t.Context(), oddTime)
			defer cancel()
			l.Shutdown(ctx)
		})
		time.Sleep(closeGrace)
		wantNothingLeft(t, l)
	})
}

// A transport listener that does not end holds Close up for a moment only.
func TestForeign_ListenerThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		defer close(free)
		l, err := ListenConfig{}.Serve(stayingListener{free})
		if err != nil {
			t.Fatal(err)
		}
		within(t, closeGrace, func() {
			if err := l.Close(); !errors.Is(err, errListenerStuck) {
				t.Error(err)
			}
		})
		<-l.Done()
	})
}

type stayingListener struct{ free chan struct{} }

func (l stayingListener) Accept() (net.Conn, error) { <-l.free; return nil, net.ErrClosed }
func (l stayingListener) Close() error              { <-l.free; return nil }
func (l stayingListener) Addr() net.Addr            { return nowhere{} }

// What needs the reader to be woken works where deadlines do not: callbacks that
// are set late, reading by calls with a context, NetConn's deadlines.
func TestForeign_Wakes(t *testing.T) {
	oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
		peers := make(chan net.Conn, 1)
		d := oddDialer(o, wrap, func(conn net.Conn) {
			answering(conn)
			peers <- conn
		})
		d.PingInterval = -1
		c, err := d.Dial(t.Context(), "ws://there/")
		if err != nil {
			t.Fatal(err)
		}
		peer := <-peers
		synctest.Wait()
		ran := make(chan string, 1)
		within(t, 0, func() {
			c.OnOpen(func(*WebSocket) { ran <- "open" })
			<-ran
		})
		n := c.NetConn(Text)
		within(t, oddTime+foreignGrace, func() { // the error has the addresses
			n.SetReadDeadline(time.Now().Add(oddTime))
			if _, err := n.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
		go peer.Write(serverMessage([]byte("hello"))[:3])
		synctest.Wait()
		c.OnOpen(func(*WebSocket) { ran <- "again" }) // in the middle of a frame
		<-ran
		go peer.Write(serverMessage([]byte("hello"))[3:])
		n.SetReadDeadline(time.Time{})
		b := make([]byte, 5)
		if _, err := io.ReadFull(n, b); err == nil {
			t.Errorf("%q of a binary message", b)
		}
		c.Abort()
		<-c.Done()
	})
}

// Messages of all sizes pass whole, in both directions at once.
func TestForeign_Echo(t *testing.T) {
	for _, url := range []string{"ws://localhost/", "wss://localhost/"} {
		t.Run(url, func(t *testing.T) {
			oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
				if !o.mute {
					foreignEcho(t, o, wrap, url)
				}
			})
		})
	}
}

func foreignEcho(t *testing.T, o oddity, wrap func(net.Conn) net.Conn, url string) {
	l, ln := serveOddly(t, o, wrap, ListenConfig{OnConnection: echoing, TLSConfig: serverConfig()})
	defer l.Close()
	d := oddDialer(o, wrap, nil)
	d.TLSConfig = clientConfig()
	d.NetDial = func(context.Context, string, string) (net.Conn, error) { return wrap(ln.dial()), nil }
	c, err := d.Dial(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 125, 126, 4 << 10, mostPiece, 70_000, 300_000} {
		p := bytes.Repeat([]byte{byte(size)}, size)
		go c.Write(t.Context(), Message{Type: Binary, Data: p})
		m, err := c.Read(t.Context())
		if err != nil || !bytes.Equal(m.Data, p) {
			t.Fatalf("%d: %d bytes, %v", size, len(m.Data), err)
		}
	}
	ev, err := c.CloseWait(t.Context(), StatusNormalClosure, "")
	if err != nil || !ev.WasClean {
		t.Errorf("%+v, %v", ev, err)
	}
}

// net/http serves pages over any transport, and one that has served some can be
// upgraded: it wakes its reader by a deadline.
func TestForeign_HTTP(t *testing.T) {
	oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
		if o.mute {
			return
		}
		l, ln := serveOddly(t, o, wrap, ListenConfig{OnConnection: echoing, HTTP: page})
		k := knockOn(t, ln.dial())
		for range 3 {
			k.send("GET /page HTTP/1.1\r\nHost: there\r\n\r\n")
			if r, body := k.answer("GET"); body != `GET there /page ""` {
				t.Errorf("%s %q", r.Status, body)
			}
		}
		k.send(upgrade)
		k.wantOpen()
		k.conn.Write([]byte(maskedHello))
		k.wantBytes("echo", hello)
		last := knockOn(t, ln.dial(), "GET /page HTTP/1.1\r\nHost: there\r\nConnection: close\r\n\r\n")
		last.answer("GET")
		idle := knockOn(t, ln.dial(), "GET /page HTTP/1.1\r\nHost: there\r\n\r\n")
		idle.answer("GET")
		places := func() int {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.reserved
		}
		time.Sleep(httpIdle / 2)
		if n := places(); n != 1 { // the WebSocket was given up: its peer answers no ping
			t.Errorf("%d places taken, want that of the idle one", n)
		}
		time.Sleep(httpIdle/2 + 2*foreignGrace)
		if n := places(); n != 0 {
			t.Errorf("%d places taken after httpIdle", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), oddTime)
		defer cancel()
		within(t, closeGrace+2*foreignGrace, func() { l.Shutdown(ctx) })
		time.Sleep(closeGrace)
		wantNothingLeft(t, l)
	})
}

// A peer that reads slowly, but does, is not given up: WriteTimeout is counted
// for each piece.
func TestForeign_SlowPeerLives(t *testing.T) {
	oddly(t, func(t *testing.T, o oddity, wrap func(net.Conn) net.Conn) {
		peers := make(chan net.Conn, 1)
		d := oddDialer(o, wrap, func(conn net.Conn) {
			answering(conn)
			peers <- conn
		})
		c, err := d.Dial(t.Context(), "ws://there/")
		if err != nil {
			t.Fatal(err)
		}
		const size = 100 << 10
		c.SendBinary(make([]byte, size))
		peer, got, b := <-peers, 0, make([]byte, 1<<10)
		for got < size {
			time.Sleep(oddTime / 8)
			n, err := io.ReadAtLeast(peer, b, 1)
			if err != nil {
				t.Fatalf("after %d: %v", got, err)
			}
			got += n
		}
		if c.ReadyState() != Open {
			ev, _ := c.Wait(t.Context())
			t.Errorf("%+v", ev)
		}
		c.Abort()
		<-c.Done()
	})
}

// A handler mounted in a server whose listener wraps another gets such transports,
// without half-close, too.
func TestForeign_Handler(t *testing.T) {
	l, h, err := ListenConfig{OnConnection: echoing}.Handler()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{false, true} {
		srv := http.Server{Handler: h, ReadTimeout: 10 * time.Second} // leaves a deadline
		wrapped := net.Listener(oddListener{ln, func(c net.Conn) net.Conn { return embedsInterface{c} }})
		url := "ws://" + ln.Addr().String() + "/"
		if secure {
			if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			wrapped = tls.NewListener(oddListener{ln, func(c net.Conn) net.Conn { return embedsInterface{c} }}, serverConfig())
			url = "wss://" + ln.Addr().String() + "/"
		}
		go srv.Serve(wrapped)
		c, err := trusting().Dial(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			c.SendText("hello")
			wantRead(t, c, Text, "hello")
		}
		ctx, cancel := context.WithTimeout(t.Context(), defaultCloseTimeout/2)
		if ev, err := c.CloseWait(ctx, StatusNormalClosure, ""); err != nil || !ev.WasClean {
			t.Errorf("secure %v: %+v, %v", secure, ev, err)
		}
		cancel()
		srv.Close()
	}
}

// A WebSocket goes through another one: NetConn is a transport as any.
func TestForeign_Nested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer, inner := Pipe(ListenConfig{}, Dialer{})
		ln := &pipeListener{ch: make(chan net.Conn, 1), gone: make(chan struct{})}
		l, err := ListenConfig{OnConnection: echoing}.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		ln.ch <- outer.NetConn(Binary)
		d := Dialer{NetDial: func(context.Context, string, string) (net.Conn, error) { return inner.NetConn(Binary), nil }}
		c, err := d.Dial(t.Context(), "ws://there/")
		if err != nil {
			t.Fatal(err)
		}
		p := bytes.Repeat([]byte("peerws"), 50_000)
		if err := c.Write(t.Context(), Message{Type: Binary, Data: p}); err != nil {
			t.Fatal(err)
		}
		if m, err := c.Read(t.Context()); err != nil || !bytes.Equal(m.Data, p) {
			t.Fatal(len(m.Data), err)
		}
		if ev, err := c.CloseWait(t.Context(), StatusNormalClosure, ""); err != nil || !ev.WasClean {
			t.Errorf("%+v, %v", ev, err)
		}
		l.Shutdown(t.Context())
		<-outer.Done()
		<-inner.Done()
	})
}
