package peerws

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// TLS, on the listener's one port and for the dialler, and what lies between it
// and a socket.

// recordHandshake is the first byte of a TLS connection (RFC 8446 §5.1). No HTTP
// request begins with it.
const recordHandshake = 0x16

const (
	protoHTTP = "http/1.1"
	protoACME = "acme-tls/1" // a certificate authority looks at ours (RFC 8737); nothing follows
)

var (
	errTLSConfig = &SyntaxError{"TLSConfig", "", "has neither Certificates nor GetCertificate nor GetConfigForClient"}
	errACME      = errors.New("TLS connection of a certificate authority (acme-tls/1)")
)

// serverTLS makes the listener's configuration of the program's, of which one may be nil.
func serverTLS(c *tls.Config, id *Identity) (*tls.Config, error) {
	if c != nil && len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		return nil, errTLSConfig
	}
	if id != nil {
		c = identityTLS(c, id)
	}
	c = onlyHTTP1(c)
	if choose := c.GetConfigForClient; choose != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := choose(hello)
			if c != nil {
				c = onlyHTTP1(c)
			}
			return c, err
		}
	}
	return c, nil
}

// onlyHTTP1 returns a copy of c that agrees on HTTP/1.1 only: HTTP/2 has no
// Upgrade. TLS 1.2 is the least. A program that lists acme-tls/1 keeps that.
func onlyHTTP1(c *tls.Config) *tls.Config {
	acme := slices.Contains(c.NextProtos, protoACME)
	c = c.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12) // whatever GODEBUG says
	c.NextProtos = []string{protoHTTP}
	if acme {
		c.NextProtos = append(c.NextProtos, protoACME)
	}
	return c
}

// sniff reads the first bytes of a transport into b, which is empty. If they
// begin TLS it does that handshake and returns the connection inside, b empty
// again. The transport's deadline bounds it.
func (l *WebSocketListener) sniff(conn net.Conn, b *buffer) (net.Conn, error) {
	for b.len() == 0 {
		n, err := conn.Read(b.b[:min(cap(b.b), l.maxHead)])
		b.extend(n)
		if n == 0 && err != nil {
			return conn, err
		}
	}
	if b.b[0] != recordHandshake {
		return conn, nil
	}
	t := tls.Server(&steadyConn{Conn: &earlyConn{conn, bytes.Clone(b.b)}}, l.tls)
	b.b = b.b[:0]
	if err := t.Handshake(); err != nil {
		return conn, err
	}
	if t.ConnectionState().NegotiatedProtocol == protoACME {
		return conn, errACME
	}
	return t, nil
}

// tlsOf returns a transport's uppermost layer of TLS, nil without one.
func tlsOf(conn net.Conn) *tls.Conn {
	for ; conn != nil; conn = under(conn) {
		if t, ok := conn.(*tls.Conn); ok {
			return t
		}
	}
	return nil
}

// isTLS reports whether conn is TLS.
func isTLS(conn net.Conn) bool { return tlsOf(conn) != nil }

// tlsState returns what was agreed on with the peer, nil without TLS.
func tlsState(conn net.Conn) *tls.ConnectionState {
	t := tlsOf(conn)
	if t == nil {
		return nil
	}
	s := t.ConnectionState()
	return &s
}

// A steadyConn makes a write's time-out mean that the peer took nothing for so
// long. It is needed for TLS, where a Write that has timed out is the end: it
// lies between tls.Conn and the socket, so that a slow peer that moves never
// brings that about. Over a tls.Conn that somebody else has made, net/http for
// example, it writes record by record instead.
type steadyConn struct {
	net.Conn
	piece int // the most a Write gets at a time; 0: all

	idle *readWait // how to wait for bytes without memory; nil if that is not possible, or not begun

	glance *foreignConn // that under it, while a Read is not to wait for it; else nil. Part of the read side

	mu    sync.Mutex // under it only locks of the transport below
	begun bool
	stall time.Duration // 0: never
	over  bool          // a deadline in the past has been set, and stays
}

// tlsRecord is the most that one TLS record holds (RFC 8446 §5.1).
const tlsRecord = 16 << 10

// wrapTLS puts a steadyConn over TLS that has none under it.
func wrapTLS(conn net.Conn) net.Conn {
	if _, ok := conn.(*tls.Conn); !ok {
		return conn
	}
	for c := conn; c != nil; c = under(c) {
		if _, ok := c.(*steadyConn); ok {
			return conn
		}
	}
	return &steadyConn{Conn: conn, piece: tlsRecord}
}

// readWaitOf returns how to wait for a TLS peer's bytes, nil if only a Read can.
func readWaitOf(conn net.Conn) *readWait {
	if s := steadyOf(conn); s != nil {
		return s.idle
	}
	return nil
}

// steadyOf returns the steadyConn right under TLS that is ours, nil without one.
func steadyOf(conn net.Conn) *steadyConn {
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil
	}
	s, _ := t.NetConn().(*steadyConn)
	return s
}

// beginTLS begins each steadyConn of a transport. Its engine is its only user
// from now on.
func beginTLS(conn net.Conn, stall time.Duration) {
	if s := steadyOf(conn); s != nil { // TLS in TLS waits in its Read
		s.idle = newReadWait(s.Conn)
	}
	for ; conn != nil; conn = under(conn) {
		if s, ok := conn.(*steadyConn); ok {
			s.begin(stall)
		}
	}
}

// begin ends the opening handshake, for which a deadline is a deadline.
func (c *steadyConn) begin(stall time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun, c.stall = true, stall
}

// Read returns errNotYet instead of waiting, where the engine can wait without
// holding the memory of a Read. To crypto/tls that is a time-out, which ends
// nothing.
func (c *steadyConn) Read(p []byte) (int, error) {
	switch {
	case c.idle != nil:
		return c.idle.read(p)
	case c.glance != nil && !c.glance.full():
		return 0, errNotYet
	}
	return c.Conn.Read(p)
}

// Write writes all of p, however long that takes, unless nothing was taken for
// the time of begin.
func (c *steadyConn) Write(p []byte) (n int, err error) {
	var s stall
	for {
		next := p[n:]
		if c.piece > 0 {
			next = next[:min(len(next), c.piece)]
		}
		c.rearm()
		k, err := c.Conn.Write(next)
		n += k
		switch {
		case n == len(p), err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		case k > 0:
			s = stall{}
		case c.piece > 0 || c.isOver() || s.over(c.Conn): // a TLS write that has timed out is not tried again
			return n, err
		}
	}
}

func (c *steadyConn) rearm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stall > 0 && !c.over {
		d := c.stall
		if c.piece == 0 {
			d = max(d/stallParts, 1)
		}
		c.Conn.SetWriteDeadline(time.Now().Add(d))
	}
}

// isOver reports whether a time-out is not one of rearm's.
func (c *steadyConn) isOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stall <= 0 || c.over
}

// SetWriteDeadline with a time in the past ends all writing, once begin was
// called; with any other it has no effect on a Write that comes later.
func (c *steadyConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil
	}
	c.over = c.begun && !t.IsZero() && !t.After(time.Now())
	return c.Conn.SetWriteDeadline(t)
}

func (c *steadyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.Conn.SetReadDeadline(t), c.SetWriteDeadline(t))
}
