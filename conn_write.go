package peerws

import (
	"errors"
	"os"
	"sync"
	"time"
)

// The write side. A message goes one of three ways:
//
//	cork    while the reader works through a block with several messages, the
//	        replies are collected and leave in one write at the block's end
//	at once one non-blocking write, if nothing is queued
//	queue   what the kernel did not take, written by a goroutine that exists
//	        only while there is something
//
// Order is kept: the cork is empty whenever the queue is not.

const (
	writeVec = 8       // buffers of one write
	smallMax = 4 << 10 // payloads up to this are copied behind their header, larger ones written from where they lie
)

// A writer is the state of the write side, guarded by WebSocket.wmu.
type writer struct {
	corking  bool     // messages are collected
	shut     bool     // no more frames: Close was queued, or the transport failed
	running  bool     // the writer goroutine exists
	streamed bool     // a NextWriter's message is under way: other messages wait in held
	closeBy  uint32   // the clock's time at which the closing handshake must be over, 0: none yet
	buffered int      // payload bytes not taken by the kernel
	cork     *buffer  // collected whole frames, nil if none
	out      *outbox  // queued bytes, nil if none
	more     *backlog // nil until needed
}

// A backlog is the part of writer that few sockets need.
type backlog struct {
	held     *outbox       // nil if nothing waits there
	heldSize int           // those bytes of writer.buffered that are in held
	room     chan struct{} // closed when the queue has shrunk or the end has come; nil if nobody waits
	watchdog *time.Timer   // of the cork
	loan     loan          // the large message that a callback has now
	short    bool          // keepQueueShort has been called
}

// A loan is a message lying in the block it came in, behind its own header, which
// nobody needs any more: frame[at:] is the message. A reply with the very same
// payload gets its header written there, a shorter one than that of a masked
// frame, and leaves in one piece.
type loan struct {
	frame []byte
	at    int
}

// lend has sendLocked know what a callback has been given, or with nil has it
// forget that. Only for messages that are not copied anyway.
func (c *WebSocket) lend(frame []byte, at int) {
	c.wmu.Lock()
	c.wr.moreLocked().loan = loan{frame, at}
	c.wmu.Unlock()
}

// echo returns the frame that carries p as h says if it can be had without
// copying p, else nil. wmu is held.
func (w *writer) echo(h header, p []byte) []byte {
	if w.more == nil || w.more.loan.frame == nil {
		return nil
	}
	l := w.more.loan
	from := l.at - headerSize(len(p), false)
	if from < 0 || len(p) > len(l.frame)-l.at || &p[0] != &l.frame[l.at] {
		return nil
	}
	appendHeader(l.frame[from:from], h.piece(0, 1, len(p)))
	return l.frame[from : l.at+len(p)]
}

// moreLocked returns the backlog for writing. wmu is held.
func (w *writer) moreLocked() *backlog {
	if w.more == nil {
		w.more = new(backlog)
	}
	return w.more
}

// held returns what waits behind a NextWriter's message, nil if nothing does.
func (w *writer) held() *outbox {
	if w.more == nil {
		return nil
	}
	return w.more.held
}

// settled is what buffered is when the queue is empty.
func (w *writer) settled() int {
	if w.more == nil {
		return 0
	}
	return w.more.heldSize
}

// A vector is several buffers for one write.
type vector [writeVec][]byte

// A write is one call of RawConn.Write, with room for what that is to write.
// They are pooled: a connection that writes nothing holds none.
type write struct {
	attempt func(fd uintptr) bool // the callback of RawConn.Write

	sys  *sysOps
	one  []byte // what is to be written, or
	many bool   // vec
	vec  vector
	park bool // wait for room
	n    int  // the result
	err  error

	heads [maxHeaderSize * writeVec]byte
	small [maxHeaderSize + smallMax]byte
}

var writePool = sync.Pool{New: func() any {
	w := new(write)
	w.attempt = w.writable
	return w
}}

func newWrite() *write { return writePool.Get().(*write) }

func (w *write) free() {
	if w.many {
		clear(w.vec[:])
	}
	w.one, w.many, w.park, w.sys, w.err = nil, false, false, nil, nil
	if poison {
		poisonBytes(w.small[:])
	}
	writePool.Put(w)
}

// writeNow makes one attempt to write the whole frames in op.one and gives op
// back. What the kernel does not take is copied to the queue. wmu is held, the
// queue is empty.
func (c *WebSocket) writeNow(op *write) {
	n := 0
	if c.raw != nil {
		n = c.writeOnce(op)
	}
	switch {
	case n == len(op.one):
		c.wr.buffered = c.wr.settled()
	case op.err != nil:
		c.writeFailed(op.err)
	default:
		c.queueFrom(op.one, n)
	}
	op.free()
}

// queueFrom queues the whole frames in b, of which n bytes have been written.
func (c *WebSocket) queueFrom(b []byte, n int) {
	w := &c.wr
	w.out = newOutbox()
	w.buffered -= w.out.advance(b, n)
	w.out.push(b[n:])
	c.startWriter()
}

// writeLarge writes the cork and then a message from where it lies, header and
// payload by turns, as far as the kernel takes it. The rest is copied to the
// queue. wmu is held, the queue is empty; raw path, listening side.
func (c *WebSocket) writeLarge(h header, p []byte) {
	w := &c.wr
	cork := c.takeCork()
	frames, size := cut(len(p))
	op := newWrite()
	if frames == 1 && cork == nil {
		if op.one = w.echo(h, p); op.one != nil {
			c.writeNow(op)
			return
		}
	}
	defer op.free()
	op.many = true
	vec := &op.vec
	for i, at := 0, 0; i < frames; {
		// As many frames as one write holds.
		heads := op.heads[:0]
		nvec, total := 0, 0
		if cork != nil {
			vec[0], nvec, total = cork.b, 1, cork.len()
		}
		next, end := i, at
		for next < frames && nvec+2 <= writeVec {
			part := p[end:min(end+size, len(p))]
			from := len(heads)
			heads = appendHeader(heads, h.piece(next, frames, len(part)))
			vec[nvec], vec[nvec+1] = heads[from:], part
			total += len(heads) - from + len(part)
			nvec += 2
			next++
			end += len(part)
		}
		clear(vec[nvec:])
		n := c.writeOnce(op)
		if op.err != nil {
			cork.free()
			c.writeFailed(op.err)
			return
		}
		if n < total {
			c.queueRest(cork, h, p, i, at, n)
			return
		}
		cork.free()
		cork = nil
		i, at = next, end
		w.buffered = w.settled() + len(p) - at
	}
}

// queueRest queues what is left when n bytes of the cork and of the message's
// frames from the i-th on, whose payload begins at at, have been written. It
// owns cork.
func (c *WebSocket) queueRest(cork *buffer, h header, p []byte, i, at, n int) {
	w := &c.wr
	o := newOutbox()
	w.out = o
	if cork != nil {
		k := min(n, cork.len())
		w.buffered -= o.advance(cork.b, k)
		n -= k
		if k < cork.len() {
			o.chunks, o.off = append(o.chunks, cork), k
		} else {
			cork.free()
		}
	}
	var head [maxHeaderSize]byte
	for frames, size := cut(len(p)); i < frames; i++ {
		part := p[at:min(at+size, len(p))]
		at += len(part)
		b := appendHeader(head[:0], h.piece(i, frames, len(part)))
		k := min(n, len(b))
		w.buffered -= o.advance(b, k)
		n -= k
		if k < len(b) {
			f := o.chunk(maxHeaderSize, maxHeaderSize+len(part))
			f.b = append(f.b, b[k:]...)
		}
		k = min(n, len(part))
		w.buffered -= o.advance(nil, k)
		n -= k
		o.push(part[k:])
	}
	c.startWriter()
}

// writeQueued writes what it can of a fresh outbox without waiting, and leaves
// the rest to the writer goroutine. wmu is held.
func (c *WebSocket) writeQueued() {
	w := &c.wr
	op := newWrite()
	defer op.free()
	op.many = true
	for c.raw != nil {
		if w.out.wire(&op.vec, c.core.client) == 0 {
			w.out.free()
			w.out = nil
			return
		}
		n := c.writeOnce(op)
		if op.err != nil {
			c.writeFailed(op.err)
			return
		}
		if n == 0 {
			break
		}
		w.buffered -= w.out.wrote(n)
	}
	c.startWriter()
}

// writeOnce makes one write, which waits only if op.park is set, and returns
// how much was taken; an error is in op.err. One at a time: wmu is held, or the
// writer goroutine runs.
func (c *WebSocket) writeOnce(op *write) int {
	op.n, op.err, op.sys = 0, nil, c.set.sys
	if err := c.raw.Write(op.attempt); err != nil {
		op.err = err
	}
	return op.n
}

// writable makes one attempt. RawConn.Write calls it; false waits for room.
func (w *write) writable(fd uintptr) bool {
	switch {
	case w.sys != nil:
		w.writeSeam(fd)
	case w.many:
		w.n, w.err = sysWritev(fd, w.vec[:])
	default:
		w.n, w.err = sysWrite(fd, w.one)
	}
	if w.err != nil && wouldBlock(w.err) {
		w.n, w.err = 0, nil
		return !w.park
	}
	return true
}

// writeSeam is the write of a test.
func (w *write) writeSeam(fd uintptr) {
	bufs := [][]byte{w.one}
	if w.many {
		bufs = w.vec[:]
	}
	w.n, w.err = w.sys.write(fd, bufs)
}

// writeLoop writes the queue until it is empty. While it runs nobody else
// writes to the transport.
func (c *WebSocket) writeLoop() {
	w := &c.wr
	op := newWrite()
	defer op.free()
	op.many, op.park = true, true
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if b := w.moreLocked(); !b.short && (c.raw != nil || foreignOf(c.conn) != nil) {
		b.short = true
		keepQueueShort(c.conn)
	}
	defer func() {
		w.running = false
		c.roomLocked()
	}()
	for w.out != nil {
		if w.out.wire(&op.vec, c.core.client) == 0 {
			w.out.free()
			w.out = nil
			c.setWriteDeadline(time.Time{})
			if w.shut {
				c.closeSent()
			}
			return
		}
		c.wmu.Unlock()
		n, err := c.writeWait(op)
		c.wmu.Lock()
		if w.out == nil { // the socket was finished meanwhile
			return
		}
		if n > 0 {
			w.buffered -= w.out.wrote(n)
			if !w.out.empty() { // an empty queue tells nothing of the peer
				c.wroteSome()
			}
			c.roomLocked()
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && n > 0:
		case errors.Is(err, os.ErrDeadlineExceeded) && !c.aborted.Load():
			c.abort(InitiatorTimeout, errWriteTimeout)
			c.writeFailed(err)
		default:
			c.writeFailed(err)
		}
	}
}

// writeWait writes some of op.vec, waiting for room. Only the writer goroutine
// calls it, without wmu.
func (c *WebSocket) writeWait(op *write) (n int, err error) {
	d := c.set.writeTimeout
	f, foreign := c.conn.(*foreignConn)
	if c.raw == nil && !foreign {
		if d > 0 {
			c.setWriteDeadline(time.Now().Add(d))
		}
		return c.conn.Write(op.vec[0])
	}
	var s stall
	for {
		if d > 0 {
			c.setWriteDeadline(time.Now().Add(max(d/stallParts, 1)))
		}
		if foreign {
			n, err = f.Write(op.vec[0][:min(len(op.vec[0]), f.piece)])
		} else {
			n = c.writeOnce(op)
			err = op.err
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || c.aborted.Load() || s.over(c.conn) {
			if foreign {
				f.pace(n, s.quiet > 0)
			}
			return n, err
		}
		if s.quiet == 0 {
			c.wroteSome()
		}
	}
}

// setWriteDeadline sets the transport's, unless abort has set its own for good.
func (c *WebSocket) setWriteDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.aborted.Load() {
		c.conn.SetWriteDeadline(t)
	}
}

// writeFailed ends the write side after a transport error. Messages that have
// been received are still handed over: the reader finds the end by itself, or
// is told to look for it no longer than CloseTimeout. wmu is held.
func (c *WebSocket) writeFailed(err error) {
	w := &c.wr
	w.shut, w.corking = true, false
	c.takeCork().free()
	w.out.free()
	w.out = nil
	w.dropHeld()
	c.roomLocked()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.becauseLocked(InitiatorNetwork, err)
	c.readForLocked(orDefault(c.set.closeTimeout, defaultCloseTimeout))
}

// readForLocked has the socket end when patience is over, whether or not the
// program has read what has come until then. mu is held.
func (c *WebSocket) readForLocked(patience time.Duration) {
	x := c.rareLocked()
	if !x.readUntil.IsZero() && !time.Now().Add(patience).Before(x.readUntil) {
		return
	}
	x.readUntil = time.Now().Add(patience)
	// The reader may be waiting for a program that reads no more.
	time.AfterFunc(patience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.openGateLocked()
	})
	if !c.aborted.Load() && x.tasks == nil { // tasks have woken the reader, which will set it
		c.wakeLocked(x.readUntil)
	}
}

// dropHeld gives up what waits behind a NextWriter's message.
func (w *writer) dropHeld() {
	if w.more != nil {
		w.more.held.free()
		w.more.held = nil
	}
}
