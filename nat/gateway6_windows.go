package nat

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"
)

// defaultRoutes6 calls GetIpForwardTable2, for IPv6 alone.
func defaultRoutes6() ([]route, error) {
	dll := syscall.NewLazyDLL("iphlpapi.dll")
	get, free := dll.NewProc("GetIpForwardTable2"), dll.NewProc("FreeMibTable")
	if err := get.Find(); err != nil {
		return nil, err
	}
	if err := free.Find(); err != nil {
		return nil, err
	}
	var table *byte
	if r, _, _ := get.Call(syscall.AF_INET6, uintptr(unsafe.Pointer(&table))); r != 0 {
		return nil, syscall.Errno(r)
	}
	defer free.Call(uintptr(unsafe.Pointer(table)))
	n := int(*(*uint32)(unsafe.Pointer(table)))
	return parseForwardTable6(unsafe.Slice(table, forwardRows6+n*forwardRow6)), nil
}

// A MIB_IPFORWARD_TABLE2 is a count, filled up to eight bytes, and rows.
const forwardRows6, forwardRow6 = 8, 104

// parseForwardTable6 picks the default routes out of a MIB_IPFORWARD_TABLE2. Its
// metrics are without those of the interfaces, which come first on Windows; of
// one interface, and no others are compared, they order the routes.
func parseForwardTable6(b []byte) []route {
	const (
		ifIndex = 8  // behind the interface's 64-bit name
		dest    = 12 // a SOCKADDR_INET of 28 bytes: its address at 8
		length  = 40 // of dest's prefix
		nextHop = 44
		address = 8
		metric  = 84
	)
	if len(b) < forwardRows6 {
		return nil
	}
	var routes []route
	for b = b[forwardRows6:]; len(b) >= forwardRow6; b = b[forwardRow6:] {
		if b[length] != 0 || [16]byte(b[dest+address:]) != [16]byte{} {
			continue
		}
		r := route{index: int(binary.LittleEndian.Uint32(b[ifIndex:])), metric: int(binary.LittleEndian.Uint32(b[metric:]))}
		if g := netip.AddrFrom16([16]byte(b[nextHop+address:])); !g.IsUnspecified() {
			r.gateway = g
		}
		routes = append(routes, r)
	}
	return routes
}
