package peerws

import (
	"context"
	"time"
)

// Turns of the read side. The connection's goroutine owns it; when a message waits
// and the program reads by calls, the goroutine of a Read borrows it and gives it
// back.

// step looks for a message, or a piece of one, in what has been received. None
// means that more must come first. The read side is borrowed.
func (c *WebSocket) step() event {
	for c.in != nil && int(c.rd.off) < len(c.in.b) && c.rd.verdict == vMore {
		ev, n := c.core.next(c.in.b[c.rd.off:])
		if ev.kind == evNone && n == 0 {
			break
		}
		c.rd.off += int32(n)
		switch ev.kind {
		case evMessage, evChunk, evLastChunk:
			return ev
		}
		c.rd.verdict = c.handle(ev)
	}
	return event{}
}

// takeTurn fixes the reading style and waits for the Read that is going on.
func (c *WebSocket) takeTurn(ctx context.Context) (*calls, error) {
	c.mu.Lock()
	if c.lf.callbacks {
		c.mu.Unlock()
		return nil, ErrReading
	}
	c.lf.reading = true
	c.beginHeldLocked()
	k := c.callsLocked()
	c.mu.Unlock()
	select {
	case k.turn <- struct{}{}:
		return k, nil
	default:
	}
	select {
	case k.turn <- struct{}{}:
		return k, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (k *calls) endTurn() { <-k.turn }

// borrow waits until the reader has come to a message, and borrows its side.
func (c *WebSocket) borrow(ctx context.Context, k *calls) error {
	c.mu.Lock()
	for {
		switch {
		case c.ReadyState() != Open:
			c.mu.Unlock()
			return c.notOpenErr("read")
		case c.lf.gated && !c.lf.resume:
			c.lf.lent = true
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-k.arrived:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.mu.Lock()
	}
}

// giveBack returns the read side. The reader goes on if more bytes are needed,
// and unless something of the next message is there already. Then what the
// program sends is collected, as in a callback, until it reads on.
func (c *WebSocket) giveBack(k *calls, more bool) {
	s := k.stream
	next := c.in != nil && int(c.rd.off) < len(c.in.b) && !c.core.assembling() && c.mustWait()
	atHand := !more && c.rd.verdict == vMore && (next || s != nil && s.open && (len(s.chunk) > 0 || s.last))
	if atHand && next {
		c.openCork()
	} else if c.rd.corked {
		c.uncork()
	}
	c.mu.Lock()
	c.lf.lent = false
	c.lf.resume, c.lf.fill = !atHand, more && c.rd.verdict == vMore
	if x := c.lf.x; !atHand || c.aborted.Load() || c.ReadyState() != Open || x.tasks != nil || !x.readUntil.IsZero() {
		c.openGateLocked()
	}
	c.mu.Unlock()
}

// wakeReadLocked has borrow look again. mu is held.
func (c *WebSocket) wakeReadLocked() {
	if calls := c.seldom().calls; calls != nil {
		signal(calls.arrived)
	}
}

// awaitGate waits, with a message at hand, until somebody wants messages: an
// OnMessage, a Read that borrows the read side and gives it back, or nobody any
// more because the socket is closing. It runs tasks meanwhile. fill reports
// whether what is at hand is not enough to go on with.
func (c *WebSocket) awaitGate() (v verdict, fill bool) {
	for {
		c.runTasks()
		c.mu.Lock()
		lf, calls := &c.lf, c.callsLocked()
		c.takeHandlerLocked()
		switch {
		case lf.lent:
		case lf.x.tasks != nil && lf.entry != entryHeld:
			c.mu.Unlock()
			continue
		case c.aborted.Load():
			lf.gated = false
			c.mu.Unlock()
			return vEnded, false
		case lf.x.overdue():
			lf.gated = false
			c.mu.Unlock()
			return vEnded, false
		case lf.resume:
			fill = lf.fill
			lf.resume, lf.fill, lf.gated = false, false, false
			c.mu.Unlock()
			if fill {
				c.compact()
			}
			return c.rd.verdict, fill
		case c.handler != nil || c.ReadyState() != Open:
			lf.gated = false
			calls.full = event{}
			if !c.core.streaming() || calls.stream.last { // the rest of a stream is still to come, and thrown away
				c.core.release()
			}
			c.mu.Unlock()
			return vMore, false
		default:
			if !lf.gated {
				lf.gated = true
				c.wakeReadLocked()
			}
		}
		c.mu.Unlock()
		<-calls.gate
	}
}

// overdue reports whether writing has failed so long ago that nothing is read
// any more.
func (x *rare) overdue() bool { return !x.readUntil.IsZero() && !time.Now().Before(x.readUntil) }

// openGateLocked has awaitGate look again. mu is held.
func (c *WebSocket) openGateLocked() {
	if calls := c.seldom().calls; calls != nil {
		signal(calls.gate)
	}
}

// signal leaves a token in ch, which has room for one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// calls is what reading by calls needs, and a message that waits to be wanted.
type calls struct {
	gate    chan struct{} // the reader waits here for somebody who wants messages; buffered, one token
	arrived chan struct{} // a Read waits here for life.gated; buffered, one token
	turn    chan struct{} // held by the Read that is going on; buffered, one token

	// Part of the read side, like core.
	full   event   // a complete message that a Read has begun and not taken
	stream *stream // what NextReader works on, nil before
}

// callsLocked returns the part for reading by calls. mu is held.
func (c *WebSocket) callsLocked() *calls {
	x := c.rareLocked()
	if x.calls == nil {
		x.calls = &calls{
			gate:    make(chan struct{}, 1),
			arrived: make(chan struct{}, 1),
			turn:    make(chan struct{}, 1),
		}
	}
	return x.calls
}
