package peerws

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

func TestDial_Arguments(t *testing.T) {
	never := func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialled")
		return nil, io.EOF
	}
	for _, c := range []struct {
		wrong     string
		protocols []string
	}{
		{"", []string{""}}, {"a b", []string{"a b"}}, {"a", []string{"a", "b", "a"}}, {"a,b", []string{"a,b"}}, {"ä", []string{"ä"}}, {"a\r\nX: y", []string{"a\r\nX: y"}},
	} {
		_, err := Dialer{NetDial: never}.Dial(t.Context(), "ws://a/", c.protocols...)
		wantSyntaxError(t, err, "protocol", c.wrong)
		_, err = Dialer{NetDial: never}.NewWebSocket("ws://a/", c.protocols...)
		wantSyntaxError(t, err, "protocol", c.wrong)
	}
	for name, value := range map[string]string{
		"X-Peer": "a\r\nX-Evil: b", "X-Line": "a\nb", "X-Return": "a\rb", "X-NUL": "\x00", "X Peer": "a", "X:": "a", "": "a", "X\r\nY": "a",
		"Host": "a", "host": "a", "Upgrade": "a", "Connection": "a", "Sec-WebSocket-Key": "a", "sec-websocket-version": "8", "Sec-WebSocket-Protocol": "a",
		"Sec-WebSocket-Extensions": "a", "Content-Length": "5", "Transfer-Encoding": "chunked",
	} {
		_, err := Dialer{NetDial: never, Header: http.Header{name: {value}}}.Dial(t.Context(), "ws://a/")
		wantSyntaxError(t, err, "request header", name)
	}
}

// A remote is a listener by hand, in memory.
type remote struct {
	t  *testing.T
	ln *memnet.Listener
}

func newRemote(t *testing.T) *remote {
	r := &remote{t, memnet.Listen(0)}
	t.Cleanup(func() { r.ln.Close() })
	return r
}

// serve answers the next connection: f gets the request and its head, and
// returns what to send. The connection stays open until the peer ends it.
func (r *remote) serve(f func(q *http.Request, raw string) string) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := r.ln.Accept()
		if err != nil {
			r.t.Error(err)
			return
		}
		defer conn.Close()
		var seen bytes.Buffer
		q, err := http.ReadRequest(bufio.NewReader(io.TeeReader(conn, &seen)))
		if err != nil {
			r.t.Errorf("request: %v", err)
			return
		}
		if _, err := io.WriteString(conn, f(q, seen.String())); err != nil {
			r.t.Errorf("answer: %v", err)
		}
		io.Copy(io.Discard, conn)
	})
	return wg.Wait
}

// accepts is the answer to q that a listener gives, with more lines and bytes
// behind it.
func accepts(q *http.Request, lines, rest string) string {
	return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		acceptKey(q.Header.Get("Sec-WebSocket-Key")) + "\r\n" + lines + "\r\n" + rest
}

func TestSection1_3_Accept(t *testing.T) {
	if got := acceptKey("dGhlIHNhbXBsZSBub25jZQ=="); got != sampleAccept {
		t.Errorf("%q", got)
	}
}

// RFC 6455 §4.1: what a dialled socket sends.
func TestSection4_1_Request(t *testing.T) {
	for _, c := range []struct {
		name, url string
		dialer    Dialer
		protocols []string
		line      string
		header    http.Header // all of it but the handshake's own
	}{
		{"plain", "ws://A.example", Dialer{}, nil, "GET / HTTP/1.1", http.Header{"Host": {"a.example"}}},
		{"default port", "ws://a:80/b?c d", Dialer{}, nil, "GET /b?c%20d HTTP/1.1", http.Header{"Host": {"a"}}},
		{"other port", "http://a:9000/?", Dialer{}, nil, "GET /? HTTP/1.1", http.Header{"Host": {"a:9000"}}},
		{"IPv6", "ws://[2001:DB8::1]:9000/", Dialer{}, nil, "GET / HTTP/1.1", http.Header{"Host": {"[2001:db8::1]:9000"}}},
		{"IPv6, default port", "ws://[::1]:80/", Dialer{}, nil, "GET / HTTP/1.1", http.Header{"Host": {"[::1]"}}},
		{"IPv6 zone", "ws://[fe80::1%25eth0]/", Dialer{}, nil, "GET / HTTP/1.1", http.Header{"Host": {"[fe80::1]"}}},
		{"protocols", "ws://a/", Dialer{}, []string{"chat", "superchat"}, "GET / HTTP/1.1", http.Header{"Host": {"a"}, "Sec-Websocket-Protocol": {"chat, superchat"}}},
		{"header", "ws://a/", Dialer{Header: http.Header{"Origin": {"http://b"}, "X-Peer": {"1", "2"}}}, nil, "GET / HTTP/1.1", http.Header{"Host": {"a"}, "Origin": {"http://b"}, "X-Peer": {"1", "2"}}},
		{"credentials", "ws://us%20er:p%C3%A4ss@a/", Dialer{}, nil, "GET / HTTP/1.1", http.Header{"Host": {"a"}, "Authorization": {"Basic dXMgZXI6cMOkc3M="}}},
		{"user alone", "ws://user@a/", Dialer{}, nil, "GET / HTTP/1.1", http.Header{"Host": {"a"}, "Authorization": {"Basic dXNlcjo="}}},
		{"header before credentials", "ws://u:p@a/", Dialer{Header: http.Header{"authorization": {"Bearer x"}}}, nil, "GET / HTTP/1.1", http.Header{"Host": {"a"}, "Authorization": {"Bearer x"}}},
	} {
		keys := map[string]bool{}
		for range 2 {
			r := newRemote(t)
			c.dialer.NetDial = r.ln.DialContext
			wait := r.serve(func(q *http.Request, raw string) string {
				line, _, _ := strings.Cut(raw, "\r\n")
				if line != c.line {
					t.Errorf("%s: %q, want %q", c.name, line, c.line)
				}
				key := q.Header.Get("Sec-WebSocket-Key")
				if keys[key] || !validKey([]byte(key)) {
					t.Errorf("%s: key %q", c.name, key)
				}
				keys[key] = true
				want := c.header.Clone()
				want["Upgrade"], want["Connection"], want["Sec-Websocket-Version"], want["Sec-Websocket-Key"] = []string{"websocket"}, []string{"Upgrade"}, []string{"13"}, []string{key}
				q.Header["Host"] = []string{q.Host}
				if fmt.Sprint(q.Header) != fmt.Sprint(want) {
					t.Errorf("%s:\n got %v\nwant %v", c.name, q.Header, want)
				}
				var h head
				if err := h.parseRequest([]byte(raw)); err != nil {
					t.Errorf("%s: %v", c.name, err)
				} else if _, refused := checkRequest(&h, &policy{origins: []string{"*"}}, c.protocols); refused != nil {
					t.Errorf("%s: our listener says %v", c.name, refused)
				}
				lines := ""
				if c.protocols != nil {
					lines = "Sec-WebSocket-Protocol: " + c.protocols[1] + "\r\n"
				}
				return accepts(q, lines, hello)
			})
			ws, err := c.dialer.Dial(t.Context(), c.url, c.protocols...)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if c.protocols != nil && ws.Protocol() != c.protocols[1] {
				t.Errorf("%s: protocol %q", c.name, ws.Protocol())
			}
			got := make(chan string, 1)
			ws.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
			if m := <-got; m != "Hello" { // came behind the answer
				t.Errorf("%s: %q", c.name, m)
			}
			ws.Abort()
			waitDone(t, ws)
			wait()
		}
	}
}

const goodAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + sampleAccept + "\r\n"

// RFC 6455 §4.1: what a dialled socket takes for an answer.
func TestSection4_1_Answer(t *testing.T) {
	swapped := func(line, by string) string {
		if !strings.Contains(goodAnswer, line) {
			panic(line)
		}
		return strings.Replace(goodAnswer, line, by, 1) + "\r\n"
	}
	const up, conn, accept, status = "Upgrade: websocket\r\n", "Connection: Upgrade\r\n", "Sec-WebSocket-Accept: " + sampleAccept + "\r\n", "HTTP/1.1 101 Switching Protocols"
	for _, c := range []struct {
		name, answer, offered, protocol string
	}{
		{"plain", goodAnswer + "\r\n", "", ""},
		{"Upgrade: WebSocket", swapped(up, "UPGRADE:WebSocket\r\n"), "", ""},
		{"Connection list", swapped(conn, "connection: keep-alive, UPGRADE\r\n"), "", ""},
		{"Connection in two lines", swapped(conn, conn+"Connection: keep-alive\r\n"), "", ""},
		{"no reason", swapped(status, "HTTP/1.1 101"), "", ""},
		{"more fields", goodAnswer + "Date: x\r\nServer: y\r\n\r\n", "", ""},
		{"empty extension", goodAnswer + "Sec-WebSocket-Extensions:\r\nSec-WebSocket-Extensions: , ,\r\n\r\n", "", ""},
		{"HTTP/1.2", swapped("HTTP/1.1", "HTTP/1.2"), "", ""},
		{"protocol", goodAnswer + "Sec-WebSocket-Protocol: b\r\n\r\n", "a b", "b"},
	} {
		if p, _, err := checkResponse([]byte(c.answer), sampleAccept, strings.Fields(c.offered), nil); err != nil || p != c.protocol {
			t.Errorf("%s: %q, %v", c.name, p, err)
		}
	}
	for _, c := range []struct {
		name, answer, offered string
		status                int
		reason                string
	}{
		{"200", swapped(status, "HTTP/1.1 200 OK"), "", 200, "200 OK"},
		{"301", "HTTP/1.1 301 Moved Permanently\r\nLocation: ws://b/\r\n\r\n", "", 301, "301 Moved"},
		{"401", "HTTP/1.1 401 Unauthorized\r\n\r\n", "", 401, "401"},
		{"404", "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n", "", 404, "404 Not Found"},
		{"426", string(errVersion.response()), "", 426, "426"},
		{"503", string(errFull.response()), "", 503, "503"},
		{"100", "HTTP/1.1 100 Continue\r\n\r\n", "", 100, "100"},
		{"no Upgrade", swapped(up, ""), "", 101, "Upgrade"},
		{"Upgrade: h2c", swapped(up, "Upgrade: h2c\r\n"), "", 101, "Upgrade"},
		{"Upgrade list", swapped(up, "Upgrade: websocket, h2c\r\n"), "", 101, "Upgrade"},
		{"Upgrade twice", swapped(up, up+up), "", 101, "Upgrade"},
		{"no Connection", swapped(conn, ""), "", 101, "Connection"},
		{"Connection: close", swapped(conn, "Connection: close\r\n"), "", 101, "Connection"},
		{"no accept", swapped(accept, ""), "", 101, "Accept"},
		{"accept twice", swapped(accept, accept+accept), "", 101, "Accept"},
		{"wrong accept", swapped(accept, "Sec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=\r\n"), "", 101, "Accept"},
		{"accept in lower case", swapped(accept, strings.ToLower(accept)), "", 101, "Accept"},
		{"accept is the key", swapped(accept, "Sec-WebSocket-Accept: dGhlIHNhbXBsZSBub25jZQ==\r\n"), "", 101, "Accept"},
		{"empty accept", swapped(accept, "Sec-WebSocket-Accept:\r\n"), "", 101, "Accept"},
		{"extension", goodAnswer + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "", 101, "extension"},
		{"extension behind an empty one", goodAnswer + "Sec-WebSocket-Extensions: , a\r\n\r\n", "", 101, "extension"},
		{"protocol unasked", goodAnswer + "Sec-WebSocket-Protocol: a\r\n\r\n", "", 101, "not offered"},
		{"other protocol", goodAnswer + "Sec-WebSocket-Protocol: c\r\n\r\n", "a b", 101, "not offered"},
		{"protocol in other case", goodAnswer + "Sec-WebSocket-Protocol: A\r\n\r\n", "a b", 101, "not offered"},
		{"two protocols", goodAnswer + "Sec-WebSocket-Protocol: a, b\r\n\r\n", "a b", 101, "not offered"},
		{"two protocol lines", goodAnswer + "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n\r\n", "a b", 101, "not offered"},
		{"empty protocol", goodAnswer + "Sec-WebSocket-Protocol:\r\n\r\n", "a b", 101, "not offered"},
		{"no protocol", goodAnswer + "\r\n", "a b", 101, "none of the offered"},
		{"HTTP/1.0", swapped("HTTP/1.1", "HTTP/1.0"), "", 0, "malformed"},
		{"folded", swapped(up, "Upgrade:\r\n websocket\r\n"), "", 0, "malformed"},
		{"Name :", swapped(up, "Upgrade : websocket\r\n"), "", 0, "malformed"},
	} {
		p, _, err := checkResponse([]byte(c.answer), sampleAccept, strings.Fields(c.offered), nil)
		if err == nil || p != "" || err.Status != c.status || !strings.Contains(err.Reason, c.reason) {
			t.Errorf("%s: %q, %v", c.name, p, err)
		}
	}
}

// dialRemote dials a remote that answers with f.
func dialRemote(t *testing.T, f func(q *http.Request) string, hangUp bool) (*WebSocket, error) {
	r := newRemote(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := r.ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		q, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		io.WriteString(conn, f(q))
		if hangUp {
			conn.(*memnet.Conn).CloseWrite()
		}
		io.Copy(io.Discard, conn)
	})
	ws, err := Dialer{NetDial: r.ln.DialContext}.Dial(t.Context(), "ws://remote:9000/")
	if err != nil {
		wg.Wait() // it ends only if the dialler has closed
	}
	return ws, err
}

func TestDial_AnswerCutOff(t *testing.T) {
	whole := len(goodAnswer) + 2
	for i := range whole {
		_, err := dialRemote(t, func(q *http.Request) string { return accepts(q, "", "")[:i] }, true)
		e, ok := errors.AsType[*HandshakeError](err)
		if !ok || e.Status != 0 || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "remote:9000") {
			t.Fatalf("after %d bytes: %v", i, err)
		}
	}
	ws, err := dialRemote(t, func(q *http.Request) string { return accepts(q, "", "") }, true)
	if err != nil {
		t.Fatal(err)
	}
	if ev := waitDone(t, ws); ev.Code != StatusAbnormalClosure || ev.WasClean {
		t.Errorf("%+v", ev)
	}
}

func TestDial_Garbage(t *testing.T) {
	for name, answer := range map[string]string{
		"SSH":             "SSH-2.0-OpenSSH_9.7\r\n",
		"a frame":         hello,
		"bare line feeds": "HTTP/1.1 101 x\n\n",
		"HTTP/2":          "\x00\x00\x12\x04\x00\x00\x00\x00\x00",
		"endless line":    "HTTP/1.1 101 " + strings.Repeat("x", 20_000),
		"endless head":    "HTTP/1.1 101 x\r\n" + strings.Repeat("A: b\r\n", 5000),
		"65 fields":       "HTTP/1.1 101 x\r\n" + strings.Repeat("A: b\r\n", 65) + "\r\n",
		"NUL in a value":  "HTTP/1.1 101 x\r\nA: \x00\r\n\r\n",
	} {
		_, err := dialRemote(t, func(*http.Request) string { return answer }, false)
		e, ok := errors.AsType[*HandshakeError](err)
		if !ok || e.Status != 0 || !strings.Contains(e.Reason, "malformed") || strings.Contains(err.Error(), "equest") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDial_Status(t *testing.T) {
	for _, status := range []int{200, 301, 302, 400, 404, 426, 500} {
		dials := 0
		_, err := dialRemote(t, func(*http.Request) string {
			dials++
			return fmt.Sprintf("HTTP/1.1 %d x\r\nLocation: ws://other/\r\nContent-Length: 4\r\n\r\nbody", status)
		}, false)
		if e, ok := errors.AsType[*HandshakeError](err); !ok || e.Status != status || dials != 1 || !strings.Contains(err.Error(), fmt.Sprint(status)) {
			t.Errorf("%d: %v, %d dials", status, err, dials)
		}
	}
}

// Answers with a status of 1xx come before the answer (RFC 9110 §15.2). They
// count as its head.
func TestDial_Interim(t *testing.T) {
	const hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
	for _, before := range []string{"HTTP/1.1 100 Continue\r\n\r\n", hint + hint, "HTTP/1.1 102\r\n\r\n" + hint, strings.Repeat(hint, 100)} {
		ws, err := dialRemote(t, func(q *http.Request) string { return before + accepts(q, "X-A: b\r\n", "\x81\x01a") }, false)
		if err != nil {
			t.Errorf("%.40q: %v", before, err)
			continue
		}
		if m, err := ws.Read(t.Context()); err != nil || string(m.Data) != "a" {
			t.Errorf("%.40q: %v", before, err)
		}
		if r := ws.Request(); r.Response == nil || r.Response.Header.Get("Link") != "" || r.Response.Header.Get("X-A") != "b" {
			t.Errorf("%.40q: %+v", before, r.Response)
		}
		ws.Abort()
	}
	big := "HTTP/1.1 103 x\r\nX: " + strings.Repeat("x", 8192-22) + "\r\n\r\n" // 8 KiB
	for _, c := range []struct{ before, want string }{
		{strings.Repeat(hint, 210), "too large"}, {big, "too large"}, {big[:100] + big, "malformed"}, {"HTTP/1.1 1xx\r\n\r\n", "malformed"}, {"HTTP/1.1 103 x\r\nX : y\r\n\r\n", "malformed"},
	} {
		ws, err := dialRemote(t, func(q *http.Request) string { return c.before }, true)
		if err == nil || !strings.Contains(err.Error(), "malformed") && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v, %v", c.before, ws, err)
		}
	}
}

// What the answer says arrives, and is bounded.
func TestDial_Reasons(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		hangUp       bool
		status       int
		body, text   string
	}{
		{"length", "HTTP/1.1 403 Forbidden\r\nX-Why: a\r\nContent-Length: 4\r\n\r\nbodymore", false, 403, "body", ""},
		{"cut", "HTTP/1.1 403 Forbidden\r\nX-Why: a\r\nContent-Length: 9\r\n\r\nbody", true, 403, "body", ""},
		{"until the end", "HTTP/1.0 403 Forbidden\r\nX-Why: a\r\n\r\nbody", true, 403, "body", ""},
		{"chunked", "HTTP/1.1 403 Forbidden\r\nX-Why: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1\r\ny\r\n0\r\n\r\n", false, 403, "body", ""},
		{"long", "HTTP/1.1 500 Oops\r\nX-Why: a\r\n\r\n" + strings.Repeat("x", 9000), false, 500, strings.Repeat("x", 4096), ""},
		{"none", "HTTP/1.1 204 x\r\nX-Why: a\r\n\r\nbody", false, 204, "", ""},
		{"101", "HTTP/1.1 101 x\r\nX-Why: a\r\n\r\nbody", false, 101, "", "lacks Upgrade"},
		{"stripped", "HTTP/1.1 426 x\r\nX-Why: a\r\nContent-Length: 0\r\n\r\n", false, 426, "", "proxy"},
		{"page", "HTTP/1.1 200 OK\r\nX-Why: a\r\nContent-Length: 1\r\n\r\na", false, 200, "a", "proxy"},
		{"TLS port of Go", "HTTP/1.0 400 Bad Request\r\nX-Why: a\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", true, 400, "Client sent an HTTP request to an HTTPS server.\n", "wss://"},
	} {
		_, err := dialRemote(t, func(*http.Request) string { return c.answer }, c.hangUp)
		e, ok := errors.AsType[*HandshakeError](err)
		if !ok || e.Status != c.status || string(e.Body) != c.body || e.Header.Get("X-Why") != "a" || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %+v", c.name, err, e)
		}
	}
	for _, answer := range []string{"\x15\x03\x01\x00\x02\x02\x46", "\x15", "\x16\x03\x03"} {
		if _, err := dialRemote(t, func(*http.Request) string { return answer }, true); err == nil || !strings.Contains(err.Error(), "wss://") {
			t.Errorf("%q: %v", answer, err)
		}
	}
	synctest.Test(t, func(t *testing.T) { // a body that does not end: not the whole HandshakeTimeout
		start := time.Now()
		_, err := dialRemote(t, func(*http.Request) string { return "HTTP/1.1 403 Forbidden\r\n\r\nbody" }, false)
		if e, ok := errors.AsType[*HandshakeError](err); !ok || e.Status != 403 || string(e.Body) != "body" || time.Since(start) != errorBodyWait {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A dialled socket knows what it sent and what the answer was.
func TestDial_Request(t *testing.T) {
	r := newRemote(t)
	wait := r.serve(func(q *http.Request, _ string) string {
		return accepts(q, "Set-Cookie: a=b\r\nset-cookie: c=d\r\nSec-WebSocket-Protocol: chat\r\n", "")
	})
	defer wait()
	ws, err := Dialer{NetDial: r.ln.DialContext, Header: http.Header{"X-A": {"1", "2"}}}.Dial(t.Context(), "ws://remote:9000/100%25?b", "chat")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Abort()
	q := ws.Request()
	if q.Host != "remote:9000" || q.RequestURI != "/100%25?b" || q.URL.Path != "/100%" || q.URL.RawQuery != "b" || len(q.Header["X-A"]) != 2 || q.Header.Get("Sec-WebSocket-Protocol") != "chat" || q.Header.Get("Host") != "" {
		t.Errorf("%+v", q)
	}
	if a := q.Response; a.StatusCode != 101 || a.Status != "101 Switching Protocols" || len(a.Header["Set-Cookie"]) != 2 || ws.Request() != q {
		t.Errorf("%+v", a)
	}
	ws2, err := NewWebSocket("ws://127.0.0.1:1/%")
	if err != nil || ws2.Request() == nil || ws2.Request().Response != nil || ws2.Request().URL.Path != "/%" {
		t.Errorf("%v, %v", ws2, err)
	}
	ws2.Abort()
	<-ws2.Done()
}

// Frames behind the answer, cut anywhere, are not lost.
func TestDial_EarlyFrames(t *testing.T) {
	r := newRemote(t)
	d := Dialer{NetDial: r.ln.DialContext}
	whole := len(goodAnswer) + 2
	for i := 0; i <= whole+2*len(hello); i += 3 {
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := r.ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			q, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				t.Error(err)
				return
			}
			stream := accepts(q, "", hello+hello)
			io.WriteString(conn, stream[:i])
			io.WriteString(conn, stream[i:])
			io.Copy(io.Discard, conn)
		})
		ws, err := d.Dial(t.Context(), "ws://a/")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 2)
		ws.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
		if a, b := <-got, <-got; a != "Hello" || b != "Hello" {
			t.Fatalf("%q, %q", a, b)
		}
		ws.Abort()
		waitDone(t, ws)
		wg.Wait()
	}
}

// A context that ends ends Dial, wherever it is, and nothing stays behind.
func TestDial_ContextEnds(t *testing.T) {
	own := errors.New("my own cause")
	stages := map[string]func(r *remote) func(ctx context.Context, network, addr string) (net.Conn, error){
		"connecting": func(r *remote) func(context.Context, string, string) (net.Conn, error) {
			return func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		},
		"connected in the last moment": func(r *remote) func(context.Context, string, string) (net.Conn, error) {
			return func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return r.ln.Dial(context.Background())
			}
		},
		"sending": func(r *remote) func(context.Context, string, string) (net.Conn, error) {
			return func(ctx context.Context, _, _ string) (net.Conn, error) {
				a, _ := memnet.Pipe(1)
				return a, nil
			}
		},
		"waiting for an answer": func(r *remote) func(context.Context, string, string) (net.Conn, error) { return r.ln.DialContext },
	}
	for name, stage := range stages {
		for _, url := range []string{"ws://a/", "wss://a/"} {
			for _, how := range []string{"cancel", "timeout", "at once"} {
				t.Run(name+" "+url[:3]+" "+how, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newRemote(t)
						d := Dialer{NetDial: stage(r)}
						ctx, cancel := context.WithCancelCause(t.Context())
						want := own
						limit := time.Second
						switch how {
						case "cancel":
							time.AfterFunc(limit, func() { cancel(own) })
						case "timeout":
							d.HandshakeTimeout = limit
							want = context.DeadlineExceeded
						case "at once":
							cancel(own)
							limit = 0
						}
						start := time.Now()
						ws, err := d.Dial(ctx, url)
						if _, ok := errors.AsType[*HandshakeError](err); ws != nil || !ok || !errors.Is(err, want) {
							t.Errorf("a socket: %v, %v", ws != nil, err)
						}
						if how == "timeout" && !strings.Contains(err.Error(), "HandshakeTimeout") {
							t.Errorf("%v", err)
						}
						if d := time.Since(start); d != limit {
							t.Errorf("it took %v", d)
						}
						cancel(nil)
					})
				})
			}
		}
	}
}

// The context bounds the handshake only.
func TestDial_ContextEndsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(t)
		wait := r.serve(func(q *http.Request, _ string) string { return accepts(q, "", "") })
		ctx, cancel := context.WithCancel(t.Context())
		ws, err := Dialer{NetDial: r.ln.DialContext}.Dial(ctx, "ws://a/")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(15 * time.Second)
		if s := ws.ReadyState(); s != Open {
			t.Errorf("%v", s)
		}
		ws.Abort()
		waitDone(t, ws)
		wait()
	})
}

func TestDial_HandshakeTimeoutDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRemote(t)
		start := time.Now()
		_, err := Dialer{NetDial: r.ln.DialContext}.Dial(t.Context(), "ws://a/")
		if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d != 10*time.Second {
			t.Errorf("%v after %v", err, d)
		}
	})
}

// Dialling and reading fail with their own errors.
func TestDial_TransportFails(t *testing.T) {
	broken := errors.New("broken")
	_, err := Dialer{NetDial: func(context.Context, string, string) (net.Conn, error) { return nil, broken }}.Dial(t.Context(), "ws://a/")
	if _, ok := errors.AsType[*HandshakeError](err); !ok || !errors.Is(err, broken) || !strings.Contains(err.Error(), "a:80") {
		t.Errorf("%v", err)
	}
	for _, f := range []memnet.Faults{{FailWrite: 1, Err: broken}, {ShortWrite: 1, Err: broken}, {FailRead: 1, Err: broken}} {
		a, b := memnet.Pipe(0)
		a.SetFaults(f)
		_, err := Dialer{NetDial: func(context.Context, string, string) (net.Conn, error) { return a, nil }}.Dial(t.Context(), "ws://a/")
		if !errors.Is(err, broken) {
			t.Errorf("%+v: %v", f, err)
		}
		if _, err := a.Write(nil); !errors.Is(err, net.ErrClosed) && !errors.Is(err, broken) {
			t.Errorf("%+v: left open: %v", f, err)
		}
		b.Close()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_, err = Dial(t.Context(), "ws://"+ln.Addr().String())
	if _, ok := errors.AsType[*net.OpError](err); !ok || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("%v", err)
	}
}

// Everything that is not TLS is refused when TLS is asked for.
func TestDial_TLSFails(t *testing.T) {
	l := openPort(t, ListenConfig{})
	_, err := Dialer{TLSConfig: &tls.Config{InsecureSkipVerify: true}}.Dial(t.Context(), "wss://"+l.Addr().String())
	if _, ok := errors.AsType[*HandshakeError](err); !ok || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("%v", err)
	}
}

// events runs NewWebSocket in a bubble and returns its events.
func events(t *testing.T, d Dialer, serve func(r *remote) func(), act func(c *WebSocket)) []string {
	r := newRemote(t)
	wait := func() {}
	if serve != nil {
		wait = serve(r)
	}
	if d.NetDial == nil {
		d.NetDial = r.ln.DialContext
	}
	looked := make(chan struct{})
	dial := d.NetDial
	d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		<-looked // at CONNECTING
		return dial(ctx, network, addr)
	}
	c, err := d.NewWebSocket("ws://remote:9000/x", "chat")
	if err != nil {
		t.Fatal(err)
	}
	if s := c.ReadyState(); s != Connecting {
		t.Errorf("%v at first", s)
	}
	if c.URL() != "ws://remote:9000/x" || c.Protocol() != "" || c.LocalAddr() != nil || c.RemoteAddr() != nil || c.Request().Host != "remote:9000" {
		t.Errorf("CONNECTING: %q %q %v %v", c.URL(), c.Protocol(), c.LocalAddr(), c.RemoteAddr())
	}
	if err := c.SendText("too early"); !errors.Is(err, ErrNotOpen) {
		t.Errorf("Send: %v", err)
	}
	rec := new(recorder)
	rec.attach(c)
	close(looked)
	if act != nil {
		act(c)
	}
	ev := waitDone(t, c)
	if c.ReadyState() != Closed || c.Protocol() == "" && ev.WasClean {
		t.Errorf("%v, %+v", c.ReadyState(), ev)
	}
	r.ln.Close()
	wait()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.list
}

func TestNewWebSocket_Events(t *testing.T) {
	opens := func(rest string) func(r *remote) func() {
		return func(r *remote) func() {
			return r.serve(func(q *http.Request, _ string) string { return accepts(q, "Sec-WebSocket-Protocol: chat\r\n", rest) })
		}
	}
	never := Dialer{NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }}
	const handshake = "error peerws: opening handshake: "
	for _, c := range []struct {
		name   string
		dialer Dialer
		serve  func(r *remote) func()
		act    func(c *WebSocket)
		want   []string // each a beginning
	}{
		{"opens, and the peer closes", Dialer{}, opens(hello + close1000), nil, []string{"open", `text "Hello"`, `close 1000 "" clean=true by peer`}},
		{"refused", Dialer{}, func(r *remote) func() {
			return r.serve(func(*http.Request, string) string { return string((&refusal{403, nil, "Not this page."}).response()) })
		}, nil, []string{handshake + "the listener answered 403", `close 1006 "" clean=false by network`}},
		{"nobody there", Dialer{NetDial: func(context.Context, string, string) (net.Conn, error) { return nil, os.ErrNotExist }}, nil, nil,
			[]string{handshake + "connecting to remote:9000: file does not exist", `close 1006 "" clean=false by network`}},
		{"timeout", Dialer{NetDial: never.NetDial, HandshakeTimeout: time.Second}, nil, nil, []string{handshake + "connecting to remote:9000: not done within HandshakeTimeout 1s", `close 1006 "" clean=false by timeout`}},
		{"Close while CONNECTING", never, nil, func(c *WebSocket) { c.Close() }, []string{"error closed before it was open", `close 1006 "" clean=false by local`}},
		{"CloseWith while CONNECTING", Dialer{}, nil, func(c *WebSocket) { c.CloseWith(3000, "bye"); c.Close(); c.Abort() }, []string{"error closed before it was open", `close 1006 "" clean=false by local`}},
		{"Abort while CONNECTING", Dialer{}, nil, func(c *WebSocket) { c.Abort(); c.Close() }, []string{"error aborted", `close 1006 "" clean=false by local`}},
		{"Abort after the request is out", Dialer{}, nil, func(c *WebSocket) { synctest.Wait(); c.Abort() }, []string{"error aborted", `close 1006 "" clean=false by local`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := events(t, c.dialer, c.serve, c.act)
				ok := len(got) == len(c.want)
				for i := range min(len(got), len(c.want)) {
					ok = ok && strings.HasPrefix(got[i], c.want[i])
				}
				if !ok {
					t.Errorf("\n got %q\nwant %q", got, c.want)
				}
			})
		})
	}
}

// While it is connecting the state is CLOSING after Close, as the standard has it.
func TestNewWebSocket_CloseStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c, err := Dialer{NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) { <-release; return nil, ctx.Err() }}.NewWebSocket("ws://a/")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWith(1001, ""); err == nil || c.ReadyState() != Connecting {
			t.Errorf("1001: %v, %v", err, c.ReadyState())
		}
		c.Close()
		if s := c.ReadyState(); s != Closing {
			t.Errorf("%v", s)
		}
		if err := c.SendText("x"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send: %v", err)
		}
		close(release)
		waitDone(t, c)
		if s := c.ReadyState(); s != Closed {
			t.Errorf("%v", s)
		}
	})
}

// The program may change its header as soon as NewWebSocket has returned.
func TestNewWebSocket_CopiesHeader(t *testing.T) {
	r := newRemote(t)
	gate := make(chan struct{})
	header := http.Header{"X-Peer": {"before"}}
	wait := r.serve(func(q *http.Request, _ string) string {
		if got := q.Header.Get("X-Peer"); got != "before" {
			t.Errorf("%q", got)
		}
		return accepts(q, "", close1000)
	})
	c, err := Dialer{CloseTimeout: time.Millisecond, Header: header, NetDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		<-gate
		return r.ln.DialContext(ctx, network, addr)
	}}.NewWebSocket("ws://a/")
	if err != nil {
		t.Fatal(err)
	}
	header["X-Peer"][0] = "after"
	header.Set("X-More", "x")
	close(gate)
	waitDone(t, c)
	wait()
}

// Close and Abort at any moment of a handshake: one OnClose, nothing left.
func TestNewWebSocket_CloseRaces(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing, CloseTimeout: 100 * time.Millisecond})
	for i := range 200 {
		c, err := Dialer{CloseTimeout: 100 * time.Millisecond}.NewWebSocket(l.URL())
		if err != nil {
			t.Fatal(err)
		}
		r := new(recorder)
		r.attach(c)
		time.Sleep(time.Duration(i) * 3 * time.Microsecond)
		if i%2 == 0 {
			c.Close()
		} else {
			c.Abort()
		}
		waitDone(t, c)
		r.mu.Lock()
		if n := len(r.list); n == 0 || !strings.HasPrefix(r.list[n-1], "close ") || strings.Contains(strings.Join(r.list, " "), "(") {
			t.Errorf("%q", r.list)
		}
		r.mu.Unlock()
	}
}
