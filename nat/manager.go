package nat

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A ManagerConfig says what a Manager is to keep open. Only Mapper and
// Internal are needed.
type ManagerConfig struct {
	// Mapper is asked for the mapping; nil is None().
	Mapper Mapper

	// Internal is the address the listener is bound to. An unspecified
	// address stands for whichever of ours faces the gateway.
	Internal netip.AddrPort

	// External is the external port wished for, 0 for the same as the
	// internal one. Once granted, a port is asked for again and again.
	External uint16

	// Description names the mapping in the gateway's own pages.
	Description string

	// Lifetime is how long a mapping shall live unrenewed, 0 for the
	// protocol's default.
	Lifetime time.Duration

	// OnChange is told of every change a user of the mapping can see: it is
	// settled, made, lost, somewhere else, or explained differently; a mere
	// renewal is none. It is called on the manager's goroutine, one call at a
	// time, with no lock held; while it runs, nothing is renewed. It must not
	// call Close, nor wait for somebody who does. nil = nobody is told.
	OnChange func(Status)

	// OnEvent is told of everything that happens, renewals too, one call at a
	// time, on a goroutine that the keeper does not wait for: of more than 64
	// events that wait, the oldest are dropped. It must not call Close. nil =
	// nobody is told.
	OnEvent func(Event)

	// Logger gets what happens; nil is silent.
	Logger *slog.Logger
}

// A Status is a snapshot of what a Manager has reached.
type Status struct {
	Settled   bool      // the first asking is over, well or badly
	Leases    []Lease   // what is mapped now
	Diagnosis Diagnosis // what that means; zero until Settled
	Err       error     // the last failure; nil when the last asking went well
}

// same reports whether a user sees no difference between s and t.
func (s Status) same(t Status) bool {
	return s.Settled == t.Settled && s.Diagnosis == t.Diagnosis && errText(s.Err) == errText(t.Err) &&
		slices.EqualFunc(s.Leases, t.Leases, func(a, b Lease) bool {
			return a.Internal == b.Internal && a.External == b.External && a.Via == b.Via && a.Gateway == b.Gateway
		})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// The keeper's clock.
const (
	// One asking, rediscovery included, is over after this.
	askTimeout = 30 * time.Second

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

	// How often, while a mapping is held, the gateway is looked after; and
	// again sooner when it did not answer.
	heartbeat      = time.Minute
	firstLookAgain = 5 * time.Second
	checkTimeout   = 10 * time.Second

	// When the gateway announces something, it is looked after at a random
	// moment within this: others heard it too, but a house has few of them (RFC
	// 6887 §14.1.3 would have us wait up to 5 s). Announcements can be forged, so
	// they lead to no more than one look in every minLookGap.
	announceWait = time.Second
	minLookGap   = 5 * time.Second

	// How often it is looked whether this machine has another address, or has
	// slept: the clock that timers run by stands still meanwhile, on most
	// systems, while that of the day and the gateway's go on. Setting the clock
	// by so much looks the same, and costs a renewal.
	watchEvery = 5 * time.Second
	sleptFor   = 15 * time.Second

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

// A Manager keeps one mapping: it asks for it, renews it in time, asks again
// when it was lost, and gives it back at Close. While it holds one in PCP,
// NAT-PMP or UPnP, it asks the gateway once a minute whether that is still so,
// and sooner when the gateway announces that it was restarted; and it asks for
// the mapping anew when this machine gets another address or wakes from sleep.
// All methods are safe for concurrent use.
type Manager struct {
	c      ManagerConfig // not changed after NewManager
	log    *slog.Logger
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the goroutine is gone
	listen listenFunc
	wall   func() time.Time // the time of day, without the monotonic clock
	err    error            // of giving the mapping back; written before done is closed
	events eventQueue

	mu     sync.Mutex
	status Status
	closed time.Time // when Close was called first, zero if it was not
}

// A checker is a Mapper that can look, changing nothing on the gateway,
// whether a mapping is still there.
type checker interface {
	// check returns l as it is now: with another outside address, maybe. An
	// error that is errStateLost means that the gateway does not have it; one
	// of kind NoGateway, that it is not where it was.
	check(ctx context.Context, l Lease) (Lease, error)
}

// errClosing is the cause of the end of the keeper's context.
var errClosing = errors.New("nat: manager closed")

// NewManager starts to ask for the mapping on a goroutine of its own and
// returns at once.
func NewManager(c ManagerConfig) *Manager {
	return newManager(c, listenAnnounced, func() time.Time { return time.Now().Round(0) })
}

func newManager(c ManagerConfig, listen listenFunc, wall func() time.Time) *Manager {
	if c.Mapper == nil {
		c.Mapper = None()
	}
	m := &Manager{c: c, log: c.Logger, done: make(chan struct{}), listen: listen, wall: wall}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.events.to = c.OnEvent
	var ctx context.Context
	ctx, m.cancel = context.WithCancelCause(context.Background())
	go m.keep(ctx)
	return m
}

// Status is how things stand now.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Leases = slices.Clone(s.Leases)
	return s
}

// Close stops keeping the mapping and gives it back to the gateway; after 2 s
// without success it leaves it. The error is that of giving it back; the mapping
// then ends with its lifetime. Close waits for an OnChange that is running,
// and none is called after it has returned; so it must not be called inside
// OnChange. Every call after the first waits likewise and returns the same.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed.IsZero() {
		m.closed = time.Now()
	}
	m.mu.Unlock()
	m.cancel(errClosing)
	<-m.done
	return m.err
}

// keeper is the state of the goroutine, nobody else's.
type keeper struct {
	lease    *Lease // held, nil if none
	port     uint16 // the external port granted last: asked for again, also after a loss
	failures int    // askings that failed in a row

	own netip.Addr // the address of ours that faces the gateway, when it was last asked; invalid if not known

	lost   bool          // the gateway has lost the lease, and no other is granted yet
	looked time.Time     // when the gateway was last asked anything, by a check or an asking
	deaf   int           // checks without an answer in a row
	alarm  time.Time     // when to look because something was announced, zero if nothing was
	heard  chan struct{} // has room for one: something was announced
	ears   *ears         // who listens for that, nil before the first lease
}

// An ears is a goroutine that listens to one gateway.
type ears struct {
	gateway, local netip.Addr
	via            string
	stop           context.CancelFunc
	gone           chan struct{}
}

// keep is the manager's goroutine: it alone talks to the Mapper and to
// OnChange.
func (m *Manager) keep(ctx context.Context) {
	defer close(m.done)
	k := keeper{port: m.c.External, heard: make(chan struct{}, 1)}
	for ctx.Err() == nil {
		wait := m.ask(ctx, &k)
		if wait < 0 {
			<-ctx.Done()
			break
		}
		m.attend(ctx, &k, time.Now().Add(wait))
	}
	k.close()
	m.release(&k)
	m.events.close()
}

// attend waits until the next asking is due, at a time known now, or as soon
// as it turns out that the gateway does not have the mapping any more.
func (m *Manager) attend(ctx context.Context, k *keeper, due time.Time) {
	_, able := m.c.Mapper.(checker)
	wall, clock := m.wall(), time.Now()
	watch := clock.Add(watchEvery)
	for {
		next, look := due, false
		if able && k.lease != nil && k.lease.recheck > 0 && !k.lost {
			every := k.lease.recheck
			if k.deaf > 0 {
				every = min(every, firstLookAgain<<min(k.deaf-1, 8))
			}
			if at := k.looked.Add(every); at.Before(next) {
				next, look = at, true
			}
		}
		if !k.alarm.IsZero() && k.alarm.Before(next) {
			next, look = k.alarm, able && k.lease != nil && !k.lost
		}
		watching := watch.Before(next)
		if watching {
			next = watch
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-k.heard:
			t.Stop()
			if k.alarm.IsZero() {
				k.alarm = time.Now().Add(time.Duration(rand.Float64() * float64(announceWait)))
				if first := k.looked.Add(minLookGap); k.alarm.Before(first) {
					k.alarm = first
				}
			}
			continue
		case <-ctx.Done():
			t.Stop()
			return
		}
		if watching {
			// A process that was stopped, or a machine whose clocks run on while
			// it sleeps, finds its timer long overdue instead.
			late := time.Since(next)
			watch = time.Now().Add(watchEvery)
			if m.moved(k) || late > sleptFor || m.wall().Sub(wall)-time.Since(clock) > sleptFor {
				m.log.Info("network changed, or machine slept: asking for the port again")
				k.failures = 0
				return
			}
			continue
		}
		k.alarm = time.Time{}
		if !look || m.look(ctx, k) {
			return
		}
	}
}

// moved reports whether another address of ours faces the gateway than when it
// was asked.
func (m *Manager) moved(k *keeper) bool {
	own, ok := m.c.Mapper.(ownAddresser)
	return ok && own.ownAddr(m.c.Internal.Addr()) != k.own
}

// look checks the lease once and reports whether to ask for the mapping now.
func (m *Manager) look(ctx context.Context, k *keeper) (ask bool) {
	k.looked = time.Now()
	call, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	l, err := m.c.Mapper.(checker).check(call, *k.lease)
	if ctx.Err() != nil {
		return true
	}
	if errors.Is(err, errStateLost) {
		m.log.Info("gateway has lost the port mapping", "external", k.lease.External, "via", k.lease.Via)
		k.lost, k.deaf = true, 0
		return true
	}
	switch kindOf(err) {
	case Timeout, Unsupported, Malformed:
		// It is busy, or being restarted. What it has will be seen when it
		// answers; the mapping may well live on.
		m.log.Debug("gateway does not answer", "err", err)
		k.deaf++
		return false
	}
	k.deaf = 0
	if err != nil {
		m.log.Info("port mapping in doubt", "err", err)
		return true
	}
	if l.External != k.lease.External {
		s := m.Status()
		s.Leases, s.Diagnosis = []Lease{l}, diagnoseLease(l)
		m.publish(ctx, s)
	}
	k.lease = &l
	return false
}

// attune listens to the gateway that made the lease, and to no other.
func (m *Manager) attune(ctx context.Context, k *keeper) {
	l := k.lease
	if e := k.ears; e != nil && e.gateway == l.Gateway && e.local == l.Internal.Addr() && e.via == l.Via {
		return
	}
	k.close()
	if _, able := m.c.Mapper.(checker); !able || !l.Gateway.IsValid() {
		return
	}
	listening, stop := context.WithCancel(ctx)
	e := &ears{gateway: l.Gateway, local: l.Internal.Addr(), via: l.Via, stop: stop, gone: make(chan struct{})}
	k.ears = e
	go func() {
		defer close(e.gone)
		err := m.listen(listening, e.via, link{gateway: e.gateway, local: e.local}, func() {
			select {
			case k.heard <- struct{}{}:
			default:
			}
		})
		if err != nil && listening.Err() == nil {
			m.log.Debug("cannot hear announcements of the gateway", "err", err) // it is looked after all the same
		}
	}()
}

// close ends the listening.
func (k *keeper) close() {
	if k.ears != nil {
		k.ears.stop()
		<-k.ears.gone
		k.ears = nil
	}
}

// ask makes or renews the mapping once and returns how long to wait before
// the next time, negative for ever.
func (m *Manager) ask(ctx context.Context, k *keeper) time.Duration {
	if k.lease != nil && time.Since(k.lease.Obtained) >= validity(*k.lease) {
		k.lease = nil
		s := m.Status()
		m.publish(ctx, Status{Settled: true, Diagnosis: diagnose(s.Err), Err: s.Err})
	}

	// A public address of our own needs no mapping, and there is nobody in
	// front of it who could make one.
	if own, ok := m.c.Mapper.(ownAddresser); ok {
		a := own.ownAddr(m.c.Internal.Addr())
		if k.own = a; isGlobal(a) {
			m.drop(ctx, k)
			m.publish(ctx, Status{Settled: true, Diagnosis: diagnosePublic(a)})
			return jitter(backoff[len(backoff)-1])
		}
	}

	k.looked = time.Now()
	call, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l, err := m.c.Mapper.Map(call, Request{
		Internal:    m.c.Internal,
		External:    k.port,
		Lifetime:    m.c.Lifetime,
		Description: m.c.Description,
		Previous:    k.lease,
	})
	if err == nil {
		return m.granted(ctx, k, l)
	}
	if ctx.Err() != nil {
		return 0
	}
	if errors.Is(err, errOff) {
		m.publish(ctx, Status{Settled: true, Diagnosis: diagnose(err)})
		return -1
	}
	return m.failed(ctx, k, err)
}

// granted takes a new lease over and returns when to renew it.
func (m *Manager) granted(ctx context.Context, k *keeper, l Lease) time.Duration {
	if l.Obtained.IsZero() {
		l.Obtained = time.Now()
	}
	l.Lifetime = min(max(l.Lifetime, 0), maxLifetime)
	k.lease, k.port, k.failures = &l, l.External.Port(), 0
	k.lost, k.deaf = false, 0
	m.attune(ctx, k)
	m.publish(ctx, Status{Settled: true, Leases: []Lease{l}, Diagnosis: diagnoseLease(l)})
	return max(time.Until(l.Obtained.Add(firstRenewal(l, rand.Float64()))), minRenewGap)
}

// failed notes a failed asking and returns when to try again. A lease that
// has not expired is kept: the gateway may have been restarted with it, and
// giving the address up early helps nobody.
func (m *Manager) failed(ctx context.Context, k *keeper, err error) time.Duration {
	k.failures++
	wait := jitter(backoff[min(k.failures, len(backoff))-1])
	if e, ok := errors.AsType[*Error](err); ok && e.RetryAfter > wait {
		wait = min(e.RetryAfter, 30*time.Minute)
	}
	m.log.Warn("port mapping failed", "err", err, "failures", k.failures, "retry", wait)

	s := Status{Settled: true, Diagnosis: diagnose(err), Err: err}
	if k.lease != nil && !k.lost {
		age, life := time.Since(k.lease.Obtained), validity(*k.lease)
		if age < life {
			s.Leases, s.Diagnosis = []Lease{*k.lease}, diagnoseLease(*k.lease)
			wait = min(wait, nextRenewal(age, life))
		}
	}
	m.publish(ctx, s)
	return wait
}

// publish makes s the status and tells OnChange if a user can see a change.
func (m *Manager) publish(ctx context.Context, s Status) {
	m.mu.Lock()
	same := m.status.same(s)
	events := eventsBetween(m.status, s)
	m.status = s
	m.mu.Unlock()
	for _, e := range events {
		logEvent(m.log, e)
	}
	if m.c.OnEvent != nil && ctx.Err() == nil {
		m.events.add(events)
	}
	if same || m.c.OnChange == nil || ctx.Err() != nil {
		return
	}
	s.Leases = slices.Clone(s.Leases)
	m.c.OnChange(s)
}

// drop gives a lease back that is needed no more while the keeper goes on.
func (m *Manager) drop(ctx context.Context, k *keeper) {
	if k.lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := m.c.Mapper.Unmap(ctx, *k.lease); err != nil {
		m.log.Debug("port mapping not given back", "err", err)
	}
	k.lease = nil
}

// release gives the lease back at the end. The keeper's context is over by
// then, so this has its own.
func (m *Manager) release(k *keeper) {
	m.mu.Lock()
	m.status.Leases = nil
	left := max(closeTimeout-time.Since(m.closed), closeAtLeast)
	m.mu.Unlock()
	if k.lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), left)
	defer cancel()
	if m.err = m.c.Mapper.Unmap(ctx, *k.lease); m.err != nil {
		m.log.Warn("port mapping not given back", "external", k.lease.External, "via", k.lease.Via, "err", m.err)
		return
	}
	m.log.Info("port mapping given back", "external", k.lease.External, "via", k.lease.Via)
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
