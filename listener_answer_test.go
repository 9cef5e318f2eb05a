package peerws

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// everyDoor runs f with a listener that has a port of its own, with an upgrade that
// comes on a kept-alive connection of it, and with a mounted one.
func everyDoor(t *testing.T, c ListenConfig, f func(t *testing.T, knock func(parts ...string) *knocker), protocols ...string) {
	t.Helper()
	t.Run("Listen", func(t *testing.T) {
		l := openPort(t, c, protocols...)
		f(t, func(parts ...string) *knocker { return knock(t, l, parts...) })
	})
	t.Run("HTTP", func(t *testing.T) {
		c := c
		c.HTTP = page
		l := openPort(t, c, protocols...)
		f(t, func(parts ...string) *knocker {
			k := knock(t, l, getPage)
			k.answer("GET")
			k.send(parts...)
			return k
		})
	})
	t.Run("Handler", func(t *testing.T) {
		l, h, err := c.Handler(protocols...)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(h)
		t.Cleanup(func() {
			closePort(t, l)
			s.Close()
		})
		f(t, func(parts ...string) *knocker { return knockAt(t, s, parts...) })
	})
}

// What Authorize puts into the request's context stays with the socket, also
// when the headers have gone.
func TestAuthorize_Context(t *testing.T) {
	type user struct{}
	type seen struct {
		when string
		user any
	}
	got := make(chan seen, 2)
	everyDoor(t, ListenConfig{
		Authorize: func(r *http.Request) error {
			*r = *r.WithContext(context.WithValue(r.Context(), user{}, r.Header.Get("X-Who")))
			return nil
		},
		OnConnection: func(c *WebSocket) {
			if !strings.HasSuffix(c.URL(), "later") {
				got <- seen{"OnConnection", c.Request().Context().Value(user{})}
			}
			c.OnMessage(func(c *WebSocket, m Message) { got <- seen{"OnMessage", c.Request().Context().Value(user{})} })
		},
	}, func(t *testing.T, knock func(parts ...string) *knocker) {
		k := knock(add("X-Who: ann\r\n"), maskedHello)
		k.wantOpen()
		if x := <-got; x != (seen{"OnConnection", "ann"}) {
			t.Error(x)
		}
		if x := <-got; x != (seen{"OnMessage", "ann"}) {
			t.Error(x)
		}
		k = knock(strings.Replace(add("X-Who: bob\r\n"), "/chat", "/later", 1), maskedHello, maskedHello)
		k.wantOpen()
		for range 2 {
			if x := <-got; x != (seen{"OnMessage", "bob"}) {
				t.Error(x)
			}
		}
	})
}

// Those who wait for Accept, and those whose opening handshake ends just then, are
// told what ShutdownWith was given.
func TestShutdownWith_NotHandedOver(t *testing.T) {
	const restart = "\x88\x06\x03\xf4soon"
	for range 20 { // it was a race
		inBubble(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			k := dial(upgrade)
			k.wantOpen()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			go l.ShutdownWith(ctx, StatusServiceRestart, "soon")
			k.wantBytes("Close", restart)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l, err := ListenConfig{}.Serve(memnet.Listen(0))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.ShutdownWith(t.Context(), StatusServiceRestart, "soon"); err != nil {
			t.Error(err)
		}
		ours, theirs := memnet.Pipe(0)
		c := newOpenWebSocket(l.set, ours, false, nil)
		l.handOver(c)
		knockOn(t, theirs).wantBytes("Close", restart)
		theirs.Close()
		<-c.Done()
	})
}

func TestRespond(t *testing.T) {
	type seen struct{ protocol, path string }
	got := make(chan seen, 1)
	everyDoor(t, ListenConfig{
		ResponseHeader: http.Header{"X-Static": {"1"}, "X-Other": {"2"}, "Set-Cookie": {"s=0"}},
		Authorize:      func(r *http.Request) error { r.Header.Set("X-User", "ann"); return nil },
		Respond: func(r *http.Request, a *Answer) {
			switch r.URL.Query().Get("do") {
			case "cookies":
				a.Header.Add("Set-Cookie", (&http.Cookie{Name: "user", Value: r.Header.Get("X-User"), HttpOnly: true}).String())
				a.Header.Add("Set-Cookie", "b=2")
				a.Header["x-static"] = []string{"one of its own"}
			case "last":
				offers := strings.Split(r.Header.Get("Sec-WebSocket-Protocol"), ", ")
				a.Protocol = offers[len(offers)-1]
			case "none":
				a.Protocol = ""
			case "nil":
				a.Header = nil
			case "wrong":
				a.Protocol = "never-offered"
			case "case":
				a.Protocol = strings.ToUpper(a.Protocol)
			case "line":
				a.Header.Set("X-User", "ann\r\nX-Evil: 1")
			case "handshake":
				a.Header.Set("Sec-WebSocket-Something", "1")
			case "length":
				a.Header.Set("Content-Length", "1")
			}
		},
		OnConnection: func(c *WebSocket) { got <- seen{c.Protocol(), c.Request().URL.Path} },
	}, func(t *testing.T, knock func(parts ...string) *knocker) {
		for _, c := range []struct{ name, do, offered, want string }{
			{"nothing changed", "", "other, chat", "chat"},
			{"no offer", "", "", ""},
			{"cookies", "cookies", "chat", "chat"},
			{"another of the listener's", "last", "chat, talk", "talk"},
			{"one that is not the listener's", "last", "chat, other", "other"},
			{"only others", "last", "a, other", "other"},
			{"in several lines", "last", "a\r\nSec-WebSocket-Protocol: other", "a"},
			{"none although offered", "none", "chat", ""},
			{"no header", "nil", "chat", "chat"},
		} {
			t.Run(c.name, func(t *testing.T) {
				line := ""
				if c.offered != "" {
					line = "Sec-WebSocket-Protocol: " + c.offered + "\r\n"
				}
				k := knock(strings.Replace(add(line), "/chat ", "/chat?do="+c.do+" ", 1))
				r := k.wantOpen()
				if p := r.Header.Values("Sec-WebSocket-Protocol"); strings.Join(p, "+") != c.want || len(p) > 1 {
					t.Errorf("the answer has %q", p)
				}
				if x := <-got; x != (seen{c.want, "/chat"}) {
					t.Errorf("the socket has %q", x)
				}
				cookies, static := []string{"s=0"}, "1"
				if c.do == "cookies" {
					cookies, static = []string{"s=0", "user=ann; HttpOnly", "b=2"}, "one of its own"
				}
				if x := r.Header["Set-Cookie"]; !slices.Equal(x, cookies) {
					t.Errorf("cookies %q", x)
				}
				if x := r.Header["X-Static"]; len(x) != 1 || x[0] != static || r.Header.Get("X-Other") != "2" {
					t.Errorf("%v", r.Header)
				}
			})
		}
		for _, c := range []struct {
			do, offered string
			status      int
		}{
			{"", "other", 400},
			{"none", "other", 400},
			{"", ", ,", 400},
			{"wrong", "chat", 500},
			{"wrong", "other", 500},
			{"case", "chat", 500},
			{"line", "chat", 500},
			{"handshake", "chat", 500},
			{"length", "chat", 500},
		} {
			k := knock(strings.Replace(add("Sec-WebSocket-Protocol: "+c.offered+"\r\n"), "/chat ", "/chat?do="+c.do+" ", 1))
			if r, _ := k.wantRefusal(c.status); len(r.Header["X-Evil"]) > 0 {
				t.Errorf("a header broke out of its line: %v", r.Header)
			}
		}
	}, "chat", "talk")
}

// A program's mistake in Respond is a record that says what is wrong.
func TestRespond_Logged(t *testing.T) {
	var mu sync.Mutex
	var logged bytes.Buffer
	l := openPort(t, ListenConfig{
		Logger:  slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, nil)),
		Respond: func(_ *http.Request, a *Answer) { a.Protocol = "chat" },
	})
	knock(t, l, upgrade).wantRefusal(500)
	l.Close()
	mu.Lock()
	defer mu.Unlock()
	if s := logged.String(); !strings.Contains(s, `level=WARN msg="Respond's answer not sent" err="peerws: answer's protocol \"chat\": is not one of those that the peer offers"`) {
		t.Error(s)
	}
}

// Connections that Accept gets have what Respond has chosen; our dialler sees it.
func TestRespond_Accept(t *testing.T) {
	l := listen(t, ListenConfig{Respond: func(r *http.Request, a *Answer) {
		a.Protocol = "v2." + strings.TrimPrefix(r.URL.Path, "/")
		a.Header.Set("X-Room", r.URL.Path)
	}})
	c, err := Dial(t.Context(), l.URL()+"ann", "v1.ann", "v2.ann")
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Protocol() != "v2.ann" || a.Protocol() != "v2.ann" || c.Request().Response.Header.Get("X-Room") != "/ann" {
		t.Errorf("%q, %q, %v", c.Protocol(), a.Protocol(), c.Request().Response.Header)
	}
	c.SendText("hey")
	if _, err := a.Read(t.Context()); err != nil || a.Protocol() != "v2.ann" {
		t.Errorf("%v, %q", err, a.Protocol())
	}
	c.Abort()
}

// Respond looks at the headers; they are not kept for it. It is not asked about
// requests that are refused, nor over HTTP/2.
func TestRespond_OnlyAccepted(t *testing.T) {
	asked := make(chan string, 10)
	sockets := make(chan *WebSocket, 1)
	c := ListenConfig{
		Authorize: func(r *http.Request) error {
			if r.URL.Path == "/no" {
				return errors.New("no")
			}
			return nil
		},
		Respond:      func(r *http.Request, a *Answer) { asked <- r.URL.Path },
		OnConnection: func(c *WebSocket) { echoing(c); sockets <- c },
	}
	l := openPort(t, c)
	knock(t, l, strings.Replace(upgrade, "/chat", "/no", 1)).wantRefusal(403)
	knock(t, l, swap(keyLine, "")).wantRefusal(400)
	knock(t, l, add("Origin: http://evil.example\r\n")).wantRefusal(403)
	k := knock(t, l, add("Cookie: a=b\r\n"), maskedHello)
	k.wantOpen()
	s := <-sockets
	k.wantBytes("echo", hello)
	if r := s.Request(); len(r.Header) != 0 {
		t.Errorf("headers are kept: %v", r.Header)
	}
	_, h, err := c.Handler()
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/chat", nil)
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	r.Header.Set("Sec-WebSocket-Version", "13")
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 505 {
		t.Errorf("status %d", w.Code)
	}
	if n := len(asked); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// Authorize's redirects arrive.
func TestAuthorize_Redirect(t *testing.T) {
	everyDoor(t, ListenConfig{Authorize: func(r *http.Request) error {
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		return &RejectError{Status: status, Header: http.Header{"Location": {"/elsewhere"}, "Set-Cookie": {"a=1", "b=2"}}}
	}}, func(t *testing.T, knock func(parts ...string) *knocker) {
		for status, want := range map[string]int{"307": 307, "300": 300, "301": 301, "399": 399, "599": 599, "299": 403, "101": 403, "600": 403, "": 403, "-1": 403} {
			r, _ := knock(strings.Replace(upgrade, "/chat", "/?status="+status, 1)).wantRefusal(want)
			if r.Header.Get("Location") != "/elsewhere" || len(r.Cookies()) != 2 {
				t.Errorf("%s: %v", status, r.Header)
			}
		}
		k := knock(strings.Replace(upgrade, "/chat", "/?status=304", 1)) // has no body
		if r, _ := k.answer("GET"); r.StatusCode != 304 || !r.Close || r.ContentLength > 0 {
			t.Errorf("%d, %d bytes", r.StatusCode, r.ContentLength)
		}
		if rest, err := io.ReadAll(k.br); err != nil || len(rest) > 0 {
			t.Errorf("behind the answer: %q, %v", rest, err)
		}
	})
}

// A panic of Respond's is not recovered, no more than one of Authorize's: both run
// where net/http would not do it.
func TestRespond_OnOurGoroutine(t *testing.T) {
	stacks := make(chan string, 2)
	note := func() { stacks <- string(debug.Stack()) }
	everyDoor(t, ListenConfig{
		OnConnection: echoing,
		Authorize:    func(*http.Request) error { note(); return nil },
		Respond:      func(*http.Request, *Answer) { note() },
	}, func(t *testing.T, knock func(parts ...string) *knocker) {
		knock(upgrade).wantOpen()
		for range 2 {
			if s := <-stacks; strings.Contains(s, "net/http.(*conn)") {
				t.Error(s)
			}
		}
	})
}

// What handlers around a mounted listener have set is in every answer, once.
func TestHandler_OuterHeaderRefused(t *testing.T) {
	l, h, err := ListenConfig{
		ResponseHeader: http.Header{"X-Ours": {"1"}},
		Authorize: func(r *http.Request) error {
			if r.URL.Path == "/no" {
				return &RejectError{Status: 401, Header: http.Header{"Set-Cookie": {"c=3"}, "X-Both": {"inner"}}}
			}
			return nil
		},
		Respond: func(r *http.Request, a *Answer) {
			switch r.URL.Path {
			case "/wrong":
				a.Protocol = "x"
			case "/yes":
				a.Header.Set("X-Both", "inner")
				a.Header.Set("Set-Cookie", "c=3")
			}
		},
	}.Handler("chat")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "1"})
		http.SetCookie(w, &http.Cookie{Name: "b", Value: "2"})
		for name, value := range map[string]string{
			"Access-Control-Allow-Origin": "https://a.example", "Vary": "Origin", "X-Content-Type-Options": "nosniff", "X-Both": "outer",
			"Content-Type": "text/html", "Content-Length": "5", "Content-Encoding": "gzip", "Connection": "keep-alive", "Trailer": "X", "Sec-WebSocket-Version": "8",
		} {
			w.Header().Set(name, value)
		}
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	defer closePort(t, l)
	for _, c := range []struct {
		path, offered, both, cookies string
		status                       int
	}{
		{"/no", "chat", "inner", "a=1 b=2 c=3", 401},
		{"/wrong", "chat", "outer", "a=1 b=2", 500},
		{"/", "other", "outer", "a=1 b=2", 400},
		{"/yes", "chat", "inner", "a=1 b=2 c=3", 101},
	} {
		k := knockAt(t, s, strings.Replace(add("Sec-WebSocket-Protocol: "+c.offered+"\r\n"), "/chat", c.path, 1))
		var r *http.Response
		if c.status == 101 {
			r = k.wantOpen()
		} else {
			r, _ = k.wantRefusal(c.status)
			if x := r.Header["Content-Type"]; len(x) != 1 || x[0] != "text/plain; charset=utf-8" {
				t.Errorf("%s: %q", c.path, x)
			}
		}
		if x := strings.Join(r.Header["Set-Cookie"], " "); x != c.cookies {
			t.Errorf("%s: cookies %q", c.path, x)
		}
		for name, want := range map[string]string{
			"Access-Control-Allow-Origin": "https://a.example", "Vary": "Origin", "X-Content-Type-Options": "nosniff", "X-Both": c.both,
			"Content-Encoding": "", "Trailer": "", "Sec-Websocket-Version": "",
		} {
			if x := strings.Join(r.Header[name], "+"); x != want {
				t.Errorf("%s: %s is %q", c.path, name, x)
			}
		}
	}
}

// A slowAnswer is a transport that takes its time with the first Write, after the
// bytes have left.
type slowAnswer struct {
	net.Conn
	once  sync.Once
	write func()
}

func (c *slowAnswer) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.once.Do(c.write)
	return n, err
}

type slowAnswers struct {
	net.Listener
	write func()
}

func (l *slowAnswers) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowAnswer{Conn: conn, write: l.write}, nil
}

// Whoever has got the 101 when the listener ends gets a Close frame too, whatever
// the transport is.
func TestShutdownWith_Answered(t *testing.T) {
	for _, onConnection := range []func(*WebSocket){nil, echoing} {
		synctest.Test(t, func(t *testing.T) {
			var l *WebSocketListener
			ln := memnet.Listen(0)
			over := make(chan error, 1)
			l, err := ListenConfig{OnConnection: onConnection}.Serve(&slowAnswers{ln, func() {
				go func() { over <- l.ShutdownWith(context.Background(), StatusServiceRestart, "soon") }()
				time.Sleep(time.Second)
			}})
			if err != nil {
				t.Fatal(err)
			}
			conn, err := ln.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			k := knockOn(t, conn, upgrade)
			k.wantOpen()
			k.wantBytes("Close", "\x88\x06\x03\xf4soon")
			conn.Close()
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
}

// A peer that does not take its 101 holds Close up for its 2 s, and is gone then.
func TestClose_AnswerNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := memnet.Listen(16) // less than an answer
		l, err := ListenConfig{HandshakeTimeout: -1}.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := ln.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		knockOn(t, conn, upgrade)
		synctest.Wait()
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != closeGrace {
			t.Errorf("Close took %v", d)
		}
		synctest.Wait()
		if left := leftovers(l); left != "" {
			t.Error("the listener still holds " + left)
		}
		conn.Close()
	})
}
