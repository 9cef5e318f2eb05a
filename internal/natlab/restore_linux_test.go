package natlab

import (
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What happens to the gateway after the port was opened, and how soon the
// program has put it right.

const (
	announcedLimit = 5 * time.Second  // when the gateway tells
	silentLimit    = 65 * time.Second // when it does not
)

type gatewayKind struct {
	via    string
	config Config
}

// The three protocols, each at a gateway where it is the one that is used.
var protocols = []gatewayKind{
	{"pcp", Config{}},
	{"nat-pmp", Config{NoPCP: true}},
	{"upnp", Config{Daemon: UPnP}},
}

// settle is how long a gateway has run before it is asked, and has been left
// alone before something happens to it: by the rules for its clock, a younger one
// can reboot unseen, and after each question its announcements wait for 5 s.
const settle = 8 * time.Second

// opened starts echo in a new lab and waits for its address outside.
func opened(t *testing.T, echo, via string, c Config) (*Lab, *Program, public) {
	t.Helper()
	l := New(t, c)
	time.Sleep(settle)
	p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
	outside := awaitPublic(t, p)
	if outside.via != via {
		t.Errorf("mapped via %s, want %s", outside.via, via)
	}
	time.Sleep(settle)
	return l, p, outside
}

// restored waits until the gateway forwards the port again.
func restored(t *testing.T, l *Lab, since time.Time, limit time.Duration) {
	t.Helper()
	want := netip.AddrPortFrom(l.Host, 9000)
	for l.Forwards(t)[9000] != want {
		if time.Since(since) > limit {
			t.Fatalf("not restored after %v", limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%s: %.2f s until restored", t.Name(), time.Since(since).Seconds())
}

// A router that restarts and has forgotten everything.
func testReboot(t *testing.T, echo string) {
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			l.Reboot(t)
			restored(t, l, time.Now(), announcedLimit)
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// One that says nothing about it.
func testSilentRebootLong(t *testing.T, echo string) {
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			l.Mute(t)
			l.Reboot(t)
			restored(t, l, time.Now(), silentLimit)
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// A daemon that crashes and comes back at another port leaves its rules, and
// must not end up with two for us.
func testCrash(t *testing.T, echo string) {
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			l.StopDaemon(t, syscall.SIGKILL)
			l.http++
			l.StartDaemon(t)
			time.Sleep(announcedLimit)
			converse(t, l.WAN, outside.url)
			if got := l.Forwards(t); len(got) != 1 || got[9000] != netip.AddrPortFrom(l.Host, 9000) {
				t.Errorf("the gateway forwards %v", got)
			}
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// The provider gives the gateway another address, which is announced in PCP
// and NAT-PMP.
func testWANChange(t *testing.T, echo string)     { wanChange(t, echo, protocols[:2]) }
func testWANChangeLong(t *testing.T, echo string) { wanChange(t, echo, protocols[2:]) }

func wanChange(t *testing.T, echo string, protocols []gatewayKind) {
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			limit := announcedLimit
			if c.via == "upnp" { // SSDP has no word for it
				limit = silentLimit
			}
			l, p, outside := opened(t, echo, c.via, c.config)
			other := netip.MustParseAddr("11.22.33.77")
			since := time.Now()
			l.SetWAN(t, other)
			url := strings.Replace(outside.url, GatewayWAN.String(), other.String(), 1)
			p.Await(t, limit, "public "+c.via+" mapped "+url)
			t.Logf("%s: %.2f s until the new address is known", t.Name(), time.Since(since).Seconds())
			p.Await(t, time.Second, "public "+c.via+" lost "+outside.url)
			converse(t, l.WAN, url)
			p.Await(t, 5*time.Second, "public "+c.via+" verified "+url) // it was verified before, and is anew
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// The machine gets another address on its own network, as by a new DHCP lease.
// The old mapping is its old address's: in PCP and NAT-PMP nobody else can give
// it back, so another port is what we get until it has ended, and in UPnP a
// gateway that lets everybody delete everything lets us keep ours.
func testLANChange(t *testing.T, echo string) {
	for _, c := range append(protocols[:len(protocols):len(protocols)], gatewayKind{"upnp", Config{Daemon: UPnP, Secure: true}}) {
		name := c.via
		if c.config.Secure {
			name = "secure"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, p, _ := opened(t, echo, c.via, c.config)
			other := netip.MustParseAddr("192.168.77.99")
			since := time.Now()
			l.LAN.Run(t, "sh", "-c", "ip addr flush dev eth0; ip addr add "+other.String()+"/24 dev eth0; ip route replace default via "+GatewayLAN.String())
			url := ""
			for url == "" {
				for port, to := range l.Forwards(t) {
					if to == netip.AddrPortFrom(other, 9000) {
						url = "ws://" + netip.AddrPortFrom(GatewayWAN, port).String() + "/"
					}
				}
				if time.Since(since) > 10*time.Second {
					t.Fatal("the new address is not mapped after 10 s")
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Logf("%s: %.2f s until mapped", t.Name(), time.Since(since).Seconds())
			forwards, kept := l.Forwards(t), !c.config.Secure && c.via == "upnp"
			if _, old := forwards[9000]; len(forwards) != 2 && !kept || kept && (len(forwards) != 1 || !old) {
				t.Errorf("the gateway forwards %v", forwards)
			}
			p.Await(t, time.Second, "public "+c.via+" mapped "+url)
			converse(t, l.WAN, url)
			stopped(t, p, syscall.SIGTERM)
			for _, to := range l.Forwards(t) {
				if to.Addr() == other {
					t.Errorf("still forwarded to %v", to)
				}
			}
		})
	}
}

// The cable is out: the mapping is lost within seconds, although the system keeps the
// address and the route. Back in, the same port is mapped again.
func testUnplugged(t *testing.T, echo string) {
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			mapped := "public " + c.via + " mapped " + outside.url
			l.Gateway.Run(t, "ip", "link", "set", "port1", "down")
			since := time.Now()
			p.Await(t, 5*time.Second, "public "+c.via+" lost "+outside.url)
			p.Await(t, time.Second, "reachability no-network: This machine's network is interrupted")
			t.Logf("%s: %.2f s until lost", t.Name(), time.Since(since).Seconds())
			l.Gateway.Run(t, "ip", "link", "set", "port1", "up")
			since = time.Now()
			for n := 0; n < 2; time.Sleep(20 * time.Millisecond) {
				n = 0
				for _, line := range p.Lines() {
					if line == mapped {
						n++
					}
				}
				if time.Since(since) > 10*time.Second {
					t.Fatalf("not mapped again after 10 s: %q", p.Lines())
				}
			}
			t.Logf("%s: %.2f s until mapped again", t.Name(), time.Since(since).Seconds())
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// The router's firewall is loaded anew while its daemon lives and knows nothing of it:
// the forward is there again after the next look at it. Not over UPnP: there miniupnpd
// says from memory that it has the entry, and takes it again without doing anything.
func testFirewallReload(t *testing.T, echo string) {
	for _, c := range protocols {
		if c.via == "upnp" {
			continue
		}
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			l.Flush(t)
			noRules(t, l)
			since := time.Now()
			for l.Forwards(t)[9000] != netip.AddrPortFrom(l.Host, 9000) {
				if time.Since(since) > 2*time.Minute {
					t.Fatal("not forwarded again after 2 minutes")
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Logf("%s: %.1f s until forwarded again", t.Name(), time.Since(since).Seconds())
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}

// Addresses of this machine that come and go are told within moments.
func testOwnAddresses(t *testing.T, echo string) {
	l := New(t, Config{Daemon: Silence})
	p := l.LAN.Start(t, echo, "-nat=false")
	p.Await(t, listenLimit, "listening")
	l.LAN.Run(t, "ip", "addr", "add", "192.168.77.50/24", "dev", "eth0")
	p.Await(t, 2*time.Second, "lan direct bound ws://192.168.77.50:9000/")
	l.LAN.Run(t, "ip", "addr", "del", "192.168.77.50/24", "dev", "eth0")
	p.Await(t, 2*time.Second, "lan direct lost ws://192.168.77.50:9000/")
	l.LAN.Run(t, "ip", "link", "set", "eth0", "down")
	p.Await(t, 2*time.Second, "lan direct lost ws://"+l.Host.String()+":9000/")
	stopped(t, p, syscall.SIGTERM)
}

var counted = regexp.MustCompile(`counter packets (\d+) `)

// What the gateway is asked while nothing happens: at most 30 times in five
// minutes.
func testIdle(t *testing.T, echo string) {
	window := 62 * time.Second
	if os.Getenv("PEERWS_LONG") != "" {
		window = 5 * time.Minute
	}
	limit := int(30 * window / (5 * time.Minute))
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l, p, outside := opened(t, echo, c.via, c.config)
			for _, what := range []string{"udp dport { 1900, 5351 }", "tcp flags & (syn | ack) == syn"} {
				l.Gateway.Run(t, "nft", "insert", "rule", "inet", "filter", "input", `iifname "lan0" ip daddr != 224.0.0.0/4 `+what+" counter")
			}
			time.Sleep(window)
			n := 0
			for _, m := range counted.FindAllStringSubmatch(l.Gateway.Run(t, "nft", "list", "chain", "inet", "filter", "input"), -1) {
				count, _ := strconv.Atoi(m[1])
				n += count
			}
			t.Logf("%s: %d requests in %v", t.Name(), n, window)
			if n == 0 || n > limit {
				t.Errorf("%d requests in %v, want 1 to %d", n, window, limit)
			}
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
		})
	}
}
