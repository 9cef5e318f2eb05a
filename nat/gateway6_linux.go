package nat

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/peerws/peerws/internal/netaddr"
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
		gateway, ok := netaddr.ParseHex6(f[4])
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
