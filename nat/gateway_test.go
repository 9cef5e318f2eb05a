package nat

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

func TestIsGlobal(t *testing.T) {
	for a, want := range map[string]bool{
		"8.8.8.8": true, "203.0.113.7": true, "::ffff:8.8.8.8": true, "2001:db8::1": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "127.0.0.1": false, "169.254.1.1": false,
		"100.64.0.1": false, "100.127.255.255": false, "100.128.0.1": true, "192.0.0.1": false, "198.18.0.1": false,
		"0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false, "fe80::1": false, "fd00::1": false,
	} {
		if got := isGlobal(netip.MustParseAddr(a)); got != want {
			t.Errorf("isGlobal(%s) = %v", a, got)
		}
	}
	if isGlobal(netip.Addr{}) {
		t.Error("no address is global")
	}
}

func TestLinks(t *testing.T) {
	gw, gw2, own := netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.168.1.5")
	h := host{
		routes: func() ([]route, error) {
			return []route{{gateway: gw2, metric: 600}, {metric: 50, iface: "ppp0"}, {gateway: gw, metric: 100}, {gateway: gw, metric: 700}}, nil
		},
		source: func(dst netip.Addr) (netip.Addr, error) {
			if dst == gw2 {
				return netip.Addr{}, errors.New("network is unreachable")
			}
			return own, nil
		},
		prefixes: func() ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24"), netip.MustParsePrefix("192.168.1.6/24"), netip.MustParsePrefix("11.2.3.4/24"), netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("172.16.0.2/31")}, nil
		},
	}
	bound := netip.MustParseAddr("192.168.1.77")
	for _, c := range []struct {
		bound netip.Addr
		want  []link
	}{
		{netip.IPv4Unspecified(), []link{{gw, own}}},
		{netip.IPv6Unspecified(), []link{{gw, own}}},
		{netip.Addr{}, []link{{gw, own}}},
		{netip.AddrFrom16(bound.As16()), []link{{gw, bound}, {gw2, bound}}},
	} {
		if got, err := h.links(c.bound); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: got %v, %v, want %v", c.bound, got, err, c.want)
		}
	}

	for bound, want := range map[string]Kind{"127.0.0.1": Unsupported, "2001:db8::1": Unsupported} {
		_, err := h.links(netip.MustParseAddr(bound))
		wantKind(t, err, want, 0)
	}

	// The system knows no routes: the first addresses of private subnets.
	h.routes = func() ([]route, error) { return nil, errors.ErrUnsupported }
	if got, err := h.links(anyIP); err != nil || !slices.Equal(got, []link{{gw, own}}) {
		t.Errorf("guessed: %v, %v", got, err)
	}
	// It knows none, or a tunnel, and yet there is a way out: the same, and why
	// nobody else is asked.
	for want, routes := range map[error][]route{errOtherWay: nil, errTunnel: {{iface: "no-such-interface"}}} {
		h.routes = func() ([]route, error) { return routes, nil }
		if got, err := h.links(anyIP); err != nil || !slices.Equal(got, []link{{gw, own}}) {
			t.Errorf("%v: %v, %v", want, got, err)
		}
		alone := h
		alone.prefixes = func() ([]netip.Prefix, error) { return nil, nil }
		_, err := alone.links(anyIP)
		wantKind(t, err, NoGateway, 0)
		if d := diagnose(err); !errors.Is(err, want) || d.Code != CodeVPN {
			t.Errorf("%v: %v", d.Code, err)
		}
	}
	// It knows that there is no way out: nobody is asked.
	h.routes = func() ([]route, error) { return nil, nil }
	h.source = func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errors.New("network is unreachable") }
	_, err := h.links(anyIP)
	wantKind(t, err, NoNetwork, 0)
	if !errors.Is(err, errNoRoute) {
		t.Error(err)
	}
}

func TestOwnAddr(t *testing.T) {
	own := netip.MustParseAddr("203.0.113.9")
	h := host{
		routes: func() ([]route, error) { return []route{{gateway: netip.MustParseAddr("203.0.113.1")}}, nil },
		source: func(netip.Addr) (netip.Addr, error) { return own, nil },
	}
	for bound, want := range map[string]string{"0.0.0.0": "203.0.113.9", "::": "203.0.113.9", "198.51.100.3": "198.51.100.3"} {
		if got := h.ownAddr(netip.MustParseAddr(bound)); got.String() != want {
			t.Errorf("bound to %s: %v, want %s", bound, got, want)
		}
	}
	if got := h.ownAddr(netip.MustParseAddr("2001:db8::1")); got.IsValid() {
		t.Errorf("IPv6: %v", got)
	}
	h.routes = func() ([]route, error) { return []route{{iface: "no-such-interface"}}, nil }
	if got := h.ownAddr(anyIP); got.IsValid() {
		t.Errorf("point-to-point without an interface: %v", got)
	}
}
