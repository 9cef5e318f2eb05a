package nat

import (
	"context"
	"errors"
	"log/slog"
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

	// Internal is the address the listener is bound to. 0.0.0.0 stands for
	// whichever of our IPv4 addresses faces the gateway; :: for that and for our
	// global IPv6 addresses, each with a mapping of its own. Of those a Mapper
	// of the program's own is not asked, as nothing is known of it.
	Internal netip.AddrPort

	// External is the external port wished for, 0 for the same as the
	// internal one. Once granted, a port is asked for again and again.
	External uint16

	// Description names the mapping in the gateway's own pages.
	Description string

	// Lifetime is how long a mapping shall live unrenewed, 0 for the
	// protocol's default.
	Lifetime time.Duration

	// OnChange is told of every change a user of the mappings can see: they are
	// settled, made, lost, somewhere else, or explained differently; a mere
	// renewal is none. It is called on the manager's goroutine, one call at a
	// time, with no lock held; changes while it runs come as one. It must not
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
	// Settled says that the first asking is over, well or badly. Who has a
	// mapping for IPv4 does not wait for IPv6.
	Settled   bool
	Leases    []Lease   // what is mapped now, IPv4 before IPv6
	Diagnosis Diagnosis // what that means; zero until Settled
	Err       error     // the last failure, for IPv4 unless only IPv6 is asked for; nil when the last asking went well
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

// A Manager keeps a mapping for IPv4, and one for each global IPv6 address of
// ours: it asks for it, renews it in time, asks again when it was lost, and
// gives it back at Close. While it holds one in PCP, NAT-PMP or UPnP, it asks the
// gateway once a minute whether that is still so, and sooner when the gateway
// announces that it was restarted; and it asks for the mapping anew when this
// machine gets another address or wakes from sleep. No mapping waits for
// another. All methods are safe for concurrent use.
type Manager struct {
	c      ManagerConfig // not changed after NewManager
	log    *slog.Logger
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when all goroutines are gone
	listen listenFunc
	wall   func() time.Time // the time of day, without the monotonic clock
	err    error            // of giving mappings back; written before done is closed
	events eventQueue
	begun  time.Time
	change chan struct{} // has room for one: the status may be another

	stirred chan struct{} // has room for one: the network of this machine may have changed

	mu      sync.Mutex
	keepers []*keeper // that for IPv4 first
	status  Status    // of all of them
	closed  time.Time // when Close was called first, zero if it was not
}

// settleLimit is how long a manager that has no mapping yet, and has settled
// for IPv4, waits for IPv6 before it calls that settled.
const settleLimit = 4500 * time.Millisecond

// errClosing is the cause of the end of a keeper's context.
var errClosing = errors.New("nat: manager closed")

// NewManager starts to ask for the mappings on goroutines of its own and
// returns at once.
func NewManager(c ManagerConfig) *Manager {
	return newManager(c, listenAnnounced, func() time.Time { return time.Now().Round(0) })
}

func newManager(c ManagerConfig, listen listenFunc, wall func() time.Time) *Manager {
	if c.Mapper == nil {
		c.Mapper = None()
	}
	c.Internal = netip.AddrPortFrom(c.Internal.Addr().Unmap(), c.Internal.Port())
	m := &Manager{c: c, log: c.Logger, done: make(chan struct{}), listen: listen, wall: wall, begun: time.Now(), change: make(chan struct{}, 1), stirred: make(chan struct{}, 1)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.events.to = c.OnEvent
	var ctx context.Context
	ctx, m.cancel = context.WithCancelCause(context.Background())
	go m.run(ctx)
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

// Close stops keeping the mappings and gives them back to the gateway; after 2 s
// without success it leaves them. The error is that of giving them back; a mapping
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

// run is the manager's goroutine: it alone starts and stops keepers, and calls
// OnChange.
func (m *Manager) run(ctx context.Context) {
	defer close(m.done)
	var running []*keeper // not waited for yet
	first := m.c.Internal
	six, both := m.c.Mapper.(addresser6)
	if both = both && first.Addr() == netip.IPv6Unspecified(); first.Addr().IsUnspecified() {
		first = netip.AddrPortFrom(netip.IPv4Unspecified(), first.Port())
	}
	lead, keep := m.add(ctx, first)
	running = append(running, lead)
	var watch <-chan time.Time
	if both {
		t := time.NewTicker(watchEvery)
		defer t.Stop()
		watch = t.C
		running = m.revise(ctx, running, six.addrs6())
	}
	if w, ok := m.c.Mapper.(watcher); ok {
		watching := make(chan struct{})
		go func() {
			defer close(watching)
			if err := w.watch(ctx, m.stir); ctx.Err() == nil {
				m.log.Debug("changes of the network are looked for, not told", "err", err)
			}
		}()
		defer func() { <-watching }()
	}
	go keep() // it may settle at once, and must not before the others are there
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()

	var told Status
	var stir <-chan time.Time
	for ctx.Err() == nil {
		select {
		case <-m.change:
		case <-limit.C:
			m.merge()
		case <-m.stirred:
			if both && stir == nil {
				stir = time.After(stirWait)
			}
		case <-stir:
			stir = nil
			running = m.revise(ctx, running, six.addrs6())
		case <-watch:
			running = m.revise(ctx, running, six.addrs6())
		case <-ctx.Done():
			continue
		}
		now := m.Status()
		if same := now.same(told); !same && m.c.OnChange != nil && ctx.Err() == nil {
			m.c.OnChange(now)
		}
		told = now
	}

	m.mu.Lock()
	m.status.Leases = nil
	m.mu.Unlock()
	var errs []error
	for _, k := range running {
		<-k.done
		if k.err != nil {
			errs = append(errs, k.err)
		}
	}
	if m.err = errors.Join(errs...); len(errs) == 1 {
		m.err = errs[0]
	}
	m.events.close()
}

// add makes a keeper, of which nothing is known yet, and the function that it is
// to run.
func (m *Manager) add(ctx context.Context, internal netip.AddrPort) (k *keeper, keep func()) {
	k = &keeper{m: m, internal: internal, done: make(chan struct{}), port: m.c.External, heard: make(chan struct{}, 1), stirred: make(chan struct{}, 1)}
	ctx, k.cancel = context.WithCancelCause(ctx)
	m.mu.Lock()
	m.keepers = append(m.keepers, k)
	m.mu.Unlock()
	return k, func() { k.keep(ctx) }
}

// revise starts keepers for those of the IPv6 addresses that are new, stops
// those for addresses that are not among them any more, and returns all that
// may still run.
func (m *Manager) revise(ctx context.Context, running []*keeper, addrs []netip.Addr) []*keeper {
	var next []*keeper
	kept := make(map[netip.Addr]bool)
	for _, k := range running {
		select {
		case <-k.done:
			continue // stopped before
		default:
		}
		next = append(next, k)
		if !k.six() || k.stopped {
			continue
		}
		if a := k.internal.Addr(); slices.Contains(addrs, a) {
			kept[a] = true
		} else {
			m.log.Info("address is gone, or not to be used any more", "address", a)
			k.stopped = true
			m.forget(ctx, k)
			k.cancel(errClosing)
		}
	}
	for _, a := range addrs {
		if !kept[a] {
			k, keep := m.add(ctx, netip.AddrPortFrom(a, m.c.Internal.Port()))
			next = append(next, k)
			go keep()
		}
	}
	return next
}

// stir tells all keepers that the network of this machine may have changed.
func (m *Manager) stir() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.keepers {
		select {
		case k.stirred <- struct{}{}:
		default:
		}
	}
	select {
	case m.stirred <- struct{}{}:
	default:
	}
}

// heard tells all keepers that a gateway has announced something: in a house
// they have one and the same, and not all announce themselves over IPv6.
func (m *Manager) heard() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.keepers {
		select {
		case k.heard <- struct{}{}:
		default:
		}
	}
}

// forget takes a keeper out of the status.
func (m *Manager) forget(ctx context.Context, k *keeper) {
	m.publish(ctx, k, Status{Settled: true})
	m.mu.Lock()
	m.keepers = slices.DeleteFunc(m.keepers, func(x *keeper) bool { return x == k })
	m.mu.Unlock()
	m.merge()
}

// publish makes s the status of k.
func (m *Manager) publish(ctx context.Context, k *keeper, s Status) {
	m.mu.Lock()
	if !slices.Contains(m.keepers, k) {
		m.mu.Unlock()
		return
	}
	// What has happened is said of each mapping; what it means, of all.
	old := k.status
	k.status = s
	old.Diagnosis, s.Diagnosis = Diagnosis{}, Diagnosis{}
	events := append(eventsBetween(old, s), m.mergeLocked()...)
	if m.c.OnEvent != nil && ctx.Err() == nil {
		m.events.add(events)
	}
	m.mu.Unlock()
	for _, e := range events {
		logEvent(m.log, e)
	}
	m.changed()
}

// merge brings the status up to date.
func (m *Manager) merge() {
	m.mu.Lock()
	events := m.mergeLocked()
	if m.c.OnEvent != nil && m.closed.IsZero() {
		m.events.add(events)
	}
	m.mu.Unlock()
	for _, e := range events {
		logEvent(m.log, e)
	}
	m.changed()
}

func (m *Manager) changed() {
	select {
	case m.change <- struct{}{}:
	default:
	}
}

// mergeLocked makes one status of all and returns the event that it is
// explained differently. mu is held.
func (m *Manager) mergeLocked() []Event {
	all := make([]Status, len(m.keepers))
	for i, k := range m.keepers {
		all[i] = k.status
	}
	before := m.status
	m.status = mergeStatus(all, m.status.Settled, time.Since(m.begun) >= settleLimit)
	return eventsBetween(Status{Diagnosis: before.Diagnosis}, Status{Diagnosis: m.status.Diagnosis})
}

// mergeStatus makes one status of those of all keepers, the first of which
// leads. settled says that it was so before, late that there was time enough.
func mergeStatus(all []Status, settled, late bool) Status {
	var s Status
	pending := false
	for _, x := range all {
		s.Leases = append(s.Leases, x.Leases...)
		pending = pending || !x.Settled
	}
	if len(all) == 0 {
		return s
	}
	first := all[0]
	s.Settled = settled || !pending || first.Settled && (late || len(first.Leases) > 0 || first.Diagnosis.Code == CodePublic)
	if s.Settled {
		s.Diagnosis, s.Err = first.Diagnosis, first.Err
		s.Diagnosis = besideIPv6(s.Diagnosis, s.Leases)
		if s.Diagnosis.Code == CodeNoNetwork && len(all) > 1 && all[1].Diagnosis.Code != "" {
			s.Diagnosis, s.Err = all[1].Diagnosis, all[1].Err // there is a network, of IPv6 alone
		}
	}
	return s
}
