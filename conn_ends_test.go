package peerws

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// However a transport ends, and however the program reads, or has stopped
// reading, the socket comes to CLOSED, OnClose runs once, and its place in the
// listener is free again. Rows: the reading style; columns: what the peer does.
func TestEverySocketEnds(t *testing.T) {
	ctx := context.Background()
	styles := []struct {
		name string
		run  func(c *WebSocket)
	}{
		{"OnMessage", func(c *WebSocket) {
			c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		}},
		{"nothing", func(*WebSocket) {}},
		{"Messages until Write fails", func(c *WebSocket) {
			go func() {
				for m, err := range c.Messages(ctx) {
					if err != nil {
						return
					}
					time.Sleep(5 * time.Millisecond) // the peer's end arrives meanwhile
					for range 2 {
						if c.Write(ctx, m) != nil {
							return
						}
					}
				}
			}()
		}},
		{"Read once", func(c *WebSocket) { go c.Read(ctx) }},
		{"NextReader to NextWriter", func(c *WebSocket) {
			go func() {
				for {
					typ, r, err := c.NextReader(ctx)
					if err != nil {
						return
					}
					w, err := c.NextWriter(ctx, typ)
					if err != nil {
						return
					}
					if _, err := io.Copy(w, r); err != nil {
						return
					}
					if w.Close() != nil {
						return
					}
				}
			}()
		}},
		{"NetConn, one Read", func(c *WebSocket) { go c.NetConn(Text).Read(make([]byte, 1)) }},
		{"loop in OnConnection", func(c *WebSocket) {
			for m, err := range c.Messages(ctx) {
				if err != nil || c.Write(ctx, m) != nil {
					return
				}
			}
		}},
		{"OnConnection reads once", func(c *WebSocket) { c.Read(ctx) }},
		{"OnConnection waits for the end", func(c *WebSocket) {
			for c.ReadyState() != Closed {
				time.Sleep(time.Millisecond)
			}
		}},
	}
	ends := []struct {
		name string
		do   func(p *net.TCPConn)
	}{
		{"reset", func(p *net.TCPConn) { p.SetLinger(0); p.Close() }},
		{"end", func(p *net.TCPConn) { p.CloseWrite() }},
		{"three messages and a reset", func(p *net.TCPConn) {
			io.WriteString(p, strings.Repeat(maskedHello, 3))
			p.SetLinger(0)
			p.Close()
		}},
		{"three messages and the end", func(p *net.TCPConn) {
			io.WriteString(p, strings.Repeat(maskedHello, 3))
			p.Close()
		}},
		{"half a message and a reset", func(p *net.TCPConn) {
			io.WriteString(p, "\x01\x85\x00\x00\x00\x00Hello\x80\x85\x00")
			p.SetLinger(0)
			p.Close()
		}},
		{"silence", func(*net.TCPConn) {}},
		{"a message, Close and the end", func(p *net.TCPConn) {
			io.WriteString(p, maskedHello+maskedClose)
			p.CloseWrite()
		}},
	}
	for _, path := range []string{"raw", "portable", "foreign"} {
		for _, style := range styles {
			for _, end := range ends {
				t.Run(style.name+"/"+end.name+"/"+path, func(t *testing.T) {
					t.Parallel()
					closes := make(chan CloseEvent, 2)
					listen := listen
					if path == "foreign" {
						listen = listenDead
					}
					l := listen(t, ListenConfig{
						PingInterval: 40 * time.Millisecond, PongTimeout: 40 * time.Millisecond,
						WriteTimeout: 100 * time.Millisecond, CloseTimeout: 50 * time.Millisecond,
						portable: path == "portable",
						OnConnection: func(c *WebSocket) {
							c.OnClose(func(_ *WebSocket, ev CloseEvent) { closes <- ev })
							style.run(c)
						},
					})
					p := rawClient(t, l)
					end.do(p.(*net.TCPConn))
					select {
					case <-closes:
					case <-time.After(20 * time.Second):
						t.Fatalf("no OnClose: %+v", l.Stats())
					}
					for l.Stats().Open > 0 { // until the test's own time is over
						time.Sleep(time.Millisecond)
					}
					p.Close()
					if len(closes) > 0 {
						t.Error("OnClose ran twice")
					}
				})
			}
		}
	}
}
