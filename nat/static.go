package nat

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Static is the Mapper for a forward made by hand in the gateway's own pages:
// it asks nobody, grants external for ever, with the internal port if its port
// is 0, and gives nothing back. Where external leads is the gateway's matter; a
// listener learns from the first peer that comes through it that it is right,
// and says Verified. The address may be left invalid when only the port is
// known; then a listener cannot list it.
func Static(external netip.AddrPort) Mapper { return static{external} }

type static struct{ external netip.AddrPort }

func (s static) Name() string { return "static" }

func (s static) Map(ctx context.Context, r Request) (Lease, error) {
	if err := ctx.Err(); err != nil {
		return Lease{}, &Error{Mapper: "static", Op: "map", Kind: ctxKind(ctx), Err: err}
	}
	ext := s.external
	if ext.Port() == 0 {
		ext = netip.AddrPortFrom(ext.Addr(), r.Internal.Port())
	}
	return Lease{Internal: r.Internal, External: ext, Via: "static", Obtained: time.Now()}, nil
}

// Unmap leaves the forward alone: who made it by hand removes it by hand.
func (s static) Unmap(context.Context, Lease) error { return nil }

// None is the Mapper that maps nothing. A Manager with it settles at once
// with the diagnosis "off".
func None() Mapper { return none{} }

var errOff = errors.New("port mapping is switched off")

type none struct{}

func (none) Name() string { return "none" }

func (none) Map(context.Context, Request) (Lease, error) {
	return Lease{}, &Error{Mapper: "none", Op: "map", Kind: Unsupported, Err: errOff}
}

func (none) Unmap(context.Context, Lease) error { return nil }
