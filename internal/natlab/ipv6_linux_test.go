package natlab

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A real gateway with IPv6 behind a firewall: what it lets in, and for how long.
func TestIPv6(t *testing.T) {
	Need(t)
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "echo")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../../examples/echo").CombinedOutput(); err != nil {
		t.Fatalf("building examples/echo: %v\n%s", err, out)
	}
	for _, c := range []struct {
		name   string
		config Config
		via    string
	}{
		{"PCP", Config{IPv6: true}, "pcp"},
		{"UPnP", Config{IPv6: true, Daemon: UPnP, NoPCP6: true}, "upnp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			at := netip.AddrPortFrom(l.Host6, 9000)
			url := "ws://" + at.String() + "/"
			ln, err := l.LAN.Listen(":9001")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			if _, err := greet(l.WAN, netip.AddrPortFrom(l.Host6, 9001).String()); err == nil {
				t.Fatal("the firewall lets peers in before anybody asked")
			}
			p := l.LAN.Start(t, bin, "-nat", "-v")
			_, took := p.Await(t, mapLimit, "public "+c.via+" mapped "+url)
			t.Logf("%.2f s from start to %s", took.Seconds(), url)
			p.Await(t, mapLimit, "public "+c.via+" mapped ws://"+GatewayWAN.String())
			p.Await(t, listenLimit, "listening")
			converse(t, l.WAN, url)
			p.Await(t, time.Second, "public "+c.via+" verified "+url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
			again, err := l.LAN.Listen(":9000")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if _, err := greet(l.WAN, at.String()); err == nil {
				t.Error("the firewall still lets peers in")
			}
		})
	}
}
