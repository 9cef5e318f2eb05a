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
//	queue   what the kernel did not take, written by a goroutine that exists
//	        only while there is something
//
// Order is kept: the cork is empty whenever the queue is not.

const (
	writeVec  = 8                    // buffers of one write
	smallMax  = 4 << 10              // payloads up to this are copied behind their header, larger ones written from where they lie
	corkDelay = 2 * time.Millisecond // how long a slow callback may hold up the cork
)

// A writer is the state of the write side, guarded by WebSocket.wmu.
type writer struct {
	corking  bool          // messages are collected
	shut     bool          // no more frames: Close was queued, or the transport failed
	running  bool          // the writer goroutine exists
	park     bool          // writable waits for room: set by that goroutine
	streamed bool          // a NextWriter's message is under way: other messages wait in held
	buffered int           // payload bytes not taken by the kernel
	heldSize int           // those of them that are in held
	cork     *buffer       // collected whole frames, nil if none
	out      *outbox       // queued bytes, nil if none
	held     *outbox       // nil if nothing waits there
	room     chan struct{} // closed when the queue has shrunk or the end has come; nil if nobody waits
	watchdog *time.Timer   // of the cork

	one []byte  // what writable writes, or
	vec *vector // this, if it is several buffers
	n   int     // results of writable
	err error
}

// A vector is several buffers for one write.
type vector [writeVec][]byte

var vectorPool = sync.Pool{New: func() any { return new(vector) }}

func (v *vector) free() {
	clear(v[:])
	vectorPool.Put(v)
}

// data is the header of a whole message, without what each frame has of its own.
func (c *WebSocket) data(op opcode) header {
	return header{fin: true, op: op, masked: c.core.client}
}

// noWait, which is nil, has transmit not wait.
var noWait context.Context

// transmit sends a message by one of the three ways. If the queue has no room
// it waits, until ctx ends, or not at all.
//
// It and what it calls run on the connection's goroutine when a callback sends:
// their frames are kept small, so that the stack need not grow.
func (c *WebSocket) transmit(ctx context.Context, m Message) error {
	op, err := checkOutgoing(m)
	if err != nil {
		return err
	}
	if c.ReadyState() != Open {
		return c.notOpenErr("send")
	}
	c.wmu.Lock()
	for {
		if !c.wr.streamed || c.wr.shut {
			err = c.sendLocked(c.data(op), m.Data)
		} else {
			err = c.holdLocked(op, m.Data)
		}
		if err != ErrBufferFull || ctx == noWait {
			break
		}
		if err = c.roomWaitLocked(ctx); err != nil {
			break
		}
	}
	c.wmu.Unlock()
	return err
}

// holdLocked queues a message behind the one that a NextWriter has under way.
func (c *WebSocket) holdLocked(op opcode, p []byte) error {
	w := &c.wr
	if c.full(len(p)) {
		return ErrBufferFull
	}
	if w.held == nil {
		w.held = newOutbox()
	}
	w.buffered += len(p)
	w.heldSize += len(p)
	w.held.enqueue(c.data(op), p)
	return nil
}

// full reports whether n bytes more would be too many for the queue. An empty
// one takes any message. wmu is held.
func (c *WebSocket) full(n int) bool {
	w := &c.wr
	most := c.set.maxBuffered
	return most >= 0 && (w.out != nil || w.held != nil) && w.buffered+n > most
}

// sendLocked sends what h describes, which is next in order. wmu is held.
func (c *WebSocket) sendLocked(h header, p []byte) error {
	w := &c.wr
	size := headerSize(len(p), h.masked) + len(p)
	small := len(p) <= smallMax
	if w.cork != nil && (small && w.cork.len()+size > c.corkMax() || !small && (h.masked || c.raw == nil)) {
		c.flushLocked()
	}
	switch {
	case w.shut:
		return c.closedErr("send")
	case w.out != nil:
		if c.full(len(p)) {
			return ErrBufferFull
		}
		w.buffered += len(p)
		w.out.enqueue(h, p)
	case w.corking && small && size <= c.corkMax():
		if w.cork == nil {
			w.cork = newBlock()
			c.watch()
		}
		w.buffered += len(p)
		w.cork.b = appendData(w.cork.b, h, p)
	case small:
		w.buffered += len(p)
		f := newBuffer(size)
		f.b = appendData(f.b, h, p)
		c.writeNow(f)
	case h.masked || c.raw == nil: // it must be copied anyway
		w.buffered += len(p)
		w.out = newOutbox()
		w.out.enqueue(h, p)
		c.writeQueued()
	default:
		w.buffered += len(p)
		c.writeLarge(h, p)
	}
	return nil
}

// corkMax is how much the cork may hold.
func (c *WebSocket) corkMax() int {
	if m := c.set.maxBuffered; m >= 0 {
		return min(m+maxHeaderSize, blockSize)
	}
	return blockSize
}

// writeNow makes one attempt to write the whole frames in f, which it owns.
// What the kernel does not take is queued. wmu is held, the queue is empty.
func (c *WebSocket) writeNow(f *buffer) {
	n := 0
	if c.raw != nil {
		c.wr.one = f.b
		n = c.writeOnce()
	}
	if n == len(f.b) {
		f.free()
		c.wr.buffered = c.wr.heldSize
		return
	}
	c.queueFrom(f, n)
}

// queueFrom queues the frames in f, of which n bytes have been written, unless
// writing has failed.
func (c *WebSocket) queueFrom(f *buffer, n int) {
	w := &c.wr
	if c.raw != nil && w.err != nil {
		f.free()
		c.writeFailed(w.err)
		return
	}
	o := newOutbox()
	w.buffered -= o.advance(f.b, n)
	o.chunks, o.off = append(o.chunks, f), n
	w.out = o
	c.startWriter()
}

// writeLarge writes the cork and then a message from where it lies, header and
// payload by turns, as far as the kernel takes it. The rest is copied to the
// queue. wmu is held, the queue is empty; raw path, listening side.
func (c *WebSocket) writeLarge(h header, p []byte) {
	w := &c.wr
	cork := c.takeCork()
	frames, size := cut(len(p))
	heads := newBuffer(maxHeaderSize * writeVec)
	defer heads.free()
	vec := vectorPool.Get().(*vector)
	defer vec.free()
	for i, at := 0, 0; i < frames; {
		// As many frames as one write holds.
		heads.b = heads.b[:0]
		nvec, total := 0, 0
		if cork != nil {
			vec[0], nvec, total = cork.b, 1, cork.len()
		}
		next, end := i, at
		for next < frames && nvec+2 <= writeVec {
			part := p[end:min(end+size, len(p))]
			from := heads.len()
			heads.b = appendHeader(heads.b, h.piece(next, frames, len(part)))
			vec[nvec], vec[nvec+1] = heads.b[from:], part
			total += heads.len() - from + len(part)
			nvec += 2
			next++
			end += len(part)
		}
		clear(vec[nvec:])
		w.vec = vec
		n := c.writeOnce()
		if w.err != nil {
			cork.free()
			c.writeFailed(w.err)
			return
		}
		if n < total {
			c.queueRest(cork, h, p, i, at, n)
			return
		}
		cork.free()
		cork = nil
		i, at = next, end
		w.buffered = w.heldSize + len(p) - at
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
	vec := vectorPool.Get().(*vector)
	defer vec.free()
	for c.raw != nil {
		if w.out.wire(vec, c.core.client) == 0 {
			w.out.free()
			w.out = nil
			return
		}
		w.vec = vec
		n := c.writeOnce()
		if w.err != nil {
			c.writeFailed(w.err)
			return
		}
		if n == 0 {
			break
		}
		w.buffered -= w.out.wrote(n)
	}
	c.startWriter()
}

// writeOnce makes one non-blocking write of one or vec and returns how much was
// taken; an error is in w.err. wmu is held, the writer goroutine is not running.
func (c *WebSocket) writeOnce() int {
	w := &c.wr
	w.n, w.err, w.park = 0, nil, false
	if err := c.raw.Write(c.writeFn); err != nil {
		w.err = err
	}
	w.one, w.vec = nil, nil
	return w.n
}

// writable is the callback of RawConn.Write. It is called under wmu, or by the
// writer goroutine, which is then the only one to write.
func (c *WebSocket) writable(fd uintptr) bool {
	w := &c.wr
	switch {
	case c.set.sys != nil:
		c.writeSeam(fd)
	case w.vec != nil:
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
func (c *WebSocket) writeSeam(fd uintptr) {
	w := &c.wr
	bufs := [][]byte{w.one}
	if w.vec != nil {
		bufs = w.vec[:]
	}
	w.n, w.err = c.set.sys.write(fd, bufs)
}

// startWriter starts the writer goroutine. wmu is held.
func (c *WebSocket) startWriter() {
	if c.drainFn == nil {
		c.drainFn = c.writeLoop
	}
	c.wr.running = true
	go c.drainFn()
}

// writeLoop writes the queue until it is empty. While it runs nobody else
// writes to the transport.
func (c *WebSocket) writeLoop() {
	w := &c.wr
	vec := vectorPool.Get().(*vector)
	defer vec.free()
	c.wmu.Lock()
	defer c.wmu.Unlock()
	defer func() {
		w.running = false
		c.roomLocked()
	}()
	for w.out != nil {
		if w.out.wire(vec, c.core.client) == 0 {
			w.out.free()
			w.out = nil
			c.setWriteDeadline(time.Time{})
			if w.shut {
				c.closeSent()
			}
			return
		}
		c.wmu.Unlock()
		n, err := c.writeWait(vec)
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

// writeWait writes some of vec, waiting for room. Only the writer goroutine
// calls it, without wmu.
func (c *WebSocket) writeWait(vec *vector) (int, error) {
	if d := c.set.writeTimeout; d > 0 {
		c.setWriteDeadline(time.Now().Add(d))
	}
	if c.raw == nil {
		return c.conn.Write(vec[0])
	}
	w := &c.wr
	w.vec, w.n, w.err, w.park = vec, 0, nil, true
	err := c.raw.Write(c.writeFn)
	w.vec = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

// setWriteDeadline sets the transport's, unless abort has set its own for good.
func (c *WebSocket) setWriteDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.aborted.Load() {
		c.conn.SetWriteDeadline(t)
	}
}

// openCork starts collecting: the reader is about to hand over one of several
// messages.
func (c *WebSocket) openCork() {
	c.wmu.Lock()
	c.wr.corking = true
	c.wmu.Unlock()
}

// uncork sends what was collected and stops collecting.
func (c *WebSocket) uncork() {
	c.wmu.Lock()
	if c.wr.corking {
		c.wr.corking = false
		c.flushLocked()
	}
	c.wmu.Unlock()
}

// flushLocked hands the cork to the kernel or the queue. wmu is held.
func (c *WebSocket) flushLocked() {
	if f := c.takeCork(); f != nil {
		c.writeNow(f)
	}
}

// takeCork takes what was collected, nil if nothing was. wmu is held.
func (c *WebSocket) takeCork() *buffer {
	f := c.wr.cork
	if f != nil {
		c.wr.cork = nil
		c.wr.watchdog.Stop()
	}
	return f
}

// watch has the cork flushed after corkDelay: the callback that filled it may
// be slow. wmu is held.
func (c *WebSocket) watch() {
	if c.wr.watchdog == nil {
		c.wr.watchdog = time.AfterFunc(corkDelay, c.corkLate)
	} else {
		c.wr.watchdog.Reset(corkDelay)
	}
}

func (c *WebSocket) corkLate() {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.flushLocked()
}

// writeFailed ends the write side after a transport error. Messages that have
// been received are still handed over: the reader finds the end by itself, or
// is told to look for it no longer than CloseTimeout. wmu is held.
func (c *WebSocket) writeFailed(err error) {
	w := &c.wr
	w.shut, w.corking = true, false
	c.takeCork().free()
	w.out.free()
	w.held.free()
	w.out, w.held = nil, nil
	c.roomLocked()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.becauseLocked(InitiatorNetwork, err)
	c.lf.readUntil = time.Now().Add(orDefault(c.set.closeTimeout, defaultCloseTimeout))
	if !c.aborted.Load() && c.lf.tasks == nil { // tasks have woken the reader, which will set it
		c.conn.SetReadDeadline(c.lf.readUntil)
	}
}

// push flushes the cork and reports whether the kernel has everything.
func (c *WebSocket) push() (empty bool, err error) {
	if c.ReadyState() == Connecting {
		return false, ErrNotOpen
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.flushLocked()
	if c.wr.out == nil && c.wr.held == nil {
		if c.wr.buffered > 0 { // dropped
			return false, c.closedErr("flush")
		}
		return true, nil
	}
	return false, nil
}

// awaitRoom waits until the queue has shrunk, is gone, or ctx ends.
func (c *WebSocket) awaitRoom(ctx context.Context) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.flushLocked()
	if c.wr.out == nil && c.wr.held == nil {
		return nil
	}
	return c.roomWaitLocked(ctx)
}

// roomWaitLocked waits for roomLocked, or for ctx's end. wmu is held, but not
// while it waits.
func (c *WebSocket) roomWaitLocked(ctx context.Context) error {
	if c.wr.room == nil {
		c.wr.room = make(chan struct{})
	}
	ch := c.wr.room
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
	if c.wr.room != nil {
		close(c.wr.room)
		c.wr.room = nil
	}
}
