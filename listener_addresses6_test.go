package peerws

import (
	"net"
	"net/netip"
	"testing"

	"github.com/peerws/peerws/nat"
)

// An IPv6 address that the router lets peers in to is our own: it is listed
// once, as mapped while it is, and then as bound.
func TestAddressesMappedIPv6(t *testing.T) {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 on this system: %v", err)
	}
	l, err := ListenConfig{}.Serve(ln)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := addrPortOf(ln.Addr())
	url := "ws://" + at.String() + "/"
	status := func(leases ...nat.Lease) nat.Status {
		return nat.Status{Settled: true, Leases: leases, Diagnosis: nat.Diagnosis{Code: "mapped"}}
	}
	lease := nat.Lease{Internal: at, External: at, Via: "pcp"}
	four := nat.Lease{Internal: netip.MustParseAddrPort("192.168.1.5:9000"), External: netip.MustParseAddrPort("203.0.113.7:9000"), Via: "pcp"}
	for i, c := range []struct {
		status nat.Status
		want   Address
		n      int
	}{
		{status(), Address{url, Loopback, "direct", Bound}, 1},
		{status(lease), Address{url, Loopback, "pcp", Mapped}, 1},
		{status(four, lease), Address{url, Loopback, "pcp", Mapped}, 2},
		{status(four), Address{url, Loopback, "direct", Bound}, 2},
		{status(), Address{url, Loopback, "direct", Bound}, 2}, // and a lost one
	} {
		l.mappingChanged(c.status)
		var got []Address
		for _, a := range l.Addresses() {
			if a.URL == url {
				got = append(got, a)
			}
		}
		if len(got) != 1 || got[0] != c.want || len(l.Addresses()) != c.n {
			t.Errorf("%d: %+v", i, l.Addresses())
		}
	}
}
