package peerws

import (
	"math/bits"
	"math/rand/v2"
	"sync"
)

// Memory that passes through the library is borrowed from pools of
// power-of-two sizes and given back as soon as it is empty, so that an idle
// connection holds none.

const (
	minClass  = 6        // 64 B
	maxClass  = 20       // 1 MiB; larger buffers are left to the garbage collector
	blockSize = 64 << 10 // what a readable connection borrows, and what a cork holds
	blockLog  = 16       // log2 of blockSize
)

var bufferPools [maxClass + 1]sync.Pool // of *buffer, indexed by log2 of the capacity

// A buffer is pooled memory: b[:len(b)] is in use.
type buffer struct{ b []byte }

// newBuffer returns an empty buffer that can hold at least n bytes.
func newBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if class > maxClass {
		return &buffer{make([]byte, 0, n)}
	}
	if x := bufferPools[class].Get(); x != nil {
		return x.(*buffer)
	}
	return &buffer{make([]byte, 0, 1<<class)}
}

// newBlock returns an empty buffer of blockSize.
func newBlock() *buffer { return newBuffer(blockSize) }

// free gives the buffer back. Nobody may hold a window into it any more.
func (f *buffer) free() {
	if f == nil {
		return
	}
	c := cap(f.b)
	class := bits.Len(uint(c)) - 1
	if poison {
		poisonBytes(f.b[:c])
	}
	if class < minClass || class > maxClass || c != 1<<class {
		return
	}
	f.b = f.b[:0]
	bufferPools[class].Put(f)
}

func (f *buffer) len() int {
	if f == nil {
		return 0
	}
	return len(f.b)
}

func (f *buffer) bytes() []byte {
	if f == nil {
		return nil
	}
	return f.b
}

// extend takes n bytes behind the used part into use.
func (f *buffer) extend(n int) { f.b = f.b[:len(f.b)+n] }

// grow returns f, or a buffer with f's bytes in its place, with room for n in all.
func (f *buffer) grow(n int) *buffer {
	if f != nil && cap(f.b) >= n {
		return f
	}
	g := newBuffer(n)
	if f != nil {
		g.b = append(g.b, f.b...)
		f.free()
	}
	return g
}

// enlarge gives f itself room for n in all.
func (f *buffer) enlarge(n int) {
	g := newBuffer(n)
	g.b = append(g.b, f.b...)
	f.b, g.b = g.b, f.b
	g.free()
}

var partialPool = sync.Pool{New: func() any { return new(partial) }}

func newPartial() *partial { return partialPool.Get().(*partial) }

func (p *partial) free() {
	if p.buf != &p.exact {
		p.buf.free()
	}
	*p = partial{}
	partialPool.Put(p)
}

// append adds arrived payload bytes. The buffer at least doubles when it has to
// grow, so that all copying together is linear, but never beyond what the
// message is known to need still, nor beyond four times what has arrived.
func (p *partial) append(b []byte) {
	have := p.buf.len()
	need := have + len(b)
	if p.buf == nil || cap(p.buf.b) < need {
		p.buf = p.buf.grow(max(need, min(2*need, have+p.coming())))
	}
	p.buf.b = append(p.buf.b, b...)
}

// missing is the rest of the current frame, clipped to what an int holds.
func (p *partial) missing() int { return int(min(p.left, maxInt/4)) }

// coming is how much more the buffer may grow for: the rest of the last frame. If
// it is not the last, as much again as has arrived, or a message of many frames
// would be copied for each of them.
func (p *partial) coming() int {
	if p.fin {
		return p.missing()
	}
	return max(p.missing(), p.buf.len())
}

// spaceMin is the least room that space offers.
const spaceMin = 4 << 10

// space returns room behind the arrived bytes for at most the rest of the
// frame, growing the buffer up to four times what has arrived. If that is enough
// for the whole message and own is set, the new buffer is the program's.
func (p *partial) space(own bool) []byte {
	have := p.buf.len()
	left := p.missing()
	if p.buf == nil || cap(p.buf.b)-have < min(left, spaceMin) {
		size := have + min(p.coming(), max(3*have, spaceMin))
		if own && p.fin && size == have+left {
			p.exact.b = append(make([]byte, 0, size), p.buf.bytes()...)
			p.buf.free()
			p.buf = &p.exact
		} else {
			p.buf = p.buf.grow(size)
		}
	}
	free := p.buf.b[have:cap(p.buf.b)]
	return free[:min(left, len(free))]
}

// newMaskKey returns a masking key that the peer's scripts cannot predict
// (§5.3, §10.3): the generator behind math/rand/v2's functions is ChaCha8,
// seeded by the operating system, and has no lock.
func newMaskKey() (k [4]byte) {
	r := rand.Uint32()
	return [4]byte{byte(r), byte(r >> 8), byte(r >> 16), byte(r >> 24)}
}

// poisonBytes overwrites memory whose loan has ended. It copies, because the race
// detector is called for every single store, but once for a copy.
func poisonBytes(b []byte) {
	for n := copy(b, "\xDB"); n < len(b); {
		n += copy(b[n:], b[:n])
	}
}
