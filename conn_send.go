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
	return c.Send(Message{Text, unsafe.Slice(unsafe.StringData(s), len(s))}) // only read
}

// SendBinary sends p as a binary message, like Send.
func (c *WebSocket) SendBinary(p []byte) error { return c.Send(Message{Binary, p}) }

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
	return c.wr.buffered
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
	if c.corkLocked(op, m.Data) {
		c.wmu.Unlock()
		return nil
	}
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
	if c.full(len(p)) {
		return ErrBufferFull
	}
	w := c.wr.moreLocked()
	if w.held == nil {
		w.held = newOutbox()
	}
	c.wr.buffered += len(p)
	w.heldSize += len(p)
	w.held.enqueue(c.data(op), p)
	return nil
}

// full reports whether n bytes more would be too many for the queue. An empty
// one takes any message. wmu is held.
func (c *WebSocket) full(n int) bool {
	w := &c.wr
	most := c.set.maxBuffered
	return most >= 0 && (w.out != nil || w.held() != nil) && w.buffered+n > most
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
		op := newWrite()
		op.one = appendData(op.small[:0], h, p)
		c.writeNow(op)
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

// push flushes the cork and reports whether the kernel has everything.
func (c *WebSocket) push() (empty bool, err error) {
	if c.ReadyState() == Connecting {
		return false, ErrNotOpen
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.flushLocked()
	if c.wr.out == nil && c.wr.held() == nil {
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
	if c.wr.out == nil && c.wr.held() == nil {
		return nil
	}
	return c.roomWaitLocked(ctx)
}

// roomWaitLocked waits for roomLocked, or for ctx's end. wmu is held, but not
// while it waits.
func (c *WebSocket) roomWaitLocked(ctx context.Context) error {
	w := c.wr.moreLocked()
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
	if w := c.wr.more; w != nil && w.room != nil {
		close(w.room)
		w.room = nil
	}
}
