package peerws

import (
	"context"
	"io"
	"net"

	"github.com/peerws/peerws/internal/utf8check"
)

// A messageWriter writes one message in pieces.
type messageWriter struct {
	c    *WebSocket
	ctx  context.Context
	op   opcode // of the next frame
	text bool
	utf8 utf8check.Checker
	buf  *buffer // what is not enough for a frame yet; nil once closed
	err  error

	packing *packing // nil if the message is not compressed
}

// NextWriter begins a message whose size need not be known and returns a writer
// of it that needs no more memory for a large message than for a small one. Its
// Close ends the message. One such message can be under way at a time: NextWriter
// waits for the one before, and messages of Send and Write queue behind it. Its
// Writes wait for room like [WebSocket.Write]. All waits end with ctx; a message
// of which a Write has failed cannot be ended any more, and Close then ends the
// socket.
func (c *WebSocket) NextWriter(ctx context.Context, t MessageType) (io.WriteCloser, error) {
	op, err := checkOutgoing(Message{Type: t})
	if err != nil {
		return nil, err
	}
	if c.ReadyState() != Open {
		return nil, c.notOpenErr("write")
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for c.writer.streamed && c.writer.mode != writeShut {
		if err := c.roomWaitLocked(ctx); err != nil {
			return nil, err
		}
	}
	if c.writer.mode == writeShut {
		return nil, c.closedErr("write")
	}
	c.flushLocked()
	c.writer.streamed = true
	return &messageWriter{c: c, ctx: ctx, op: op, text: t == Text, buf: newBuffer(smallMax), packing: c.core.limits.deflate.newPacking()}, nil
}

// Write adds p to the message. Text that cannot be UTF-8 is refused, none of p
// is taken then.
func (m *messageWriter) Write(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	if m.buf == nil {
		return 0, net.ErrClosed
	}
	before := m.utf8
	if m.text && !m.utf8.Write(p) {
		m.utf8 = before
		return 0, errTextUTF8
	}
	n := m.take(p)
	if m.text && n < len(p) { // Close must know where the text really stops
		m.utf8 = before
		m.utf8.Write(p[:n])
	}
	return n, m.err
}

// take takes p, or as much of it as there is room for until m.err.
func (m *messageWriter) take(p []byte) int {
	n := len(p)
	if m.buf.len()+len(p) <= cap(m.buf.b) {
		m.buf.b = append(m.buf.b, p...)
		return n
	}
	if m.buf.len() > 0 {
		k := cap(m.buf.b) - m.buf.len()
		m.buf.b = append(m.buf.b, p[:k]...)
		p = p[k:]
		if m.err = m.frame(m.ctx, m.buf.b, false); m.err != nil {
			return k // in buf, where Close finds it
		}
		m.buf.b = m.buf.b[:0]
	}
	for len(p) > cap(m.buf.b) {
		k := min(len(p), fragment)
		if m.err = m.frame(m.ctx, p[:k], false); m.err != nil {
			return n - len(p)
		}
		p = p[k:]
	}
	m.buf.b = append(m.buf.b, p...)
	return n
}

// frame sends a piece of the message, waiting for room.
func (m *messageWriter) frame(ctx context.Context, p []byte, fin bool) error {
	c := m.c
	h, packed := m.pack(p, fin)
	if packed != nil {
		defer packed.free()
		p = packed.b
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for {
		err := c.sendLocked(h, p)
		if err == nil {
			m.op = opContinuation
			return nil
		}
		if err != ErrBufferFull {
			return err
		}
		if err := c.roomWaitLocked(ctx); err != nil {
			return err
		}
	}
}

// pack returns the header of the next frame and, if the message is compressed, its
// payload.
func (m *messageWriter) pack(p []byte, fin bool) (h header, packed *buffer) {
	h = header{fin: fin, op: m.op, masked: m.c.core.client}
	if m.packing == nil {
		return h, nil
	}
	if m.op != opContinuation {
		h.rsv = packedBit
	}
	return h, m.packing.pack(p, fin)
}

// Close ends the message. One that cannot be ended as it should, because a Write
// failed or text stops inside a character, ends the socket with 1011.
func (m *messageWriter) Close() error {
	if m.buf == nil {
		return m.err
	}
	c := m.c
	defer func() {
		m.buf.free()
		m.buf = nil
	}()
	if m.text && m.err == nil && !m.utf8.Complete() {
		m.err = errTextUTF8
	}
	if m.err != nil { // nobody shall take a part for the whole
		c.startClose(InitiatorLocal, m.err, StatusInternalError, "")
		return m.err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.writer
	if w.mode == writeShut {
		m.err = c.closedErr("write")
		return m.err
	}
	// The rest is small: it goes out of turn, whatever is queued.
	p := m.buf.b
	if m.op != opContinuation && m.packing != nil && len(p) < c.core.limits.deflate.threshold {
		m.packing = nil // it is all of it
	}
	h, packed := m.pack(p, true)
	if packed != nil {
		defer packed.free()
		p = packed.b
	}
	if w.out != nil {
		w.buffered += len(p)
		w.messages++
		w.out.enqueue(h, p)
	} else if err := c.sendLocked(h, p); err != nil {
		m.err = err
		return err
	}
	w.streamed = false
	if w.heldLocked() != nil {
		c.flushLocked() // while heldSize still tells what of buffered is not in the cork
	}
	if held := w.heldLocked(); held != nil {
		w.backlog.held, w.backlog.heldSize = nil, 0
		if w.out != nil {
			w.out.join(held)
		} else {
			w.out = held
			c.writeQueuedLocked()
		}
	}
	c.roomLocked()
	return nil
}
