package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

var report = nat.Report{
	Diagnosis: nat.Diagnosis{Code: "ready", Summary: "It would be."},
	Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.5")},
	Gateways:  []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.2")},
	Router:    nat.Router{Name: "FRITZ!Box 7590", Maker: "AVM", Model: "FRITZ!Box 7590", Page: "http://192.168.1.1/"},
	Protocols: []nat.ProtocolReport{
		{Name: "pcp", Gateway: netip.MustParseAddr("192.168.1.1"), Version: "2", Took: 1500 * time.Microsecond},
		{Name: "nat-pmp", Took: 2 * time.Second, Err: errors.New("silence")},
		{Name: "upnp", Gateway: netip.MustParseAddr("192.168.1.1"), Version: "WANIPConnection:1", External: netip.MustParseAddr("203.0.113.7"), Took: 30 * time.Millisecond, Entries: []nat.PortEntry{
			{External: 9000, Internal: netip.MustParseAddrPort("192.168.1.7:80"), Description: "games", Lifetime: 5 * time.Minute},
			{External: 9001, Internal: netip.MustParseAddrPort("192.168.1.5:9000")},
		}},
	},
}

func TestTable(t *testing.T) {
	var b strings.Builder
	f := found(report, 9000)
	f.Mode = "try"
	f.tried([]peerws.Address{
		{URL: "ws://192.168.1.5:9000/", Scope: peerws.LAN, Via: "direct", State: peerws.Bound},
		{URL: "ws://203.0.113.7:9000/", Scope: peerws.Public, Via: "pcp", State: peerws.Mapped},
	}, peerws.Reachability{Code: "mapped", Summary: "It is mapped.", Detail: "So it said."})
	printAll(t, &b, f)
	want := `own address  192.168.1.5
router       FRITZ!Box 7590 at http://192.168.1.1/
router       192.168.1.2
pcp          yes (2)                                                 2 ms
nat-pmp      no answer                                               2000 ms
upnp         yes (WANIPConnection:1), outside address 203.0.113.7    30 ms
port 9000    is forwarded to 192.168.1.7:80 already, called "games", for another 5m0s
port 9001    is forwarded to 192.168.1.5:9000 already
tried        ws://203.0.113.7:9000/ led here via pcp; no connection of ours came back through it, which most routers do not allow; given back

Peers outside may be able to reach this machine. It is mapped.

Whether somebody outside gets in, -wait shows: it keeps the port open and prints a link for a phone with Wi-Fi off.

What was said: So it said.
`
	if squeeze(b.String()) != squeeze(want) {
		t.Errorf("got\n%s", b.String())
	}
	if err := f.closed(fmt.Errorf("close: %w", &nat.Error{Mapper: "pcp", Op: "unmap", Kind: nat.Refused})); err != nil {
		t.Error(err)
	}
	b.Reset()
	printAll(t, &b, f)
	if s := b.String(); !strings.Contains(s, "NOT given back: pcp unmap: refused") {
		t.Errorf("got\n%s", s)
	}
	b.Reset()
	f.Mapped = nil
	f.tried([]peerws.Address{{URL: "ws://203.0.113.7:9000/", Scope: peerws.Public, Via: "pcp", State: peerws.Verified}}, peerws.Reachability{Code: "verified", Summary: "It came back."})
	printAll(t, &b, f)
	if s := b.String(); !strings.Contains(s, "\nPeers outside may be able to reach this machine. It came back.\n") || !strings.Contains(s, "; a connection of ours came back through it; given back\n") {
		t.Errorf("got\n%s", s)
	}
	b.Reset()
	f = found(report, 9000)
	f.tried(nil, peerws.Reachability{Code: "cgnat", Summary: "It is not.", Advice: "Move."})
	printAll(t, &b, f)
	if !strings.HasSuffix(b.String(), "\nPeers cannot reach this machine yet. It is not.\n\nMove.\n") || strings.Contains(b.String(), "tried") {
		t.Errorf("got\n%s", b.String())
	}
}

func printAll(t *testing.T, b *strings.Builder, f finding) {
	t.Helper()
	if err := errors.Join(printTable(b, f), printVerdict(b, f)); err != nil {
		t.Fatal(err)
	}
}

// What the plain run cannot know it does not say, and it says what would.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		f    finding
		want []string
	}{
		{finding{Reachable: true, Code: nat.CodeReady}, []string{"outside may be able", "-try shows", "-wait"}},
		{finding{Reachable: true, Code: nat.CodeVerified, Mode: "try"}, []string{"outside may be able", "-wait shows"}},
		{finding{Reachable: true, Code: nat.CodeVerified, Mode: "wait", Proved: true}, []string{"Peers outside can reach this machine."}},
		{finding{Code: nat.CodeRefused}, []string{"cannot reach this machine yet", "by hand, run this with -wait"}},
		{finding{Code: nat.CodeCGNAT}, []string{"cannot reach this machine yet"}},
	} {
		var b strings.Builder
		printVerdict(&b, c.f)
		for _, want := range c.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%+v: no %q in %s", c.f, want, &b)
			}
		}
	}
}

// squeeze forgets how wide columns are.
func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestJSON(t *testing.T) {
	var b strings.Builder
	r := report
	r.Diagnosis = nat.Diagnosis{Code: "ready", Summary: "It would be.", Detail: "it said so"}
	if err := printJSON(&b, found(r, 9000)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"192.168.1.5"`, `"name": "pcp"`, `"ms": 1.5`, `"error": "silence"`, `"external": "203.0.113.7"`, `"code": "ready"`, `"detail": "it said so"`, `"description": "games"`, `"lifetime": 300`, `"reachable": true`, `"proved": false`, `"page": "http://192.168.1.1/"`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), `"mapped"`) {
		t.Errorf("mapped without a try:\n%s", b.String())
	}
}

// A program that has the port already is looked at: what the router has for it.
func TestBeside(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	own := netip.MustParseAddr("192.168.1.5")
	upnp := func(entries ...nat.PortEntry) []nat.ProtocolReport {
		return []nat.ProtocolReport{{Name: "upnp", Gateway: netip.MustParseAddr("192.168.1.1"), External: netip.MustParseAddr("203.0.113.7"), Entries: entries}}
	}
	for _, c := range []struct {
		name      string
		protocols []nat.ProtocolReport
		code      nat.Code
		summary   string
		reachable bool
	}{
		{"forwarded", upnp(nat.PortEntry{External: 9001, Internal: netip.AddrPortFrom(own, port)}), nat.CodeMapped, "The router forwards 203.0.113.7:9001 to ", true},
		{"forwarded to another", upnp(nat.PortEntry{External: port, Internal: netip.MustParseAddrPort("192.168.1.9:80")}), nat.CodeReady, "no forward to ", false},
		{"not forwarded", upnp(), nat.CodeReady, "no forward to ", false},
		{"no table", []nat.ProtocolReport{{Name: "pcp", Gateway: netip.MustParseAddr("192.168.1.1")}}, nat.CodeReady, "cannot be seen", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, try := range []bool{false, true} {
				d := doctor{port: port, address: "127.0.0.1", mapper: nat.None(), probe: func(context.Context, uint16) (nat.Report, error) {
					return nat.Report{Diagnosis: nat.Diagnosis{Code: nat.CodeReady, Summary: "It would be."}, Addresses: []netip.Addr{own}, Protocols: c.protocols}, nil
				}}
				f, err := d.examine(t.Context(), try, false)
				if err != nil || f.Running == "" || f.Code != c.code || !strings.Contains(f.Summary, c.summary) || f.Reachable != c.reachable {
					t.Errorf("try %v: %+v, %v", try, f, err)
				}
				var b strings.Builder
				if printAll(t, &b, f); !strings.Contains(b.String(), "is in use on this machine, by "+f.Running) {
					t.Error(b.String())
				}
			}
		})
	}
	d := doctor{port: port, external: netip.MustParseAddrPort("203.0.113.7:80"), probe: func(context.Context, uint16) (nat.Report, error) {
		return nat.Report{Diagnosis: nat.Diagnosis{Code: nat.CodeNoGateway}}, nil
	}}
	if f, err := d.examine(t.Context(), false, false); err != nil || !f.Reachable || len(f.Mapped) != 1 || !strings.HasPrefix(f.Summary, "203.0.113.7:80 was forwarded by hand to ") {
		t.Errorf("%+v, %v", f, err)
	}
	if runtime.GOOS == "linux" {
		if s := holder(port); !strings.Contains(s, fmt.Sprintf("(process %d)", os.Getpid())) {
			t.Error(s)
		}
	}
}

func TestParseTCP(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the lines are those of a little-endian machine")
	}
	got := parseTCP(`  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000 100 0 0 10 0
   1: 1701A8C0:2328 076433C6:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0000 100 0 0 10 0
   2: 0000000000000000FFFF00001701A8C0:2328 0000000000000000FFFF0000076433C6:C351 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0000 100 0 0 10 0
   3: B80D0120000000000000000005000000:2328 B80D0120010000000000000009000000:C350 01 00000000:00000000 00:00000000 00000000     0        0 7 1 0000 100 0 0 10 0
   4: nonsense
`)
	want := []tcpLine{
		{netip.MustParseAddrPort("127.0.0.1:9000"), netip.MustParseAddrPort("0.0.0.0:0"), "0A", "4242"},
		{netip.MustParseAddrPort("192.168.1.23:9000"), netip.MustParseAddrPort("198.51.100.7:50000"), "01", "4243"},
		{netip.MustParseAddrPort("192.168.1.23:9000"), netip.MustParseAddrPort("198.51.100.7:50001"), "06", "0"},
		{netip.MustParseAddrPort("[2001:db8::5]:9000"), netip.MustParseAddrPort("[2001:db8:0:1::9]:50000"), "01", "7"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// Flags that make no sense together are refused before anybody is asked.
func TestUsage(t *testing.T) {
	for _, args := range []string{"-try -wait", "-port 0", "-port 70000", "-for 0s -wait", "-external 203.0.113.7:80", "-external nonsense -try", "more", "-what"} {
		var b strings.Builder
		if code := run(t.Context(), strings.Fields(args), io.Discard, &b, drawNothing); code != 2 || b.Len() == 0 {
			t.Errorf("%s: %d, %s", args, code, &b)
		}
	}
}
