package peerws

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// The queue before the opening handshake. What comes beyond MaxHandshakes waits
// here without a goroutine, so that whoever says nothing holds nobody up: who has
// sent something goes first, then who comes from the address with the fewest
// handshakes going on, then who has waited longest. While anybody waits, those
// that have a place and have sent nothing lose it after a moment.

const (
	// silenceGrace is how long an arrival may take to send its request while others
	// wait for its place, and crowdGrace if its address has several places more than
	// that of one who waits.
	silenceGrace = 500 * time.Millisecond
	crowdGrace   = 100 * time.Millisecond

	// queueLook is how long one who waits may go unseen at most.
	queueLook = silenceGrace / 4

	// queueShare is how many wait for each place among MaxHandshakes. Beyond that
	// the one that would be served last is turned away.
	queueShare = 16
)

// queue is who waits for a place. Guarded by the listener's lock.
type queue struct {
	waiting []*arrival // in the order of their coming
	timer   *time.Timer
	due     time.Time     // when the timer fires; zero: it is not set
	silent  map[ipKey]int // handshakes of an address that were cut for their silence while somebody waited
	busy    map[ipKey]int // scratch: places of an address, and silent
}

// queueLocked has an arrival wait for a place. It may be another one that is
// turned away for it, which is returned. l.mu is held.
func (l *WebSocketListener) queueLocked(a *arrival) (away *arrival) {
	q := &l.queue
	q.waiting = append(q.waiting, a)
	if len(q.waiting) > queueShare*l.maxHandshakes {
		l.countBusyLocked()
		i := 0
		for j, w := range q.waiting {
			if q.compare(w, q.waiting[i]) >= 0 {
				i = j
			}
		}
		away = q.waiting[i]
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	l.lookAtQueueLocked(time.Now().Add(time.Millisecond))
	return away
}

// compare orders who waits by who is served first.
func (q *queue) compare(a, b *arrival) int {
	if a.sent != b.sent {
		if a.sent {
			return -1
		}
		return 1
	}
	return cmp.Compare(q.busy[a.from], q.busy[b.from])
}

// countBusyLocked counts the places that addresses have. l.mu is held.
func (l *WebSocketListener) countBusyLocked() {
	q := &l.queue
	if q.busy == nil {
		q.busy, q.silent = make(map[ipKey]int), make(map[ipKey]int)
	}
	clear(q.busy)
	maps.Copy(q.busy, q.silent)
	for _, a := range l.pending {
		if a.from != 0 {
			q.busy[a.from]++
		}
	}
}

// nextLocked gives free places to those that wait. l.mu is held.
func (l *WebSocketListener) nextLocked() {
	q := &l.queue
	if len(q.waiting) == 0 {
		return
	}
	if len(l.pending) < l.maxHandshakes {
		l.countBusyLocked()
	}
	for len(q.waiting) > 0 && len(l.pending) < l.maxHandshakes {
		i := 0
		for j, w := range q.waiting {
			if q.compare(w, q.waiting[i]) < 0 {
				i = j
			}
		}
		a := q.waiting[i]
		q.waiting = slices.Delete(q.waiting, i, i+1)
		if a.from != 0 {
			q.busy[a.from]++
		}
		a.since = time.Now()
		l.beginLocked(a)
	}
	if len(q.waiting) == 0 {
		clear(q.silent)
	}
}

// lookAtQueueLocked has lookAtQueue run at a time, if not before. l.mu is held.
func (l *WebSocketListener) lookAtQueueLocked(at time.Time) {
	q := &l.queue
	if !q.due.IsZero() && !at.Before(q.due) {
		return
	}
	q.due = at
	if q.timer == nil {
		q.timer = time.AfterFunc(time.Until(at), l.lookAtQueue)
	} else {
		q.timer.Reset(time.Until(at))
	}
}

// lookAtQueue sees who of those that wait has sent something, turns away who has not
// for too long, and makes way for the others.
func (l *WebSocketListener) lookAtQueue() {
	var away []*arrival
	l.mu.Lock()
	q := &l.queue
	q.due = time.Time{}
	now := time.Now()
	q.waiting = slices.DeleteFunc(q.waiting, func(a *arrival) bool {
		a.sent = a.sent || a.unread()
		if a.sent || !a.visible() || now.Sub(a.since) < silenceGrace {
			return false
		}
		q.silent[a.from]++
		away = append(away, a)
		return true
	})
	if len(q.waiting) > 0 {
		l.lookAtQueueLocked(l.makeWayLocked(now))
	}
	l.mu.Unlock()
	for _, a := range away {
		l.forgetArrival(a, errSilent)
	}
}

// makeWayLocked cuts as many handshakes as others wait, of those that may be: who
// was refused and is still there; who has sent no request yet and has had its
// grace, those of the busiest address and then the oldest first. It returns when to
// look again. l.mu is held.
func (l *WebSocketListener) makeWayLocked(now time.Time) (next time.Time) {
	q := &l.queue
	next = now.Add(queueLook)
	l.countBusyLocked()
	least := l.maxHandshakes // places of the address, among those that wait, that has the fewest
	for _, w := range q.waiting {
		if w.from != 0 {
			least = min(least, q.busy[w.from])
		}
	}
	need := len(q.waiting)
	var silent []*arrival
	for _, a := range l.pending {
		switch {
		case !a.cutAt.IsZero() && now.Sub(a.cutAt) < queueLook: // it is about to leave
			need--
		case !a.cutAt.IsZero():
		case a.stage == arrivalRefused:
			a.cutLocked(RefusedMaxHandshakes)
			need--
		case a.stage < arrivalAsked:
			silent = append(silent, a)
		}
	}
	slices.SortFunc(silent, func(a, b *arrival) int {
		return cmp.Or(cmp.Compare(q.busy[b.from], q.busy[a.from]), a.since.Compare(b.since))
	})
	for _, a := range silent {
		if need <= 0 {
			break
		}
		grace := silenceGrace
		if q.busy[a.from] > least+1 {
			grace = crowdGrace
		}
		if over := a.since.Add(grace); now.Before(over) {
			if over.Before(next) {
				next = over
			}
			continue
		}
		if a.unread() { // we have not come to it yet
			continue
		}
		a.cutLocked(RefusedMaxHandshakes)
		if a.from != 0 {
			q.silent[a.from]++
			q.busy[a.from]--
		}
		need--
	}
	return next
}

// visible reports whether unread can tell.
func (a *arrival) visible() bool { return rawConn(a.conn) != nil }

// unread reports whether the peer has sent what nobody has taken yet.
func (a *arrival) unread() bool {
	raw := rawConn(a.conn)
	if raw == nil {
		return false
	}
	empty := true
	raw.Control(func(fd uintptr) { empty = sysEmpty(fd) })
	return !empty
}
