package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws/nat"
)

var report = nat.Report{
	Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.5")},
	Gateways:  []netip.Addr{netip.MustParseAddr("192.168.1.1")},
	Protocols: []nat.ProtocolReport{
		{Name: "pcp", Gateway: netip.MustParseAddr("192.168.1.1"), Version: "2", Took: 1500 * time.Microsecond},
		{Name: "nat-pmp", Took: 2 * time.Second, Err: errors.New("silence")},
		{Name: "upnp", Gateway: netip.MustParseAddr("192.168.1.1"), Version: "WANIPConnection:1", External: netip.MustParseAddr("203.0.113.7"), Took: 30 * time.Millisecond},
	},
}

func TestTable(t *testing.T) {
	lease := nat.Lease{External: netip.MustParseAddrPort("203.0.113.7:9000"), Internal: netip.MustParseAddrPort("192.168.1.5:9000"), Via: "pcp", Lifetime: 2 * time.Minute}
	var b strings.Builder
	f := found(report, nat.Status{Leases: []nat.Lease{lease}, Diagnosis: nat.Diagnosis{Code: "mapped", Summary: "It is mapped."}})
	if err := printTable(&b, f); err != nil {
		t.Fatal(err)
	}
	want := `own address  192.168.1.5
router       192.168.1.1
pcp          yes (2)                                                 2 ms
nat-pmp      no answer                                               2000 ms
upnp         yes (WANIPConnection:1), outside address 203.0.113.7    30 ms
tried        203.0.113.7:9000 was forwarded to 192.168.1.5:9000 via pcp, and given back

Peers can reach this machine, as far as can be told from inside. It is mapped.
`
	if squeeze(b.String()) != squeeze(want) {
		t.Errorf("got\n%s", b.String())
	}
	b.Reset()
	if err := printTable(&b, found(report, nat.Status{Diagnosis: nat.Diagnosis{Code: "cgnat", Summary: "It is not.", Advice: "Move."}})); err != nil {
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
	if err := printJSON(&b, found(report, nat.Status{Diagnosis: nat.Diagnosis{Code: "ready", Summary: "It would be."}})); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"192.168.1.5"`, `"name": "pcp"`, `"ms": 1.5`, `"error": "silence"`, `"external": "203.0.113.7"`, `"code": "ready"`, `"reachable": true`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "mapped") {
		t.Errorf("mapped without a try:\n%s", b.String())
	}
}
