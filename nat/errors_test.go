package nat

import (
	"context"
	"errors"
	"net/netip"
	"testing"
)

func TestErrorText(t *testing.T) {
	gw := netip.MustParseAddr("192.168.1.1")
	for _, c := range []struct {
		err  *Error
		want string
	}{
		{&Error{Mapper: "nat-pmp", Op: "map", Gateway: gw, Code: 2, Kind: Refused}, "nat-pmp map at 192.168.1.1: refused (code 2)"},
		{&Error{Mapper: "upnp", Op: "probe", Kind: NoGateway, Err: errors.New("silence")}, "upnp probe: no gateway answered: silence"},
		{&Error{Mapper: "any", Op: "map", Kind: Timeout, Err: errors.Join(errors.New("a"), errors.New("b"))}, "any map: no answer in time: a; b"},
		{&Error{Kind: Kind(99)}, "kind 99"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestErrorUnwraps(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, m := range []Mapper{Static(netip.AddrPort{}), newNATPMP(loopbackHost(netip.MustParseAddr("127.0.0.2"))), newUPnP(loopbackHost(netip.MustParseAddr("127.0.0.2")), searcher{port: 1})} {
		_, err := m.Map(ctx, request(9000))
		if !errors.Is(err, context.Canceled) || kindOf(err) != Canceled {
			t.Errorf("%s: %v (kind %v) is not context.Canceled", m.Name(), err, kindOf(err))
		}
	}
}

// An answer says more than silence, and the special more than the general.
func TestTelling(t *testing.T) {
	at := func(k Kind) error { return &Error{Mapper: "x", Op: "map", Kind: k} }
	for _, c := range []struct {
		errs []error
		want Kind
	}{
		{[]error{at(Timeout), at(Refused)}, Refused},
		{[]error{at(WANDown), at(AddressMismatch)}, AddressMismatch},
		{[]error{at(Unsupported), at(NoGateway)}, Unsupported},
		{[]error{at(NoNetwork), at(NoNetwork)}, NoNetwork},
		{[]error{at(Conflict), at(Timeout)}, Conflict},
		{[]error{errors.New("other")}, NoGateway},
		{nil, NoGateway},
	} {
		if got := telling("any", "map", c.errs); got.Kind != c.want || got.Mapper != "any" {
			t.Errorf("%v: got %v, want %v", c.errs, got, c.want)
		}
	}
}
