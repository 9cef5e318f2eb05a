package interop

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coder "github.com/coder/websocket"
	gobwas "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"
	xnet "golang.org/x/net/websocket"

	"github.com/peerws/peerws"
)

// What users of the other libraries run into. Each test shows it there first,
// so that it is noticed when a new version behaves otherwise, and then what
// peerws does in the same place. Numbers are those of the list that the tests
// of peerws itself follow.

// withGorilla returns a server's connection of gorilla and the peer to it.
func withGorilla(t testing.TB) (server *gorilla.Conn, client *gorilla.Conn) {
	t.Helper()
	accepted := make(chan *gorilla.Conn, 1)
	url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := new(gorilla.Upgrader).Upgrade(w, r, nil); err == nil {
			accepted <- c
		}
	}))
	client = dialGorilla(t, url)
	server = take(t, accepted)
	t.Cleanup(func() { server.Close() })
	return server, client
}

func dialGorilla(t testing.TB, url string) *gorilla.Conn {
	t.Helper()
	c, _, err := gorilla.DefaultDialer.DialContext(soon(t), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// readFrame reads one small frame, and returns its payload.
func readFrame(r io.Reader) ([]byte, error) {
	h, err := gobwas.ReadHeader(r)
	if err != nil || h.Length > 125 {
		return nil, err
	}
	b := make([]byte, h.Length)
	_, err = io.ReadFull(r, b)
	return b, err
}

// A gate is a transport whose next Write, once armed is filled, tells entered
// and waits for open.
type gate struct {
	net.Conn
	armed, entered chan struct{}
	open           chan struct{}
	mu             sync.Mutex
	writes         int
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	g.writes++
	g.mu.Unlock()
	select {
	case <-g.armed:
		close(g.entered)
		<-g.open
	default:
	}
	return g.Conn.Write(p)
}

func newGate() *gate {
	return &gate{armed: make(chan struct{}, 1), entered: make(chan struct{}), open: make(chan struct{})}
}

func (g *gate) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	g.Conn = c
	return g, err
}

// gated dials a listener of ours through a gate.
func gated(t testing.TB, d peerws.Dialer) (accepted, dialled *peerws.WebSocket, g *gate) {
	t.Helper()
	g = newGate()
	d.NetDial = g.dial
	accepted, dialled = pair(t, false, peerws.ListenConfig{}, d)
	return accepted, dialled, g
}

func wantText(t testing.TB, c *peerws.WebSocket, want string) {
	t.Helper()
	if m, err := c.Read(soon(t)); err != nil || m.Type != peerws.Text || string(m.Data) != want {
		t.Errorf("read %v %q, %v, want %q", m.Type, m.Data, err, want)
	}
}

// 1: two goroutines write at the same time.
func TestPainConcurrentWrites(t *testing.T) {
	t.Run("gorilla panics", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			new(gorilla.Upgrader).Upgrade(w, r, nil)
		}))
		g := newGate()
		c, _, err := (&gorilla.Dialer{NetDialContext: g.dial}).DialContext(soon(t), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		g.armed <- struct{}{}
		first := make(chan error, 1)
		go func() { first <- c.WriteMessage(gorilla.TextMessage, []byte("one")) }()
		take(t, g.entered)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("it does not panic any more")
				}
			}()
			c.WriteMessage(gorilla.TextMessage, []byte("two"))
		}()
		close(g.open)
		take(t, first)
	})
	t.Run("ours", func(t *testing.T) {
		a, d, g := gated(t, peerws.Dialer{})
		g.armed <- struct{}{}
		first := make(chan error, 1)
		go func() { first <- d.SendText("one") }()
		take(t, g.entered)
		if err := d.SendText("two"); err != nil {
			t.Error(err)
		}
		close(g.open)
		if err := take(t, first); err != nil {
			t.Error(err)
		}
		wantText(t, a, "one")
		wantText(t, a, "two")
	})
}

// writerFunc is an io.Writer.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// 2: a frame is written in two parts, so another one can come between them.
func TestPainFrameInTwoWrites(t *testing.T) {
	t.Run("gobwas", func(t *testing.T) {
		var wire bytes.Buffer
		writes := 0
		w := writerFunc(func(p []byte) (int, error) {
			writes++
			defer func() {
				if writes == 1 { // another goroutine's pong, at the worst moment
					writes++
					gobwas.WriteFrame(&wire, gobwas.NewPongFrame(nil))
				}
			}()
			return wire.Write(p)
		})
		if err := gobwas.WriteFrame(w, gobwas.NewTextFrame([]byte("message"))); err != nil {
			t.Fatal(err)
		}
		if f, err := readFrame(&wire); err == nil && string(f) == "message" {
			t.Error("the frame is whole")
		}
	})
	t.Run("ours", func(t *testing.T) {
		a, d, g := gated(t, peerws.Dialer{})
		before := g.writes
		if err := d.SendText("message"); err != nil {
			t.Fatal(err)
		}
		wantText(t, a, "message")
		g.mu.Lock()
		defer g.mu.Unlock()
		if n := g.writes - before; n != 1 {
			t.Errorf("%d writes", n)
		}
	})
}

// allocated is how many bytes this program has allocated since it started.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// 3: memory for what a header announces, before any of it has come.
func TestPainDeclaredLength(t *testing.T) {
	const size = 16 << 20
	header := []byte{0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4} // 16 MiB, masked
	send := func(t *testing.T, url string) {
		c, _, _, err := gobwas.Dial(soon(t), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write(header); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("gws", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, err := gws.NewUpgrader(&gws.BuiltinEventHandler{}, nil).Upgrade(w, r); err == nil {
				go c.ReadLoop()
			}
		}))
		before := allocated()
		send(t, url)
		for end := time.Now().Add(patience); allocated()-before < size; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d bytes allocated for a header of %d", allocated()-before, len(header))
			}
		}
	})
	t.Run("ours", func(t *testing.T) {
		l, url := listen(t, false, peerws.ListenConfig{MaxMessageSize: size})
		before := allocated()
		send(t, url)
		c, err := l.Accept(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		c.OnMessage(func(*peerws.WebSocket, peerws.Message) {})
		time.Sleep(100 * time.Millisecond) // more than it needs to read the header
		if n := allocated() - before; n > 1<<20 {
			t.Errorf("%d bytes allocated", n)
		}
	})
}

// 4: a message of many fragments grows without a limit.
func TestPainEndlessFragments(t *testing.T) {
	const fragments, each = 128, 64 << 10
	t.Run("gobwas", func(t *testing.T) {
		var wire bytes.Buffer
		for i := range fragments {
			f := gobwas.NewFrame(gobwas.OpContinuation, i == fragments-1, make([]byte, each))
			if i == 0 {
				f.Header.OpCode = gobwas.OpBinary
			}
			gobwas.WriteFrame(&wire, gobwas.MaskFrame(f))
		}
		b, err := wsutil.ReadClientBinary(&wire)
		if err != nil || len(b) != fragments*each {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		l, url := listen(t, false, peerws.ListenConfig{})
		c, _, _, err := gobwas.Dial(soon(t), url)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			op := gobwas.OpBinary
			for range fragments {
				if gobwas.WriteFrame(c, gobwas.MaskFrame(gobwas.NewFrame(op, false, make([]byte, each)))) != nil {
					return
				}
				op = gobwas.OpContinuation
			}
		}()
		a, err := l.Accept(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Read(soon(t))
		e, ok := errors.AsType[*peerws.LimitError](err)
		if !ok || e.Option != "MaxMessageSize" || e.Code != peerws.StatusMessageTooBig {
			t.Error(err)
		}
	})
}

// Beside 4: x/net does not put fragments together at all.
func TestPainFragmentsAsMessages(t *testing.T) {
	send := func(t *testing.T, url string) {
		c, _, _, err := gobwas.Dialer{Header: gobwas.HandshakeHeaderHTTP{"Origin": {"http" + strings.TrimSuffix(url[len("ws"):], "/")}}}.Dial(soon(t), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		gobwas.WriteFrame(c, gobwas.MaskFrame(gobwas.NewFrame(gobwas.OpText, false, []byte("Hel"))))
		gobwas.WriteFrame(c, gobwas.MaskFrame(gobwas.NewFrame(gobwas.OpContinuation, true, []byte("lo"))))
	}
	t.Run("x/net", func(t *testing.T) {
		got := make(chan string, 2)
		send(t, serve(t, false, xnet.Handler(func(c *xnet.Conn) {
			for range 2 {
				var s string
				xnet.Message.Receive(c, &s)
				got <- s
			}
		})))
		if a, b := take(t, got), take(t, got); a != "Hel" || b != "lo" {
			t.Errorf("%q, %q", a, b)
		}
	})
	t.Run("ours", func(t *testing.T) {
		l, url := listen(t, false, peerws.ListenConfig{})
		send(t, url)
		c, err := l.Accept(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, c, "Hello")
	})
}

// 12: Close waits for a peer that does not answer: 5 s, which this test takes.
func TestPainCloseBlocks(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, d := peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
			busy := make(chan struct{})
			a.OnMessage(func(*peerws.WebSocket, peerws.Message) { <-busy })
			d.SendText("work")
			synctest.Wait()
			start := time.Now()
			d.Close()
			if took := time.Since(start); took != 0 {
				t.Errorf("Close took %v", took)
			}
			close(busy)
			<-a.Done()
			<-d.Done()
		})
	})
	t.Run("coder", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			new(gorilla.Upgrader).Upgrade(w, r, nil) // and nobody reads
		}))
		c, _, err := coder.Dial(soon(t), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c.Close(coder.StatusNormalClosure, "")
		if took := time.Since(start); took < 4*time.Second {
			t.Errorf("Close took %v", took)
		}
	})
}

// 14: only the read knows why the peer closed.
func TestPainCloseCodeLost(t *testing.T) {
	t.Run("gorilla", func(t *testing.T) {
		server, client := withGorilla(t)
		client.WriteControl(gorilla.CloseMessage, gorilla.FormatCloseMessage(4001, "moved"), time.Now().Add(patience))
		if _, _, err := server.ReadMessage(); !gorilla.IsCloseError(err, 4001) {
			t.Fatal(err)
		}
		err := server.WriteMessage(gorilla.TextMessage, nil)
		if err == nil || strings.Contains(err.Error(), "4001") {
			t.Error(err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		a, d := pair(t, false, peerws.ListenConfig{}, peerws.Dialer{})
		d.CloseWith(4001, "moved")
		if _, err := a.Wait(soon(t)); err != nil {
			t.Fatal(err)
		}
		_, readErr := a.Read(soon(t))
		for _, err := range []error{readErr, a.SendText("late")} {
			if ev, ok := errors.AsType[peerws.CloseEvent](err); !ok || ev.Code != 4001 || ev.Reason != "moved" || !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	})
}

// 15: a code that must never be sent is sent.
func TestPainForbiddenCode(t *testing.T) {
	t.Run("gorilla", func(t *testing.T) {
		server, client := withGorilla(t)
		server.WriteControl(gorilla.CloseMessage, gorilla.FormatCloseMessage(1006, ""), time.Now().Add(patience))
		f, err := readFrame(client.NetConn())
		if code, _ := gobwas.ParseCloseFrameData(f); err != nil || code != 1006 {
			t.Error(code, err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		_, d := pair(t, false, peerws.ListenConfig{}, peerws.Dialer{})
		if err := d.CloseWith(1006, ""); err == nil || d.ReadyState() != peerws.Open {
			t.Error(err, d.ReadyState())
		}
	})
}

// 16: a context, or a deadline, that ends the wait ends the connection too.
func TestPainTimeoutKills(t *testing.T) {
	t.Run("coder", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			new(gorilla.Upgrader).Upgrade(w, r, nil)
		}))
		c, _, err := coder.Dial(soon(t), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, _, err := c.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := c.Write(soon(t), coder.MessageText, []byte("hello?")); err == nil {
			t.Error("the connection lives")
		}
	})
	t.Run("gorilla", func(t *testing.T) {
		server, client := withGorilla(t)
		server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		server.ReadMessage()
		server.SetReadDeadline(time.Time{})
		client.WriteMessage(gorilla.TextMessage, []byte("hello?"))
		if _, _, err := server.ReadMessage(); err == nil {
			t.Error("it can be read")
		}
	})
	t.Run("ours", func(t *testing.T) {
		a, d := pair(t, false, peerws.ListenConfig{}, peerws.Dialer{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := a.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		n := a.NetConn(peerws.Text)
		n.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := n.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		d.SendText("hello?")
		wantText(t, a, "hello?")
	})
}

// 17: an ordinary message is over the limit that nobody has set.
func TestPainSmallDefaultLimit(t *testing.T) {
	const size = 32<<10 + 1
	t.Run("coder", func(t *testing.T) {
		got := make(chan error, 1)
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, err := coder.Accept(w, r, nil); err == nil {
				_, _, err = c.Read(t.Context())
				got <- err
			}
		}))
		dialGorilla(t, url).WriteMessage(gorilla.BinaryMessage, make([]byte, size))
		if err := take(t, got); !errors.Is(err, coder.ErrMessageTooBig) {
			t.Error(err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		a, d := pair(t, false, peerws.ListenConfig{}, peerws.Dialer{})
		d.SendBinary(make([]byte, size))
		if m, err := a.Read(soon(t)); err != nil || len(m.Data) != size {
			t.Error(err)
		}
	})
}

// 18: what is queued for a peer that takes nothing has no bound.
func TestPainEndlessQueue(t *testing.T) {
	const messages = 1000
	b := make([]byte, 64<<10)
	t.Run("gws", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			new(gorilla.Upgrader).Upgrade(w, r, nil)
		}))
		g := newGate()
		tcp, err := g.dial(soon(t), "tcp", url[len("ws://"):])
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := gws.NewClientFromConn(&gws.BuiltinEventHandler{}, &gws.ClientOption{Addr: url}, tcp)
		if err != nil {
			t.Fatal(err)
		}
		g.armed <- struct{}{}
		results := make(chan error, messages)
		for range messages {
			c.WriteAsync(gws.OpcodeBinary, b, func(err error) { results <- err })
		}
		take(t, g.entered)
		if n := len(results); n != 0 {
			t.Errorf("%d of %d were not queued", n, messages)
		}
		g.Conn.Close()
		close(g.open)
		for range messages {
			take(t, results)
		}
	})
	t.Run("ours", func(t *testing.T) {
		_, d, g := gated(t, peerws.Dialer{})
		g.armed <- struct{}{}
		var err error
		for i := 0; i < messages && err == nil; i++ {
			err = d.SendBinary(b)
		}
		if err != peerws.ErrBufferFull || d.ReadyState() != peerws.Open || d.BufferedAmount() > 1<<20 {
			t.Errorf("%v, %v, %d bytes queued", err, d.ReadyState(), d.BufferedAmount())
		}
		close(g.open)
	})
}

// 20: shutting the server down forgets the connections.
func TestPainShutdownForgets(t *testing.T) {
	t.Run("gorilla", func(t *testing.T) {
		accepted := make(chan *gorilla.Conn, 1)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, err := new(gorilla.Upgrader).Upgrade(w, r, nil); err == nil {
				accepted <- c
			}
		}))
		defer s.Close()
		client := dialGorilla(t, "ws"+strings.TrimPrefix(s.URL, "http"))
		server := take(t, accepted)
		defer server.Close()
		if err := s.Config.Shutdown(soon(t)); err != nil {
			t.Fatal(err)
		}
		client.WriteMessage(gorilla.TextMessage, []byte("still there?"))
		if _, b, err := server.ReadMessage(); err != nil || string(b) != "still there?" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		l, url := listen(t, false, peerws.ListenConfig{OnConnection: func(*peerws.WebSocket) {}})
		d, err := peerws.Dial(soon(t), url)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Shutdown(soon(t)); err != nil {
			t.Fatal(err)
		}
		if ev, err := d.Wait(soon(t)); err != nil || ev.Code != peerws.StatusGoingAway || !ev.WasClean {
			t.Error(ev, err)
		}
	})
}

// 23: what a client sends together with its request is lost.
func TestPainEarlyFrame(t *testing.T) {
	request := func(host string) []byte {
		return []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" +
			"\x81\x85\x00\x00\x00\x00early")
	}
	t.Run("gobwas", func(t *testing.T) {
		in := bytes.NewReader(request("127.0.0.1"))
		conn := struct {
			io.Reader
			io.Writer
		}{in, io.Discard}
		if _, err := gobwas.Upgrade(conn); err != nil {
			t.Fatal(err)
		}
		if in.Len() != 0 {
			t.Errorf("%d bytes are left", in.Len())
		}
	})
	t.Run("ours", func(t *testing.T) {
		l, url := listen(t, false, peerws.ListenConfig{})
		host := strings.Trim(url[len("ws:"):], "/")
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(request(host))
		a, err := l.Accept(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, a, "early")
	})
}

// 24: a server that speaks none of the offered subprotocols accepts all the same.
func TestPainSubprotocol(t *testing.T) {
	d := gorilla.Dialer{Subprotocols: []string{"other"}}
	t.Run("gorilla", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			(&gorilla.Upgrader{Subprotocols: []string{"chat"}}).Upgrade(w, r, nil)
		}))
		c, _, err := d.DialContext(soon(t), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	t.Run("ours", func(t *testing.T) {
		_, url := listen(t, false, peerws.ListenConfig{}, "chat")
		_, r, err := d.DialContext(soon(t), url, nil)
		if err == nil || r == nil || r.StatusCode != http.StatusBadRequest {
			t.Error(r, err)
		}
	})
}

// 25: a page of a foreign name that its owner lets point to this machine.
func TestPainRebinding(t *testing.T) {
	h := http.Header{"Host": {"evil.example"}, "Origin": {"http://evil.example"}}
	t.Run("gorilla", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			new(gorilla.Upgrader).Upgrade(w, r, nil)
		}))
		c, _, err := gorilla.DefaultDialer.DialContext(soon(t), url, h)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	t.Run("ours", func(t *testing.T) {
		_, url := listen(t, false, peerws.ListenConfig{})
		_, r, err := gorilla.DefaultDialer.DialContext(soon(t), url, h)
		if err == nil || r == nil || r.StatusCode != http.StatusForbidden {
			t.Error(r, err)
		}
	})
}

// Asked for besides: reading on after the end.
func TestPainRepeatedRead(t *testing.T) {
	t.Run("gorilla panics", func(t *testing.T) {
		server, client := withGorilla(t)
		client.Close()
		defer func() {
			if recover() == nil {
				t.Error("it does not panic any more")
			}
		}()
		for range 1001 {
			server.ReadMessage()
		}
	})
	t.Run("ours", func(t *testing.T) {
		a, d := pair(t, false, peerws.ListenConfig{}, peerws.Dialer{})
		d.Abort()
		_, first := a.Read(soon(t))
		for range 1001 {
			if _, err := a.Read(t.Context()); !errors.Is(err, net.ErrClosed) {
				t.Fatal(first, err)
			}
		}
	})
}

// Beside 8: a pong without the ping's payload, which RFC 6455 §5.5.3 asks for.
func TestPainEmptyPong(t *testing.T) {
	ping := func(t *testing.T, url string) string {
		c := dialGorilla(t, url)
		pong := make(chan string, 1)
		c.SetPongHandler(func(s string) error { pong <- s; return nil })
		c.WriteControl(gorilla.PingMessage, []byte("payload"), time.Now().Add(patience))
		go c.ReadMessage()
		return take(t, pong)
	}
	t.Run("gws", func(t *testing.T) {
		got := ping(t, serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, err := gws.NewUpgrader(&gws.BuiltinEventHandler{}, nil).Upgrade(w, r); err == nil {
				go c.ReadLoop()
			}
		})))
		if got != "" {
			t.Errorf("the pong has %q", got)
		}
	})
	t.Run("ours", func(t *testing.T) {
		_, url := listen(t, false, peerws.ListenConfig{OnConnection: func(*peerws.WebSocket) {}})
		if got := ping(t, url); got != "payload" {
			t.Errorf("the pong has %q", got)
		}
	})
}

// Beside 14: the peer is told our own error's text, addresses and all, as the
// reason of a normal closure.
func TestPainReasonTellsInternals(t *testing.T) {
	t.Run("gws", func(t *testing.T) {
		url := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, err := gws.NewUpgrader(&gws.BuiltinEventHandler{}, nil).Upgrade(w, r); err == nil {
				c.NetConn().SetReadDeadline(time.Unix(1, 0))
				go c.ReadLoop()
			}
		}))
		_, _, err := dialGorilla(t, url).ReadMessage()
		e, ok := errors.AsType[*gorilla.CloseError](err)
		if !ok || e.Code != 1000 || !strings.Contains(e.Text, "127.0.0.1") {
			t.Error(err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		_, url := listen(t, false, peerws.ListenConfig{OnConnection: func(*peerws.WebSocket) {}})
		c := dialGorilla(t, url)
		c.NetConn().Write([]byte{0x89, 0}) // a ping that is not masked
		_, _, err := c.ReadMessage()
		e, ok := errors.AsType[*gorilla.CloseError](err)
		if !ok || e.Code != 1002 || strings.Contains(e.Text, "127.0.0.1") {
			t.Error(err)
		}
	})
}
