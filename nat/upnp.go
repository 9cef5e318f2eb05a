package nat

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// UPnP is the Mapper for UPnP Internet Gateway Devices, version 1 and 2: the
// default gateway, never another device that answers. Its default lifetime is
// 3600 s; what a gateway grants without end is asserted again all the same.
func UPnP() Mapper { return Options{}.UPnP() }

func newUPnP(h host, s searcher) *upnp {
	return &upnp{host: h, searcher: s, patience: time.Second, grace: 200 * time.Millisecond, limit: 4500 * time.Millisecond, settle: 250 * time.Millisecond}
}

type upnp struct {
	host     host
	searcher searcher

	// What somebody else than the gateway says about it is heard only this
	// long after the start of a search.
	patience time.Duration
	// With a usable service at hand, better ones are waited for this long.
	grace time.Duration
	// A search is over after this, also when a device is found that swallows
	// what it is asked.
	limit time.Duration
	// A new entry is looked at again after this long, while the lease is used
	// already: a program that looked at the same port in the same moment may have
	// overwritten it.
	settle time.Duration

	finding shared[search, *service]
	routers routers

	mu    sync.Mutex
	known *service // the one that was used last, nil if none
}

const (
	upnpLifetime = 3600 * time.Second

	// The longest lease WANIPConnection:2 §2.3.16 allows, for gateways that
	// refuse both an ordinary one and one without end.
	upnpMaxLease = 604800 * time.Second

	// Gateways drop mappings that carried no traffic, or all of them when
	// their line comes back; so they are asserted more often than they end.
	upnpReassert = 20 * time.Minute

	// An outside address learned this recently is not asked for again.
	upnpFresh = 5 * time.Second

	// How many other external ports are tried when the wished one is taken.
	maxAlternatives = 4
)

func (u *upnp) Name() string { return "upnp" }

func (u *upnp) Map(ctx context.Context, r Request) (Lease, error) {
	if err := checkInternal(r.Internal); err != nil {
		return Lease{}, u.fail("map", netip.Addr{}, err)
	}
	links, err := u.host.links(r.Internal.Addr())
	if err != nil {
		return Lease{}, u.fail("map", netip.Addr{}, err)
	}
	for s := u.remembered(links, r.Previous); s != nil; s = u.instead(links, s) {
		l, err := u.mapAt(ctx, s, r)
		if err == nil || !transport(err) || ctx.Err() != nil {
			return l, err
		}
		// Restarted behind another port, as likely as not: look for it now
		// and not at the next renewal.
	}
	s, err := u.discover(ctx, "map", links)
	if err != nil {
		return Lease{}, err
	}
	return u.mapAt(ctx, s, r)
}

// remembered is the service of prev, else the known one, if it still is
// behind one of our links.
func (u *upnp) remembered(links []link, prev *Lease) *service {
	u.mu.Lock()
	s := u.known
	u.mu.Unlock()
	if prev != nil {
		if t, ok := prev.token.(upnpToken); ok {
			s = t.service
		}
	}
	return behind(links, s)
}

// instead is the service to use when s does not answer any more: the one that
// another lease has found since, if any.
func (u *upnp) instead(links []link, s *service) *service {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == s {
		u.known = nil
	}
	return behind(links, u.known)
}

// behind is s if it still is behind one of the links, else nil.
func behind(links []link, s *service) *service {
	if s == nil || !slices.Contains(links, s.device.hit.link) {
		return nil
	}
	return s
}

// mapAt makes or renews the mapping at one service.
func (u *upnp) mapAt(ctx context.Context, s *service, r Request) (Lease, error) {
	gateway := s.device.hit.device
	internal := netip.AddrPortFrom(s.device.hit.link.local, r.Internal.Port())

	s.mu.Lock()
	addr, stale := s.external, time.Since(s.asked) > upnpFresh
	s.mu.Unlock()
	if stale {
		var err error
		// A fault here is no verdict on the mapping; silence is.
		if addr, err = s.externalAddr(ctx); err != nil && (transport(err) && codeOf(err) == 0 || ctx.Err() != nil) {
			return Lease{}, u.fail("map", gateway, err)
		}
	}

	obtained := time.Now()
	m, err := u.obtain(ctx, s, internal, r)
	if err != nil {
		return Lease{}, u.fail("map", gateway, u.explain(ctx, s, addr, err))
	}
	u.mu.Lock()
	u.known = s
	u.mu.Unlock()
	untold := false
	if !addr.IsValid() {
		untold, _ = s.connected(ctx)
	}
	var confirm time.Duration
	if r.Previous == nil {
		confirm = u.settle
	}
	return Lease{
		Internal: internal,
		External: netip.AddrPortFrom(addr, m.external),
		Lifetime: m.lease,
		Via:      u.Name(),
		Gateway:  gateway,
		Obtained: obtained,
		reassert: upnpReassert,
		recheck:  heartbeat,
		confirm:  confirm,
		untold:   untold,
		token:    upnpToken{s, describeMapping(r.Description, internal.Port())},
	}, nil
}

// An upnpToken is what a lease remembers.
type upnpToken struct {
	service     *service
	description string // of the entry
}

// check looks whether the entry is still there, and what the outside address
// is. A gateway that knows no way to tell is believed to have it.
func (u *upnp) check(ctx context.Context, l Lease) (Lease, error) {
	t, ok := l.token.(upnpToken)
	if !ok {
		return l, u.fail("check", l.Gateway, &Error{Kind: Unsupported, Err: errForeign})
	}
	s := t.service
	switch e, err := s.entry(ctx, l.External.Port()); {
	case codeOf(err) == codeNoSuchEntry, err == nil && (!e.ours(l.Internal, t.description) || e.disabled):
		return l, u.fail("check", l.Gateway, errStateLost)
	case err != nil && transport(err) && kindOf(err) != Unsupported, ctx.Err() != nil:
		return l, u.fail("check", l.Gateway, err)
	}
	if a, err := s.externalAddr(ctx); err == nil {
		l.External = netip.AddrPortFrom(a, l.External.Port())
	}
	return l, nil
}

// A wanted is a mapping that is to be made.
type wanted struct {
	internal    netip.AddrPort
	external    uint16
	description string
	lease       time.Duration
	prev        *Lease // as in Request
}

// obtain finds an external port that can be had: the wished one, then a few
// that follow from who and where we are, so that a program that is started
// again meets its own old entries and not new ports.
func (u *upnp) obtain(ctx context.Context, s *service, internal netip.AddrPort, r Request) (entry, error) {
	w := wanted{internal: internal, external: r.external(), description: describeMapping(r.Description, internal.Port()), lease: r.Lifetime, prev: r.Previous}
	if w.lease <= 0 {
		w.lease = upnpLifetime
	}
	w.lease = min(max(w.lease.Truncate(time.Second), time.Second), upnpMaxLease)
	first := w.external
	var failure error
	refusals := 0
	for _, w.external = range append([]uint16{first}, alternatives(internal, s.device.hit.device)...) {
		m, err := u.addPort(ctx, s, w)
		if err == nil {
			return m, nil
		}
		if failure == nil || kindOf(err) != Conflict {
			failure = err
		}
		switch code := codeOf(err); {
		case kindOf(err) == Conflict:
			continue
		case code == codeSamePorts && w.external != internal.Port() && first != internal.Port():
			// It maps a port only to the same one.
			w.external = internal.Port()
			return u.addPort(ctx, s, w)
		case refusesPort(code):
			if refusals++; refusals < maxRefusals {
				continue
			}
			if e, ok := errors.AsType[*Error](failure); ok {
				failure = &Error{Kind: e.Kind, Code: e.Code, Err: fmt.Errorf("%w: %w", errPortsRefused, e.Err)}
			}
		}
		break
	}
	return entry{}, failure
}

var errPortsRefused = errors.New("so it was with other ports")

// maxRefusals is how many ports are asked for of a gateway that refuses with a
// code that may mean the port.
const maxRefusals = 3

// refusesPort reports whether a fault may be about this one external port: it is
// kept for the gateway itself, or not among those that are allowed.
func refusesPort(code int) bool {
	switch code {
	case codeInvalidArgs, codeActionFailed, codeHTTPServerError, codeNotAuthorized, codeNoWildcardPort, codeOnlyWildcardPort:
		return true
	}
	return false
}

// addPort maps one external port, with whatever lease the gateway takes, and
// leaves nothing behind if that fails.
//
// It looks first who has the port: gateways overwrite the entry of another
// program on this machine without a word, since the client is the same, and
// some do so with everybody's, forwards made by hand included.
func (u *upnp) addPort(ctx context.Context, s *service, w wanted) (entry, error) {
	switch e, err := s.entry(ctx, w.external); {
	case err == nil && w.movedFrom(e) && s.remove(ctx, w.external) == nil:
		// Ours, from before our address changed. Some gateways let only the
		// old address delete it; then it is in the way as anybody's is.
	case err == nil && !e.ours(w.internal, w.description) && !e.client.IsUnspecified():
		return entry{}, &Error{Kind: Conflict, Code: codeConflict, Err: fmt.Errorf("external port %d is forwarded to %s", w.external, netip.AddrPortFrom(e.client, e.port))}
	case ctx.Err() != nil, kindOf(err) == Timeout:
		return entry{}, err
	}
	m, err := u.add(ctx, s, w)
	if err != nil {
		return u.salvage(ctx, s, w, err)
	}
	if w.prev != nil && s.trusts() {
		return m, nil
	}
	w.external = m.external
	granted := m
	if m, err = u.verify(ctx, s, w, granted); codeOf(err) == codeNoSuchEntry {
		// Some need a moment to show what they have.
		sleep(ctx, u.settle)
		m, err = u.verify(ctx, s, w, granted)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		u.undo(ctx, s, w)
		return entry{}, err
	}
	return m, nil
}

// salvage sees what has become of a mapping that add failed to get with err. After an
// answer that made no sense, or got lost, the table counts; and so it does if the
// port is taken, for it may be ours already: left by an earlier life or made in
// another protocol, it is taken over as it is. What may have been made and is not to
// be had is undone.
func (u *upnp) salvage(ctx context.Context, s *service, w wanted, err error) (entry, error) {
	code := codeOf(err)
	unclear := code == 0 && ctx.Err() == nil
	if unclear || code == codeConflict {
		e, lost := s.entry(ctx, w.external)
		if lost == nil && e.ours(w.internal, w.description) && !e.disabled {
			return e, nil
		}
		if unclear && kindOf(lost) != Timeout {
			if e, ok := s.elsewhere(ctx, w); ok {
				return e, nil
			}
		}
	}
	if code == 0 || ctx.Err() != nil && code != codeConflict {
		u.undo(ctx, s, w)
	}
	return entry{}, err
}

// add asks for the mapping on whatever terms the gateway takes.
func (u *upnp) add(ctx context.Context, s *service, w wanted) (entry, error) {
	s.mu.Lock()
	anyPort := s.urn == urnIP2 && !s.noAny && w.prev == nil
	if s.permanent {
		w.lease = 0
	}
	s.mu.Unlock()
	for {
		var err error
		got := w.external
		if anyPort {
			got, err = s.addAny(ctx, w)
		} else {
			err = s.add(ctx, w)
		}
		switch code := codeOf(err); {
		case err == nil:
			if w.lease == 0 {
				s.mu.Lock()
				s.permanent = true
				s.mu.Unlock()
			}
			return entry{client: w.internal.Addr(), port: w.internal.Port(), external: got, lease: w.lease}, nil
		case ctx.Err() != nil:
			return entry{}, err
		case anyPort && (code == codeInvalidAction || code == codeNotImplemented):
			s.mu.Lock()
			s.noAny = true
			s.mu.Unlock()
			anyPort = false
		case anyPort && code == codeNoPortMaps:
			// Also said when no port at all is allowed: asking for this one
			// tells a full table from a refusal.
			anyPort = false
		case w.lease > 0 && w.lease < upnpMaxLease && onlyPermanent(code):
			w.lease = 0
		case w.lease == 0 && code == codeInvalidArgs:
			w.lease = upnpMaxLease
		default:
			return entry{}, err
		}
	}
}

// movedFrom reports whether e is the entry of the lease that is to be renewed, made
// when our address was another.
func (w wanted) movedFrom(e entry) bool {
	return w.prev != nil && w.prev.Internal != w.internal && w.prev.External.Port() == e.external && e.ours(w.prev.Internal, w.description)
}

// sleep waits for d, or less if ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// onlyPermanent reports whether a fault may mean that the gateway grants only
// leases without end: 725 says so, the others are said instead of it.
func onlyPermanent(code int) bool {
	switch code {
	case codeOnlyPermanent, codeInvalidArgs, codeActionFailed, codeHTTPServerError:
		return true
	}
	return false
}

// verify looks once whether an accepted mapping is in the table: there are
// gateways that say yes with a full one, and ones that map another port than they
// were asked for. Those that cannot tell are believed.
func (u *upnp) verify(ctx context.Context, s *service, w wanted, m entry) (entry, error) {
	e, err := s.entry(ctx, m.external)
	switch {
	case codeOf(err) == codeNoSuchEntry:
		if e, ok := s.elsewhere(ctx, w); ok {
			return e, nil
		}
		return m, &Error{Kind: NoResources, Code: codeNoSuchEntry, Err: errors.New("the gateway accepted the mapping and does not have it")}
	case err != nil:
		return m, nil
	case !e.ours(w.internal, w.description):
		return m, &Error{Kind: Conflict, Err: errors.New("the gateway accepted the mapping and has another one there")}
	case e.disabled:
		return m, &Error{Kind: Refused, Err: errors.New("the gateway keeps the mapping switched off")}
	}
	s.mu.Lock()
	s.trusted = true
	s.mu.Unlock()
	if e.lease > 0 && (m.lease == 0 || e.lease < m.lease) {
		m.lease = e.lease
	}
	return m, nil
}

// trusts reports whether an accepted mapping was really there once.
func (s *service) trusts() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trusted
}

// undo removes what a call that was broken off, or whose answer made no sense, may
// have made. The caller's context may have ended, so it has a short one of its own.
func (u *upnp) undo(ctx context.Context, s *service, w wanted) {
	if w.prev != nil {
		return // the lease is still held; Unmap is for its owner to call
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	// Also where there seems to be none, or nothing is to be seen: that the port is
	// somebody else's is known before it is asked for, if at all.
	if e, err := s.entry(ctx, w.external); err != nil || e.ours(w.internal, w.description) {
		_ = s.remove(ctx, w.external)
	}
}

// explain finds the reason behind a refusal that names none: a gateway
// without an address of its own on the outside refuses everything. One that
// says it is connected then is behind another NAT.
func (u *upnp) explain(ctx context.Context, s *service, addr netip.Addr, err error) error {
	switch codeOf(err) {
	case codeActionFailed, codeHTTPServerError, codeInvalidArgs:
	default:
		return err
	}
	if isGlobal(addr) || ctx.Err() != nil {
		return err
	}
	up, known := s.connected(ctx)
	switch {
	case known && up:
		return &Error{Kind: AddressMismatch, Code: codeOf(err), Err: errors.Unwrap(err)}
	case known || !addr.IsValid():
		return &Error{Kind: WANDown, Code: codeOf(err), Err: errors.Unwrap(err)}
	}
	return err
}

// Unmap deletes the mapping if it still is ours, by DeletePortMapping.
func (u *upnp) Unmap(ctx context.Context, l Lease) error {
	t, ok := l.token.(upnpToken)
	if !ok || l.Via != u.Name() {
		return u.fail("unmap", l.Gateway, &Error{Kind: Unsupported, Err: errForeign})
	}
	err := u.unmapAt(ctx, t.service, t.description, l)
	if transport(err) && ctx.Err() == nil {
		// Restarted since the last renewal: its mapping may have survived.
		if links, e := u.host.links(l.Internal.Addr()); e == nil {
			next := u.instead(links, t.service)
			if next == nil {
				next, _ = u.discover(ctx, "unmap", links)
			}
			if next != nil {
				err = u.unmapAt(ctx, next, t.description, l)
			}
		}
	}
	if err != nil {
		return u.fail("unmap", l.Gateway, err)
	}
	return nil
}

func (u *upnp) unmapAt(ctx context.Context, s *service, description string, l Lease) error {
	// Our entry may have expired and the port gone to somebody else. A
	// gateway that cannot say is asked to delete all the same.
	switch e, err := s.entry(ctx, l.External.Port()); {
	case codeOf(err) == codeNoSuchEntry, err == nil && !e.ours(l.Internal, description):
		return nil
	case err != nil && codeOf(err) == 0:
		return err
	}
	if err := s.remove(ctx, l.External.Port()); err != nil && codeOf(err) != codeNoSuchEntry {
		return err
	}
	return nil
}

// probeExternal is the read-only question of the race in Any.
func (u *upnp) probeExternal(ctx context.Context, r Request) (netip.Addr, error) {
	links, err := u.host.links(r.Internal.Addr())
	if err != nil {
		return netip.Addr{}, u.fail("probe", netip.Addr{}, err)
	}
	s, err := u.discover(ctx, "probe", links)
	if err != nil {
		return netip.Addr{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.external, nil
}

// forget drops what was discovered.
func (u *upnp) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.known = nil
}

func (u *upnp) ownAddr(bound netip.Addr) netip.Addr { return u.host.ownAddr(bound) }

func (u *upnp) watch(ctx context.Context, changed func()) error {
	return u.host.watchNetwork(ctx, changed)
}

func (u *upnp) otherWay(own, dst netip.Addr) netip.Addr { return u.host.otherWay(own, dst) }

func (u *upnp) fail(op string, gateway netip.Addr, err error) *Error {
	return fill(u.Name(), op, gateway, NoGateway, 0, err)
}

// alternatives are the external ports tried when the wished one is taken:
// they follow from our address, port and gateway, the same in every run.
func alternatives(internal netip.AddrPort, gateway netip.Addr) []uint16 {
	const low, high = 20000, 59999
	h := fnv.New64a()
	a, g := internal.Addr().As16(), gateway.As16()
	h.Write(a[:])
	h.Write(g[:])
	h.Write([]byte{byte(internal.Port() >> 8), byte(internal.Port())})
	var ports []uint16
	for x := h.Sum64(); len(ports) < maxAlternatives; x = x*6364136223846793005 + 1442695040888963407 { // the constants of Knuth's MMIX
		p := low + uint16((x>>33)%(high-low+1))
		if p != internal.Port() && !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	return ports
}

// maxEntryName is how long a description every gateway takes may be.
const maxEntryName = 32

// describeMapping makes of a description what every gateway takes: ASCII
// letters, digits, spaces and dashes, at most maxEntryName of them. The port is part of
// it, because some gateways keep one entry for each description.
func describeMapping(s string, port uint16) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == ' ', c == '-':
			b.WriteRune(c)
		}
	}
	name := strings.Join(strings.Fields(b.String()), " ")
	if name == "" {
		name = "peerws"
	}
	suffix := formatPort(port)
	if len(name) <= maxEntryName && slices.Contains(strings.Fields(name), suffix) {
		return name
	}
	name = strings.TrimSpace(name[:min(len(name), maxEntryName-1-len(suffix))])
	return name + " " + suffix
}
