package nat

import (
	"context"
	"errors"
	"net/netip"

	"github.com/peerws/peerws/internal/netaddr"
)

// ownAddresser is what a Mapper has that can tell the address by which this
// machine leaves the network. A user's Mapper does not, so it is always asked.
type ownAddresser interface {
	// ownAddr is the address that faces the gateway when bound is
	// unspecified, else bound.
	ownAddr(bound netip.Addr) netip.Addr
}

// A watcher is a Mapper that can tell when the network of this machine may have
// changed. Its watch returns when ctx ends, or at once with an error if it cannot.
type watcher interface {
	watch(ctx context.Context, changed func()) error
}

// watch is that of the system, if there is one.
func (h host) watchNetwork(ctx context.Context, changed func()) error {
	if h.watch == nil {
		return errors.ErrUnsupported
	}
	return h.watch(ctx, changed)
}

// isGlobal reports whether a can be an address on the Internet.
func isGlobal(a netip.Addr) bool { return netaddr.IsGlobal(a) }

// A sourcer is a Mapper that can tell by which way the system sends.
type sourcer interface {
	// otherWay is the address of ours that packets to dst would come from, if that
	// is neither own nor of the same network, else invalid.
	otherWay(own, dst netip.Addr) netip.Addr
}

// An addresser6 is a Mapper that can do something for IPv6 addresses, and
// knows which of them are worth it. Of a user's Mapper nothing is known, so it
// is asked for an IPv6 address only if that is what the listener is bound to.
type addresser6 interface {
	// addrs6 lists the addresses of ours at which peers outside could reach us.
	addrs6() []netip.Addr

	// gateway6 is the gateway in front of one of them, invalid if there is none.
	gateway6(netip.Addr) netip.Addr
}
