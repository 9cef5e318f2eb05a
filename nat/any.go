package nat

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// Any is the Mapper that asks in every protocol at once and uses the best one
// that answers: PCP, else NAT-PMP, else UPnP. Where one refuses, it tries the next; it
// never holds a port through two at once, which on most gateways would be a
// conflict with ourselves. Lease.Via names the one that was used, and renewals
// go to it.
func Any() Mapper { return Options{}.Any() }

// searchHeadStart is how long UPnP's answer waits for the other protocols'.
const searchHeadStart = time.Second

// pcpHeadStart is how long NAT-PMP's answer waits for PCP's. A gateway that
// speaks both does so at one port, as a rule out of one program, so its answers
// come in one breath; one that speaks only NAT-PMP should refuse PCP at once
// (RFC 6887 §9) and then nothing is waited for, but some drop it.
const pcpHeadStart = 150 * time.Millisecond

// mapLimit is how long PCP and NAT-PMP may take for a mapping, of a gateway that
// has just answered another question. There are ones that swallow this one;
// the next protocol is to be tried in good time. Requests are repeated after
// 250 and 750 ms.
const mapLimit = 1750 * time.Millisecond

// A candidate is one protocol of a composite, in order of preference.
type candidate struct {
	mapper Mapper

	// wait is how long, from the start on, a good answer gives way to more
	// preferred candidates that have not answered yet.
	wait time.Duration

	// limit is how long a mapping may take once it has answered, 0 for as
	// long as the caller waits.
	limit time.Duration

	// blind says that its answer to a probe has no outside address: only a
	// mapping tells.
	blind bool
}

// A prober is a Mapper that can be asked, changing nothing, whether it would
// work. One that is none is taken to work.
type prober interface {
	// probeExternal is the gateway's outside address, invalid if it has none.
	probeExternal(ctx context.Context, r Request) (netip.Addr, error)

	// forget drops what was discovered.
	forget()
}

func newAny(candidates ...candidate) *anyMapper {
	return &anyMapper{candidates: candidates, known: -1}
}

type anyMapper struct {
	candidates []candidate

	mu    sync.Mutex
	known int // the candidate that worked last, -1 if none
}

func (a *anyMapper) Name() string { return "any" }

func (a *anyMapper) Map(ctx context.Context, r Request) (Lease, error) {
	if p := r.Previous; p != nil {
		l, err := a.renew(ctx, r)
		if err == nil || ctx.Err() != nil || kindOf(err) == WANDown { // another protocol has no other line
			return l, err
		}
		// From here on it is a new mapping, with the old external port if
		// that can be had.
		r.External, r.Previous = r.external(), nil
	}

	if l, err, ok := a.shortcut(ctx, r); ok {
		return l, err
	}
	return a.race(ctx, r)
}

// renew asks the protocol that made r.Previous.
func (a *anyMapper) renew(ctx context.Context, r Request) (Lease, error) {
	i := a.index(r.Previous.Via)
	if i < 0 {
		return Lease{}, &Error{Mapper: a.Name(), Op: "map", Kind: Unsupported, Err: errForeign}
	}
	m := a.candidates[i].mapper
	l, err := m.Map(ctx, r)
	if err == nil || ctx.Err() != nil || kindOf(err) == WANDown {
		return l, err
	}
	a.drop(i)
	if !transport(err) {
		// It is there and does not want to. The old mapping may live on, and
		// would be in the way of another protocol.
		_ = m.Unmap(ctx, *r.Previous)
	}
	return l, err
}

// shortcut maps through the protocol that worked last, without a race. ok is
// false if there is none or it does not work any more.
func (a *anyMapper) shortcut(ctx context.Context, r Request) (l Lease, err error, ok bool) {
	a.mu.Lock()
	i := a.known
	a.mu.Unlock()
	if i < 0 {
		return Lease{}, nil, false
	}
	l, err = a.candidates[i].mapper.Map(ctx, r)
	if err == nil || ctx.Err() != nil {
		return l, err, true
	}
	a.drop(i)
	return Lease{}, nil, false
}

// race asks everybody at once and maps through the best that answers. Of
// several races at the same time, each candidate searches once for all.
func (a *anyMapper) race(ctx context.Context, r Request) (Lease, error) {
	probing, cancel := context.WithCancel(ctx)
	answers := make(chan answer, len(a.candidates))
	var wg sync.WaitGroup
	defer wg.Wait() // nothing goes on behind the caller's back
	defer cancel()
	for i, c := range a.candidates {
		p, ok := c.mapper.(prober)
		if !ok {
			answers <- answer{index: i}
			continue
		}
		wg.Go(func() {
			addr, err := p.probeExternal(probing, r)
			answers <- answer{index: i, addr: addr, err: err}
		})
	}

	b := ballot{candidates: a.candidates, start: time.Now(), answers: make([]*answer, len(a.candidates))}
	var errs []error
	for {
		i, wait := b.choose(time.Since(b.start))
		switch {
		case i >= 0:
			b.answers[i].used = true
			l, err := a.candidates[i].mapAtOnce(ctx, r)
			if err == nil && !b.answers[i].told && a.candidates[i].blind {
				// Now its address is known, and the others are compared with
				// it: at most once, and never with two mappings at a time.
				b.answers[i].told, b.answers[i].addr = true, l.External.Addr()
				if j, _ := b.reconsider(i, time.Since(b.start)); j != i && a.candidates[i].mapper.Unmap(ctx, l) == nil {
					continue
				}
			}
			if err == nil {
				a.mu.Lock()
				a.known = i
				a.mu.Unlock()
				return l, nil
			}
			errs = append(errs, err)
			if ctx.Err() != nil {
				return Lease{}, err
			}
			continue
		case b.pending() == 0:
			return Lease{}, telling(a.Name(), "map", errs)
		}
		var timer <-chan time.Time
		if wait > 0 {
			t := time.NewTimer(wait)
			defer t.Stop()
			timer = t.C
		}
		select {
		case x := <-answers:
			b.answers[x.index] = &x
			if x.err != nil {
				errs = append(errs, x.err)
			}
		case <-timer:
		case <-ctx.Done():
			return Lease{}, &Error{Mapper: a.Name(), Op: "map", Kind: ctxKind(ctx), Err: errors.Join(append(errs, ctx.Err())...)}
		}
	}
}

// mapAtOnce is the mapper's Map within limit.
func (c candidate) mapAtOnce(ctx context.Context, r Request) (Lease, error) {
	if c.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.limit)
		defer cancel()
	}
	return c.mapper.Map(ctx, r)
}

// An answer is what a candidate said in a race.
type answer struct {
	index int
	addr  netip.Addr // outside address, invalid if it has none
	err   error
	used  bool // its mapping was tried already
	told  bool // of a blind candidate: addr is known by now
}

// A ballot is the state of a race, free of clocks and calls.
type ballot struct {
	candidates []candidate
	start      time.Time
	answers    []*answer // nil = not yet
}

func (b *ballot) pending() (n int) {
	for _, x := range b.answers {
		if x == nil {
			n++
		}
	}
	return n
}

// choose says which candidate to map through now, that long after the start,
// or -1, and then how long that may change nothing but by an answer (0 = for
// ever).
func (b *ballot) choose(elapsed time.Duration) (index int, wait time.Duration) {
	index = -1
	better := false // a more preferred candidate is still to answer
	for i, x := range b.answers {
		if x == nil {
			better = true
			continue
		}
		if x.err != nil || x.used {
			continue
		}
		if hold := b.candidates[i].wait - elapsed; better && hold > 0 {
			return -1, hold
		}
		index = i
		break
	}
	if index < 0 || isGlobal(b.answers[index].addr) || b.candidates[index].blind && !b.answers[index].told {
		return index, 0
	}
	// Its address leads nowhere. If another protocol's does, which happens
	// with two gateways in one house, that one is better; if one may yet, it
	// is worth the wait.
	for i, x := range b.answers {
		if x != nil && x.err == nil && !x.used && isGlobal(x.addr) {
			return i, 0
		}
	}
	if b.pending() > 0 {
		return -1, 0
	}
	return index, 0
}

// reconsider says whom to choose if candidate i, mapped by now, had not been
// tried yet, and leaves it so unless it is i.
func (b *ballot) reconsider(i int, elapsed time.Duration) (index int, wait time.Duration) {
	b.answers[i].used = false
	index, wait = b.choose(elapsed)
	b.answers[i].used = index == i
	return index, wait
}

// Unmap gives the mapping back to the protocol that made it.
func (a *anyMapper) Unmap(ctx context.Context, l Lease) error {
	i := a.index(l.Via)
	if i < 0 {
		return &Error{Mapper: a.Name(), Op: "unmap", Gateway: l.Gateway, Kind: Unsupported, Err: errForeign}
	}
	return a.candidates[i].mapper.Unmap(ctx, l)
}

// check asks the protocol that made the mapping.
func (a *anyMapper) check(ctx context.Context, l Lease) (Lease, error) {
	if i := a.index(l.Via); i >= 0 {
		if c, ok := a.candidates[i].mapper.(checker); ok {
			return c.check(ctx, l)
		}
	}
	return l, nil
}

// index is the candidate of that name, -1 if there is none.
func (a *anyMapper) index(name string) int {
	for i, c := range a.candidates {
		if c.mapper.Name() == name {
			return i
		}
	}
	return -1
}

// drop forgets what was discovered, as it proved wrong.
func (a *anyMapper) drop(i int) {
	a.mu.Lock()
	if a.known == i {
		a.known = -1
	}
	a.mu.Unlock()
	if p, ok := a.candidates[i].mapper.(prober); ok {
		p.forget()
	}
}

// ownAddr is that of the first candidate that knows one.
func (a *anyMapper) ownAddr(bound netip.Addr) netip.Addr {
	for _, c := range a.candidates {
		if o, ok := c.mapper.(ownAddresser); ok {
			return o.ownAddr(bound)
		}
	}
	return netip.Addr{}
}

func (a *anyMapper) watch(ctx context.Context, changed func()) error {
	for _, c := range a.candidates {
		if w, ok := c.mapper.(watcher); ok {
			return w.watch(ctx, changed)
		}
	}
	return errors.ErrUnsupported
}

// otherWay is that of the first candidate that knows.
func (a *anyMapper) otherWay(own, dst netip.Addr) netip.Addr {
	for _, c := range a.candidates {
		if r, ok := c.mapper.(sourcer); ok {
			return r.otherWay(own, dst)
		}
	}
	return netip.Addr{}
}
