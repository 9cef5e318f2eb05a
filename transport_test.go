package peerws

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

type hasNetConn struct {
	embedsInterface
	inner net.Conn
}

func (c hasNetConn) NetConn() net.Conn { return c.inner }

// The kernel can be asked about a socket inside transports that wrap it.
func TestKernelOf(t *testing.T) {
	a, b := tcpPair(t)
	defer a.Close()
	defer b.Close()
	pipe, other := net.Pipe()
	defer other.Close()
	defer pipe.Close()
	loop := &embedsInterface{}
	loop.Conn = loop
	for _, c := range []struct{ conn, want net.Conn }{
		{a, a},
		{newForeign(&embedsInterface{a}), a},
		{newForeign(embedsInterface{&embedsSocket{a.(*net.TCPConn)}}), a},
		{&earlyConn{Conn: &steadyConn{Conn: newForeign(hasNetConn{inner: embedsInterface{a}})}}, a},
		{newForeign(pipe), pipe},
		{newForeign(&embedsInterface{}), nil},
		{loop, loop},
	} {
		if got := kernelOf(c.conn); got != c.want && c.want != nil {
			t.Errorf("%T: %T, want %T", c.conn, got, c.want)
		}
	}
}

// deadTCP is a transport of which nothing works but Read, Write, Close and the
// addresses, and in which the kernel's socket is not to be found.
type deadTCP struct{ net.Conn }

func (deadTCP) SetDeadline(time.Time) error { return nil }

func (deadTCP) SetReadDeadline(time.Time) error { return nil }

func (deadTCP) SetWriteDeadline(time.Time) error { return nil }

func (deadTCP) NetConn() net.Conn { return nil }

// halfTCP is one that can be ended in one direction.
type halfTCP struct{ deadTCP }

func (c halfTCP) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// Over a transport without half-close a closing handshake ends the connection, too:
// nobody waits for an end that cannot come.
func TestForeign_NoHalfClose(t *testing.T) {
	for _, first := range []string{"ours", "the peer's"} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			c := newOpenWebSocket(testSettings(), newForeign(a), false, nil)
			c.OnMessage(nil)
			c.begin()
			within(t, 0, func() {
				p := peer{t, b}
				if first == "ours" {
					c.CloseWith(StatusNormalClosure, "")
					p.want("Close", close1000)
					p.send(maskedClose)
				} else {
					p.send(maskedClose)
					p.want("Close", close1000)
				}
				p.wantEOF()
				if ev := waitEnd(t, c); !ev.WasClean {
					t.Errorf("%s: %+v", first, ev)
				}
			})
			b.Close()
		})
	}
}
