package peerws

import (
	"errors"
	"testing"
)

// RFC 6455 §10.2, and what DNS rebinding makes of it.
func TestSection10_2_Origin(t *testing.T) {
	for _, c := range []struct {
		origins, hosts []string
		origin, host   string
		want           bool
	}{
		// The page comes from the very address it connects to.
		{nil, nil, "http://192.168.1.5:9000", "192.168.1.5:9000", true},
		{nil, nil, "http://203.0.113.7:9000", "203.0.113.7:9000", true},
		{nil, nil, "http://127.0.0.1:9000", "127.0.0.1:9000", true},
		{nil, nil, "http://localhost:9000", "localhost:9000", true},
		{nil, nil, "http://LOCALHOST:9000", "LocalHost:9000", true},
		{nil, nil, "http://[::1]:9000", "[::1]:9000", true},
		{nil, nil, "http://[2001:db8::1]:9000", "[2001:DB8::1]:9000", true},
		{nil, nil, "http://[2001:db8::1]", "[2001:db8::1]", true},

		// Default ports may be written or not.
		{nil, nil, "http://127.0.0.1", "127.0.0.1", true},
		{nil, nil, "http://127.0.0.1", "127.0.0.1:80", true},
		{nil, nil, "http://127.0.0.1:80", "127.0.0.1", true},
		{nil, nil, "https://127.0.0.1", "127.0.0.1", true},
		{nil, nil, "https://127.0.0.1", "127.0.0.1:443", true},
		{nil, nil, "https://127.0.0.1:443", "127.0.0.1", true},
		{nil, nil, "https://[::1]", "[::1]:443", true},
		{nil, nil, "http://127.0.0.1", "127.0.0.1:443", false},
		{nil, nil, "https://127.0.0.1", "127.0.0.1:80", false},

		// Another port of the same machine is another program.
		{nil, nil, "http://192.168.1.5", "192.168.1.5:9000", false},
		{nil, nil, "http://192.168.1.5:9001", "192.168.1.5:9000", false},
		{nil, nil, "http://192.168.1.5:90", "192.168.1.5:9000", false},
		{nil, nil, "http://192.168.1.5:90000", "192.168.1.5:90000", false},
		{nil, nil, "http://localhost:9000", "127.0.0.1:9000", false},
		{nil, nil, "http://[::1]:9000", "127.0.0.1:9000", false},

		// DNS rebinding: the names agree, and the name is not ours.
		{nil, nil, "http://evil.example", "evil.example", false},
		{nil, nil, "http://evil.example:9000", "evil.example:9000", false},
		{nil, nil, "http://localhost.evil.example:9000", "localhost.evil.example:9000", false},
		{nil, nil, "http://127.0.0.1.evil.example:9000", "127.0.0.1.evil.example:9000", false},
		{nil, nil, "http://127.0.0.1.nip.io:9000", "127.0.0.1.nip.io:9000", false},
		{nil, nil, "http://2130706433:9000", "2130706433:9000", false},
		{nil, nil, "http://127.1:9000", "127.1:9000", false},
		{nil, nil, "http://0x7f.0.0.1:9000", "0x7f.0.0.1:9000", false},
		{nil, nil, "http://home:9000", "home:9000", false},
		{nil, nil, "http://localhost.:9000", "localhost.:9000", false},

		// AllowedHosts: names, whatever the port, and nothing that only looks like one.
		{nil, []string{"home.example"}, "http://home.example:9000", "home.example:9000", true},
		{nil, []string{"home.example"}, "https://home.example", "home.example", true},
		{nil, []string{"Home.Example"}, "http://HOME.example:9000", "home.EXAMPLE:9000", true},
		{nil, []string{"home.example"}, "http://home.example.:9000", "home.example.:9000", true},
		{nil, []string{"home.example."}, "http://home.example:9000", "home.example:9000", true},
		{nil, []string{"home.example."}, "http://home.example.:9000", "home.example.:9000", true},
		{nil, []string{"home.example"}, "http://home.example:9001", "home.example:9000", false},
		{nil, []string{"home.example"}, "http://home.example.evil:9000", "home.example.evil:9000", false},
		{nil, []string{"home.example"}, "http://evilhome.example:9000", "evilhome.example:9000", false},
		{nil, []string{"home.example"}, "http://sub.home.example:9000", "sub.home.example:9000", false},
		{nil, []string{"home.example"}, "http://evil.example:9000", "home.example:9000", false},
		{nil, []string{"home.example"}, "http://home.example:9000", "evil.example:9000", false},
		{nil, []string{"home.example"}, "ftp://home.example:9000", "home.example:9000", false},
		{nil, []string{"home.example"}, "ws://home.example:9000", "home.example:9000", true},

		// AllowedOrigins: exact, whatever Host says.
		{[]string{"https://example.com"}, nil, "https://example.com", "192.168.1.5:9000", true},
		{[]string{"https://example.com"}, nil, "https://example.com", "anything.example", true},
		{[]string{"https://Example.COM"}, nil, "https://eXample.com", "a", true},
		{[]string{"https://example.com:443"}, nil, "https://example.com", "a", true},
		{[]string{"https://example.com"}, nil, "https://example.com:443", "a", true},
		{[]string{"http://example.com:80"}, nil, "http://example.com", "a", true},
		{[]string{"http://example.com:443"}, nil, "http://example.com", "a", false},
		{[]string{"https://example.com"}, nil, "http://example.com", "a", false},
		{[]string{"https://example.com"}, nil, "https://example.com:8443", "a", false},
		{[]string{"https://example.com"}, nil, "https://example.com.evil", "a", false},
		{[]string{"https://example.com"}, nil, "https://evilexample.com", "a", false},
		{[]string{"https://example.com"}, nil, "https://sub.example.com", "a", false},
		{[]string{"https://example.com"}, nil, "https://example.co", "a", false},
		{[]string{"https://example.com"}, nil, "https://example.com@evil.example", "a", false},
		{[]string{"https://example.com"}, nil, "https://evil.example#https://example.com", "a", false},
		{[]string{"https://example.com"}, nil, "https://evil.example?https://example.com", "a", false},
		{[]string{"https://example.com"}, nil, "https://example.com/", "a", false},
		{[]string{"https://example.com"}, nil, "https://example.com https://evil.example", "a", false},
		{[]string{"https://example.com"}, nil, "xhttps://example.com", "a", false},
		{[]string{"https://a", "https://b:1", "chrome-extension://abc"}, nil, "chrome-extension://abc", "a", true},
		{[]string{"https://[2001:DB8::1]"}, nil, "https://[2001:db8::1]", "a", true},

		// Origins that are none.
		{nil, nil, "", "127.0.0.1:9000", false},
		{nil, nil, "null", "127.0.0.1:9000", false},
		{nil, nil, "file://", "127.0.0.1:9000", false},
		{nil, nil, "127.0.0.1:9000", "127.0.0.1:9000", false},
		{nil, nil, "//127.0.0.1:9000", "127.0.0.1:9000", false},
		{nil, nil, "://127.0.0.1:9000", "127.0.0.1:9000", false},
		{nil, nil, "http:127.0.0.1:9000", "127.0.0.1:9000", false},
		{nil, nil, "http://127.0.0.1:9000/page", "127.0.0.1:9000", false},
		{nil, nil, "http://127.0.0.1:9000/", "127.0.0.1:9000", false},
		{nil, nil, "http://127.0.0.1:9000, http://127.0.0.1:9000", "127.0.0.1:9000", false},
		{nil, nil, "http://user@127.0.0.1:9000", "127.0.0.1:9000", false},
		{nil, nil, "http://127.0.0.1:9000\\@evil", "127.0.0.1:9000", false},
		{nil, nil, "http://::1", "[::1]", false},
		{nil, nil, "http://m\xfcller", "m\xfcller", false},
		{[]string{"null"}, nil, "null", "a", true},
		{[]string{"null"}, nil, "NULL", "a", false},
		{[]string{"null"}, nil, "https://null", "a", false},
		{[]string{"file://"}, nil, "file://", "a", true},
		{[]string{"file://"}, nil, "file:///", "a", false},
		{[]string{"file://"}, nil, "null", "a", false},
		{[]string{"null"}, nil, "file://", "a", false},

		// Programs that send the address they dial.
		{nil, nil, "ws://127.0.0.1:9000", "127.0.0.1:9000", true},
		{nil, nil, "wss://127.0.0.1", "127.0.0.1:443", true},
		{nil, nil, "ws://127.0.0.1:80", "127.0.0.1", true},
		{nil, []string{"room.example"}, "wss://room.example:443", "room.example", true},
		{nil, nil, "ws://evil.example:9000", "evil.example:9000", false},
		{nil, nil, "ws://127.0.0.1:9001", "127.0.0.1:9000", false},
		{nil, nil, "wss://127.0.0.1", "127.0.0.1:80", false},

		// Everything.
		{[]string{"*"}, nil, "https://evil.example", "a", true},
		{[]string{"*"}, nil, "null", "a", true},
		{[]string{"https://a", "*"}, nil, "https://b", "a", true},
		{[]string{"https://a"}, nil, "*", "a", false},
	} {
		p, err := newPolicy(c.origins, c.hosts)
		if err != nil {
			t.Errorf("%q %q: %v", c.origins, c.hosts, err)
			continue
		}
		if got := p.check(c.origin, c.host) == nil; got != c.want {
			t.Errorf("origins %q, hosts %q: Origin %q to Host %q: %v", c.origins, c.hosts, c.origin, c.host, got)
		}
	}
}

func TestPolicy_Options(t *testing.T) {
	for _, o := range []string{"", "example.com", "https://", "://a", "https://a/", "https://a/b", "https://*.a", "https://a b", "https://a:0", "https://a:70000", "https://u@a", "Null", "https://[::1"} {
		_, err := ListenConfig{AllowedOrigins: []string{"https://fine.example", o}}.Listen(t.Context(), 0)
		wantSyntaxError(t, err, "allowed origin", o)
	}
	for _, h := range []string{"", "a:80", "a b", "a/b", "https://a", "*", "u@a", "::1", "[::1", "m\xfcller"} {
		_, err := ListenConfig{AllowedHosts: []string{"fine.example", h}}.Listen(t.Context(), 0)
		wantSyntaxError(t, err, "allowed host", h)
	}
}

// The name a listener is bound to is one of its names.
func TestPolicy_ListenerAddress(t *testing.T) {
	hosts := []string{"other.example"}
	c := ListenConfig{Address: "My.Example", AllowedHosts: hosts[:1:1]}
	l, err := c.prepare(nil)
	if err != nil {
		t.Fatal(err)
	}
	for origin, want := range map[string]bool{
		"http://my.example:9000":    true,
		"http://other.example:9000": true,
		"http://evil.example:9000":  false,
	} {
		if got := l.policy.check(origin, origin[len("http://"):]) == nil; got != want {
			t.Errorf("%s: %v", origin, got)
		}
	}
	for _, address := range []string{"", "127.0.0.1", "::1", "fe80::1%eth0", "localhost"} {
		c := ListenConfig{Address: address}
		if _, err := c.prepare(nil); err != nil {
			t.Errorf("Address %q: %v", address, err)
		}
	}
	c = ListenConfig{Address: "no name"}
	_, err = c.prepare(nil)
	wantSyntaxError(t, err, "address", "no name")
}

func TestSplitHost(t *testing.T) {
	for s, want := range map[string][2]string{
		"a":              {"a", ""},
		"a.example":      {"a.example", ""},
		"a:80":           {"a", "80"},
		"a:65535":        {"a", "65535"},
		"a:":             {"a", ""},
		"127.0.0.1:9000": {"127.0.0.1", "9000"},
		"[::1]":          {"::1", ""},
		"[::1]:":         {"::1", ""},
		"[::1]:80":       {"::1", "80"},
		"[fe80::1%e]:80": {"fe80::1%e", "80"},
	} {
		if host, port, ok := splitHost(s); !ok || host != want[0] || port != want[1] {
			t.Errorf("%q: %q, %q, %v", s, host, port, ok)
		}
	}
	for _, s := range []string{"", ":", ":80", "[]", "[]:80", "[::1", "::1", "::1:80", "[::1]80", "[::1]]", "[[::1]]", "]", "a]", "[a", "a:b", "a:-1", "a:+1", "a:0", "a:65536", "a:99999999999999999999", "a:80:80", "a: 80", "a:8 0", "a:0x50", "a:8_0"} {
		if host, port, ok := splitHost(s); ok {
			t.Errorf("%q: %q, %q", s, host, port)
		}
	}
}

// wantSyntaxError asks for an error that names the thing and its value.
func wantSyntaxError(t *testing.T, err error, what, value string) {
	t.Helper()
	e, ok := errors.AsType[*SyntaxError](err)
	if !ok || e.What != what || e.Value != value || e.Reason == "" {
		t.Errorf("%s %q: error %v", what, value, err)
	}
}
