package peerws

import (
	"context"
	"unsafe"

	"github.com/peerws/peerws/internal/utf8check"
)

// Sending: what the program calls, and the choice between cork, kernel and queue.

// Send sends a message and never blocks: it is handed to the kernel at once, or
// queued if the kernel does not take it now. m.Data is not kept, so loaned data
// may be sent.
//
// If messages are queued already and m would bring them over MaxBufferedAmount,
// Send returns [ErrBufferFull] and the connection lives; [WebSocket.Write] waits
// instead. Once the socket is closing the error wraps net.ErrClosed and the
// [CloseEvent].
func (c *WebSocket) Send(m Message) error { return c.transmit(noWait, m) }

// SendText sends s as a text message, like Send.
func (c *WebSocket) SendText(s string) error {
	return c.Send(Message{Type: Text, Data: unsafe.Slice(unsafe.StringData(s), len(s))}) // only read
}

// SendBinary sends p as a binary message, like Send.
func (c *WebSocket) SendBinary(p []byte) error { return c.Send(Message{Type: Binary, Data: p}) }

// checkOutgoing returns the opcode for m. Text that is not UTF-8 is refused
// here: the peer would have to fail the connection for it (RFC 6455 §8.1).
func checkOutgoing(m Message) (opcode, error) {
	switch m.Type {
	case Binary:
		return opBinary, nil
	case Text:
		if !utf8check.Valid(m.Data) {
			return 0, errTextUTF8
		}
		return opText, nil
	}
	return 0, errMessageType
}

// Write is Send for programs that must not drop: while the queue has no room it
// waits, until ctx ends. The connection is not harmed by that; m was not taken.
func (c *WebSocket) Write(ctx context.Context, m Message) error { return c.transmit(ctx, m) }

// Flush waits until the kernel has taken everything that was sent, until the
// socket is closed, or until ctx ends. It returns nil in the first case.
func (c *WebSocket) Flush(ctx context.Context) error {
	for {
		empty, err := c.push()
		if empty || err != nil {
			return err
		}
		if err := c.awaitRoom(ctx); err != nil {
			return err
		}
	}
}

// BufferedAmount returns the payload bytes that were accepted and that the
// kernel has not taken. After the end it stays where it was.
func (c *WebSocket) BufferedAmount() int {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.writer.buffered
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
	if d := c.core.limits.deflate; d.wants(m) {
		return c.transmitPacked(ctx, d, op, m.Data)
	}
	c.wmu.Lock()
	if c.corkLocked(op, m.Data) {
		c.wmu.Unlock()
		return nil
	}
	err = c.placeLocked(ctx, c.data(op), m.Data)
	c.wmu.Unlock()
	return err
}

// placeLocked sends a whole message, or queues it behind that of a NextWriter, and waits
// for room as transmit does. wmu is held, but not meanwhile.
func (c *WebSocket) placeLocked(ctx context.Context, h header, p []byte) (err error) {
	for {
		if !c.writer.streamed || c.writer.mode == writeShut {
			err = c.sendLocked(h, p)
		} else {
			err = c.holdLocked(h, p)
		}
		if err != ErrBufferFull || ctx == noWait {
			return err
		}
		if err = c.roomWaitLocked(ctx); err != nil {
			return err
		}
	}
}

// transmitPacked is transmit for a message that is to be compressed.
func (c *WebSocket) transmitPacked(ctx context.Context, d *deflate, op opcode, p []byte) error {
	if d.sent != nil {
		return c.transmitAfter(ctx, d, op, p)
	}
	h := c.data(op)
	packed := d.compress(p)
	if packed != nil {
		defer packed.free()
		h.rsv, p = packedBit, packed.b
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.placeLocked(ctx, h, p)
}

// transmitAfter is transmitPacked with context takeover. What the peer remembers is
// what was sent, in that order: so a message is compressed when it is sure to be sent,
// and next. Behind a NextWriter's it is not compressed.
func (c *WebSocket) transmitAfter(ctx context.Context, d *deflate, op opcode, p []byte) error {
	h := c.data(op)
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for c.writer.mode != writeShut && c.fullLocked(len(p)) {
		if ctx == noWait {
			return ErrBufferFull
		}
		if err := c.roomWaitLocked(ctx); err != nil {
			return err
		}
	}
	if c.writer.mode != writeShut && !c.writer.streamed {
		if packed := compressAfter(p, d.sent.b); packed != nil {
			defer packed.free()
			h.rsv = packedBit
			err := c.sendLocked(h, packed.b)
			if err == nil {
				d.sent.add(p)
			}
			if err != ErrBufferFull { // of the cork's messages, which the kernel has not taken
				return err
			}
			h.rsv = 0
		}
	}
	return c.placeLocked(ctx, h, p)
}

// holdLocked queues a message behind the one that a NextWriter has under way.
func (c *WebSocket) holdLocked(h header, p []byte) error {
	if c.fullLocked(len(p)) {
		return ErrBufferFull
	}
	w := c.writer.makeBacklogLocked()
	if w.held == nil {
		w.held = newOutbox()
	}
	c.writer.buffered += len(p)
	c.writer.messages++
	w.heldSize += len(p)
	w.held.enqueue(h, p)
	c.noteQueuedLocked()
	return nil
}

// What the headers of queued frames may need beside MaxBufferedAmount: a part of it, and
// some more. Small messages, and empty ones, are limited by that.
const headersShare, headersMore = 8, 4 << 10

// fullLocked reports whether n bytes more would be too many for the queue. An empty
// one takes any message. wmu is held.
func (c *WebSocket) fullLocked(n int) bool {
	w := &c.writer
	most, held := c.set.maxBuffered, w.heldLocked()
	if most < 0 || w.out == nil && held == nil {
		return false
	}
	return w.buffered+n > most || w.out.waiting()+held.waiting() > most+most/headersShare+headersMore
}

// sendLocked sends what h describes, which is next in order. wmu is held.
func (c *WebSocket) sendLocked(h header, p []byte) error {
	w := &c.writer
	size := headerSize(len(p), h.masked) + len(p)
	small := len(p) <= smallMax
	if w.cork != nil && (small && w.cork.len()+size > c.corkMax() || !small && (h.masked || c.raw == nil)) {
		c.flushLocked()
	}
	switch {
	case w.mode == writeShut:
		return c.closedErr("send")
	case w.out != nil:
		if c.fullLocked(len(p)) {
			return ErrBufferFull
		}
		w.buffered += len(p)
		w.out.enqueue(h, p)
		c.noteQueuedLocked()
	case w.mode == writeCorked && small && size <= c.corkMax():
		if w.cork == nil {
			w.cork = newBlock()
			c.watchCorkLocked()
		}
		w.buffered += len(p)
		w.cork.b = appendData(w.cork.b, h, p)
	case small:
		w.buffered += len(p)
		op := newWrite()
		op.one = appendData(op.small[:0], h, p)
		c.writeNowLocked(op)
	case h.masked || c.raw == nil: // it must be copied anyway
		w.buffered += len(p)
		w.out = newOutbox()
		w.out.enqueue(h, p)
		c.writeQueuedLocked()
	default:
		w.buffered += len(p)
		c.writeLargeLocked(h, p)
	}
	if h.fin {
		w.messages++
	}
	return nil
}

// push flushes the cork and reports whether the kernel has everything.
func (c *WebSocket) push() (empty bool, err error) {
	if c.ReadyState() == Connecting {
		return false, ErrNotOpen
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.flushLocked()
	if c.writer.out == nil && c.writer.heldLocked() == nil {
		if c.writer.buffered > 0 { // dropped
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
	if c.writer.out == nil && c.writer.heldLocked() == nil {
		return nil
	}
	return c.roomWaitLocked(ctx)
}
