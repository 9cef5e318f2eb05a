package peerws

import (
	"errors"
	"io"
	"os"
	"slices"
	"time"
)

// The read side: one goroutine a connection. It parks until the socket is
// readable without holding memory, borrows a block, reads, takes every frame of
// the block apart in place, runs the callbacks, gives the block back.
//
// Four rules of the raw path:
//   - No callback of the program runs inside RawConn.Read's callback: net's
//     Close waits for that to return, so a Close in it would never come back.
//     readable only reads, or says park.
//   - Only this goroutine closes the descriptor. Others set the state, shut the
//     transport down and wake it by a read deadline that is past.
//   - System calls happen only inside RawConn.Read and Write.
//   - The poller is edge-triggered and RawConn.Read clears its readiness first,
//     so readable never parks without having seen EAGAIN in that same call.

// A verdict is why the reader stopped looking at what it has.
type verdict uint8

const (
	vMore    verdict = iota // everything complete has been handled
	vGated                  // a message waits for a handler
	vClosing                // a Close frame came, or the peer broke a rule: the closing handshake is to be finished
	vEnded                  // the transport is over
)

// run is the connection's goroutine from here to its end.
func (c *WebSocket) run() {
	c.mu.Lock()
	c.lf.running = true
	if f := c.lf.onOpen; f != nil {
		c.lf.onOpen = nil
		c.lf.tasks = slices.Insert(c.lf.tasks, 0, func() { f(c) })
	}
	c.mu.Unlock()
	c.finish(c.readLoop())
}

func (c *WebSocket) readLoop() verdict {
	c.runTasks()
	for {
		v := vMore
		if c.in.len() > 0 {
			v = c.parse()
		}
		for v == vMore {
			v = c.fill()
			if v == vMore && c.in.len() > 0 {
				v = c.parse()
			}
		}
		if v != vGated {
			return v
		}
		if !c.awaitGate() {
			return vEnded
		}
	}
}

// parse handles what lies in c.in and leaves there only what is incomplete or
// must wait.
func (c *WebSocket) parse() verdict {
	b := c.in.b
	n := 0
	v := vMore
	for v == vMore && n < len(b) {
		if c.aborted.Load() {
			v = vEnded
			break
		}
		// A data frame is not begun before somebody wants it. Control frames
		// before it are answered.
		if c.core.atHeader() && !opcode(b[n]).isControl() && c.gateShut() {
			v = vGated
			break
		}
		ev, k := c.core.next(b[n:])
		if ev.kind == evNone && k == 0 {
			break
		}
		n += k
		v = c.handle(ev, n < len(b))
	}
	c.uncork()
	rest := b[n:]
	switch {
	case len(rest) == 0 || v > vGated:
		c.in.b = c.in.b[:0]
	case v == vGated: // held for who knows how long: in no more than it needs
		f := newBuffer(len(rest))
		f.b = append(f.b, rest...)
		c.in.free()
		c.in = f
	default:
		c.in.b = c.in.b[:copy(c.in.b, rest)]
	}
	return v
}

// handle acts on one event. more tells that the block holds more bytes behind it.
func (c *WebSocket) handle(ev event, more bool) verdict {
	switch ev.kind {
	case evMessage:
		if c.ReadyState() == Open {
			c.deliver(ev, more)
		}
		c.core.release()
	case evPing:
		c.pong(ev.data)
	case evClose:
		c.peerClose(ev.code, string(ev.data))
		return vClosing
	case evFail:
		c.core.release()
		c.fail(ev.err)
		return vClosing
	}
	return vMore
}

// deliver hands a message to the program.
func (c *WebSocket) deliver(ev event, more bool) {
	if more {
		c.openCork()
	}
	if c.rd.head {
		c.dropHead()
	}
	(*c.onMessage.Load())(c, Message{MessageType(ev.op), ev.data})
	if poison {
		poisonBytes(ev.data)
	}
}

// gateShut reports whether messages must wait for a handler. A socket that is
// no longer open needs none: its messages are thrown away.
func (c *WebSocket) gateShut() bool {
	return c.onMessage.Load() == nil && c.ReadyState() == Open
}

// awaitGate waits until the first message may be handed over. It runs tasks
// meanwhile and reports false if the socket was aborted.
func (c *WebSocket) awaitGate() bool {
	for {
		c.runTasks()
		c.mu.Lock()
		if c.aborted.Load() {
			c.mu.Unlock()
			return false
		}
		if !c.gateShut() {
			c.mu.Unlock()
			return true
		}
		if c.lf.tasks != nil {
			c.mu.Unlock()
			continue
		}
		if c.lf.gate == nil {
			c.lf.gate = make(chan struct{}, 1)
		}
		c.lf.gated = true
		c.mu.Unlock()
		<-c.lf.gate
		c.mu.Lock()
		c.lf.gated = false
		c.mu.Unlock()
	}
}

// openGateLocked has awaitGate look again. mu is held.
func (c *WebSocket) openGateLocked() {
	if c.lf.gated {
		select {
		case c.lf.gate <- struct{}{}:
		default:
		}
	}
}

// fill waits for bytes and puts them behind c.in, or straight into the message
// they belong to.
func (c *WebSocket) fill() verdict {
	var err error
	if c.raw != nil {
		if err = c.raw.Read(c.readFn); err == nil {
			err = c.rd.err
		}
	} else {
		dst := c.room()
		c.rd.n, err = c.conn.Read(dst)
		c.rd.last = c.rd.n == len(dst)
	}
	n := c.rd.n
	c.rd.n = 0
	if n > 0 {
		if !c.rd.direct {
			c.in.extend(n)
			return vMore
		}
		v := c.handle(c.core.filled(n), false)
		if v != vMore || err == nil {
			return v
		}
	}
	if err == nil {
		err = io.EOF
	}
	return c.readFailed(err)
}

// readable makes one read attempt. RawConn.Read calls it, first at once, then
// whenever the socket has become readable; false parks.
func (c *WebSocket) readable(fd uintptr) bool {
	c.rd.n, c.rd.err = c.set.sys.readOnce(fd, c.room())
	if c.rd.err == nil || !wouldBlock(c.rd.err) {
		return true
	}
	c.rd.err = nil
	c.settle()
	return false
}

// portableRead is what a waiting read of the portable path holds.
const portableRead = 4 << 10

// room returns where to read to.
func (c *WebSocket) room() []byte {
	have := c.in.len()
	if have == 0 {
		if p := c.core.space(); p != nil {
			c.rd.direct = true
			return p
		}
	}
	c.rd.direct = false
	size := blockSize
	if c.raw == nil && !c.rd.last {
		size = portableRead
	}
	if c.in == nil || cap(c.in.b) < size {
		c.in = c.in.grow(size)
	} else if have == 0 && cap(c.in.b) > size { // a portable read that is about to wait
		c.in.free()
		c.in = newBuffer(size)
	}
	return c.in.b[have:cap(c.in.b)]
}

// settle gives the block back before the reader parks; an incomplete header
// moves to the smallest buffer.
func (c *WebSocket) settle() {
	if c.in == nil {
		return
	}
	rest := c.in.b
	if len(rest) > 0 && cap(rest) < blockSize {
		return
	}
	f := c.in
	c.in = nil
	if len(rest) > 0 {
		c.in = newBuffer(len(rest))
		c.in.b = append(c.in.b, rest...)
	}
	f.free()
}

// readFailed looks at why a read ended without bytes: somebody woke us up, or
// the transport is over.
func (c *WebSocket) readFailed(err error) verdict {
	if c.aborted.Load() {
		return vEnded
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.mu.Lock()
		dead := c.lf.writeDead || (!c.lf.readUntil.IsZero() && !time.Now().Before(c.lf.readUntil))
		if !c.aborted.Load() && !dead {
			c.conn.SetReadDeadline(c.lf.readUntil)
		}
		c.mu.Unlock()
		if dead {
			return vEnded
		}
		c.runTasks()
		return vMore
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // it came without a Close frame
	}
	c.because(InitiatorNetwork, err)
	return vEnded
}

// drain throws away what the peer still sends, until it ends its side or the
// socket is aborted.
func (c *WebSocket) drain() {
	c.core.release()
	for {
		if c.in != nil {
			c.in.b = c.in.b[:0]
		}
		if v := c.fill(); v != vMore {
			return
		}
		c.runTasks()
	}
}
