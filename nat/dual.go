package nat

import (
	"context"
	"errors"
	"net/netip"
)

// A dual is a Mapper for both families. Each has one of its own: what the one
// learns, loses or waits for is nothing to the other.
type dual struct {
	four, six Mapper
	host      host // for IPv6
}

func newDual(four Mapper, h host, six Mapper) *dual { return &dual{four: four, six: six, host: h} }

// of is the Mapper for an address of ours. An unspecified one stands for IPv4.
func (d *dual) of(a netip.Addr) Mapper {
	if a = a.Unmap(); a.Is6() && !a.IsUnspecified() {
		return d.six
	}
	return d.four
}

func (d *dual) Name() string { return d.four.Name() }

func (d *dual) Map(ctx context.Context, r Request) (Lease, error) {
	return d.of(r.Internal.Addr()).Map(ctx, r)
}

func (d *dual) Unmap(ctx context.Context, l Lease) error {
	return d.of(l.Internal.Addr()).Unmap(ctx, l)
}

func (d *dual) check(ctx context.Context, l Lease) (Lease, error) {
	if c, ok := d.of(l.Internal.Addr()).(checker); ok {
		return c.check(ctx, l)
	}
	return l, nil
}

func (d *dual) watch(ctx context.Context, changed func()) error {
	if w, ok := d.four.(watcher); ok {
		return w.watch(ctx, changed)
	}
	return errors.ErrUnsupported
}

func (d *dual) ownAddr(bound netip.Addr) netip.Addr {
	if o, ok := d.of(bound).(ownAddresser); ok {
		return o.ownAddr(bound)
	}
	return netip.Addr{}
}

func (d *dual) addrs6() []netip.Addr { return d.host.usable() }

func (d *dual) gateway6(a netip.Addr) netip.Addr {
	links, err := d.host.links6(a)
	if err != nil {
		return netip.Addr{}
	}
	return links[0].gateway
}

func (d *dual) otherWay(own, dst netip.Addr) netip.Addr {
	if r, ok := d.of(own).(sourcer); ok {
		return r.otherWay(own, dst)
	}
	return netip.Addr{}
}
