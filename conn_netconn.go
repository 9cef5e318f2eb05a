package peerws

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// NetConn returns the socket as a net.Conn: a stream of bytes, each Write one
// message of type t, each message of that type some bytes to read. Messages of
// the other type fail the reading. It belongs to Read's style of reading.
//
// Read returns io.EOF when the peer has closed with 1000, 1001 or without a
// code. Write returns when its bytes are queued, all of them or none; text must be
// UTF-8 as a whole. A Write may have any size, but the peer may have a limit for a
// message: that of this package is MaxMessageSize, 1 MiB by default. A WebSocket
// has no half-close, so there is no CloseWrite. A deadline that has passed ends
// the wait only: the connection goes on when it is moved.
//
// Close closes with 1000 and waits until the closing handshake is complete, or the
// peer has taken and sent nothing for CloseTimeout. If it is complete the peer has
// received what was written, and a program may end. If it is not, or the peer has
// closed with a complaint, Close returns an error that wraps net.ErrClosed and the
// [CloseEvent]. What nobody has read is thrown away. In OnMessage, which holds the
// peer's answer up, Close can only wait for that time.
func (c *WebSocket) NetConn(t MessageType) net.Conn {
	return &netConn{c: c, t: t, deadlines: newDeadlines()}
}

type netConn struct {
	c *WebSocket
	t MessageType
	deadlines

	mu  sync.Mutex // one Read at a time; before every lock of the socket
	r   io.Reader  // the message being read, nil between two
	now moment     // of the Read that is going on; r knows it too
}

var errOtherType = errors.New("peerws: NetConn: message of the other type")

// Read reads from the messages as they come.
func (n *netConn) Read(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = n.rd.now()
	if err := n.now.Err(); err != nil {
		return 0, n.opError("read", err)
	}
	for {
		if n.r == nil {
			t, r, err := n.c.NextReader(&n.now)
			if err != nil {
				return 0, n.readError(err)
			}
			if t != n.t {
				n.c.startClose(InitiatorLocal, errOtherType, StatusUnsupportedData, "")
				return 0, n.opError("read", errOtherType)
			}
			n.r = r
		}
		k, err := n.r.Read(p)
		switch {
		case err == nil && (k > 0 || len(p) == 0):
			return k, nil
		case err == io.EOF:
			n.r = nil
		case err != nil:
			return k, n.readError(err)
		}
	}
}

// readError is io.EOF after an ordinary close by the peer.
func (n *netConn) readError(err error) error {
	if ev, ok := errors.AsType[CloseEvent](err); ok && ev.Initiator == InitiatorPeer && ev.ordinary() {
		return io.EOF
	}
	return n.opError("read", err)
}

// Write sends p as one message. An empty one sends nothing.
func (n *netConn) Write(p []byte) (int, error) {
	now := n.wr.now()
	if err := now.Err(); err != nil {
		return 0, n.opError("write", err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	// It is taken whole or not at all, so that a deadline leaves no half message
	// behind. It leaves in fragments all the same.
	if err := n.c.Write(now, Message{Type: n.t, Data: p}); err != nil {
		return 0, n.opError("write", err)
	}
	return len(p), nil
}

// Close closes with 1000 and waits for the peer's answer.
func (n *netConn) Close() error {
	c := n.c
	c.CloseWith(StatusNormalClosure, "")
	c.awaitShaken()
	c.mu.Lock()
	ev := c.eventLocked()
	c.mu.Unlock()
	switch {
	case ev.WasClean && ev.ordinary() && ev.Err == nil:
		return nil
	case !ev.WasClean && ev.Err == nil && ev.Initiator == InitiatorLocal:
		ev.Err = errCloseTimeout
	}
	return n.opError("close", &closedError{"close", ev})
}

func (n *netConn) LocalAddr() net.Addr  { return n.c.LocalAddr() }
func (n *netConn) RemoteAddr() net.Addr { return n.c.RemoteAddr() }

// opError wraps err as the net package does.
func (n *netConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "websocket", Source: n.LocalAddr(), Addr: n.RemoteAddr(), Err: err}
}

// deadlines are those of a net.Conn.
type deadlines struct{ rd, wr *deadline }

func newDeadlines() deadlines { return deadlines{newDeadline(), newDeadline()} }

func (d deadlines) SetDeadline(t time.Time) error {
	d.rd.set(t)
	d.wr.set(t)
	return nil
}

func (d deadlines) SetReadDeadline(t time.Time) error {
	d.rd.set(t)
	return nil
}

func (d deadlines) SetWriteDeadline(t time.Time) error {
	d.wr.set(t)
	return nil
}

// A deadline is a time that can be moved.
type deadline struct {
	mu    sync.Mutex // taken under any other lock; nothing is locked under it
	timer *time.Timer
	over  chan struct{} // closed when it has passed
}

func newDeadline() *deadline { return &deadline{over: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.over // it has fired, or is about to
	}
	d.timer = nil
	select {
	case <-d.over:
		d.over = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	over := d.over
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(over) })
	} else {
		close(over)
	}
}

// now returns the deadline as a call that begins now sees it.
func (d *deadline) now() moment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return moment{d.over}
}

// A moment is a context that ends with a deadline, also if that is moved before
// it has passed. Once it has ended it stays so: a deadline itself, moved just
// after it has passed, would be a context that is done without an error.
type moment struct{ over <-chan struct{} }

func (m moment) Done() <-chan struct{} { return m.over }

func (m moment) Err() error {
	select {
	case <-m.over:
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

func (m moment) Deadline() (time.Time, bool) { return time.Time{}, false }
func (m moment) Value(any) any               { return nil }

var _ context.Context = moment{}
