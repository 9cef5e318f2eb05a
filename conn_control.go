package peerws

// Control frames of the write side: at once, in the cork, or in a lane of their
// own ahead of what is queued. Only Close goes behind it.

// pong answers a ping: at once or in the cork, or ahead of what is queued.
// There only the newest ping is answered (RFC 6455 §5.5.3).
func (c *WebSocket) pong(p []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.writer
	if w.cork != nil && w.cork.len()+maxHeaderSize+len(p) > blockSize {
		c.flushLocked()
	}
	if w.cork != nil && w.out == nil && w.mode != writeShut {
		w.cork.b = appendFrame(w.cork.b, opPong, p, c.core.client)
		return
	}
	c.pongLocked(p)
}

// pongNow is pong past the cork, which a callback that takes its time may hold.
func (c *WebSocket) pongNow(p []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.flushLocked()
	c.pongLocked(p)
}

// pongLocked answers a ping at once, or ahead of what is queued. wmu is held.
func (c *WebSocket) pongLocked(p []byte) {
	w := &c.writer
	switch {
	case w.mode == writeShut:
	case w.out != nil:
		w.out.answer(p)
	case c.raw != nil:
		c.writeControlLocked(opPong, p)
	default:
		f := newBuffer(maxHeaderSize + len(p))
		f.b = appendFrame(f.b, opPong, p, c.core.client)
		w.out = newOutbox()
		w.out.lane = f // not among the messages, where a newer pong would overtake it
		c.startWriterLocked()
	}
}

// pingIfIdle sends an empty ping if nothing is queued, and reports whether it did.
func (c *WebSocket) pingIfIdle() bool {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.writer.out != nil {
		return false
	}
	ok, err := c.pingLocked(nil)
	return ok && err == nil
}

// ping sends a ping, ahead of what is queued, and reports whether there was
// room for it.
func (c *WebSocket) ping(payload []byte) (bool, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.pingLocked(payload)
}

func (c *WebSocket) pingLocked(payload []byte) (bool, error) {
	w := &c.writer
	c.flushLocked()
	switch {
	case w.mode == writeShut:
		return false, c.closedErr("ping")
	case w.out != nil:
		return w.out.ping(payload, c.core.client), nil
	}
	c.writeControlLocked(opPing, payload)
	return true, nil
}

// writeControlLocked writes a control frame at once. wmu is held, the queue is empty.
func (c *WebSocket) writeControlLocked(op opcode, p []byte) {
	w := newWrite()
	w.one = appendFrame(w.small[:0], op, p, c.core.client)
	c.writeNowLocked(w)
}

// sendClose sends a Close frame behind everything that was sent before; a
// message of a NextWriter that is not complete stays so. Only the first call
// does.
func (c *WebSocket) sendClose(code StatusCode, reason string) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.writer
	if w.mode == writeShut {
		return
	}
	c.flushLocked()
	if w.mode == writeShut { // the flush failed
		return
	}
	w.mode = writeShut
	op := newWrite()
	op.one = appendClose(op.small[:0], code, reason, c.core.client)
	if w.out != nil {
		w.out.push(op.one)
		op.free()
		if c.set.writeTimeout == 0 { // nothing else watches over the queue
			c.mu.Lock()
			c.closeByLocked()
			c.mu.Unlock()
		}
		return
	}
	c.writeNowLocked(op)
	if w.out == nil {
		c.closeSentLocked()
	}
}
