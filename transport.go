package peerws

import (
	"crypto/tls"
	"net"
)

// What a connection stands on: the layers of a net.Conn, and how each is ended.

// closeWrite ends our direction of the transport, where it has one.
func closeWrite(conn net.Conn) {
	closeNotify(conn)
	if h, ok := socketOf(conn).(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

// shutdown ends both directions without giving the descriptor up. It does not
// wait for anything.
func shutdown(conn net.Conn) {
	conn = socketOf(conn)
	if h, ok := conn.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
	if h, ok := conn.(interface{ CloseRead() error }); ok {
		h.CloseRead()
	}
}

// An earlyConn is a connection of which some bytes have been read already.
type earlyConn struct {
	net.Conn
	early []byte // owned by the reader
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// under returns what one of our layers, or TLS, lies on; nil for anything else.
func under(conn net.Conn) net.Conn {
	switch c := conn.(type) {
	case *tls.Conn:
		return c.NetConn()
	case *steadyConn:
		return c.Conn
	case *earlyConn:
		return c.Conn
	}
	return nil
}

// socketOf returns the transport without TLS. To end a connection at once is its
// matter: tls.Conn would wait for a Write that is stuck, or to say goodbye.
func socketOf(conn net.Conn) net.Conn {
	for next := conn; next != nil; next = under(next) {
		conn = next
	}
	return conn
}

// closeNotify tells a TLS peer that nothing more comes (RFC 8446 §6.1), so that
// it can tell the end from a cut. Nothing may be being written.
func closeNotify(conn net.Conn) {
	for ; conn != nil; conn = under(conn) {
		if t, ok := conn.(*tls.Conn); ok {
			t.CloseWrite()
		}
	}
}
