package nat

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// discover searches for devices, reads their descriptions and returns the
// best service. It returns as soon as one of the default gateway's is as good
// as can be; another device's, even the best, waits for the gateway's: a port
// opened elsewhere leads nowhere as a rule, and anybody can answer a search.
func (u *upnp) discover(ctx context.Context, op string, links []link) (*service, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // nothing goes on behind the caller's back
	defer cancel()

	type finding struct {
		service *service
		score   int
		err     error
	}
	hits, findings := make(chan hit, maxHits), make(chan finding, maxHits) // never full: a search reports no more
	searched := make(chan error, 1)
	wg.Go(func() { searched <- u.searcher.search(ctx, u.host, links, func(h hit) { hits <- h }) })

	look := func(h hit) {
		wg.Go(func() {
			s, score, err := inspect(ctx, h)
			findings <- finding{s, score, err}
		})
	}
	patience := time.NewTimer(u.patience)
	defer patience.Stop()
	patient := true // still waiting for the gateway before others are looked at
	var grace <-chan time.Time
	var others []hit
	var best finding
	var errs []error
	pending, searching := 0, true

	for searching || pending > 0 || len(others) > 0 && patient {
		if !searching && pending == 0 && best.service != nil {
			break
		}
		select {
		case h := <-hits:
			if patient && !h.gateway() {
				others = append(others, h)
				continue
			}
			pending++
			look(h)
		case <-patience.C:
			patient = false
			if best.service != nil {
				continue
			}
			pending += len(others)
			for _, h := range others {
				look(h)
			}
			others = nil
		case f := <-findings:
			pending--
			if f.err != nil {
				errs = append(errs, f.err)
				continue
			}
			if best.service == nil || better(f.service, f.score, best.service, best.score) {
				best = f
			}
			if best.score == scoreBest && best.service.device.hit.gateway() {
				return best.service, nil
			}
			if grace == nil {
				t := time.NewTimer(u.grace)
				defer t.Stop()
				grace = t.C
			}
		case <-grace:
			return best.service, nil
		case err := <-searched:
			searching = false
			searched = nil
			if err != nil {
				errs = append(errs, &Error{Kind: NoNetwork, Err: err})
			}
			// What was found in the last moment is still to be looked at.
			for len(hits) > 0 {
				if h := <-hits; patient && !h.gateway() {
					others = append(others, h)
				} else {
					pending++
					look(h)
				}
			}
		case <-ctx.Done():
			return nil, u.fail(op, netip.Addr{}, &Error{Kind: ctxKind(ctx), Err: ctx.Err()})
		}
	}
	if best.service != nil {
		return best.service, nil
	}
	if len(errs) == 0 {
		return nil, u.fail(op, netip.Addr{}, &Error{Kind: NoGateway, Err: errors.New("no gateway device answered the search")})
	}
	for i, err := range errs {
		errs[i] = u.fail(op, netip.Addr{}, err)
	}
	return nil, telling(u.Name(), op, errs)
}

// better reports whether service a is to be preferred over b: the default
// gateway's first, then by score, then by capability.
func better(a *service, as int, b *service, bs int) bool {
	if ag, bg := a.device.hit.gateway(), b.device.hit.gateway(); ag != bg {
		return ag
	}
	if as != bs {
		return as > bs
	}
	return a.rank < b.rank
}

// inspect fetches a description and picks the best of its services.
func inspect(ctx context.Context, h hit) (*service, int, error) {
	services, err := describe(ctx, h)
	if err != nil {
		e := fill("", "", h.device, NoGateway, 0, err)
		return nil, 0, e
	}
	if len(services) > maxServices {
		services = services[:maxServices]
	}
	best, score := services[0], 0
	for _, s := range services {
		n := s.score(ctx, len(services) == 1)
		if score == 0 || better(s, n, best, score) {
			best, score = s, n
		}
		if score == scoreBest {
			break
		}
	}
	return best, score, nil
}
