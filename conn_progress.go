package peerws

import "net"

// Progress that only the kernel sees. On a slow line megabytes lie in its send
// queue, and a ping or Close frame behind them: as long as the peer takes of
// those, it is alive.

// A stall counts how long a write has waited in vain, in quarters of
// WriteTimeout.
type stall struct {
	acked uint64
	quiet int // quarters
}

const stallParts = 4

// over is told that one more quarter has passed, and reports whether the peer has
// taken nothing in the last four. Of the first one it cannot know.
func (s *stall) over(conn net.Conn) bool {
	acked, _, _ := taken(conn)
	if s.quiet > 0 && acked != s.acked {
		s.quiet = 0
	} else {
		s.quiet++
	}
	s.acked = acked
	return s.quiet >= stallParts
}

// notePending remembers, when a ping is sent, what the peer has taken, if
// anything is on its way to it that the ping may wait behind. The clock calls it.
func (c *WebSocket) notePending() {
	acked, pending, ok := taken(c.conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok && pending {
		c.rareLocked().pingAcked = acked
	} else if x := c.lf.x; x != nil {
		x.pingAcked = 0
	}
}

// tookSincePing reports whether the peer has taken something since notePending or
// the last call. The clock calls it.
func (c *WebSocket) tookSincePing() bool {
	c.mu.Lock()
	before := c.seldom().pingAcked
	c.mu.Unlock()
	if before == 0 {
		return false
	}
	acked, _, _ := taken(c.conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lf.x.pingAcked = acked
	return acked != before
}

// noteClosing remembers once what the peer had taken when the closing handshake
// began. The clock calls it.
func (c *WebSocket) noteClosing() {
	c.mu.Lock()
	known := c.seldom().closeAcked != 0
	c.mu.Unlock()
	if known {
		return
	}
	acked, _, _ := taken(c.conn)
	c.mu.Lock()
	c.rareLocked().closeAcked = acked
	c.mu.Unlock()
}

// tookSinceClose reports whether the peer has taken something since noteClosing
// or the last call. The clock calls it.
func (c *WebSocket) tookSinceClose() bool {
	acked, _, _ := taken(c.conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.rareLocked()
	before := x.closeAcked
	x.closeAcked = acked
	return before != 0 && acked != before
}
