package nat

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// discover searches for the gateway's device, reads its description and returns
// the best service. Who searches for the same at the same time shares the
// outcome.
func (u *upnp) discover(ctx context.Context, op string, links []link) (*service, error) {
	s, err := u.finding.do(ctx, searchOf(op, links), func(ctx context.Context) (*service, error) {
		ctx, cancel := context.WithTimeout(ctx, u.limit)
		defer cancel()
		s, err := u.find(ctx, op, links)
		if err == nil {
			u.mu.Lock()
			u.known = s // before the search is over: who comes then does not begin another
			u.mu.Unlock()
		}
		return s, err
	})
	if err != nil && ctx.Err() != nil {
		err = u.fail(op, netip.Addr{}, ctxError(ctx))
	}
	return s, err
}

// find is discover for one. It returns as soon as a service is as good as can be.
func (u *upnp) find(ctx context.Context, op string, links []link) (*service, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // nothing goes on behind the caller's back
	defer cancel()

	type finding struct {
		service *service
		score   int
		err     error
	}
	hits, findings := make(chan hit, hitSorts*maxHits), make(chan finding, hitSorts*maxHits) // never full: a search reports no more
	searched := make(chan error, 1)
	wg.Go(func() { searched <- u.searcher.search(ctx, u.host, links, func(h hit) { hits <- h }) })

	patience := time.NewTimer(u.patience)
	defer patience.Stop()
	patient := true // still waiting for the gateway before strangers are heard
	var grace <-chan time.Time
	var strangers []hit
	var best finding
	var errs []error
	pending, searching := 0, true
	looked := make(map[string]bool)
	look := func(h hit) {
		if key := h.url.String(); looked[key] {
			return
		} else if h.stranger && patient {
			strangers = append(strangers, h)
			return
		} else {
			looked[key] = true
		}
		pending++
		wg.Go(func() {
			s, score, err := inspect(ctx, h)
			findings <- finding{s, score, err}
		})
	}

	for searching || pending > 0 || len(strangers) > 0 && patient {
		if !searching && pending == 0 && best.service != nil {
			break
		}
		select {
		case h := <-hits:
			look(h)
		case <-patience.C:
			patient = false
			if best.service != nil {
				continue
			}
			for _, h := range strangers {
				look(h)
			}
			strangers = nil
		case f := <-findings:
			pending--
			if f.err != nil {
				errs = append(errs, f.err)
				continue
			}
			if best.service == nil || better(f.service, f.score, best.service, best.score) {
				best = f
			}
			if best.score == scoreBest {
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
				look(<-hits)
			}
		case <-ctx.Done():
			// A device that takes seconds for each answer is late, not deaf:
			// what is known of it by now will do.
			for ; pending > 0; pending-- {
				if f := <-findings; f.err == nil && (best.service == nil || better(f.service, f.score, best.service, best.score)) {
					best = f
				}
			}
			if best.service != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return best.service, nil
			}
			return nil, u.fail(op, netip.Addr{}, ctxError(ctx))
		}
	}
	if best.service != nil {
		return best.service, nil
	}
	if len(errs) == 0 {
		return nil, u.fail(op, netip.Addr{}, &Error{Kind: NoGateway, Err: errors.New("the gateway did not answer the search")})
	}
	for i, err := range errs {
		errs[i] = u.fail(op, netip.Addr{}, err)
	}
	return nil, telling(u.Name(), op, errs)
}

// better reports whether service a is to be preferred over b: by score, then
// by capability.
func better(a *service, as int, b *service, bs int) bool {
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
	var best *service
	score := 0
	for _, s := range services {
		n, answered := s.score(ctx, len(services) == 1)
		if ctx.Err() != nil && !answered {
			break // it was not given its time
		}
		if best == nil || better(s, n, best, score) {
			best, score = s, n
		}
		if score == scoreBest {
			break
		}
	}
	if best == nil {
		return nil, 0, fill("", "", h.device, NoGateway, 0, ctxError(ctx))
	}
	return best, score, nil
}
