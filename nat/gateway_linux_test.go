package nat

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseProcRoute(t *testing.T) {
	word := func(a string) string { // as the kernel prints it on this machine
		b := netip.MustParseAddr(a).As4()
		return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[:]))
	}
	table := strings.Join([]string{
		"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
		"eth0\t00000000\t" + word("192.168.1.1") + "\t0003\t0\t0\t100\t00000000\t0\t0\t0",
		"wlan0\t00000000\t" + word("10.0.0.1") + "\t0003\t0\t0\t600\t00000000\t0\t0\t0",
		"ppp0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0",
		"tun0\t00000000\t" + word("10.8.0.1") + "\t0003\t0\t0\t0\t" + word("128.0.0.0") + "\t0\t0\t0", // half of a VPN's cover
		"eth0\t" + word("192.168.1.0") + "\t00000000\t0001\t0\t0\t100\t" + word("255.255.255.0") + "\t0\t0\t0",
		"down\t00000000\t" + word("10.0.0.9") + "\t0002\t0\t0\t0\t00000000\t0\t0\t0",
		"*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0", // unreachable default
		"odd\t00000000\tzz\t0003\t0\t0\t0\t00000000\t0\t0\t0",
		"short",
	}, "\n")
	got, err := parseProcRoute(strings.NewReader(table))
	want := []route{
		{gateway: netip.MustParseAddr("192.168.1.1"), iface: "eth0", metric: 100},
		{gateway: netip.MustParseAddr("10.0.0.1"), iface: "wlan0", metric: 600},
		{iface: "ppp0", metric: 50},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v\nwant %v", got, err, want)
	}
	if _, err := defaultRoutes(); err != nil {
		t.Error(err)
	}
}
