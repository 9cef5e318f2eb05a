package peerws

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// A pacedConn reads 64 KiB at a time, then pauses.
type pacedConn struct {
	net.Conn
	left int
}

func (c *pacedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		time.Sleep(100 * time.Millisecond)
		c.left = 64 << 10
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// A peer that takes megabytes slowly, most of which lie in the kernel, with pings
// and the Close frame behind them, is neither given up nor cut off.
func TestProgress_SlowIsNotDead(t *testing.T) {
	const count = 5
	for name, kind := range map[string]struct{ secure, wrapped bool }{"plain": {}, "TLS": {secure: true}, "wrapped": {wrapped: true}, "TLS, wrapped": {true, true}} {
		t.Run(name, func(t *testing.T) {
			secure, listen := kind.secure, listen
			if kind.wrapped {
				listen = listenWrapped
			}
			t.Parallel()
			ended := make(chan CloseEvent, 1)
			cfg := ListenConfig{
				PingInterval: 200 * time.Millisecond, PongTimeout: 1500 * time.Millisecond,
				WriteTimeout: 1500 * time.Millisecond, CloseTimeout: 1500 * time.Millisecond,
				MaxBufferedAmount: count << 20,
				OnConnection: func(c *WebSocket) {
					c.OnClose(func(_ *WebSocket, ev CloseEvent) { ended <- ev })
					for range count {
						if err := c.SendBinary(make([]byte, 1<<20)); err != nil {
							t.Error(err)
						}
					}
					time.AfterFunc(time.Second, func() { c.Close() })
				},
			}
			if secure {
				cfg.TLSConfig = serverConfig()
			}
			l := listen(t, cfg)
			d := Dialer{PingInterval: -1}
			if secure {
				d = trusting()
				d.PingInterval = -1
			}
			d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &pacedConn{Conn: conn}, nil
			}
			c, err := d.Dial(t.Context(), l.URL())
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for _, err := range c.Messages(t.Context()) {
				if err != nil {
					t.Error(err)
					break
				}
				got++
			}
			if ev := <-ended; got != count || !ev.WasClean {
				t.Errorf("%d messages, %v", got, ev)
			}
		})
	}
}

// A peer that takes nothing is given up as ever, also if its host is alive.
func TestProgress_StuckIsDead(t *testing.T) {
	ended := make(chan CloseEvent, 1)
	l := listen(t, ListenConfig{
		PingInterval: -1, WriteTimeout: 200 * time.Millisecond, MaxBufferedAmount: 64 << 20,
		OnConnection: func(c *WebSocket) {
			c.OnClose(func(_ *WebSocket, ev CloseEvent) { ended <- ev })
			c.SendBinary(make([]byte, 32<<20))
		},
	})
	p := rawClient(t, l)
	defer p.Close()
	if ev := <-ended; ev.Initiator != InitiatorTimeout || !errors.Is(ev, errWriteTimeout) {
		t.Errorf("%+v", ev)
	}
}

// The kernel queues no more than a little of what it may not send yet: what waits
// is ours to put a ping in front of.
func TestProgress_KernelQueueIsShort(t *testing.T) {
	opened := make(chan *WebSocket, 1)
	l := listen(t, ListenConfig{MaxBufferedAmount: 64 << 20, OnConnection: func(c *WebSocket) {
		c.SendBinary(make([]byte, 32<<20))
		opened <- c
	}})
	p := rawClient(t, l)
	defer p.Close()
	c := <-opened
	defer c.Abort()
	const tcpNotSentLowat = 25
	for got := 0; got != notSentLowat; time.Sleep(time.Millisecond) {
		raw, err := c.conn.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) {
			got, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat)
		}); e != nil {
			t.Fatal(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
