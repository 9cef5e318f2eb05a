package nat

import (
	"context"
	"net/netip"
	"time"
)

// A Mapper asks one kind of gateway, or several kinds behind one face, to
// forward a TCP port. It is the plug for a user's own way of opening a port.
//
// A Mapper holds nothing open between calls: no socket, no goroutine. What it
// has discovered it may remember, so listeners that are given the same Mapper
// value share its discovery. All methods are safe for concurrent use, and end
// early when ctx does.
type Mapper interface {
	// Name is the protocol's short name, as in Lease.Via: "pcp", "nat-pmp",
	// "upnp", "static", or "any" for several behind one face.
	Name() string

	// Map makes a mapping, or with r.Previous renews that one. The granted
	// external port and lifetime may differ from those asked for. A failure is
	// an *Error.
	Map(ctx context.Context, r Request) (Lease, error)

	// Unmap gives the mapping back. A mapping the gateway has already
	// forgotten is no error.
	Unmap(ctx context.Context, l Lease) error
}

// A Request says which mapping is wanted.
type Request struct {
	// Internal is the address and TCP port peers are to be forwarded to. Its
	// family chooses the family of the mapping. An unspecified address
	// (0.0.0.0) stands for whichever of our addresses faces the gateway.
	Internal netip.AddrPort

	// External is the external port we would like, 0 for the same as the
	// internal one. The gateway may grant another.
	External uint16

	// Lifetime is how long the mapping shall live without renewal, 0 for the
	// protocol's default.
	Lifetime time.Duration

	// Description names the mapping in the gateway's own pages.
	Description string

	// Previous is the lease to renew, nil for a new mapping. It keeps its
	// external port where the gateway allows.
	Previous *Lease
}

// A Lease is a granted mapping. It is a value and never changes: a renewal
// makes a new one.
type Lease struct {
	Internal netip.AddrPort // where the gateway forwards to, address resolved
	External netip.AddrPort // where peers connect; its address is invalid if the gateway did not say
	Lifetime time.Duration  // granted, from Obtained on; 0 = no end known
	Via      string         // the Name of the protocol that made it
	Gateway  netip.Addr     // who granted it; invalid for a static one
	Obtained time.Time      // when, with the monotonic clock

	token any // what the Mapper that made it needs to renew or delete it
}
