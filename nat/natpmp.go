package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// NATPMP is the Mapper for NAT-PMP (RFC 6886), spoken by Apple's and many
// open routers: UDP port 5351 of the gateway. Its default lifetime is 7200 s
// (RFC 6886 §3.3).
func NATPMP() Mapper { return Options{}.NATPMP() }

func newNATPMP(h host) *natPMP {
	ms := time.Millisecond
	n := &natPMP{finder{
		name: "nat-pmp",
		host: h,
		// RFC 6886 §3.1 goes on doubling up to 64 s, which with a gateway that does
		// not speak it is two minutes of nothing.
		probe: []time.Duration{250 * ms, 500 * ms, 1250 * ms},
		call:  []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms},
	}}
	n.question = func(ctx context.Context, op string, l link) (netip.Addr, error) {
		addr, _, err := n.external(ctx, op, l, n.probe)
		return addr, err
	}
	n.mapAt = n.mapPort
	return n
}

// The requests are ours and not those of github.com/jackpal/go-nat-pmp, which the tests
// have for a second opinion: it takes the first datagram that comes for the answer, so
// that one forged or stray datagram before the right one fails every call, and a call
// cannot be ended before its time.
type natPMP struct{ finder }

const (
	pmpLifetime = 7200 * time.Second

	// The mapping that a broken-off call may have made is given back within this.
	pmpUndo = 300 * time.Millisecond
)

// mapPort makes or renews the mapping at one gateway (RFC 6886 §3.3), then asks
// for the external address, which the answer does not have.
func (n *natPMP) mapPort(ctx context.Context, l link, r Request) (Lease, error) {
	q := pmpRequest{opcode: pmpMapTCP, internal: r.Internal.Port(), external: r.external(), lifetime: wireLifetime(r.Lifetime, pmpLifetime)}
	asked := time.Now()
	a, err := n.ask(ctx, l, n.call, q)
	if err == nil && (a.external == 0 || a.lifetime == 0) {
		err = malformed("granted port %d for %d s", a.external, a.lifetime)
	}
	if err != nil {
		if (ctx.Err() != nil || transport(err)) && r.Previous == nil { // a lease that is held is for its owner to give back
			n.undo(ctx, l, q, kindOf(err) == Malformed)
		}
		return Lease{}, n.fail("map", l, err)
	}
	told := epoch{a.epoch, time.Now()}

	// A mapping without an address is still a mapping: no error from here on.
	addr, _, err := n.external(ctx, "map", l, n.probe)
	n.remember(l)
	return Lease{
		Internal: netip.AddrPortFrom(l.local, r.Internal.Port()),
		External: netip.AddrPortFrom(addr, a.external),
		Lifetime: time.Duration(a.lifetime) * time.Second,
		Via:      n.Name(),
		Gateway:  l.gateway,
		Obtained: asked,
		recheck:  heartbeat,
		epoch:    told,
		untold:   err != nil && kindOf(err) != WANDown,
	}, nil
}

// undo removes what a call that was broken off, or whose answer got lost or made no
// sense, may have made. The caller's context may have ended, so it has a short
// one of its own. garbled says that the answer made no sense.
func (n *natPMP) undo(ctx context.Context, l link, q pmpRequest, garbled bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pmpUndo)
	defer cancel()
	waits := []time.Duration{pmpUndo / 3, pmpUndo / 3, pmpUndo / 3}
	q.lifetime, q.external = 0, 0
	_, _ = n.ask(ctx, l, waits, q)
	if cut := q.internal & 0xFF; garbled && cut != 0 && cut != q.internal {
		// There are gateways that keep only half of a port, and so have mapped
		// another one of ours.
		q.internal = cut
		_, _ = n.ask(ctx, l, waits[:1], q)
	}
}

// check renews the mapping, which makes it again where only the router's firewall was
// reloaded; the answer has the gateway's epoch. Then it asks for the external address.
// The lease it returns is not believed to be longer for it.
func (n *natPMP) check(ctx context.Context, l Lease) (Lease, error) {
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	a, err := n.ask(ctx, at, n.call, pmpRequest{
		opcode: pmpMapTCP, internal: l.Internal.Port(), external: l.External.Port(), lifetime: wireLifetime(l.Lifetime, pmpLifetime),
	})
	if kindOf(err) == WANDown {
		// Its line is down. Mappings outlive that, as a rule; what is to be
		// said now is that nobody can come in by it.
		l.External = netip.AddrPortFrom(netip.Addr{}, l.External.Port())
		return l, nil
	}
	if err != nil {
		return l, n.fail("check", at, err)
	}
	now := epoch{a.epoch, time.Now()}
	if epochRule(pmpEpoch).lost(l.epoch, now) {
		return l, n.fail("check", at, errStateLost)
	}
	l.epoch = now
	if a.external != 0 {
		l.External = netip.AddrPortFrom(l.External.Addr(), a.external)
	}
	switch addr, _, err := n.external(ctx, "check", at, n.call); {
	case kindOf(err) == WANDown:
		l.External = netip.AddrPortFrom(netip.Addr{}, l.External.Port())
	case err == nil:
		l.External = netip.AddrPortFrom(addr, l.External.Port())
	}
	return l, nil
}

// Unmap asks for a lifetime of 0 (RFC 6886 §3.4). The gateway answers success
// also for what it does not have.
func (n *natPMP) Unmap(ctx context.Context, l Lease) error {
	if l.Via != n.Name() || l.Internal.Port() == 0 { // port 0 would delete everything we have there
		return n.fail("unmap", link{}, &Error{Kind: Unsupported, Err: errForeign})
	}
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	q := pmpRequest{opcode: pmpMapTCP, internal: l.Internal.Port()}
	if _, err := n.ask(ctx, at, n.call, q); err != nil {
		return n.fail("unmap", at, err)
	}
	if external := l.External.Port(); external != q.internal {
		// The standard wants 0 for the external port, which is not to be looked at.
		// Gateways that do look at it take 0 for the internal one.
		q.external = external
		_, _ = n.ask(ctx, at, n.call[:1], q)
	}
	return nil
}

// external asks for the gateway's external address (RFC 6886 §3.2); an
// unspecified one is none. The answer has its epoch too.
func (n *natPMP) external(ctx context.Context, op string, l link, waits []time.Duration) (netip.Addr, epoch, error) {
	a, err := n.ask(ctx, l, waits, pmpRequest{opcode: pmpExternal})
	if err != nil {
		return netip.Addr{}, epoch{}, n.fail(op, l, err)
	}
	if a.address.IsUnspecified() {
		a.address = netip.Addr{}
	}
	return a.address, epoch{a.epoch, time.Now()}, nil
}

// ask sends q until it is answered, by something other than an error.
func (n *natPMP) ask(ctx context.Context, l link, waits []time.Duration, q pmpRequest) (pmpResponse, error) {
	var r pmpResponse
	garbage := false
	err := exchange(ctx, l, pcpPort, waits, q.append(nil), func(b []byte) (answer bool, err error) {
		if r, answer = parsePMP(b); answer && r.answers(q) {
			return true, pmpRefusal(r)
		}
		garbage = true
		return false, nil
	})
	switch {
	case garbage && errors.Is(err, errNoAnswer):
		return pmpResponse{}, malformed("only datagrams that are not an answer")
	case err != nil:
		return pmpResponse{}, err
	}
	return r, nil
}

// pmpRefusal is the beginning of the *Error for an answer that is one, nil for
// success.
func pmpRefusal(r pmpResponse) error {
	if r.version != pmpVersion {
		return &Error{Kind: Unsupported, Err: fmt.Errorf("answered in version %d", r.version)}
	}
	e := &Error{Kind: Refused, Code: int(r.code)}
	switch r.code {
	case 0:
		return nil
	case pmpUnsupportedVersion, pmpUnsupportedOpcode:
		e.Kind = Unsupported
	case pmpNetworkFailure:
		e.Kind = WANDown
	case pmpOutOfResources:
		e.Kind = NoResources
	}
	return e
}
