package peerws

import (
	"bytes"
	"iter"
)

// A PreparedMessage is a message framed once, to be sent to many sockets. It
// never changes and may be sent from several goroutines at a time.
type PreparedMessage struct {
	m    Message // our own copy, the end of wire
	wire []byte  // the unmasked frame; nil for messages that leave in pieces
}

// NewPreparedMessage copies m. The error is that of a message that cannot be
// sent: no type, or text that is not UTF-8.
func NewPreparedMessage(m Message) (*PreparedMessage, error) {
	op, err := checkOutgoing(m)
	if err != nil {
		return nil, err
	}
	if frames, _ := cut(len(m.Data)); frames > 1 {
		return &PreparedMessage{m: Message{m.Type, bytes.Clone(m.Data)}}, nil
	}
	p := &PreparedMessage{wire: make([]byte, 0, headerSize(len(m.Data), false)+len(m.Data))}
	p.wire = appendFrame(p.wire, op, m.Data, false)
	p.m = Message{m.Type, p.wire[len(p.wire)-len(m.Data):]}
	return p, nil
}

// SendPrepared sends p, like [WebSocket.Send] does its message. An accepted
// socket writes it from where it lies; a dialled one has to mask it each time.
func (c *WebSocket) SendPrepared(p *PreparedMessage) error {
	if c.core.client || c.raw == nil || p.wire == nil || c.ReadyState() != Open {
		return c.transmit(noWait, p.m)
	}
	c.wmu.Lock()
	if w := &c.wr; w.shut || w.streamed || w.out != nil || w.corking {
		c.wmu.Unlock()
		return c.transmit(noWait, p.m)
	}
	c.writeWire(p.wire, len(p.m.Data))
	c.wmu.Unlock()
	return nil
}

// writeWire writes a whole frame with n bytes of payload from where it lies. wmu
// is held, cork and queue are empty; raw path.
func (c *WebSocket) writeWire(wire []byte, n int) {
	c.wr.buffered += n
	op := newWrite()
	op.one = wire
	c.writeNow(op)
}

// Broadcast sends m to each of the sockets and returns how many took it. It
// never waits: a socket whose queue is full, or that is closed, is passed over
// and costs the others nothing. A message that cannot be sent is taken by none.
func Broadcast(to iter.Seq[*WebSocket], m Message) int { return BroadcastFunc(to, m, nil) }

// BroadcastFunc is [Broadcast] that calls missed for each socket that did not take
// m, with the error that Send would have returned: ErrBufferFull where the queue is
// full, one that wraps net.ErrClosed where the socket is not open any more. missed
// runs on the caller's goroutine while to is gone through, and may close that
// socket. It may be nil.
func BroadcastFunc(to iter.Seq[*WebSocket], m Message, missed func(*WebSocket, error)) int {
	p, wrong := NewPreparedMessage(m)
	if wrong != nil && missed == nil {
		return 0
	}
	took := 0
	for c := range to {
		err := wrong
		if err == nil {
			err = c.SendPrepared(p)
		}
		switch {
		case err == nil:
			took++
		case missed != nil:
			missed(c, err)
		}
	}
	return took
}
