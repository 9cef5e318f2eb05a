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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// openPort starts a listener on loopback. When the test ends it is shut down,
// and must have forgotten everybody.
func openPort(t *testing.T, c ListenConfig, protocols ...string) *WebSocketListener {
	t.Helper()
	c.Address = "127.0.0.1"
	l, err := c.Listen(context.Background(), 0, protocols...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePort(t, l) })
	return l
}

// closePort ends a listener and its sockets and looks for what is left.
func closePort(t *testing.T, l *WebSocketListener) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.Shutdown(ctx)
	var left string
	for range 500 {
		if left = leftovers(l); left == "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the listener still holds " + left)
}

// leftovers says what a listener that should be idle holds.
func leftovers(l *WebSocketListener) string {
	if !l.lingers.TryAcquire(16) {
		return "a lingering transport"
	}
	l.lingers.Release(16)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) > 0 || l.reserved != 0 || len(l.perIP) > 0 || len(l.sockets) > 0 || len(l.waiting) > 0 {
		return fmt.Sprintf("%d handshakes, %d places, addresses %v, %d sockets, %d waiting", len(l.pending), l.reserved, l.perIP, len(l.sockets), len(l.waiting))
	}
	return ""
}

// A knocker is a peer that writes its request by hand.
type knocker struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

// knock connects to l and sends bytes.
func knock(t testing.TB, l *WebSocketListener, parts ...string) *knocker {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return knockOn(t, conn, parts...)
}

func knockOn(t testing.TB, conn net.Conn, parts ...string) *knocker {
	t.Helper()
	k := &knocker{t, conn, bufio.NewReader(conn)}
	if len(parts) > 0 {
		k.send(parts...)
	}
	return k
}

func (k *knocker) send(parts ...string) {
	k.t.Helper()
	if _, err := k.conn.Write([]byte(strings.Join(parts, ""))); err != nil {
		k.t.Fatalf("send: %v", err)
	}
}

// answer reads a response and its body.
func (k *knocker) answer(method string) (*http.Response, string) {
	k.t.Helper()
	r, err := http.ReadResponse(k.br, &http.Request{Method: method})
	if err != nil {
		k.t.Fatalf("answer: %v", err)
	}
	if r.StatusCode == http.StatusSwitchingProtocols {
		return r, ""
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		k.t.Fatalf("answer's body: %v", err)
	}
	return r, string(body)
}

// wantRefusal reads an answer that refuses, to its very end.
func (k *knocker) wantRefusal(status int) (*http.Response, string) {
	k.t.Helper()
	r, body := k.answer("GET")
	if r.StatusCode != status {
		k.t.Fatalf("status %d %q, want %d", r.StatusCode, body, status)
	}
	if !r.Close {
		k.t.Error("the answer does not say that the connection ends")
	}
	if n := int64(len(body)); r.ContentLength != n {
		k.t.Errorf("Content-Length %d, body of %d", r.ContentLength, n)
	}
	wantSentence(k.t, body)
	if rest, err := io.ReadAll(k.br); err != nil || len(rest) > 0 {
		k.t.Errorf("behind the answer: %q, %v", rest, err)
	}
	return r, body
}

// wantOpen reads the answer that accepts.
func (k *knocker) wantOpen() *http.Response {
	k.t.Helper()
	r, body := k.answer("GET")
	if r.StatusCode != http.StatusSwitchingProtocols {
		k.t.Fatalf("status %d: %s", r.StatusCode, body)
	}
	if got := r.Header.Get("Sec-WebSocket-Accept"); got != sampleAccept {
		k.t.Errorf("Sec-WebSocket-Accept is %q", got)
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		k.t.Errorf("%v", r.Header)
	}
	return r
}

// wantBytes reads what a socket sends.
func (k *knocker) wantBytes(what, want string) {
	k.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(k.br, got); err != nil || string(got) != want {
		k.t.Fatalf("%s: % x, %v", what, got[:n], err)
	}
}

// Every refusal over a real connection: one sentence, well-formed, and readable
// by a peer that has sent more than was read.
func TestRefusals_OverTCP(t *testing.T) {
	l := openPort(t, ListenConfig{}, "chat")
	type knock1 struct {
		name, bytes string
		status      int
	}
	list := []knock1{
		{"plain GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426},
		{"plain GET of HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 426},
		{"plain GET, not even a Host", "GET / HTTP/1.1\r\n\r\n", 426},
		{"plain POST", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 405},
		{"upgrade to something else", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 426},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04", 405},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400},
		{"SSH", "SSH-2.0-OpenSSH_9.7\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400},
		{"bare line feed", "GET / HTTP/1.1\nHost: a\n\n", 400},
		{"Name :", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
		{"65 fields", "GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 65) + "\r\n", 431},
		{"2,000 fields", "GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 2000) + "\r\n", 431},
		{"1 MB field", "GET / HTTP/1.1\r\nA: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		{"1 MB target", "GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\n\r\n", 414},
	}
	for _, c := range badRequests {
		list = append(list, knock1{c.name, c.head, c.want.status})
	}
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			more := ""
			if i%2 == 0 {
				more = strings.Repeat(maskedHello, 20_000)
			}
			wrote := make(chan struct{})
			go func() {
				defer close(wrote)
				conn.Write([]byte(c.bytes + more))
			}()
			head := strings.HasPrefix(c.bytes, "HEAD ")
			q := &http.Request{Method: http.MethodGet}
			if head {
				q.Method = http.MethodHead
			}
			r, err := http.ReadResponse(bufio.NewReader(conn), q)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				return
			}
			body, err := io.ReadAll(r.Body)
			if head {
				if len(body) > 0 || r.ContentLength <= 0 {
					t.Errorf("%s: %d bytes %q", c.name, r.ContentLength, body)
				}
				body = []byte(errMethod.text + "\n")
			}
			if err != nil || r.StatusCode != c.status || !r.Close || r.ContentLength != int64(len(body)) {
				t.Errorf("%s: %v, %v, close %v, %d bytes %q; want %d", c.name, err, r.Status, r.Close, r.ContentLength, body, c.status)
			}
			wantSentence(t, string(body))
			if got := r.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
				t.Errorf("%s: Content-Type %q", c.name, got)
			}
			if version, up := r.Header.Get("Sec-WebSocket-Version"), r.Header.Get("Upgrade"); c.status == 426 && (version != "13" || up != "websocket") {
				t.Errorf("%s: 426 with %v", c.name, r.Header)
			}
			if got := r.Header.Get("Allow"); c.status == 405 && got != "GET" {
				t.Errorf("%s: Allow %q", c.name, got)
			}
			conn.Close()
			<-wrote
		})
		if i%8 == 7 {
			wg.Wait()
		}
	}
	wg.Wait()
	if s := l.Stats(); s.Refused != int64(len(list)) || s.Accepted != 0 || s.Open != 0 {
		t.Errorf("%+v of %d", s, len(list))
	}
}

// A peer that sends its request and closes its side is answered all the same,
// and sees a clean end.
func TestRefusal_HalfClosed(t *testing.T) {
	l := openPort(t, ListenConfig{})
	k := knock(t, l, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	k.conn.(*net.TCPConn).CloseWrite()
	k.wantRefusal(426)
}

func TestGoodRequests_OverTCP(t *testing.T) {
	var got atomic.Pointer[WebSocket]
	l := openPort(t, ListenConfig{OnConnection: func(c *WebSocket) { got.Store(c); echoing(c) }}, "chat", "superchat")
	for _, c := range goodRequests {
		k := knock(t, l, c.head, maskedHello) // the frame comes before the answer
		r := k.wantOpen()
		if p := r.Header.Get("Sec-WebSocket-Protocol"); p != c.protocol {
			t.Errorf("%s: protocol %q", c.name, p)
		}
		if e := r.Header.Values("Sec-WebSocket-Extensions"); e != nil {
			t.Errorf("%s: extensions %q", c.name, e)
		}
		k.wantBytes(c.name+": echo", hello)
		ws := got.Load()
		if ws.Protocol() != c.protocol || ws.Extensions() != "" || ws.ReadyState() != Open {
			t.Errorf("%s: %q, %q, %v", c.name, ws.Protocol(), ws.Extensions(), ws.ReadyState())
		}
		target := strings.Split(c.head, " ")[1]
		if u := ws.URL(); !strings.HasPrefix(u, "ws://") || !strings.HasSuffix(u, target) {
			t.Errorf("%s: URL %q", c.name, u)
		}
		k.conn.Close()
	}
	if s := l.Stats(); s.Accepted != int64(len(goodRequests)) || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// Frames that come with the request, cut anywhere, are not lost.
func TestEarlyFrames_EverySplit(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing})
	stream := upgrade + maskedHello + maskedHello
	for i := 1; i < len(stream); i += 7 {
		k := knock(t, l, stream[:i])
		time.Sleep(100 * time.Microsecond) // mostly enough to be two segments
		k.send(stream[i:])
		k.wantOpen()
		k.wantBytes("echo", hello+hello)
		k.conn.Close()
	}
	// Many of them, more than the head's buffer takes.
	k := knock(t, l, upgrade, strings.Repeat(maskedHello, 5000))
	k.wantOpen()
	k.wantBytes("echoes", strings.Repeat(hello, 5000))
}

// What a request target means, and what the program sees of it: path and
// authority (RFC 9112 §3.2), by each way in.
func TestRequest_Targets(t *testing.T) {
	seen := make(chan *http.Request, 1)
	config := ListenConfig{HTTP: page, OnConnection: func(c *WebSocket) { seen <- c.Request() }}
	l := openPort(t, config)
	m, h, err := config.Handler()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePort(t, m) })
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	for _, c := range []struct{ first, host, target, path string }{
		{"GET /chat HTTP/1.1", "127.0.0.1:9000", "/chat", "/chat"},
		{"GET http://a.example:80/chat?b HTTP/1.1", "a.example:80", "/chat?b", "/chat"},
		{"GET HTTPS://a.example HTTP/1.1", "a.example", "/", "/"},
		{"GET Ws://a.example?b=/ HTTP/1.1", "a.example", "/?b=/", "/"},
		{"GET wss://[::1]:9000/ HTTP/1.1", "[::1]:9000", "/", "/"},
		{"GET /?http://b/ HTTP/1.1", "127.0.0.1:9000", "/?http://b/", "/"},
		{"GET //b/c?d? HTTP/1.1", "127.0.0.1:9000", "//b/c?d?", "//b/c"},
		{"GET /a%20b? HTTP/1.2", "127.0.0.1:9000", "/a%20b?", "/a b"},
		{"GET /100% HTTP/1.9", "127.0.0.1:9000", "/100%", "/100%"},
		{"GET /%zz%2 HTTP/1.1", "127.0.0.1:9000", "/%zz%2", "/%zz%2"},
		{"GET http://a/%%20%25 HTTP/1.1", "a", "/%%20%25", "/% %"},
	} {
		for name, start := range map[string]string{"Listen": "", "unusual fields": "", "kept alive": getPage, "Handler": "mounted"} {
			if (start != "") && strings.ContainsAny(c.path, "%") {
				continue // net/http has answered 400 itself
			}
			var k *knocker
			if start == "mounted" {
				conn, err := net.Dial("tcp", s.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				k = knockOn(t, conn)
			} else if k = knock(t, l); start != "" {
				k.send(start)
				k.wantPage(`GET 127.0.0.1:9000 /page ""`)
			}
			head := strings.Replace(add("Trailer: Content-Length\r\nCookie: a=b\r\n"), strings.TrimSuffix(getLine, "\r\n"), c.first, 1)
			if start != "" {
				head = strings.Replace(head, "Trailer", "X-Trailer", 1)
			}
			if name == "unusual fields" {
				head = strings.Replace(head, "Upgrade: websocket", "upgrade: ,WebSocket,", 1)
			}
			k.send(head)
			k.wantOpen()
			r := <-seen
			if r == nil || r.Host != c.host || r.RequestURI != c.target || r.URL.Path != c.path || r.URL.Host != "" || r.URL.RequestURI() == "" || r.Header.Get("Cookie") != "a=b" {
				t.Errorf("%s, %q: %+v", name, c.first, r)
			}
			k.conn.Close()
		}
	}
}

// One empty line before a request is not looked at (RFC 9112 §2.2), however it
// comes; HEAD gets no body.
func TestRequest_EmptyLineAndHEAD(t *testing.T) {
	for _, parts := range [][]string{{"\r\n" + upgrade}, {"\r", "\n", upgrade}, {"\r\n", upgrade}, {"\r", "\n" + upgrade}, {"\r\nG", upgrade[1:]}, {upgrade}} {
		b := newBuffer(512)
		n, err := readRequestHead(pieces(parts...), b, 8<<10)
		if err != nil || string(b.b[:n]) != upgrade {
			t.Errorf("%q: %q, %v", parts, b.b, err)
		}
		b.free()
	}
	for _, parts := range [][]string{{"\r\n\r\n" + upgrade}, {"\r\n", "\r", "\n" + upgrade}, {"\n" + upgrade}, {"\rG"}, {"\r\n", " "}} {
		b := newBuffer(512)
		if _, err := readRequestHead(pieces(parts...), b, 8<<10); err != errHeadLine && err != errHeadEnd {
			t.Errorf("%q: %v", parts, err)
		}
		b.free()
	}
	l := openPort(t, ListenConfig{})
	for head, status := range map[string]int{
		"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n":                 426,
		"HEAD / HTTP/1.1\r\nHost : a\r\n\r\n":                400,
		strings.Replace(upgrade, "GET", "HEAD", 1):           405,
		"\r\nHEAD / HTTP/1.1\r\nHost: a\r\nUpgrade:\r\n\r\n": 426,
	} {
		k := knock(t, l, head)
		all, err := io.ReadAll(k.br)
		if !strings.HasPrefix(string(all), fmt.Sprintf("HTTP/1.1 %d ", status)) || !strings.HasSuffix(string(all), "\r\n\r\n") || !strings.Contains(string(all), "Content-Length: ") || err != nil {
			t.Errorf("%q: %q, %v", head, all, err)
		}
	}
}

func TestRequest_IsKept(t *testing.T) {
	sockets := make(chan *WebSocket, 1)
	l := openPort(t, ListenConfig{OnConnection: func(c *WebSocket) { echoing(c); sockets <- c }})
	head := swap(getLine, "GET /room%20one?user=M%C3%BC HTTP/1.1\r\n")
	head = strings.Replace(head, "\r\n\r\n", "\r\nCookie: a=b\r\nX-Name: M\xfcller\r\n\r\n", 1)

	k := knock(t, l, head)
	k.wantOpen()
	c := <-sockets
	r := c.Request()
	if r.Method != "GET" || r.Host != "127.0.0.1:9000" || r.URL.Path != "/room one" || r.URL.Query().Get("user") != "Mü" ||
		r.RequestURI != "/room%20one?user=M%C3%BC" || r.RemoteAddr != k.conn.LocalAddr().String() || r.Header.Get("Cookie") != "a=b" || r.Header.Get("X-Name") != "M\xfcller" {
		t.Errorf("%+v", r)
	}
	k.send(maskedHello)
	k.wantBytes("echo", hello)
	if r := c.Request(); r.Header.Get("Cookie") != "a=b" {
		t.Errorf("asked for, and dropped: %v", r.Header)
	}

	k = knock(t, l, head)
	k.wantOpen()
	c = <-sockets
	k.send(maskedHello)
	k.wantBytes("echo", hello)
	r = c.Request()
	if r.Method != "GET" || r.Host != "127.0.0.1:9000" || r.URL.Path != "/room one" || r.RemoteAddr != k.conn.LocalAddr().String() || len(r.Header) != 0 || r.Header == nil {
		t.Errorf("%+v", r)
	}
	if u := c.URL(); u != "ws://127.0.0.1:9000/room%20one?user=M%C3%BC" {
		t.Errorf("URL %q", u)
	}
}

func TestResponseHeader(t *testing.T) {
	header := http.Header{"X-Peer": {"one", "tw\xf6"}, "Set-Cookie": {"a=b"}}
	l := openPort(t, ListenConfig{ResponseHeader: header})
	header.Set("X-Peer", "changed after Listen")
	r := knock(t, l, upgrade).wantOpen()
	if got := r.Header["X-Peer"]; len(got) != 2 || got[0] != "one" || got[1] != "tw\xf6" {
		t.Errorf("X-Peer: %q", got)
	}
	if got := r.Header.Get("Set-Cookie"); got != "a=b" {
		t.Errorf("Set-Cookie: %q", got)
	}

	for name, value := range map[string]string{
		"X-Peer":                   "a\r\nSec-WebSocket-Accept: b",
		"X-Line":                   "a\nb",
		"X-Return":                 "a\rb",
		"X-NUL":                    "a\x00b",
		"X-DEL":                    "\x7f",
		"X Peer":                   "a",
		"X-Peer:":                  "a",
		"":                         "a",
		"X-Peer\r\nX-Evil":         "a",
		"Upgrade":                  "h2c",
		"connection":               "close",
		"Content-Length":           "0",
		"TRANSFER-ENCODING":        "chunked",
		"Sec-WebSocket-Accept":     "a",
		"sec-websocket-protocol":   "chat",
		"Sec-WebSocket-Extensions": "permessage-deflate",
		"Sec-WebSocket-Version":    "13",
		"Sec-WebSocket-Key":        "a",
		"sec-websocket-other":      "a",
	} {
		_, err := ListenConfig{ResponseHeader: http.Header{name: {value}}}.Listen(t.Context(), 0)
		wantSyntaxError(t, err, "response header", name)
	}
}

func TestAuthorize(t *testing.T) {
	l := openPort(t, ListenConfig{
		OnConnection: echoing,
		Authorize: func(r *http.Request) error {
			switch token := r.Header.Get("Authorization"); {
			case r.Method != "GET" || r.Host != "127.0.0.1:9000" || r.RemoteAddr == "" || r.URL == nil:
				return errors.New("no whole request")
			case token == "good":
				return nil
			case token == "":
				return &RejectError{Status: 401, Header: http.Header{"Www-Authenticate": {"Bearer"}, "X-Two": {"a", "b"}}, Body: "Please say who you are."}
			case token == "wrapped":
				return fmt.Errorf("secret detail: %w", &RejectError{Status: 429})
			case token == "zero":
				return &RejectError{}
			case token == "status":
				return &RejectError{Status: 101}
			case token == "line":
				return &RejectError{Status: 401, Header: http.Header{"X-Evil": {"a\r\nSet-Cookie: b"}}}
			}
			return errors.New("secret detail")
		},
	})
	auth := func(token string) string { return add("Authorization: " + token + "\r\n") }

	r, body := knock(t, l, upgrade).wantRefusal(401)
	if body != "Please say who you are.\n" || r.Header.Get("Www-Authenticate") != "Bearer" || len(r.Header["X-Two"]) != 2 {
		t.Errorf("%q, %v", body, r.Header)
	}
	for token, status := range map[string]int{"wrapped": 429, "zero": 403, "status": 403, "bad": 403} {
		if _, body := knock(t, l, auth(token)).wantRefusal(status); body != "Not allowed.\n" {
			t.Errorf("%s: %q", token, body)
		}
	}
	if r, _ := knock(t, l, auth("line")).wantRefusal(401); len(r.Header["X-Evil"])+len(r.Header["Set-Cookie"]) > 0 {
		t.Errorf("a header broke out of its line: %v", r.Header)
	}
	k := knock(t, l, auth("good"), maskedHello)
	k.wantOpen()
	k.wantBytes("echo", hello)
	// A request that is refused anyway is not asked about.
	knock(t, l, swap(keyLine, "")).wantRefusal(400)
}

// Authorize looks at the headers; they are not kept for it.
func TestAuthorize_KeepsNoHeaders(t *testing.T) {
	sockets := make(chan *WebSocket, 1)
	l := openPort(t, ListenConfig{
		OnConnection: func(c *WebSocket) { echoing(c); sockets <- c },
		Authorize:    func(*http.Request) error { return nil },
	})
	k := knock(t, l, add("Cookie: a=b\r\n"))
	k.wantOpen()
	c := <-sockets
	k.send(maskedHello)
	k.wantBytes("echo", hello)
	if r := c.Request(); len(r.Header) != 0 {
		t.Errorf("headers are kept: %v", r.Header)
	}
}

// A peer that goes away in the middle leaves nothing behind: see closePort.
func TestHandshake_PeerGoesAway(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing, MaxConnectionsPerIP: 1000})
	for i := 0; i < len(upgrade); i += 5 {
		k := knock(t, l, upgrade[:i])
		if i%2 == 0 {
			k.conn.(*net.TCPConn).SetLinger(0) // a reset
		}
		k.conn.Close()
	}
	for range 10 {
		k := knock(t, l, upgrade)
		k.conn.(*net.TCPConn).SetLinger(0)
		k.conn.Close()
	}
	k := knock(t, l, upgrade, maskedHello)
	k.wantOpen()
	k.wantBytes("echo", hello)
}

// inBubble runs a listener on a network in memory, with a fake clock.
func inBubble(t *testing.T, c ListenConfig, f func(t *testing.T, l *WebSocketListener, dial func(parts ...string) *knocker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ln := memnet.Listen(0)
		l, err := c.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		var conns []net.Conn
		t.Cleanup(func() { forgetAll(t, l, conns) })
		f(t, l, func(parts ...string) *knocker {
			t.Helper()
			conn, err := ln.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
			return knockOn(t, conn, parts...)
		})
	})
}

// forgetAll ends a bubble: its listener must have forgotten everybody.
func forgetAll(t *testing.T, l *WebSocketListener, conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.Shutdown(ctx)
	synctest.Wait()
	if left := leftovers(l); left != "" {
		t.Error("the listener still holds " + left)
	}
}

// wantEnd waits until the other side closes without a word and returns how
// long that took.
func (k *knocker) wantEnd(start time.Time) time.Duration {
	k.t.Helper()
	if b, err := io.ReadAll(k.br); err != nil || len(b) > 0 {
		k.t.Errorf("%q, %v", b, err)
	}
	return time.Since(start)
}

// HandshakeTimeout is one time for all of it: a byte now and then buys none.
func TestHandshakeTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		set  time.Duration
		want time.Duration
	}{"default": {0, 10 * time.Second}, "3 s": {3 * time.Second, 3 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, ListenConfig{HandshakeTimeout: c.set}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
				start := time.Now()
				if d := dial().wantEnd(start); d != c.want {
					t.Errorf("a silent peer: %v", d)
				}
				start = time.Now()
				if d := dial(upgradeHead).wantEnd(start); d != c.want {
					t.Errorf("a head without an end: %v", d)
				}
				start = time.Now()
				k := dial()
				var wg sync.WaitGroup
				wg.Go(func() {
					for i := range len(upgrade) {
						if _, err := k.conn.Write([]byte{upgrade[i]}); err != nil {
							return
						}
						time.Sleep(c.want / 20)
					}
				})
				if d := k.wantEnd(start); d != c.want {
					t.Errorf("a byte now and then: %v", d)
				}
				wg.Wait()
			})
		})
	}
	t.Run("off", func(t *testing.T) {
		inBubble(t, ListenConfig{HandshakeTimeout: -1, OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			k := dial(upgradeHead)
			time.Sleep(time.Hour)
			k.send("\r\n", maskedHello)
			k.wantOpen()
			k.wantBytes("echo", hello)
		})
	})
	t.Run("ends with the handshake", func(t *testing.T) {
		inBubble(t, ListenConfig{OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			k := dial(upgrade)
			k.wantOpen()
			time.Sleep(15 * time.Second)
			k.send(maskedHello)
			k.wantBytes("echo", hello)
		})
	})
	t.Run("holds for the program", func(t *testing.T) {
		for _, c := range []ListenConfig{
			{Authorize: func(*http.Request) error { time.Sleep(11 * time.Second); return nil }},
			{Respond: func(*http.Request, *Answer) { time.Sleep(11 * time.Second) }},
		} {
			inBubble(t, c, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
				dial(upgrade).wantEnd(time.Now())
			})
		}
	})
}

// A refused peer that neither reads nor leaves is waited for a second at most.
func TestRefusal_LingerEnds(t *testing.T) {
	inBubble(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		start := time.Now()
		dial("GET / HTTP/1.1\r\n\r\n")
		synctest.Wait()
		l.mu.Lock()
		pending := len(l.pending)
		l.mu.Unlock()
		if pending != 1 {
			t.Errorf("%d in their handshake", pending)
		}
		time.Sleep(lingerTime)
		synctest.Wait()
		if left := leftovers(l); left != "" {
			t.Errorf("after %v: %s", time.Since(start), left)
		}
	})
}

// MaxHeaderBytes has a smallest value, so that requests of browsers fit.
func TestMaxHeaderBytes(t *testing.T) {
	fill := func(n int) string { return add("X-Fill: " + strings.Repeat("x", n-len(add("X-Fill: \r\n"))) + "\r\n") }
	for set, limit := range map[int]int{0: 8 << 10, 1000: 1000, 1: 512, 20_000: 20_000} {
		l := openPort(t, ListenConfig{MaxHeaderBytes: set})
		knock(t, l, fill(limit)).wantOpen()
		knock(t, l, fill(limit+1)).wantRefusal(431)
	}
}
