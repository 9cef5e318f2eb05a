package peerws

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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
		if got := p.check(c.origin, c.host, "") == nil; got != c.want {
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
		if got := l.policy.check(origin, origin[len("http://"):], "") == nil; got != want {
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

// A page whose Host is a name of ours need not be listed where the request shows
// that: by TLS, in which a browser has compared the name with our certificate, or
// by the host in the pattern of the program's mux.
func TestOrigin_ProvenName(t *testing.T) {
	try := func(t *testing.T, addr net.Addr, scheme, host, origin, serverName string) error {
		_, port, _ := net.SplitHostPort(addr.String())
		if port == "443" || port == "80" {
			t.Fatalf("the system has given port %s, which a page's origin does not name", port)
		}
		_, pool := testTrust()
		d := Dialer{
			Header:    http.Header{"Origin": {strings.ReplaceAll(origin, "PORT", port)}},
			TLSConfig: &tls.Config{RootCAs: pool, ServerName: serverName},
			NetDial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, addr.String())
			},
		}
		c, err := d.Dial(t.Context(), scheme+"://"+host+":"+port+"/chat")
		if err == nil {
			c.Abort()
		}
		return err
	}
	for name, serve := range map[string]func(t *testing.T, c ListenConfig) net.Addr{
		"Listen": func(t *testing.T, c ListenConfig) net.Addr {
			c.TLSConfig = serverConfig()
			return listen(t, c).Addr()
		},
		"Listen, HTTP": func(t *testing.T, c ListenConfig) net.Addr {
			c.TLSConfig, c.HTTP = serverConfig(), page
			return listen(t, c).Addr()
		},
		"Handler": func(t *testing.T, c ListenConfig) net.Addr {
			_, s := mount(t, c, func(s *httptest.Server) {
				s.TLS = serverConfig()
				s.StartTLS()
			})
			return s.Listener.Addr()
		},
	} {
		t.Run("TLS/"+name, func(t *testing.T) {
			addr := serve(t, ListenConfig{OnConnection: echoing})
			for _, host := range []string{"home.example", "HOME.example"} {
				if err := try(t, addr, "wss", host, "https://home.example:PORT", "home.example"); err != nil {
					t.Errorf("%s: %v", host, err)
				}
			}
			for _, c := range [][3]string{ // host, origin, server name
				{"evil.example", "https://evil.example:PORT", "home.example"},
				{"home.example", "https://home.example:PORT", "localhost"},
				{"home.example", "https://evil.example:PORT", "home.example"},
				{"home.example", "https://home.example", "home.example"},
				{"home.example", "http://home.example", "home.example"},
				{"evil.example", "https://evil.example:PORT", "127.0.0.1"}, // no name is sent
			} {
				if h, ok := errors.AsType[*HandshakeError](try(t, addr, "wss", c[0], c[1], c[2])); !ok || h.Status != 403 {
					t.Errorf("%q: %v", c, h)
				}
			}
		})
	}
	t.Run("ServeMux", func(t *testing.T) {
		_, h, err := ListenConfig{OnConnection: func(c *WebSocket) { c.Abort() }}.Handler()
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.Handle("GET home.example/chat", h)
		mux.Handle("/chat", h)
		s := httptest.NewServer(mux)
		defer s.Close()
		if err := try(t, s.Listener.Addr(), "ws", "home.example", "http://home.example:PORT", ""); err != nil {
			t.Error(err)
		}
		for _, c := range [][2]string{{"evil.example", "http://evil.example:PORT"}, {"home.example", "http://evil.example:PORT"}} {
			if h, ok := errors.AsType[*HandshakeError](try(t, s.Listener.Addr(), "ws", c[0], c[1], "")); !ok || h.Status != 403 {
				t.Errorf("%q: %v", c, h)
			}
		}
	})
}

func TestPatternHost(t *testing.T) {
	for pattern, want := range map[string]string{
		"": "", "/": "", "/chat": "", "a.example/": "a.example", "GET a.example/chat": "a.example", "GET /chat": "", "GET  a.example/{x...}": "a.example", "GET a.example/a b": "a.example",
	} {
		if got := patternHost(pattern); got != want {
			t.Errorf("%q: %q", pattern, got)
		}
	}
}

// The answer to a page says who was refused and which option would let it in, and
// so does the log, at Warn and once a page, of a limited number of pages.
func TestOrigin_RefusalIsClear(t *testing.T) {
	for name, mounted := range map[string]bool{"Listen": false, "Handler": true} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var logged bytes.Buffer
			config := ListenConfig{OnConnection: echoing, Logger: slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, nil))}
			var addr string
			if mounted {
				_, s := mount(t, config, func(s *httptest.Server) { s.Start() })
				addr = s.Listener.Addr().String()
			} else {
				addr = listen(t, config).Addr().String()
			}
			refused := func(host, origin string) string {
				t.Helper()
				d := Dialer{Header: http.Header{"Origin": {origin}}, NetDial: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, addr)
				}}
				_, err := d.Dial(t.Context(), "ws://"+host+"/chat")
				h, ok := errors.AsType[*HandshakeError](err)
				if !ok || h.Status != 403 {
					t.Fatalf("%v", err)
				}
				return string(h.Body)
			}
			long := strings.Repeat("x", 300)
			for _, c := range [][3]string{
				{"10.0.0.1:9000", "https://page.example", `Pages of "https://page.example" may not connect to "10.0.0.1:9000" unless AllowedOrigins lists their origin.`},
				{"room.example:9000", "http://room.example:9000", `Pages of "http://room.example:9000" may not connect to "room.example" unless AllowedHosts lists that name.`},
				{"room.example:9000", "https://" + long, `Pages of "https://` + long[:92] + `..." may not connect to "room.example:9000" unless AllowedOrigins lists their origin.`},
				{"10.0.0.1:9000", "\"\xff<script>", `Pages of "\"\xff<script>" may not connect to "10.0.0.1:9000" unless AllowedOrigins lists their origin.`},
			} {
				for range 3 {
					if got := refused(c[0], c[1]); got != c[2]+"\n" {
						t.Errorf("%q", got)
					}
				}
			}
			for i := range 2 * originsMost {
				refused("10.0.0.1", fmt.Sprintf("https://page%d.example", i))
			}
			mu.Lock()
			defer mu.Unlock()
			if n := strings.Count(logged.String(), "level=WARN"); n != originsMost {
				t.Errorf("%d records", n)
			}
			if n := strings.Count(logged.String(), "unless AllowedHosts lists that name"); n != 1 && n != 2 { // and perhaps one at Info
				t.Errorf("%d records of a page", n)
			}
		})
	}
}
