package nat

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"unsafe"
)

// defaultRoutes calls GetIpForwardTable, whose metric is that of the route
// plus that of its interface.
func defaultRoutes() ([]route, error) {
	get := syscall.NewLazyDLL("iphlpapi.dll").NewProc("GetIpForwardTable")
	if err := get.Find(); err != nil {
		return nil, err
	}
	// The table may grow between the call that asks for its size and the next.
	size := uint32(16 << 10)
	for range 4 {
		b := make([]byte, size)
		r, _, _ := get.Call(uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch e := syscall.Errno(r); e {
		case 0:
			return parseForwardTable(b)
		case syscall.ERROR_INSUFFICIENT_BUFFER:
		default:
			return nil, e
		}
	}
	return nil, errors.New("the routing table does not hold still")
}

// parseForwardTable picks the default routes out of a MIB_IPFORWARDTABLE: a
// count, then rows of 14 words. Addresses are in network order.
func parseForwardTable(b []byte) ([]route, error) {
	const (
		row     = 14 * 4
		dest    = 0 * 4
		mask    = 1 * 4
		nextHop = 3 * 4
		ifIndex = 4 * 4
		metric1 = 9 * 4
	)
	if len(b) < 4 {
		return nil, errors.New("short routing table")
	}
	n := int(binary.LittleEndian.Uint32(b))
	b = b[4:]
	var routes []route
	for ; n > 0 && len(b) >= row; n, b = n-1, b[row:] {
		if binary.LittleEndian.Uint32(b[dest:]) != 0 || binary.LittleEndian.Uint32(b[mask:]) != 0 {
			continue
		}
		r := route{index: int(binary.LittleEndian.Uint32(b[ifIndex:])), metric: int(binary.LittleEndian.Uint32(b[metric1:]))}
		if g := netip.AddrFrom4([4]byte(b[nextHop:])); !g.IsUnspecified() {
			r.gateway = g
		}
		routes = append(routes, r)
	}
	return routes, nil
}
