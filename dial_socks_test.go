package peerws

import (
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/peerws/peerws/internal/memnet"
)

// RFC 1928 and 1929, the bytes by hand.
func TestSOCKS_Codec(t *testing.T) {
	for _, c := range []struct {
		what      string
		got, want string
	}{
		{"greeting", string(appendSOCKSGreeting(nil, false)), "\x05\x01\x00"},
		{"greeting with login", string(appendSOCKSGreeting(nil, true)), "\x05\x02\x00\x02"},
	} {
		if c.got != c.want {
			t.Errorf("%s: % x", c.what, c.got)
		}
	}
	long := strings.Repeat("x", 255)
	for _, c := range []struct{ user, password, want string }{
		{"ann", "secret", "\x01\x03ann\x06secret"},
		{"ann", "", "\x01\x03ann\x00"},
		{long, long, "\x01\xff" + long + "\xff" + long},
		{"", "secret", ""},
		{long + "x", "", ""},
		{"ann", long + "x", ""},
	} {
		b, err := appendSOCKSLogin(nil, c.user, c.password)
		if string(b) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("login %.10s: % x, %v", c.user, b, err)
		}
	}
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{
		{"home.example", 80, "\x05\x01\x00\x03\x0chome.example\x00\x50"},
		{"192.0.2.1", 443, "\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"},
		{"2001:db8::1", 65535, "\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff"},
		{"::ffff:192.0.2.1", 1, "\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x01"},
		{long, 1, "\x05\x01\x00\x03\xff" + long + "\x00\x01"},
		{long + "x", 1, ""},
	} {
		b, err := appendSOCKSRequest(nil, c.host, c.port)
		if string(b) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("request %.20s: % x, %v", c.host, b, err)
		}
	}
	for _, c := range []struct {
		answer [2]byte
		login  bool
		method byte
		err    error
	}{
		{[2]byte{5, 0}, false, 0, nil},
		{[2]byte{5, 0}, true, 0, nil},
		{[2]byte{5, 2}, true, 2, nil},
		{[2]byte{5, 2}, false, 0, errSOCKSMethod}, // not offered
		{[2]byte{5, 1}, true, 0, errSOCKSMethod},
		{[2]byte{5, 0xFF}, true, 0, errSOCKSMethod},
		{[2]byte{4, 0}, false, 0, errSOCKSVersion},
		{[2]byte{'H', 'T'}, false, 0, errSOCKSVersion},
	} {
		if m, err := parseSOCKSMethod(c.answer, c.login); m != c.method || err != c.err {
			t.Errorf("% x: %d, %v", c.answer, m, err)
		}
	}
	for _, c := range []struct {
		reply string
		size  int
		err   string
	}{
		{"\x05\x00\x00\x01\x00", 10, ""},
		{"\x05\x00\x00\x04\x00", 22, ""},
		{"\x05\x00\x00\x03\x00", 7, ""},
		{"\x05\x00\x00\x03\xff", 262, ""},
		{"\x05\x00\x00\x02\x00", 0, "unknown kind of address"},
		{"\x04\x00\x00\x01\x00", 0, "not SOCKS version 5"},
		{"\x05\x01\x00\x01\x00", 0, "general failure (1)"},
		{"\x05\x05\x00\x01\x00", 0, "connection refused (5)"},
		{"\x05\x08\x00\x01\x00", 0, "kind of address not supported (8)"},
		{"\x05\x09\x00\x01\x00", 0, "unknown failure (9)"},
		{"\x05\xff\x00\x01\x00", 0, "unknown failure (255)"},
	} {
		n, err := socksReplySize([socksReplyHead]byte([]byte(c.reply)))
		if n != c.size || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("% x: %d, %v", c.reply, n, err)
		}
	}
}

// The conversation, cut at every byte: nothing is read too far, and a proxy that
// goes away in the middle is an error.
func TestSOCKS_Conversation(t *testing.T) {
	const bound = "\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"
	request := "\x05\x01\x00\x03\x0chome.example\x00\x50"
	for _, c := range []struct {
		name         string
		user         *url.Userinfo
		proxy, sends string // the proxy's bytes, and what it must get
		err          string
	}{
		{"no login", nil, "\x05\x00" + bound, "\x05\x01\x00" + request, ""},
		{"a name", nil, "\x05\x00\x05\x00\x00\x03\x02ab\x00\x00", "\x05\x01\x00" + request, ""},
		{"IPv6", nil, "\x05\x00\x05\x00\x00\x04" + strings.Repeat("\x00", 18), "\x05\x01\x00" + request, ""},
		{"login", url.UserPassword("ann", "pw"), "\x05\x02\x01\x00" + bound, "\x05\x02\x00\x02\x01\x03ann\x02pw" + request, ""},
		{"login not wanted", url.UserPassword("ann", "pw"), "\x05\x00" + bound, "\x05\x02\x00\x02" + request, ""},
		{"login refused", url.UserPassword("ann", "pw"), "\x05\x02\x01\x01", "\x05\x02\x00\x02\x01\x03ann\x02pw", "refused user and password"},
		{"login of another version", url.UserPassword("ann", "pw"), "\x05\x02\x05\x00", "\x05\x02\x00\x02\x01\x03ann\x02pw", "refused user and password"},
		{"no way to log in", nil, "\x05\xff", "\x05\x01\x00", "none of the ways"},
		{"an HTTP server", nil, "HTTP/1.1 400 Bad Request\r\n\r\n", "\x05\x01\x00", "not SOCKS version 5"},
		{"refused, short", nil, "\x05\x00\x05\x05", "\x05\x01\x00" + request, "connection refused (5)"},
		{"user too long", url.User(strings.Repeat("x", 256)), "", "", "longer than 255"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for cut := 0; cut <= len(c.proxy); cut++ {
				synctest.Test(t, func(t *testing.T) {
					a, b := memnet.Pipe(0)
					a.SetFaults(memnet.Faults{ShortRead: memnet.Every})
					go func() {
						io.WriteString(b, c.proxy[:cut])
						if cut == len(c.proxy) {
							io.WriteString(b, "peer")
						}
						b.CloseWrite()
					}()
					err := socksConnect(a, c.user, "home.example:80")
					a.CloseWrite()
					sent, _ := io.ReadAll(b)
					if cut < len(c.proxy) {
						if err == nil {
							t.Errorf("cut at %d: no error", cut)
						}
						if !strings.HasPrefix(c.sends, string(sent)) {
							t.Errorf("cut at %d: sent % x", cut, sent)
						}
					} else {
						if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
							t.Errorf("%v", err)
						}
						if string(sent) != c.sends {
							t.Errorf("sent % x, want % x", sent, c.sends)
						}
						if rest, _ := io.ReadAll(a); c.err == "" && string(rest) != "peer" {
							t.Errorf("the peer's bytes are %q", rest)
						}
					}
					a.Close()
					b.Close()
				})
			}
		})
	}
}

func TestSOCKS_EndToEnd(t *testing.T) {
	l := openPort(t, ListenConfig{TLSConfig: serverConfig(), AllowedHosts: []string{"home.example"}, OnConnection: echoing})
	p := newFakeProxy(t, l.Addr().String(), nil, func(p *fakeProxy, conn net.Conn) bool {
		read := func(n int) string {
			b := make([]byte, n)
			io.ReadFull(conn, b)
			return string(b)
		}
		read(4) // offers both
		io.WriteString(conn, "\x05\x02")
		p.saw(read(2 + 3 + 1 + 2))
		io.WriteString(conn, "\x01\x00")
		p.saw(read(4 + 1 + 12 + 2))
		io.WriteString(conn, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
		return true
	})
	for _, scheme := range []string{"socks5", "socks5h"} {
		d := trusting()
		d.Proxy = p.url(scheme, "ann:pw")
		if c := echoOver(t, d, "ws://home.example/"); (c.raw == nil) != (rawConn(c.conn) == nil) {
			t.Error("the raw path is not taken")
		}
		echoOver(t, d, "wss://home.example/")
	}
	want := []string{"\x01\x03ann\x02pw", "\x05\x01\x00\x03\x0chome.example\x00\x50", "\x01\x03ann\x02pw", "\x05\x01\x00\x03\x0chome.example\x01\xbb"}
	if !slices.Equal(p.seen, append(want, want...)) {
		t.Errorf("%q", p.seen)
	}
}
