package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

var report = nat.Report{
	Diagnosis: nat.Diagnosis{Code: "ready", Summary: "It would be."},
	Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.5")},
	Gateways:  []netip.Addr{netip.MustParseAddr("192.168.1.1")},
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
	f.tried([]peerws.Address{
		{URL: "ws://192.168.1.5:9000/", Scope: peerws.LAN, Via: "direct", State: peerws.Bound},
		{URL: "ws://203.0.113.7:9000/", Scope: peerws.Public, Via: "pcp", State: peerws.Mapped},
	}, peerws.Reachability{Code: "mapped", Summary: "It is mapped."})
	if err := printTable(&b, f); err != nil {
		t.Fatal(err)
	}
	want := `own address  192.168.1.5
router       192.168.1.1
pcp          yes (2)                                                 2 ms
nat-pmp      no answer                                               2000 ms
upnp         yes (WANIPConnection:1), outside address 203.0.113.7    30 ms
port 9000    is forwarded to 192.168.1.7:80 already, called "games", for another 5m0s
port 9001    is forwarded to 192.168.1.5:9000 already
tried        ws://203.0.113.7:9000/ led here via pcp; no connection of ours came back through it, which most routers do not allow; given back

Peers can reach this machine, as far as can be told from inside. It is mapped.
`
	if squeeze(b.String()) != squeeze(want) {
		t.Errorf("got\n%s", b.String())
	}
	b.Reset()
	f.Mapped = nil
	f.tried([]peerws.Address{{URL: "ws://203.0.113.7:9000/", Scope: peerws.Public, Via: "pcp", State: peerws.Verified}}, peerws.Reachability{Code: "verified", Summary: "It came back."})
	if err := printTable(&b, f); err != nil {
		t.Fatal(err)
	}
	if s := b.String(); !strings.HasSuffix(s, "\nPeers can reach this machine. It came back.\n") || !strings.Contains(s, "; a connection of ours came back through it; given back\n") {
		t.Errorf("got\n%s", s)
	}
	b.Reset()
	f = found(report, 9000)
	f.tried(nil, peerws.Reachability{Code: "cgnat", Summary: "It is not.", Advice: "Move."})
	if err := printTable(&b, f); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(b.String(), "\nPeers cannot reach this machine yet. It is not. Move.\n") || strings.Contains(b.String(), "tried") {
		t.Errorf("got\n%s", b.String())
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
	for _, want := range []string{`"192.168.1.5"`, `"name": "pcp"`, `"ms": 1.5`, `"error": "silence"`, `"external": "203.0.113.7"`, `"code": "ready"`, `"detail": "it said so"`, `"description": "games"`, `"lifetime": 300`, `"reachable": true`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), `"mapped"`) {
		t.Errorf("mapped without a try:\n%s", b.String())
	}
}
