package nat

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	"github.com/peerws/peerws/internal/netaddr"
)

// maxAddrs6 bounds for how many addresses at once gateways are asked.
const maxAddrs6 = 4

// systemHost6 is this machine for IPv6.
func systemHost6() host {
	return host{six: true, routes: defaultRoutes6, addrs: netaddr.Addrs6, plugged: plugged, watch: netaddr.Watch}
}

// usable lists the addresses at which peers outside could reach this machine
// if the gateway let them: global ones, in a network with a gateway. Of one
// network the temporary ones count only if there is no other.
func (h host) usable() []netip.Addr {
	all, err := h.addrs()
	if err != nil {
		return nil
	}
	routes, err := h.routes()
	if err != nil {
		return nil
	}
	slices.SortStableFunc(all, func(a, b netaddr.Addr6) int { return compareBool(a.Temporary, b.Temporary) })
	var list []netip.Addr
	networks := make(map[netip.Prefix]bool)
	for _, a := range all {
		network, err := a.Addr.Prefix(64)
		if err != nil || a.Unusable || !isGlobal(a.Addr) && !h.loopback || a.Temporary && networks[network] {
			continue
		}
		if !slices.ContainsFunc(routes, func(r route) bool { return r.gateway.IsValid() && r.leaves(a.Iface) }) || slices.Contains(list, a.Addr) {
			continue
		}
		networks[network] = true
		list = append(list, a.Addr)
	}
	return list[:min(len(list), maxAddrs6)]
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// leaves reports whether the route goes out by the interface.
func (r route) leaves(iface string) bool {
	if r.iface != "" {
		return r.iface == iface
	}
	i, err := net.InterfaceByIndex(r.index)
	return err == nil && i.Name == iface
}

// links6 lists the gateways to ask for one IPv6 address of ours: those of its
// interface, the preferred one first. As a rule a gateway is known by a
// link-local address, which says nothing without the interface as its zone.
func (h host) links6(bound netip.Addr) ([]link, error) {
	switch {
	case !bound.Is6() || bound.IsUnspecified():
		return nil, &Error{Kind: Unsupported, Err: errNotIPv6}
	case bound.IsLoopback() && !h.loopback:
		return nil, &Error{Kind: Unsupported, Err: errLoopback}
	case !isGlobal(bound) && !h.loopback:
		return nil, &Error{Kind: Unsupported, Err: errNotGlobal}
	}
	all, err := h.addrs()
	if err != nil {
		return nil, &Error{Kind: NoNetwork, Err: err}
	}
	routes, err := h.routes()
	if err != nil {
		return nil, &Error{Kind: NoNetwork, Err: err}
	}
	if routes, err = h.connected(routes); err != nil {
		return nil, err
	}
	slices.SortStableFunc(routes, func(a, b route) int { return cmp.Compare(a.metric, b.metric) })
	var links []link
	for _, a := range all {
		if a.Addr != bound {
			continue
		}
		for _, r := range routes {
			if !r.gateway.IsValid() || !r.leaves(a.Iface) {
				continue
			}
			l := link{gateway: r.gateway.WithZone(""), local: bound}
			if l.gateway.IsLinkLocalUnicast() {
				l.gateway = l.gateway.WithZone(a.Iface)
			}
			if !slices.Contains(links, l) && len(links) < maxGateways {
				links = append(links, l)
			}
		}
	}
	if len(links) == 0 {
		return nil, &Error{Kind: NoNetwork, Err: errNoRoute}
	}
	return links, nil
}

// networks lists the directly connected IPv6 networks, link-local included.
func (h host) networks() ([]netip.Prefix, error) {
	all, err := h.addrs()
	if err != nil {
		return nil, err
	}
	list := []netip.Prefix{netip.MustParsePrefix("fe80::/10")}
	for _, a := range all {
		list = append(list, netip.PrefixFrom(a.Addr, a.Bits))
	}
	return list, nil
}
