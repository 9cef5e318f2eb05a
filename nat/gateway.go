package nat

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/peerws/peerws/internal/netaddr"
)

// A route is a default route.
type route struct {
	gateway netip.Addr // without a zone; invalid on a point-to-point link, which needs none
	iface   string     // name of the interface, "" if only the index is known
	index   int        // index of the interface, 0 if only the name is known
	metric  int        // the smaller one is used
}

// A link is a gateway and the address of ours that it sees.
type link struct {
	gateway netip.Addr // with its zone, if it is link-local
	local   netip.Addr
}

// A host is what the mappers ask of the machine they run on. Tests put a
// loopback one in its place.
type host struct {
	// routes lists the default routes. An error means it cannot be known
	// here, which is not the same as there being none.
	routes func() ([]route, error)

	// source is the address this machine would send from to dst.
	source func(dst netip.Addr) (netip.Addr, error)

	// prefixes lists the directly connected IPv4 subnets, with our address in each.
	prefixes func() ([]netip.Prefix, error)

	// six says that this is about IPv6. Then addrs takes the place of source and
	// prefixes: which address faces the gateway is the listener's to say.
	six   bool
	addrs func() ([]netaddr.Addr6, error)

	// plugged reports whether the interface of a route has a connection, true if that
	// cannot be known; nil: all have. watch is netaddr.Watch, or nil.
	plugged func(route) bool
	watch   func(ctx context.Context, changed func()) error

	// loopback allows gateways and ourselves on loopback: for tests.
	loopback bool
}

// maxGateways bounds how many gateways are asked at once.
const maxGateways = 4

var (
	errNoRoute   = errors.New("no default route")
	errUnplugged = errors.New("the interface of the default route has no connection")
	errTunnel    = errors.New("the default route leads into a tunnel")
	errOtherWay  = errors.New("the way out is not in the main table of routes")
	errNoSource  = errors.New("no address of our own faces the gateway")
	errIPv6      = errors.New("only IPv4 addresses can be mapped")
	errNotIPv6   = errors.New("no IPv6 address of our own")
	errNotGlobal = errors.New("the address cannot be reached from outside, whoever lets peers in")
	errLoopback  = errors.New("the listener is bound to loopback, where no gateway can forward to")
	errNoPort    = errors.New("the internal port is 0")
	errForeign   = errors.New("the lease was not made by this mapper")
)

// links lists the gateways to ask for a listener bound to bound, the
// preferred one first. Where the system does not say which they are, the
// first address of each private subnet is guessed: harmless, as it counts
// only if it answers.
func (h host) links(bound netip.Addr) ([]link, error) {
	bound = bound.Unmap()
	if h.six {
		return h.links6(bound)
	}
	switch {
	case bound.IsValid() && !bound.IsUnspecified() && !bound.Is4():
		return nil, &Error{Kind: Unsupported, Err: errIPv6}
	case bound.IsLoopback() && !h.loopback:
		return nil, &Error{Kind: Unsupported, Err: errLoopback}
	}
	var gateways []netip.Addr
	kind := NoNetwork
	routes, err := h.routes()
	if err != nil {
		if gateways = h.guess(); h.leaves(netaddr.Elsewhere4).IsValid() {
			kind = NoGateway
		}
	} else {
		if routes, err = h.connected(routes); err != nil {
			return nil, err
		}
		slices.SortStableFunc(routes, func(a, b route) int { return cmp.Compare(a.metric, b.metric) })
		for _, r := range routes {
			if r.gateway.IsValid() && !slices.Contains(gateways, r.gateway) {
				gateways = append(gateways, r.gateway)
			}
		}
		if err = errNoRoute; len(gateways) == 0 && h.leaves(netaddr.Elsewhere4).IsValid() && !isGlobal(tunnelAddr(routes)) {
			// There is a way out, with nobody to ask on it: a tunnel, or one by a
			// rule of its own. A router may be there all the same.
			if kind, err = NoGateway, errTunnel; len(routes) == 0 {
				err = errOtherWay
			}
			gateways = h.guess()
		}
	}
	var links []link
	for _, g := range gateways[:min(len(gateways), maxGateways)] {
		if l, e := h.link(g, bound); e == nil {
			links = append(links, l)
		} else {
			err = e
		}
	}
	if len(links) == 0 {
		return nil, &Error{Kind: kind, Err: err}
	}
	return links, nil
}

// connected are those routes whose interface has a connection. Without one the
// system may keep the address and the route for a while.
func (h host) connected(routes []route) ([]route, error) {
	if h.plugged == nil || len(routes) == 0 {
		return routes, nil
	}
	routes = slices.DeleteFunc(routes, func(r route) bool { return !h.plugged(r) })
	if len(routes) == 0 {
		return nil, &Error{Kind: NoNetwork, Err: errUnplugged}
	}
	return routes, nil
}

// plugged asks the system. Only the flag that an interface is up and not running is
// believed.
func plugged(r route) bool {
	var i *net.Interface
	var err error
	switch {
	case r.iface != "":
		i, err = net.InterfaceByName(r.iface)
	case r.index != 0:
		i, err = net.InterfaceByIndex(r.index)
	default:
		return true
	}
	return err != nil || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagRunning != 0
}

// leaves is the address of ours that packets to dst would come from, invalid if there
// is no way to it.
func (h host) leaves(dst netip.Addr) netip.Addr {
	if h.source == nil {
		return netip.Addr{}
	}
	a, err := h.source(dst)
	if err != nil || a.IsUnspecified() || a.IsLoopback() && !h.loopback {
		return netip.Addr{}
	}
	return a.Unmap()
}

// otherWay is leaves, if it is neither own nor of the same network.
func (h host) otherWay(own, dst netip.Addr) netip.Addr {
	out := h.leaves(dst)
	if out == own || out == dst { // dst is ours, too
		return netip.Addr{}
	}
	prefixes, err := h.subnets()
	if err == nil && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(out) && p.Contains(own) }) {
		return netip.Addr{}
	}
	return out
}

// link is the link to one gateway for a listener bound to bound.
func (h host) link(gateway, bound netip.Addr) (link, error) {
	local := bound.Unmap()
	if !local.IsValid() || local.IsUnspecified() {
		var err error
		if local, err = h.source(gateway); err != nil {
			return link{}, err
		}
		local = local.Unmap()
	}
	if !local.Is4() || local.IsUnspecified() || local.IsLoopback() && !h.loopback {
		return link{}, errNoSource
	}
	return link{gateway: gateway, local: local}, nil
}

// rememberedLink is the link to the gateway of prev, else to the known one, if
// we still have it.
func rememberedLink(links []link, known netip.Addr, prev *Lease) (link, bool) {
	if prev != nil {
		known = prev.Gateway
	}
	for _, l := range links {
		if l.gateway == known {
			return l, true
		}
	}
	return link{}, false
}

// subnets lists the directly connected networks.
func (h host) subnets() ([]netip.Prefix, error) {
	if h.six {
		return h.networks()
	}
	return h.prefixes()
}

// guess is the first address of each private subnet we are on.
func (h host) guess() []netip.Addr {
	if h.prefixes == nil {
		return nil
	}
	prefixes, err := h.prefixes()
	if err != nil {
		return nil
	}
	var all []netip.Addr
	for _, p := range prefixes {
		first := p.Masked().Addr().Next()
		if p.Addr().IsPrivate() && p.Bits() < 31 && first != p.Addr() && !slices.Contains(all, first) {
			all = append(all, first)
		}
	}
	return all
}

// ownAddr is the address by which this machine leaves its network: bound if
// that is one, else the one that faces the first gateway, else, on a
// point-to-point link, the one of its interface. Invalid if there is none.
func (h host) ownAddr(bound netip.Addr) netip.Addr {
	if bound = bound.Unmap(); bound.IsValid() && !bound.IsUnspecified() {
		if bound.Is4() {
			return bound
		}
		return netip.Addr{} // IPv6 has no NAT to speak of, but firewalls
	}
	routes, err := h.routes()
	if err == nil && !slices.ContainsFunc(routes, func(r route) bool { return r.gateway.IsValid() }) {
		if a := tunnelAddr(routes); a.IsValid() {
			return a
		}
	}
	if links, err := h.links(bound); err == nil {
		return links[0].local
	}
	return netip.Addr{}
}

// tunnelAddr is our address on the first of the point-to-point links among the
// routes that has one.
func tunnelAddr(routes []route) netip.Addr {
	for _, r := range routes {
		if r.gateway.IsValid() {
			continue
		}
		if a := interfaceAddr(r); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// interfaceAddr is the IPv4 address of a route's interface.
func interfaceAddr(r route) netip.Addr {
	var i *net.Interface
	var err error
	if r.iface != "" {
		i, err = net.InterfaceByName(r.iface)
	} else {
		i, err = net.InterfaceByIndex(r.index)
	}
	if err != nil {
		return netip.Addr{}
	}
	for _, p := range interfacePrefixes(i) {
		return p.Addr()
	}
	return netip.Addr{}
}

// localPrefixes lists the IPv4 subnets of all interfaces that are up.
func localPrefixes() ([]netip.Prefix, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, i := range interfaces {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			all = append(all, interfacePrefixes(&i)...)
		}
	}
	return all, nil
}

func interfacePrefixes(i *net.Interface) []netip.Prefix {
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	var all []netip.Prefix
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); !ok || !ip.Is4() {
			continue
		}
		ones, _ := n.Mask.Size()
		all = append(all, netip.PrefixFrom(ip, ones))
	}
	return all
}

// checkInternal refuses what no protocol could forward to.
func checkInternal(a netip.AddrPort) error {
	if a.Port() == 0 {
		return &Error{Kind: Unsupported, Err: errNoPort}
	}
	return nil
}
