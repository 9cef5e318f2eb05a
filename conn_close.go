package peerws

import (
	"context"
	"errors"
	"strconv"
	"time"
	"unicode/utf8"
)

// Closing: RFC 6455 §7 and the event rules of the WHATWG standard. Whatever
// happens first is the cause and stays it.
//
//	what happens            Initiator  what is sent           what comes next
//	Close, CloseWith        Local      Close, behind the      messages are thrown away, until the
//	                                   queue                  peer's Close or CloseTimeout
//	Shutdown, goodbye       Local      Close 1001             the same
//	the peer's Close        Peer       its code and reason    finish, when ours is out
//	a broken rule, a limit  Limit      Close with the code    finish, when ours is out
//	reading fails           Network    nothing                finish
//	writing fails           Network    nothing                what has come can be read for CloseTimeout
//	the budget of all       Limit      nothing                the transport is severed, then finish
//	no first message        Timeout    Close 1008             as after Close
//	a time-out              Timeout    nothing                the transport is severed, then finish
//	Abort                   Local      nothing                the same
//
// finish takes the transport and the memory away, end runs the last callbacks.

// A closing is what is known of the end of a socket: guarded by WebSocket.mu, like
// the ending. That no frame may be sent any more is writer.mode's, under wmu.
type closing struct {
	by    uint32     // the clock's time at which the handshake must be over, 0: none yet
	code  StatusCode // of the peer's Close frame
	first uint8      // 1 + the Initiator whose act came first, 0: nobody's yet
	step  closeStep
}

// An ending is the part of closing that few sockets need.
type ending struct {
	cause     error
	reason    string        // of the peer's Close frame
	shaken    chan struct{} // closed once the closing handshake is complete, or cannot be any more
	readUntil time.Time     // the reader's own deadline: writing has failed
	readFor   time.Duration // how far that is ahead whenever it is set
	saw       traffic       // when the handshake began, or later; zero: not looked
}

// A closeStep is which Close frames have passed (§7.1.2 to §7.1.4).
type closeStep uint8

const (
	closeNone     closeStep = iota
	closeSent               // the kernel has ours
	closeReceived           // the peer's is here
	closeComplete           // both
)

// The events of nextCloseStep.
const (
	weClosed = iota
	theyClosed
)

var nextCloseStep = [...][2]closeStep{
	closeNone:     {weClosed: closeSent, theyClosed: closeReceived},
	closeSent:     {weClosed: closeSent, theyClosed: closeComplete},
	closeReceived: {weClosed: closeComplete, theyClosed: closeReceived},
	closeComplete: {weClosed: closeComplete, theyClosed: closeComplete},
}

// received reports whether the peer's Close frame is here.
func (s closeStep) received() bool { return s == closeReceived || s == closeComplete }

// initiator is whose act came first; Local as long as nobody's has.
func (x *closing) initiator() Initiator { return Initiator(max(x.first, 1) - 1) }

// stepLocked moves the handshake on. mu is held.
func (c *WebSocket) stepLocked(event int) {
	x := &c.life.closing
	x.step = nextCloseStep[x.step][event]
	c.shakenLocked()
}

const maxReason = maxControlSize - 2

var (
	errWriteTimeout = errors.New("peer took nothing for WriteTimeout")
	errCloseTimeout = errors.New("no closing handshake within CloseTimeout")
	errAborted      = errors.New("aborted")
	errNeverOpen    = errors.New("closed before it was open")
)

// Close starts the closing handshake without a code and returns at once.
// Messages sent before go out first, except those that wait behind a NextWriter's
// message that is not complete. It does nothing on a socket that is
// already closing; on one that is still connecting it gives up.
//
// A program that ends right after Close may take messages with it that the peer
// has not got: [WebSocket.Wait] waits for the end, and [WebSocket.CloseWait] is
// both in one call.
func (c *WebSocket) Close() error { return c.CloseWith(0, "") }

// CloseWith is Close with a code and a reason for the peer. The code is 1000 or
// 3000 to 4999; a listener's socket may also use 1001, 1008, 1011, 1012 and
// 1013. The reason is at most 123 bytes of UTF-8. With anything else it returns
// an error and nothing is sent.
func (c *WebSocket) CloseWith(code StatusCode, reason string) error {
	listener := c.ReadyState() != Connecting && !c.core.client // in this order: core is set before OPEN
	if err := checkClose(listener, code, reason); err != nil {
		return err
	}
	c.startClose(InitiatorLocal, nil, code, reason)
	return nil
}

// checkClose refuses what CloseWith must not send, from the listening or the
// dialling side.
func checkClose(listener bool, code StatusCode, reason string) error {
	switch {
	case code == 0:
		if reason != "" {
			return errReasonBare
		}
	case code == StatusNormalClosure, code >= 3000 && code <= 4999:
	default:
		switch code {
		case StatusGoingAway, StatusPolicyViolation, StatusInternalError, StatusServiceRestart, StatusTryAgainLater:
			if listener {
				break
			}
			fallthrough
		default:
			may := "the dialling side may send 1000 and 3000 to 4999"
			if listener {
				may = "the listening side may send 1000, 1001, 1008, 1011, 1012, 1013 and 3000 to 4999"
			}
			return &SyntaxError{"close code", strconv.Itoa(int(code)), may}
		}
	}
	if len(reason) > maxReason {
		return errReasonLong
	}
	if !utf8.ValidString(reason) {
		return errReasonUTF8
	}
	return nil
}

// CloseWait is [WebSocket.CloseWith] and [WebSocket.Wait] in one call. It returns
// when the socket is CLOSED, which takes no longer than CloseTimeout once the
// messages sent before are out. If the CloseEvent's WasClean is true, the peer has
// received them all. Its error is CloseWith's, or ctx's; ctx ends the wait, not
// the closing. Messages that nobody has read are thrown away. A callback of the
// socket must not call it: it would wait for itself.
func (c *WebSocket) CloseWait(ctx context.Context, code StatusCode, reason string) (CloseEvent, error) {
	if err := c.CloseWith(code, reason); err != nil {
		return CloseEvent{}, err
	}
	return c.Wait(ctx)
}

// Abort ends the connection at once, without a closing handshake. Queued
// messages are lost. OnClose still runs.
func (c *WebSocket) Abort() error {
	c.abort(InitiatorLocal, errAborted)
	return nil
}

// startClose begins the closing handshake from our side.
func (c *WebSocket) startClose(by Initiator, cause error, code StatusCode, reason string) {
	c.mu.Lock()
	if c.ReadyState() == Connecting {
		c.mu.Unlock()
		c.abort(by, errNeverOpen)
		return
	}
	moved := c.closingLocked(by, cause)
	c.mu.Unlock()
	if moved {
		c.sendClose(code, reason)
	}
}

// fail is the RFC's "fail the WebSocket connection" (§7.1.7): the peer is told
// the code and a constant reason. The reader calls it.
func (c *WebSocket) fail(err error) {
	code, reason := StatusProtocolError, ""
	switch e := err.(type) {
	case *ProtocolError:
		code, reason = e.Code, e.Reason
	case *LimitError:
		code, reason = e.Code, "over the limit"
	}
	c.mu.Lock()
	c.closingLocked(InitiatorLimit, err)
	c.mu.Unlock()
	c.sendClose(code, reason)
}

// peerClose takes the peer's Close frame and answers it. The reader calls it.
func (c *WebSocket) peerClose(code StatusCode, reason string) {
	c.mu.Lock()
	c.life.closing.code = code
	if reason != "" {
		c.makeRareLocked().reason = reason
	}
	c.closingLocked(InitiatorPeer, nil)
	c.stepLocked(theyClosed)
	c.mu.Unlock()
	if code == StatusNoStatusReceived {
		code = 0
	}
	c.sendClose(code, reason) // §5.5.1: echo the code; browsers and others expect the reason too
}

// closeSentLocked starts the time of the closing handshake: the kernel has our Close
// frame. wmu is held.
func (c *WebSocket) closeSentLocked() {
	c.mu.Lock()
	c.stepLocked(weClosed)
	c.closeByLocked()
	c.mu.Unlock()
}

// awaitShaken waits until the closing handshake is complete, or cannot be any
// more, or the peer has taken and sent nothing for CloseTimeout. It does not wait
// for callbacks, so one that goes on, or that calls it, does not hold it up where
// the reading goes on meanwhile.
func (c *WebSocket) awaitShaken() {
	c.mu.Lock()
	x := c.makeRareLocked()
	if x.shaken == nil {
		x.shaken = make(chan struct{})
		c.shakenLocked()
	}
	ch := x.shaken
	c.mu.Unlock()
	var over <-chan time.Time
	var timer *time.Timer
	if d := c.set.closeTimeout; d > 0 {
		timer = time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	for before := c.progress(); ; {
		select {
		case <-ch:
			return
		case <-over:
		}
		now := c.progress()
		if now == before {
			return
		}
		before = now
		timer.Reset(c.set.closeTimeout)
	}
}

// shakenLocked wakes awaitShaken if its time has come. mu is held.
func (c *WebSocket) shakenLocked() {
	ch := c.rareLocked().shaken
	if ch == nil || c.life.closing.step != closeComplete && !c.severed() {
		return
	}
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// closeByLocked gives the peer CloseTimeout from now on, if it has not got it
// already. The clock watches. mu is held.
func (c *WebSocket) closeByLocked() {
	if d, x := c.set.closeTimeout, &c.life.closing; d > 0 && x.by == 0 {
		x.by = max(c.clockNowLocked()+millis(d), 1)
	}
}

// checkClosing has a closing handshake end that takes too long. The clock calls it.
func (c *WebSocket) checkClosing(now uint32) {
	c.mu.Lock()
	by := c.life.closing.by
	c.mu.Unlock()
	switch {
	case by == 0 || c.severed():
	case before(now, by):
		c.noteClosing(now)
	case c.aliveSinceClose(now):
		c.mu.Lock()
		c.life.closing.by = max(now+millis(c.set.closeTimeout), 1)
		c.mu.Unlock()
	default:
		c.abort(InitiatorTimeout, errCloseTimeout)
	}
}

// abort tears the transport down and wakes the reader, which does the rest.
func (c *WebSocket) abort(by Initiator, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() == Closed {
		return
	}
	if x := &c.life.closing; by == InitiatorTimeout && x.first != 0 && c.rareLocked().cause == nil && !x.step.received() {
		c.makeRareLocked().cause = cause // an ordinary close that the peer did not answer
	}
	c.setState(isSevered)
	c.closingLocked(by, cause)
	c.shakenLocked()
	if c.conn == nil { // it is connecting
		c.life.rare.cancel()
		return
	}
	sever(c.conn)
}

// readForLocked has the socket end when patience is over, whether or not the
// program has read what has come until then; but see readOnLocked. mu is held.
func (c *WebSocket) readForLocked(patience time.Duration) {
	x := c.makeRareLocked()
	if !x.readUntil.IsZero() && !time.Now().Add(patience).Before(x.readUntil) {
		return
	}
	x.readUntil, x.readFor = time.Now().Add(patience), patience
	if x.calls != nil {
		x.calls.took = false
	}
	// The reader may be waiting for a program that reads no more.
	time.AfterFunc(patience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.openGateLocked()
		if c.sock() != nil && !c.severed() { // it knows no deadline to come
			c.wakeLocked(past)
		}
	})
	if !c.severed() && x.tasks == nil { // tasks have woken the reader, which will set it
		c.wakeLocked(x.readUntil)
	}
}

// readOnLocked gives the program more time to read what has come, and reports
// whether it did: the program goes on reading, and the peer can send nothing more,
// so that there is an end to it. The reader calls it when its time is over; mu is
// held.
func (c *WebSocket) readOnLocked() bool {
	if broken, ended := c.hungUp(); !broken && !ended {
		return false
	}
	x := c.life.rare
	x.readUntil = time.Time{}
	c.readForLocked(x.readFor)
	return true
}

// closingLocked makes the socket CLOSING, wakes who must know, and reports
// whether it was not before. mu is held.
func (c *WebSocket) closingLocked(by Initiator, cause error) bool {
	moved := c.setState(isClosing)
	c.becauseLocked(by, cause)
	c.openGateLocked() // messages are thrown away now
	c.wakeReadLocked()
	return moved
}

// because records who ended the connection and why; the first one stays.
func (c *WebSocket) because(by Initiator, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.becauseLocked(by, cause)
}

func (c *WebSocket) becauseLocked(by Initiator, cause error) {
	if x := &c.life.closing; x.first == 0 {
		x.first = uint8(by) + 1
		if cause != nil {
			c.makeRareLocked().cause = cause
		}
	}
}

// eventLocked is the CloseEvent as far as it is known. mu is held.
func (c *WebSocket) eventLocked() CloseEvent {
	x := &c.life.closing
	ev := CloseEvent{
		Code:      StatusAbnormalClosure,
		WasClean:  x.step == closeComplete,
		Initiator: x.initiator(),
		Err:       c.rareLocked().cause,
	}
	if x.step.received() {
		ev.Code, ev.Reason = x.code, c.rareLocked().reason
	}
	return ev
}

// notOpenErr is the error of a method that needs an OPEN socket.
func (c *WebSocket) notOpenErr(op string) error {
	if c.ReadyState() == Connecting {
		return ErrNotOpen
	}
	return c.closedErr(op)
}

// closedErr is the error of a method called too late.
func (c *WebSocket) closedErr(op string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &closedError{op, c.eventLocked()}
}

// finish takes the connection from the end of reading to CLOSED and delivers
// the last events. It is the end of the reader.
func (c *WebSocket) finish(v verdict) {
	if v == vClosing {
		c.awaitWritten()
		c.endTransport()
	}
	c.wmu.Lock()
	c.writer.mode = writeShut
	c.takeCorkLocked().free() // nobody writes to the descriptor from now on
	if s := sockOf(c.raw); s != nil && c.writer.running {
		c.stopWriterLocked(s)
	}
	c.mu.Lock()
	c.setState(isSevered) // no deadline of the writer's any more
	if c.writer.running {
		c.conn.SetWriteDeadline(past)
	}
	c.mu.Unlock()
	c.wmu.Unlock()
	c.awaitWriter()
	transportOf(c.conn).Close() // TLS has said its goodbye above, or has none to say

	c.core.release()
	c.noteHeld()
	c.in.free()
	c.in = nil
	c.dropAhead()
	c.wmu.Lock()
	c.writer.out.free()
	c.writer.out = nil
	c.writer.dropHeldLocked()
	c.noteQueuedLocked()
	c.roomLocked()
	c.wmu.Unlock()
	c.end()
}

// endTransport ends our side of the transport when nothing more is to be said, and
// waits for the peer's end where that is needed. The listening side ends it first
// (§7.1.1), and so does whoever has failed the connection. Closing with unread bytes
// would reset it, and our Close frame could be lost with that: so we wait for the
// peer's end, unless it has our Close frame already, or would wait for our end.
func (c *WebSocket) endTransport() {
	c.mu.Lock()
	x := c.life.closing
	c.mu.Unlock()
	listening, received := !c.core.client, x.step.received()
	wait := true
	switch {
	case c.severed():
		wait = false
	case listening || !received:
		half := closeWrite(c.conn)
		if listening && received && (!half || x.initiator() == InitiatorLocal) {
			wait = false
		}
	default:
		closeNotify(c.conn)
	}
	if wait {
		c.drain()
	}
}

// end makes the socket CLOSED and runs its last callbacks.
func (c *WebSocket) end() {
	if c.owner != nil {
		c.owner.forget(c)
	}
	c.runTasks()
	c.mu.Lock()
	clock := c.rareLocked().clock
	c.life.requestHead = ""
	c.setState(isClosed)
	c.shakenLocked()
	c.wakeReadLocked()
	if c.life.stage == stageHeld { // OnConnection comes first
		returned := c.life.rare.returned
		c.mu.Unlock()
		<-returned
		c.runTasks() // what it has posted comes before OnError and OnClose
		c.mu.Lock()
	}
	onError, onClose, ev := c.rareLocked().onError, c.life.onClose, c.eventLocked()
	c.life.onClose = nil
	if x := c.life.rare; x != nil {
		x.onOpen, x.onError = nil, nil
	}
	c.mu.Unlock()
	clock.stop()
	if l := c.owner; l != nil {
		l.logClosed(c, ev)
		if l.trace != nil && l.trace.Closed != nil {
			l.trace.Closed(c, ev)
		}
	}
	if onError != nil && ev.Err != nil {
		onError(c, ev.Err)
	}
	if onClose != nil {
		onClose(c, ev)
	}
	for {
		c.runTasks()
		c.mu.Lock()
		if c.rareLocked().tasks == nil {
			break
		}
		c.mu.Unlock()
	}
	c.life.stage = stageEnded
	if done := c.rareLocked().doneCh; done != nil {
		close(done)
	}
	c.mu.Unlock()
}

// awaitWritten waits until the queue, our Close frame last, is with the kernel,
// or can never be.
func (c *WebSocket) awaitWritten() { c.awaitWrite(func() bool { return c.writer.out == nil }) }

// awaitWriter waits for the writer goroutine to be gone.
func (c *WebSocket) awaitWriter() { c.awaitWrite(func() bool { return !c.writer.running }) }

func (c *WebSocket) awaitWrite(over func() bool) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for !over() {
		c.roomWaitLocked(context.Background())
	}
}

// Done returns a channel that is closed after OnClose has returned: no callback
// of this socket runs after that, but one that is set even later.
func (c *WebSocket) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doneLocked()
}

func (c *WebSocket) doneLocked() chan struct{} {
	x := c.makeRareLocked()
	if x.doneCh == nil {
		x.doneCh = make(chan struct{})
		if c.life.stage >= stageEnded {
			close(x.doneCh)
		}
	}
	return x.doneCh
}

// Wait waits for the end and returns how it came. An error is ctx's.
func (c *WebSocket) Wait(ctx context.Context) (CloseEvent, error) {
	select {
	case <-c.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.eventLocked(), nil
	case <-ctx.Done():
		return CloseEvent{}, context.Cause(ctx)
	}
}
