package netaddr

import (
	"net/netip"
	"testing"
)

func TestIsGlobal(t *testing.T) {
	for s, want := range map[string]bool{
		"8.8.8.8":                true,
		"1.0.0.1":                true,
		"192.0.1.1":              true,
		"198.17.255.255":         true,
		"198.20.0.1":             true,
		"223.255.255.254":        true,
		"100.63.255.255":         true,
		"100.128.0.1":            true,
		"203.0.113.7":            true, // documentation
		"::ffff:8.8.8.8":         true,
		"2003:e9::1":             true,
		"2600::":                 true,
		"2001:db8::1":            true, // documentation
		"2001:470:1f0a::2":       true, // a tunnel broker's
		"2001:200::1":            true,
		"2a00:1450:4001:81c::%e": true,

		"":                   false,
		"0.0.0.0":            false,
		"0.1.2.3":            false,
		"10.0.0.1":           false,
		"100.64.0.1":         false,
		"100.127.255.255":    false,
		"127.0.0.1":          false,
		"169.254.1.1":        false,
		"172.16.0.1":         false,
		"192.0.0.4":          false,
		"192.0.0.171":        false,
		"192.88.99.1":        false,
		"192.168.1.1":        false,
		"198.18.0.1":         false,
		"198.19.255.255":     false,
		"224.0.0.1":          false,
		"240.0.0.1":          false,
		"255.255.255.255":    false,
		"::":                 false,
		"::1":                false,
		"::ffff:10.0.0.1":    false,
		"::ffff:198.18.0.1":  false,
		"64:ff9b::1":         false,
		"64:ff9b::808:808":   false,
		"64:ff9b:1:2::1":     false,
		"100::1":             false,
		"2001::1":            false,
		"2001:0:53aa:64c::1": false,
		"2002:c000:204::1":   false,
		"fd00::1":            false,
		"fc00::1":            false,
		"fe80::1":            false,
		"fec0::1":            false,
		"ff02::1":            false,
	} {
		a, _ := netip.ParseAddr(s)
		if got := IsGlobal(a); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestIsSharedNAT(t *testing.T) {
	for s, want := range map[string]bool{"100.64.0.1": true, "100.127.255.255": true, "::ffff:100.64.0.1": true, "100.63.255.255": false, "100.128.0.0": false, "10.0.0.1": false, "": false, "::1": false} {
		a, _ := netip.ParseAddr(s)
		if got := IsSharedNAT(a); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
