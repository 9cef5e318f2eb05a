//go:build darwin || dragonfly || freebsd || netbsd || openbsd

//lint:file-ignore SA1019 as in gateway_bsd.go

package nat

import (
	"net/netip"
	"syscall"
)

// defaultRoutes6 reads the routing table through sysctl, as defaultRoutes does.
func defaultRoutes6() ([]route, error) {
	b, err := syscall.RouteRIB(syscall.NET_RT_DUMP, 0)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseRoutingMessage(b)
	if err != nil {
		return nil, err
	}
	var routes []route
	for _, m := range messages {
		m, ok := m.(*syscall.RouteMessage)
		if !ok || m.Header.Flags&syscall.RTF_UP == 0 || m.Header.Flags&(syscall.RTF_HOST|syscall.RTF_REJECT) != 0 {
			continue
		}
		addrs, err := syscall.ParseRoutingSockaddr(m)
		if err != nil || len(addrs) <= syscall.RTAX_NETMASK {
			continue
		}
		dst, ok := addrs[syscall.RTAX_DST].(*syscall.SockaddrInet6)
		if !ok || dst.Addr != [16]byte{} {
			continue
		}
		if mask, ok := addrs[syscall.RTAX_NETMASK].(*syscall.SockaddrInet6); ok && mask.Addr != [16]byte{} {
			continue
		}
		r := route{index: int(m.Header.Index), metric: len(routes)}
		if g, ok := addrs[syscall.RTAX_GATEWAY].(*syscall.SockaddrInet6); ok && m.Header.Flags&syscall.RTF_GATEWAY != 0 {
			a := g.Addr
			if netip.AddrFrom16(a).IsLinkLocalUnicast() {
				a[2], a[3] = 0, 0 // these kernels keep the interface's number there
			}
			r.gateway = netip.AddrFrom16(a)
		}
		routes = append(routes, r)
	}
	return routes, nil
}
