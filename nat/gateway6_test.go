package nat

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/peerws/peerws/internal/netaddr"
)

// host6 is a machine with IPv6 as the tests want it.
func host6(routes []route, addrs ...netaddr.Addr6) host {
	return host{
		six:    true,
		routes: func() ([]route, error) { return slices.Clone(routes), nil },
		addrs:  func() ([]netaddr.Addr6, error) { return slices.Clone(addrs), nil },
	}
}

func at6(s, iface string) netaddr.Addr6 {
	return netaddr.Addr6{Addr: netip.MustParseAddr(s), Bits: 64, Iface: iface}
}

// Which of our addresses are worth a gateway's trouble.
func TestUsable6(t *testing.T) {
	temporary, deprecated := at6("2001:db8:1::dead", "eth0"), at6("2001:db8:1::5", "eth0")
	temporary.Temporary, deprecated.Unusable = true, true
	lonely := at6("2001:db8:2::dead", "eth0")
	lonely.Temporary = true
	routes := []route{{gateway: netip.MustParseAddr("fe80::1"), iface: "eth0"}, {iface: "tun0"}}
	h := host6(routes,
		at6("::1", "lo"), at6("fe80::2", "eth0"), at6("fd00::2", "eth0"), temporary, deprecated, at6("2001:db8:1::2", "eth0"), lonely,
		at6("2001:db8:3::2", "docker0"), at6("2001:db8:4::2", "tun0"), at6("2001:db8:1::3", "eth0"), at6("2001:db8:1::2", "eth0"))
	want := []string{"2001:db8:1::2", "2001:db8:1::3", "2001:db8:2::dead"}
	var got []string
	for _, a := range h.usable() {
		got = append(got, a.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	var many []netaddr.Addr6
	for i := range 20 {
		many = append(many, at6("2001:db8:1::"+string(rune('a'+i%6))+strings.Repeat("1", i/6), "eth0"))
	}
	if n := len(host6(routes, many...).usable()); n != maxAddrs6 {
		t.Errorf("%d addresses", n)
	}
	if n := len(host6(nil, at6("2001:db8:1::2", "eth0")).usable()); n != 0 {
		t.Errorf("%d addresses without a route", n)
	}
}

// The gateways of an address are those of its interface, which is the zone of
// their link-local addresses.
func TestLinks6(t *testing.T) {
	own := netip.MustParseAddr("2001:db8:1::2")
	h := host6([]route{
		{gateway: netip.MustParseAddr("fe80::2"), iface: "eth0", metric: 200},
		{gateway: netip.MustParseAddr("fe80::9"), iface: "wlan0", metric: 1},
		{gateway: netip.MustParseAddr("fe80::1"), iface: "eth0", metric: 100},
		{gateway: netip.MustParseAddr("2001:db8:1::1"), iface: "eth0", metric: 300},
		{gateway: netip.MustParseAddr("fe80::1"), iface: "eth0", metric: 400},
		{iface: "eth0", metric: 1},
	}, at6("2001:db8:1::2", "eth0"), at6("fd00::2", "eth0"))
	got, err := h.links(own)
	want := []link{{netip.MustParseAddr("fe80::1%eth0"), own}, {netip.MustParseAddr("fe80::2%eth0"), own}, {netip.MustParseAddr("2001:db8:1::1"), own}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for a, want := range map[string]error{"::1": errLoopback, "fd00::2": errNotGlobal, "fe80::5": errNotGlobal, "::": errNotIPv6, "192.0.2.1": errNotIPv6, "2001:db8:1::77": errNoRoute} {
		if _, err := h.links(netip.MustParseAddr(a)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", a, err, want)
		}
	}
}
