package nat

import "net/netip"

// ownAddresser is what a Mapper has that can tell the address by which this
// machine leaves the network. A user's Mapper does not, so it is always asked.
type ownAddresser interface {
	// ownAddr is the address that faces the gateway when bound is
	// unspecified, else bound.
	ownAddr(bound netip.Addr) netip.Addr
}

// What is not the Internet although netip calls it global unicast.
var (
	sharedNAT  = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: carrier-grade NAT
	notOutside = []netip.Prefix{
		sharedNAT,
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("192.0.0.0/24"),  // RFC 6890: protocol assignments, DS-Lite among them
		netip.MustParsePrefix("198.18.0.0/15"), // RFC 2544: benchmarks
		netip.MustParsePrefix("240.0.0.0/4"),   // RFC 1112: reserved
	}
)

// isGlobal reports whether a can be an address on the Internet. Documentation
// addresses (RFC 5737) count as such: no gateway has one, and examples do.
func isGlobal(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notOutside {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// isSharedNAT reports whether a is from the range of carrier-grade NATs.
func isSharedNAT(a netip.Addr) bool { return sharedNAT.Contains(a.Unmap()) }

// An addresser6 is a Mapper that can do something for IPv6 addresses, and
// knows which of them are worth it. Of a user's Mapper nothing is known, so it
// is asked for an IPv6 address only if that is what the listener is bound to.
type addresser6 interface {
	// addrs6 lists the addresses of ours at which peers outside could reach us.
	addrs6() []netip.Addr

	// gateway6 is the gateway in front of one of them, invalid if there is none.
	gateway6(netip.Addr) netip.Addr
}
