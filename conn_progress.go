package peerws

import "net"

// Progress that only the kernel sees. On a slow line megabytes lie in its send
// queue, and a ping or Close frame behind them: as long as the peer takes of
// those, it is alive. What it sends may lie in the receive queue, behind a packet
// that got lost.

// A traffic is what the kernel knows of a connection, nothing if taken is 0.
type traffic struct {
	taken   uint64 // grows with what the peer's kernel takes
	window  uint32 // bytes it would take; grows as its program reads (Linux 5.4)
	came    uint32 // grows with what the peer sends
	pending bool   // something is on its way to the peer
	gaps    bool   // packets of the peer's have got lost on the way (Linux 5.4)
}

// took reports whether the peer has taken something between t and a later one.
func (t traffic) took(later traffic) bool {
	return t.taken != later.taken || t.window < later.window
}

// progress is what has gone to and fro: it differs from an earlier one if the peer
// has sent or taken something since.
type progress struct {
	activity, came uint32
	taken          uint64
}

func (c *WebSocket) progress() progress {
	t := trafficOf(c.conn)
	return progress{c.activity.Load(), t.came, t.taken}
}

// A stall counts how long a write has waited in vain, in quarters of
// WriteTimeout.
type stall struct {
	seen  traffic
	quiet int // quarters
}

const stallParts = 4

// over is told that one more quarter has passed, and reports whether the peer has
// taken nothing in the last four. Of the first one it cannot know.
func (s *stall) over(conn net.Conn) bool {
	t := trafficOf(conn)
	if s.quiet > 0 && s.seen.took(t) {
		s.quiet = 0
	} else {
		s.quiet++
	}
	s.seen = t
	return s.quiet >= stallParts
}

// pingNoting sends a ping if nothing is queued, and remembers what the peer had
// taken and sent before, and whether the ping may have to wait in the kernel behind
// something. The clock calls it.
func (c *WebSocket) pingNoting() bool {
	t := trafficOf(c.conn)
	if !c.pingIfIdle() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.rare != nil || t.pending || t.gaps { // most idle sockets need no memory for it
		c.makeRareLocked().pingSaw = t
	}
	return true
}

// aliveSincePing reports whether the peer has taken or sent something since
// pingNoting or the last call. That its kernel has taken the ping does not count.
// The clock calls it.
func (c *WebSocket) aliveSincePing() bool {
	c.mu.Lock()
	before := c.rareLocked().pingSaw
	c.mu.Unlock()
	if before.taken == 0 {
		return false
	}
	t := trafficOf(c.conn)
	c.mu.Lock()
	c.life.rare.pingSaw = t
	c.mu.Unlock()
	if !before.pending {
		before.taken = t.taken
	}
	return before.took(t) || before.came != t.came
}

// closingMost is for how many times CloseTimeout a peer may go on sending what is
// not its Close frame. It may have queued that before it could know: with the
// defaults a message of MaxMessageSize at 128 kbit/s.
const closingMost = 16

// closeWatched in keepalive.wait says that keepalive.since is the beginning of the closing
// handshake, and keepalive.activity what the reader had received then or later.
const closeWatched = ^uint32(0)

// noteClosing remembers once what the peer had taken and sent when the closing
// handshake began. The clock calls it.
func (c *WebSocket) noteClosing(now uint32) {
	if p := &c.keepalive; p.wait != closeWatched {
		p.wait, p.since, p.activity = closeWatched, now, c.activity.Load()
	}
	c.mu.Lock()
	known := c.rareLocked().saw.taken != 0
	c.mu.Unlock()
	if known {
		return
	}
	t := trafficOf(c.conn)
	c.mu.Lock()
	c.makeRareLocked().saw = t
	c.mu.Unlock()
}

// aliveSinceClose reports whether the peer has taken or sent something since
// noteClosing or the last call, and may go on. It has not come to our Close frame
// yet. The clock calls it.
func (c *WebSocket) aliveSinceClose(now uint32) bool {
	t := trafficOf(c.conn)
	c.mu.Lock()
	x := c.makeRareLocked()
	before := x.saw
	x.saw = t
	c.mu.Unlock()
	p := &c.keepalive
	activity := c.activity.Load()
	took := before.taken != 0 && before.took(t)
	sent := activity != p.activity || before.taken != 0 && before.came != t.came
	p.activity = activity
	return took || sent && p.wait == closeWatched && now-p.since < closingMost*millis(c.set.closeTimeout)
}
