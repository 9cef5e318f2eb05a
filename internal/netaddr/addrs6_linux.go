package netaddr

import (
	"bufio"
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Addrs6 reads the kernel's IPv6 addresses.
func Addrs6() ([]Addr6, error) {
	f, err := os.Open("/proc/net/if_inet6")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseAddr6(f)
}

// parseAddr6 reads /proc/net/if_inet6:
//
//	address  index  prefix length  scope  flags  iface
//
// in hexadecimal. The flags are the lower ones of linux/if_addr.h.
func parseAddr6(r io.Reader) ([]Addr6, error) {
	const temporary, duplicate, deprecated, tentative = 0x01, 0x08, 0x20, 0x40
	var all []Addr6
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 6 {
			continue
		}
		addr, ok := ParseHex6(f[0])
		bits, err := strconv.ParseUint(f[2], 16, 8)
		flags, err2 := strconv.ParseUint(f[4], 16, 32)
		if !ok || err != nil || bits > 128 || err2 != nil {
			continue
		}
		all = append(all, Addr6{
			Addr:      addr,
			Bits:      int(bits),
			Iface:     f[5],
			Temporary: flags&temporary != 0,
			Unusable:  flags&(duplicate|deprecated|tentative) != 0,
		})
	}
	return all, s.Err()
}

// ParseHex6 reads an address as the kernel writes it in its tables.
func ParseHex6(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}
