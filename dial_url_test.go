package peerws

import "testing"

// The URL rules of the WHATWG standard.
func TestDial_URL(t *testing.T) {
	for _, c := range []struct{ raw, url, addr string }{
		{"ws://a", "ws://a/", "a:80"},
		{"ws://a/", "ws://a/", "a:80"},
		{"wss://a/", "wss://a/", "a:443"},
		{"http://a/", "ws://a/", "a:80"},
		{"https://a/", "wss://a/", "a:443"},
		{"WS://A.Example/Path?Q=R", "ws://a.example/Path?Q=R", "a.example:80"},
		{"HtTpS://A:444", "wss://a:444/", "a:444"},
		{"ws://a:80/", "ws://a/", "a:80"},
		{"ws://a:443/", "ws://a:443/", "a:443"},
		{"wss://a:443/", "wss://a/", "a:443"},
		{"wss://a:80/", "wss://a:80/", "a:80"},
		{"ws://a:/", "ws://a/", "a:80"},
		{"ws://a:09000/", "ws://a:9000/", "a:9000"},
		{"ws://a:0080/", "ws://a/", "a:80"},
		{"ws://127.0.0.1:9000/x", "ws://127.0.0.1:9000/x", "127.0.0.1:9000"},
		{"ws://[::1]/", "ws://[::1]/", "[::1]:80"},
		{"ws://[::1]:80", "ws://[::1]/", "[::1]:80"},
		{"ws://[2001:DB8:0::1]:9000/", "ws://[2001:db8::1]:9000/", "[2001:db8::1]:9000"},
		{"ws://[fe80::1%25Eth0]:9000/", "ws://[fe80::1]:9000/", "[fe80::1%Eth0]:9000"},
		{"ws://a/b/../c/./d", "ws://a/c/d", "a:80"},
		{"ws://a/../..", "ws://a/", "a:80"},
		{"ws://a//b//", "ws://a//b//", "a:80"},
		{"ws://a/b c", "ws://a/b%20c", "a:80"},
		{"ws://a/é", "ws://a/%C3%A9", "a:80"},
		{"ws://a/%2F%7e", "ws://a/%2F%7e", "a:80"},
		{"ws://a/%zz", "ws://a/%zz", "a:80"}, // a % that is no escape stays
		{"ws://a/100%", "ws://a/100%", "a:80"},
		{"ws://a/%/%2/%25/%%20?%", "ws://a/%/%2/%25/%%20?%", "a:80"},
		{"ws://a/~x%x/b c/../~xx%", "ws://a/~x%x/~xx%", "a:80"},
		{"ws://a/%2F%zz/é", "ws://a/%2F%zz/%C3%A9", "a:80"},
		{"ws://a/%2F/é|{ }", "ws://a/%2F/%C3%A9%7C%7B%20%7D", "a:80"},
		{"ws://a?%/", "ws://a/?%/", "a:80"},
		{"ws://a/?", "ws://a/?", "a:80"},
		{"ws://a?b", "ws://a/?b", "a:80"},
		{"ws://a/?b c", "ws://a/?b%20c", "a:80"},
		{"ws://a/?é\"<'>", "ws://a/?%C3%A9%22%3C%27%3E", "a:80"},
		{"ws://a/?100%&b=%zz?/;", "ws://a/?100%&b=%zz?/;", "a:80"},
		{"ws://user:pass@a:9000/x", "ws://a:9000/x", "a:9000"},
		{"ws://a_b.example/", "ws://a_b.example/", "a_b.example:80"},
	} {
		ws, a, err := new(Dialer).prepare(c.raw, nil)
		if err != nil {
			t.Errorf("%q: %v", c.raw, err)
			continue
		}
		if ws.URL() != c.url || a.addr != c.addr || ws.ReadyState() != Connecting {
			t.Errorf("%q: %q at %q, want %q at %q", c.raw, ws.URL(), a.addr, c.url, c.addr)
		}
	}
	for _, raw := range []string{
		"", "a", "a:80", "/chat", "//a/", "ws:", "ws:a", "ws:/a", "ws://", "ws:///chat", "ws://:80/", "ws://?a", "ftp://a/", "file:///a", "wss+x://a/", "javascript:alert(1)",
		"ws://a/#", "ws://a/#b", "ws://a#", "ws://a/?b#c", "#",
		"ws://a:0/", "ws://a:65536/", "ws://a:-1/", "ws://a:http/", "ws://a:80:80/", "ws://::1/", "ws://[::1/", "ws://[::1]80/", "ws://[]/", "ws://[a]/", "ws://[127.0.0.1]/",
		"ws://a b/", "ws://müller.example/", "ws://a%20b/", "ws://%zz/", "ws://a/\r\nX-Evil: b", "ws://a\r\nX-Evil: b/", "ws://a/\x00", "ws://a/?\x7f", " ws://a/", "ws://a\\b/",
	} {
		_, err := Dial(t.Context(), raw)
		wantSyntaxError(t, err, "URL", raw)
		_, err = NewWebSocket(raw)
		wantSyntaxError(t, err, "URL", raw)
	}
}
