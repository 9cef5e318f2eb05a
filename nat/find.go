package nat

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// A finder is what PCP and NAT-PMP have in common: of the gateways it looks for the
// one that answers on UDP port 5351, by a question that changes nothing, and goes
// straight to that one from then on.
type finder struct {
	name string
	host host

	// How long an answer is waited for before a request is sent again, of a
	// gateway that has never answered (probe) and of one that has (call).
	probe, call []time.Duration

	// question asks one gateway, and returns its outside address where the protocol
	// tells it. mapAt makes or renews the mapping at one. Their errors are complete.
	question func(ctx context.Context, op string, l link) (netip.Addr, error)
	mapAt    func(ctx context.Context, l link, r Request) (Lease, error)

	finding shared[search, found]

	mu    sync.Mutex
	known netip.Addr // the gateway that answered last, invalid if none
}

// A found is a gateway that answered, and its outside address.
type found struct {
	link link
	addr netip.Addr
}

func (f *finder) Name() string { return f.name }

func (f *finder) Map(ctx context.Context, r Request) (Lease, error) {
	if err := checkInternal(r.Internal); err != nil {
		return Lease{}, f.fail("map", link{}, err)
	}
	links, err := f.host.links(r.Internal.Addr())
	if err != nil {
		return Lease{}, f.fail("map", link{}, err)
	}
	// Straight to the gateway that has the mapping, or has answered before.
	f.mu.Lock()
	known := f.known
	f.mu.Unlock()
	tried, ok := rememberedLink(links, known, r.Previous)
	if ok {
		lease, failure := f.mapAt(ctx, tried, r)
		if failure == nil || !transport(failure) || ctx.Err() != nil {
			return lease, failure
		}
		f.forget()
		err = failure
	}
	l, _, e := f.find(ctx, "map", links)
	switch {
	case e != nil:
		return Lease{}, e
	case ok && l == tried && kindOf(err) == Timeout: // it answers that question, and not the other
		return Lease{}, err
	}
	return f.mapAt(ctx, l, r)
}

// find asks all gateways at once, and takes the first of the list that answers. Who
// asks for the same at the same time shares the answer.
func (f *finder) find(ctx context.Context, op string, links []link) (link, netip.Addr, error) {
	at, err := f.finding.do(ctx, searchOf(op, links), func(ctx context.Context) (found, error) {
		addrs := make([]netip.Addr, len(links))
		i, errs := firstOf(ctx, links, func(ctx context.Context, i int) (err error) {
			addrs[i], err = f.question(ctx, op, links[i])
			return err
		})
		if i < 0 {
			return found{}, telling(f.name, op, errs)
		}
		f.remember(links[i])
		return found{links[i], addrs[i]}, nil
	})
	if err != nil && ctx.Err() != nil {
		err = f.fail(op, at.link, ctxError(ctx))
	}
	return at.link, at.addr, err
}

// probeExternal is the question of the race in Any. It changes nothing.
func (f *finder) probeExternal(ctx context.Context, r Request) (netip.Addr, error) {
	links, err := f.host.links(r.Internal.Addr())
	if err != nil {
		return netip.Addr{}, f.fail("probe", link{}, err)
	}
	_, addr, err := f.find(ctx, "probe", links)
	return addr, err
}

func (f *finder) remember(l link) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = l.gateway
}

// forget drops what was discovered.
func (f *finder) forget() { f.remember(link{}) }

func (f *finder) ownAddr(bound netip.Addr) netip.Addr { return f.host.ownAddr(bound) }

func (f *finder) watch(ctx context.Context, changed func()) error {
	return f.host.watchNetwork(ctx, changed)
}

func (f *finder) otherWay(own, dst netip.Addr) netip.Addr { return f.host.otherWay(own, dst) }

// fail completes the *Error of what went wrong.
func (f *finder) fail(op string, l link, err error) *Error {
	return fill(f.name, op, l.gateway, Unsupported, 0, err)
}

// wireLifetime is what a request for a lifetime says, in seconds: the default for
// none, and never 0, which would delete.
func wireLifetime(life, def time.Duration) uint32 {
	if life <= 0 {
		life = def
	}
	return uint32(min(max(life, time.Second), maxLifetime) / time.Second)
}
