package peerws

import (
	"context"
	"runtime"
	"time"
)

// Turns of the read side. The reader owns it: the connection's goroutine, or a turn of
// the engine. When a message waits and the program reads by calls, the goroutine of a
// Read borrows it and gives it back; then it goes on with the engine's turn itself.

// Who has the read side: the lower bits of WebSocket.reader. The first three follow
// each other without a lock, the others are entered and left with mu held.
const (
	// readerOwns: the reader works on it or waits for bytes. Next:
	// readerAway, readerGated.
	readerOwns uint64 = iota
	// readerAway: it runs a callback. Next: readerOwns, readerWatched.
	readerAway
	// readerWatched: the clock has the side for a moment, to read ahead. Next:
	// readerAway.
	readerWatched
	// readerGated: it waits, with a message at hand, for somebody who wants it.
	// Next: readerBorrowed, readerOwns.
	readerGated
	// readerBorrowed: a Read has the side, or the clock. Next: readerGated if more of
	// what it wants is at hand, readerResumes, readerFills.
	readerBorrowed
	// readerResumes: it is to go on. Next: readerOwns.
	readerResumes
	// readerFills: it is to go on, and first of all to get more bytes. Next:
	// readerOwns.
	readerFills

	readerMask uint64 = 7
	newHandler uint64 = 8 // beside them: rare.handler is to replace handler

	oneMessage uint64 = 16 // the bits from here on count the messages that were handed over
)

// readSide tells who has the read side.
func (c *WebSocket) readSide() uint64 { return c.reader.Load() & readerMask }

// setReadSideLocked moves the read side to s. mu is held, and the side was the
// caller's to give, or the gate's.
func (c *WebSocket) setReadSideLocked(s uint64) {
	for {
		old := c.reader.Load()
		if c.reader.CompareAndSwap(old, old&^readerMask|s) {
			return
		}
	}
}

// goAway and comeBack enclose a callback on the reader's goroutine. goAwayWith counts a
// message, too.
func (c *WebSocket) goAway()     { c.reader.Add(readerAway - readerOwns) }
func (c *WebSocket) goAwayWith() { c.reader.Add(readerAway - readerOwns + oneMessage) }

// comeBack waits for the clock, which waits for nothing.
func (c *WebSocket) comeBack() {
	for {
		v := c.reader.Load()
		if v&readerMask == readerAway && c.reader.CompareAndSwap(v, v-readerAway+readerOwns) {
			return
		}
		runtime.Gosched()
	}
}

// seizeReader takes the read side of a reader that is away, until releaseReader.
func (c *WebSocket) seizeReader() bool {
	v := c.reader.Load()
	return v&readerMask == readerAway && c.reader.CompareAndSwap(v, v-readerAway+readerWatched)
}

func (c *WebSocket) releaseReader() { c.reader.Add(^(readerWatched - readerAway) + 1) }

// noteTaken counts a message that a Read takes, or begins to.
func (c *WebSocket) noteTaken() { c.reader.Add(oneMessage) }

// step looks for a message, or a piece of one, in what has been received. None
// means that more must come first. The read side is borrowed.
func (c *WebSocket) step() event {
	for c.in != nil && int(c.read.off) < len(c.in.b) && c.read.verdict == vMore {
		ev, n := c.core.next(c.in.b[c.read.off:])
		if ev.kind == evNone && n == 0 {
			break
		}
		c.read.off += int32(n)
		switch ev.kind {
		case evMessage, evChunk, evLastChunk:
			return ev
		}
		c.read.verdict = c.handle(ev)
	}
	return event{}
}

// takeTurn fixes the reading style and waits for the Read that is going on.
func (c *WebSocket) takeTurn(ctx context.Context) (*calls, error) {
	c.mu.Lock()
	if c.life.style == styleCallbacks {
		c.mu.Unlock()
		return nil, ErrReading
	}
	c.life.style = styleCalls
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
		case c.readSide() == readerGated:
			c.setReadSideLocked(readerBorrowed)
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
	next := c.in != nil && int(c.read.off) < len(c.in.b) && !c.core.assembling() && c.mustWait()
	atHand := !more && c.read.verdict == vMore && (next || s != nil && s.open && (len(s.chunk) > 0 || s.last))
	if atHand && next {
		c.openCork()
	} else if c.read.corked {
		c.uncork()
	}
	c.mu.Lock()
	k.took = true
	switch {
	case atHand:
		c.setReadSideLocked(readerGated)
	case more && c.read.verdict == vMore:
		c.setReadSideLocked(readerFills)
	default:
		c.setReadSideLocked(readerResumes)
	}
	x := c.life.rare
	engine := c.sock()
	here := engine != nil && k.stopped && !atHand && x.tasks == nil
	if here {
		k.stopped = false
	} else if !atHand || c.severed() || c.ReadyState() != Open || x.tasks != nil || !x.readUntil.IsZero() {
		c.openGateLocked()
	}
	c.mu.Unlock()
	if here {
		c.turnInline(engine)
	}
}

// wakeReadLocked has borrow look again. mu is held.
func (c *WebSocket) wakeReadLocked() {
	if calls := c.rareLocked().calls; calls != nil {
		signal(calls.arrived)
	}
}

// awaitGate waits, with a message at hand, until somebody wants messages: an
// OnMessage, a Read that borrows the read side and gives it back, or nobody any
// more because the socket is closing. It runs tasks meanwhile. fill reports
// whether what is at hand is not enough to go on with. A turn of the engine's ends here,
// with vParked, and openGateLocked begins the next one.
func (c *WebSocket) awaitGate() (v verdict, fill bool) {
	s := c.sock()
	for {
		if s != nil && c.tasksPassed(s) {
			return vParked, false
		}
		c.runTasks()
		c.mu.Lock()
		life, calls := &c.life, c.callsLocked()
		c.takeHandlerLocked()
		side := c.readSide()
		switch {
		case side == readerBorrowed:
		case life.rare.tasks != nil && life.stage != stageHeld:
			c.mu.Unlock()
			continue
		case c.severed(), life.rare.overdue() && !(calls.took && c.readOnLocked()):
			c.setReadSideLocked(readerOwns)
			c.mu.Unlock()
			return vEnded, false
		case side == readerResumes, side == readerFills:
			c.setReadSideLocked(readerOwns)
			c.mu.Unlock()
			if side == readerFills {
				c.compact()
			}
			return c.read.verdict, side == readerFills
		case c.handler != nil || c.ReadyState() != Open:
			c.setReadSideLocked(readerOwns)
			calls.full = event{}
			if !c.core.streaming() || calls.stream.last { // the rest of a stream is still to come, and thrown away
				c.core.release()
			}
			c.mu.Unlock()
			return vMore, false
		case side == readerOwns:
			c.setReadSideLocked(readerGated)
			c.wakeReadLocked()
		}
		if s != nil {
			s.stopAtGate()
			calls.stopped = true
			c.mu.Unlock()
			return vParked, false
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
	calls := c.rareLocked().calls
	if calls == nil {
		return
	}
	s := c.sock()
	if s == nil {
		signal(calls.gate)
	} else if calls.stopped {
		calls.stopped = false
		s.engine.add(task{c: c})
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
	arrived chan struct{} // a Read waits here for readerGated; buffered, one token
	turn    chan struct{} // held by the Read that is going on; buffered, one token
	stopped bool          // the reader's turn has ended at the gate, where it is one of the engine's; guarded by mu
	took    bool          // a Read has had the read side since readForLocked; guarded by mu

	// Part of the read side, like core.
	full   event   // a complete message that a Read has begun and not taken
	stream *stream // what NextReader works on, nil before
}

// callsLocked returns the part for reading by calls. mu is held.
func (c *WebSocket) callsLocked() *calls {
	x := c.makeRareLocked()
	if x.calls == nil {
		x.calls = &calls{
			gate:    make(chan struct{}, 1),
			arrived: make(chan struct{}, 1),
			turn:    make(chan struct{}, 1),
		}
	}
	return x.calls
}
