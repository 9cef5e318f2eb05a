package peerws

import (
	"os"

	"golang.org/x/sys/unix"
)

// What the kernel has not taken of a socket of the engine: it waits for EPOLLOUT, and no
// goroutine does. The clock watches over a peer that takes nothing.

// awaitRoomLocked has the queue written when there is room. wmu is held.
func (c *WebSocket) awaitRoomLocked(s *sock) {
	b := c.writer.makeBacklogLocked()
	if !b.short {
		b.short = true
		keepQueueShort(c.conn)
	}
	c.restartStallLocked()
	s.state.Or(sockBlocked) // before the socket is looked at
	if err := s.watch(unix.EPOLLOUT); err != nil {
		c.wroteLocked(s)
		c.writeFailedLocked(err)
	}
}

// restartStallLocked notes that the peer has all of WriteTimeout from now on. wmu is held.
func (c *WebSocket) restartStallLocked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.writer.backlog
	b.stall, b.looked = stall{}, c.clockNowLocked()
}

// wroteLocked is the end of waiting for room. wmu is held.
func (c *WebSocket) wroteLocked(s *sock) {
	c.writer.running = false
	s.state.And(^sockBlocked)
}

// writeTurn is what a worker does for a socket that has room again.
func (c *WebSocket) writeTurn() {
	s := sockOf(c.raw)
	for {
		s.state.And(^sockRoom)
		c.wmu.Lock()
		if c.writer.out != nil && c.writer.running {
			c.writeMoreLocked(s)
		}
		c.wmu.Unlock()
		for {
			v := s.state.Load()
			if v&sockRoom != 0 {
				break
			}
			if s.state.CompareAndSwap(v, v&^sockWrites) {
				return
			}
		}
	}
}

// writeMoreLocked writes of the queue what the kernel takes. wmu is held.
func (c *WebSocket) writeMoreLocked(s *sock) {
	w := &c.writer
	op := newWrite()
	defer op.free()
	op.many = true
	for {
		if w.out.wire(&op.vec, c.core.client) == 0 {
			w.out.free()
			w.out = nil
			c.wroteLocked(s)
			if w.mode == writeShut {
				c.closeSentLocked()
			}
			break
		}
		n := c.writeOnce(op)
		if op.err != nil {
			c.wroteLocked(s)
			c.writeFailedLocked(op.err)
			break
		}
		if n == 0 { // an event tells when there is room
			return
		}
		w.tookLocked(n)
		c.noteQueuedLocked()
		if !w.out.empty() { // an empty queue tells nothing of the peer
			c.noteWritten()
		}
		c.restartStallLocked()
		c.roomLocked()
	}
	c.roomLocked()
}

// checkBlocked gives a peer up that takes nothing for WriteTimeout. The clock calls it.
func (c *WebSocket) checkBlocked(now uint32) {
	s, d := sockOf(c.raw), c.set.writeTimeout
	if s == nil || s.state.Load()&sockBlocked == 0 || d <= 0 {
		return
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	b := c.writer.backlog
	if !c.writer.running || now-b.looked < millis(d/stallParts) {
		return
	}
	b.looked = now
	if !b.stall.over(c.conn) {
		if b.stall.quiet == 0 {
			c.noteWritten()
		}
		return
	}
	if !c.severed() {
		c.abort(InitiatorTimeout, errWriteTimeout)
	}
	c.wroteLocked(s)
	c.writeFailedLocked(os.ErrDeadlineExceeded)
}

// stopWriterLocked ends waiting for room: the transport is about to be closed. wmu is
// held.
func (c *WebSocket) stopWriterLocked(s *sock) {
	c.wroteLocked(s)
	c.writer.out.free()
	c.writer.out = nil
	c.roomLocked()
}
