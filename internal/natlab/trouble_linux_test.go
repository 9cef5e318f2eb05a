package natlab

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Homes with something wrong: a line that is down, another program on the
// port, one of ours that was killed, a gateway that answers half of what it is
// asked, a machine that sleeps.

// The line is down: the router says so in each protocol, in its own way.
func testWANDown(t *testing.T, echo string) {
	for _, c := range []gatewayKind{
		{"all", Config{}},
		{"PCP", Config{Daemon: NATPMP}},
		{"NAT-PMP", Config{Daemon: NATPMP, NoPCP: true}},
		{"UPnP", Config{Daemon: UPnP}},
		{"IGD1", Config{Daemon: UPnP, IGD1: true}},
	} {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			l.LoseWAN(t)
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			_, took := p.Await(t, listenLimit, "listening")
			line, _ := p.Await(t, listenLimit, "reachability wan-down: ")
			t.Logf("%s: %.2f s from start to listening; %s", t.Name(), took.Seconds(), line)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// The line goes while the port is open, and comes back: both are noticed.
func testWANReturnsLong(t *testing.T, echo string) {
	for _, c := range append(protocols[:len(protocols):len(protocols)], gatewayKind{"pcp", Config{Daemon: NATPMP}}) {
		t.Run(fmt.Sprint(c.via, c.config.Daemon), func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			since := time.Now()
			l.LoseWAN(t)
			p.Await(t, silentLimit, "reachability wan-down: ")
			t.Logf("%s: %.2f s until the loss is known", t.Name(), time.Since(since).Seconds())
			time.Sleep(settle)
			since = time.Now()
			told := len(p.Lines())
			l.SetWAN(t, GatewayWAN)
			for !strings.Contains(strings.Join(p.Lines()[told:], "\n"), "public "+c.via+" mapped "+outside.url) {
				if time.Since(since) > silentLimit {
					t.Fatalf("not told of the return within %v", silentLimit)
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Logf("%s: %.2f s until the return is known", t.Name(), time.Since(since).Seconds())
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// Another host has the port, by a tool that knows nothing of us. We get
// another one, and it keeps its own, also when we go.
func testConflict(t *testing.T, echo string) {
	Need(t, "upnpc", "natpmpc")
	upnpc := []string{"upnpc", "-m", "eth0", "-e", "other", "-r", "9000", "tcp"}
	natpmpc := []string{"natpmpc", "-g", GatewayLAN.String(), "-a", "9000", "9000", "tcp", "3600"}
	for _, c := range []struct {
		gatewayKind
		name  string
		other []string
	}{
		{gatewayKind{"upnp", Config{Daemon: UPnP}}, "UPnP", upnpc},
		{gatewayKind{"upnp", Config{Daemon: UPnP, IGD1: true, Secure: true}}, "IGD1", upnpc},
		{gatewayKind{"nat-pmp", Config{Daemon: NATPMP, NoPCP: true}}, "NAT-PMP", natpmpc},
		{gatewayKind{"pcp", Config{Daemon: NATPMP}}, "PCP", natpmpc},
		{gatewayKind{"pcp", Config{}}, "PCP against UPnP", upnpc},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			second, addr := l.AddHost(t)
			second.Run(t, c.other...)
			other := netip.AddrPortFrom(addr, 9000)
			if got := l.Forwards(t); len(got) != 1 || got[9000] != other {
				t.Fatalf("the other host has %v", got)
			}
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			outside := awaitPublic(t, p)
			got := l.Forwards(t)
			if outside.via != c.via || outside.addr.Port() == 9000 || len(got) != 2 || got[9000] != other || got[outside.addr.Port()] != netip.AddrPortFrom(l.Host, 9000) {
				t.Errorf("%+v; the gateway forwards %v", outside, got)
			}
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			if got := l.Forwards(t); len(got) != 1 || got[9000] != other {
				t.Errorf("after our end the gateway forwards %v", got)
			}
		})
	}
}

// A program that was killed leaves its mapping; its next life takes it over,
// and gives it back.
func testKill(t *testing.T, echo string) {
	for _, c := range append(protocols[:len(protocols):len(protocols)], gatewayKind{"upnp", Config{Daemon: UPnP, IGD1: true, Secure: true}}) {
		name := c.via
		if c.config.IGD1 {
			name = "IGD1"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			want := netip.AddrPortFrom(l.Host, 9000)
			var first public
			for life := range 3 {
				p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
				outside := awaitPublic(t, p)
				if life == 0 {
					first = outside
				}
				if got := l.Forwards(t); outside != first || len(got) != 1 || got[9000] != want {
					t.Errorf("life %d: %+v, the first was %+v; the gateway forwards %v", life, outside, first, got)
				}
				converse(t, l.WAN, outside.url)
				if life == 2 {
					stopped(t, p, syscall.SIGTERM)
					noRules(t, l)
				} else if _, err := p.Stop(t, syscall.SIGKILL, stopLimit); err == nil || len(l.Forwards(t)) != 1 {
					t.Errorf("killed: %v; the gateway forwards %v", err, l.Forwards(t))
				}
			}
		})
	}
}

// The matches of what a gateway may swallow. The version is the first byte
// behind the UDP header, the opcode the second.
const (
	pmpMapRequest = "udp dport 5351 @th,64,8 0 @th,72,8 2"
	pcpMapRequest = "udp dport 5351 @th,64,8 2 @th,72,8 1"
)

// Gateways that answer some questions, or none, and swallow the rest: in five
// seconds the program is LISTENING and knows.
func testSwallow(t *testing.T, echo string) {
	for _, c := range []struct {
		name   string
		config Config
		via    string // "" is none
	}{
		{"everything", Config{Swallow: "meta l4proto { tcp, udp }"}, ""},
		{"UPnP's descriptions", Config{Daemon: UPnP, Swallow: "tcp dport 5000"}, ""},
		{"NAT-PMP's mappings", Config{Daemon: NATPMP, NoPCP: true, Swallow: pmpMapRequest}, ""},
		{"PCP's mappings", Config{Daemon: NATPMP, Swallow: pcpMapRequest}, "nat-pmp"},
		{"all mappings", Config{Daemon: NATPMP, Swallow: "udp dport 5351 @th,72,8 { 1, 2 }"}, ""},
		{"all mappings, and UPnP's descriptions", Config{Swallow: "udp dport 5351 @th,72,8 { 1, 2 }"}, ""},
		{"searches", Config{Daemon: UPnP, Swallow: "udp dport 1900 ip daddr 239.255.255.250"}, "upnp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			if strings.Contains(c.name, ", and UPnP") {
				l.Swallow(t, "tcp dport 5000")
			}
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			_, took := p.Await(t, listenLimit, "listening")
			code := "reachability no-gateway: "
			if c.via != "" {
				code = "reachability mapped: "
				p.Await(t, listenLimit, "public "+c.via+" mapped ")
			}
			line, _ := p.Await(t, listenLimit, code)
			t.Logf("%s: %.2f s from start to listening; %s", t.Name(), took.Seconds(), line)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// The signal comes while a question is out that will not be answered: the
// program ends at once. With a mapping to give back it tries for two seconds.
func testStopWhileDeaf(t *testing.T, echo string) {
	for _, c := range []struct {
		name   string
		config Config
	}{
		{"NAT-PMP", Config{Daemon: NATPMP, NoPCP: true, Swallow: pmpMapRequest}},
		{"PCP", Config{Daemon: NATPMP, Swallow: pcpMapRequest}},
		{"UPnP", Config{Daemon: UPnP, Swallow: "tcp dport 5000"}},
		{"everything", Config{Daemon: Silence}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			for _, wait := range []time.Duration{20, 200, 500, 1000, 2000} {
				p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
				p.Await(t, listenLimit, "lan ")
				time.Sleep(wait * time.Millisecond)
				took, err := p.Stop(t, syscall.SIGTERM, stopLimit)
				t.Logf("%s: %.2f s from the signal to the exit, %d ms after the first address", t.Name(), took.Seconds(), wait)
				if limit := goneLimit + 300*time.Millisecond; err != nil || took > limit { // what may have been mapped is asked back for 0.3 s
					t.Errorf("%v, %v; want %v", err, took, limit)
				}
			}
		})
	}
	t.Run("mapped", func(t *testing.T) {
		t.Parallel()
		l := New(t, Config{})
		p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
		awaitPublic(t, p)
		l.Swallow(t, "meta l4proto { tcp, udp }")
		if took, _ := p.Stop(t, syscall.SIGTERM, stopLimit); took > 3*time.Second {
			t.Errorf("%v from the signal to the exit", took)
		}
	})
}

// The program stands still, as in a machine that sleeps, for longer than its
// lease or than it ever waits; the gateway is restarted meanwhile and says
// nothing. Once awake it has the port back.
func testSleep(t *testing.T, echo string) {
	const sleep = 21 * time.Second // three looks around, and 15 s that count as sleep
	for _, c := range []gatewayKind{
		{"pcp", Config{MaxLifetime: 20}},
		{"nat-pmp", Config{Daemon: NATPMP, NoPCP: true}},
		{"upnp", Config{Daemon: UPnP}},
	} {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			outside := awaitPublic(t, p)
			signal := func(s syscall.Signal) {
				if err := p.cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			signal(syscall.SIGSTOP)
			l.Mute(t)
			l.Reboot(t)
			time.Sleep(sleep)
			if got := l.Forwards(t); len(got) != 0 {
				t.Errorf("the gateway forwards %v", got)
			}
			signal(syscall.SIGCONT)
			restored(t, l, time.Now(), announcedLimit)
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}
