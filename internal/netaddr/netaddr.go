// Package netaddr knows which addresses are on the Internet: one rule for the
// whole module.
package netaddr

import (
	"net"
	"net/netip"
)

// sharedNAT is the range of carrier-grade NATs (RFC 6598).
var sharedNAT = netip.MustParsePrefix("100.64.0.0/10")

// special is what is not the Internet although netip calls it global unicast: of
// the IANA registries of special-purpose addresses (RFC 6890) what no peer
// elsewhere can connect to.
var special = []netip.Prefix{
	sharedNAT,
	netip.MustParsePrefix("0.0.0.0/8"),      // RFC 791: this network
	netip.MustParsePrefix("192.0.0.0/24"),   // RFC 6890: protocol assignments; DS-Lite, and the CLAT of an IPv6-only network (RFC 7335)
	netip.MustParsePrefix("192.88.99.0/24"), // RFC 7526: 6to4 relays
	netip.MustParsePrefix("198.18.0.0/15"),  // RFC 2544: benchmarks; the tunnels of many proxies
	netip.MustParsePrefix("240.0.0.0/4"),    // RFC 1112: reserved
	netip.MustParsePrefix("64:ff9b::/96"),   // RFC 6052: NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // RFC 8215: NAT64
	netip.MustParsePrefix("100::/64"),       // RFC 6666: discard
	netip.MustParsePrefix("2001::/23"),      // RFC 2928: protocol assignments, Teredo among them
	netip.MustParsePrefix("2002::/16"),      // RFC 7526: 6to4
	netip.MustParsePrefix("5f00::/16"),      // RFC 9602: segment routing
	netip.MustParsePrefix("fec0::/10"),      // RFC 3879: site-local
}

// IsGlobal reports whether a can be an address on the Internet. Documentation
// addresses (RFC 5737, 3849) count as such: no machine has one, and examples and
// laboratories do.
func IsGlobal(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// IsSharedNAT reports whether a is from the range of carrier-grade NATs.
func IsSharedNAT(a netip.Addr) bool { return sharedNAT.Contains(a.Unmap()) }

// Elsewhere4 and Elsewhere6 stand for any address outside: one that was given up, and
// its form in IPv6 (RFC 7526). Nothing is sent to them.
var (
	Elsewhere4 = netip.MustParseAddr("192.88.99.1")
	Elsewhere6 = netip.MustParseAddr("2002:c058:6301::")
)

// SourceFor returns the address of ours that the system would send from to dst. It
// connects a UDP socket, which sends nothing. Unlike a look at the interfaces it
// follows the routing, VPNs and second addresses included, and it works where their
// list may not be read (Android from version 11, sandboxes).
func SourceFor(dst netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 9)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), nil
}

// An Addr6 is an IPv6 address of this machine.
type Addr6 struct {
	Addr  netip.Addr // without a zone
	Bits  int        // length of the prefix that it shares with its network
	Iface string     // name of its interface

	Temporary bool // RFC 8981: made to be forgotten, often within a day
	Unusable  bool // deprecated, not yet ours for sure, or a duplicate
}
