package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// End to end: our listener and our dialler over loopback.

func listen(t testing.TB, c ListenConfig, protocols ...string) *WebSocketListener {
	t.Helper()
	if c.Address == "" {
		c.Address = "127.0.0.1"
	}
	l, err := c.Listen(context.Background(), 0, protocols...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return l
}

func echoing(c *WebSocket) {
	c.OnMessage(func(c *WebSocket, m Message) { c.Write(context.Background(), m) })
}

func TestEndToEnd(t *testing.T) {
	l := listen(t, ListenConfig{OnConnection: echoing}, "chat", "echo")
	c, err := Dial(t.Context(), l.URL()+"room?x=1", "other", "echo")
	if err != nil {
		t.Fatal(err)
	}
	if c.Protocol() != "echo" || c.ReadyState() != Open || c.URL() != l.URL()+"room?x=1" {
		t.Errorf("protocol %q, state %v, URL %q", c.Protocol(), c.ReadyState(), c.URL())
	}
	got := make(chan Message, 1)
	c.OnMessage(func(_ *WebSocket, m Message) { got <- Message{Type: m.Type, Data: bytes.Clone(m.Data)} })
	for _, m := range []Message{{Type: Text, Data: []byte("grüß dich")}, {Type: Binary, Data: []byte{0, 1, 2}}, {Type: Text}, {Type: Binary, Data: bytes.Repeat([]byte("x"), 1<<20)}} {
		if err := c.Send(m); err != nil {
			t.Fatal(err)
		}
		if back := <-got; back.Type != m.Type || !bytes.Equal(back.Data, m.Data) {
			t.Errorf("sent %v of %d bytes, got %v of %d", m.Type, len(m.Data), back.Type, len(back.Data))
		}
	}
	if err := c.CloseWith(3000, "thanks"); err != nil {
		t.Fatal(err)
	}
	ev, err := c.Wait(t.Context())
	if err != nil || !ev.WasClean || ev.Code != 3000 || ev.Initiator != InitiatorLocal {
		t.Errorf("%+v, %v", ev, err)
	}
}

func TestBothFamilies(t *testing.T) {
	l, err := ListenConfig{OnConnection: echoing}.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, host := range []string{"127.0.0.1", "[::1]", "localhost"} {
		c, err := Dial(t.Context(), fmt.Sprintf("ws://%s:%d/", host, l.Port()))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		c.Abort()
		<-c.Done()
	}
}

func TestAccept(t *testing.T) {
	l := listen(t, ListenConfig{})
	c, err := Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	c.SendText("before Accept")
	a, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	a.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
	if s := <-got; s != "before Accept" {
		t.Errorf("got %q", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Accept with a context that is over: %v", err)
	}
	l.OnConnection(func(*WebSocket) {})
	if _, err := l.Accept(t.Context()); err == nil {
		t.Error("Accept although OnConnection is set")
	}
	c.Abort()
}

// Connections that wait are handed over when OnConnection is set, and closed
// with 1001 when the listener closes first.
func TestWaitingConnections(t *testing.T) {
	l := listen(t, ListenConfig{})
	a, err := Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	handed := make(chan *WebSocket)
	l.OnConnection(func(c *WebSocket) { handed <- c })
	c := <-handed
	l.OnConnection(nil)
	b, err := Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if ev := waitDone(t, b); ev.Code != 1001 || !ev.WasClean {
		t.Errorf("waiting connection: %+v", ev)
	}
	if c.ReadyState() != Open || a.ReadyState() != Open {
		t.Error("a socket that was handed over did not live on")
	}
	if _, err := Dial(t.Context(), l.URL()); err == nil {
		t.Error("a closed listener accepts")
	}
	a.Close()
	waitDone(t, a)
	waitDone(t, c)
}

func TestShutdown(t *testing.T) {
	arrived := make(chan struct{}, 50)
	l := listen(t, ListenConfig{OnConnection: func(c *WebSocket) {
		echoing(c)
		arrived <- struct{}{}
	}})
	var clients []*WebSocket
	for range 50 {
		c, err := Dial(t.Context(), l.URL())
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		<-arrived // the peer may know of it first
	}
	if n := l.Stats().Open; n != 50 {
		t.Errorf("%d open", n)
	}
	if err := l.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for _, c := range clients {
		if ev := waitDone(t, c); ev.Code != 1001 || !ev.WasClean {
			t.Fatalf("%+v", ev)
		}
	}
	if s := l.Stats(); s.Open != 0 || s.Accepted != 50 {
		t.Errorf("%+v", s)
	}
	if l.ReadyState() != ListenerClosed || l.Err() != nil {
		t.Errorf("state %v, error %v", l.ReadyState(), l.Err())
	}
	if err := l.Ready(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Ready after the end: %v", err)
	}
}

func TestShutdownWith(t *testing.T) {
	arrived := make(chan struct{}, 1)
	l := listen(t, ListenConfig{OnConnection: func(c *WebSocket) { arrived <- struct{}{} }})
	c, err := Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	<-arrived
	for code, reason := range map[StatusCode]string{1006: "", 0: "no code", 1002: ""} {
		if err := l.ShutdownWith(t.Context(), code, reason); err == nil || l.ReadyState() != ListenerListening {
			t.Errorf("%d %q: %v, %v", code, reason, err, l.ReadyState())
		}
	}
	if err := l.ShutdownWith(t.Context(), StatusServiceRestart, "new version"); err != nil {
		t.Error(err)
	}
	if ev := waitDone(t, c); ev.Code != 1012 || ev.Reason != "new version" || !ev.WasClean {
		t.Errorf("%+v", ev)
	}
}

// A peer that does not answer is cut off when the context ends.
func TestShutdown_PeerDoesNotAnswer(t *testing.T) {
	l := listen(t, ListenConfig{OnConnection: echoing})
	conn := rawClient(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	io.Copy(io.Discard, conn)
	conn.Close()
}

// rawClient makes an open connection of bytes only.
func rawClient(t testing.TB, l *WebSocketListener) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	upgradeRaw(t, conn)
	return conn
}

// bareHead is what rawClient asks.
const bareHead = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// upgradeRaw does the opening handshake by hand.
func upgradeRaw(t testing.TB, conn net.Conn) {
	t.Helper()
	io.WriteString(conn, bareHead)
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatalf("answer: %v after %q", err, head)
		}
		head = append(head, b[0])
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		t.Fatalf("answer: %q", head)
	}
}

// Many peers at once, every method from everywhere.
func TestManyPeers(t *testing.T) {
	var open atomic.Int64
	l := listen(t, ListenConfig{OnConnection: func(c *WebSocket) {
		open.Add(1)
		echoing(c)
		c.OnClose(func(*WebSocket, CloseEvent) { open.Add(-1) })
	}})
	const messages = 200
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			c, err := Dial(t.Context(), l.URL())
			if err != nil {
				t.Error(err)
				return
			}
			n, all := 0, make(chan struct{})
			c.OnMessage(func(_ *WebSocket, m Message) {
				if want := fmt.Sprint(i, "-", n); string(m.Data) != want {
					t.Errorf("got %q, want %q", m.Data, want)
				}
				if n++; n == messages {
					close(all)
				}
			})
			for k := range messages {
				if err := c.Write(t.Context(), Message{Type: Text, Data: fmt.Append(nil, i, "-", k)}); err != nil {
					t.Error(err)
				}
			}
			<-all
			if i%2 == 0 {
				c.Close()
			} else {
				c.Abort()
			}
			waitDone(t, c)
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if n := open.Load(); n != 0 {
		t.Errorf("%d connections without OnClose", n)
	}
}

// The request's headers are there until the first message.
func TestRequest(t *testing.T) {
	for _, ask := range []bool{true, false} {
		l := listen(t, ListenConfig{})
		c, err := Dialer{Header: http.Header{"X-Who": {"ann"}}}.Dial(t.Context(), l.URL()+"p")
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ask && a.Request().Header.Get("X-Who") != "ann" {
			t.Errorf("headers: %v", a.Request().Header)
		}
		got := make(chan *http.Request)
		a.OnMessage(func(a *WebSocket, _ Message) { got <- a.Request() })
		c.SendText("x")
		r := <-got
		if (r.Header.Get("X-Who") != "") != ask {
			t.Errorf("asked before: %v, headers then: %v", ask, r.Header)
		}
		if r.Method != "GET" || r.URL.Path != "/p" || r.Host == "" || r.RemoteAddr != c.LocalAddr().String() {
			t.Errorf("%+v", r)
		}
		c.Abort()
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{32, 125, 1 << 10, 16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			l := listen(b, ListenConfig{OnConnection: func(c *WebSocket) {
				c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
			}})
			conn := rawClient(b, l)
			defer conn.Close()
			frame := clientFrame(0x82, make([]byte, size))
			reply := make([]byte, len(serverMessage(make([]byte, size))))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				conn.Write(frame)
				if _, err := io.ReadFull(conn, reply); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// 64 messages in one segment, and their replies.
func BenchmarkEchoPipelined(b *testing.B) {
	l := listen(b, ListenConfig{OnConnection: func(c *WebSocket) {
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
	}})
	conn := rawClient(b, l)
	defer conn.Close()
	frames := bytes.Repeat(clientFrame(0x82, make([]byte, 125)), 64)
	reply := make([]byte, 64*127)
	b.SetBytes(64 * 125)
	b.ReportAllocs()
	for b.Loop() {
		conn.Write(frames)
		if _, err := io.ReadFull(conn, reply); err != nil {
			b.Fatal(err)
		}
	}
}

// Dial, upgrade, close.
func BenchmarkHandshake(b *testing.B) {
	l := listen(b, ListenConfig{OnConnection: func(*WebSocket) {}})
	b.ReportAllocs()
	for b.Loop() {
		rawClient(b, l).Close()
	}
}
