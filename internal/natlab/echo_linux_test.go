package natlab

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The end-to-end tests: examples/echo behind a real gateway, and peers outside
// that open the address it prints.

// The limits of the program's contract.
const (
	mapLimit    = 10 * time.Second // until a gateway that answers has mapped
	listenLimit = 5 * time.Second  // until LISTENING, whatever the gateway does
	stopLimit   = 5 * time.Second  // from the signal to the end, mapping removed

	goneLimit = 500 * time.Millisecond // the same, where nothing but the gateway is waited for
)

func TestEcho(t *testing.T) {
	Need(t, python, "upnpc")
	t.Parallel()
	bin := build(t, "../../examples/echo")
	tests := map[string]func(t *testing.T, echo string){
		"Gateway":          testGateway,
		"Programs":         testPrograms,
		"NoMapping":        testNoMapping,
		"StopWhileAsking":  testStopWhileAsking,
		"StubbornPeer":     testStubbornPeer,
		"GatewayLeftAlone": testGatewayLeftAlone,
		"Reboot":           testReboot,
		"Crash":            testCrash,
		"WANChange":        testWANChange,
		"LANChange":        testLANChange,
		"Unplugged":        testUnplugged,
		"FirewallReload":   testFirewallReload,
		"OwnAddresses":     testOwnAddresses,
		"Idle":             testIdle,
		"OtherWay":         testOtherWay,
		"WANDown":          testWANDown,
		"Conflict":         testConflict,
		"Kill":             testKill,
		"Swallow":          testSwallow,
		"StopWhileDeaf":    testStopWhileDeaf,
		"Sleep":            testSleep,
		"Hostile":          testHostile,
		"HostileAlone":     testHostileAlone,
	}
	if os.Getenv("PEERWS_LONG") != "" {
		tests["SilentRebootLong"] = testSilentRebootLong
		tests["WANChangeLong"] = testWANChangeLong
		tests["WANReturnsLong"] = testWANReturnsLong
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, bin)
		})
	}
}

// A public is what echo printed about its address outside.
type public struct {
	via, url string
	addr     netip.AddrPort
}

// awaitPublic waits until the program has a mapped address and is LISTENING.
func awaitPublic(t *testing.T, p *Program) public {
	t.Helper()
	line, took := p.Await(t, mapLimit, "public ")
	fields := strings.Fields(line)
	if len(fields) != 4 || fields[2] != "mapped" {
		t.Fatalf("%q, want: public VIA mapped URL", line)
	}
	u, err := url.Parse(fields[3])
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	addr, err := netip.ParseAddrPort(u.Host)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if addr.Addr() != GatewayWAN {
		t.Errorf("%q, want the gateway's address %v", line, GatewayWAN)
	}
	p.Await(t, listenLimit, "listening")
	p.Await(t, listenLimit, "reachability mapped: ")
	t.Logf("%s: %.2f s from start to %s", t.Name(), took.Seconds(), line)
	return public{fields[1], fields[3], addr}
}

// stopped sends the signal and wants a clean exit in time.
func stopped(t *testing.T, p *Program, s syscall.Signal) {
	t.Helper()
	took, err := p.Stop(t, s, stopLimit)
	if err != nil {
		t.Errorf("echo ended with %v after %v, want exit code 0", err, s)
	}
	t.Logf("%s: %.2f s from %v to the exit", t.Name(), took.Seconds(), s)
}

func noRules(t *testing.T, l *Lab) {
	t.Helper()
	if rules := l.Rules(t); len(rules) != 0 {
		t.Errorf("the gateway still has:\n%s", strings.Join(rules, "\n"))
	}
}

// converse opens the URL from a host of the lab, exchanges messages and
// closes.
func converse(t *testing.T, from *Namespace, url string) {
	t.Helper()
	c, err := dialWS(from.Dial, url)
	if err != nil {
		t.Errorf("%s from %s: %v", url, from.Name, err)
		return
	}
	defer c.conn.Close()
	if err := c.echo(); err != nil {
		t.Errorf("%s from %s: %v", url, from.Name, err)
		return
	}
	if err := c.close(); err != nil {
		t.Errorf("%s from %s: %v", url, from.Name, err)
	}
}

// pythonClient is a second opinion: the messages of another library.
const pythonClient = `
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1]) as ws:
        for message in ["h\u00e9llo", "", b"\x00\xff", "x" * 70000]:
            await ws.send(message)
            reply = await asyncio.wait_for(ws.recv(), 5)
            assert reply == message, (message[:20], reply[:20])
    print("close code", ws.close_code)
asyncio.run(main())
`

// Debian's own interpreter, which sees Debian's websockets package.
const python = "/usr/bin/python3"

// Through each kind of gateway peers outside reach the address that is
// printed, and the forward ends with the program.
func testGateway(t *testing.T, echo string) {
	for _, c := range []struct {
		name   string
		config Config
		via    string // what makes the mapping
		signal syscall.Signal
	}{
		{"UPnP", Config{Daemon: UPnP}, "upnp", syscall.SIGTERM},
		{"IGD1", Config{Daemon: UPnP, IGD1: true}, "upnp", syscall.SIGINT},
		{"secure", Config{Daemon: UPnP, Secure: true}, "upnp", syscall.SIGTERM},
		{"PCP", Config{Daemon: NATPMP}, "pcp", syscall.SIGTERM},
		{"NAT-PMP", Config{Daemon: NATPMP, NoPCP: true}, "nat-pmp", syscall.SIGTERM},
		{"both", Config{}, "pcp", syscall.SIGINT},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			outside := awaitPublic(t, p)
			if c.via != outside.via {
				t.Errorf("mapped via %s, want %s", outside.via, c.via)
			}
			if got, want := l.Forwards(t)[outside.addr.Port()], netip.AddrPortFrom(l.Host, 9000); got != want {
				t.Errorf("the gateway forwards to %v, want %v", got, want)
			}
			converse(t, l.WAN, outside.url)
			converse(t, l.Gateway, fmt.Sprintf("ws://%v:9000/", l.Host))
			if out := l.WAN.Run(t, python, "-c", pythonClient, outside.url); out != "close code 1000\n" {
				t.Errorf("python3-websockets printed %q", out)
			}

			// A peer that is still connected is told that we go away.
			peer, err := dialWS(l.WAN.Dial, outside.url)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.conn.Close()
			if err := peer.echo(); err != nil {
				t.Fatal(err)
			}
			closed := make(chan error, 1)
			go func() {
				code, err := peer.awaitClose()
				if err == nil && code != 1001 {
					err = fmt.Errorf("closed with %d, want 1001", code)
				}
				closed <- err
			}()
			stopped(t, p, c.signal)
			if err := <-closed; err != nil {
				t.Errorf("the connected peer: %v", err)
			}
			lost := fmt.Sprintf("public %s lost %s", outside.via, outside.url)
			if !slices.Contains(p.Lines(), lost) {
				t.Errorf("echo did not print %q at its end", lost)
			}
			noRules(t, l)
			if greeting, err := greet(l.WAN, outside.addr.String()); err == nil {
				t.Errorf("a peer still gets in after the end: %q", greeting)
			}
		})
	}
}

// Two hosts wish for the same port, and a third program runs on the first
// host: all are reachable at addresses of their own, and each takes only its
// own mapping along.
func testPrograms(t *testing.T, echo string) {
	for _, c := range []struct {
		name   string
		config Config
		atOnce bool // all start together, or one after the other
	}{
		{"UPnP", Config{Daemon: UPnP}, false},
		{"UPnP at once", Config{Daemon: UPnP}, true},
		{"IGD1", Config{Daemon: UPnP, IGD1: true}, false},
		{"IGD1 at once", Config{Daemon: UPnP, IGD1: true}, true},
		{"NAT-PMP", Config{Daemon: NATPMP, NoPCP: true}, false},
		{"NAT-PMP at once", Config{Daemon: NATPMP, NoPCP: true}, true},
		{"PCP", Config{Daemon: NATPMP}, false},
		{"PCP at once", Config{Daemon: NATPMP}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			second, secondAddr := l.AddHost(t)
			programs := []struct {
				host *Namespace
				addr netip.AddrPort
			}{
				{second, netip.AddrPortFrom(secondAddr, 9000)},
				{l.LAN, netip.AddrPortFrom(l.Host, 9000)},
				{l.LAN, netip.AddrPortFrom(l.Host, 9001)},
			}
			var running []*Program
			for _, x := range programs {
				p := x.host.Start(t, echo, "-nat", "-port", strconv.Itoa(int(x.addr.Port())))
				if !c.atOnce {
					awaitPublic(t, p)
				}
				running = append(running, p)
			}
			want := map[uint16]netip.AddrPort{}
			var outside []public
			for i, p := range running {
				o := awaitPublic(t, p)
				outside = append(outside, o)
				if other, taken := want[o.addr.Port()]; taken {
					t.Fatalf("%v and %v both print %s", other, programs[i].addr, o.url)
				}
				want[o.addr.Port()] = programs[i].addr
			}
			for i, p := range running {
				if got := l.Forwards(t); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("with %d programs gone the gateway forwards %v, want %v", i, got, want)
				}
				for _, o := range outside[i:] {
					converse(t, l.WAN, o.url)
				}
				stopped(t, p, syscall.SIGTERM)
				delete(want, outside[i].addr.Port())
			}
			noRules(t, l)
		})
	}
}

// Where nobody can open the port, the program says so in a sentence, is
// LISTENING soon all the same, and serves the LAN.
func testNoMapping(t *testing.T, echo string) {
	deny := []string{"deny 0-65535 0.0.0.0/0 0-65535"}
	for _, c := range []struct {
		name         string
		config       Config
		reachability string
	}{
		{"silent", Config{Daemon: Silence}, "no-gateway"},
		{"refused", Config{Rules: deny}, "refused"},
		{"refused UPnP", Config{Daemon: UPnP, Rules: deny}, "refused"},
		{"refused PCP", Config{Daemon: NATPMP, Rules: deny}, "refused"},
		{"refused NAT-PMP", Config{Daemon: NATPMP, NoPCP: true, Rules: deny}, "refused"},
		{"carrier-grade NAT", Config{WAN: "100.64.7.8"}, "cgnat"},
		{"carrier-grade NAT, UPnP", Config{Daemon: UPnP, WAN: "100.64.7.8"}, "double-nat"}, // it does not tell its address
		{"behind a router", Config{WAN: "192.168.3.4"}, "double-nat"},
		{"behind a router, NAT-PMP", Config{Daemon: NATPMP, NoPCP: true, WAN: "192.168.3.4"}, "wan-down"}, // nor does it
		{"no route", Config{NoDefaultRoute: true}, "no-"},                                                 // no-network or no-gateway: both are true
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			neighbour, _ := l.AddHost(t)
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			lan := fmt.Sprintf("ws://%v:9000/", l.Host)
			p.Await(t, listenLimit, "lan direct bound "+lan)
			converse(t, neighbour, lan) // before the gateway has answered
			_, took := p.Await(t, listenLimit, "listening")
			line, _ := p.Await(t, listenLimit, "reachability "+c.reachability)
			if _, sentence, ok := strings.Cut(line, ": "); !ok || !strings.HasSuffix(sentence, ".") {
				t.Errorf("%q holds no sentence", line)
			}
			t.Logf("%s: %.2f s from start to listening; %s", t.Name(), took.Seconds(), line)
			converse(t, neighbour, lan)
			noRules(t, l)
			stopped(t, p, syscall.SIGTERM)
		})
	}
}

// Whenever the signal comes while the gateway is being asked, no forward is
// left behind. The gateway may still work on what it was asked when the program
// is gone, hence the wait before the look.
func testStopWhileAsking(t *testing.T, echo string) {
	for _, c := range []struct {
		name   string
		config Config
	}{
		{"UPnP", Config{Daemon: UPnP}},
		{"NAT-PMP", Config{Daemon: NATPMP, NoPCP: true}},
		{"PCP", Config{Daemon: NATPMP}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			var slowest time.Duration
			for wait := time.Duration(0); wait <= 150*time.Millisecond && !t.Failed(); wait += 5 * time.Millisecond {
				p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
				p.Await(t, listenLimit, "lan ")
				time.Sleep(wait)
				took, err := p.Stop(t, syscall.SIGTERM, stopLimit)
				slowest = max(slowest, took)
				if err != nil {
					t.Errorf("%v after its first address: echo ended with %v, want exit code 0", wait, err)
				}
				time.Sleep(100 * time.Millisecond)
				if rules := l.Rules(t); len(rules) != 0 {
					t.Errorf("%v after its first address: echo ended and left\n%s", wait, strings.Join(rules, "\n"))
				}
			}
			t.Logf("%s: %.2f s from the signal to the exit at most", t.Name(), slowest.Seconds())
			if slowest > goneLimit {
				t.Errorf("want %v", goneLimit)
			}
		})
	}
}

// A peer that never answers the closing handshake holds up neither the exit nor
// the mapping's removal.
func testStubbornPeer(t *testing.T, echo string) {
	l := New(t, Config{})
	p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
	outside := awaitPublic(t, p)
	peer, err := dialWS(l.WAN.Dial, outside.url)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.conn.Close()
	stopped(t, p, syscall.SIGTERM)
	noRules(t, l)
}

// Without -nat the gateway is not asked anything.
func testGatewayLeftAlone(t *testing.T, echo string) {
	l := New(t, Config{})
	const watch = `iifname "lan0" meta l4proto { tcp, udp } counter`
	l.Gateway.Run(t, "nft", "insert", "rule", "inet", "filter", "input", watch)
	p := l.LAN.Start(t, echo, "-port", "9000")
	p.Await(t, listenLimit, "listening")
	p.Await(t, listenLimit, "reachability off: ")
	time.Sleep(time.Second)
	counted := func() string { return l.Gateway.Run(t, "nft", "list", "chain", "inet", "filter", "input") }
	if rules := counted(); !strings.Contains(rules, "counter packets 0 ") {
		t.Errorf("the gateway was asked something:\n%s", rules)
	}
	stopped(t, p, syscall.SIGTERM)
	// The counter does count.
	l.LAN.Run(t, "sh", "-c", "upnpc -m eth0 -s || true")
	if rules := counted(); strings.Contains(rules, "counter packets 0 ") {
		t.Errorf("the counter saw nothing of upnpc:\n%s", rules)
	}
}
