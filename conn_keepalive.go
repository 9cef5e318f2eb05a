package peerws

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"time"
)

// Keepalive: a peer that has been silent for PingInterval is sent a ping, and
// one that stays silent for PongTimeout after it is given up. Any byte received
// is life, and any byte of our queue, or of the kernel's, that the peer takes. The
// clock of a connection stands still while its reader is not reading: a callback
// runs, or a message waits for somebody to read it. The peer's pings are answered
// then by reading ahead.
//
// There is no timer per connection: one clock per listener looks at all of its
// sockets from time to time, also at those that close and at the transports in
// their opening handshake. A dialled socket has a clock of its own.

var errPongTimeout = errors.New("peer was silent for PongTimeout after a ping")

// A keepalive is what the clock knows of a socket. Only the clock touches it. Times
// are the clock's.
type keepalive struct {
	activity uint32 // of the reader, when it was looked at last
	since    uint32 // when that was new, or when a ping was sent
	wait     uint32 // of silence before a ping: PingInterval and some chance; pinged is added
}

// pinged in keepalive.wait says that a ping has been sent.
const pinged = 1 << 31

// toggleWaiting counts the reader's going to wait for bytes and coming back: it is odd
// meanwhile. noteWritten counts progress of the writer and leaves that as it is.
func (c *WebSocket) toggleWaiting() { c.activity.Add(1) }
func (c *WebSocket) noteWritten()   { c.activity.Add(2) }

// maxControls is how many control frames a peer may send between two rounds of the
// clock, a second at most. Nobody who means well sends a part of it.
const maxControls = 128 << 10

var errControls = &ProtocolError{StatusPolicyViolation, "too many control frames"}

// checkTimes moves a socket's keepalive on at the clock's time now.
func (c *WebSocket) checkTimes(now uint32) {
	if c.activity.Load() == 0 { // its reader has not waited yet, or does not run
		c.mu.Lock()
		c.beginHeldLocked()
		c.mu.Unlock()
	}
	c.checkBlocked(now)
	if c.controls.Load() > 0 {
		c.controls.Store(0)
	}
	switch c.ReadyState() {
	case Open:
		c.checkFirst(now)
		c.checkSlow(now)
		c.checkGated()
		if !c.checkAway(now) && c.set.pingInterval > 0 {
			c.checkKeepalive(now)
		}
	case Closing:
		c.checkClosing(now)
	}
}

var errFirstMessage = errors.New("no message came within FirstMessageTimeout")

// checkFirst ends a socket that has no use for us.
func (c *WebSocket) checkFirst(now uint32) {
	d := c.set.firstMessage
	if d <= 0 || c.reader.Load() >= oneMessage || now-c.born < millis(d) {
		return
	}
	if c.activity.Load()&1 != 0 { // else a message may be at hand, or the program is busy
		c.startClose(InitiatorTimeout, errFirstMessage, StatusPolicyViolation, "no message has come")
	}
}

// checkGated looks after a socket whose reader waits for the program to want a
// message, and so does not see by itself that the transport has ended. What has
// come can be read for a while yet.
func (c *WebSocket) checkGated() {
	if c.activity.Load()&1 != 0 {
		return
	}
	c.mu.Lock()
	side, until := c.readSide(), c.rareLocked().readUntil
	c.mu.Unlock()
	if side != readerGated && side != readerBorrowed || !until.IsZero() {
		return
	}
	broken, ended := c.hungUp()
	if !broken && !ended {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	patience := orDefault(c.set.closeTimeout, defaultCloseTimeout)
	if !broken { // the peer sends nothing more, but may still take what we send
		patience = max(patience, c.set.pingInterval+c.set.pongTimeout)
	}
	if c.readSide() >= readerGated {
		c.becauseLocked(InitiatorNetwork, io.ErrUnexpectedEOF)
		c.readForLocked(patience)
	}
}

// hungUp tells, without reading, whether the transport has failed, and whether the
// peer has ended its direction, as far as that can be known.
func (c *WebSocket) hungUp() (broken, ended bool) {
	broken, ended = hungUp(c.conn)
	if f := foreignOf(c.conn); f != nil && !broken && !ended {
		broken, ended = f.hungUp()
	}
	return broken, ended
}

// unseen reports whether the reader waits for the program, and nothing would tell
// that the transport has ended.
func (c *WebSocket) unseen() bool {
	if f := foreignOf(c.conn); f == nil || !f.full() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.rareLocked().ahead
	side := c.readSide()
	return (side == readerGated || side == readerBorrowed) && a != nil && a.buf.len() >= aheadMost
}

func (c *WebSocket) checkKeepalive(now uint32) {
	p := &c.keepalive
	activity := c.activity.Load()
	quiet := now - p.since
	switch {
	case activity == p.activity && activity&1 == 0 && p.wait != 0 && c.unseen():
		if quiet >= p.wait&^pinged { // only writing can tell whether the peer is there
			p.since = now
			c.pingIfIdle()
		}
	case activity != p.activity || activity&1 == 0 || p.wait == 0: // life, or our own doing
		if p.wait == 0 {
			// 7/8 to 9/8, so that the sockets of a listener do not all ping at once.
			d := c.set.pingInterval
			p.wait = millis(d*7/8 + rand.N(d/4+1))
		}
		p.activity, p.since = activity, now
		p.wait &^= pinged
	case p.wait&pinged != 0:
		switch {
		case c.set.pongTimeout <= 0 || quiet < millis(c.set.pongTimeout):
		case c.aliveSincePing():
			p.since = now
		default:
			c.abort(InitiatorTimeout, errPongTimeout)
		}
	case quiet >= p.wait:
		// While something is queued WriteTimeout watches over the peer, and a ping
		// would only wait with the rest.
		p.since = now
		if c.pingNoting() {
			p.wait |= pinged
		}
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
	x := c.makeRareLocked()
	x.pingID++
	w.id = x.pingID
	x.pings = append(x.pings, w)
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
	for i, p := range x.pings {
		if p == w {
			x.pings = append(x.pings[:i], x.pings[i+1:]...)
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
	x := c.life.rare
	if x == nil {
		return
	}
	rest := x.pings[:0]
	for _, p := range x.pings {
		if p.id <= id && id <= x.pingID {
			p.answered <- time.Since(p.sent)
		} else {
			rest = append(rest, p)
		}
	}
	clear(x.pings[len(rest):])
	x.pings = rest
}
