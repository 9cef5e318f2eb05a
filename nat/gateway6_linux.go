package nat

import (
	"bufio"
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// defaultRoutes6 reads the kernel's IPv6 routes. A kernel without IPv6 has none.
func defaultRoutes6() ([]route, error) {
	f, err := os.Open("/proc/net/ipv6_route")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseProcRoute6(f)
}

// parseProcRoute6 picks the default routes out of /proc/net/ipv6_route:
//
//	destination  length  source  length  next hop  metric  refcnt  use  flags  iface
//
// All numbers are hexadecimal, addresses without colons. A system that knows
// no way out has a default route that rejects.
func parseProcRoute6(r io.Reader) ([]route, error) {
	const up, reject = 0x0001, 0x0200 // RTF_UP, RTF_REJECT of linux/route.h
	zero := strings.Repeat("0", 32)
	var routes []route
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 10 || f[0] != zero || f[1] != "00" || f[3] != "00" {
			continue
		}
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err != nil || flags&up == 0 || flags&reject != 0 {
			continue
		}
		metric, err := strconv.ParseUint(f[5], 16, 32)
		if err != nil {
			continue
		}
		gateway, ok := parseHex6(f[4])
		if !ok {
			continue
		}
		d := route{iface: f[9], metric: int(metric)}
		if !gateway.IsUnspecified() {
			d.gateway = gateway
		}
		routes = append(routes, d)
	}
	return routes, s.Err()
}

// localAddrs6 reads the kernel's IPv6 addresses.
func localAddrs6() ([]addr6, error) {
	f, err := os.Open("/proc/net/if_inet6")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseProcAddr6(f)
}

// parseProcAddr6 reads /proc/net/if_inet6:
//
//	address  index  prefix length  scope  flags  iface
//
// in hexadecimal. The flags are the lower ones of linux/if_addr.h.
func parseProcAddr6(r io.Reader) ([]addr6, error) {
	const temporary, duplicate, deprecated, tentative = 0x01, 0x08, 0x20, 0x40
	var all []addr6
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 6 {
			continue
		}
		addr, ok := parseHex6(f[0])
		bits, err := strconv.ParseUint(f[2], 16, 8)
		flags, err2 := strconv.ParseUint(f[4], 16, 32)
		if !ok || err != nil || bits > 128 || err2 != nil {
			continue
		}
		all = append(all, addr6{
			addr:      addr,
			bits:      int(bits),
			iface:     f[5],
			temporary: flags&temporary != 0,
			unusable:  flags&(duplicate|deprecated|tentative) != 0,
		})
	}
	return all, s.Err()
}

func parseHex6(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}
