package nat

import (
	"net/netip"
	"testing"
)

func TestAppendSearch(t *testing.T) {
	want := "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: upnp:rootdevice\r\n\r\n"
	if got := string(appendSearch(nil, "upnp:rootdevice")); got != want {
		t.Errorf("got %q", got)
	}
}

func TestParseSSDP(t *testing.T) {
	const loc = "http://192.168.1.1:5000/rootDesc.xml"
	for _, c := range []struct {
		name, in string
		ok       bool
	}{
		{"the standard's", "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nUSN: uuid:1::upnp:rootdevice\r\nEXT:\r\nSERVER: x\r\nLOCATION: " + loc + "\r\n\r\n", true},
		{"any case, no space", "HTTP/1.1 200 OK\r\nLocation:" + loc + "\r\n\r\n", true},
		{"space before the colon", "http/1.0 200\r\nlocation : " + loc + "\r\n\r\n", true},
		{"bare newlines", "HTTP/1.1 200 OK\nlocation: " + loc + "\n\n", true},
		{"blank line first", "HTTP/1.1 200 OK\r\n\r\nLOCATION: " + loc + "\r\n\r\n", true},
		{"no end", "HTTP/1.1 200 OK\r\nLOCATION: " + loc, true},
		{"lines without a colon", "HTTP/1.1 200 OK\r\nrubbish\r\nLOCATION: " + loc + "\r\n", true},
		{"the first of two", "HTTP/1.1 200 OK\r\nLOCATION: " + loc + "\r\nLOCATION: http://192.168.1.9/\r\n", true},
		{"no location", "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\r\n", false},
		{"not 200", "HTTP/1.1 404 Not Found\r\nLOCATION: " + loc + "\r\n\r\n", false},
		{"a search, not an answer", "M-SEARCH * HTTP/1.1\r\nLOCATION: " + loc + "\r\n\r\n", false},
		{"a notification", "NOTIFY * HTTP/1.1\r\nLOCATION: " + loc + "\r\n\r\n", false},
		{"empty", "", false},
		{"garbage", "\x00\xff\r\n", false},
	} {
		r, ok := parseSSDP([]byte(c.in))
		if ok != c.ok || ok && r.location != loc {
			t.Errorf("%s: %+v, %v", c.name, r, ok)
		}
	}
}

func TestCheckLocation(t *testing.T) {
	gateway, stranger := netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.66")
	for _, c := range []struct {
		location string
		from     netip.Addr
		want     string // "" is refused
	}{
		{"http://192.168.1.1:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"HTTP://192.168.1.1/d.xml", gateway, "http://192.168.1.1:80/d.xml"},
		{"http://[::ffff:192.168.1.1]:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://192.168.1.1:5000/d.xml?a=b#c", gateway, "http://192.168.1.1:5000/d.xml?a=b"},
		// A stranger's own place is looked for at the gateway, and nowhere else.
		{"http://192.168.1.66:80/d.xml", stranger, "http://192.168.1.1:80/d.xml"},
		{"http://192.168.1.66:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://192.168.1.1:5000/d.xml", stranger, "http://192.168.1.1:5000/d.xml"},
		// A gateway that names another address of its own is asked at the one we know.
		{"http://192.168.1.254:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://127.0.0.1:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://192.168.1.254:5000/d.xml", stranger, ""},
		{"http://127.0.0.1:5000/d.xml", stranger, ""},
		{"http://169.254.169.254/latest", stranger, ""},
		{"http://router.lan:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://3232235777/d.xml", gateway, "http://192.168.1.1:80/d.xml"},
		{"http://192.168.1.01/d.xml", gateway, "http://192.168.1.1:80/d.xml"},
		{"http://[fe80::1%25eth0]:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://[2001:db8::1]:5000/d.xml", gateway, "http://192.168.1.1:5000/d.xml"},
		{"http://[::1]:1900/rootDesc.xml", gateway, "http://192.168.1.1:1900/rootDesc.xml"},
		{"http://router.lan:5000/d.xml", stranger, ""},
		{"http://3232235777/d.xml", stranger, ""},
		{"http://0xc0a80101/d.xml", stranger, ""},
		{"http://192.168.1.01/d.xml", stranger, ""},
		{"http://[fe80::1%25eth0]:5000/d.xml", stranger, ""},
		{"http://[2001:db8::1]:5000/d.xml", stranger, ""},
		{"http://:5000/d.xml", gateway, ""},
		{"https://192.168.1.1:5000/d.xml", gateway, ""},
		{"file:///etc/passwd", gateway, ""},
		{"http://user:pass@192.168.1.1/d.xml", gateway, ""},
		{"http://192.168.1.1:0/d.xml", gateway, ""},
		{"http://192.168.1.1:70000/d.xml", gateway, ""},
		{"http:192.168.1.1/d.xml", gateway, ""},
		{"//192.168.1.1/d.xml", gateway, ""},
		{"http://", gateway, ""},
		{"", gateway, ""},
		{"\x7f", gateway, ""},
	} {
		u, err := checkLocation(c.location, c.from, gateway, false)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q from %v: allowed as %v", c.location, c.from, u)
		case c.want != "" && (err != nil || u.String() != c.want):
			t.Errorf("%q from %v: %v, %v, want %s", c.location, c.from, u, err, c.want)
		}
	}
	for _, a := range []string{"0.0.0.0", "255.255.255.255", "239.255.255.250", "169.254.1.1", "127.0.0.1"} {
		ip := netip.MustParseAddr(a)
		if u, err := checkLocation("http://"+a+"/", ip, ip, false); err == nil {
			t.Errorf("%s allowed as %v", a, u)
		}
	}
	lo := netip.MustParseAddr("127.1.2.3")
	if _, err := checkLocation("http://127.1.2.3/", lo, lo, true); err != nil {
		t.Errorf("loopback in a test: %v", err)
	}
}

func FuzzSSDP(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: uuid:1\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\nlocation : http://[::ffff:192.168.1.1]:5000/d.xml"))
	f.Add([]byte("HTTP/1.0 200\r\nLOCATION:http://192.168.1.254/a?b#c\r\n"))
	f.Add([]byte("NOTIFY * HTTP/1.1\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://evil@127.0.0.1:80/\r\n"))
	gateway, stranger := netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.66")
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseSSDP(b)
		if !ok {
			return
		}
		for _, from := range []netip.Addr{gateway, stranger} {
			u, err := checkLocation(r.location, from, gateway, false)
			if err != nil {
				continue
			}
			// Whatever was said, we go to the gateway, by http.
			at, err := netip.ParseAddrPort(u.Host)
			if err != nil || at.Addr() != gateway || u.Scheme != "http" || u.User != nil {
				t.Fatalf("%q from %v leads to %v", r.location, from, u)
			}
		}
	})
}
