package peerws

import "time"

// The cork: while the reader works through a block with several messages, the
// replies are collected, and leave in one write at the block's end.

const corkDelay = 2 * time.Millisecond // how long a slow callback may hold up the cork

// openCork starts collecting: the reader is about to hand over one of several
// messages.
func (c *WebSocket) openCork() {
	c.read.corked = true
	c.wmu.Lock()
	if c.writer.mode == writeDirect {
		c.writer.mode = writeCorked
	}
	c.wmu.Unlock()
}

// corkLocked adds a message to those that are collected already, if it fits:
// what sendLocked does, in short, for bursts of small messages. wmu is held.
func (c *WebSocket) corkLocked(op opcode, p []byte) bool {
	w := &c.writer
	if w.cork == nil || w.mode != writeCorked || w.streamed || len(p) > smallMax || c.core.client ||
		len(w.cork.b)+maxHeaderSize+len(p) > c.corkMax() {
		return false
	}
	w.buffered += len(p)
	w.messages++
	f := w.cork
	if len(p) >= 126 {
		f.b = appendData(f.b, header{fin: true, op: op}, p)
		return true
	}
	from := len(f.b)
	f.extend(2 + len(p))
	b := f.b[from:]
	b[0], b[1] = finBit|byte(op), byte(len(p))
	copy(b[2:], p)
	return true
}

// corkMax is how much the cork may hold.
func (c *WebSocket) corkMax() int {
	if m := c.set.maxBuffered; m >= 0 {
		return min(m+maxHeaderSize, blockSize)
	}
	return blockSize
}

// uncork sends what was collected and stops collecting. The reader calls it.
func (c *WebSocket) uncork() {
	c.read.corked = false
	c.wmu.Lock()
	if c.writer.mode == writeCorked {
		c.writer.mode = writeDirect
		c.flushLocked()
	}
	c.wmu.Unlock()
}

// flushLocked hands the cork to the kernel or the queue. wmu is held.
func (c *WebSocket) flushLocked() {
	if f := c.takeCorkLocked(); f != nil {
		op := newWrite()
		op.one = f.b
		c.writeNowLocked(op)
		f.free()
	}
}

// takeCorkLocked takes what was collected, nil if nothing was. wmu is held.
func (c *WebSocket) takeCorkLocked() *buffer {
	f := c.writer.cork
	if f != nil {
		c.writer.cork = nil
		c.writer.backlog.watchdog.Stop()
	}
	return f
}

// watchCorkLocked has the cork flushed after corkDelay: the callback that filled it may
// be slow. wmu is held.
func (c *WebSocket) watchCorkLocked() {
	if w := c.writer.makeBacklogLocked(); w.watchdog == nil {
		w.watchdog = time.AfterFunc(corkDelay, c.corkLate)
	} else {
		w.watchdog.Reset(corkDelay)
	}
}

func (c *WebSocket) corkLate() {
	c.mu.Lock()
	reading := c.life.style == styleCalls
	c.mu.Unlock()
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if reading && c.writer.mode == writeCorked { // nobody knows when the program reads on
		c.writer.mode = writeDirect
	}
	c.flushLocked()
}
