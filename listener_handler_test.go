package peerws

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
	"github.com/peerws/peerws/nat"
)

// mount puts a listener into a server of net/http. change may be nil.
func mount(t *testing.T, c ListenConfig, change func(*httptest.Server)) (*WebSocketListener, *httptest.Server) {
	t.Helper()
	l, h, err := c.Handler("chat")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/chat", h)
	s := httptest.NewUnstartedServer(mux)
	if change != nil {
		change(s)
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		closePort(t, l)
		s.Close()
	})
	return l, s
}

// knockAt is knock for a server of net/http.
func knockAt(t testing.TB, s *httptest.Server, parts ...string) *knocker {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return knockOn(t, conn, parts...)
}

func TestHandler(t *testing.T) {
	type seen struct {
		url, path, stack string
		header           http.Header
	}
	got := make(chan seen, 1)
	l, s := mount(t, ListenConfig{
		ResponseHeader:      http.Header{"Set-Cookie": {"a=b; HttpOnly", "c=d"}},
		MaxConnectionsPerIP: 1, // is not counted here
		OnConnection: func(c *WebSocket) {
			var stack [16 << 10]byte
			r := c.Request()
			got <- seen{c.URL(), r.URL.Path, string(stack[:runtime.Stack(stack[:], false)]), r.Header}
			echoing(c)
		},
	}, nil)
	if l.ReadyState() != ListenerListening || l.Port() != 0 || l.Addr() != nil || l.URL() != "" || len(l.Addresses()) != 0 || l.Reachability().Code != "off" {
		t.Errorf("%v, port %d, %v, %q, %v, %+v", l.ReadyState(), l.Port(), l.Addr(), l.URL(), l.Addresses(), l.Reachability())
	}
	if err := l.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for range 3 {
		// Frames that come with the request, more than the server's buffer holds.
		k := knockAt(t, s, add("Sec-WebSocket-Protocol: chat\r\nX-Who: ann\r\n"), strings.Repeat(maskedHello, 1000))
		r := k.wantOpen()
		if r.Header.Get("Sec-WebSocket-Protocol") != "chat" {
			t.Errorf("%v", r.Header)
		}
		if c := r.Cookies(); len(c) != 2 || c[0].Name != "a" || !c[0].HttpOnly || c[1].Value != "d" {
			t.Errorf("cookies %v", c)
		}
		k.wantBytes("echoes", strings.Repeat(hello, 1000))
		x := <-got
		if x.url != "ws://127.0.0.1:9000/chat" || x.path != "/chat" || x.header.Get("X-Who") != "ann" {
			t.Errorf("%+v", x)
		}
		if strings.Contains(x.stack, "net/http.(*conn)") {
			t.Errorf("the callback runs where net/http recovers its panic:\n%s", x.stack)
		}
	}
	if n := l.Stats().Open; n != 3 {
		t.Errorf("%d open", n)
	}
}

// Our dialler, the closing handshake, and Shutdown of sockets the server has
// forgotten.
func TestHandler_Shutdown(t *testing.T) {
	l, s := mount(t, ListenConfig{OnConnection: echoing}, nil)
	url := "ws" + strings.TrimPrefix(s.URL, "http") + "/chat"
	var open []*WebSocket
	for range 5 {
		c, err := Dial(t.Context(), url, "chat")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		c.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
		c.SendText("hey")
		if m := <-got; m != "hey" {
			t.Fatalf("%q", m)
		}
		open = append(open, c)
	}
	open[0].CloseWith(3000, "done")
	if ev := waitDone(t, open[0]); !ev.WasClean || ev.Code != 3000 {
		t.Errorf("%+v", ev)
	}
	l.Close()
	if open[1].ReadyState() != Open {
		t.Error("Close has closed a socket")
	}
	if err := l.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for _, c := range open[1:] {
		if ev := waitDone(t, c); !ev.WasClean || ev.Code != StatusGoingAway {
			t.Errorf("%+v", ev)
		}
	}
	for _, head := range []string{upgrade, strings.Replace(getPage, "/page", "/chat", 1)} {
		knockAt(t, s, head).wantRefusal(503)
	}
	if err := l.Ready(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Ready: %v", err)
	}
	select {
	case <-l.Done():
	default:
		t.Error("not done")
	}
}

func TestHandler_Options(t *testing.T) {
	for name, c := range map[string]ListenConfig{
		"Address":   {Address: "127.0.0.1"},
		"NAT":       {NAT: nat.None()},
		"TLSConfig": {TLSConfig: serverConfig()},
	} {
		l, h, err := c.Handler()
		if l != nil || h != nil {
			t.Errorf("%s: %v, %v", name, l, h)
		}
		wantSyntaxError(t, err, "option", name)
	}
	_, _, err := ListenConfig{}.Handler("a", "a")
	wantSyntaxError(t, err, "protocol", "a")
}

// Every refusal is one answer of net/http, and is counted.
func TestHandler_Refusals(t *testing.T) {
	_, s := mount(t, ListenConfig{
		OnConnection:   echoing,
		MaxConnections: 1,
		Authorize: func(r *http.Request) error {
			if r.Header.Get("X-Who") != "ann" {
				return &RejectError{Status: 401, Header: http.Header{"Www-Authenticate": {"Basic"}}, Body: "Who is there."}
			}
			return nil
		},
	}, nil)
	const who = "X-Who: ann\r\n"
	chat := strings.Replace(getPage, "/page", "/chat", 1)
	for _, c := range []struct {
		name, head string
		status     int
	}{
		{"no upgrade", chat, 426},
		{"a POST", strings.Replace(chat, "GET", "POST", 1), 405},
		{"a version", swap(versionLine, "Sec-WebSocket-Version: 8\r\n"), 426},
		{"a key", swap(keyLine, "Sec-WebSocket-Key: x\r\n"), 400},
		{"HTTP/1.0", swap(getLine, "GET /chat HTTP/1.0\r\n"), 400},
		{"a foreign page", add("Origin: http://evil.example\r\n" + who), 403},
		{"an unknown protocol", add("Sec-WebSocket-Protocol: other\r\n" + who), 400},
		{"a stranger", upgrade, 401},
	} {
		t.Run(c.name, func(t *testing.T) { knockAt(t, s, c.head).wantRefusal(c.status) })
	}
	k := knockAt(t, s, add(who), maskedHello)
	k.wantOpen()
	k.wantBytes("echo", hello)
	knockAt(t, s, add(who)).wantRefusal(503)
}

// Requests that are not an upgrade go to ListenConfig.HTTP.
func TestHandler_HTTP(t *testing.T) {
	l, s := mount(t, ListenConfig{OnConnection: echoing, HTTP: page}, nil)
	k := knockAt(t, s, strings.Replace(getPage, "/page", "/chat", 1))
	if r, body := k.answer("GET"); r.StatusCode != 200 || body != `GET 127.0.0.1:9000 /chat ""` {
		t.Errorf("%d %q", r.StatusCode, body)
	}
	k.send(upgrade, maskedHello)
	k.wantOpen()
	k.wantBytes("echo", hello)
	l.Close()
	knockAt(t, s, strings.Replace(getPage, "/page", "/chat", 1)).wantRefusal(503)
}

// The server's middleware: what it adds to the context is kept, and one that
// hides Hijack gets an answer.
func TestHandler_Middleware(t *testing.T) {
	type key struct{}
	got := make(chan any, 1)
	l, h, err := ListenConfig{OnConnection: func(c *WebSocket) {
		ctx := c.Request().Context()
		got <- fmt.Sprint(ctx.Value(key{}), ctx.Err(), ctx.Done() == nil)
	}}.Handler()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("hide") {
			w = struct{ http.ResponseWriter }{w}
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, "ann")))
	}))
	defer s.Close()
	defer closePort(t, l)
	knockAt(t, s, upgrade).wantOpen()
	if x := <-got; x != "ann<nil> true" {
		t.Error(x)
	}
	k := knockAt(t, s, swap(getLine, "GET /?hide HTTP/1.1\r\n"))
	r, body := k.answer("GET")
	if wantSentence(t, body); r.StatusCode != 500 {
		t.Errorf("status %d", r.StatusCode)
	}
}

// Over TLS the connection is a *tls.Conn of net/http's.
// What the handlers around ours have put into the answer is in the 101.
func TestHandler_OuterHeader(t *testing.T) {
	l, h, err := ListenConfig{ResponseHeader: http.Header{"X-Ours": {"1"}}}.Handler()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Value: r.URL.Query().Get("user")})
		http.SetCookie(w, &http.Cookie{Name: "b", Value: "2"})
		w.Header()["x-Lower"] = []string{"a\r\nInjected: 1"}
		for _, name := range []string{
			"Content-Type", "Content-Length", "Transfer-Encoding", "Trailer", "Upgrade", "Connection",
			"Sec-WebSocket-Accept", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "bad name",
		} {
			w.Header().Set(name, "5")
		}
		w.Header().Set("X-Outer", "yes")
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	defer closePort(t, l)
	c, err := Dial(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http")+"/?user=ann")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	got := c.Request().Response.Header
	got.Del("Sec-WebSocket-Accept")
	want := http.Header{
		"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "X-Ours": {"1"}, "X-Outer": {"yes"},
		"Set-Cookie": {"user=ann", "b=2"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestHandler_TLS(t *testing.T) {
	secure := make(chan bool, 1)
	_, s := mount(t, ListenConfig{OnConnection: func(c *WebSocket) {
		secure <- c.Request().TLS != nil && strings.HasPrefix(c.URL(), "wss://")
		echoing(c)
	}}, func(s *httptest.Server) { s.StartTLS() })
	d := Dialer{TLSConfig: s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
	c, err := d.Dial(t.Context(), "wss"+strings.TrimPrefix(s.URL, "https")+"/chat", "chat")
	if err != nil {
		t.Fatal(err)
	}
	if !<-secure {
		t.Error("TLS is not seen")
	}
	got := make(chan int, 1)
	c.OnMessage(func(_ *WebSocket, m Message) { got <- len(m.Data) })
	for _, n := range []int{0, 10, 1 << 20} {
		if err := c.Write(t.Context(), Message{Type: Binary, Data: make([]byte, n)}); err != nil {
			t.Fatal(err)
		}
		if k := <-got; k != n {
			t.Errorf("%d bytes came back as %d", n, k)
		}
	}
	c.Close()
	if ev := waitDone(t, c); !ev.WasClean {
		t.Errorf("%+v", ev)
	}
}

// HTTP/2 has no Upgrade: one sentence says so, and other requests on the
// connection are not disturbed.
func TestHandler_HTTP2(t *testing.T) {
	for _, web := range []http.Handler{nil, page} {
		l, s := mount(t, ListenConfig{HTTP: web}, func(s *httptest.Server) {
			s.EnableHTTP2 = true
			s.StartTLS()
		})
		get := func(header, value string) (status int, body string) {
			r, _ := http.NewRequest("GET", s.URL+"/chat", nil)
			if header != "" {
				r.Header.Set(header, value)
			}
			a, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			if a.ProtoMajor != 2 {
				t.Fatalf("over %s", a.Proto)
			}
			b, _ := io.ReadAll(a.Body)
			if len(a.Header["Connection"])+len(a.Header["Upgrade"]) > 0 {
				t.Errorf("%v", a.Header)
			}
			return a.StatusCode, string(b)
		}
		want := 505
		if web != nil {
			want = 200
		}
		if status, _ := get("", ""); status != want {
			t.Errorf("a page: %d", status)
		}
		for _, h := range []string{"Sec-WebSocket-Key", "Sec-WebSocket-Version"} {
			status, body := get(h, "13")
			if wantSentence(t, body); status != 505 {
				t.Errorf("%s: %d", h, status)
			}
		}
		// What a server that knows RFC 8441 hands over.
		w := httptest.NewRecorder()
		r := httptest.NewRequest("CONNECT", "/chat", nil)
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
		r.Header[":protocol"] = []string{"websocket"}
		_, h, _ := ListenConfig{HTTP: web}.Handler()
		if h.ServeHTTP(w, r); w.Code != 505 {
			t.Errorf("extended CONNECT: %d", w.Code)
		}
		l.Close()
		if status, _ := get("", ""); status != 503 {
			t.Errorf("after Close: %d", status)
		}
	}
}

// The server's time-outs end with the handshake; ours begin with it.
func TestHandler_Timeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, h, err := ListenConfig{OnConnection: echoing, HandshakeTimeout: -1}.Handler()
		if err != nil {
			t.Fatal(err)
		}
		slow, hs, err := ListenConfig{Authorize: func(*http.Request) error {
			time.Sleep(time.Hour)
			return nil
		}}.Handler()
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.Handle("/chat", h)
		mux.Handle("/slow", hs)
		ln := memnet.Listen(0)
		s := http.Server{Handler: mux, ReadTimeout: time.Second, WriteTimeout: time.Second}
		var wg sync.WaitGroup
		wg.Go(func() { s.Serve(ln) })
		dial := func(head string) *knocker {
			conn, err := ln.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return &knocker{t, conn, bufio.NewReader(conn)}
		}
		k := dial(upgrade)
		k.send(upgrade)
		k.wantOpen()
		time.Sleep(time.Hour)
		k.conn.Write([]byte("\x8a\x80\x00\x00\x00\x00"))
		k.conn.Close()

		k = dial(upgrade)
		k.send(swap(getLine, "GET /slow HTTP/1.1\r\n"))
		k.wantEnd(time.Now())
		k.conn.Close()
		time.Sleep(time.Hour)
		s.Close()
		wg.Wait()
		l.Close()
		slow.Close()
		for _, l := range []*WebSocketListener{l, slow} {
			if left := leftovers(l); left != "" {
				t.Error("the listener still holds " + left)
			}
		}
	})
}

// Close comes while handshakes are going on.
func TestHandler_CloseRaces(t *testing.T) {
	for range 20 {
		l, s := mount(t, ListenConfig{OnConnection: echoing}, nil)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				c, err := Dial(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http")+"/chat")
				if err != nil {
					return
				}
				c.SendText("x")
				c.Abort()
				waitDone(t, c)
			})
		}
		wg.Go(func() { l.Shutdown(t.Context()) })
		wg.Wait()
	}
}
