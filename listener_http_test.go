package peerws

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A page answers with what it was asked.
var page = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "%s %s %s %q", r.Method, r.Host, r.RequestURI, body)
})

func TestHTTP_Client(t *testing.T) {
	l := openPort(t, ListenConfig{HTTP: page})
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, Timeout: 10 * time.Second}
	base := "http://" + l.Addr().String()
	for i := range 20 {
		r, err := client.Get(fmt.Sprintf("%s/page?%d", base, i))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if want := fmt.Sprintf("GET %s /page?%d \"\"", l.Addr(), i); string(body) != want {
			t.Fatalf("%q, want %q", body, want)
		}
		text := strings.Repeat("x", 10_000*i) // larger than what is read with the head
		if r, err = client.Post(base+"/post", "text/plain", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
		if want := fmt.Sprintf("POST %s /post %q", l.Addr(), text); string(body) != want {
			t.Fatalf("%d bytes, want %d", len(body), len(want))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) > 0 || l.reserved != 1 { // the one connection, kept alive
		t.Errorf("%d pending, %d reserved", len(l.pending), l.reserved)
	}
}

const getPage = "GET /page HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n"

// wantPage reads the answer of page.
func (k *knocker) wantPage(body string) {
	k.t.Helper()
	if r, got := k.answer("GET"); r.StatusCode != 200 || got != body {
		k.t.Fatalf("%d %q, want %q", r.StatusCode, got, body)
	}
}

// An upgrade may be the second, or the hundredth, request of a connection, and
// frames may come with it.
func TestHTTP_UpgradeOnKeptAlive(t *testing.T) {
	sockets := make(chan *WebSocket, 1)
	l := openPort(t, ListenConfig{HTTP: page, OnConnection: func(c *WebSocket) { echoing(c); sockets <- c }, ResponseHeader: http.Header{"X-Peer": {"a"}}}, "chat")
	up := add("Sec-WebSocket-Protocol: other, chat\r\nCookie: a=b\r\nOrigin: http://127.0.0.1:9000\r\n")
	const got = `GET 127.0.0.1:9000 /page ""`
	check := func(k *knocker) {
		t.Helper()
		if r := k.wantOpen(); r.Header.Get("Sec-WebSocket-Protocol") != "chat" || r.Header.Get("X-Peer") != "a" {
			t.Errorf("%v", r.Header)
		}
		k.wantBytes("echo", hello)
		c := <-sockets
		if c.Protocol() != "chat" || c.URL() != "ws://127.0.0.1:9000/chat" || c.RemoteAddr().String() != k.conn.LocalAddr().String() {
			t.Errorf("%q %q %v", c.Protocol(), c.URL(), c.RemoteAddr())
		}
		if r := c.Request(); r.Method != "GET" || r.URL.Path != "/chat" || r.Context().Err() != nil {
			t.Errorf("%+v, %v", r, r.Context().Err())
		}
		k.send(maskedPing)
		k.wantBytes("pong", pong)
		k.conn.Close()
		waitDone(t, c)
	}
	t.Run("one after the other", func(t *testing.T) {
		k := knock(t, l)
		for range 100 {
			k.send(getPage)
			k.wantPage(got)
		}
		k.send(up)
		k.send(maskedHello)
		check(k)
	})
	t.Run("pipelined", func(t *testing.T) {
		k := knock(t, l, getPage, getPage, up, maskedHello)
		k.wantPage(got)
		k.wantPage(got)
		check(k)
	})
	t.Run("every split", func(t *testing.T) {
		stream := getPage + up + maskedHello
		for i := 1; i < len(stream); i += 5 {
			k := knock(t, l, stream[:i])
			time.Sleep(100 * time.Microsecond)
			k.send(stream[i:])
			k.wantPage(got)
			check(k)
		}
	})
	t.Run("more early frames than net/http buffers", func(t *testing.T) {
		k := knock(t, l, getPage, up, strings.Repeat(maskedHello, 5000))
		k.wantPage(got)
		k.wantOpen()
		k.wantBytes("echoes", strings.Repeat(hello, 5000))
		k.conn.Close()
		waitDone(t, <-sockets)
	})
	t.Run("after a POST", func(t *testing.T) {
		k := knock(t, l, "POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello", up, maskedHello)
		k.wantPage(`POST b /a "hello"`)
		check(k)
	})
}

// A refused upgrade on a kept-alive connection gets the answer it would have
// got as the first request.
func TestHTTP_RefusedOnKeptAlive(t *testing.T) {
	l := openPort(t, ListenConfig{HTTP: page}, "chat")
	tried := int64(0)
	for _, c := range badRequests {
		if c.want == errHost || strings.Contains(c.head, "/%") || strings.Contains(c.head, "%2 ") || strings.Contains(c.name, "0 twice") {
			continue // net/http refuses them by itself, or repairs them
		}
		k := knock(t, l, getPage)
		k.wantPage(`GET 127.0.0.1:9000 /page ""`)
		k.send(c.head)
		method, _, _ := strings.Cut(c.head, " ")
		r, body := k.answer(method)
		k.conn.Close()
		switch {
		case r.StatusCode == 400 && strings.HasPrefix(body, "400 Bad Request"), r.StatusCode >= 500: // by net/http
			if c.want.status >= 400 && c.want.status < 403 || r.StatusCode == 505 {
				continue
			}
		case r.StatusCode == c.want.status && r.Close && (likeText(body, c.want.text+"\n") || method == "HEAD"):
			tried++
			continue
		case c.want == errTarget && r.StatusCode == 200: // absolute: net/http has resolved it
		}
		t.Errorf("%s: %v close=%v %q, want %d", c.name, r.Status, r.Close, body, c.want.status)
	}
	if n := l.Stats().Refused; n != tried || n < 30 {
		t.Errorf("%d counted, %d refused", n, tried)
	}
}

func TestHTTP_AuthorizeOnKeptAlive(t *testing.T) {
	l := openPort(t, ListenConfig{HTTP: page, Authorize: func(r *http.Request) error {
		if r.Header.Get("Cookie") != "a=b" || r.RemoteAddr == "" {
			return &RejectError{Status: 401, Body: "Who are you?", Header: http.Header{"Www-Authenticate": {"Bearer"}}}
		}
		return nil
	}})
	k := knock(t, l, getPage, upgrade)
	k.wantPage(`GET 127.0.0.1:9000 /page ""`)
	if r, body := k.answer("GET"); r.StatusCode != 401 || body != "Who are you?\n" || r.Header.Get("Www-Authenticate") != "Bearer" || !r.Close {
		t.Errorf("%v %q %v", r.Status, body, r.Header)
	}
	if rest, err := io.ReadAll(k.br); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	k = knock(t, l, getPage, add("Cookie: a=b\r\n"))
	k.wantPage(`GET 127.0.0.1:9000 /page ""`)
	k.wantOpen()
}

func TestHTTP_HandlerPanics(t *testing.T) {
	var logged bytes.Buffer
	var mu sync.Mutex
	logger := slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, nil))
	l := openPort(t, ListenConfig{Logger: logger, HTTP: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("in the handler") })})
	k := knock(t, l, getPage)
	if b, err := io.ReadAll(k.br); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	mu.Lock()
	if !strings.Contains(logged.String(), "in the handler") {
		t.Errorf("logged: %q", logged.String())
	}
	mu.Unlock()
	knock(t, l, upgrade).wantOpen()
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// OnConnection and Authorize run on goroutines of ours also when net/http has
// read the request: it would recover their panics, and nobody would hear of
// them.
func TestHTTP_CallbacksOnOurGoroutines(t *testing.T) {
	stacks := make(chan string, 2)
	note := func() {
		b := make([]byte, 1<<16)
		stacks <- string(b[:runtime.Stack(b, false)])
	}
	l := openPort(t, ListenConfig{
		HTTP:         page,
		Authorize:    func(*http.Request) error { note(); return nil },
		OnConnection: func(*WebSocket) { note() },
	})
	k := knock(t, l, getPage, upgrade)
	k.wantPage(`GET 127.0.0.1:9000 /page ""`)
	k.wantOpen()
	for range 2 {
		if s := <-stacks; strings.Contains(s, "net/http.(*conn).serve(") {
			t.Errorf("on net/http's goroutine:\n%s", s)
		}
	}
}

// Close lets a request that is being answered finish, for 2 s.
func TestHTTP_Close(t *testing.T) {
	for name, c := range map[string]struct{ takes, want time.Duration }{
		"finishes":    {1500 * time.Millisecond, 1500 * time.Millisecond},
		"is cut off":  {time.Minute, 2 * time.Second},
		"nothing yet": {-1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{})
			cfg := ListenConfig{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(started)
				select {
				case <-time.After(c.takes):
					io.WriteString(w, "done")
				case <-r.Context().Done():
				}
			})}
			inBubble(t, cfg, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
				k := dial()
				if c.takes > 0 {
					k.send(getPage)
					<-started
				}
				start := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() {
					b, err := io.ReadAll(k.br)
					if done := bytes.HasSuffix(b, []byte("done")); done != (c.takes == c.want && err == nil) {
						t.Errorf("%q, %v", b, err)
					}
				})
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				// http.Server.Shutdown looks every half second at most.
				if d := time.Since(start); d < c.want || d > c.want+510*time.Millisecond {
					t.Errorf("Close took %v", d)
				}
				wg.Wait()
			})
		})
	}
}

func TestHTTP_CloseIdle(t *testing.T) {
	inBubble(t, ListenConfig{HTTP: page}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		k := dial(getPage)
		k.wantPage(`GET 127.0.0.1:9000 /page ""`)
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > 510*time.Millisecond {
			t.Errorf("Close took %v", d)
		}
		k.wantEnd(start)
	})
}

// A kept-alive connection may be silent for a while, not for ever, and a second
// head has HandshakeTimeout.
func TestHTTP_Timeouts(t *testing.T) {
	inBubble(t, ListenConfig{HTTP: page}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		k := dial(getPage)
		k.wantPage(`GET 127.0.0.1:9000 /page ""`)
		if d := k.wantEnd(time.Now()); d != httpIdle {
			t.Errorf("idle for %v", d)
		}
		k = dial(getPage)
		k.wantPage(`GET 127.0.0.1:9000 /page ""`)
		k.send("GET / HTTP/1.1\r\nHo")
		start := time.Now()
		b, _ := io.ReadAll(k.br)
		if d := time.Since(start); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("half a head for %v, then %q", d, b)
		}
	})
}

// The places of HTTP connections are given back however they end.
func TestHTTP_PerIP(t *testing.T) {
	l := openPort(t, ListenConfig{HTTP: page, MaxConnectionsPerIP: 2, OnConnection: echoing})
	const got = `GET 127.0.0.1:9000 /page ""`
	a := knock(t, l, getPage)
	a.wantPage(got)
	b := knock(t, l, getPage, upgrade)
	b.wantPage(got)
	b.wantOpen()
	knock(t, l, getPage).wantRefusal(503)
	a.conn.Close()
	waitPlaces(t, l, 1)
	c := knock(t, l, getPage, swap(keyLine, ""))
	c.wantPage(got)
	c.wantRefusal(400)
	waitPlaces(t, l, 1)
	b.conn.Close()
	waitPlaces(t, l, 0)
	d := knock(t, l, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	d.wantPage(`GET a / ""`)
	waitPlaces(t, l, 0)
}

// waitPlaces waits until n transports are counted for loopback.
func waitPlaces(t *testing.T, l *WebSocketListener, n int) {
	t.Helper()
	key := l.countedKey(keyOf(netip.AddrFrom4([4]byte{127, 0, 0, 1})))
	var have int
	for range 500 {
		l.mu.Lock()
		have = l.perIP[key]
		l.mu.Unlock()
		if have == n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d places taken, want %d", have, n)
}

// Listeners that close while requests of all kinds come in leave nothing.
func TestHTTP_CloseRaces(t *testing.T) {
	for range 20 {
		var opened atomic.Int64
		l := openPort(t, ListenConfig{HTTP: page, OnConnection: func(*WebSocket) { opened.Add(1) }, MaxConnectionsPerIP: 100})
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(5 * time.Second))
				io.WriteString(conn, []string{getPage + upgrade, upgrade, getPage, upgradeHead}[i%4])
				n, err := io.Copy(io.Discard, conn)
				if errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("still open after %d bytes", n)
				}
			})
		}
		for opened.Load() == 0 {
			time.Sleep(10 * time.Microsecond)
		}
		closePort(t, l)
		wg.Wait()
	}
}

// Without a handler there is no web server.
func TestHTTP_None(t *testing.T) {
	l := openPort(t, ListenConfig{})
	if l.web != nil {
		t.Error("a web server without a handler")
	}
	k := knock(t, l, getPage)
	if _, body := k.wantRefusal(426); !strings.Contains(body, "ws://") {
		t.Errorf("%q", body)
	}
}

// Connections of ordinary HTTP have their share of MaxConnections, and an upgrade
// on one passes its place on.
func TestHTTP_MaxConnections(t *testing.T) {
	l := listen(t, ListenConfig{
		MaxConnections: 2,
		OnConnection:   echoing,
		HTTP:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page") }),
	})
	get := func() (net.Conn, int) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return conn, r.StatusCode
	}
	a, status := get()
	if status != 200 {
		t.Fatalf("first: %d", status)
	}
	io.WriteString(a, upgrade) // takes a second place for a moment, and gives the first back
	r, err := http.ReadResponse(bufio.NewReader(a), nil)
	if err != nil || r.StatusCode != 101 {
		t.Fatalf("upgrade: %v, %v", r, err)
	}
	b, status := get()
	if status != 200 {
		t.Fatalf("second: %d", status)
	}
	c, status := get()
	if status != 503 {
		t.Errorf("third: %d", status)
	}
	for _, conn := range []net.Conn{a, b, c} {
		conn.Close()
	}
	for range 1000 { // all places come back
		l.mu.Lock()
		n := l.reserved
		l.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("places were not given back")
}

// likeText reports whether s is what a refusal's text becomes.
func likeText(s, text string) bool {
	for part := range strings.SplitSeq(text, "%s") {
		_, rest, ok := strings.Cut(s, part)
		if !ok {
			return false
		}
		s = rest
	}
	return s == ""
}

// Refusals are told at Info, with what Authorize said, and no stranger can flood
// the log with them.
func TestLogger_Refusals(t *testing.T) {
	var mu sync.Mutex
	var logged bytes.Buffer
	refusing := errors.New("ann is not on the list")
	l := listen(t, ListenConfig{
		OnConnection: echoing,
		Logger:       slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, nil)),
		Authorize:    func(*http.Request) error { return refusing },
	})
	const tries = 20
	start := time.Now()
	for range tries {
		_, err := Dial(t.Context(), l.URL())
		if h, ok := errors.AsType[*HandshakeError](err); !ok || h.Status != 403 || strings.Contains(string(h.Body), "ann") {
			t.Fatalf("%v", err)
		}
	}
	records := 1 + int(time.Since(start)/refusalPause)
	l.Close()
	mu.Lock()
	defer mu.Unlock()
	n := strings.Count(logged.String(), "level=INFO msg=\"request refused\" remote=127.0.0.1:")
	if n < 1 || n > records || !strings.Contains(logged.String(), `status=403 why="ann is not on the list" others=0`) {
		t.Errorf("%d records:\n%s", n, logged.String())
	}
}

// At Debug every connection's opening and end are told, with the cause, and
// whoever was turned away without a word read is told like a refused request.
func TestLogger_Connections(t *testing.T) {
	var mu sync.Mutex
	var logged bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l := listen(t, ListenConfig{OnConnection: echoing, Logger: logger, MaxConnections: 2}, "chat")
	a, err := Dial(t.Context(), l.URL()+"room", "chat")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), l.URL()); err == nil {
		t.Error("a third was let in")
	}
	a.CloseWith(4001, "bye")
	waitDone(t, a)
	b.Abort()
	waitDone(t, b)
	for l.Stats().Open > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := l.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{
		`level=DEBUG msg="connection opened" remote=` + a.LocalAddr().String() + ` url=` + l.URL() + `room protocol=chat`,
		`level=DEBUG msg="connection opened" remote=` + b.LocalAddr().String() + ` url=` + l.URL() + ` protocol=""`,
		`level=INFO msg="request refused" remote=127.0.0.1:`,
		`status=503 why="This peer has no room for another connection (MaxConnections)." others=0`,
		`level=DEBUG msg="connection closed" remote=` + a.LocalAddr().String() + ` by=peer code=4001 reason=bye clean=true err=<nil>`,
		`level=DEBUG msg="connection closed" remote=` + b.LocalAddr().String() + ` by=network code=1006 reason="" clean=false err=`,
	} {
		if strings.Count(logged.String(), want) != 1 {
			t.Errorf("no single %s in\n%s", want, logged.String())
		}
	}
}

// What a Handler refuses is told too.
func TestLogger_Handler(t *testing.T) {
	var mu sync.Mutex
	var logged bytes.Buffer
	l, h, err := ListenConfig{OnConnection: echoing, Logger: slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, nil))}.Handler()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*http.Request)
		status string
	}{
		{"no upgrade", func(*http.Request) {}, "status=426"},
		{"POST", func(r *http.Request) { r.Method = "POST" }, "status=405"},
		{"HTTP/2", func(r *http.Request) { r.Method, r.ProtoMajor = "CONNECT", 2 }, "status=505"},
		{"closed", func(*http.Request) { l.Close() }, "status=503"},
	} {
		logged.Reset()
		l.mu.Lock()
		l.refusals.last = time.Time{}
		l.mu.Unlock()
		r := httptest.NewRequest("GET", "/", nil)
		c.change(r)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if n := strings.Count(logged.String(), c.status); n != 1 {
			t.Errorf("%s: %q", c.name, logged.String())
		}
	}
}
