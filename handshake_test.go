package peerws

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
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
func judge(s string, protocols ...string) (*head, opening, error) {
	h, err := parseHead(s)
	if err != nil {
		return h, opening{}, err
	}
	if !h.wantsUpgrade() {
		return h, opening{}, errNoUpgrade
	}
	o, err := checkRequest(h, &policy{}, protocols)
	return h, o, err
}

// chosen returns the subprotocol, "" if there is none.
func chosen(o opening, protocols []string) string {
	if o.protocol == 0 {
		return ""
	}
	return protocols[o.protocol-1]
}

// wantSentence asks for exactly one plain sentence.
func wantSentence(t testing.TB, s string) {
	t.Helper()
	line, ok := strings.CutSuffix(s, "\n")
	if !ok || !strings.HasSuffix(line, ".") || strings.Contains(line, "\n") || strings.Contains(line, ". ") || line[0] < 'A' || line[0] > 'Z' {
		t.Errorf("no plain sentence: %q", s)
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
			got = r.Error()
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

func TestRefusal_Rendering(t *testing.T) {
	const end = "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: "
	for r, want := range map[*refusal]string{
		errFull:    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n" + end + "63\r\n\r\nThis peer has no room for another connection (MaxConnections).\n",
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
