package nat

import (
	"log/slog"
	"net/netip"
	"sync"
)

// An Event is one thing that happened to a mapping: [Mapped], [Renewed],
// [ExternalChanged], [GatewayChanged], [Degraded], [Lost] or [Diagnosed].
// Where several happen at once they come in this order.
type Event interface{ event() }

// Mapped: a port is forwarded that was not before, or one was lost and is
// forwarded again.
type Mapped struct{ Lease Lease }

// Renewed: the gateway was asked again in time, and forwards as before.
type Renewed struct{ Lease Lease }

// ExternalChanged: peers must connect elsewhere from now on.
type ExternalChanged struct {
	Old, New netip.AddrPort
	Lease    Lease // as it is now
}

// GatewayChanged: another gateway forwards now, or the same one in another
// protocol.
type GatewayChanged struct {
	Old, New netip.Addr
	Lease    Lease // as it is now
}

// Degraded: the gateway was asked again and failed. The mapping is believed
// until its lifetime ends.
type Degraded struct {
	Lease Lease
	Err   error
}

// Lost: the gateway does not forward any more.
type Lost struct {
	Lease Lease // as it was
	Err   error // why, nil if it is not needed any more
}

// Diagnosed: what a person should be told has changed.
type Diagnosed struct{ Diagnosis Diagnosis }

func (Mapped) event()          {}
func (Renewed) event()         {}
func (ExternalChanged) event() {}
func (GatewayChanged) event()  {}
func (Degraded) event()        {}
func (Lost) event()            {}
func (Diagnosed) event()       {}

// eventsBetween says what has happened when status old is followed by now. A
// lease is compared with the one of the same family before.
func eventsBetween(old, now Status) []Event {
	var all, degraded, lost []Event
	before := func(l Lease) *Lease {
		for i := range old.Leases {
			if b := &old.Leases[i]; sameFamily(*b, l) {
				return b
			}
		}
		return nil
	}
	for _, l := range now.Leases {
		b := before(l)
		if b == nil {
			all = append(all, Mapped{l})
			continue
		}
		if !l.Obtained.Equal(b.Obtained) && l.External == b.External {
			all = append(all, Renewed{l})
		}
		if l.External != b.External {
			all = append(all, ExternalChanged{b.External, l.External, l})
		}
		if l.Gateway != b.Gateway || l.Via != b.Via {
			all = append(all, GatewayChanged{b.Gateway, l.Gateway, l})
		}
		if now.Err != nil && l.Obtained.Equal(b.Obtained) && errText(now.Err) != errText(old.Err) {
			degraded = append(degraded, Degraded{l, now.Err})
		}
	}
	for _, b := range old.Leases {
		gone := true
		for _, l := range now.Leases {
			gone = gone && !sameFamily(b, l)
		}
		if gone {
			lost = append(lost, Lost{b, now.Err})
		}
	}
	all = append(append(all, degraded...), lost...)
	if d, o := now.Diagnosis, old.Diagnosis; d.Code != "" && (d.Code != o.Code || d.Summary != o.Summary) {
		all = append(all, Diagnosed{now.Diagnosis})
	}
	return all
}

// sameFamily reports whether b can have become l: of IPv6 each address of ours
// has a mapping of its own.
func sameFamily(b, l Lease) bool {
	bi, li := b.Internal.Addr().Unmap(), l.Internal.Addr().Unmap()
	return bi.Is6() == li.Is6() && (!li.Is6() || bi == li)
}

// logEvent writes what a person who reads the log wants to know.
func logEvent(log *slog.Logger, e Event) {
	lease := func(l Lease) []any {
		return []any{"external", l.External, "internal", l.Internal, "via", l.Via, "gateway", l.Gateway}
	}
	switch e := e.(type) {
	case Mapped:
		log.Info("port mapped", append(lease(e.Lease), "lifetime", e.Lease.Lifetime)...)
	case Renewed:
		log.Debug("port mapping renewed", append(lease(e.Lease), "lifetime", e.Lease.Lifetime)...)
	case ExternalChanged:
		log.Info("outside address changed", "from", e.Old, "to", e.New, "via", e.Lease.Via)
	case GatewayChanged:
		log.Info("gateway changed", "from", e.Old, "to", e.New, "via", e.Lease.Via)
	case Degraded:
		log.Warn("port mapping not renewed", append(lease(e.Lease), "err", e.Err)...)
	case Lost:
		log.Warn("port mapping lost", append(lease(e.Lease), "err", e.Err)...)
	case Diagnosed:
		log.Info("reachability", "code", e.Diagnosis.Code, "summary", e.Diagnosis.Summary)
	}
}

// maxEvents is how many events wait for a slow OnEvent. Of more, the oldest are
// dropped.
const maxEvents = 64

// An eventQueue hands events over on a goroutine that exists only while there
// are any, so that the keeper never waits for who receives them.
type eventQueue struct {
	to func(Event) // never nil in a queue that is used

	mu      sync.Mutex
	waiting []Event
	running chan struct{} // closed when the goroutine is gone, nil if there is none
	closed  bool
}

func (q *eventQueue) add(events []Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(events) == 0 {
		return
	}
	q.waiting = append(q.waiting, events...)
	if n := len(q.waiting) - maxEvents; n > 0 {
		q.waiting = append(q.waiting[:0], q.waiting[n:]...)
	}
	if q.running == nil {
		q.running = make(chan struct{})
		go q.deliver(q.running)
	}
}

func (q *eventQueue) deliver(done chan struct{}) {
	defer close(done)
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.waiting, q.running = nil, nil
			q.mu.Unlock()
			return
		}
		e := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		q.to(e)
	}
}

// close drops what waits, and waits for a call that is running.
func (q *eventQueue) close() {
	q.mu.Lock()
	q.closed, q.waiting = true, nil
	running := q.running
	q.mu.Unlock()
	if running != nil {
		<-running
	}
}
