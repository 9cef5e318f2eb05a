package peerws

import (
	"context"
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
//	queue   what the kernel did not take, written by the engine when there is
//	        room, or by a goroutine that exists only while there is something
//
// Order is kept: the cork is empty whenever the queue is not.

const (
	writeVec = 8       // buffers of one write
	smallMax = 4 << 10 // payloads up to this are copied behind their header, larger ones written from where they lie
)

// A writer is the state of the write side, guarded by WebSocket.wmu.
type writer struct {
	mode     writeMode
	running  bool     // the writer goroutine exists, or the engine waits for room
	streamed bool     // a NextWriter's message is under way: other messages wait in held
	buffered int      // payload bytes not taken by the kernel
	messages uint64   // sent, or queued
	sent     uint64   // bytes that the kernel has taken
	cork     *buffer  // collected whole frames, nil if none
	out      *outbox  // queued bytes, nil if none
	backlog  *backlog // nil until needed
}

// A writeMode is what becomes of a frame.
type writeMode uint8

const (
	// writeDirect: it leaves at once, or joins the queue. Next: writeCorked,
	// writeShut.
	writeDirect writeMode = iota
	// writeCorked: messages are collected. Next: writeDirect, writeShut.
	writeCorked
	// writeShut: there are no more frames. Close was queued, or the transport has
	// failed. Last.
	writeShut
)

// A backlog is the part of writer that few sockets need.
type backlog struct {
	held     *outbox       // nil if nothing waits there
	heldSize int           // those bytes of writer.buffered that are in held
	room     chan struct{} // closed when the queue has shrunk or the end has come; nil if nobody waits
	watchdog *time.Timer   // of the cork
	received received      // the large message that a callback has now
	short    bool          // keepQueueShort has been called
	queued   int           // what noteQueuedLocked has told last
	stall    stall         // of the engine's wait for room
	looked   uint32        // the clock's time when that was new, or looked at last
}

// A received is a message lying in the block it came in, behind its own header, which
// nobody needs any more: frame[at:] is the message. A reply with the very same
// payload gets its header written there, a shorter one than that of a masked
// frame, and leaves in one piece.
type received struct {
	frame []byte
	at    int
}

// noteReceived has sendLocked know what a callback has been given, or with nil has it
// forget that. Only for messages that are not copied anyway.
func (c *WebSocket) noteReceived(frame []byte, at int) {
	c.wmu.Lock()
	c.writer.makeBacklogLocked().received = received{frame, at}
	c.wmu.Unlock()
}

// echoLocked returns the frame that carries p as h says if it can be had without
// copying p, else nil. wmu is held.
func (w *writer) echoLocked(h header, p []byte) []byte {
	if w.backlog == nil || w.backlog.received.frame == nil {
		return nil
	}
	l := w.backlog.received
	from := l.at - headerSize(len(p), false)
	if from < 0 || len(p) > len(l.frame)-l.at || &p[0] != &l.frame[l.at] {
		return nil
	}
	appendHeader(l.frame[from:from], h)
	return l.frame[from : l.at+len(p)]
}

// makeBacklogLocked returns the backlog for writing. wmu is held.
func (w *writer) makeBacklogLocked() *backlog {
	if w.backlog == nil {
		w.backlog = new(backlog)
	}
	return w.backlog
}

// heldLocked returns what waits behind a NextWriter's message, nil if nothing does.
func (w *writer) heldLocked() *outbox {
	if w.backlog == nil {
		return nil
	}
	return w.backlog.held
}

// settledLocked is what buffered is when the queue is empty.
func (w *writer) settledLocked() int {
	if w.backlog == nil {
		return 0
	}
	return w.backlog.heldSize
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

	headers [maxHeaderSize * writeVec]byte
	small   [maxHeaderSize + smallMax]byte
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

// writeNowLocked makes one attempt to write the whole frames in op.one and gives op
// back. What the kernel does not take is copied to the queue. wmu is held, the
// queue is empty.
func (c *WebSocket) writeNowLocked(op *write) {
	n := 0
	if c.raw != nil {
		n = c.writeOnce(op)
	}
	c.writer.sent += uint64(n)
	switch {
	case n == len(op.one):
		c.writer.buffered = c.writer.settledLocked()
	case op.err != nil:
		c.writeFailedLocked(op.err)
	default:
		c.queueRestLocked(op, n)
	}
	op.free()
}

// writeLargeLocked writes the cork and then a message from where it lies, header and
// payload by turns, as far as the kernel takes it. The rest is copied to the
// queue. wmu is held, the queue is empty; raw path, listening side.
func (c *WebSocket) writeLargeLocked(h header, p []byte) {
	w := &c.writer
	cork := c.takeCorkLocked()
	defer func() { cork.free() }()
	f := framesOf(h, p)
	op := newWrite()
	if cork == nil && f.of == 1 {
		whole := f
		if op.one = w.echoLocked(whole.next()); op.one != nil {
			c.writeNowLocked(op)
			return
		}
	}
	defer op.free()
	op.many = true
	n := 0 // buffers of this write
	if cork != nil {
		op.vec[0], n = cork.b, 1
	}
	for f.more() {
		heads, total := op.headers[:0], cork.len()
		for f.more() && n+2 <= writeVec {
			h, part := f.next()
			from := len(heads)
			heads = appendHeader(heads, h)
			op.vec[n], op.vec[n+1] = heads[from:], part
			total += len(heads) - from + len(part)
			n += 2
		}
		clear(op.vec[n:])
		took := c.writeOnce(op)
		w.sent += uint64(took)
		if op.err != nil {
			c.writeFailedLocked(op.err)
			return
		}
		if took < total {
			c.queueRestLocked(op, took)
			w.out.enqueueFrames(f)
			c.noteQueuedLocked()
			return
		}
		cork.free()
		cork, n = nil, 0
		w.buffered = w.settledLocked() + len(f.p)
	}
}

// queueRestLocked queues what is left of op's buffers, which are whole frames, when n bytes
// have been written.
func (c *WebSocket) queueRestLocked(op *write, n int) {
	w := &c.writer
	w.out = newOutbox()
	if !op.many {
		op.many, op.vec = true, vector{op.one}
	}
	for _, b := range op.vec {
		k := min(n, len(b))
		w.buffered -= w.out.advance(b, k)
		n -= k
		w.out.push(b[k:])
	}
	c.noteQueuedLocked()
	c.startWriterLocked()
}

// tookLocked accounts for n bytes of the queue that the kernel has taken. wmu is held.
func (w *writer) tookLocked(n int) {
	w.sent += uint64(n)
	w.buffered -= w.out.wrote(n)
}

// writeQueuedLocked writes what it can of a fresh outbox without waiting, and leaves
// the rest to the writer goroutine. wmu is held.
func (c *WebSocket) writeQueuedLocked() {
	w := &c.writer
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
			c.writeFailedLocked(op.err)
			return
		}
		if n == 0 {
			break
		}
		w.tookLocked(n)
	}
	c.noteQueuedLocked()
	c.startWriterLocked()
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
	w := &c.writer
	op := newWrite()
	defer op.free()
	op.many, op.park = true, true
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if b := w.makeBacklogLocked(); !b.short && (c.raw != nil || foreignOf(c.conn) != nil) {
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
			if w.mode == writeShut {
				c.closeSentLocked()
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
			w.tookLocked(n)
			c.noteQueuedLocked()
			if !w.out.empty() { // an empty queue tells nothing of the peer
				c.noteWritten()
			}
			c.roomLocked()
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && n > 0:
		case errors.Is(err, os.ErrDeadlineExceeded) && !c.severed():
			c.abort(InitiatorTimeout, errWriteTimeout)
			c.writeFailedLocked(err)
		default:
			c.writeFailedLocked(err)
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
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || c.severed() || s.over(c.conn) {
			if foreign {
				f.pace(n, s.quiet > 0)
			}
			return n, err
		}
		if s.quiet == 0 {
			c.noteWritten()
		}
	}
}

// setWriteDeadline sets the transport's, unless abort has set its own for good.
func (c *WebSocket) setWriteDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.severed() {
		c.conn.SetWriteDeadline(t)
	}
}

// writeFailedLocked ends the write side after a transport error. Messages that have
// been received are still handed over: the reader finds the end by itself, or
// is told to look for it no longer than CloseTimeout. wmu is held.
func (c *WebSocket) writeFailedLocked(err error) {
	w := &c.writer
	w.mode = writeShut
	c.takeCorkLocked().free()
	w.out.free()
	w.out = nil
	w.dropHeldLocked()
	c.noteQueuedLocked()
	c.roomLocked()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.becauseLocked(InitiatorNetwork, err)
	c.readForLocked(orDefault(c.set.closeTimeout, defaultCloseTimeout))
}

// roomWaitLocked waits for roomLocked, or for ctx's end. wmu is held, but not
// while it waits.
func (c *WebSocket) roomWaitLocked(ctx context.Context) error {
	w := c.writer.makeBacklogLocked()
	if w.room == nil {
		w.room = make(chan struct{})
	}
	ch := w.room
	c.wmu.Unlock()
	defer c.wmu.Lock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// roomLocked wakes whoever waits for room. wmu is held.
func (c *WebSocket) roomLocked() {
	if w := c.writer.backlog; w != nil && w.room != nil {
		close(w.room)
		w.room = nil
	}
}

// dropHeldLocked gives up what waits behind a NextWriter's message.
func (w *writer) dropHeldLocked() {
	if w.backlog != nil {
		w.backlog.held.free()
		w.backlog.held = nil
	}
}
