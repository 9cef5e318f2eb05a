package peerws

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the peer has sent before it went is for the program to read, also if that
// takes longer than any of our times, as long as it goes on reading.
func TestEnds_WhatHasComeIsRead(t *testing.T) {
	const count, size = 60, 1500 // more than a block
	ctx := context.Background()
	pause := func() { time.Sleep(2 * time.Millisecond) }
	// Each returns how many messages it got.
	styles := map[string]func(c *WebSocket) int{
		"Read": func(c *WebSocket) (n int) {
			for {
				if _, err := c.Read(ctx); err != nil {
					return n
				}
				n++
				pause()
				c.SendText("a reply that fails sooner or later")
			}
		},
		"NextReader": func(c *WebSocket) (n int) {
			for {
				_, r, err := c.NextReader(ctx)
				if err != nil {
					return n
				}
				for range 4 {
					if _, err := io.CopyN(io.Discard, r, size/4); err != nil {
						return n
					}
					pause()
				}
				n++
			}
		},
		"NetConn": func(c *WebSocket) (n int) {
			conn := c.NetConn(Binary)
			for {
				if _, err := io.CopyN(io.Discard, conn, size); err != nil {
					return n
				}
				n++
				pause()
				conn.Write([]byte("a reply that fails sooner or later"))
			}
		},
		"OnMessage": func(c *WebSocket) (n int) {
			c.OnMessage(func(*WebSocket, Message) {
				n++
				pause()
				c.SendText("a reply that fails sooner or later")
			})
			c.Wait(ctx)
			return n
		},
	}
	ends := map[string]func(p *net.TCPConn){
		"end":   func(p *net.TCPConn) { p.CloseWrite() },
		"reset": func(p *net.TCPConn) { p.SetLinger(0); p.Close() },
	}
	for _, path := range []string{"raw", "portable"} {
		for style, read := range styles {
			for end, do := range ends {
				t.Run(style+"/"+end+"/"+path, func(t *testing.T) {
					t.Parallel()
					got := make(chan int, 1)
					gone := make(chan struct{})
					l := listen(t, ListenConfig{
						PingInterval: 20 * time.Millisecond, PongTimeout: 20 * time.Millisecond,
						CloseTimeout: 40 * time.Millisecond, MaxBufferedAmount: 1 << 20,
						portable: path == "portable",
						OnConnection: func(c *WebSocket) {
							go func() {
								<-gone
								got <- read(c)
							}()
						},
					})
					p := rawClient(t, l).(*net.TCPConn)
					defer p.Close()
					one := clientFrame(0x82, make([]byte, size))
					for range count {
						if _, err := p.Write(one); err != nil {
							t.Fatal(err)
						}
					}
					for unsent(t, p) > 0 { // with the other kernel
						time.Sleep(time.Millisecond)
					}
					do(p)
					close(gone)
					select {
					case n := <-got:
						if n != count {
							t.Errorf("%d of %d messages", n, count)
						}
					case <-time.After(20 * time.Second):
						t.Fatalf("it never ends: %+v", l.Stats())
					}
				})
			}
		}
	}
}

// unsent tells how much the other kernel has not taken.
func unsent(t *testing.T, p *net.TCPConn) (n int) {
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ); err != nil {
			t.Error(err)
		}
	})
	return n
}
