package nat

import (
	"context"
	"net/netip"

	"github.com/peerws/peerws/internal/netaddr"
)

// Options are those of the Mappers of this package. The zero value asks the gateways
// of the default routes, as [Any], [PCP], [NATPMP], [UPnP] and [Probe] do.
type Options struct {
	// Gateway is asked in place of them: the far end of a VPN that forwards ports
	// (10.2.0.1, say), or a router that is not on the way out. It is an IPv4
	// address, or an IPv6 one, link-local with its zone; then nothing is asked over
	// the other family. It must be one that this machine reaches without a router.
	Gateway netip.Addr
}

// Any is [Any] with these options.
func (o Options) Any() Mapper {
	h, h6 := o.hosts()
	four := newAny(
		candidate{mapper: newPCP(h), blind: true, limit: mapLimit},
		candidate{mapper: newNATPMP(h), wait: pcpHeadStart, limit: mapLimit},
		candidate{mapper: newUPnP(h, systemSearcher()), wait: searchHeadStart},
	)
	six := newAny(
		candidate{mapper: newPCP(h6), blind: true, limit: mapLimit},
		candidate{mapper: newPinhole(newUPnP(h6, systemSearcher6())), wait: searchHeadStart},
	)
	return newDual(four, h6, six)
}

// PCP is [PCP] with these options.
func (o Options) PCP() Mapper {
	h, h6 := o.hosts()
	return newDual(newPCP(h), h6, newPCP(h6))
}

// NATPMP is [NATPMP] with these options.
func (o Options) NATPMP() Mapper {
	h, _ := o.hosts()
	return newNATPMP(h)
}

// UPnP is [UPnP] with these options.
func (o Options) UPnP() Mapper {
	h, h6 := o.hosts()
	return newDual(newUPnP(h, systemSearcher()), h6, newPinhole(newUPnP(h6, systemSearcher6())))
}

// Probe is [ProbePort] with these options; port 0 asks about none.
func (o Options) Probe(ctx context.Context, port uint16) (Report, error) {
	h, h6 := o.hosts()
	return survey{newPCP(h), newNATPMP(h), newUPnP(h, systemSearcher()), newPCP(h6), newPinhole(newUPnP(h6, systemSearcher6())), localAddrs, port}.run(ctx)
}

// hosts are this machine, for IPv4 and for IPv6, with the gateway that was named.
func (o Options) hosts() (four, six host) {
	four = host{routes: defaultRoutes, source: netaddr.SourceFor, prefixes: localPrefixes, plugged: plugged, watch: netaddr.Watch}
	six = systemHost6()
	g := o.Gateway.Unmap()
	if !g.IsValid() {
		return four, six
	}
	only := func(routes ...route) func() ([]route, error) {
		return func() ([]route, error) { return routes, nil }
	}
	none := only()
	if g.Is4() {
		four.routes, six.routes = only(route{gateway: g}), none
		return four, six
	}
	four.routes, four.source = none, func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errNoSource }
	system := six
	six.routes = func() ([]route, error) { return system.routesTo(g) }
	return four, six
}

// routesTo are the routes to an IPv6 gateway on one of our networks: by its zone, or
// by whichever interface has its network.
func (h host) routesTo(gateway netip.Addr) ([]route, error) {
	if zone := gateway.Zone(); zone != "" {
		return []route{{gateway: gateway.WithZone(""), iface: zone}}, nil
	}
	all, err := h.addrs()
	for _, a := range all {
		if netip.PrefixFrom(a.Addr, a.Bits).Contains(gateway) {
			return []route{{gateway: gateway, iface: a.Iface}}, nil
		}
	}
	return nil, err
}
