package nat

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/peerws/peerws/internal/netaddr"
)

// A gateway that is named is the only one that is asked, in its own family.
func TestOptionsGateway(t *testing.T) {
	for _, c := range []struct {
		gateway   string
		four, six []route
	}{
		{"10.2.0.1", []route{{gateway: netip.MustParseAddr("10.2.0.1")}}, nil},
		{"::ffff:10.2.0.1", []route{{gateway: netip.MustParseAddr("10.2.0.1")}}, nil},
		{"fe80::1%eth7", nil, []route{{gateway: netip.MustParseAddr("fe80::1"), iface: "eth7"}}},
	} {
		four, six := Options{Gateway: netip.MustParseAddr(c.gateway)}.hosts()
		r4, err := four.routes()
		r6, err6 := six.routes()
		if err != nil || err6 != nil || !slices.Equal(r4, c.four) || !slices.Equal(r6, c.six) {
			t.Errorf("%s: %v, %v; %v, %v", c.gateway, r4, r6, err, err6)
		}
	}

	four, _ := Options{Gateway: netip.MustParseAddr("10.2.0.1")}.hosts()
	four.source = func(dst netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("10.2.0.2"), nil }
	if links, err := four.links(anyIP); err != nil || !slices.Equal(links, []link{{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("10.2.0.2")}}) {
		t.Errorf("%v, %v", links, err)
	}
	four, _ = Options{Gateway: netip.MustParseAddr("fe80::1%eth7")}.hosts()
	if _, err := four.links(anyIP); !errors.Is(err, errNoRoute) {
		t.Errorf("IPv4: %v", err)
	}
}

// An IPv6 gateway without a zone is on the interface that has its network.
func TestOptionsGateway6(t *testing.T) {
	o := Options{Gateway: netip.MustParseAddr("2001:db8:7::1")}
	_, six := o.hosts()
	six.addrs = func() ([]netaddr.Addr6, error) {
		return []netaddr.Addr6{at6("2001:db8:6::5", "eth0"), at6("2001:db8:7::5", "eth1")}, nil
	}
	r, err := six.routesTo(o.Gateway)
	if err != nil || !slices.Equal(r, []route{{gateway: o.Gateway, iface: "eth1"}}) {
		t.Errorf("%v, %v", r, err)
	}
}
