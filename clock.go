package peerws

import (
	"sync"
	"time"
)

// One coarse clock a listener, and one for each dialled socket.

// A clock looks at sockets. It runs only while there are any. Its time is in
// milliseconds since its start and wraps around, so that only differences mean
// anything: before compares.
type clock struct {
	tick  time.Duration
	start time.Time
	round func(now uint32) (found bool) // looks at everything, with no lock held

	mu      sync.Mutex // taken under any other lock; nothing is locked under it
	timer   *time.Timer
	running bool // the timer is set, or round at work
	again   bool // wind was called meanwhile
}

// millis is d in the clock's unit, at least 1 and at most 12 days.
func millis(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 1), 1<<30))
}

// before reports whether the clock's time a is before b.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// ticks reports whether there is a clock for the times of set.
func (set *settings) ticks() bool { return newClock(set, nil) != nil }

// newClock returns a clock for the times of set, nil if all are off. It does not
// run yet.
func newClock(set *settings, round func(now uint32) (found bool)) *clock {
	tick := time.Duration(0)
	for _, t := range []struct{ d, part time.Duration }{
		{set.pingInterval, 8}, {set.pongTimeout, 8}, {set.closeTimeout, 4}, {set.handshakeTimeout, 8}, {set.writeTimeout, 8}, {set.firstMessage, 8},
	} {
		if t.d > 0 && (tick == 0 || t.d/t.part < tick) {
			tick = max(t.d/t.part, 1)
		}
	}
	if tick == 0 {
		return nil
	}
	return &clock{
		tick:  min(max(tick, time.Millisecond), time.Second),
		start: time.Now(),
		round: round,
	}
}

// now is the clock's time.
func (k *clock) now() uint32 {
	if k == nil {
		return 0
	}
	return uint32(time.Since(k.start).Milliseconds())
}

// startClockLocked gives a socket that belongs to no listener a clock of its own. mu
// is held.
func (c *WebSocket) startClockLocked() {
	k := newClock(c.set, func(now uint32) bool {
		c.checkTimes(now)
		return c.ReadyState() != Closed
	})
	if k != nil {
		c.makeRareLocked().clock = k
		k.wind()
	}
}

// clockNowLocked is the time of the clock that watches over the socket. mu is held.
func (c *WebSocket) clockNowLocked() uint32 {
	if c.owner != nil {
		return c.owner.clock.now()
	}
	return c.rareLocked().clock.now()
}

// wind has the clock run. It stops by itself when it finds nothing to look at.
func (k *clock) wind() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running {
		k.again = true
		return
	}
	k.running = true
	if k.timer == nil {
		k.timer = time.AfterFunc(k.tick, k.run)
	} else {
		k.timer.Reset(k.tick)
	}
}

// run is one round. There is one at a time.
func (k *clock) run() {
	found := k.round(k.now())
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running = found || k.again; k.running {
		k.timer.Reset(k.tick)
	}
	k.again = false
}

// stop ends the clock of a dialled socket that has ended.
func (k *clock) stop() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again = false
	if k.timer.Stop() {
		k.running = false
	}
}
