package peerws

import (
	"bufio"
	"bytes"
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

// The lines of an opening request, by hand. Key and accept are those of RFC
// 6455 §1.3.
const (
	getLine     = "GET /chat HTTP/1.1\r\n"
	hostLine    = "Host: 127.0.0.1:9000\r\n"
	upgradeLine = "Upgrade: websocket\r\n"
	connLine    = "Connection: Upgrade\r\n"
	keyLine     = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	versionLine = "Sec-WebSocket-Version: 13\r\n"

	upgradeHead  = getLine + hostLine + upgradeLine + connLine + keyLine + versionLine
	upgrade      = upgradeHead + "\r\n"
	sampleAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
	switching    = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + sampleAccept + "\r\n"
)

// judge does what the handshake does with a head that has been read.
func judge(s string, protocols ...string) (*head, opening, *refusal) {
	h, r := parseHead(s)
	if r != nil {
		return h, opening{}, r
	}
	if !h.wantsUpgrade() {
		return h, opening{}, errNoUpgrade
	}
	o, r := checkRequest(h, &policy{}, protocols)
	return h, o, r
}

// chosen returns the subprotocol, "" if there is none.
func chosen(o opening, protocols []string) string {
	if o.protocol == 0 {
		return ""
	}
	return protocols[o.protocol-1]
}

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

// wantSentence asks for exactly one plain sentence.
func wantSentence(t testing.TB, s string) {
	t.Helper()
	line, ok := strings.CutSuffix(s, "\n")
	if !ok || !strings.HasSuffix(line, ".") || strings.Contains(line, "\n") || strings.Contains(line, ". ") || line[0] < 'A' || line[0] > 'Z' {
		t.Errorf("no plain sentence: %q", s)
	}
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

// swap returns the good request with one line replaced by others.
func swap(line, by string) string {
	if !strings.Contains(upgradeHead, line) {
		panic("no such line: " + line)
	}
	return strings.Replace(upgradeHead, line, by, 1) + "\r\n"
}

// add returns the good request with more lines.
func add(lines string) string { return upgradeHead + lines + "\r\n" }

// badRequests are upgrades that break RFC 6455 §4.2.1 or what it builds on.
var badRequests = []struct {
	name, head string
	want       *refusal
}{
	{"method POST", swap(getLine, "POST /chat HTTP/1.1\r\n"), errMethod},
	{"method HEAD", swap(getLine, "HEAD /chat HTTP/1.1\r\n"), errMethod},
	{"method in lower case", swap(getLine, "get /chat HTTP/1.1\r\n"), errMethod},
	{"method CONNECT", swap(getLine, "CONNECT 127.0.0.1:9000 HTTP/1.1\r\n"), errMethod},
	{"HTTP/1.0", swap(getLine, "GET /chat HTTP/1.0\r\n"), errHTTPVersion},
	{"HTTP/0.9", swap(getLine, "GET /chat HTTP/0.9\r\n"), errHTTPVersion},
	{"HTTP/2.0", swap(getLine, "GET /chat HTTP/2.0\r\n"), errHTTPVersion},

	{"absolute target of another scheme", swap(getLine, "GET ftp://127.0.0.1:9000/chat HTTP/1.1\r\n"), errTarget},
	{"absolute target without authority", swap(getLine, "GET http:///chat HTTP/1.1\r\n"), errHost},
	{"absolute target with a user", swap(getLine, "GET http://a@127.0.0.1:9000/chat HTTP/1.1\r\n"), errHost},
	{"absolute target with a fragment", swap(getLine, "GET http://127.0.0.1:9000/chat#a HTTP/1.1\r\n"), errTarget},
	{"absolute target with a port that cannot be", swap(getLine, "GET http://127.0.0.1:90000/chat HTTP/1.1\r\n"), errHost},
	{"absolute target, no Host", strings.Replace(swap(getLine, "GET http://127.0.0.1:9000/chat HTTP/1.1\r\n"), hostLine, "", 1), errHost},
	{"absolute target of another Origin", strings.Replace(add("Origin: http://127.0.0.1:9000\r\n"), getLine, "GET http://a.example/chat HTTP/1.1\r\n", 1), errOrigin},
	{"asterisk target", swap(getLine, "GET * HTTP/1.1\r\n"), errTarget},
	{"target without a slash", swap(getLine, "GET chat HTTP/1.1\r\n"), errTarget},
	{"target that is a query", swap(getLine, "GET ?a HTTP/1.1\r\n"), errTarget},
	{"target with a fragment", swap(getLine, "GET /chat#here HTTP/1.1\r\n"), errTarget},

	{"no Host", swap(hostLine, ""), errHost},
	{"two Hosts", swap(hostLine, hostLine+"host: evil.example\r\n"), errHost},
	{"two Hosts that agree", swap(hostLine, hostLine+hostLine), errHost},
	{"empty Host", swap(hostLine, "Host:\r\n"), errHost},
	{"Host with a path", swap(hostLine, "Host: a/b\r\n"), errHost},
	{"Host with a user", swap(hostLine, "Host: u@a\r\n"), errHost},
	{"Host with a space", swap(hostLine, "Host: a b\r\n"), errHost},
	{"Host list", swap(hostLine, "Host: a, b\r\n"), errHost},
	{"Host with a bad port", swap(hostLine, "Host: a:http\r\n"), errHost},
	{"Host with port 70000", swap(hostLine, "Host: a:70000\r\n"), errHost},
	{"Host with a bare IPv6 address", swap(hostLine, "Host: ::1\r\n"), errHost},
	{"Host with an open bracket", swap(hostLine, "Host: [::1\r\n"), errHost},
	{"Host in obs-text", swap(hostLine, "Host: m\xfcller\r\n"), errHost},
	{"Host with a scheme", swap(hostLine, "Host: http://a\r\n"), errHost},

	{"no Connection", swap(connLine, ""), errConnection},
	{"Connection: keep-alive", swap(connLine, "Connection: keep-alive\r\n"), errConnection},
	{"Connection: upgrades", swap(connLine, "Connection: upgrades\r\n"), errConnection},
	{"Connection: close", swap(connLine, "Connection: close\r\n"), errConnection},

	{"no version", swap(versionLine, ""), errVersion},
	{"version 8", swap(versionLine, "Sec-WebSocket-Version: 8\r\n"), errVersion},
	{"version 0", swap(versionLine, "Sec-WebSocket-Version: 0\r\n"), errVersion},
	{"version 013", swap(versionLine, "Sec-WebSocket-Version: 013\r\n"), errVersion},
	{"version 13.0", swap(versionLine, "Sec-WebSocket-Version: 13.0\r\n"), errVersion},
	{"version list", swap(versionLine, "Sec-WebSocket-Version: 13, 8\r\n"), errVersion},
	{"empty version", swap(versionLine, "Sec-WebSocket-Version:\r\n"), errVersion},
	{"version twice", add(versionLine), errVersionTwice},
	{"versions 13 and 8", add("Sec-WebSocket-Version: 8\r\n"), errVersionTwice},

	{"no key", swap(keyLine, ""), errKey},
	{"key twice", add(keyLine), errKey},
	{"empty key", swap(keyLine, "Sec-WebSocket-Key:\r\n"), errKey},
	{"key of 15 bytes", swap(keyLine, "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1\r\n"), errKey},
	{"key of 17 bytes", swap(keyLine, "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Njc=\r\n"), errKey},
	{"key of 18 bytes", swap(keyLine, "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Njc4\r\n"), errKey},
	{"key of 24 letters that are no base64", swap(keyLine, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ!=\r\n"), errKey},
	{"key in the URL alphabet", swap(keyLine, "Sec-WebSocket-Key: _-hlIHNhbXBsZSBub25jZQ==\r\n"), errKey},
	{"key without padding", swap(keyLine, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n"), errKey},
	{"key with a space", swap(keyLine, "Sec-WebSocket-Key: dGhlIHNhbXBsZS Bub25jZQ==\r\n"), errKey},
	{"key of equal signs", swap(keyLine, "Sec-WebSocket-Key: ========================\r\n"), errKey},
	{"key of 8 KB", swap(keyLine, "Sec-WebSocket-Key: "+strings.Repeat("A", 7800)+"\r\n"), errKey},

	{"Content-Length 5", add("Content-Length: 5\r\n"), errBody},
	{"Content-Length 0 and 5", add("Content-Length: 0\r\nContent-Length: 5\r\n"), errBody},
	{"Content-Length 0 twice", add("Content-Length: 0\r\nContent-Length: 0\r\n"), errBody},
	{"Content-Length +0", add("Content-Length: +0\r\n"), errBody},
	{"Content-Length empty", add("Content-Length:\r\n"), errBody},
	{"Content-Length list", add("Content-Length: 0, 5\r\n"), errBody},
	{"chunked", add("Transfer-Encoding: chunked\r\n"), errBody},
	{"Transfer-Encoding identity", add("Transfer-Encoding: identity\r\n"), errBody},

	{"two Origins", add("Origin: http://127.0.0.1:9000\r\nOrigin: http://127.0.0.1:9000\r\n"), errOrigins},
	{"foreign Origin", add("Origin: https://evil.example\r\n"), errOrigin},
	{"null Origin", add("Origin: null\r\n"), errOrigin},
	{"empty Origin", add("Origin:\r\n"), errOrigin},
	{"Origin with a path", add("Origin: http://127.0.0.1:9000/\r\n"), errOrigin},
	{"DNS rebinding", strings.Replace(add("Origin: http://evil.example:9000\r\n"), hostLine, "Host: evil.example:9000\r\n", 1), errOriginHost},

	{"empty protocol", add("Sec-WebSocket-Protocol:\r\n"), errProtocols},
	{"protocol list of nothing", add("Sec-WebSocket-Protocol: , ,\r\n"), errProtocols},
	{"protocol with a space", add("Sec-WebSocket-Protocol: chat room\r\n"), errProtocols},
	{"protocol in quotes", add("Sec-WebSocket-Protocol: \"chat\"\r\n"), errProtocols},
	{"protocol with a parameter", add("Sec-WebSocket-Protocol: chat;v=1\r\n"), errProtocols},
	{"protocol in obs-text", add("Sec-WebSocket-Protocol: ch\xe4t\r\n"), errProtocols},
	{"protocol twice in a list", add("Sec-WebSocket-Protocol: chat, chat\r\n"), errProtocols},
	{"protocol twice in two lines", add("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: superchat, chat\r\n"), errProtocols},
	{"7,000 commas", add("Sec-WebSocket-Protocol: " + strings.Repeat(",", 7000) + "\r\n"), errProtocols},
	{"7,000 spaces", add("Sec-WebSocket-Protocol: chat" + strings.Repeat(" ", 7000) + "x\r\n"), errProtocols},
	{"only other protocols", add("Sec-WebSocket-Protocol: Chat, CHAT, cha, chats\r\n"), errNoProtocol},
}

func TestSection4_2_1_BadRequests(t *testing.T) {
	for _, c := range badRequests {
		if _, _, r := judge(c.head, "chat"); r != c.want {
			t.Errorf("%s: %v, want %v", c.name, r, c.want)
		}
	}
}

// goodRequests must work, for a listener that speaks chat and superchat.
var goodRequests = []struct{ name, head, protocol string }{
	{"of §1.3", strings.Replace(sampleHead, "Origin: http://example.com\r\n", "", 1), "chat"},
	{"smallest", upgrade, ""},
	{"no optional spaces", "GET / HTTP/1.1\r\nHost:a\r\nUpgrade:websocket\r\nConnection:Upgrade\r\nSec-WebSocket-Key:dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version:13\r\n\r\n", ""},
	{"any case", "GET / HTTP/1.1\r\nhOST: A\r\nUPGRADE: WebSocket\r\nconnection: UPGRADE\r\nsec-websocket-key:\tdGhlIHNhbXBsZSBub25jZQ==\t\r\nSEC-WEBSOCKET-VERSION: 13 \r\nsec-websocket-protocol: superchat\r\n\r\n", "superchat"},
	{"Firefox's Connection", swap(connLine, "Connection: keep-alive, Upgrade\r\n"), ""},
	{"Connection in two lines", swap(connLine, "Connection: keep-alive\r\nConnection: Upgrade\r\n"), ""},
	{"Connection list with holes", swap(connLine, "Connection: ,, upgrade ,\tkeep-alive,\r\n"), ""},
	{"Connection list with nonsense", swap(connLine, "Connection: @@;, Upgrade, \"a,b\r\n"), ""},
	{"Upgrade list", swap(upgradeLine, "Upgrade: websocket, h2c\r\n"), ""},
	{"Upgrade list, ours last", swap(upgradeLine, "Upgrade: TLS/1.0, h2c , WebSocket\r\n"), ""},
	{"Upgrade in two lines", swap(upgradeLine, "Upgrade: h2c\r\nUpgrade: websocket\r\n"), ""},
	{"Upgrade in two lines that agree", swap(upgradeLine, upgradeLine+upgradeLine), ""},
	{"Content-Length 0", add("Content-Length: 0\r\n"), ""},
	{"obs-text in a field", add("X-Name: M\xfcller\r\n"), ""},
	{"empty field", add("X-Empty:\r\n"), ""},
	{"query", swap(getLine, "GET /?a=b&c=%20%zz HTTP/1.1\r\n"), ""},
	{"escapes", swap(getLine, "GET /%E2%82%AC%2f HTTP/1.1\r\n"), ""},
	{"two slashes", swap(getLine, "GET //a//b HTTP/1.1\r\n"), ""},
	{"Host without a port", swap(hostLine, "Host: a.example\r\n"), ""},
	{"Host with an empty port", swap(hostLine, "Host: a.example:\r\n"), ""},
	{"Host IPv6", swap(hostLine, "Host: [2001:db8::1]:9000\r\n"), ""},
	{"own Origin", add("Origin: http://127.0.0.1:9000\r\n"), ""},

	{"protocol", add("Sec-WebSocket-Protocol: chat\r\n"), "chat"},
	{"listener's order decides", add("Sec-WebSocket-Protocol: superchat, chat\r\n"), "chat"},
	{"over two lines too", add("Sec-WebSocket-Protocol: superchat\r\nSec-WebSocket-Protocol: other , chat\r\n"), "chat"},
	{"one of many", add("Sec-WebSocket-Protocol: Chat,CHAT,superchat,cha\r\n"), "superchat"},
	{"one of a thousand", add("Sec-WebSocket-Protocol: x" + manyProtocols(1000) + ",superchat\r\n"), "superchat"},

	{"extension", add("Sec-WebSocket-Extensions: permessage-deflate\r\n"), ""},
	{"extension with parameters", add("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=7; server_no_context_takeover, x; y=\"z\"\r\n"), ""},
	{"extension, malformed", add("Sec-WebSocket-Extensions: ;;=\"\\,, permessage-deflate; client_max_window_bits=\r\n"), ""},
	{"extension, empty", add("Sec-WebSocket-Extensions:\r\n"), ""},
	{"60 extensions", add(strings.Repeat("Sec-WebSocket-Extensions: a\r\n", 55)), ""},
}

// manyProtocols lists n different tokens.
func manyProtocols(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ",p%d", i)
	}
	return b.String()
}

func TestSection4_2_2_Answer(t *testing.T) {
	for _, c := range goodRequests {
		_, o, r := judge(c.head, "chat", "superchat")
		if r != nil {
			t.Errorf("%s: %v", c.name, r)
			continue
		}
		if got := chosen(o, []string{"chat", "superchat"}); got != c.protocol {
			t.Errorf("%s: protocol %q, want %q", c.name, got, c.protocol)
		}
		want := switching
		if c.protocol != "" {
			want += "Sec-WebSocket-Protocol: " + c.protocol + "\r\n"
		}
		for lines, header := range map[string]http.Header{"": nil, "X-Peer: one\r\nX-Peer: two\r\n": {"X-Peer": {"one", "two"}}} {
			l, err := (&ListenConfig{ResponseHeader: header}).prepare(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := o.appendAnswer(nil, l.header, c.protocol); string(got) != want+lines+"\r\n" {
				t.Errorf("%s: %q", c.name, got)
			}
		}
	}
}

func TestSection4_2_2_Subprotocols(t *testing.T) {
	for _, c := range []struct{ ours, offered, want string }{
		{"", "", ""},
		{"", "a, b", ""}, // a listener without protocols speaks any
		{"a", "", ""},
		{"a", "a", "a"},
		{"a b c", "c, b", "b"},
		{"a b c", "b, c, a", "a"},
		{"a b c", "x, y, c", "c"},
		{"a", "A", "refused"},
		{"A", "a", "refused"},
		{"a", "aa", "refused"},
		{"aa", "a", "refused"},
		{"v1.a", "v1.b, v1.a", "v1.a"},
		{"a", "b, c", "refused"},
		{"a b", "c,,b", "b"}, // empty elements, RFC 9110 §5.6.1.2
		{"a b", ", ,\tb,", "b"},
		{"a", ",b,", "refused"},
	} {
		lines := ""
		if c.offered != "" {
			lines = "Sec-WebSocket-Protocol: " + c.offered + "\r\n"
		}
		_, o, r := judge(add(lines), strings.Fields(c.ours)...)
		got := chosen(o, strings.Fields(c.ours))
		if r == errNoProtocol {
			got = "refused"
		} else if r != nil {
			got = r.text
		}
		if got != c.want {
			t.Errorf("ours %q, offered %q: %q, want %q", c.ours, c.offered, got, c.want)
		}
	}
}

// Requests of advisories: they must cost no more than their bytes.
func TestSubprotocols_Fast(t *testing.T) {
	for name, list := range map[string]string{
		"commas":      strings.Repeat(",", 16_000),
		"spaces":      strings.Repeat(" ", 16_000) + "x y",
		"two letters": "a" + strings.Repeat(",b", 16_000),
		"all new":     "a" + manyProtocols(16_000),
	} {
		var h head
		h.fields = append(h.store[:0], field{[]byte("Sec-WebSocket-Protocol"), []byte(list)})
		start := time.Now()
		chooseProtocol(&h, []string{"a", "b", "c"})
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: %v", name, d)
		}
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

func TestRefusal_Rendering(t *testing.T) {
	const end = "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: "
	for r, want := range map[*refusal]string{
		errFull:    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n" + end + "46\r\n\r\nThis peer has no room for another connection.\n",
		errMethod:  "HTTP/1.1 405 Method Not Allowed\r\nConnection: close\r\nAllow: GET\r\n" + end + "32\r\n\r\nA WebSocket is opened with GET.\n",
		errVersion: "HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n" + end + "39\r\n\r\nThis port speaks WebSocket version 13.\n",
	} {
		if got := r.response(); string(got) != want {
			t.Errorf("%q", got)
		}
	}
	for _, c := range badRequests {
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.want.response())), nil)
		if err != nil || r.StatusCode != c.want.status {
			t.Errorf("%v: %v", c.want, err)
		}
	}
}
