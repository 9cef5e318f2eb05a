// Package nat opens a TCP port on the gateway between this machine and the
// Internet, for IPv4 and for IPv6, keeps it open, and says why when it cannot.
//
// A [Mapper] speaks one protocol (PCP, NAT-PMP, UPnP IGD), or several behind
// one face: [Any]. A [Manager] keeps mappings alive with it, one for IPv4 and
// one for each global IPv6 address, and explains the outcome in a [Diagnosis].
// Over IPv6 nothing is translated: there a mapping is a hole in the gateway's
// firewall, and its external address is our own.
//
//	m := nat.NewManager(nat.ManagerConfig{Mapper: nat.Any(), Internal: local})
//	defer m.Close()
//
// [Probe] only looks, and says how the gateway stands.
//
// What is trusted: the gateway of the default route, and nobody else. Whatever
// other hosts of the network say, nothing is asked of them: descriptions are
// fetched from that gateway only, without redirects, proxies or names to
// resolve, and every answer has a size and a time limit. What is said in the
// gateway's name to everybody leads to a look at it, once in five seconds at
// most. Another gateway is asked only by name: [Options].
//
// # Limitations
//
// When this machine gets another address on its own network, PCP and NAT-PMP
// have no way to give the old mapping back: another external port is had, and
// the old one ends with its lifetime. In UPnP the port is kept, unless the
// gateway lets only the old address delete the entry.
//
// Only TCP.
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
	// (0.0.0.0, or :: of a socket for both families) stands for whichever of
	// our IPv4 addresses faces the gateway; for IPv6 it is one of ours.
	Internal netip.AddrPort

	// External is the external port we would like, 0 for the same as the
	// internal one. The gateway may grant another.
	External uint16

	// Lifetime is how long the mapping shall live without renewal, 0 for the
	// protocol's default (PCP and NAT-PMP 7200 s, UPnP 3600 s).
	Lifetime time.Duration

	// Description names the mapping in the gateway's own pages. Protocols
	// that show one keep its ASCII letters, digits, spaces and dashes, at
	// most 32 of them, and see to it that the port is part of it.
	Description string

	// Previous is the lease to renew, nil for a new mapping. It keeps its
	// external port where the gateway allows.
	Previous *Lease
}

// external is the external port to ask for.
func (r Request) external() uint16 {
	switch {
	case r.Previous != nil && r.Previous.External.Port() != 0:
		return r.Previous.External.Port()
	case r.External != 0:
		return r.External
	}
	return r.Internal.Port()
}

// A Lease is a granted mapping. It is a value and never changes: a renewal
// makes a new one.
type Lease struct {
	Internal netip.AddrPort // where the gateway forwards to, address resolved
	External netip.AddrPort // where peers connect; its address is invalid if the gateway did not say
	Lifetime time.Duration  // granted, from Obtained on; 0 = no end known
	Via      string         // the Name of the protocol that made it
	Gateway  netip.Addr     // who granted it, over IPv6 as a rule a link-local address with its zone; invalid for a static one
	Obtained time.Time      // when, with the monotonic clock

	// reassert, when not 0, is how long the gateway is believed to keep the
	// mapping unasked, whatever it granted.
	reassert time.Duration

	// recheck, when not 0, is how often the Mapper is to look whether the
	// gateway still has the mapping; epoch is its clock when it last told.
	recheck time.Duration
	epoch   epoch

	// confirm, when not 0, is how long after it was granted a new mapping is
	// looked at once more.
	confirm time.Duration

	// untold says that the gateway forwards the port and is connected, but does not
	// tell its address.
	untold bool

	token any // what the Mapper that made it needs to renew or delete it
}
