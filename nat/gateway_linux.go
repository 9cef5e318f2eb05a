package nat

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// defaultRoutes reads the kernel's main table. Routes that a VPN keeps in a
// table of its own are not there, which suits us: a VPN's far end is not a home
// router to ask.
func defaultRoutes() ([]route, error) {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseProcRoute(f)
}

// parseProcRoute picks the default routes out of /proc/net/route:
//
//	Iface  Destination  Gateway  Flags  RefCnt  Use  Metric  Mask  ...
//
// Addresses are the four bytes read as one integer of this machine, in
// hexadecimal.
func parseProcRoute(r io.Reader) ([]route, error) {
	const up, reject = 0x0001, 0x0200 // RTF_UP, RTF_REJECT of linux/route.h
	var routes []route
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err != nil || flags&up == 0 || flags&reject != 0 {
			continue
		}
		metric, err := strconv.Atoi(f[6])
		if err != nil {
			continue
		}
		gateway, err := hex.DecodeString(f[2])
		if err != nil || len(gateway) != 4 {
			continue
		}
		d := route{iface: f[0], metric: metric}
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], binary.BigEndian.Uint32(gateway))
		if a := netip.AddrFrom4(b); !a.IsUnspecified() {
			d.gateway = a
		}
		routes = append(routes, d)
	}
	return routes, s.Err()
}
