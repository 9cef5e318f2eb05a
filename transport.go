package peerws

import (
	"crypto/tls"
	"errors"
	"net"
	"reflect"
)

// What a connection stands on: the layers of a net.Conn, and how each is ended.

// closeWrite ends our direction of the transport, and reports whether it has one
// that the peer can see the end of.
func closeWrite(conn net.Conn) bool {
	closeNotify(conn)
	if h, ok := transportOf(conn).(interface{ CloseWrite() error }); ok && h.CloseWrite() != errors.ErrUnsupported {
		return true
	}
	return isTLS(conn)
}

// sever ends a transport at once, both directions: every Read and Write comes
// back. It waits for nothing. A socket keeps its descriptor: Close is still to come.
func sever(conn net.Conn) {
	if f := foreignOf(conn); f != nil {
		f.cut()
		return
	}
	conn.SetDeadline(past)
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
	case *foreignConn:
		return c.conn
	}
	return nil
}

// socketOf returns what everything lies on.
func socketOf(conn net.Conn) net.Conn {
	for next := conn; next != nil; next = under(next) {
		conn = next
	}
	return conn
}

// kernelOf returns the socket that conn lies on, for questions to the kernel only: a
// transport of the program's often wraps one, and does not show it. It returns
// something else if there is none to be found.
func kernelOf(conn net.Conn) net.Conn {
	const deepest = 16
	for range deepest {
		next := under(conn)
		if h, ok := conn.(interface{ NetConn() net.Conn }); ok && next == nil {
			next = h.NetConn()
		} else if next == nil && !isSocket(conn) {
			next = embedded(conn)
		}
		if next == nil {
			break
		}
		conn = next
	}
	return conn
}

// embedded returns the connection that conn's type embeds, nil if it does not.
func embedded(conn net.Conn) net.Conn {
	v := reflect.Indirect(reflect.ValueOf(conn))
	if v.Kind() != reflect.Struct {
		return nil
	}
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Anonymous && f.IsExported() {
			if c, ok := v.Field(i).Interface().(net.Conn); ok {
				return c
			}
		}
	}
	return nil
}

// transportOf returns the transport without TLS. To close it ends a connection at
// once: tls.Conn would wait for a Write that is stuck, or to say goodbye.
func transportOf(conn net.Conn) net.Conn {
	if f := foreignOf(conn); f != nil {
		return f
	}
	return socketOf(conn)
}

// foreignOf returns the uppermost foreignConn among a transport's layers, nil if
// there is none.
func foreignOf(conn net.Conn) *foreignConn {
	for ; conn != nil; conn = under(conn) {
		if f, ok := conn.(*foreignConn); ok {
			return f
		}
	}
	return nil
}

// closeNotify tells a TLS peer that nothing more comes (RFC 8446 §6.1), so that
// it can tell the end from a cut. Nothing may be being written.
func closeNotify(conn net.Conn) {
	for ; conn != nil; conn = under(conn) {
		switch c := conn.(type) {
		case *tls.Conn:
			c.CloseWrite()
		case *foreignConn: // of somebody else's TLS nobody knows what it waits for
			if under(c.conn) != nil {
				c.while(func() { closeNotify(c.conn) })
			}
			return
		}
	}
}
