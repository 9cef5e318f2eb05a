package peerws

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// No message is lost between the opening and OnMessage, and pings before it are
// answered.
func TestReadingStartsWithOnMessage(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			c := accepted(testSettings(), ours, portable)
			p := peer{t, theirs}
			p.send(maskedPing, maskedHello, maskedPing)
			go c.run()
			p.want("pong before the first message", pong)
			if c.ReadyState() != Open {
				t.Error("not open")
			}
			r := new(recorder)
			r.attach(c)
			p.want("pong behind the first message", pong)
			p.send(maskedClose)
			p.want("close", close1000)
			theirs.Close()
			waitDone(t, c)
			if !slices.Contains(r.list, `text "Hello"`) {
				t.Errorf("message lost: %q", r.list)
			}
		})
	}
}

// OnOpen, OnError and OnClose set after their event run once, at once.
func TestEvents_SetLate(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		opened := make(chan struct{})
		c.OnOpen(func(*WebSocket) { close(opened) }) // the reader is parked: it must wake up
		<-opened
		p.conn.Close()
		waitDone(t, c)
		late := make(chan string, 4)
		c.OnError(func(_ *WebSocket, err error) { late <- "error" })
		c.OnClose(func(_ *WebSocket, ev CloseEvent) { late <- fmt.Sprint("close ", ev.Code) })
		if a, b := <-late, <-late; a != "error" || b != "close 1006" {
			t.Errorf("late events: %q, %q", a, b)
		}
	})
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
