package nat

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"
)

// The keeper's clock.
const (
	// One asking, rediscovery included, is over after this.
	askTimeout = 30 * time.Second

	// And after this, if our own address is a public one.
	publicTimeout = 2500 * time.Millisecond

	// A renewal comes at a random point between 1/2 and 5/8 of the granted
	// time, then at 3/4 and 7/8, never less than 4 s apart (RFC 6887 §11.2.1
	// has the same points; RFC 6886 §3.3 begins at half).
	minRenewGap = 4 * time.Second

	// A mapping that was granted for ever is asserted again this often, and
	// believed for this long after the last answer.
	permanentReassert = 20 * time.Minute
	permanentValidity = time.Hour

	// No lease is believed to live longer than this.
	maxLifetime = 24 * time.Hour

	// A gateway that asks for more patience is asked again after this.
	maxRetryAfter = 30 * time.Minute

	// How often, while a mapping is held, the gateway is looked after; and
	// again sooner when it did not answer.
	heartbeat       = time.Minute
	firstCheckAgain = 5 * time.Second
	checkTimeout    = 10 * time.Second

	// The pause between checks without an answer doubles this often at most; that
	// is longer than any recheck.
	maxCheckDoublings = 8

	// When the gateway announces something, it is looked after at a random
	// moment within this: others heard it too, but a house has few of them (RFC
	// 6887 §14.1.3 would have us wait up to 5 s). Announcements can be forged, so
	// they lead to no more than one look in every minCheckGap.
	announceWait = time.Second
	minCheckGap  = 5 * time.Second

	// How often it is looked whether this machine has another address, or has
	// slept: the clock that timers run by stands still meanwhile, on most
	// systems, while that of the day and the gateway's go on. Setting the clock
	// by so much looks the same, and costs a renewal.
	watchEvery = 5 * time.Second

	// The system says several things about one change, and the new address comes a
	// moment after the old one has gone.
	stirWait = 500 * time.Millisecond
	sleptFor = 15 * time.Second

	// How often a gateway is asked again that has no address on the outside:
	// lines come back, not every gateway says so, and it is one datagram.
	lineBack = 50 * time.Second

	// Close gives the mapping back within this, or leaves it to expire. What
	// an asking that is under way still takes is part of it, but this much is
	// left for the giving back.
	closeTimeout = 2 * time.Second
	closeAtLeast = 500 * time.Millisecond
)

// backoff is the pause after the first, second, ... failed asking in a row;
// the last one repeats. ±20 % of chance is added, so that the programs of a
// house do not all come back at once after a power cut.
var backoff = [...]time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute}

// A checker is a Mapper that can look, changing nothing on the gateway,
// whether a mapping is still there.
type checker interface {
	// check returns l as it is now: with another outside address, maybe. An
	// error that is errStateLost means that the gateway does not have it; one
	// of kind NoGateway, that it is not where it was.
	check(ctx context.Context, l Lease) (Lease, error)
}

// A keeper keeps one mapping: that for IPv4, or that of one IPv6 address. What
// is not said otherwise is its goroutine's, nobody else's.
type keeper struct {
	m        *Manager       // not changed, as all up to done
	internal netip.AddrPort // of the requests
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when the goroutine is gone
	err      error         // of giving the mapping back; written before done is closed
	status   Status        // below Manager.mu
	stopped  bool          // the manager's goroutine's: no more needed

	lease    *Lease // held, nil if none
	port     uint16 // the external port granted last: asked for again, also after a loss
	failures int    // askings that failed in a row

	// When the gateway was last asked: for IPv4 the address of ours that faces
	// it, for IPv6 its own; invalid if not known.
	facing netip.Addr

	lost       bool          // the gateway has lost the lease, and no other is granted yet
	asked      time.Time     // when the gateway was last asked anything, by a check or an asking
	unanswered int           // checks without an answer in a row
	alarm      time.Time     // when to look because something was announced, zero if nothing was
	heard      chan struct{} // has room for one: something was announced
	stirred    chan struct{} // has room for one: the network of this machine may have changed
	watchAt    time.Time     // when our own addresses and clocks are compared next
	hearing    *hearing      // who listens for that, nil before the first lease
	confirm    time.Time     // when a new lease is checked for the first time, zero if it has been or need not be
}

// A hearing is a goroutine that listens to the announcements of one gateway.
type hearing struct {
	gateway, local netip.Addr
	via            string
	stop           context.CancelFunc
	gone           chan struct{}
}

// six reports whether it is about an IPv6 address.
func (k *keeper) six() bool { return k.internal.Addr().Is6() && !k.internal.Addr().IsUnspecified() }

// keep is the keeper's goroutine: it alone talks to the Mapper about its address.
func (k *keeper) keep(ctx context.Context) {
	defer close(k.done)
	for ctx.Err() == nil {
		wait := k.ask(ctx)
		if wait < 0 {
			<-ctx.Done()
			break
		}
		k.attend(ctx, time.Now().Add(wait))
	}
	k.stopListening()
	k.release()
}

// explain says why there is no mapping.
func (k *keeper) explain(err error) Diagnosis {
	if k.six() {
		return k.place().diagnose6(err)
	}
	return k.place().diagnose(err)
}

// explainLease says what a mapping comes to. One whose answers leave by another way
// than the gateway's leads nowhere: the system knows, without a packet.
func (k *keeper) explainLease(l Lease) Diagnosis {
	d := k.place().diagnoseLease(l)
	if d.Code == CodeMapped {
		if out := k.otherWay(l); out.IsValid() {
			return diagnoseOtherWay(l, out)
		}
	}
	return d
}

// otherWay is the address of ours that answers to peers of the mapping leave from, if
// that is by another way, else invalid.
func (k *keeper) otherWay(l Lease) netip.Addr {
	r, ok := k.m.c.Mapper.(sourcer)
	if !ok || k.six() || l.Via == "static" {
		return netip.Addr{}
	}
	return r.otherWay(l.Internal.Addr(), l.External.Addr())
}

// last is what the keeper has published last.
func (k *keeper) last() Status {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	return k.status
}

// A step is what a keeper does next while it holds, or waits for, a mapping.
type step int

const (
	stepWatch step = iota + 1 // compare our own addresses and clocks; then the next step
	stepCheck                 // ask the gateway whether it has the mapping; then the next step, or ask
	stepAsk                   // make or renew the mapping
)

// An agenda is what is due when. A zero time is never, except for ask.
type agenda struct {
	ask      time.Time // the renewal, or the next attempt
	check    time.Time // the check of the lease
	announce time.Time // the look at a gateway that has announced something
	watch    time.Time // the look at our own addresses
	checks   bool      // an announcement leads to a check, else to asking
}

// next is the first thing that is due. Of several at the same time, asking goes
// before checking, and both before watching.
func (a agenda) next() (step, time.Time) {
	what, at := stepAsk, a.ask
	if !a.check.IsZero() && a.check.Before(at) {
		what, at = stepCheck, a.check
	}
	if !a.announce.IsZero() && a.announce.Before(at) {
		if what, at = stepAsk, a.announce; a.checks {
			what = stepCheck
		}
	}
	if !a.watch.IsZero() && a.watch.Before(at) {
		what, at = stepWatch, a.watch
	}
	return what, at
}

// checkAt is when the lease is checked after the last exchange with the gateway at
// asked, unanswered being the checks in a row that got no answer.
func checkAt(recheck time.Duration, asked time.Time, unanswered int) time.Time {
	if unanswered > 0 {
		recheck = min(recheck, firstCheckAgain<<min(unanswered-1, maxCheckDoublings))
	}
	return asked.Add(recheck)
}

// agenda is what is due when, with the next asking at ask.
func (k *keeper) agenda(ask time.Time) agenda {
	_, able := k.m.c.Mapper.(checker)
	a := agenda{ask: ask, watch: k.watchAt, announce: k.alarm, checks: able && k.lease != nil && !k.lost}
	if a.checks && k.lease.recheck > 0 {
		a.check = checkAt(k.lease.recheck, k.asked, k.unanswered)
	}
	if a.checks && !k.confirm.IsZero() {
		a.check = k.confirm
	}
	return a
}

// attend does what is due until the next asking is, at a time known now, or it turns
// out that the gateway does not have the mapping any more.
func (k *keeper) attend(ctx context.Context, ask time.Time) {
	wall, clock := k.m.wall(), time.Now()
	k.watchAt = clock.Add(watchEvery)
	for {
		what, at := k.agenda(ask).next()
		switch due := k.wait(ctx, at); {
		case ctx.Err() != nil:
			return
		case !due:
			continue
		}
		switch what {
		case stepWatch:
			// A process that was stopped, or a machine whose clocks run on while
			// it sleeps, finds its timer long overdue instead.
			late := time.Since(at)
			k.watchAt = time.Now().Add(watchEvery)
			if k.moved() || late > sleptFor || k.m.wall().Sub(wall)-time.Since(clock) > sleptFor {
				k.m.log.Info("network changed, or machine slept: asking for the port again")
				k.failures = 0
				return
			}
			k.reassess(ctx)
		case stepCheck:
			k.alarm, k.confirm = time.Time{}, time.Time{}
			if k.check(ctx) {
				return
			}
		case stepAsk:
			k.alarm = time.Time{}
			return
		}
	}
}

// wait reports whether it is at now. It returns sooner when ctx ends, or when the
// gateway has announced something, which changes the agenda.
func (k *keeper) wait(ctx context.Context, at time.Time) bool {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-k.heard:
		if k.alarm.IsZero() {
			k.alarm = time.Now().Add(time.Duration(rand.Float64() * float64(announceWait)))
			if first := k.asked.Add(minCheckGap); k.alarm.Before(first) {
				k.alarm = first
			}
		}
	case <-k.stirred:
		if soon := time.Now().Add(stirWait); soon.Before(k.watchAt) {
			k.watchAt = soon
		}
	case <-ctx.Done():
	}
	return false
}

// reassess looks whether what we send still leaves by the same way as when the lease
// was granted: a VPN may have been switched on, or off.
func (k *keeper) reassess(ctx context.Context) {
	if k.lease == nil || k.lost {
		return
	}
	s := k.last()
	if code := s.Diagnosis.Code; code != CodeMapped && code != CodeVPN || len(s.Leases) != 1 {
		return
	}
	if k.otherWay(*k.lease).IsValid() != (s.Diagnosis.Code == CodeVPN) {
		s.Diagnosis = k.explainLease(*k.lease)
		k.m.publish(ctx, k, s)
	}
}

// moved reports whether another address of ours faces the gateway than when it
// was asked, or another gateway faces us.
func (k *keeper) moved() bool {
	return k.faces() != k.facing
}

// faces is what facing is compared with.
func (k *keeper) faces() netip.Addr {
	if k.six() {
		if six, ok := k.m.c.Mapper.(addresser6); ok {
			return six.gateway6(k.internal.Addr())
		}
	} else if own, ok := k.m.c.Mapper.(ownAddresser); ok {
		return own.ownAddr(k.internal.Addr())
	}
	return netip.Addr{}
}

// check looks once whether the gateway has the lease, and reports whether to ask for the mapping now.
func (k *keeper) check(ctx context.Context) (ask bool) {
	k.asked = time.Now()
	call, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	l, err := k.m.c.Mapper.(checker).check(call, *k.lease)
	if ctx.Err() != nil {
		return true
	}
	if errors.Is(err, errStateLost) {
		k.m.log.Info("gateway has lost the port mapping", "external", k.lease.External, "via", k.lease.Via)
		k.lost, k.unanswered = true, 0
		return true
	}
	switch kindOf(err) {
	case Timeout, Unsupported, Malformed:
		// It is busy, or being restarted. What it has will be seen when it
		// answers; the mapping may well live on.
		k.m.log.Debug("gateway does not answer", "err", err)
		k.unanswered++
		return false
	}
	k.unanswered = 0
	if err != nil {
		k.m.log.Info("port mapping in doubt", "err", err)
		return true
	}
	if l.External != k.lease.External {
		s := k.last()
		s.Leases, s.Diagnosis = []Lease{l}, k.explainLease(l)
		k.m.publish(ctx, k, s)
	}
	k.lease = &l
	return false
}

// listen listens to the gateway that made the lease, and to no other.
func (k *keeper) listen(ctx context.Context) {
	l := k.lease
	if e := k.hearing; e != nil && e.gateway == l.Gateway && e.local == l.Internal.Addr() && e.via == l.Via {
		return
	}
	k.stopListening()
	if _, able := k.m.c.Mapper.(checker); !able || !l.Gateway.IsValid() {
		return
	}
	listening, stop := context.WithCancel(ctx)
	e := &hearing{gateway: l.Gateway, local: l.Internal.Addr(), via: l.Via, stop: stop, gone: make(chan struct{})}
	k.hearing = e
	go func() {
		defer close(e.gone)
		err := k.m.listen(listening, e.via, link{gateway: e.gateway, local: e.local}, k.m.heard)
		if err != nil && listening.Err() == nil {
			k.m.log.Debug("cannot hear announcements of the gateway", "err", err) // it is looked after all the same
		}
	}()
}

// stopListening ends the listening.
func (k *keeper) stopListening() {
	if k.hearing != nil {
		k.hearing.stop()
		<-k.hearing.gone
		k.hearing = nil
	}
}

// ask makes or renews the mapping once and returns how long to wait before
// the next time, negative for ever.
func (k *keeper) ask(ctx context.Context) time.Duration {
	if k.lease != nil && time.Since(k.lease.Obtained) >= validity(*k.lease) {
		k.lease = nil
		s := k.last()
		k.m.publish(ctx, k, Status{Settled: true, Diagnosis: k.explain(s.Err), Err: s.Err})
	}

	// A public IPv4 address of our own needs no mapping, and as a rule there is
	// nobody in front of it who could make one: silence says so, and is not waited
	// for long. But there are networks at home on addresses that are somebody
	// else's. An IPv6 address is public too, but behind a firewall.
	k.facing = k.faces()
	public, limit := !k.six() && isGlobal(k.facing), askTimeout
	if public {
		limit = publicTimeout
	}

	k.asked = time.Now()
	call, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l, err := k.m.c.Mapper.Map(call, Request{
		Internal:    k.internal,
		External:    k.port,
		Lifetime:    k.m.c.Lifetime,
		Description: k.m.c.Description,
		Previous:    k.lease,
	})
	if err == nil {
		return k.granted(ctx, l)
	}
	if ctx.Err() != nil {
		return 0
	}
	if public && transport(err) {
		k.drop(ctx)
		k.m.publish(ctx, k, Status{Settled: true, Diagnosis: diagnosePublic(k.facing, k.internal.Port())})
		return jitter(backoff[len(backoff)-1])
	}
	if errors.Is(err, errOff) {
		k.m.publish(ctx, k, Status{Settled: true, Diagnosis: k.explain(err)})
		return -1
	}
	return k.failed(ctx, err)
}

// granted takes a new lease over and returns when to renew it.
func (k *keeper) granted(ctx context.Context, l Lease) time.Duration {
	if l.Obtained.IsZero() {
		l.Obtained = time.Now()
	}
	l.Lifetime = min(max(l.Lifetime, 0), maxLifetime)
	k.lease, k.port, k.failures = &l, l.External.Port(), 0
	k.confirm = time.Time{}
	if l.confirm > 0 && !k.lost { // once: a gateway that loses it again and again is not asked in a circle
		k.confirm = time.Now().Add(l.confirm)
	}
	k.lost, k.unanswered = false, 0
	k.listen(ctx)
	d := k.explainLease(l)
	if !k.six() && l.External.Addr() == k.facing {
		d = diagnosePublic(l.External.Addr(), l.Internal.Port()) // nothing is translated: it is a firewall that was opened
	}
	k.m.publish(ctx, k, Status{Settled: true, Leases: []Lease{l}, Diagnosis: d})
	return max(time.Until(l.Obtained.Add(firstRenewal(l, rand.Float64()))), minRenewGap)
}

// failed notes a failed asking and returns when to try again. A lease that
// has not expired is kept: the gateway may have been restarted with it, and
// giving the address up early helps nobody.
func (k *keeper) failed(ctx context.Context, err error) time.Duration {
	k.failures++
	wait := jitter(backoff[min(k.failures, len(backoff))-1])
	if e, ok := errors.AsType[*Error](err); ok && e.RetryAfter > wait {
		wait = min(e.RetryAfter, maxRetryAfter)
	} else if ok && e.Kind == WANDown {
		wait = min(wait, jitter(lineBack))
	}
	k.m.log.Warn("port mapping failed", "internal", k.internal, "err", err, "failures", k.failures, "retry", wait)

	s := Status{Settled: true, Diagnosis: k.explain(err), Err: err}
	// Without a network nobody comes in, and the lease is tried again when there is one.
	if k.lease != nil && !k.lost && kindOf(err) != NoNetwork {
		age, life := time.Since(k.lease.Obtained), validity(*k.lease)
		if age < life {
			s.Leases, s.Diagnosis = []Lease{*k.lease}, k.explainLease(*k.lease)
			wait = min(wait, nextRenewal(age, life))
		}
	}
	k.m.publish(ctx, k, s)
	return wait
}

// drop gives a lease back that is needed no more while the keeper goes on.
func (k *keeper) drop(ctx context.Context) {
	if k.lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := k.m.c.Mapper.Unmap(ctx, *k.lease); err != nil {
		k.m.log.Debug("port mapping not given back", "err", err)
	}
	k.lease = nil
}

// release gives the lease back at the end. The keeper's context is over by
// then, so this has its own.
func (k *keeper) release() {
	left := closeTimeout
	k.m.mu.Lock()
	if !k.m.closed.IsZero() {
		left = max(left-time.Since(k.m.closed), closeAtLeast)
	}
	k.m.mu.Unlock()
	if k.lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), left)
	defer cancel()
	if k.err = k.m.c.Mapper.Unmap(ctx, *k.lease); k.err != nil {
		k.m.log.Warn("port mapping not given back", "external", k.lease.External, "via", k.lease.Via, "err", k.err)
		return
	}
	k.m.log.Info("port mapping given back", "external", k.lease.External, "via", k.lease.Via)
}

// validity is how long after it was obtained a lease is believed.
func validity(l Lease) time.Duration {
	if l.Lifetime == 0 {
		return permanentValidity
	}
	return l.Lifetime
}

// firstRenewal is when after it was obtained a lease is renewed, for a
// random r in [0, 1).
func firstRenewal(l Lease, r float64) time.Duration {
	life := validity(l)
	at := life/2 + time.Duration(r*float64(life/8))
	limit := l.reassert
	if l.Lifetime == 0 && limit == 0 {
		limit = permanentReassert
	}
	if limit > 0 {
		at = min(at, limit*7/8+time.Duration(r*float64(limit/8)))
	}
	return at
}

// nextRenewal is how long to wait, at that age, for the next of the points at
// which a failed renewal is tried again: 3/4 and 7/8 of its life, and its end.
func nextRenewal(age, life time.Duration) time.Duration {
	for _, at := range []time.Duration{life / 4 * 3, life / 8 * 7} {
		if at-age >= minRenewGap {
			return at - age
		}
	}
	return max(life-age, 0)
}

// jitter is d ±20 %.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + time.Duration(rand.Float64()*float64(d*2/5))
}
