//go:build darwin || dragonfly || freebsd || netbsd || openbsd

// What package syscall has for routing is frozen, not broken, and its
// successor would be one more dependency.
//
//lint:file-ignore SA1019 as said above

package nat

import (
	"net/netip"
	"syscall"
)

// defaultRoutes reads the routing table through sysctl. Of several default
// routes the system's first one is the one in use; on macOS the others are
// scoped to an interface.
func defaultRoutes() ([]route, error) {
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
		dst, ok := addrs[syscall.RTAX_DST].(*syscall.SockaddrInet4)
		if !ok || dst.Addr != [4]byte{} {
			continue
		}
		// 0.0.0.0/1 is half of what some VPNs put over the default route.
		if mask, ok := addrs[syscall.RTAX_NETMASK].(*syscall.SockaddrInet4); ok && mask.Addr != [4]byte{} {
			continue
		}
		r := route{index: int(m.Header.Index), metric: len(routes)}
		if g, ok := addrs[syscall.RTAX_GATEWAY].(*syscall.SockaddrInet4); ok && m.Header.Flags&syscall.RTF_GATEWAY != 0 {
			r.gateway = netip.AddrFrom4(g.Addr)
		}
		routes = append(routes, r)
	}
	return routes, nil
}
