package peerws

import (
	"io"

	"github.com/peerws/peerws/internal/utf8check"
)

// Compressed messages that are read or written in pieces.

// An unpacking is a compressed message that is read in pieces. The decompressor is held
// for as long as the program reads.
type unpacking struct {
	s        *stream
	k        *calls
	z        *decompressor
	borrowed bool // the read side is ours
	finals   int64
	total    int64 // bytes that have come out
	packed   int64 // bytes that have gone in
	text     bool
	utf8     utf8check.Checker
}

// unpack has the message of which s has the first piece decompressed.
func (s *stream) unpack(text bool) {
	u := &unpacking{s: s, z: decompressorPool.Get().(*decompressor), text: text}
	u.z.src = source{piece: s.chunk, tail: endOfMessage, more: u.more}
	u.packed = int64(len(s.chunk))
	u.z.reset(nil)
	s.packed = u
}

// end gives the decompressor back, where the rest of the message is not wanted.
func (u *unpacking) end() {
	if u != nil && u.z != nil {
		u.z.free()
		u.z = nil
	}
}

// more is the next piece of the message, without waiting longer than its context. The
// read side is borrowed, before and after; but with an error it is given back.
func (u *unpacking) more() ([]byte, error) {
	s, c := u.s, u.s.c
	for !s.last {
		ev := c.step()
		if ev.kind == evNone {
			s.chunk = nil
			c.giveBack(u.k, true)
			u.borrowed = false
			if err := c.borrow(s.ctx, u.k); err != nil {
				return nil, err
			}
			u.borrowed = true
			continue
		}
		s.last = ev.kind == evLastChunk
		if len(ev.data) > 0 {
			u.packed += int64(len(ev.data))
			return ev.data, nil
		}
	}
	return nil, nil
}

// read reads from the message. Its turn is the caller's.
func (u *unpacking) read(k *calls, p []byte) (int, error) {
	s, c := u.s, u.s.c
	u.k = k
	if err := c.borrow(s.ctx, k); err != nil {
		if c.ReadyState() != Open {
			s.err = err
		}
		return 0, err
	}
	u.borrowed = true
	n, err := u.take(p)
	switch {
	case !u.borrowed: // a wait has ended
		s.err = err
		return n, err
	case err == io.EOF:
		s.open, s.chunk = false, nil
		u.end()
		c.core.release()
	case err != nil:
		u.z, s.open, s.chunk = nil, false, nil // it may be in any state
		c.core.release()
		c.fail(err)
		c.read.verdict = vClosing
		c.giveBack(k, true)
		s.err = c.notOpenErr("read")
		return n, s.err
	default:
		s.chunk = u.z.src.piece
	}
	c.giveBack(k, false)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// take decompresses up to len(p) bytes, at least one if there is no error. An error is
// io.EOF, what the peer did wrong, or that of a wait.
func (u *unpacking) take(p []byte) (int, error) {
	src := &u.z.src
	for {
		n, err := u.z.r.Read(p)
		u.total += int64(n)
		if most := u.s.c.core.limits.maxMessage; most >= 0 && u.total > most {
			return 0, &LimitError{Option: "MaxMessageSize", Limit: most, Code: StatusMessageTooBig}
		}
		if u.text && !u.utf8.Write(p[:n]) {
			return 0, errUTF8
		}
		switch {
		case src.err != nil:
			return n, src.err
		case err == nil && n > 0:
			return n, nil
		case err == nil:
			continue
		case err != io.EOF:
			return n, errCorrupt
		}
		// A final block: the end, if nothing is behind it (§7.2.3.5).
		if len(src.piece) == 0 && src.more != nil {
			if src.piece, err = u.more(); err != nil {
				return n, err
			}
		}
		if len(src.piece) == 0 {
			if u.text && !u.utf8.Complete() {
				return n, errUTF8
			}
			if n > 0 {
				return n, nil // the end comes again
			}
			return 0, io.EOF
		}
		if u.finals++; u.finals > maxFinals+u.packed/finalShare {
			return n, errCorrupt
		}
		u.z.reset(nil)
		if n > 0 {
			return n, nil
		}
	}
}

// A packing compresses a message that is written in pieces. It keeps what later pieces
// may refer to, and no compressor.
type packing struct {
	past *history
}

// newPacking returns a packing, nil if there is no compression, or the peer wants to
// remember less than we would have it.
func (d *deflate) newPacking() *packing {
	switch {
	case d == nil || d.outBits < maxWindowBits:
		return nil
	case d.sent != nil: // nobody else sends meanwhile
		return &packing{d.sent}
	}
	return &packing{&history{size: maxDictionary}}
}

// pack returns a piece compressed, fin being set for the last. A flush stands between
// two pieces.
func (z *packing) pack(p []byte, fin bool) *buffer {
	out := sink{b: newBuffer(len(p) + len(p)/packedShare + packedMore)}
	compressPiece(&out, p, z.past.b)
	z.past.add(p)
	if fin {
		out.b.b = out.b.b[:len(out.b.b)-len(flushed)]
	}
	return out.b
}
