package natlab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Whether an address is said to be verified, at a real gateway.

// hairpin makes the gateway forward what the LAN sends to its outside address
// as if it came from the world, which most routers do in this way: the sender
// becomes the router, or the answer would not find back.
func (l *Lab) hairpin(t *testing.T, port uint16, to netip.AddrPort) {
	t.Helper()
	// Where the kernel shows bridged frames to the firewall, such a packet would
	// stay in the bridge, which never sends one back to where it came from.
	l.Gateway.Run(t, "sh", "-c", "f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 0 > $f")
	l.Gateway.Run(t, "nft", fmt.Sprintf(`add rule inet filter prerouting iifname "lan0" ip daddr %s tcp dport %d dnat ip to %s
add rule inet filter postrouting iifname "lan0" oifname "lan0" ct status dnat masquerade`, GatewayWAN, port, to))
}

func TestVerified(t *testing.T) {
	Need(t, "upnpc")
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", dir+string(filepath.Separator), "../../examples/echo", "../../examples/doctor").CombinedOutput(); err != nil {
		t.Fatalf("building the examples: %v\n%s", err, out)
	}
	echo, doctor := filepath.Join(dir, "echo"), filepath.Join(dir, "doctor")

	// A peer of the LAN proves nothing, one of the world does.
	t.Run("Peer", func(t *testing.T) {
		t.Parallel()
		l := New(t, Config{})
		other, _ := l.AddHost(t)
		p := l.LAN.Start(t, echo, "-nat", "-port", "9000")
		at := awaitPublic(t, p)
		converse(t, other, "ws://"+netip.AddrPortFrom(l.Host, 9000).String()+"/")
		converse(t, l.LAN, "ws://127.0.0.1:9000/")
		time.Sleep(time.Second) // long enough for a connection of its own
		if lines := strings.Join(p.Lines(), "\n"); strings.Contains(lines, "verified ws") {
			t.Errorf("verified by nobody outside:\n%s", lines)
		}
		converse(t, l.WAN, at.url)
		p.Await(t, 5*time.Second, "public "+at.via+" verified "+at.url)
		p.Await(t, 5*time.Second, "reachability verified: Peers outside can connect")
	})

	t.Run("Hairpin", func(t *testing.T) {
		t.Parallel()
		l := New(t, Config{})
		l.hairpin(t, 9000, netip.AddrPortFrom(l.Host, 9000))
		p := l.LAN.Start(t, echo, "-nat", "-port", "9000")
		line, took := p.Await(t, 10*time.Second, "reachability verified: ")
		if !strings.Contains(line, "a connection of our own has come through it") {
			t.Errorf("%q", line)
		}
		t.Logf("%.2f s from start to %s", took.Seconds(), line)
		stopped(t, p, syscall.SIGTERM)
		noRules(t, l)
	})

	t.Run("Doctor", func(t *testing.T) {
		t.Parallel()
		l := New(t, Config{})
		l.hairpin(t, 9000, netip.AddrPortFrom(l.Host, 9000))
		out, err := l.LAN.Command(t.Context(), doctor, "-try").CombinedOutput()
		if s := string(out); err != nil || !strings.Contains(s, "; a connection of ours came back through it; given back\n") || !strings.Contains(s, "\nPeers outside may be able to reach this machine. The router forwards 11.22.33.44:9000 to us") {
			t.Errorf("%v:\n%s", err, out)
		}
		t.Logf("doctor -try:\n%s", out)
		noRules(t, l)

		// Who has the port already: another host, by another program.
		other, addr := l.AddHost(t)
		other.Run(t, "upnpc", "-e", "their game", "-a", addr.String(), "80", "9000", "tcp", "600")
		out, _ = l.LAN.Command(t.Context(), doctor, "-json").Output()
		var got finding
		if err := json.Unmarshal(out, &got); err != nil || len(got.Forwards) != 1 {
			t.Fatalf("%v:\n%s", err, out)
		}
		if f := got.Forwards[0]; f.External != 9000 || f.Internal != netip.AddrPortFrom(addr, 80).String() || f.Description != "their game" || f.Lifetime < 500 || f.Lifetime > 600 {
			t.Errorf("%+v", f)
		}

		// A program that listens is looked at, and keeps its forward.
		p := l.LAN.Start(t, echo, "-nat", "-port", "9001")
		awaitPublic(t, p)
		before := len(l.Rules(t))
		out, err = l.LAN.Command(t.Context(), doctor, "-try", "-port", "9001").CombinedOutput()
		if s := string(out); err != nil || !strings.Contains(s, `is in use on this machine, by "echo" (process `) || !strings.Contains(s, "The router forwards 11.22.33.44:9001 to ") || len(l.Rules(t)) != before {
			t.Errorf("%v:\n%s", err, out)
		}
		t.Logf("doctor -try beside echo:\n%s", out)
	})

	// doctor -wait tells those inside from those outside, by whatever way they come.
	t.Run("Wait", func(t *testing.T) {
		t.Parallel()
		l := New(t, Config{})
		l.hairpin(t, 9000, netip.AddrPortFrom(l.Host, 9000))
		other, addr := l.AddHost(t)
		p := l.LAN.Start(t, doctor, "-wait")
		p.Await(t, 15*time.Second, "Waiting for 10m0s; ")
		await := func(text string) {
			t.Helper()
			for range 100 {
				if strings.Contains(strings.Join(p.Lines(), "\n"), text) {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Errorf("no %q", text)
		}
		await("    http://11.22.33.44:9000/")
		get(t, other, netip.AddrPortFrom(l.Host, 9000).String())
		await("  somebody came from inside the home: " + addr.String() + ". ")
		get(t, other, "11.22.33.44:9000")
		await("  somebody came from inside the home, but by the address outside: " + GatewayLAN.String() + ". ")
		get(t, l.WAN, "11.22.33.44:9000")
		await("  somebody came from outside, a public address: " + WANHost.String() + ". Peers outside can reach this machine.")
		stopped(t, p, syscall.SIGINT)
		await("Peers outside can reach this machine. Somebody came from outside (" + WANHost.String() + ").")
		t.Logf("doctor -wait:\n%s", strings.Join(p.Lines(), "\n"))
		noRules(t, l)
	})

	// Beside a program that has the port, it watches who comes to that one.
	t.Run("WaitBeside", func(t *testing.T) {
		t.Parallel()
		l := New(t, Config{})
		awaitPublic(t, l.LAN.Start(t, echo, "-nat", "-port", "9000"))
		p := l.LAN.Start(t, doctor, "-wait")
		p.Await(t, 15*time.Second, "Watching who connects for 10m0s; ")
		converse(t, l.WAN, "ws://11.22.33.44:9000/")
		for range 100 {
			if strings.Contains(strings.Join(p.Lines(), "\n"), "somebody came from outside") {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		stopped(t, p, syscall.SIGINT)
		if s := strings.Join(p.Lines(), "\n"); !strings.Contains(s, "Peers outside can reach \"echo\"") {
			t.Error(s)
		} else {
			t.Logf("doctor -wait beside echo:\n%s", s)
		}
	})
}

// get asks for a page, which has to be there.
func get(t *testing.T, from *Namespace, host string) {
	t.Helper()
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return from.Dial(ctx, addr) }}}
	res, err := c.Get("http://" + host + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Error(res.Status)
	}
}

// A finding is what doctor prints with -json, as far as looked at here.
type finding struct {
	Forwards []struct {
		External              uint16
		Internal, Description string
		Lifetime              float64
	}
}
