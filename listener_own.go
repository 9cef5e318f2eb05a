package peerws

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/peerws/peerws/internal/netaddr"
)

// Which of this machine's own addresses others could use, and which of them first.

// An ownAddr is an address of this machine.
type ownAddr struct {
	ip   netip.Addr
	rank ownRank
}

// ownRank orders the addresses that only the local network can use for sure.
type ownRank uint8

const (
	ownSpecial ownRank = iota // of a tunnel, an on-machine network or none that others are on
	ownIPv6                   // global, but perhaps behind a firewall that nobody has opened
	ownLocal                  // of a network
	ownFacing                 // of the network that leads out
)

// A system is what the machine says of itself.
type system struct {
	interfaces func() ([]net.Interface, error)
	addrs      func(net.Interface) ([]net.Addr, error)
	addrs6     func() ([]netaddr.Addr6, error)
	source     func(netip.Addr) (netip.Addr, error) // the address of ours that would send to it
	watch      func(ctx context.Context, changed func()) error
}

func thisMachine() system {
	return system{
		interfaces: net.Interfaces,
		addrs:      func(i net.Interface) ([]net.Addr, error) { return i.Addrs() },
		addrs6:     netaddr.Addrs6,
		source:     netaddr.SourceFor, // which works where the list may not be read
		watch:      netaddr.Watch,
	}
}

// own lists the machine's addresses, IPv6 ones only with six. Those of no use to
// anybody else are left out, but for loopback: link-local ones of IPv6, which need a
// zone, that of the CLAT of an IPv6-only network, and IPv6 ones that are
// deprecated, tentative, duplicates, or temporary beside a stable one of their
// network.
func (s system) own(six bool) []ownAddr {
	var facing []netip.Addr
	for _, outside := range []netip.Addr{netaddr.Elsewhere4, netaddr.Elsewhere6} {
		if a, err := s.source(outside); err == nil {
			facing = append(facing, a)
		}
	}
	var list []ownAddr
	add := func(ip netip.Addr, tunnel bool) {
		ip = ip.Unmap()
		if !ip.IsValid() || ip.Is6() && (!six || ip.IsLinkLocalUnicast()) || ip.IsMulticast() || ip.IsUnspecified() || clat.Contains(ip) ||
			slices.ContainsFunc(list, func(o ownAddr) bool { return o.ip == ip }) {
			return
		}
		rank := ownLocal
		switch global := netaddr.IsGlobal(ip); {
		case ip.IsLinkLocalUnicast(), !global && !ip.IsPrivate() && !netaddr.IsSharedNAT(ip), tunnel && !global:
			rank = ownSpecial
		case ip.Is6() && global:
			rank = ownIPv6
		case slices.Contains(facing, ip):
			rank = ownFacing
		}
		list = append(list, ownAddr{ip, rank})
	}
	unfit := s.unfit6()
	interfaces, _ := s.interfaces()
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, _ := s.addrs(i)
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			if ip, ok := netip.AddrFromSlice(n.IP); ok && !slices.Contains(unfit, ip) {
				add(ip, i.Flags&net.FlagPointToPoint != 0)
			}
		}
	}
	for _, ip := range facing { // where the list may not be read
		if !slices.Contains(unfit, ip) {
			add(ip, false)
		}
	}
	if len(interfaces) == 0 {
		add(netip.AddrFrom4([4]byte{127, 0, 0, 1}), false)
	}
	return list
}

// clat is where the IPv4 addresses of an IPv6-only network's translator are from
// (RFC 7335): nobody else is there.
var clat = netip.MustParsePrefix("192.0.0.0/29")

// unfit6 lists the IPv6 addresses that are not to be told to others.
func (s system) unfit6() (unfit []netip.Addr) {
	all, err := s.addrs6()
	if err != nil {
		return nil
	}
	network := func(a netaddr.Addr6) netip.Prefix {
		p, _ := a.Addr.Prefix(64)
		return p
	}
	for _, a := range all {
		stable := func(b netaddr.Addr6) bool { return !b.Temporary && !b.Unusable && network(a) == network(b) }
		if a.Unusable || a.Temporary && slices.ContainsFunc(all, stable) {
			unfit = append(unfit, a.Addr)
		}
	}
	return unfit
}

// ownAddrs are the addresses of this machine that the listener is bound to, the
// widest scope last, and of one scope the best last.
func (l *WebSocketListener) ownAddrs() []ownAddr {
	bound := addrPortOf(l.Addr())
	switch {
	case !bound.IsValid():
		return nil
	case !bound.Addr().IsUnspecified():
		ip := bound.Addr()
		if ip.Is6() && ip.IsLinkLocalUnicast() {
			return nil // of no use without a zone, which URLs do not have
		}
		return []ownAddr{{ip, ownFacing}}
	}
	list := l.machine.own(bound.Addr().Is6())
	slices.SortStableFunc(list, func(a, b ownAddr) int {
		return cmp.Or(cmp.Compare(scopeOf(a.ip), scopeOf(b.ip)), cmp.Compare(a.rank, b.rank))
	})
	return list
}

// boundAddresses are own as Addresses has them.
func (l *WebSocketListener) boundAddresses(own []ownAddr) []Address {
	var list []Address
	for _, o := range own {
		list = append(list, Address{URL: l.urlOf(netip.AddrPortFrom(o.ip, uint16(l.port))), Scope: scopeOf(o.ip), Via: "direct", State: Bound})
	}
	return list
}

// URL returns the best address a peer can use now; "" if there is none. What is
// verified comes before what is mapped and before an IPv4 address of this machine's
// that is public itself; then come those of the local network, that of the network
// which leads out first; and then global IPv6 addresses, of which nobody knows
// whether a firewall in front lets peers in.
func (l *WebSocketListener) URL() string {
	own := l.ownAddrs()
	ranks := make(map[string]ownRank)
	for _, o := range own {
		ranks[l.urlOf(netip.AddrPortFrom(o.ip, uint16(l.port)))] = o.rank
	}
	var best Address
	var most [3]int
	for _, a := range l.addresses(own) {
		rank, mine := ranks[a.URL]
		var r [3]int
		switch {
		case a.State == Lost:
			continue
		case a.Scope == Loopback:
			r = [3]int{1}
		case a.Scope == Public && (a.State != Bound || rank != ownIPv6 || !mine):
			r = [3]int{3, int(a.State)}
		default:
			r = [3]int{2, int(a.State)<<4 + int(rank)}
		}
		if !strings.Contains(a.URL, "[") {
			r[2] = 1
		}
		if slices.Compare(r[:], most[:]) > 0 {
			best, most = a, r
		}
	}
	return best.URL
}
