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
	c.lf.received, c.lf.code = true, code
	if reason != "" {
		c.rareLocked().reason = reason
	}
	c.closingLocked(InitiatorPeer, nil)
	c.shakenLocked()
	c.mu.Unlock()
	if code == StatusNoStatusReceived {
		code = 0
	}
	c.sendClose(code, reason) // §5.5.1: echo the code; browsers and others expect the reason too
}

// closeSent starts the time of the closing handshake: the kernel has our Close
// frame. wmu is held.
func (c *WebSocket) closeSent() {
	c.mu.Lock()
	c.lf.sent = true
	c.shakenLocked()
	c.mu.Unlock()
	c.closeBy()
}

// awaitShaken waits until the closing handshake is complete, or cannot be any
// more, or until over. It does not wait for callbacks, so one that goes on, or
// that calls it, does not hold it up where the reading goes on meanwhile.
func (c *WebSocket) awaitShaken(over <-chan time.Time) {
	c.mu.Lock()
	x := c.rareLocked()
	if x.shaken == nil {
		x.shaken = make(chan struct{})
		c.shakenLocked()
	}
	ch := x.shaken
	c.mu.Unlock()
	select {
	case <-ch:
	case <-over:
	}
}

// shakenLocked wakes awaitShaken if its time has come. mu is held.
func (c *WebSocket) shakenLocked() {
	ch := c.seldom().shaken
	if ch == nil || !(c.lf.sent && c.lf.received || c.aborted.Load() || c.ReadyState() == Closed) {
		return
	}
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// closeBy gives the peer CloseTimeout from now on, if it has not got it already.
// The clock watches. wmu is held.
func (c *WebSocket) closeBy() {
	if d := c.set.closeTimeout; d > 0 && c.wr.closeBy == 0 {
		c.wr.closeBy = max(c.clockNow()+millis(d), 1)
	}
}

// abort tears the transport down and wakes the reader, which does the rest.
func (c *WebSocket) abort(by Initiator, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() == Closed {
		return
	}
	if by == InitiatorTimeout && c.lf.caused && c.seldom().cause == nil && !c.lf.received {
		c.rareLocked().cause = cause // an ordinary close that the peer did not answer
	}
	c.aborted.Store(true)
	c.closingLocked(by, cause)
	c.shakenLocked()
	if c.conn == nil { // it is connecting
		c.lf.x.cancel()
		return
	}
	sever(c.conn)
}

// closingLocked makes the socket CLOSING, wakes who must know, and reports
// whether it was not before. mu is held.
func (c *WebSocket) closingLocked(by Initiator, cause error) bool {
	moved := c.setState(Closing)
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
	if !c.lf.caused {
		c.lf.caused, c.lf.initiator = true, by
		if cause != nil {
			c.rareLocked().cause = cause
		}
	}
}

// eventLocked is the CloseEvent as far as it is known. mu is held.
func (c *WebSocket) eventLocked() CloseEvent {
	ev := CloseEvent{
		Code:      StatusAbnormalClosure,
		WasClean:  c.lf.sent && c.lf.received,
		Initiator: c.lf.initiator,
		Err:       c.seldom().cause,
	}
	if c.lf.received {
		ev.Code, ev.Reason = c.lf.code, c.seldom().reason
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
// the last events. It is the end of the connection's goroutine.
func (c *WebSocket) finish(v verdict) {
	if v == vClosing {
		c.awaitWritten()
		c.mu.Lock()
		listening, received := !c.core.client, c.lf.received
		answered := received && c.lf.initiator == InitiatorLocal // the peer has our Close frame already
		c.mu.Unlock()
		// The listening side ends the transport first (§7.1.1), and so does
		// whoever has failed the connection. Closing with unread bytes would
		// reset it, and our Close frame could be lost with that: so we wait for
		// the peer's end, unless it has answered, or would wait for ours.
		switch {
		case c.aborted.Load():
		case listening || !received:
			answered = !closeWrite(c.conn) && received || answered
		default:
			closeNotify(c.conn)
		}
		if !listening || !answered {
			c.drain()
		}
	}
	c.wmu.Lock()
	c.wr.shut = true
	c.mu.Lock()
	c.aborted.Store(true) // no deadline of the writer's any more
	if c.wr.running {
		c.conn.SetWriteDeadline(past)
	}
	c.mu.Unlock()
	c.wmu.Unlock()
	c.awaitWriter()
	transportOf(c.conn).Close() // TLS has said its goodbye above, or has none to say

	c.core.release()
	c.in.free()
	c.in = nil
	c.dropAhead()
	c.wmu.Lock()
	c.wr.out.free()
	c.wr.out = nil
	c.wr.dropHeld()
	c.takeCork().free()
	c.roomLocked()
	c.wmu.Unlock()
	c.end()
}

// end makes the socket CLOSED and runs its last callbacks.
func (c *WebSocket) end() {
	if c.owner != nil {
		c.owner.forget(c)
	}
	c.runTasks()
	c.mu.Lock()
	clock := c.seldom().clock
	c.lf.head = ""
	c.setState(Closed)
	c.shakenLocked()
	c.wakeReadLocked()
	if c.lf.entry == entryHeld { // OnConnection comes first
		returned := c.lf.x.returned
		c.mu.Unlock()
		<-returned
		c.runTasks() // what it has posted comes before OnError and OnClose
		c.mu.Lock()
	}
	onError, onClose, ev := c.seldom().onError, c.lf.onClose, c.eventLocked()
	c.lf.onClose = nil
	if x := c.lf.x; x != nil {
		x.onOpen, x.onError = nil, nil
	}
	c.mu.Unlock()
	clock.stop()
	if c.owner != nil {
		c.owner.logClosed(c, ev)
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
		if c.seldom().tasks == nil {
			break
		}
		c.mu.Unlock()
	}
	c.lf.ended = true
	if done := c.seldom().doneCh; done != nil {
		close(done)
	}
	c.mu.Unlock()
}

// awaitWritten waits until the queue, our Close frame last, is with the kernel,
// or can never be.
func (c *WebSocket) awaitWritten() { c.awaitWrite(func() bool { return c.wr.out == nil }) }

// awaitWriter waits for the writer goroutine to be gone.
func (c *WebSocket) awaitWriter() { c.awaitWrite(func() bool { return !c.wr.running }) }

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
	x := c.rareLocked()
	if x.doneCh == nil {
		x.doneCh = make(chan struct{})
		if c.lf.ended {
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
