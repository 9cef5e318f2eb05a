package peerws

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// sampleHead is the request of RFC 6455 §1.3, with the fields that browsers add.
const sampleHead = "GET /chat?room=1 HTTP/1.1\r\n" +
	"Host: server.example.com\r\n" +
	"Upgrade: websocket\r\n" +
	"Connection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
	"Origin: http://example.com\r\n" +
	"Sec-WebSocket-Protocol: chat, superchat\r\n" +
	"Sec-WebSocket-Version: 13\r\n" +
	"\r\n"

// parseHead takes a request head apart as the handshake does.
func parseHead(s string) (*head, error) {
	n, err := headEnd([]byte(s), 0)
	if err != nil {
		return nil, err
	}
	if n != len(s) {
		return nil, &refusal{text: fmt.Sprintf("the head is %d bytes of %d", n, len(s))}
	}
	h := new(head)
	return h, h.parseRequest([]byte(s))
}

// A script is a connection that gives its pieces, each in one Read, and then err.
type script struct {
	pieces [][]byte
	err    error
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, s.err
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

// left is what nobody has read.
func (s *script) left() string { return string(bytes.Join(s.pieces, nil)) }

func pieces(list ...string) *script {
	s := &script{err: io.EOF}
	for _, p := range list {
		s.pieces = append(s.pieces, []byte(p))
	}
	return s
}

func TestHead_EveryTruncation(t *testing.T) {
	for i := range len(sampleHead) {
		for from := range i + 1 {
			if n, err := headEnd([]byte(sampleHead[:i]), from); n != 0 || err != nil {
				t.Fatalf("%d bytes, %d seen before: %d, %v", i, from, n, err)
			}
		}
	}
	for from := range len(sampleHead) {
		if n, err := headEnd([]byte(sampleHead+"\r\n\r\nmore"), from); n != len(sampleHead) || err != nil {
			t.Fatalf("whole, %d seen before: %d, %v; want %d", from, n, err, len(sampleHead))
		}
	}
}

func TestHead_EverySplit(t *testing.T) {
	const early = maskedHello
	check := func(t *testing.T, s *script) {
		t.Helper()
		b := newBuffer(8 << 10)
		defer b.free()
		n, err := readHead(s, b, 8<<10)
		if n != len(sampleHead) || err != nil {
			t.Fatalf("%d, %v; want %d", n, err, len(sampleHead))
		}
		if got := string(b.b) + s.left(); got != sampleHead+early {
			t.Fatalf("bytes lost: %q", got)
		}
		var h head
		if err := h.parseRequest(b.b[:n]); err != nil {
			t.Fatal(err)
		}
		if string(h.method) != "GET" || string(h.target) != "/chat?room=1" || string(h.proto) != "HTTP/1.1" || len(h.fields) != 7 {
			t.Fatalf("%q %q %q %q", h.method, h.target, h.proto, h.fields)
		}
	}
	stream := sampleHead + early
	for i := 1; i < len(stream); i++ {
		check(t, pieces(stream[:i], stream[i:]))
	}
	check(t, pieces(strings.Split(stream, "")...))
	check(t, pieces(stream))
}

func TestHead_TransportEnds(t *testing.T) {
	broken := errors.New("broken")
	for i := range len(sampleHead) {
		s := pieces(sampleHead[:i])
		s.err = broken
		b := newBuffer(8 << 10)
		if n, err := readHead(s, b, 8<<10); n != 0 || err != broken {
			t.Fatalf("after %d bytes: %d, %v", i, n, err)
		}
		b.free()
	}
}

func TestRFC9112_RequestLine(t *testing.T) {
	const rest = "\r\nHost: a\r\n\r\n"
	for _, line := range []string{
		"GET / HTTP/1.1", "GET / HTTP/1.0", "PRI * HTTP/2.0", "M-SEARCH * HTTP/1.1", "OPTIONS * HTTP/1.1",
		"GET http://a/ HTTP/1.1", "CONNECT a:80 HTTP/1.1", "GET /?a=b%20c#d HTTP/1.1", "!#$%&'*+-.^_`|~0aZ / HTTP/9.9",
	} {
		h, err := parseHead(line + rest)
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		if got := string(h.method) + " " + string(h.target) + " " + string(h.proto); got != line {
			t.Errorf("%q became %q", line, got)
		}
	}
	for _, line := range []string{
		"GET", "GET ", "GET /", "GET / ", "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1",
		"GET\t/ HTTP/1.1", "GET /\tHTTP/1.1", "GET\t/\tHTTP/1.1", "GET / http/1.1", "GET / HTTP/1", "GET / HTTP/1.", "GET / HTTP/1.10",
		"GET / HTTP/11", "GET / HTTP/a.1", "GET / HTTP/1.b", "GET / HTTPS/1.1", "GET / XHTTP/1.1", "GET /a b HTTP/1.1", "GET /\x00 HTTP/1.1", "GET /\x7f HTTP/1.1",
		"GET /\xc3\xa9 HTTP/1.1", "GET /a\rb HTTP/1.1", "GE\rT / HTTP/1.1", "G\x00T / HTTP/1.1", "G\xe9T / HTTP/1.1", "GET: / HTTP/1.1",
		"(GET) / HTTP/1.1", "/ HTTP/1.1", "HTTP/1.1 200 OK", "GET /\vHTTP/1.1", "GET / HTTP/1.1\x00", "GET / HTTP/1.1\r",
	} {
		if _, err := parseHead(line + rest); err != errHeadLine {
			t.Errorf("%q: %v, want %v", line, err, errHeadLine)
		}
	}
}

// What is no HTTP is refused before its sender has said all it wants to: most
// of these would wait for our first byte.
func TestHead_NotHTTP(t *testing.T) {
	for name, hello := range map[string]string{
		"TLS ClientHello":   "\x16",
		"TLS, more of it":   "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"SSH":               "SSH-2.0-OpenSSH_9.7\r\n",
		"SOCKS4":            "\x04\x01\x00\x50",
		"SOCKS5":            "\x05\x01\x00",
		"PROXY protocol 2":  "\r\n\r\n\x00\r\nQUIT\n",
		"PROXY protocol 1":  "PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n",
		"SMTP":              "EHLO there\r\n",
		"HTTP/0.9":          "GET /\r\n",
		"RDP":               "\x03\x00\x00\x13\x0e\xe0",
		"a blank line":      "\r",
		"a space":           " GET / HTTP/1.1",
		"NUL":               "\x00",
		"a quoted string":   "\"GET\" / HTTP/1.1",
		"DEL":               "\x7f",
		"obs-text":          "\xff",
		"a line feed first": "\nGET / HTTP/1.1\r\n",
	} {
		if n, err := headEnd([]byte(hello), 0); n != 0 || err != errHeadLine {
			t.Errorf("%s: %d, %v, want %v", name, n, err, errHeadLine)
		}
		b := newBuffer(512)
		if _, err := readHead(pieces(strings.Split(hello, "")...), b, 512); err != errHeadLine {
			t.Errorf("%s, byte by byte: %v, want %v", name, err, errHeadLine)
		}
		b.free()
	}
}

// RFC 9112 §2.2: a bare CR or LF ends no line.
func TestRFC9112_Section2_2_LineEnds(t *testing.T) {
	for _, s := range []string{
		"GET / HTTP/1.1\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n\n",
		"GET / HTTP/1.1\r\nHost: a\n\n",
		"GET / HTTP/1.1\r\nHost: a\r\nB: c\n D: e\r\n\r\n",
	} {
		if _, err := parseHead(s); err != errHeadEnd {
			t.Errorf("%q: %v, want %v", s, err, errHeadEnd)
		}
		b := newBuffer(512)
		if _, err := readHead(pieces(strings.Split(s, "")...), b, 512); err != errHeadEnd {
			t.Errorf("%q, byte by byte: %v, want %v", s, err, errHeadEnd)
		}
		b.free()
	}
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\rB: c\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: \r\r\n\r\n",
	} {
		if _, err := parseHead(s); err != errHeadValue {
			t.Errorf("%q: %v, want %v", s, err, errHeadValue)
		}
	}
}

// RFC 9112 §5, RFC 9110 §5.
func TestRFC9112_Section5_Fields(t *testing.T) {
	for _, c := range []struct {
		line string
		want *refusal
	}{
		{"Name : v", errHeadName}, // §5.1
		{"Name\t: v", errHeadName},
		{": v", errHeadName},
		{"Name", errHeadName},
		{"Na me: v", errHeadName},
		{"Na\x00me: v", errHeadName},
		{"N\xe4me: v", errHeadName},
		{"Na(me: v", errHeadName},
		{"\"Name\": v", errHeadName},
		{"Name@: v", errHeadName},
		{"\rName: v", errHeadName},
		{" folded", errHeadFold}, // §5.2
		{"\tfolded", errHeadFold},
		{" Name: v", errHeadFold},
		{" ", errHeadFold},
		{"Name: a\x00b", errHeadValue},
		{"Name: a\x01b", errHeadValue},
		{"Name: a\x0bb", errHeadValue},
		{"Name: a\x1fb", errHeadValue},
		{"Name: a\x7fb", errHeadValue},
		{"Name: \x1b[2J", errHeadValue},
	} {
		for _, s := range []string{
			"GET / HTTP/1.1\r\nHost: a\r\n" + c.line + "\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + c.line + "\r\nAfter: b\r\n\r\n",
		} {
			if _, err := parseHead(s); err != c.want {
				t.Errorf("%q: %v, want %v", s, err, c.want)
			}
		}
	}
	// The first line behind the request line is where some parsers take a fold
	// for a part of that.
	if _, err := parseHead("GET / HTTP/1.1\r\n Host: a\r\n\r\n"); err != errHeadFold {
		t.Errorf("fold at once: %v", err)
	}
	for line, want := range map[string]string{
		"Name:v":               "v",
		"Name: v":              "v",
		"Name: \t v \t ":       "v",
		"Name:":                "",
		"Name: \t ":            "",
		"Name: a\tb":           "a\tb",
		"Name: a: b":           "a: b",
		"Name: M\xfcller":      "M\xfcller", // obs-text
		"Name: \xe2\x82\xac":   "€",
		"nAmE: any case":       "any case",
		"Name: a, b ,c":        "a, b ,c",
		"Name: \"x\\\" y\" ;z": "\"x\\\" y\" ;z",
	} {
		h, err := parseHead("GET / HTTP/1.1\r\n" + line + "\r\n\r\n")
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		if v, n := h.get("Name"); n != 1 || string(v) != want {
			t.Errorf("%q: %q, %d of them; want %q", line, v, n, want)
		}
	}
}

func TestHead_MaxFields(t *testing.T) {
	const line, field = "GET / HTTP/1.1\r\n", "A: b\r\n"
	h, err := parseHead(line + strings.Repeat(field, 64) + "\r\n")
	if err != nil || len(h.fields) != 64 {
		t.Fatalf("64 fields: %v", err)
	}
	if _, n := h.get("a"); n != 64 {
		t.Errorf("%d fields of 64", n)
	}
	if _, err := parseHead(line + strings.Repeat(field, 65) + "\r\n"); err != errHeadFields {
		t.Errorf("65 fields: %v, want %v", err, errHeadFields)
	}
	if _, err := parseHead(line + strings.Repeat("A:\r\n", 2000) + "\r\n"); err != errHeadFields {
		t.Errorf("2000 fields: %v, want %v", err, errHeadFields)
	}
}

func TestHead_MaxHeaderBytes(t *testing.T) {
	sized := func(n int) string {
		const start, end = "GET / HTTP/1.1\r\nHost: a\r\nFill: ", "\r\n\r\n"
		return start + strings.Repeat("x", n-len(start)-len(end)) + end
	}
	const most = 8 << 10
	line := func(n int) string { return "GET /" + strings.Repeat("x", n) }
	for _, c := range []struct {
		name, stream string
		size         int
		want         error
	}{
		{"exactly", sized(most), most, nil},
		{"exactly, and a frame behind it", sized(most) + maskedHello, most, nil},
		{"one less, and a frame behind it", sized(most-1) + maskedHello, most - 1, nil},
		{"one more", sized(most + 1), 0, errHeadTooLarge},
		{"three more: only the blank line is too much", sized(most + 3), 0, errHeadTooLarge},
		{"20 MB", sized(20 << 20), 0, errHeadTooLarge},
		{"request line", line(most), 0, errHeadTarget},
		{"request line that ends behind the limit", line(most) + " HTTP/1.1\r\n\r\n", 0, errHeadTarget},
		{"request line of 1 MB", line(1 << 20), 0, errHeadTarget},
	} {
		for _, piece := range []int{len(c.stream), 1000, 1} {
			s := &script{err: io.EOF}
			for rest := []byte(c.stream); len(rest) > 0; rest = rest[min(piece, len(rest)):] {
				s.pieces = append(s.pieces, rest[:min(piece, len(rest))])
				if len(s.pieces) > most+1 {
					break // nobody gets that far
				}
			}
			b := newBuffer(most)
			size, err := readHead(s, b, most)
			if size != c.size || err != c.want {
				t.Errorf("%s, in pieces of %d: %d, %v; want %d, %v", c.name, piece, size, err, c.size, c.want)
			}
			if b.len() > most {
				t.Errorf("%s: %d bytes were read", c.name, b.len())
			}
			b.free()
		}
	}
}

// A peer that sends its head byte by byte costs no more than the bytes: looking
// at a head of 1 MiB from its start each time would take a minute.
func TestHead_LinearTime(t *testing.T) {
	const size = 1 << 20
	for name, text := range map[string]string{
		"one long field":   "GET / HTTP/1.1\r\nA: " + strings.Repeat("x", size),
		"many fields":      "GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", size/6),
		"no line end":      strings.Repeat("x", size),
		"carriage returns": "GET / HTTP/1.1\r\nA: " + strings.Repeat("\r", size),
	} {
		b := []byte(text)
		start := time.Now()
		for i := 1; i <= len(b); i++ {
			if n, err := headEnd(b[:i], i-1); n != 0 || err != nil {
				t.Fatalf("%s: %d, %v at byte %d", name, n, err, i)
			}
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: %v", name, d)
		}
	}
}

func TestHead_GetAndHasToken(t *testing.T) {
	h, err := parseHead("GET / HTTP/1.1\r\n" +
		"Connection: keep-alive\r\n" +
		"connection:, ,\tUPGRADE\t,x\r\n" +
		"Connection-X: close\r\n" +
		"Upgrade: websockets, web socket, xwebsocket\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{"keep-alive": true, "upgrade": true, "Upgrade": true, "x": true, "close": false, "keep": false} {
		if got := h.hasToken("Connection", token); got != want {
			t.Errorf("Connection lists %q: %v", token, got)
		}
	}
	if h.wantsUpgrade() {
		t.Error("a longer name was taken for websocket")
	}
	if v, n := h.get("CONNECTION"); string(v) != "keep-alive" || n != 2 {
		t.Errorf("get: %q, %d", v, n)
	}
	if v, n := h.get("Missing"); v != nil || n != 0 {
		t.Errorf("get of a missing one: %q, %d", v, n)
	}
}

// RFC 9112 §4.
func TestRFC9112_Section4_StatusLine(t *testing.T) {
	for line, want := range map[string]int{
		"HTTP/1.1 101 Switching Protocols": 101,
		"HTTP/1.1 101 ":                    101,
		"HTTP/1.1 101":                     101,
		"HTTP/1.1 404 Nicht da, M\xfcller": 404,
		"HTTP/1.1 000 x":                   0,
		"HTTP/1.0 404 x":                   404,
		"HTTP/1.2 101 x":                   101,
	} {
		var h head
		if status, err := h.parseResponse([]byte(line + "\r\nA: b\r\n\r\n")); status != want || err != nil || len(h.fields) != 1 {
			t.Errorf("%q: %d, %v", line, status, err)
		}
	}
	for _, line := range []string{
		"HTTP/2.0 101 x", "HTTP/0.9 101 x", "HTTP/1.10 101 x", "HTTP/2 101", "http/1.1 101 x", "HTTP/1.1  101 x", "HTTP/1.1 10 x", "HTTP/1.1 1011 x", "HTTP/1.1 1x1 x",
		"HTTP/1.1 +11 x", "HTTP/1.1\t101 x", "HTTP/1.1", "HTTP/1.1 ", "ICY 200 OK", "GET / HTTP/1.1", "HTTP/1.1 101\tx",
		"HTTP/1.1 101 a\rb", "HTTP/1.1 101 a\x00b",
	} {
		var h head
		if status, err := h.parseResponse([]byte(line + "\r\n\r\n")); err != errHeadLine {
			t.Errorf("%q: %d, %v", line, status, err)
		}
	}
}
