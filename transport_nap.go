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

// A nap waits for a socket to be readable. One goroutine uses it.
type nap struct {
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

// newNap returns a nap for conn, nil if it is no socket.
func newNap(conn net.Conn) *nap {
	n := &nap{}
	if e, ok := conn.(*earlyConn); ok {
		n.early, conn = e, e.Conn
	}
	if n.raw = rawConn(conn); n.raw == nil {
		return nil
	}
	n.readFn, n.waitFn = n.tryRead, n.readable
	return n
}

// read reads what is there, or returns errNotYet.
func (n *nap) read(p []byte) (int, error) {
	if n.early != nil {
		if len(n.early.early) > 0 {
			return n.early.Read(p)
		}
		n.early = nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	n.p = p
	err := n.raw.Read(n.readFn)
	n.p = nil
	switch {
	case err != nil:
		return 0, err
	case n.err != nil && wouldBlock(n.err):
		return 0, errNotYet
	case n.err != nil:
		return 0, n.err
	case n.n == 0:
		return 0, io.EOF
	}
	return n.n, nil
}

func (n *nap) tryRead(fd uintptr) bool {
	n.n, n.err = sysRead(fd, n.p)
	return true
}

// wait waits until there is something to read, an end or an error included.
func (n *nap) wait() error { return n.raw.Read(n.waitFn) }

// readable parks only after it has seen that there is nothing, as the raw path
// does: the poller is edge-triggered.
func (n *nap) readable(fd uintptr) bool { return !sysEmpty(fd) }
