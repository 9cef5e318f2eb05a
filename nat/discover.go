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
	d := discovery{u: u, ctx: ctx, patient: true, seen: make(map[string]bool), findings: make(chan finding, hitSorts*maxHits)}
	defer d.wg.Wait() // nothing goes on behind the caller's back
	defer cancel()
	hits := make(chan hit, hitSorts*maxHits) // never full: a search reports no more
	searched := make(chan error, 1)
	d.wg.Go(func() { searched <- u.searcher.search(ctx, u.host, links, func(h hit) { hits <- h }) })
	patience := time.NewTimer(u.patience)
	defer patience.Stop()

	for searching := true; !d.enough() && (searching || d.pending > 0 || len(d.strangers) > 0); {
		if !searching && d.pending == 0 && d.best.service != nil {
			break
		}
		select {
		case h := <-hits:
			d.inspect(h)
		case <-patience.C:
			d.hearStrangers()
		case f := <-d.findings:
			d.note(f)
		case <-d.grace:
			return d.best.service, nil
		case err := <-searched:
			searching, searched = false, nil
			if err != nil {
				d.errs = append(d.errs, &Error{Kind: NoNetwork, Err: err})
			}
			// What was found in the last moment is still to be looked at.
			for len(hits) > 0 {
				d.inspect(<-hits)
			}
		case <-ctx.Done():
			// A device that takes seconds for each answer is late, not deaf:
			// what is known of it by now will do.
			for d.pending > 0 {
				d.note(<-d.findings)
			}
			if d.best.service != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return d.best.service, nil
			}
			return nil, u.fail(op, netip.Addr{}, ctxError(ctx))
		}
	}
	if d.best.service != nil {
		return d.best.service, nil
	}
	return nil, d.failure(op)
}

// A discovery is one search, and what it has come to.
type discovery struct {
	u   *upnp
	ctx context.Context
	wg  sync.WaitGroup

	seen      map[string]bool // places whose description is read, or has been
	pending   int             // that are being read
	findings  chan finding    // what they come to
	patient   bool            // only the gateway is heard yet
	strangers []hit           // not heard yet
	best      finding
	grace     <-chan time.Time // for a better one; nil without one
	errs      []error
}

// A finding is the best service of a description, or why there is none.
type finding struct {
	service *service
	score   int
	err     error
}

// inspect has the description at h read, once.
func (d *discovery) inspect(h hit) {
	switch key := h.url.String(); {
	case d.seen[key]:
		return
	case h.stranger && d.patient:
		d.strangers = append(d.strangers, h)
		return
	default:
		d.seen[key] = true
	}
	d.pending++
	d.wg.Go(func() {
		s, score, err := d.u.inspect(d.ctx, h)
		d.findings <- finding{s, score, err}
	})
}

// hearStrangers has what others than the gateway said looked at, unless it has been
// found already.
func (d *discovery) hearStrangers() {
	d.patient = false
	waiting := d.strangers
	d.strangers = nil
	if d.best.service != nil {
		return
	}
	for _, h := range waiting {
		d.inspect(h)
	}
}

// note takes the outcome of one inspection.
func (d *discovery) note(f finding) {
	d.pending--
	if f.err != nil {
		d.errs = append(d.errs, f.err)
		return
	}
	if d.best.service == nil || better(f.service, f.score, d.best.service, d.best.score) {
		d.best = f
	}
	if d.grace == nil {
		d.grace = time.After(d.u.grace)
	}
}

// enough reports whether no better service can be found.
func (d *discovery) enough() bool { return d.best.service != nil && d.best.score == scoreBest }

// failure is why there is no service.
func (d *discovery) failure(op string) error {
	if len(d.errs) == 0 {
		return d.u.fail(op, netip.Addr{}, &Error{Kind: NoGateway, Err: errors.New("the gateway did not answer the search")})
	}
	for i, err := range d.errs {
		d.errs[i] = d.u.fail(op, netip.Addr{}, err)
	}
	return telling(d.u.Name(), op, d.errs)
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
func (u *upnp) inspect(ctx context.Context, h hit) (*service, int, error) {
	services, err := u.describe(ctx, h)
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
