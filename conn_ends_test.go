package peerws

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
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

// A handler ported from another library: the loop stands in OnConnection.
func TestOnConnection_ReadingLoop(t *testing.T) {
	l := listen(t, ListenConfig{OnConnection: func(c *WebSocket) {
		for m, err := range c.Messages(t.Context()) {
			if err != nil {
				t.Error(err)
				return
			}
			if err := c.Write(t.Context(), m); err != nil {
				t.Error(err)
				return
			}
		}
	}})
	c, err := Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.SendText("hello")
		wantRead(t, c, Text, "hello")
	}
	c.Close()
	waitDone(t, c)
}

// While OnConnection runs no other callback does, and what it has set gets what
// has come meanwhile when it returns.
func TestOnConnection_KeepsOtherCallbacksBack(t *testing.T) {
	returning := make(chan struct{})
	got := make(chan string, 10)
	l := listen(t, ListenConfig{PingInterval: 40 * time.Millisecond, OnConnection: func(c *WebSocket) {
		c.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
		c.OnOpen(func(*WebSocket) { got <- "open" })
		c.OnClose(func(*WebSocket, CloseEvent) { got <- "close" })
		<-returning
	}})
	p := rawClient(t, l)
	// Its pings show that the reader runs although OnConnection does not return.
	b := make([]byte, 2)
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "\x89\x00" {
		t.Fatalf("%x, %v; want a ping", b, err)
	}
	io.WriteString(p, "\x8a\x80\x00\x00\x00\x00"+maskedHello+maskedClose)
	select {
	case s := <-got:
		t.Fatalf("%s ran while OnConnection did", s)
	default:
	}
	close(returning)
	for _, want := range []string{"open", "Hello", "close"} {
		if want == "close" {
			p.Close() // the end of the transport, which is the peer's to wait for
		}
		if s := <-got; s != want {
			t.Errorf("%s, want %s", s, want)
		}
	}
}

// lateDeadline is a transport to which bytes come just before a read that is to
// come out by its deadline would have.
type lateDeadline struct {
	*memnet.Conn
	before func() // called once, at a deadline that is past
}

func (c *lateDeadline) SetReadDeadline(t time.Time) error {
	if c.before != nil && !t.IsZero() && t.Before(time.Now()) {
		c.before()
		c.before = nil
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// What OnConnection has set runs before a message that comes as it returns.
func TestOnConnection_OpenComesBeforeMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1 << 10)
		p := peer{t, theirs}
		conn := &lateDeadline{Conn: ours}
		c := accepted(testSettings(), conn, true)
		var got []string
		c.offer(func(c *WebSocket) {
			c.mu.Lock()
			c.beginHeldLocked()
			c.mu.Unlock()
			synctest.Wait() // the reader waits in its Read
			c.OnMessage(func(_ *WebSocket, m Message) { got = append(got, string(m.Data)) })
			c.OnOpen(func(*WebSocket) { got = append(got, "open") })
			c.OnClose(func(*WebSocket, CloseEvent) { got = append(got, "close") })
			synctest.Wait() // and again
			conn.before = func() { p.send(maskedHello) }
		})
		synctest.Wait()
		theirs.Close()
		waitDone(t, c)
		if want := []string{"open", "Hello", "close"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// OnClose stays the last of them when the peer goes while OnConnection blocks.
func TestOnConnection_CloseComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1 << 10)
		c := accepted(testSettings(), ours, true)
		var got []string
		c.offer(func(c *WebSocket) {
			c.mu.Lock()
			c.beginHeldLocked()
			c.mu.Unlock()
			synctest.Wait()
			c.OnOpen(func(*WebSocket) { got = append(got, "open") })
			c.OnClose(func(*WebSocket, CloseEvent) { got = append(got, "close") })
			theirs.Close()
			synctest.Wait()
		})
		waitDone(t, c)
		if want := []string{"open", "close"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// A peer that goes while OnConnection blocks is noticed, and its place is free.
func TestOnConnection_BlocksButTheEndIsSeen(t *testing.T) {
	returning := make(chan struct{})
	sent := make(chan error, 1)
	l := listen(t, ListenConfig{PingInterval: 40 * time.Millisecond, OnConnection: func(c *WebSocket) {
		<-returning
		sent <- c.SendText("late")
	}})
	p := rawClient(t, l)
	p.Close()
	for s, start := l.Stats(), time.Now(); s.Accepted == 0 || s.Open > 0; s = l.Stats() {
		if time.Since(start) > 20*time.Second {
			t.Errorf("still open: %+v", s)
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(returning)
	if err := <-sent; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after the end: %v", err)
	}
}
