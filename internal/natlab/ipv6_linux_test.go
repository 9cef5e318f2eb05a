package natlab

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A real gateway with IPv6 behind a firewall: what it lets in, and for how long.
func TestIPv6(t *testing.T) {
	Need(t)
	t.Parallel()
	bin := build(t, "../../examples/echo")
	t.Run("Silent", func(t *testing.T) { t.Parallel(); testSilent6(t, bin) })
	t.Run("CGNAT", func(t *testing.T) { t.Parallel(); testCGNAT6(t, bin) })
	t.Run("Addresses", func(t *testing.T) { t.Parallel(); testAddresses6(t, bin) })
	t.Run("Reboot", func(t *testing.T) { t.Parallel(); testReboot6(t, bin) })
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
			_, took4 := p.Await(t, mapLimit, "public "+c.via+" mapped ws://"+GatewayWAN.String())
			t.Logf("%.2f s from start to %s, %.2f s over IPv4", took.Seconds(), url, took4.Seconds())
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

// An IPv6 router that says nothing keeps nobody waiting.
func testSilent6(t *testing.T, echo string) {
	l := New(t, Config{IPv6: true, Deaf6: true})
	p := l.LAN.Start(t, echo, "-nat")
	_, mapped := p.Await(t, mapLimit, "public pcp mapped ws://"+GatewayWAN.String())
	_, listening := p.Await(t, listenLimit, "listening")
	t.Logf("%.2f s from start to mapped over IPv4, %.2f s to listening", mapped.Seconds(), listening.Seconds())
	if listening-mapped > time.Second {
		t.Errorf("%v until listening, although mapped after %v", listening, mapped)
	}
	stopped(t, p, syscall.SIGTERM)
	noRules(t, l)

	l = New(t, Config{IPv6: true, Daemon: Silence})
	p = l.LAN.Start(t, echo, "-nat")
	_, listening = p.Await(t, listenLimit, "listening")
	t.Logf("%.2f s from start to listening when nobody answers", listening.Seconds())
	p.Await(t, time.Second, "reachability no-gateway: ")
}

// Behind a carrier-grade NAT there is still IPv6, and a person is told so.
func testCGNAT6(t *testing.T, echo string) {
	l := New(t, Config{IPv6: true, WAN: "100.64.7.8"})
	p := l.LAN.Start(t, echo, "-nat")
	url := "ws://" + netip.AddrPortFrom(l.Host6, 9000).String() + "/"
	p.Await(t, mapLimit, "public pcp mapped "+url)
	p.Await(t, listenLimit, "listening")
	told := func(line string) bool {
		return strings.HasPrefix(line, "reachability cgnat: ") && strings.Contains(line, "Over IPv6 the router lets peers in to ")
	}
	for end := time.Now().Add(listenLimit); !slices.ContainsFunc(p.Lines(), told); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody is told of IPv6")
		}
	}
	converse(t, l.WAN, url)
	stopped(t, p, syscall.SIGTERM)
	noRules(t, l)
}

// Addresses come and go while the program runs.
func testAddresses6(t *testing.T, echo string) {
	l := New(t, Config{IPv6: true})
	p := l.LAN.Start(t, echo, "-nat")
	url := func(a netip.Addr) string { return "ws://" + netip.AddrPortFrom(a, 9000).String() + "/" }
	p.Await(t, mapLimit, "public pcp mapped "+url(l.Host6))
	other := l.host6(50)
	began := time.Now()
	l.AddAddr6(t, other)
	p.Await(t, mapLimit, "public pcp mapped "+url(other))
	t.Logf("%.2f s from a new address to mapped", time.Since(began).Seconds())
	converse(t, l.WAN, url(other))
	began = time.Now()
	l.LAN.Run(t, "ip", "addr", "del", netip.PrefixFrom(l.Host6, 64).String(), "dev", "eth0")
	p.Await(t, mapLimit, "public pcp lost "+url(l.Host6))
	t.Logf("%.2f s until an address that is gone is lost", time.Since(began).Seconds())
	stopped(t, p, syscall.SIGTERM)
}

// A gateway that starts again announces it over IPv6 too.
func testReboot6(t *testing.T, echo string) {
	l := New(t, Config{IPv6: true})
	p := l.LAN.Start(t, echo, "-nat")
	p.Await(t, mapLimit, "public pcp mapped ws://"+netip.AddrPortFrom(l.Host6, 9000).String())
	p.Await(t, listenLimit, "listening")
	hole := func() bool {
		for _, rule := range l.Rules(t) {
			if strings.Contains(rule, "0x20010db800770000") {
				return true
			}
		}
		return false
	}
	if !hole() {
		t.Fatalf("no rule for IPv6:\n%s", strings.Join(l.Rules(t), "\n"))
	}
	time.Sleep(7 * time.Second) // the clock of a gateway that is only seconds old shows no restart (RFC 6887 §8.5)
	l.Reboot(t)
	began := time.Now()
	for !hole() {
		if time.Since(began) > 10*time.Second {
			t.Fatal("not restored after 10 s")
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%.2f s from an announced reboot to restored over IPv6", time.Since(began).Seconds())
}

// The daemon refuses to delete a hole that was renewed. It is left to end within
// two minutes, not two hours.
func TestIPv6RenewedLong(t *testing.T) {
	Need(t)
	if os.Getenv("PEERWS_LONG") == "" {
		t.Skip("takes minutes: set PEERWS_LONG=1 to run it")
	}
	t.Parallel()
	bin := build(t, "../../examples/echo")
	l := New(t, Config{IPv6: true})
	p := l.LAN.Start(t, bin, "-nat", "-v")
	p.Await(t, mapLimit, "public pcp mapped ws://"+netip.AddrPortFrom(l.Host6, 9000).String())
	// Waking from sleep is a reason to ask again.
	for _, s := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(22 * time.Second) // it looks at the clock every 5 s, and counts 15 as sleep
	}
	stopped(t, p, syscall.SIGTERM)
	began := time.Now()
	for len(l.Rules(t)) > 0 {
		if time.Since(began) > 150*time.Second {
			t.Fatal("the hole is still there")
		}
		time.Sleep(time.Second)
	}
	t.Logf("%.0f s until the hole was gone", time.Since(began).Seconds())
}
