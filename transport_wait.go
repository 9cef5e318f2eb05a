package peerws

import (
	"io"
	"net"
	"syscall"
)

// A connection that is not read by the raw path waits in a Read, with a buffer
// and the stack that the layers above the socket need. For TLS over a socket
// that is much, so the two are taken apart: a Read that finds nothing says so,
// everything is given back, and then the goroutine waits for the socket.

// A readWait waits for a socket to be readable. One goroutine uses it.
type readWait struct {
	sock   *sock // that it is, if it is one of the engine's
	raw    syscall.RawConn
	early  *earlyConn // whose bytes come before the socket's, or nil
	readFn func(fd uintptr) bool
	waitFn func(fd uintptr) bool
	p      []byte // what readFn reads to
	n      int
	err    error
}

// notYet is the type of errNotYet, a net.Error.
type notYet struct{}

var errNotYet net.Error = notYet{}

func (notYet) Error() string   { return "nothing to read yet" }
func (notYet) Timeout() bool   { return true }
func (notYet) Temporary() bool { return true } // crypto/tls asks this

// newReadWait returns a readWait for conn, nil if it is not a socket.
func newReadWait(conn net.Conn) *readWait {
	w := &readWait{}
	if e, ok := conn.(*earlyConn); ok {
		w.early, conn = e, e.Conn
	}
	if w.raw = rawConn(conn); w.raw == nil {
		return nil
	}
	w.sock = sockOf(w.raw)
	w.readFn, w.waitFn = w.tryRead, w.readable
	return w
}

// read reads what is there, or returns errNotYet.
func (w *readWait) read(p []byte) (int, error) {
	if w.early != nil {
		if len(w.early.early) > 0 {
			return w.early.Read(p)
		}
		w.early = nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	w.p = p
	err := w.raw.Read(w.readFn)
	w.p = nil
	switch {
	case err != nil:
		return 0, err
	case w.err != nil && wouldBlock(w.err):
		return 0, errNotYet
	case w.err != nil:
		return 0, w.err
	case w.n == 0:
		return 0, io.EOF
	}
	return w.n, nil
}

func (w *readWait) tryRead(fd uintptr) bool {
	w.n, w.err = sysRead(fd, w.p)
	return true
}

// wait waits until there is something to read, an end or an error included.
func (w *readWait) wait() error { return w.raw.Read(w.waitFn) }

// readable parks only after it has seen that there is nothing, as the raw path
// does: the poller is edge-triggered.
func (w *readWait) readable(fd uintptr) bool { return !sysEmpty(fd) }
