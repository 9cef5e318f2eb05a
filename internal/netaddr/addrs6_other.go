//go:build !linux

package netaddr

import (
	"net"
	"net/netip"
)

// Addrs6 lists the IPv6 addresses of all interfaces that are up. Which of
// them are deprecated is not known here; those whose lower half is that of a
// network card's address (RFC 4291 §2.5.1) are surely not temporary, the others
// may be.
func Addrs6() ([]Addr6, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []Addr6
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 {
			continue
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(n.IP)
			if !ok || ip.Unmap().Is4() {
				continue
			}
			bits, _ := n.Mask.Size()
			b := ip.As16()
			all = append(all, Addr6{Addr: ip, Bits: bits, Iface: i.Name, Temporary: b[11] != 0xff || b[12] != 0xfe})
		}
	}
	return all, nil
}
