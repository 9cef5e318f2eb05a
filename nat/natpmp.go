package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// NATPMP is the Mapper for NAT-PMP (RFC 6886), spoken by Apple's and many
// open routers: UDP port 5351 of the gateway. Its default lifetime is 7200 s
// (RFC 6886 §3.3).
func NATPMP() Mapper { return Options{}.NATPMP() }

func newNATPMP(h host) *natPMP {
	ms := time.Millisecond
	return &natPMP{
		host:  h,
		probe: []time.Duration{250 * ms, 500 * ms, 1250 * ms},
		call:  []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms},
	}
}

type natPMP struct {
	host host

	// How long an answer is waited for before a request is sent again, of a
	// gateway that has never answered (probe) and of one that has (call). RFC
	// 6886 §3.1 goes on doubling up to 64 s, which with a gateway that does not
	// speak it is two minutes of nothing.
	probe, call []time.Duration

	finding shared[search, found]

	mu    sync.Mutex
	known netip.Addr // the gateway that answered last, invalid if none
}

// A found is a gateway that answered, and its outside address.
type found struct {
	link link
	addr netip.Addr
}

const (
	pmpLifetime = 7200 * time.Second

	// The mapping that a broken-off call may have made is given back within this.
	pmpUndo = 300 * time.Millisecond
)

func (n *natPMP) Name() string { return "nat-pmp" }

func (n *natPMP) Map(ctx context.Context, r Request) (Lease, error) {
	if err := checkInternal(r.Internal); err != nil {
		return Lease{}, n.fail("map", link{}, err)
	}
	links, err := n.host.links(r.Internal.Addr())
	if err != nil {
		return Lease{}, n.fail("map", link{}, err)
	}
	// Straight to the gateway that has the mapping, or has answered before.
	n.mu.Lock()
	known := n.known
	n.mu.Unlock()
	tried, ok := rememberedLink(links, known, r.Previous)
	if ok {
		lease, failure := n.mapAt(ctx, tried, r)
		if failure == nil || !transport(failure) || ctx.Err() != nil {
			return lease, failure
		}
		n.forget()
		err = failure
	}
	l, _, e := n.find(ctx, "map", links)
	switch {
	case e != nil:
		return Lease{}, e
	case ok && l == tried && kindOf(err) == Timeout: // it answers that question, and not the other
		return Lease{}, err
	}
	return n.mapAt(ctx, l, r)
}

// find asks all gateways at once for their external address, which changes
// nothing, and takes the first of the list that has one. Who asks for the same
// at the same time shares the answer.
func (n *natPMP) find(ctx context.Context, op string, links []link) (link, netip.Addr, error) {
	f, err := n.finding.do(ctx, searchOf(op, links), func(ctx context.Context) (found, error) {
		addrs := make([]netip.Addr, len(links))
		i, errs := firstOf(ctx, links, func(ctx context.Context, i int) (err error) {
			addrs[i], _, err = n.external(ctx, op, links[i], n.probe)
			return err
		})
		if i >= 0 {
			n.remember(links[i])
			return found{links[i], addrs[i]}, nil
		}
		return found{}, telling(n.Name(), op, errs)
	})
	if err != nil && ctx.Err() != nil {
		err = n.fail(op, f.link, ctxError(ctx))
	}
	return f.link, f.addr, err
}

// mapAt makes or renews the mapping at one gateway (RFC 6886 §3.3), then asks
// for the external address, which the answer does not have.
func (n *natPMP) mapAt(ctx context.Context, l link, r Request) (Lease, error) {
	life := r.Lifetime
	if life <= 0 {
		life = pmpLifetime
	}
	life = min(max(life.Truncate(time.Second), time.Second), maxLifetime) // 0 would delete

	q := pmpRequest{opcode: pmpMapTCP, internal: r.Internal.Port(), external: r.external(), lifetime: uint32(life / time.Second)}
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
	addr, _, _ := n.external(ctx, "map", l, n.probe)
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

// check asks the gateway for its epoch and its external address.
func (n *natPMP) check(ctx context.Context, l Lease) (Lease, error) {
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	addr, now, err := n.external(ctx, "check", at, n.call)
	if kindOf(err) == WANDown {
		// Its line is down. Mappings outlive that, as a rule; what is to be
		// said now is that nobody can come in by it.
		l.External = netip.AddrPortFrom(netip.Addr{}, l.External.Port())
		return l, nil
	}
	if err != nil {
		return l, err
	}
	if epochRule(pmpEpoch).lost(l.epoch, now) {
		return l, n.fail("check", at, errStateLost)
	}
	l.epoch, l.External = now, netip.AddrPortFrom(addr, l.External.Port())
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

// probeExternal is the read-only question of the race in Any.
func (n *natPMP) probeExternal(ctx context.Context, r Request) (netip.Addr, error) {
	links, err := n.host.links(r.Internal.Addr())
	if err != nil {
		return netip.Addr{}, n.fail("probe", link{}, err)
	}
	_, addr, err := n.find(ctx, "probe", links)
	return addr, err
}

func (n *natPMP) remember(l link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = l.gateway
}

// forget drops what was discovered.
func (n *natPMP) forget() { n.remember(link{}) }

func (n *natPMP) ownAddr(bound netip.Addr) netip.Addr { return n.host.ownAddr(bound) }

func (n *natPMP) otherWay(own, dst netip.Addr) netip.Addr { return n.host.otherWay(own, dst) }

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
		return pmpResponse{}, malformed("only datagrams that are no answer")
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

// fail completes the *Error of what went wrong.
func (n *natPMP) fail(op string, l link, err error) *Error {
	return fill(n.Name(), op, l.gateway, Unsupported, 0, err)
}
