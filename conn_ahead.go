package peerws

import (
	"errors"
	"io"
	"os"
	"time"
)

// Reading ahead, for the sake of the peer's pings. While a callback runs, or a
// message waits for somebody to read it, nothing is read, and a peer that pings
// would take us for dead. So the clock has a look then, from time to time: it takes
// a little of what has come, without waiting, answers the newest ping in it, and
// leaves the bytes to the reader.
//
// What lies behind aheadMost bytes of messages that the program does not take is
// not seen: there TCP slows the peer down, its pings included.

const (
	aheadMost  = 16 << 10        // bytes that are read ahead
	aheadEvery = 5 * time.Second // at most, and a quarter of PongTimeout
)

// An ahead is what has been read ahead. It is part of the read side.
type ahead struct {
	buf   *buffer // behind what c.in holds; nil if nothing
	err   error   // how reading has ended
	pongs int     // pings in what has not been parsed that have been answered
}

// checkAway looks after a socket whose reader has been away since the clock's last
// look, and reports whether it is one. The keepalive of ours stands still then.
func (c *WebSocket) checkAway(now uint32) bool {
	p := &c.keepalive
	activity := c.activity.Load()
	if activity != p.activity || activity&1 != 0 || p.wait == 0 && c.set.pingInterval > 0 {
		if c.set.pingInterval <= 0 { // else lookOpen does it
			p.activity, p.since = activity, now
		}
		return false
	}
	if c.unseen() {
		return false
	}
	every := aheadEvery
	if d := c.set.pongTimeout / 4; d > 0 {
		every = min(every, d)
	}
	if now-p.since >= millis(every) {
		p.since = now
		c.tryReadAhead()
	}
	return true
}

// tryReadAhead borrows the read side, if it is to be had, and reads ahead.
func (c *WebSocket) tryReadAhead() {
	if c.seizeReader() {
		c.readAhead()
		c.releaseReader()
		return
	}
	c.mu.Lock()
	if c.readSide() != readerGated {
		c.mu.Unlock()
		return
	}
	k := c.callsLocked()
	select {
	case k.turn <- struct{}{}:
	default: // a Read is going on
		c.mu.Unlock()
		return
	}
	c.setReadSideLocked(readerBorrowed)
	c.mu.Unlock()
	c.readAhead()
	c.mu.Lock()
	c.setReadSideLocked(readerGated)
	c.openGateLocked()
	c.mu.Unlock()
	k.endTurn()
}

// readAhead takes what has come and answers the newest ping in it. The read side is
// the caller's.
func (c *WebSocket) readAhead() {
	if c.severed() || c.ReadyState() != Open {
		return
	}
	a := c.aheadOf()
	if a == nil {
		a = new(ahead)
	}
	if have := a.buf.len(); a.err == nil && have < aheadMost {
		b := a.buf.grow(aheadMost)
		n, err := c.readNow(b.b[have:aheadMost])
		b.extend(n)
		c.received.Add(uint64(n))
		if a.buf, a.err = b, err; b.len() == 0 {
			b.free()
			a.buf = nil
		}
	}
	var rest []byte
	if c.in != nil {
		rest = c.in.b[c.read.off:]
	}
	pings, newest := c.core.pingsIn(rest, a.buf.bytes())
	if pings > a.pongs {
		a.pongs = pings
		c.pongNow(newest)
	}
	if a.buf == nil && a.err == nil && a.pongs == 0 {
		a = nil
	}
	c.mu.Lock()
	if a != nil || c.rareLocked().ahead != nil {
		c.makeRareLocked().ahead = a
	}
	c.mu.Unlock()
	c.read.ahead = a != nil
}

func (c *WebSocket) aheadOf() *ahead {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rareLocked().ahead
}

// readNow reads what is there, without waiting; nothing is 0, nil.
func (c *WebSocket) readNow(p []byte) (n int, err error) {
	switch f := foreignOf(c.conn); {
	case c.raw != nil:
		failed := c.raw.Read(func(fd uintptr) bool {
			n, err = c.sysRead(fd, p)
			return true
		})
		if failed != nil || err != nil && wouldBlock(err) {
			return 0, nil // a deadline that is to wake the reader, for example
		}
		if n == 0 && err == nil {
			err = io.EOF
		}
		return max(n, 0), err
	case f != nil && f == c.conn:
		if !f.full() {
			return 0, nil
		}
	case readWaitOf(c.conn) == nil:
		s := steadyOf(c.conn)
		if s == nil || f == nil {
			return 0, nil // there is no way but to wait
		}
		s.glance = f
		defer func() { s.glance = nil }()
	}
	n, err = c.conn.Read(p)
	if err == errNotYet || errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return n, err
}

// takeAhead puts what was read ahead behind c.in, and is false if there is nothing.
func (c *WebSocket) takeAhead() (verdict, bool) {
	a := c.aheadOf()
	if b := a.buf; b != nil {
		a.buf = nil
		c.read.into = intoBlock
		if c.in.len() == 0 {
			c.in.free()
			c.in, b = b, nil
		} else {
			c.in = c.in.grow(c.in.len() + b.len())
			c.in.b = append(c.in.b, b.b...)
		}
		b.free()
		c.read.ahead = a.pongs > 0 || a.err != nil
		return vMore, true
	}
	if a.err != nil {
		return c.readFailed(a.err), true
	}
	return vMore, false
}

// answeredAhead reports whether the ping that is parsed now was answered before.
func (c *WebSocket) answeredAhead() bool {
	a := c.aheadOf()
	if a == nil || a.pongs == 0 {
		return false
	}
	a.pongs--
	c.read.ahead = a.pongs > 0 || a.buf != nil || a.err != nil
	return true
}

func (c *WebSocket) dropAhead() {
	if a := c.aheadOf(); a != nil {
		a.buf.free()
		a.buf = nil
	}
}
