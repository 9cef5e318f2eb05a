package netaddr

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseAddr6(t *testing.T) {
	const table = `00000000000000000000000000000001 01 80 10 80       lo
20010db80077000000000000000000aa 02 40 00 100     eth0
20010db80077000000000000000000bb 02 40 00 01     eth0
20010db80077000000000000000000cc 02 40 00 21     eth0
20010db80077000000000000000000dd 02 40 00 40     eth0
20010db80077000000000000000000ee 02 40 00 88     eth0
nonsense
`
	got, err := parseAddr6(strings.NewReader(table))
	a := func(s string, temporary, unusable bool) Addr6 {
		return Addr6{Addr: netip.MustParseAddr(s), Bits: 64, Iface: "eth0", Temporary: temporary, Unusable: unusable}
	}
	lo := Addr6{Addr: netip.IPv6Loopback(), Bits: 128, Iface: "lo"}
	want := []Addr6{lo, a("2001:db8:77::aa", false, false), a("2001:db8:77::bb", true, false), a("2001:db8:77::cc", true, true), a("2001:db8:77::dd", false, true), a("2001:db8:77::ee", false, true)}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
