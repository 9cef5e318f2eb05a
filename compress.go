package peerws

import (
	"bytes"
	"io"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"

	"github.com/klauspost/compress/flate"
)

// permessage-deflate (RFC 7692): what two ends have agreed on, and the compressors and
// decompressors, which belong to nobody: they are borrowed for one message. What
// context takeover needs between messages is bytes, not a compressor.

// A CompressionMode says whether messages may be compressed, and what is kept between
// them.
type CompressionMode uint8

const (
	// CompressionOff: nothing is offered or accepted.
	CompressionOff CompressionMode = iota

	// CompressionNoContext: each message is compressed by itself. Nothing is kept
	// between two messages, an idle connection costs what it costs without.
	CompressionNoContext

	// CompressionContext: a message may refer to those before it, which makes short
	// ones that are like each other much smaller. Each connection keeps up to 8 KiB of
	// what it sent and a window of what it received, 32 KiB or less by WindowBits; and
	// a message that is compressed costs about three times the processor time.
	CompressionContext
)

// Compression is permessage-deflate (RFC 7692). The zero value is off. Messages are
// compressed only if the peer supports it too.
//
// Do not compress secrets beside text that an attacker can choose: the size tells what
// they have in common. Message.Plain leaves a message as it is.
type Compression struct {
	Mode CompressionMode

	// Level is 1, the fastest, to 9, the smallest; 0: 1. A NextWriter's messages, and
	// those that refer to earlier ones, are always compressed fast.
	Level int

	// Threshold is the size in bytes from which on messages are compressed; 0: 512;
	// negative: all. A message that would not become smaller is sent as it is.
	Threshold int

	// WindowBits bounds how far back messages refer, 8 to 15, as the logarithm of the
	// bytes; 0: 15. With CompressionContext it bounds the memory for received messages,
	// if the peer can do that. A peer may ask for less, and gets it.
	WindowBits int
}

const defaultThreshold = 512

// A compression is a Compression that has been checked, its defaults filled in.
type compression struct {
	mode       CompressionMode
	level      int
	threshold  int
	windowBits uint8

	limits coreLimits // of connections without compression

	// shared are the limits of connections without context takeover, which need
	// nothing of their own, by what was agreed on: some hundred at most.
	mu     sync.Mutex
	shared map[deflateParams]*coreLimits
}

// prepare checks c. limits are those of connections without compression.
func (c Compression) prepare(limits coreLimits) (*compression, error) {
	wrong := func(what string, value int, reason string) (*compression, error) {
		return nil, &SyntaxError{"compression " + what, strconv.Itoa(value), reason}
	}
	switch {
	case c.Mode > CompressionContext:
		return wrong("mode", int(c.Mode), "must be one of the constants")
	case c.Level < 0 || c.Level > flate.BestCompression:
		return wrong("level", c.Level, "must be 1 to 9, or 0 for the default")
	case c.WindowBits != 0 && (c.WindowBits < minWindowBits || c.WindowBits > maxWindowBits):
		return wrong("window bits", c.WindowBits, "must be 8 to 15, or 0 for the default")
	case c.Mode == CompressionOff:
		return nil, nil
	}
	set := &compression{
		mode:       c.Mode,
		level:      orDefault(c.Level, flate.BestSpeed),
		threshold:  orDefault(c.Threshold, defaultThreshold),
		windowBits: uint8(orDefault(c.WindowBits, maxWindowBits)),
		limits:     limits,
		shared:     make(map[deflateParams]*coreLimits),
	}
	return set, nil
}

// agreed returns the limits of a connection for which p was agreed on.
func (set *compression) agreed(p deflateParams, client bool) *coreLimits {
	out, in := orDefault(p.serverBits, maxWindowBits), orDefault(p.clientBits, maxWindowBits)
	outAlone, inAlone := p.serverNoContext, p.clientNoContext
	if client {
		out, in, outAlone, inAlone = in, out, inAlone, outAlone
	}
	outAlone = outAlone || set.mode != CompressionContext || out < maxWindowBits // what we may do need not be done
	p.clientAny = false
	set.mu.Lock()
	defer set.mu.Unlock()
	if limits := set.shared[p]; limits != nil {
		return limits
	}
	limits := set.limits
	limits.deflate = &deflate{extension: string(p.append(nil)), level: set.level, threshold: set.threshold, outBits: out}
	if !outAlone {
		limits.deflate.sent = &history{size: maxDictionary}
	}
	if !inAlone {
		limits.deflate.received = &history{size: 1 << in}
	}
	if outAlone && inAlone {
		set.shared[p] = &limits
	}
	return &limits
}

// A deflate is how one connection, or all that have agreed on the same, compresses and
// decompresses.
type deflate struct {
	extension string // as it was agreed on
	level     int
	threshold int
	outBits   uint8 // of the window of what we send

	sent     *history // what we may refer to; nil without context takeover. Guarded by wmu
	received *history // what the peer may refer to; likewise. Part of the read side
}

// wants reports whether a message is to be compressed.
func (d *deflate) wants(m Message) bool { return d != nil && len(m.Data) >= d.threshold && !m.Plain }

// A history is the end of what went one way.
type history struct {
	b    []byte
	size int
}

// maxDictionary is how much of a history the compressor looks at.
const maxDictionary = 8 << 10

// add adds a message.
func (h *history) add(p []byte) {
	if h == nil {
		return
	}
	if len(p) >= h.size {
		h.b = append(h.b[:0], p[len(p)-h.size:]...)
		return
	}
	if over := len(h.b) + len(p) - h.size; over > 0 {
		h.b = h.b[:copy(h.b, h.b[over:])]
	}
	h.b = append(h.b, p...)
}

func (h *history) bytes() []byte {
	if h == nil {
		return nil
	}
	return h.b
}

// flushed is what a flush ends with. It is not sent (§7.2.1).
const flushed = "\x00\x00\xff\xff"

// compress returns p compressed, in a buffer of the caller's, or nil if that would not
// be smaller. It refers to nothing before p.
func (d *deflate) compress(p []byte) *buffer {
	slot := compressorSlot()
	defer slot.Unlock()
	pool := &compressorPools[d.level]
	if d.outBits < maxWindowBits {
		pool = &windowPools[d.outBits]
	}
	z, _ := pool.Get().(*compressor)
	if z == nil {
		z = newCompressor(d.level, d.outBits)
	}
	z.out.b, z.out.full = newBuffer(len(p)), false
	z.w.Reset(&z.out)
	z.w.Write(p) // no error but of out, which has none
	z.w.Flush()
	b, full := z.out.b, z.out.full
	z.out.b = nil
	pool.Put(z)
	return trimFlush(b, full, len(p))
}

// compressAfter is compress that refers to what history has.
func compressAfter(p, history []byte) *buffer {
	slot := compressorSlot()
	defer slot.Unlock()
	out := sink{b: newBuffer(len(p))}
	flate.StatelessDeflate(&out, p, false, history) // no error but of out, which has none
	return trimFlush(out.b, out.full, len(p))
}

// compressPiece appends a piece of a message to out, with a flush behind it.
func compressPiece(out *sink, p, history []byte) {
	slot := compressorSlot()
	defer slot.Unlock()
	flate.StatelessDeflate(out, p, false, history)
}

// trimFlush takes the end of a flush off b, and is nil if that is not smaller than a
// message of size bytes.
func trimFlush(b *buffer, full bool, size int) *buffer {
	if n := b.len() - len(flushed); !full && n < size {
		b.b = b.b[:n]
		return b
	}
	b.free()
	return nil
}

// A compressor is a flate.Writer and where it writes to.
type compressor struct {
	w   *flate.Writer
	out sink
}

func newCompressor(level int, bits uint8) *compressor {
	z := new(compressor)
	var err error
	if bits < maxWindowBits {
		z.w, err = flate.NewWriterWindow(&z.out, 1<<bits)
	} else {
		z.w, err = flate.NewWriter(&z.out, level)
	}
	if err != nil {
		panic("peerws: " + err.Error()) // of arguments that prepare has checked
	}
	return z
}

// A sink takes what fits into its buffer and lets the rest go.
type sink struct {
	b    *buffer
	full bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.full = s.full || len(p) > cap(s.b.b)-s.b.len(); !s.full {
		s.b.b = append(s.b.b, p...)
	}
	return len(p), nil
}

// Compressors have half a megabyte and more. As many as there are processors are in use
// at most, and those that are not are the garbage collector's.
var (
	compressorPools [flate.BestCompression + 1]sync.Pool // by level
	windowPools     [maxWindowBits]sync.Pool             // by the bits of the window

	compressorSlots [maxCompressors]struct {
		sync.Mutex
		_ [64 - 8]byte // a cache line of its own
	}
	compressors = min(runtime.GOMAXPROCS(0), maxCompressors)
)

const maxCompressors = 64

// compressorSlot waits until the caller may use a compressor, and returns what it is to
// unlock then.
func compressorSlot() *sync.Mutex {
	first := rand.IntN(compressors)
	for i := range compressors {
		if m := &compressorSlots[(first+i)%compressors].Mutex; m.TryLock() {
			return m
		}
	}
	m := &compressorSlots[first].Mutex
	m.Lock()
	return m
}

// Violations found while decompressing. Their texts go to the peer.
var errCorrupt = &ProtocolError{StatusInvalidPayload, "compressed message is corrupt"}

// A decompressor is a flate reader and what it reads.
type decompressor struct {
	r    io.ReadCloser // a flate.Resetter too
	src  source
	all  bytes.Reader // instead of src, of a short message: flate has a faster way for that
	over [1]byte      // what would be too much
}

var decompressorPool = sync.Pool{New: func() any {
	z := new(decompressor)
	z.r = flate.NewReader(&z.src)
	return z
}}

// reset has z begin a message in src that may refer to history.
func (z *decompressor) reset(history []byte) { z.resetTo(&z.src, history) }

func (z *decompressor) resetTo(r io.Reader, history []byte) {
	z.r.(flate.Resetter).Reset(r, history) // its error is always nil
}

// free gives z back. It must not have failed.
func (z *decompressor) free() {
	z.src = source{}
	z.all.Reset(nil)
	decompressorPool.Put(z)
}

// endOfMessage is what is put behind a message: the end of its last flush, which was
// not sent (§7.2.2), and an empty final block.
const endOfMessage = flushed + "\x01\x00\x00\xff\xff"

// A source gives a decompressor the pieces of a message and endOfMessage behind them.
type source struct {
	piece []byte
	tail  string
	more  func() ([]byte, error) // the next piece, nil at the end; itself nil if there is only one
	err   error                  // of more
}

func (s *source) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.need(); err != nil {
		return 0, err
	}
	if len(s.piece) > 0 {
		n := copy(p, s.piece)
		s.piece = s.piece[n:]
		return n, nil
	}
	n := copy(p, s.tail)
	s.tail = s.tail[n:]
	return n, nil
}

func (s *source) ReadByte() (b byte, err error) {
	if len(s.piece) == 0 {
		if err := s.need(); err != nil {
			return 0, err
		}
	}
	if len(s.piece) > 0 {
		b, s.piece = s.piece[0], s.piece[1:]
		return b, nil
	}
	b, s.tail = s.tail[0], s.tail[1:]
	return b, nil
}

// need gets the next piece where there is none.
func (s *source) need() error {
	for len(s.piece) == 0 && s.more != nil {
		piece, err := s.more()
		if err != nil {
			s.err = err
			return err
		}
		if piece == nil {
			s.more = nil
		}
		s.piece = piece
	}
	if len(s.piece) == 0 && len(s.tail) == 0 {
		return io.EOF
	}
	return nil
}

// firstInflated is how much larger than a compressed message the memory for it is at
// first.
const firstInflated = 4

// A message may have maxFinals final blocks, and one more for every finalShare bytes:
// to begin anew behind one costs a whole window.
const maxFinals, finalShare = 16, 64

// decompress returns the message that src is, in a buffer of the caller's. most is
// MaxMessageSize. An error is a *ProtocolError or *LimitError.
func (d *deflate) decompress(src []byte, most int64) (*buffer, error) {
	if most < 0 {
		most = maxInt
	}
	z := decompressorPool.Get().(*decompressor)
	var in io.Reader = &z.src
	if len(src) <= blockSize-len(endOfMessage) {
		whole := newBuffer(len(src) + len(endOfMessage))
		defer whole.free()
		whole.b = append(append(whole.b, src...), endOfMessage...)
		z.all.Reset(whole.b)
		in = &z.all
	} else {
		z.src = source{piece: src, tail: endOfMessage}
	}
	z.resetTo(in, d.received.bytes())
	out := newBuffer(int(min(most, max(int64(len(src))*firstInflated, 1<<minClass))))
	for finals := 0; ; {
		b := out.b[len(out.b):cap(out.b)]
		if room := most - int64(len(out.b)); int64(len(b)) > room {
			b = b[:room]
		}
		full := len(b) == 0 && int64(len(out.b)) == most
		if full {
			b = z.over[:]
		} else if len(b) == 0 {
			out = out.grow(int(min(2*int64(cap(out.b)), most)))
			continue
		}
		n, err := z.r.Read(b)
		if n > 0 && full {
			out.free()
			return nil, &LimitError{Option: "MaxMessageSize", Limit: most, Code: StatusMessageTooBig}
		}
		out.extend(n)
		switch {
		case err == io.EOF && z.left() && finals < maxFinals+len(src)/finalShare: // and there is more behind it (§7.2.3.5)
			finals++
			z.resetTo(in, z.window(d, out.b))
		case err == io.EOF && !z.left():
			z.free()
			d.received.add(out.b)
			return out, nil
		case err != nil:
			out.free() // z may be in any state
			return nil, errCorrupt
		}
	}
}

// left reports whether bytes of the message that decompress has are left.
func (z *decompressor) left() bool {
	return len(z.src.piece) > 0 || z.all.Len() > len(endOfMessage)
}

// window is what blocks behind out may refer to.
func (z *decompressor) window(d *deflate, out []byte) []byte {
	const most = 1 << maxWindowBits
	if len(out) >= most || d.received == nil {
		return out[max(len(out)-most, 0):]
	}
	return append(append([]byte(nil), d.received.b...), out...)
}
