package peerws

import (
	"context"
	"errors"
	"io"
	"iter"
)

// Reading by calls. The reader goes on to poll the socket and
// to answer control frames. When it comes to a message it stops, and the
// goroutine that calls Read borrows its side, takes the message apart itself,
// out of the very block it came in, and gives the side back. So a burst of
// messages costs one change of goroutine, and a context that ends loses nothing.

// Read waits for the next message and returns it; Data is the caller's. Reads
// from several goroutines take turns. ctx ends only the wait: the message that
// was coming goes to the next Read.
//
// Messages that were received before a close are read first. Then the error
// wraps net.ErrClosed and the [CloseEvent]. On a socket with OnMessage it is
// [ErrReading].
func (c *WebSocket) Read(ctx context.Context) (Message, error) {
	k, err := c.takeTurn(ctx)
	if err != nil {
		return Message{}, err
	}
	defer k.endTurn()
	for {
		if err := c.borrow(ctx, k); err != nil {
			return Message{}, err
		}
		ev := k.full
		k.full = event{}
		if ev.kind == evNone && c.skipStream(k) {
			c.core.want = wantOwn
			ev = c.step()
		}
		if ev.kind != evMessage {
			c.giveBack(k, true)
			continue
		}
		if c.read.headHeld {
			c.dropHead()
		}
		c.noteTaken()
		m := Message{Type: MessageType(ev.op), Data: c.core.claim(ev.data)}
		c.core.release()
		c.giveBack(k, false)
		return m, nil
	}
}

// Messages returns an iterator over the messages as Read returns them. It ends
// silently when ctx ends, after this program's own Close, and after a clean close
// by the peer with code 1000, 1001 or none; else with one error, which has the
// [CloseEvent] in it.
func (c *WebSocket) Messages(ctx context.Context) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for {
			m, err := c.Read(ctx)
			if err != nil {
				if ev, ok := errors.AsType[CloseEvent](err); ctx.Err() == nil && !(ok && ev.ended()) {
					yield(Message{}, err)
				}
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// ended reports whether e is an ordinary end: this program's own Close, or the
// peer's without a complaint.
func (e CloseEvent) ended() bool {
	return e.Err == nil && (e.Initiator == InitiatorLocal || e.Initiator == InitiatorPeer && e.ordinary())
}

// ordinary reports whether the peer's Close frame says no more than that it goes.
func (e CloseEvent) ordinary() bool {
	switch e.Code {
	case StatusNormalClosure, StatusGoingAway, StatusNoStatusReceived:
		return true
	}
	return false
}

// A stream is a message that is read in pieces, and the io.Reader of it.
type stream struct {
	c     *WebSocket
	ctx   context.Context
	open  bool   // the message's end has not been read
	chunk []byte // what is to be read next, loaned
	last  bool   // nothing comes behind chunk
	err   error  // of the reader, once it has failed

	packed *unpacking // nil if it is not compressed
}

// NextReader waits for the next message and returns a reader of it that needs
// no more memory for a large message than for a small one; with MaxMessageSize
// negative it may have any size, in any number of fragments unless MaxFragments
// says otherwise. What is left of the previous message is thrown
// away. The reader is valid until the next call; its Reads wait no longer than
// ctx. Only at its io.EOF is the message known to be complete, and text to be
// UTF-8 to its end.
func (c *WebSocket) NextReader(ctx context.Context) (MessageType, io.Reader, error) {
	k, err := c.takeTurn(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer k.endTurn()
	for {
		if err := c.borrow(ctx, k); err != nil {
			return 0, nil, err
		}
		if k.stream == nil {
			k.stream = &stream{c: c}
		}
		ev := k.full
		k.full = event{}
		if ev.kind == evNone && c.skipStream(k) {
			before := c.core.want
			c.core.want = wantPieces
			ev = c.step()
			c.core.want = before
		}
		if ev.kind == evNone {
			c.giveBack(k, true)
			continue
		}
		if c.read.headHeld {
			c.dropHead()
		}
		c.noteTaken()
		s := k.stream
		*s = stream{c: c, ctx: ctx, open: true, chunk: ev.data, last: ev.kind != evChunk}
		if ev.kind != evMessage && c.core.part.packed {
			s.unpack(ev.op == opText)
		}
		c.giveBack(k, false)
		return MessageType(ev.op), s, nil
	}
}

// Read reads from the message that NextReader found.
func (s *stream) Read(p []byte) (int, error) {
	c := s.c
	k, err := c.takeTurn(s.ctx)
	if err != nil {
		return 0, err
	}
	defer k.endTurn()
	for {
		switch {
		case s.err != nil:
			return 0, s.err
		case !s.open:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		case s.packed != nil:
			return s.packed.read(k, p)
		}
		if err := c.borrow(s.ctx, k); err != nil {
			if c.ReadyState() != Open {
				s.err = err
			}
			return 0, err
		}
		more := false
		if len(s.chunk) == 0 && !s.last {
			ev := c.step()
			s.chunk, s.last = ev.data, ev.kind == evLastChunk
			more = ev.kind == evNone
		}
		n := copy(p, s.chunk)
		s.chunk = s.chunk[n:]
		if len(s.chunk) == 0 && s.last {
			s.open = false
			c.core.release()
		}
		c.giveBack(k, more)
		if n > 0 {
			return n, nil
		}
	}
}

// skipStream throws away what is left of a message that was read in pieces and
// reports whether its end has been reached. The read side is borrowed.
func (c *WebSocket) skipStream(k *calls) bool {
	s := k.stream
	for s != nil && s.open {
		s.chunk = nil
		s.packed.end()
		s.packed = nil
		if !s.last {
			ev := c.step()
			if ev.kind == evNone {
				return false
			}
			s.last = ev.kind == evLastChunk
			continue
		}
		s.open = false
		c.core.release()
	}
	return true
}
