package peerws

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// Keepalive: a peer that has been silent for PingInterval is sent a ping, and
// one that stays silent for PongTimeout after it is given up. Any byte received
// is life, and any byte of our queue that the peer takes. The clock of a connection stands still while its reader is not
// reading: a callback runs, or a message waits for somebody to read it.
//
// There is no timer per connection: one clock per listener looks at all of its
// sockets from time to time. A dialled socket has a clock of its own.

var errPongTimeout = errors.New("peer was silent for PongTimeout after a ping")

// A pulse is what the clock knows of a socket. Only the clock touches it.
type pulse struct {
	phase  uint32        // of the reader, when it was looked at last
	since  time.Duration // the clock's time when that was new, or when a ping was sent
	wait   time.Duration // of silence before a ping: PingInterval and some chance
	pinged bool
}

// beat counts the reader's going into a read and coming out of one: it is odd
// inside. wroteSome counts progress of the writer and leaves that as it is.
func (c *WebSocket) beat()      { c.phase.Add(1) }
func (c *WebSocket) wroteSome() { c.phase.Add(2) }

// look moves a socket's pulse on at the clock's time now.
func (c *WebSocket) look(now time.Duration) {
	p := &c.pulse
	phase := c.phase.Load()
	switch {
	case phase != p.phase || phase&1 == 0 || p.wait == 0: // life, or our own doing
		if p.wait == 0 {
			// 7/8 to 9/8, so that the sockets of a listener do not all ping at once.
			p.wait = c.set.pingInterval*7/8 + rand.N(c.set.pingInterval/4+1)
		}
		p.phase, p.since, p.pinged = phase, now, false
	case p.pinged && c.set.pongTimeout > 0 && now-p.since >= c.set.pongTimeout:
		c.abort(InitiatorTimeout, errPongTimeout)
	case !p.pinged && now-p.since >= p.wait:
		// While something is queued WriteTimeout watches over the peer, and a ping
		// would only wait with the rest.
		p.since, p.pinged = now, c.pingIfIdle()
	}
}

// A clock looks at sockets. It runs only while there are any.
type clock struct {
	tick    time.Duration
	start   time.Time
	sockets func(yield func(*WebSocket) bool)

	mu      sync.Mutex
	timer   *time.Timer
	running bool // the timer is set, or round at work
	again   bool // wind was called meanwhile
}

// newClock returns a clock for the keepalive of set, nil if that is off.
func newClock(set *settings, sockets func(yield func(*WebSocket) bool)) *clock {
	if set.pingInterval <= 0 {
		return nil
	}
	shortest := set.pingInterval
	if set.pongTimeout > 0 {
		shortest = min(shortest, set.pongTimeout)
	}
	return &clock{
		tick:    min(max(shortest/8, time.Millisecond), time.Second),
		start:   time.Now(),
		sockets: sockets,
	}
}

// wind has the clock run. It stops by itself when it finds no socket.
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
		k.timer = time.AfterFunc(k.tick, k.round)
	} else {
		k.timer.Reset(k.tick)
	}
}

// round looks at every socket. There is one at a time.
func (k *clock) round() {
	now := time.Since(k.start)
	found := false
	for c := range k.sockets {
		if c.ReadyState() == Open {
			c.look(now)
		}
		found = true
	}
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

// A waitingPing is a Ping that has not been answered.
type waitingPing struct {
	id       uint64
	sent     time.Time
	answered chan time.Duration // buffered, one value
}

// Ping sends a ping and waits for its pong: the round trip, time that it waited
// behind other messages on our side included. It must not be called in a
// callback, which the pong would wait for. ctx ends the wait only.
func (c *WebSocket) Ping(ctx context.Context) (time.Duration, error) {
	if c.ReadyState() != Open {
		return 0, c.notOpenErr("ping")
	}
	w := &waitingPing{sent: time.Now(), answered: make(chan time.Duration, 1)}
	c.mu.Lock()
	c.lf.pingID++
	w.id = c.lf.pingID
	c.lf.pings = append(c.lf.pings, w)
	done := c.doneLocked()
	c.mu.Unlock()
	ok, err := c.ping(binary.BigEndian.AppendUint64(nil, w.id))
	if err == nil && !ok {
		err = ErrBufferFull
	}
	if err == nil {
		select {
		case d := <-w.answered:
			return d, nil
		case <-done:
			err = c.closedErr("ping")
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.lf.pings {
		if p == w {
			c.lf.pings = append(c.lf.pings[:i], c.lf.pings[i+1:]...)
			break
		}
	}
	return 0, err
}

// pongReceived answers the Ping the pong is for, and the earlier ones: a peer
// may answer the newest ping only (RFC 6455 §5.5.3). The reader calls it.
func (c *WebSocket) pongReceived(payload []byte) {
	if len(payload) != 8 {
		return
	}
	id := binary.BigEndian.Uint64(payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.lf.pings[:0]
	for _, p := range c.lf.pings {
		if p.id <= id && id <= c.lf.pingID {
			p.answered <- time.Since(p.sent)
		} else {
			rest = append(rest, p)
		}
	}
	clear(c.lf.pings[len(rest):])
	c.lf.pings = rest
}
