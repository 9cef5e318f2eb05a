package nat

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// PCP is the Mapper for the Port Control Protocol (RFC 6887), the successor
// of NAT-PMP on the same UDP port 5351 of the gateway. Its default lifetime is
// 7200 s.
func PCP() Mapper { return Options{}.PCP() }

func newPCP(h host) *pcp {
	ms := time.Millisecond
	p := &pcp{
		finder: finder{
			name: "pcp",
			host: h,
			// RFC 6887 §8.1.1 begins at 3 s and never ends, which suits a server that
			// may be far away; ours is the next hop, and the keeper comes back anyway.
			probe: []time.Duration{250 * ms, 500 * ms, 1250 * ms},
			call:  []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms},
		},
		port:  pcpPort,
		held:  make(map[pcpKey]pcpNonce),
		stand: make(map[pcpKey]standing),
	}
	p.question = func(ctx context.Context, op string, l link) (netip.Addr, error) {
		if _, err := p.announce(ctx, l, p.probe); err != nil {
			return netip.Addr{}, p.fail(op, l, err)
		}
		return netip.Addr{}, nil
	}
	p.mapAt = p.mapPort
	return p
}

type pcp struct {
	finder
	port uint16 // of gateways

	// Guarded by mu.
	held  map[pcpKey]pcpNonce // of mappings not given back
	stand map[pcpKey]standing // what was refused, and is not asked again yet
}

// A standing is an error that is believed for a while.
type standing struct {
	err   *Error
	until time.Time
}

// A pcpKey is what one nonce, and one refusal, is about.
type pcpKey struct {
	link link
	port uint16 // internal
}

const (
	pcpLifetime = 7200 * time.Second

	// How long an error stands when the gateway does not say (RFC 6887 §7.4
	// recommends 30 s for short ones), and at most.
	pcpShortError = 30 * time.Second
	pcpLongError  = time.Minute // it recommends 30 minutes, miniupnpd says 0; the keeper's backoff does the rest
	pcpMaxError   = 30 * time.Minute

	// That the line is down stands this long at most, whatever the gateway
	// says: it announces that the line is back, and is to be asked then.
	pcpDownError = 5 * time.Second

	// How many mappings, and how many errors, are remembered at most: one of
	// each for every port and network this machine has been on.
	pcpRemembered = 64

	// The mapping that a broken-off call may have made is given back within this.
	pcpUndo = 300 * time.Millisecond
)

var errBetween = errors.New("a NAT between us and the gateway changes our address")

// An outsideError tells which address of its own on the outside a gateway has
// that refuses to map because of it.
type outsideError struct{ addr netip.Addr }

func (e *outsideError) Error() string { return fmt.Sprintf("its own address is %s", e.addr) }

// announce is the request that changes nothing (RFC 6887 §14.1.1); its answer
// has the gateway's epoch. A gateway that does not know this opcode has shown
// all the same that it speaks PCP.
func (p *pcp) announce(ctx context.Context, l link, waits []time.Duration) (pcpResponse, error) {
	r, err := p.ask(ctx, l, waits, pcpRequest{opcode: pcpAnnounce, client: l.local})
	if err == nil && r.code != pcpSuccess && r.code != pcpUnsupportedOpcode {
		err = refusal(r)
	}
	return r, err
}

// mapPort makes or renews the mapping at one gateway (RFC 6887 §11.2).
func (p *pcp) mapPort(ctx context.Context, l link, r Request) (Lease, error) {
	key := pcpKey{l, r.Internal.Port()}
	if err := p.refusedBefore(key); err != nil {
		return Lease{}, p.fail("map", l, err)
	}
	// The address too is suggested, or the gateway may move us to another of
	// its own (RFC 6887 §11.2.1).
	var outside netip.Addr
	if r.Previous != nil {
		if outside = r.Previous.External.Addr().Unmap(); outside.Is4() != l.local.Is4() {
			outside = netip.Addr{}
		}
	}
	q := pcpRequest{opcode: pcpMap, lifetime: wireLifetime(r.Lifetime, pcpLifetime), client: l.local, mapping: pcpMapping{
		nonce:    p.nonce(key, r.Previous),
		protocol: protocolTCP,
		internal: r.Internal.Port(),
		external: netip.AddrPortFrom(outside, r.external()),
	}}
	asked := time.Now()
	a, err := p.ask(ctx, l, p.call, q)
	if err == nil && a.code != pcpSuccess {
		err = refusal(a)
		p.noteRefusal(key, err)
	}
	if l.local.Is6() && a.mapping.external.Port() == 0 {
		// There is nothing to translate, and so some gateways have nothing to say.
		a.mapping.external = netip.AddrPortFrom(a.mapping.external.Addr(), r.Internal.Port())
	}
	if err == nil && (a.mapping.external.Port() == 0 || a.lifetime == 0) {
		err = malformed("granted port %d for %d s", a.mapping.external.Port(), a.lifetime)
	}
	if err != nil {
		if (ctx.Err() != nil || transport(err)) && r.Previous == nil { // a lease that is held is for its owner to give back
			p.undo(ctx, l, q)
		}
		return Lease{}, p.fail("map", l, err)
	}
	p.remember(l)
	return Lease{
		Internal: netip.AddrPortFrom(l.local, r.Internal.Port()),
		External: netip.AddrPortFrom(a.mapping.outside(l.local), a.mapping.external.Port()),
		Lifetime: time.Duration(a.lifetime) * time.Second,
		Via:      p.Name(),
		Gateway:  l.gateway,
		Obtained: asked,
		recheck:  heartbeat,
		epoch:    epoch{a.epoch, time.Now()},
		token:    q.mapping.nonce,
	}, nil
}

// check renews the mapping: the answer has the gateway's epoch, as that to an
// ANNOUNCE, and the outside address too, which a gateway may lose or change
// without a new epoch. The lease it returns is not believed to be longer for it.
// Pinholes have no outside address, and miniupnpd 2.3.1 does not delete one any
// more that was renewed; so there it is an ANNOUNCE.
func (p *pcp) check(ctx context.Context, l Lease) (Lease, error) {
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	nonce, ok := l.token.(pcpNonce)
	renews := ok && at.local.Unmap().Is4()
	var a pcpResponse
	var err error
	if renews {
		q := pcpRequest{opcode: pcpMap, lifetime: uint32(l.Lifetime / time.Second), client: at.local, mapping: pcpMapping{
			nonce:    nonce,
			protocol: protocolTCP,
			internal: l.Internal.Port(),
			external: l.External,
		}}
		a, err = p.ask(ctx, at, p.call, q)
	} else {
		a, err = p.announce(ctx, at, p.call)
	}
	if err != nil {
		return l, p.fail("check", at, err)
	}
	now := epoch{a.epoch, time.Now()}
	if epochRule(pcpEpoch).lost(l.epoch, now) {
		return l, p.fail("check", at, errStateLost)
	}
	l.epoch = now
	switch {
	case !renews:
	case a.code == pcpNetworkFailure:
		// Its line is down. Mappings outlive that, as a rule; what is to be
		// said now is that nobody can come in by it.
		l.External = netip.AddrPortFrom(netip.Addr{}, l.External.Port())
	case a.code != pcpSuccess:
		return l, p.fail("check", at, refusal(a))
	case a.mapping.external.Port() != 0:
		l.External = netip.AddrPortFrom(a.mapping.outside(at.local), a.mapping.external.Port())
	}
	return l, nil
}

// Unmap asks for a lifetime of 0 (RFC 6887 §15): with the nonce the mapping was
// made with, since a gateway obeys no other.
func (p *pcp) Unmap(ctx context.Context, l Lease) error {
	nonce, ok := l.token.(pcpNonce)
	if !ok || l.Via != p.Name() || l.Internal.Port() == 0 { // port 0 would delete everything we have there
		return p.fail("unmap", link{}, &Error{Kind: Unsupported, Err: errForeign})
	}
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	q := pcpRequest{opcode: pcpMap, client: at.local, mapping: pcpMapping{nonce: nonce, protocol: protocolTCP, internal: l.Internal.Port()}}
	err := p.delete(ctx, at, p.call, q)
	if at.local.Is6() && kindOf(err) == Refused && ctx.Err() == nil {
		// miniupnpd 2.3.1 lets nobody delete a pinhole that was renewed, but takes
		// another renewal: so it ends with the shortest life there is.
		q.lifetime, q.mapping.external = 1, l.External
		_, _ = p.ask(ctx, at, p.call, q)
	}
	if err != nil {
		return p.fail("unmap", at, err)
	}
	return nil
}

// delete sends q, which has no lifetime. RFC 6887 §15 wants success for what
// the gateway does not have; miniupnpd says "no resources".
func (p *pcp) delete(ctx context.Context, l link, waits []time.Duration, q pcpRequest) error {
	a, err := p.ask(ctx, l, waits, q)
	if err == nil && a.code != pcpSuccess && a.code != pcpNoResources {
		err = refusal(a)
	}
	if err == nil {
		p.mu.Lock()
		if key := (pcpKey{l, q.mapping.internal}); p.held[key] == q.mapping.nonce {
			delete(p.held, key)
		}
		p.mu.Unlock()
	}
	return err
}

// undo removes what a call that was broken off, or whose answer got lost or made no
// sense, may have made. The caller's context may have ended, so it has a short
// one of its own.
func (p *pcp) undo(ctx context.Context, l link, q pcpRequest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pcpUndo)
	defer cancel()
	q.lifetime, q.mapping.external = 0, netip.AddrPort{}
	_ = p.delete(ctx, l, []time.Duration{pcpUndo / 3, pcpUndo / 3, pcpUndo / 3}, q)
}

// nonce is that of the mapping there already is, also when its lease was
// given up as lost: the gateway may still have it, and would take us for
// somebody else. A new one is from a strong source (RFC 6887 §11.2).
func (p *pcp) nonce(key pcpKey, prev *Lease) pcpNonce {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.held[key]
	if prev != nil && prev.Gateway == key.link.gateway && prev.Internal == netip.AddrPortFrom(key.link.local, key.port) {
		if t, has := prev.token.(pcpNonce); has {
			n, ok = t, true
		}
	}
	if !ok {
		rand.Read(n[:])
	}
	p.held[key] = n
	trim(p.held, key)
	return n
}

// trim drops any one entry but that of key when there are too many.
func trim[V any](m map[pcpKey]V, key pcpKey) {
	for k := range m {
		if len(m) <= pcpRemembered {
			return
		}
		if k != key {
			delete(m, k)
		}
	}
}

// refusedBefore is the error that still stands: its lifetime is how long the
// same request would meet the same error (RFC 6887 §7.2).
func (p *pcp) refusedBefore(key pcpKey) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.stand[key]
	left := time.Until(s.until)
	if !ok || left <= 0 {
		delete(p.stand, key)
		return nil
	}
	again := *s.err
	again.RetryAfter = left
	return &again
}

func (p *pcp) noteRefusal(key pcpKey, err error) {
	e, ok := err.(*Error)
	if !ok || e.RetryAfter <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	stands := e.RetryAfter
	if e.Kind == WANDown {
		stands = min(stands, pcpDownError)
	}
	p.stand[key] = standing{e, time.Now().Add(stands)}
	trim(p.stand, key)
}

// refusal is the beginning of the *Error for a result code.
func refusal(r pcpResponse) error {
	e := &Error{Code: int(r.code)}
	short := false
	switch r.code {
	case pcpNotAuthorized:
		e.Kind = Refused
	case pcpUnsupportedVersion, pcpMalformedRequest, pcpUnsupportedOpcode, pcpUnsupportedOption, pcpMalformedOption, pcpUnsupportedProtocol:
		e.Kind = Unsupported
	case pcpNetworkFailure:
		e.Kind, short = WANDown, true
	case pcpNoResources, pcpQuota:
		e.Kind, short = NoResources, true
	case pcpCannotProvide:
		e.Kind, short = Conflict, true
	case pcpAddressMismatch:
		e.Kind, e.Err = AddressMismatch, errBetween
	case pcpExcessiveRemotePeers:
		e.Kind = NoResources
	default:
		e.Kind = Refused
	}
	// miniupnpd behind another NAT says "no resources", and in the place of
	// the external address why.
	if a := r.mapping.external.Addr(); r.code == pcpNoResources && a.IsValid() && !a.IsUnspecified() && !isGlobal(a) {
		e.Kind, e.Err = AddressMismatch, &outsideError{a}
	}
	switch e.RetryAfter = min(time.Duration(r.lifetime)*time.Second, pcpMaxError); {
	case e.RetryAfter > 0:
	case short:
		e.RetryAfter = pcpShortError
	default:
		e.RetryAfter = pcpLongError
	}
	return e
}

// ask sends q until it is answered.
func (p *pcp) ask(ctx context.Context, l link, waits []time.Duration, q pcpRequest) (pcpResponse, error) {
	var r pcpResponse
	err := exchange(ctx, l, p.port, waits, q.append(nil), func(b []byte) (answer bool, err error) {
		if r, answer = parsePCP(b); answer && r.code == pcpUnsupportedVersion { // says nothing about the request, so it has no nonce
			return true, refusal(r)
		}
		return answer && r.answers(q), nil
	})
	if err != nil {
		return pcpResponse{}, err
	}
	return r, nil
}
