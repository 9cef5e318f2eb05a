package peerws

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

// The write side. A frame goes one of three ways:
//
//	cork    while the reader works through a block with several messages, the
//	        replies are collected and leave in one write at the block's end
//	at once one non-blocking write, if nothing is queued
//	queue   what the kernel did not take, written by a goroutine that exists
//	        only while there is something
//
// Order is kept: the cork is empty whenever the queue is not.

const (
	writeVec  = 4                    // buffers of one write
	smallMax  = 4 << 10              // payloads up to this are copied behind their header, larger ones written from where they lie
	corkDelay = 2 * time.Millisecond // how long a slow callback may hold up the cork
)

// A writer is the state of the write side, guarded by WebSocket.wmu.
type writer struct {
	corking  bool          // frames are collected
	shut     bool          // no more frames: Close was queued, or the transport failed
	running  bool          // the writer goroutine exists
	park     bool          // writable waits for room: set by that goroutine
	buffered int           // payload bytes not taken by the kernel
	cork     *buffer       // collected whole frames, nil if none
	out      *outbox       // queued bytes, nil if none
	room     chan struct{} // closed when the queue has shrunk or the end has come; nil if nobody waits
	watchdog *time.Timer   // of the cork

	vec  [writeVec][]byte // arguments of writable
	nvec int
	n    int // results of writable
	err  error
}

// An outbox is what waits for the kernel: wire bytes in chunks, no header
// across two of them, and a lane of its own for the pong.
type outbox struct {
	chunks []*buffer
	off    int // bytes of chunks[0] that are written

	// The frame the kernel has a part of: what is missing of its header and
	// payload. Both 0 at a frame boundary.
	head, body int
	control    bool

	lane    *buffer // a pong on its way, ahead of chunks
	laneOff int
	pong    []byte // the newest ping's payload, to be answered at the next boundary
	ponging bool
}

var outboxPool = sync.Pool{New: func() any { return new(outbox) }}

func (o *outbox) free() {
	for _, f := range o.chunks {
		f.free()
	}
	clear(o.chunks)
	o.lane.free()
	*o = outbox{chunks: o.chunks[:0], pong: o.pong[:0]}
	outboxPool.Put(o)
}

// send frames p and sends it by one of the three ways.
func (c *WebSocket) send(op opcode, p []byte) error {
	if c.ReadyState() == Connecting {
		return ErrNotOpen
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.wr
	client := c.core.client
	size := headerSize(len(p), client) + len(p)
	if w.cork != nil && w.cork.len()+size > c.corkMax() && (client || c.raw == nil || len(p) <= smallMax) {
		c.flushLocked()
	}
	switch {
	case w.shut:
		return c.closedErr("send")
	case w.out != nil:
		if most := c.set.maxBuffered; most >= 0 && w.buffered+len(p) > most {
			return ErrBufferFull
		}
		w.buffered += len(p)
		w.out.enqueue(op, p, client)
	case w.corking && size <= c.corkMax() && len(p) <= smallMax:
		if w.cork == nil {
			w.cork = newBlock()
			c.watch()
		}
		w.buffered += len(p)
		w.cork.b = appendFrame(w.cork.b, op, p, client)
	case len(p) <= smallMax:
		w.buffered += len(p)
		f := newBuffer(size)
		f.b = appendFrame(f.b, op, p, client)
		c.writeNow(f, nil, nil)
	case client || c.raw == nil: // masked, or not ours to wait for: it must be copied anyway
		c.flushLocked()
		if w.shut {
			return c.closedErr("send")
		}
		w.buffered += len(p)
		if w.out != nil {
			w.out.enqueue(op, p, client)
			break
		}
		w.out = outboxPool.Get().(*outbox)
		w.out.enqueue(op, p, client)
		c.writeQueued()
	default:
		w.buffered += len(p)
		hd := newBuffer(maxHeaderSize)
		hd.b = appendHeader(hd.b, header{fin: true, op: op, length: int64(len(p))})
		c.writeNow(c.takeCork(), hd, p)
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

// writeNow makes one attempt to write whole frames: f, then a header hd with
// the payload p, any of them nil. What the kernel does not take is queued. It
// owns f and hd; p is only read. wmu is held, the queue is empty.
func (c *WebSocket) writeNow(f, hd *buffer, p []byte) {
	w := &c.wr
	total := f.len() + hd.len() + len(p)
	n := 0
	if c.raw != nil {
		w.vec = [writeVec][]byte{f.bytes(), hd.bytes(), p}
		w.nvec = 3
		n = c.writeOnce()
		if w.err != nil {
			f.free()
			hd.free()
			c.writeFailed(w.err)
			return
		}
	}
	if n == total {
		f.free()
		hd.free()
		w.buffered = 0
		return
	}
	o := outboxPool.Get().(*outbox)
	w.out = o
	if f != nil {
		k := min(n, f.len())
		w.buffered -= o.advance(f.b, k)
		n -= k
		if k < f.len() {
			o.chunks = append(o.chunks, f)
			o.off = k
		} else {
			f.free()
		}
	}
	if hd != nil { // header and payload go on as if they had been queued from the start
		k := min(n, hd.len())
		w.buffered -= o.advance(hd.b, k)
		n -= k
		last := o.chunk(maxHeaderSize, maxHeaderSize+len(p))
		last.b = append(last.b, hd.b[k:]...)
		hd.free()
		w.buffered -= o.advance(nil, n)
		o.push(p[n:])
	}
	c.startWriter()
}

// writeQueued writes what it can of a fresh outbox without waiting, and leaves
// the rest to the writer goroutine. wmu is held.
func (c *WebSocket) writeQueued() {
	w := &c.wr
	for c.raw != nil {
		if w.nvec = w.out.wire(&w.vec, c.core.client); w.nvec == 0 {
			w.out.free()
			w.out = nil
			return
		}
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

// writeOnce makes one non-blocking write of vec and returns how much was taken;
// the error, if it is one, is in w.err.
func (c *WebSocket) writeOnce() int {
	w := &c.wr
	w.n, w.err, w.park = 0, nil, false
	err := c.raw.Write(c.writeFn)
	if err == nil {
		err = w.err
	}
	w.err = err
	clear(w.vec[:])
	return w.n
}

// writable is the callback of RawConn.Write. It is called under wmu, or by the
// writer goroutine, which is then the only one to write.
func (c *WebSocket) writable(fd uintptr) bool {
	w := &c.wr
	w.n, w.err = c.set.sys.writeOnce(fd, w.vec[:w.nvec])
	if w.err != nil && wouldBlock(w.err) {
		w.n, w.err = 0, nil
		return !w.park
	}
	return true
}

// advance accounts for n written bytes, those at the start of b, and returns
// how many of them were message payload. Where a header starts b goes on to its
// end.
func (o *outbox) advance(b []byte, n int) (payload int) {
	for n > 0 {
		if o.head == 0 && o.body == 0 {
			h, size, _ := parseHeader(b)
			o.head, o.body, o.control = size, int(h.length), h.op.isControl()
		}
		k := min(n, o.head)
		o.head -= k
		n -= k
		b = b[min(k, len(b)):]
		k = min(n, o.body)
		o.body -= k
		n -= k
		b = b[min(k, len(b)):]
		if !o.control {
			payload += k
		}
	}
	return payload
}

// push queues p as it is, split over chunks where it must be.
func (o *outbox) push(p []byte) {
	for len(p) > 0 {
		f := o.chunk(1, len(p))
		k := min(len(p), cap(f.b)-len(f.b))
		f.b = append(f.b, p[:k]...)
		p = p[k:]
	}
}

// enqueue queues a frame.
func (o *outbox) enqueue(op opcode, p []byte, client bool) {
	h := header{fin: true, op: op, length: int64(len(p)), masked: client}
	if client {
		h.key = newMaskKey()
	}
	f := o.chunk(maxHeaderSize, maxHeaderSize+len(p))
	f.b = appendHeader(f.b, h)
	for at := 0; at < len(p); {
		f := o.chunk(1, len(p)-at)
		k := min(len(p)-at, cap(f.b)-len(f.b))
		f.b = append(f.b, p[at:at+k]...)
		if client {
			mask(f.b[len(f.b)-k:], h.key, int64(at))
		}
		at += k
	}
}

// chunk returns the last chunk if it has room for least bytes, else a new one
// for up to want.
func (o *outbox) chunk(least, want int) *buffer {
	if n := len(o.chunks); n > 0 {
		if f := o.chunks[n-1]; cap(f.b)-len(f.b) >= least {
			return f
		}
	}
	f := newBuffer(min(max(want, smallMax), blockSize))
	o.chunks = append(o.chunks, f)
	return f
}

// wire fills vec with what is to be written next and returns how many buffers
// that is, 0 if the outbox is empty.
func (o *outbox) wire(vec *[writeVec][]byte, client bool) (n int) {
	if o.lane == nil && o.ponging && o.head == 0 && o.body == 0 {
		o.lane = newBuffer(maxHeaderSize + maxControlSize)
		o.lane.b = appendFrame(o.lane.b, opPong, o.pong, client)
		o.ponging = false
	}
	if o.lane != nil {
		vec[0] = o.lane.b[o.laneOff:]
		return 1
	}
	for i, f := range o.chunks {
		if n == writeVec {
			break
		}
		b := f.b
		if i == 0 {
			b = b[o.off:]
			if o.ponging { // only to the next boundary
				vec[0] = b[:min(len(b), o.head+o.body)]
				return 1
			}
		}
		if len(b) > 0 {
			vec[n] = b
			n++
		}
	}
	return n
}

// wrote accounts for n bytes of what wire gave out and returns how many of them
// were message payload.
func (o *outbox) wrote(n int) (payload int) {
	if o.lane != nil {
		o.laneOff += n
		if o.laneOff == o.lane.len() {
			o.lane.free()
			o.lane, o.laneOff = nil, 0
		}
		return 0
	}
	done := 0
	for n > 0 {
		f := o.chunks[done]
		b := f.b[o.off:]
		k := min(n, len(b))
		payload += o.advance(b, k)
		o.off += k
		n -= k
		if k < len(b) {
			break
		}
		// Written to its end. The last chunk may still be appended to; it is
		// given back with the outbox, or when a newer one follows.
		if done+1 == len(o.chunks) {
			f.b = f.b[:0]
			o.off = 0
			break
		}
		f.free()
		o.off = 0
		done++
	}
	if done > 0 {
		rest := copy(o.chunks, o.chunks[done:])
		clear(o.chunks[rest:])
		o.chunks = o.chunks[:rest]
	}
	return payload
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
	var vec [writeVec][]byte
	c.wmu.Lock()
	defer c.wmu.Unlock()
	defer func() {
		w.running = false
		c.roomLocked()
	}()
	for w.out != nil {
		nvec := w.out.wire(&vec, c.core.client)
		if nvec == 0 {
			w.out.free()
			w.out = nil
			c.setWriteDeadline(time.Time{})
			if w.shut {
				c.closeSent()
			}
			return
		}
		c.wmu.Unlock()
		n, err := c.writeWait(&vec, nvec)
		c.wmu.Lock()
		if w.out == nil { // the socket was finished meanwhile
			return
		}
		if n > 0 {
			w.buffered -= w.out.wrote(n)
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
func (c *WebSocket) writeWait(vec *[writeVec][]byte, nvec int) (int, error) {
	if d := c.set.writeTimeout; d > 0 {
		c.setWriteDeadline(time.Now().Add(d))
	}
	if c.raw == nil {
		return c.conn.Write(vec[0])
	}
	w := &c.wr
	w.vec, w.nvec = *vec, nvec
	w.n, w.err, w.park = 0, nil, true
	err := c.raw.Write(c.writeFn)
	clear(w.vec[:])
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
		c.writeNow(f, nil, nil)
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

// pong answers a ping: at once or in the cork, or ahead of what is queued.
// There only the newest ping is answered (RFC 6455 §5.5.3).
func (c *WebSocket) pong(p []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.wr
	if w.cork != nil && w.cork.len()+maxHeaderSize+len(p) > blockSize {
		c.flushLocked()
	}
	switch {
	case w.shut:
	case w.out != nil:
		w.out.pong = append(w.out.pong[:0], p...)
		w.out.ponging = true
	case w.cork != nil:
		w.cork.b = appendFrame(w.cork.b, opPong, p, c.core.client)
	default:
		f := newBuffer(maxHeaderSize + len(p))
		f.b = appendFrame(f.b, opPong, p, c.core.client)
		c.writeNow(f, nil, nil)
	}
}

// sendClose sends a Close frame behind everything that was sent before. Only
// the first call does.
func (c *WebSocket) sendClose(code StatusCode, reason string) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.wr
	if w.shut {
		return
	}
	w.corking = false
	c.flushLocked()
	if w.shut { // the flush failed
		return
	}
	w.shut = true
	f := newBuffer(maxHeaderSize + maxControlSize)
	f.b = appendClose(f.b, code, reason, c.core.client)
	if w.out != nil {
		w.out.chunk(f.len(), f.len())
		w.out.push(f.b)
		f.free()
		return
	}
	c.writeNow(f, nil, nil)
	if w.out == nil {
		c.closeSent()
	}
}

// writeFailed ends the write side after a transport error. Messages that have
// been received are still handed over: the reader finds the end by itself, or
// is told to look for it no longer than CloseTimeout. wmu is held.
func (c *WebSocket) writeFailed(err error) {
	w := &c.wr
	w.shut, w.corking = true, false
	c.takeCork().free()
	if w.out != nil {
		w.out.free()
		w.out = nil
	}
	c.roomLocked()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.becauseLocked(InitiatorNetwork, err)
	c.lf.writeDead = true
	if !c.aborted.Load() {
		c.lf.readUntil = time.Now().Add(orDefault(c.set.closeTimeout, defaultCloseTimeout))
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
	if c.wr.out == nil {
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
	c.flushLocked()
	if c.wr.out == nil {
		c.wmu.Unlock()
		return nil
	}
	if c.wr.room == nil {
		c.wr.room = make(chan struct{})
	}
	ch := c.wr.room
	c.wmu.Unlock()
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
