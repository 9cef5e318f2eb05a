package peerws

import (
	"errors"
	"io"
	"os"
	"slices"
)

// The read side. It waits until the socket is readable without holding memory, borrows
// a block, reads, takes every frame of the block apart in place, runs the callbacks,
// gives the block back. Who does that is a turn of the engine, which ends where there is
// nothing to read, or a goroutine of the connection's, which parks there.
//
// Four rules of the raw path of the latter:
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
	vGated                  // a message waits for somebody who wants it
	vYield                  // there is more, but others come first
	vClosing                // a Close frame came, or the peer broke a rule: the closing handshake is to be finished
	vEnded                  // the transport is over
	vLeft                   // a callback has ended the goroutine that ran it
	vParked                 // the turn is over; whoever has the next one may be at work already
)

// A readInto is where the last read went.
type readInto uint8

const (
	intoBlock     readInto = iota
	intoBlockFull          // and there may be more: it has filled all it was given (portable path)
	intoMessage            // into the core's own buffer
)

// run is the connection's goroutine from here to its end, or the first turn.
func (c *WebSocket) run() {
	if c.sock() != nil {
		c.turn()
		return
	}
	c.started()
	c.finish(c.readLoop(vMore))
}

// started is what run does first. It stands apart, because what readLoop calls
// must fit on the smallest stack for an idle connection to stay small.
//
//go:noinline
func (c *WebSocket) started() {
	c.mu.Lock()
	if c.life.stage != stageHeld {
		c.life.stage = stageRunning
	}
	if f := c.rareLocked().onOpen; f != nil {
		c.life.rare.onOpen = nil
		c.life.rare.tasks = slices.Insert(c.life.rare.tasks, 0, func() { f(c) })
	}
	c.mu.Unlock()
	c.goAway()
	c.runTasks()
	c.comeBack()
}

// readLoop goes on from v, vMore or vGated.
func (c *WebSocket) readLoop(v verdict) verdict {
	fill := false
	for v <= vGated {
		if v == vMore {
			if c.in != nil && !fill {
				v = c.parse()
				c.leave(v)
				if v == vYield {
					if v = vMore; c.yield(c.sock()) {
						return vParked
					}
					continue
				}
			}
			if v == vMore {
				v = c.fill()
			}
			fill = false
		}
		if v == vGated {
			v, fill = c.awaitGate()
		}
	}
	return v
}

// parse handles what lies in c.in behind read.off, as far as it is complete and
// wanted.
func (c *WebSocket) parse() verdict {
	for n := shares(c.sock()); int(c.read.off) < len(c.in.b); n-- {
		if c.severed() {
			return vEnded
		}
		if n == 0 {
			return vYield
		}
		f := c.messageHandler()
		if f == nil && c.mustWait() {
			return vGated
		}
		ev, n := c.core.next(c.in.b[c.read.off:])
		if n == 0 && ev.kind == evNone {
			break
		}
		c.read.off += int32(n)
		if f != nil && ev.kind == evMessage && c.ReadyState() == Open {
			c.deliver(f, ev.op, ev.data)
		} else if v := c.handle(ev); v != vMore {
			return v
		}
	}
	return vMore
}

// leave sends the replies and keeps of c.in only what parse has left there.
func (c *WebSocket) leave(v verdict) {
	if c.read.corked {
		c.uncork()
	}
	switch rest := c.in.b[c.read.off:]; {
	case v == vGated && len(rest) > 0:
		if size := cap(c.in.b); size > 2*len(rest) && size > 1<<minClass { // held for who knows how long: in no more than it needs
			f := newBuffer(len(rest))
			f.b = append(f.b, rest...)
			c.in.free()
			c.in, c.read.off = f, 0
		}
	case v == vYield:
	case v > vYield:
		c.in.b, c.read.off = c.in.b[:0], 0
	default:
		c.compact()
	}
}

// compact moves what is not parsed to the front of c.in.
func (c *WebSocket) compact() {
	if c.in != nil {
		c.in.b = c.in.b[:copy(c.in.b, c.in.b[c.read.off:])]
		c.read.off = 0
	}
}

// mustWait reports whether the bytes at read.off are a message's, and nobody wants
// it yet. Control frames never wait, nor does a message that somebody has begun
// to read as a whole. A socket that is no longer open throws messages away.
func (c *WebSocket) mustWait() bool {
	if c.core.atHeader() && opcode(c.in.b[c.read.off]).isControl() || c.core.assembling() {
		return false
	}
	return c.messageHandler() == nil && c.ReadyState() == Open
}

// handle acts on one event.
func (c *WebSocket) handle(ev event) verdict {
	switch ev.kind {
	case evMessage:
		if c.ReadyState() != Open {
			c.core.release()
			break
		}
		if f := c.messageHandler(); f != nil {
			c.deliver(f, ev.op, ev.data)
			break
		}
		c.keepMessage(ev)
		return vGated
	case evChunk: // of a socket that is no longer open
	case evLastChunk:
		c.core.release()
	case evPing, evPong:
		if c.controls.Add(1) > maxControls && c.set.ticks() && c.ReadyState() == Open {
			c.fail(errControls)
			return vClosing
		}
		if ev.kind == evPong {
			c.pongReceived(ev.data)
			break
		}
		if c.read.ahead && c.answeredAhead() {
			break
		}
		c.pong(ev.data)
	case evClose:
		c.peerClose(ev.code, string(ev.data))
		return vClosing
	case evFail:
		err := c.core.fault()
		c.core.release()
		c.fail(err)
		return vClosing
	}
	return vMore
}

// keepMessage keeps a message that a Read has begun and gone, for the next one.
func (c *WebSocket) keepMessage(ev event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.callsLocked().full = ev
}

// deliver hands a message to the program. If more bytes of the block follow,
// replies are collected.
func (c *WebSocket) deliver(f func(*WebSocket, Message), op opcode, data []byte) {
	if !c.read.corked && c.in != nil && int(c.read.off) < len(c.in.b) {
		c.openCork()
	}
	if c.read.headHeld {
		c.dropHead()
	}
	lent := len(data) > smallMax && c.core.part == nil && c.raw != nil && !c.core.client
	if lent {
		end := int(c.read.off)
		c.noteReceived(c.in.b[max(end-len(data)-maxHeaderSize, 0):end], min(end-len(data), maxHeaderSize))
	}
	if c.core.part != nil {
		c.noteHeld() // for as long as the callback takes
	}
	c.goAwayWith()
	f(c, Message{Type: MessageType(op), Data: data})
	c.comeBack()
	if lent {
		c.noteReceived(nil, 0)
	}
	if poison {
		poisonBytes(data)
	}
	c.core.release()
}

// fill waits for bytes and puts them behind c.in, or straight into the message
// they belong to.
func (c *WebSocket) fill() verdict {
	if c.read.ahead {
		if v, ok := c.takeAhead(); ok {
			return v
		}
	}
	if c.read.holding || c.core.part != nil {
		c.noteHeld()
	}
	var n int
	var err error
	if c.raw == nil {
		var v verdict
		if n, v, err = c.portableFill(); v != vMore {
			return v
		}
	} else if s := sockOf(c.raw); s != nil {
		var v verdict
		if n, v, err = c.turnFill(s); v != vMore {
			return v
		}
	} else {
		if err = c.raw.Read(c.readFn); err == nil && c.read.err != nil {
			err, c.read.err = c.read.err, nil
		}
		if c.activity.Load()&1 != 0 { // it has parked
			c.toggleWaiting()
		}
		n = int(c.read.n)
		c.read.n = 0
	}
	if n > 0 {
		c.received.Add(uint64(n))
		if c.read.into != intoMessage {
			c.in.extend(n)
			return vMore
		}
		v := c.handle(c.core.filled(n))
		if v != vMore || err == nil {
			return v
		}
	}
	if err == nil {
		err = io.EOF
	}
	return c.readFailed(err)
}

// portableFill is one read of a connection that is not a plain socket.
func (c *WebSocket) portableFill() (n int, v verdict, err error) {
	wait := readWaitOf(c.conn)
	if f, ok := c.conn.(*foreignConn); ok {
		c.settle()
		c.toggleWaiting()
		err = f.await()
		c.toggleWaiting()
		if err != nil {
			return 0, vMore, err
		}
	}
	for {
		if wait != nil && wait.sock != nil {
			if c.wakePassed(wait.sock) {
				return 0, vParked, nil
			}
			if wait.sock.look() {
				return 0, vMore, os.ErrDeadlineExceeded
			}
			if c.shared(wait.sock) {
				return 0, vParked, nil
			}
		}
		dst := c.room()
		if wait == nil {
			c.toggleWaiting()
		}
		n, err = c.conn.Read(dst)
		if wait == nil {
			c.toggleWaiting()
		}
		if (n == len(dst) || wait != nil) && c.read.into == intoBlock {
			c.read.into = intoBlockFull
		}
		if err != errNotYet || n > 0 {
			return n, vMore, err
		}
		if wait.sock != nil {
			if v, err := c.pause(wait.sock); v != vMore || err != nil {
				return 0, v, err
			}
			continue
		}
		c.settle()
		c.toggleWaiting()
		err = wait.wait()
		c.toggleWaiting()
		if err != nil {
			return 0, vMore, err
		}
	}
}

// readable makes one read attempt. RawConn.Read calls it, first at once, then
// whenever the socket has become readable; false parks.
func (c *WebSocket) readable(fd uintptr) bool {
	n, err := c.sysRead(fd, c.room())
	if err == nil {
		c.read.n = int32(n)
		return true
	}
	if !wouldBlock(err) {
		c.read.n, c.read.err = int32(n), err
		return true
	}
	c.settle()
	if c.activity.Load()&1 == 0 {
		c.toggleWaiting()
	}
	return false
}

// sysRead is a read of the socket, or what a test has put in its place.
func (c *WebSocket) sysRead(fd uintptr, p []byte) (int, error) {
	if c.set.sys == nil {
		return sysRead(fd, p)
	}
	return c.set.sys.read(fd, p)
}

// portableRead is what a waiting read of the portable path holds.
const portableRead = 4 << 10

// room returns where to read to.
func (c *WebSocket) room() []byte {
	have := c.in.len() // read.off is 0: parse has seen to it
	if have == 0 {
		if p := c.core.space(); p != nil {
			c.read.into = intoMessage
			return p
		}
	}
	size := blockSize
	if c.raw == nil && c.read.into != intoBlockFull {
		size = portableRead
	}
	c.read.into = intoBlock
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
	if c.severed() {
		return vEnded
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if v, ours := c.wokenUp(); ours {
			return v
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // it came without a Close frame
	}
	c.because(InitiatorNetwork, err)
	return vEnded
}

// wokenUp looks at what the reader was woken for. A time-out that nobody here has
// asked for may be from a deadline that the program left on its transport; the
// second one is the transport's end, for it would come again and again.
func (c *WebSocket) wokenUp() (v verdict, ours bool) {
	c.mu.Lock()
	x := c.makeRareLocked()
	dead := x.overdue() && !c.readOnLocked() // whoever wants more bytes has read all others
	ours = x.woken || dead || x.strays == 0
	if !x.woken {
		x.strays++
	}
	x.woken = !x.readUntil.IsZero()
	if !c.severed() && !dead {
		c.conn.SetReadDeadline(x.readUntil)
	}
	c.mu.Unlock()
	switch {
	case dead:
		return vEnded, true
	case ours:
		c.goAway()
		c.runTasks()
		c.comeBack()
	}
	return vMore, ours
}

// drain throws away what the peer still sends, until it ends its side or the
// socket is severed.
func (c *WebSocket) drain() {
	c.core.release()
	c.read.off = 0
	s := c.sock()
	if s != nil {
		s.stay()
	}
	for {
		if s != nil {
			s.giveWay()
		}
		if c.in != nil {
			c.in.b = c.in.b[:0]
		}
		if v := c.fill(); v != vMore {
			return
		}
		c.runTasks()
	}
}
