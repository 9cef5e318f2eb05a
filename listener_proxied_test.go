package peerws

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
)

func TestTrustedProxies(t *testing.T) {
	const v1 = "PROXY TCP4 203.0.113.9 192.0.2.1 5555 80\r\n"
	v2 := func(command, family byte, more string) string {
		return string(proxyV2) + string([]byte{0x20 | command, family, 0, byte(len(more))}) + more
	}
	four := "\xcb\x00\x71\x09\xc0\x00\x02\x01\x15\xb3\x00\x50"
	with := func(lines string) string { return upgradeHead + lines + "\r\n" }
	for name, c := range map[string]struct {
		from  string
		parts []string
		want  string
	}{
		"nothing said":           {"10.0.0.1", []string{upgrade}, "10.0.0.1"},
		"version 1":              {"10.0.0.1", []string{v1, upgrade}, "203.0.113.9:5555"},
		"version 1, IPv6":        {"10.0.0.1", []string{"PROXY TCP6 2001:db8::9 ::1 5555 80\r\n", upgrade}, "[2001:db8::9]:5555"},
		"version 1, unknown":     {"10.0.0.1", []string{"PROXY UNKNOWN\r\n", upgrade}, "10.0.0.1"},
		"version 1, in pieces":   {"10.0.0.1", []string{"PRO", "XY TCP4 203.0.113.9 192.0.2.1 55", "55 80\r", "\n" + upgrade}, "203.0.113.9:5555"},
		"version 2":              {"10.0.0.1", []string{v2(1, 0x11, four), upgrade}, "203.0.113.9:5555"},
		"version 2, more fields": {"10.0.0.1", []string{v2(1, 0x11, four+strings.Repeat("\x04\x00\x00", 60)), upgrade}, "203.0.113.9:5555"},
		"version 2, IPv6":        {"10.0.0.1", []string{v2(1, 0x21, "\x20\x01\x0d\xb8"+strings.Repeat("\x00", 11)+"\x09"+strings.Repeat("\x00", 16)+"\x15\xb3\x00\x50"), upgrade}, "[2001:db8::9]:5555"},
		"version 2, local":       {"10.0.0.1", []string{v2(0, 0, ""), upgrade}, "10.0.0.1"},
		"version 2, in pieces":   {"10.0.0.1", []string{v2(1, 0x11, four)[:13], v2(1, 0x11, four)[13:20], v2(1, 0x11, four)[20:] + upgrade}, "203.0.113.9:5555"},
		"X-Forwarded-For":        {"10.0.0.1", []string{with("X-Forwarded-For: 203.0.113.9\r\n")}, "203.0.113.9:0"},
		"the last hop counts":    {"10.0.0.1", []string{with("X-Forwarded-For: 1.1.1.1, 203.0.113.9\r\n")}, "203.0.113.9:0"},
		"two proxies":            {"10.0.0.1", []string{with("X-Forwarded-For: 1.1.1.1, 203.0.113.9:77\r\nX-Forwarded-For: 10.0.0.2\r\n")}, "203.0.113.9:77"},
		"Forwarded":              {"10.0.0.1", []string{with("X-Forwarded-For: 1.1.1.1\r\nForwarded: for=2.2.2.2, proto=http;For=\"[2001:db8::9]:77\";by=10.0.0.1\r\n")}, "[2001:db8::9]:77"},
		"a hop without address":  {"10.0.0.1", []string{with("Forwarded: for=2.2.2.2, for=_hidden\r\n")}, "10.0.0.1"},
		"both":                   {"10.0.0.1", []string{"PROXY TCP4 10.0.0.2 192.0.2.1 5555 80\r\n", with("X-Forwarded-For: 203.0.113.9\r\n")}, "203.0.113.9:0"},
		"no proxy of ours":       {"10.0.1.1", []string{with("X-Forwarded-For: 203.0.113.9\r\n")}, "10.0.1.1"},
		"a stranger's line":      {"10.0.0.1", []string{v1, with("X-Forwarded-For: 1.1.1.1\r\n")}, "203.0.113.9:5555"},
		"IPv6 proxy":             {"2001:db8:1::1", []string{v1, upgrade}, "203.0.113.9:5555"},
	} {
		t.Run(name, func(t *testing.T) {
			conf := ListenConfig{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}}
			from(t, conf, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
				k := dial(c.from)
				for _, p := range c.parts {
					k.send(p)
					synctest.Wait()
				}
				k.wantOpen()
				s, err := l.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				got := s.RemoteAddr().String()
				if !strings.Contains(c.want, "]:") && strings.Count(c.want, ":") == 0 { // the transport's port is the test's
					got, _, _ = strings.Cut(got, ":")
				}
				if got != c.want || s.Request().RemoteAddr != s.RemoteAddr().String() {
					t.Errorf("%s, %s, want %s", got, s.Request().RemoteAddr, c.want)
				}
			})
		})
	}
}

func TestTrustedProxies_Malformed(t *testing.T) {
	conf := ListenConfig{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}
	from(t, conf, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		for _, s := range []string{
			"PROXY \r\n", "PROXY TCP4 203.0.113.9 1.1.1.1 5555\r\n", "PROXY TCP4 2001:db8::9 ::1 1 2\r\n", "PROXY TCP4 203.0.113.9 1.1.1.1 70000 80\r\n",
			"PROXY " + strings.Repeat("x", 110), "PROXY UDP4 203.0.113.9 1.1.1.1 5555 80\r\n",
			string(proxyV2) + "\x31\x11\x00\x00", string(proxyV2) + "\x21\x11\x00\x04abcd", string(proxyV2) + "\x21\x21\x00\x0cabcdabcdabcd",
			string(proxyV2) + "\x21\x11\xff\xff",
		} {
			k := dial("10.0.0.1", s)
			k.wantRefusal(400)
			k.conn.Close()
		}
		// From anybody else it is no request, and would not be believed.
		dial("10.0.0.2", "PROXY TCP4 203.0.113.9 1.1.1.1 5555 80\r\n", upgrade).wantRefusal(400)
	})
}

// The limits of an address are the peer's, not the proxy's.
func TestTrustedProxies_Limits(t *testing.T) {
	conf := ListenConfig{MaxConnectionsPerIP: 2, OnConnection: echoing, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}
	from(t, conf, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		ann, bob := upgradeHead+"X-Forwarded-For: 203.0.113.1\r\n\r\n", "PROXY TCP4 203.0.113.2 192.0.2.1 5555 80\r\n"+upgrade
		var open []*knocker
		for range 2 {
			for _, who := range []string{ann, bob} {
				k := dial("10.0.0.1", who)
				k.wantOpen()
				open = append(open, k)
			}
		}
		for _, who := range []string{ann, bob} {
			_, body := dial("10.0.0.1", who).wantRefusal(503)
			if body != errCrowd.text+"\n" {
				t.Errorf("%q", body)
			}
		}
		for range 5 {
			dial("10.0.0.1", upgrade).wantOpen() // the proxy has no limit
		}
		open[0].conn.Close()
		open[1].conn.Close()
		synctest.Wait()
		dial("10.0.0.1", ann).wantOpen()
		dial("10.0.0.1", bob).wantOpen()
	})
}

// An upgrade on a kept-alive connection of HTTP, through a proxy.
func TestTrustedProxies_HTTP(t *testing.T) {
	seen := make(chan string, 2)
	conf := ListenConfig{
		MaxConnectionsPerIP: 1,
		TrustedProxies:      []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
		HTTP:                http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.RemoteAddr }),
	}
	from(t, conf, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		for i, c := range []struct{ proxy, lines, page, socket string }{
			{"", "X-Forwarded-For: 203.0.113.1\r\n", "10.0.0.1", "203.0.113.1:0"},
			{"PROXY TCP4 203.0.113.2 192.0.2.1 5555 80\r\n", "", "203.0.113.2:5555", "203.0.113.2:5555"},
		} {
			k := dial("10.0.0.1", c.proxy, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
			k.answer("GET")
			if got := <-seen; !strings.HasPrefix(got, c.page) {
				t.Errorf("%d: the page is for %s, want %s", i, got, c.page)
			}
			k.send(upgradeHead, c.lines, "\r\n")
			k.wantOpen()
			s, err := l.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := s.RemoteAddr().String(); got != c.socket {
				t.Errorf("%d: %s, want %s", i, got, c.socket)
			}
		}
		k := dial("10.0.0.1", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		k.answer("GET")
		<-seen
		k.send(upgradeHead, "X-Forwarded-For: 203.0.113.1\r\n\r\n")
		k.wantRefusal(503)
	})
}
