package peerws

import (
	"bytes"
	"iter"
	"sync"
)

// A PreparedMessage is a message framed once, to be sent to many sockets. It
// never changes and may be sent from several goroutines at a time.
type PreparedMessage struct {
	m    Message // our own copy, the end of wire
	wire []byte  // the unmasked frame; nil for messages that leave in pieces

	mu     sync.Mutex
	packed map[packedAs]*PreparedMessage // made when it is needed; nil values: compressing does not make it smaller
}

// packedAs is what a message compressed depends on.
type packedAs struct {
	level int
	bits  uint8
}

// packedFor returns p as d compresses it, without reference to other messages: its m
// has the compressed bytes. It is nil if that is not smaller.
func (p *PreparedMessage) packedFor(d *deflate) *PreparedMessage {
	as := packedAs{d.level, d.outBits}
	p.mu.Lock()
	defer p.mu.Unlock()
	packed, known := p.packed[as]
	if known {
		return packed
	}
	if b := d.compress(p.m.Data); b != nil {
		op := opcode(p.m.Type)
		packed = prepare(header{fin: true, rsv: packedBit, op: op}, Message{Type: p.m.Type, Data: b.b})
		b.free()
	}
	if p.packed == nil {
		p.packed = make(map[packedAs]*PreparedMessage)
	}
	p.packed[as] = packed
	return packed
}

// prepare makes the copy that h describes.
func prepare(h header, m Message) *PreparedMessage {
	if f := framesOf(h, m.Data); f.of > 1 {
		m.Data = bytes.Clone(m.Data)
		return &PreparedMessage{m: m}
	}
	p := &PreparedMessage{wire: make([]byte, 0, headerSize(len(m.Data), false)+len(m.Data))}
	p.wire = appendData(p.wire, h, m.Data)
	m.Data = p.wire[len(p.wire)-len(m.Data):]
	p.m = m
	return p
}

// NewPreparedMessage copies m. The error is that of a message that cannot be
// sent: no type, or text that is not UTF-8.
func NewPreparedMessage(m Message) (*PreparedMessage, error) {
	op, err := checkOutgoing(m)
	if err != nil {
		return nil, err
	}
	return prepare(header{fin: true, op: op}, m), nil
}

// SendPrepared sends p, like [WebSocket.Send] does its message. An accepted
// socket writes it from where it lies; a dialled one has to mask it each time.
//
// It is compressed once for all sockets that have agreed on the same.
func (c *WebSocket) SendPrepared(p *PreparedMessage) error {
	if c.ReadyState() == Open {
		if d := c.core.limits.deflate; d.wants(p.m) {
			return c.sendPacked(p, d)
		}
	}
	if c.core.client || c.raw == nil || p.wire == nil || c.ReadyState() != Open {
		return c.transmit(noWait, p.m)
	}
	c.wmu.Lock()
	if w := &c.writer; w.mode != writeDirect || w.streamed || w.out != nil {
		c.wmu.Unlock()
		return c.transmit(noWait, p.m)
	}
	c.writeWireLocked(p.wire, len(p.m.Data))
	c.wmu.Unlock()
	return nil
}

// sendPacked is SendPrepared on a socket with compression.
func (c *WebSocket) sendPacked(p *PreparedMessage, d *deflate) error {
	packed := p.packedFor(d)
	c.wmu.Lock()
	defer c.wmu.Unlock()
	w := &c.writer
	if packed == nil || d.sent != nil && w.streamed { // it would come behind what is not sent yet
		return c.placeLocked(noWait, c.data(opcode(p.m.Type)), p.m.Data)
	}
	h := c.data(opcode(p.m.Type))
	h.rsv = packedBit
	var err error
	if direct := w.mode == writeDirect && !w.streamed && w.out == nil; direct && !c.core.client && c.raw != nil && packed.wire != nil {
		c.writeWireLocked(packed.wire, len(packed.m.Data))
	} else {
		err = c.placeLocked(noWait, h, packed.m.Data)
	}
	if err == nil {
		d.sent.add(p.m.Data) // the peer remembers it too
	}
	return err
}

// writeWireLocked writes a whole frame with n bytes of payload from where it lies. wmu
// is held, cork and queue are empty; raw path.
func (c *WebSocket) writeWireLocked(wire []byte, n int) {
	c.writer.buffered += n
	c.writer.messages++
	op := newWrite()
	op.one = wire
	c.writeNowLocked(op)
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
