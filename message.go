package peerws

import (
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/peerws/peerws/internal/mask"
	"github.com/peerws/peerws/internal/utf8check"
)

// This file is the protocol core: bytes in, events out, for both roles. It
// knows no socket, clock, lock or goroutine, so it is tested with bytes alone.
//
// The reader's side is a core: it takes a block of received bytes, finds the
// frames in it and hands out messages as windows into that very block. Only a
// message that did not arrive in one piece is copied, once, into a buffer of
// its own. The writer's side is the append functions at the end.

// MessageType tells text from binary. Its zero value is not a type: sending such a
// message is an error.
type MessageType uint8

const (
	Text   MessageType = 1 // UTF-8, checked in both directions (RFC 6455 §8.1)
	Binary MessageType = 2
)

func (t MessageType) String() string {
	switch t {
	case Text:
		return "text"
	case Binary:
		return "binary"
	}
	return "MessageType(" + strconv.Itoa(int(t)) + ")"
}

// A Message is one WebSocket message. Who owns Data is said where a Message is
// passed: in OnMessage it is loaned, from Read it is the caller's, and Send
// never keeps it.
type Message struct {
	Type MessageType
	Data []byte

	// Plain has a message sent without compression: for secrets beside text that
	// somebody else can choose, whose size would tell something of them, and for what
	// is compressed already. Received messages never have it set.
	Plain bool
}

// Violations found by the core. Their texts go to the peer.
var (
	errMasked       = &ProtocolError{StatusProtocolError, "frame from the listening side is masked"}
	errUnmasked     = &ProtocolError{StatusProtocolError, "frame from the dialling side is not masked"}
	errRSV          = &ProtocolError{StatusProtocolError, "reserved bit set without an extension"}
	errContinuation = &ProtocolError{StatusProtocolError, "continuation frame without a message"}
	errInterleaved  = &ProtocolError{StatusProtocolError, "new message inside a fragmented one"}
	errUTF8         = &ProtocolError{StatusInvalidPayload, "text is not UTF-8"}
	errCloseLength  = &ProtocolError{StatusProtocolError, "close frame of one byte"}
	errCloseCode    = &ProtocolError{StatusProtocolError, "close code that must not be sent"}
	errCloseUTF8    = &ProtocolError{StatusInvalidPayload, "close reason is not UTF-8"}
)

// Limits that the core enforces. Negative means none.
type coreLimits struct {
	maxMessage   int64 // bytes over all fragments: 1009
	maxFragments int   // frames of one message, with one more for every fragmentShare bytes: 1008

	deflate *deflate // permessage-deflate as it was agreed on, nil if it was not
}

// fragmentShare is the number of payload bytes that allow a message one frame
// more than MaxFragments. So the limit meets empty and tiny fragments only: a
// peer whose fragments have this size or more never comes to it.
const fragmentShare = 512

// An eventKind tells what a core found.
type eventKind uint8

const (
	evNone      eventKind = iota // nothing complete: more bytes are needed
	evMessage                    // op opText or opBinary, data the message
	evChunk                      // op likewise, data a piece of the message
	evLastChunk                  // op likewise, data the last piece of the message, perhaps empty
	evPing                       // data the payload to echo
	evPong                       // data the payload
	evClose                      // code (StatusNoStatusReceived if absent), data the reason
	evFail                       // fail the connection with the code of core.fault; the core is spent
)

// An event is what next found. data is loaned: it lies in the block given to
// next, or in the core until release. (It has four words: more, and Go would not
// keep it in registers.)
type event struct {
	kind eventKind
	op   opcode
	code StatusCode
	data []byte
}

// A core is the receiving half of one endpoint. It is owned by whoever reads
// the connection. Between messages it holds no memory but itself.
type core struct {
	limits *coreLimits
	part   *partial // the message that is arriving in pieces, or nil
	client bool     // we dialled: the peer's frames must not be masked
	want   want     // how the next message is to be handed out
}

// A want is how a core hands out a message.
type want uint8

const (
	wantLoan   want = iota // whole, loaned until release
	wantOwn                // whole, to be the program's: claim will be called
	wantPieces             // in pieces, as they come
)

// A partial is a message that has begun and is not complete: its earlier
// frames, or the arrived part of its current one.
type partial struct {
	op     opcode  // of the first frame
	frames int     // so far, the current one included
	stream bool    // handed out as it comes: buf stays nil
	packed bool    // compressed, and what has arrived is not decompressed yet
	total  int64   // payload length of all frames so far
	buf    *buffer // the payload that has arrived, unmasked
	exact  buffer  // what buf points to if it has just the message's size and is not from a pool
	utf8   utf8check.Checker
	fault  error // *ProtocolError or *LimitError, with evFail

	// The current frame. Between two frames left is 0 and fin false.
	fin    bool
	masked bool
	key    [4]byte
	size   int64 // payload length of the frame
	left   int64 // bytes of it that have not arrived
}

// atHeader reports whether the next byte begins a frame.
func (c *core) atHeader() bool { return c.part == nil || c.part.left == 0 }

// assembling reports whether a message that is wanted whole has begun, and
// streaming whether one that is wanted in pieces has.
func (c *core) assembling() bool { return c.part != nil && !c.part.stream }
func (c *core) streaming() bool  { return c.part != nil && c.part.stream }

// next looks at one frame, or the rest of one, at the start of b and returns the
// event it completes with the number of bytes it used, which the caller must not
// show again. evNone with n > 0 was a piece of a message: go on behind it. evNone
// with n = 0 means that b is no more than the beginning of a header or control
// frame: at most 14 + 125 bytes, to be shown again with more behind it.
//
// next unmasks in place, so b is changed.
func (c *core) next(b []byte) (ev event, n int) {
	// Nearly every frame is a valid message in one piece, of less than 64 KiB and
	// all there. It is taken here; anything else, the general way.
	if c.part != nil || c.want == wantPieces || len(b) < 4 || b[0] != finBit|byte(opBinary) && b[0] != finBit|byte(opText) {
		return c.general(b)
	}
	op, length, n := opcode(b[0]&^finBit), int(b[1]&^maskBit), 2
	if length >= 126 {
		if length == 127 || b[2] == 0 && b[3] < 126 {
			return c.general(b)
		}
		length, n = int(b[2])<<8|int(b[3]), 4
	}
	if c.client != (b[1]&maskBit == 0) || int64(length) > c.limits.maxMessage && c.limits.maxMessage >= 0 {
		return c.general(b)
	}
	if c.client {
		if len(b)-n < length {
			return c.general(b)
		}
		b = b[n : n+length : n+length]
	} else {
		if len(b)-n < 4+length {
			return c.general(b)
		}
		key := [4]byte(b[n:])
		n += 4
		b = b[n : n+length : n+length]
		mask.Bytes(b, key, 0)
	}
	n += length
	if op == opText && !utf8check.Valid(b) {
		return c.fail(errUTF8), n
	}
	return event{kind: evMessage, op: op, data: b}, n
}

// general is next for every frame there may be.
func (c *core) general(b []byte) (ev event, n int) {
	if c.part != nil && c.part.left > 0 {
		p := b[:min(c.part.left, int64(len(b)))]
		return c.take(p), len(p)
	}
	h, n, perr := parseHeader(b)
	if perr != nil {
		return c.fail(perr), 0
	}
	if n == 0 {
		return event{}, 0
	}
	if err := c.check(h); err != nil {
		return c.fail(err), 0
	}
	whole := h.length <= int64(len(b)-n)
	end := int64(n) + h.length // used only if whole, so it cannot overflow
	if h.op.isControl() {
		if !whole {
			return event{}, 0
		}
		p := b[n:end]
		if h.masked {
			mask.Bytes(p, h.key, 0)
		}
		return c.controlEvent(h.op, p), int(end)
	}
	if whole && h.fin && h.op != opContinuation && (c.want != wantPieces || c.unpacksWhole(h)) { // of 64 KiB or more, or compressed
		p := b[n:end:end]
		if h.masked {
			mask.Bytes(p, h.key, 0)
		}
		if h.rsv != 0 {
			return c.unpack(h.op, p), int(end)
		}
		if h.op == opText && !utf8check.Valid(p) {
			return c.fail(errUTF8), 0
		}
		return event{kind: evMessage, op: h.op, data: p}, int(end)
	}
	c.begin(h)
	p := b[n:]
	if whole {
		p = p[:h.length]
	}
	return c.take(p), n + len(p)
}

// take takes the next bytes of the current frame's payload.
func (c *core) take(p []byte) event {
	if c.part.stream {
		return c.arrived(p)
	}
	have := c.part.buf.len()
	c.part.append(p)
	return c.arrived(c.part.buf.bytes()[have:])
}

// fail is the event of a peer that broke a rule or a limit.
func (c *core) fail(err error) event {
	if c.part == nil {
		c.part = newPartial()
	}
	c.part.fault = err
	return event{kind: evFail}
}

// fault is why the core is spent: a *ProtocolError or *LimitError, until release.
func (c *core) fault() error { return c.part.fault }

// check checks a header: role, state and limits.
func (c *core) check(h header) error {
	switch {
	case h.rsv != 0 && (h.rsv != packedBit || c.limits.deflate == nil || h.op.isControl() || h.op == opContinuation):
		return errRSV
	case c.client && h.masked:
		return errMasked
	case !c.client && !h.masked:
		return errUnmasked
	case h.op.isControl():
		return nil
	case h.op == opContinuation && c.part == nil:
		return errContinuation
	case h.op != opContinuation && c.part != nil:
		return errInterleaved
	}
	var have int64
	if c.part != nil {
		have = c.part.total
		if most := c.limits.maxFragments; most >= 0 && int64(c.part.frames) >= int64(most)+have/fragmentShare {
			return &LimitError{Option: "MaxFragments", Limit: int64(c.limits.maxFragments), Size: int64(c.part.frames) + 1, Code: StatusPolicyViolation}
		}
	}
	most := c.limits.maxMessage
	switch {
	case most >= 0:
	case c.streaming() || c.want == wantPieces && c.part == nil:
		most = math.MaxInt64
	default:
		most = maxInt // what one slice can hold
	}
	if h.rsv != 0 || c.part != nil && c.part.packed { // compressing may make it larger; decompress looks at what it becomes
		most += min(most/packedShare+packedMore, math.MaxInt64-most)
	}
	if h.length > most-have {
		size := max(have+h.length, 0) // 0 if the sum is not an int64
		return &LimitError{Option: "MaxMessageSize", Limit: c.limits.maxMessage, Size: size, Code: StatusMessageTooBig}
	}
	return nil
}

const maxInt = int64(^uint(0) >> 1)

// A compressed message may be larger than MaxMessageSize by one part in packedShare,
// and packedMore bytes, if what it becomes is not.
const packedShare, packedMore = 64, 64

// unpacksWhole reports whether a message that begins with h is decompressed as a whole,
// whatever is wanted: where later ones refer to it, all of it has to be.
func (c *core) unpacksWhole(h header) bool {
	return h.rsv != 0 && c.limits.deflate.received != nil
}

// unpack is the event of a whole compressed message.
func (c *core) unpack(op opcode, p []byte) event {
	out, err := c.limits.deflate.decompress(p, c.limits.maxMessage)
	if err != nil {
		return c.fail(err)
	}
	if c.part == nil {
		c.part = newPartial()
	}
	if c.part.buf != &c.part.exact {
		c.part.buf.free()
	}
	c.part.buf = out
	if op == opText && !utf8check.Valid(out.b) {
		return c.fail(errUTF8)
	}
	return event{kind: evMessage, op: op, data: out.b}
}

// controlEvent turns a complete, unmasked control frame into its event.
func (c *core) controlEvent(op opcode, p []byte) event {
	switch op {
	case opPing:
		return event{kind: evPing, data: p}
	case opPong:
		return event{kind: evPong, data: p}
	}
	switch len(p) { // Close, §5.5.1
	case 0:
		return event{kind: evClose, code: StatusNoStatusReceived}
	case 1:
		return c.fail(errCloseLength)
	}
	code := StatusCode(p[0])<<8 | StatusCode(p[1])
	if !code.validOnWire() {
		return c.fail(errCloseCode)
	}
	if !utf8.Valid(p[2:]) {
		return c.fail(errCloseUTF8)
	}
	return event{kind: evClose, code: code, data: p[2:]}
}

// pingsIn counts the pings in what is still to be parsed, which lies in two pieces,
// and returns a copy of the newest one's payload. Nothing is changed.
func (c *core) pingsIn(rest, more []byte) (n int, newest []byte) {
	b := newBuffer(len(rest) + len(more))
	defer b.free()
	b.b = append(append(b.b, rest...), more...)
	p := b.b
	if c.part != nil {
		if c.part.left > int64(len(p)) {
			return 0, nil
		}
		p = p[c.part.left:]
	}
	for {
		h, size, err := parseHeader(p)
		if err != nil || size == 0 || h.length > int64(len(p)-size) {
			return n, newest
		}
		payload := p[size : size+int(h.length)]
		p = p[size+int(h.length):]
		if h.op == opPing {
			n++
			newest = append(newest[:0], payload...)
			if h.masked {
				mask.Bytes(newest, h.key, 0)
			}
		}
	}
}

// begin starts a frame that is not a whole message lying in the block.
func (c *core) begin(h header) {
	if c.part == nil {
		c.part = newPartial()
		c.part.op, c.part.packed = h.op, h.rsv != 0
		c.part.stream = c.want == wantPieces && !c.unpacksWhole(h)
	}
	p := c.part
	p.frames++
	p.total += h.length
	p.fin, p.masked, p.key = h.fin, h.masked, h.key
	p.size, p.left = h.length, h.length
}

// arrived accounts for the payload bytes b, masked as they came: the last ones
// of the part's buffer, or of a stream.
func (c *core) arrived(b []byte) event {
	p := c.part
	if p.masked {
		mask.Bytes(b, p.key, p.size-p.left)
	}
	p.left -= int64(len(b))
	last := p.fin && p.left == 0
	if p.op == opText && !p.packed && (!p.utf8.Write(b) || last && !p.utf8.Complete()) {
		return c.fail(errUTF8)
	}
	switch {
	case p.stream && last:
		return event{kind: evLastChunk, op: p.op, data: b}
	case p.stream:
		return event{kind: evChunk, op: p.op, data: b}
	case last && p.packed:
		return c.unpack(p.op, p.buf.bytes())
	case last:
		return event{kind: evMessage, op: p.op, data: p.buf.bytes()}
	}
	return event{}
}

// directMin is the number of bytes still missing from a frame above which they
// are read straight into the message's own buffer and not through a block.
const directMin = 16 << 10

// space returns where the missing payload of a large frame is to be read to,
// nil if it shall come through next. The buffer grows with what has arrived,
// never with what was announced.
func (c *core) space() []byte {
	if !c.assembling() || c.part.left < directMin {
		return nil
	}
	return c.part.space(c.want == wantOwn && !c.part.packed)
}

// filled accounts for n bytes read into space.
func (c *core) filled(n int) event {
	have := c.part.buf.len()
	c.part.buf.extend(n)
	return c.arrived(c.part.buf.bytes()[have:])
}

// claim returns a message that next or filled has handed out, as the caller's for
// good: where it lies if it has memory of its own, else a copy.
func (c *core) claim(data []byte) []byte {
	if p := c.part; p != nil && p.buf == &p.exact {
		p.buf = nil
		return data
	}
	own := make([]byte, len(data)) // right before copy, it is not zeroed first
	copy(own, data)
	if poison {
		poisonBytes(data)
	}
	return own
}

// release gives the buffer of a message that was handed out, or of one that
// will never be complete, back. The event's data is no longer valid.
func (c *core) release() {
	if p := c.part; p != nil {
		c.part = nil
		p.free()
	}
}

// appendFrame appends one frame with the payload p, masked with a fresh key if
// client is set (§5.3). p is only read.
func appendFrame(dst []byte, op opcode, p []byte, client bool) []byte {
	return appendData(dst, header{fin: true, op: op, masked: client}, p)
}

// appendData is appendFrame for what h describes, its length and key excepted.
func appendData(dst []byte, h header, p []byte) []byte {
	if !h.masked && h.fin && len(p) < 126 { // most of what a listener sends
		dst = append(dst, finBit|byte(h.op)|h.rsv, byte(len(p)))
		return append(dst, p...)
	}
	h.length = int64(len(p))
	if h.masked {
		h.key = newMaskKey()
	}
	dst = appendHeader(dst, h)
	at := len(dst)
	dst = append(dst, p...)
	if h.masked {
		mask.Bytes(dst[at:], h.key, 0)
	}
	return dst
}

// A message of more than two fragments leaves in pieces of this size, so that
// control frames get through between them.
const fragment = 64 << 10

// frames lays a message out: it is what of it has no frame yet.
type frames struct {
	h     header // of the message, or with fin not set of the beginning or middle of one
	p     []byte
	i, of int // number of the next frame, and how many there are
}

// framesOf lays p out as h says, its length and key excepted.
func framesOf(h header, p []byte) frames {
	f := frames{h: h, p: p, of: 1}
	if len(p) > 2*fragment {
		f.of = (len(p) + fragment - 1) / fragment
	}
	return f
}

// more reports whether there is a frame yet.
func (f *frames) more() bool { return f.i < f.of }

// next is the next frame. Its payload is not masked yet.
func (f *frames) next() (h header, p []byte) {
	h, p = f.h, f.p
	if f.of > 1 {
		p = p[:min(fragment, len(p))]
	}
	f.p = f.p[len(p):]
	if f.i > 0 {
		h.op, h.rsv = opContinuation, 0
	}
	f.i++
	h.fin = h.fin && !f.more()
	h.length = int64(len(p))
	if h.masked {
		h.key = newMaskKey()
	}
	return h, p
}

// appendClose appends a Close frame. Code 0 stands for none.
func appendClose(dst []byte, code StatusCode, reason string, client bool) []byte {
	if code == 0 {
		return appendFrame(dst, opClose, nil, client)
	}
	var p [maxControlSize]byte
	p[0], p[1] = byte(code>>8), byte(code)
	n := 2 + copy(p[2:], reason)
	return appendFrame(dst, opClose, p[:n], client)
}
