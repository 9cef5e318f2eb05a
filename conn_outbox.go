package peerws

import (
	"sync"

	"github.com/peerws/peerws/internal/mask"
)

// An outbox is what waits for the kernel: wire bytes in chunks, no header
// across two of them, and a lane of its own for control frames. It has no lock
// and no clock; WebSocket.wmu guards it.
type outbox struct {
	chunks []*buffer
	off    int // bytes of chunks[0] that are written
	size   int // bytes of chunks that are not

	// The frame the kernel has a part of: what is missing of its header and
	// payload. Both 0 at a frame boundary.
	headerLeft, payloadLeft int
	control                 bool

	lane    *buffer // control frames on their way, ahead of chunks
	laneOff int
	pings   *buffer // our ping frames, to go at the next boundary
	pong    []byte  // the newest ping's payload, to be answered there
	ponging bool
}

var outboxPool = sync.Pool{New: func() any { return new(outbox) }}

func newOutbox() *outbox { return outboxPool.Get().(*outbox) }

func (o *outbox) free() {
	if o == nil {
		return
	}
	for _, f := range o.chunks {
		f.free()
	}
	clear(o.chunks)
	o.lane.free()
	o.pings.free()
	*o = outbox{chunks: o.chunks[:0], pong: o.pong[:0]}
	outboxPool.Put(o)
}

// enqueue queues a message, or a part of one.
func (o *outbox) enqueue(h header, p []byte) { o.enqueueFrames(framesOf(h, p)) }

// enqueueFrames queues those of a message's frames that are not written yet.
func (o *outbox) enqueueFrames(f frames) {
	for f.more() {
		o.enqueueFrame(f.next())
	}
}

// enqueueFrame queues a frame.
func (o *outbox) enqueueFrame(h header, p []byte) {
	f := o.chunk(maxHeaderSize, maxHeaderSize+len(p))
	o.size -= len(f.b)
	f.b = appendHeader(f.b, h)
	o.size += len(f.b) + len(p)
	for at := 0; at < len(p); {
		f := o.chunk(1, len(p)-at)
		k := min(len(p)-at, cap(f.b)-len(f.b))
		f.b = append(f.b, p[at:at+k]...)
		if h.masked {
			mask.Bytes(f.b[len(f.b)-k:], h.key, int64(at))
		}
		at += k
	}
}

// push queues wire bytes as they are, split over chunks where they must be, but not
// within a header that they begin with.
func (o *outbox) push(p []byte) {
	o.size += len(p)
	for least := min(len(p), maxHeaderSize); len(p) > 0; least = 1 {
		f := o.chunk(least, len(p))
		k := min(len(p), cap(f.b)-len(f.b))
		f.b = append(f.b, p[:k]...)
		p = p[k:]
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

// join appends all that waits in p, which is given up. p holds whole frames
// only.
func (o *outbox) join(p *outbox) {
	o.chunks = append(o.chunks, p.chunks...)
	o.size += p.size
	p.chunks = p.chunks[:0]
	p.free()
}

// answer has the newest ping answered.
func (o *outbox) answer(payload []byte) {
	o.pong = append(o.pong[:0], payload...)
	o.ponging = true
}

// maxPings is how many bytes of our own pings may wait.
const maxPings = 512

// ping has a ping sent and reports whether there was room for it.
func (o *outbox) ping(payload []byte, client bool) bool {
	if o.pings.len() > maxPings-maxHeaderSize-len(payload) {
		return false
	}
	if o.pings == nil {
		o.pings = newBuffer(maxPings)
	}
	o.pings.b = appendFrame(o.pings.b, opPing, payload, client)
	return true
}

// urgent reports whether a control frame waits for the next frame boundary.
func (o *outbox) urgent() bool { return o.ponging || o.pings != nil }

// wire fills vec with what is to be written next and returns how many buffers
// that is, 0 if the outbox is empty.
func (o *outbox) wire(vec *vector, client bool) (n int) {
	clear(vec[:])
	if o.lane == nil && o.urgent() && o.headerLeft == 0 && o.payloadLeft == 0 {
		o.lane, o.pings = o.pings, nil
		if o.ponging {
			o.lane = o.lane.grow(o.lane.len() + maxHeaderSize + maxControlSize)
			o.lane.b = appendFrame(o.lane.b, opPong, o.pong, client)
			o.ponging = false
		}
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
			if o.urgent() { // only to the next boundary
				vec[0] = b[:min(len(b), o.headerLeft+o.payloadLeft)]
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

// waiting is how many bytes of data frames are to be written.
func (o *outbox) waiting() int {
	if o == nil {
		return 0
	}
	return o.size
}

// empty reports whether everything has been written.
func (o *outbox) empty() bool {
	return o.lane == nil && !o.urgent() && (len(o.chunks) == 0 || len(o.chunks) == 1 && o.off == o.chunks[0].len())
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
	o.size -= n
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

// advance accounts for n written bytes, those at the start of b, and returns
// how many of them were message payload. Where a header starts, b goes on to
// that header's end.
func (o *outbox) advance(b []byte, n int) (payload int) {
	for n > 0 {
		if o.headerLeft == 0 && o.payloadLeft == 0 {
			h, size, _ := parseHeader(b)
			o.headerLeft, o.payloadLeft, o.control = size, int(h.length), h.op.isControl()
		}
		k := min(n, o.headerLeft)
		o.headerLeft -= k
		n -= k
		b = b[min(k, len(b)):]
		k = min(n, o.payloadLeft)
		o.payloadLeft -= k
		n -= k
		b = b[min(k, len(b)):]
		if !o.control {
			payload += k
		}
	}
	return payload
}
