package peerws

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

func TestKeepalive(t *testing.T) {
	t.Run("silent peer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(0)
			c := accepted(testSettings(), ours, true)
			start := time.Now()
			go c.run()
			ev := waitDone2(c)
			if ev.Initiator != InitiatorTimeout || !errors.Is(ev, errPongTimeout) {
				t.Errorf("%+v", ev)
			}
			if d := time.Since(start); d < 40*time.Second || d > 55*time.Second {
				t.Errorf("given up after %v", d)
			}
			peer{t, theirs}.want("one ping", "\x89\x00")
			theirs.Close()
		})
	})
	t.Run("peer that answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(0)
			c := accepted(testSettings(), ours, true)
			go c.run()
			p := peer{t, theirs}
			for range 20 {
				p.want("ping", "\x89\x00")
				time.Sleep(15 * time.Second)
				p.send("\x8a\x80\x00\x00\x00\x00")
			}
			if c.ReadyState() != Open {
				t.Error("given up")
			}
			theirs.Close()
			<-c.Done()
		})
	})
	t.Run("any byte is life", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(0)
			c := accepted(testSettings(), ours, true)
			c.OnMessage(func(*WebSocket, Message) {})
			go c.run()
			frame := clientFrame(0x82, make([]byte, 100))
			for i := range frame {
				time.Sleep(20 * time.Second)
				theirs.Write(frame[i : i+1])
			}
			if n := theirs.Buffered(); n != 0 {
				t.Errorf("%d bytes of pings to a peer that was never silent", n)
			}
			theirs.Close()
			<-c.Done()
		})
	})
	t.Run("our own callback", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(0)
			c := accepted(testSettings(), ours, true)
			c.OnMessage(func(*WebSocket, Message) { time.Sleep(time.Hour) })
			go c.run()
			p := peer{t, theirs}
			p.send(maskedHello)
			time.Sleep(time.Hour + time.Second)
			if c.ReadyState() != Open {
				t.Error("given up while we were busy")
			}
			theirs.Close()
			<-c.Done()
		})
	})
	t.Run("nobody reads", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(0)
			c := accepted(testSettings(), ours, true)
			go c.run()
			p := peer{t, theirs}
			p.send(maskedHello)
			time.Sleep(time.Hour)
			wantRead(t, c, Text, "Hello")
			theirs.Close()
			<-c.Done()
		})
	})
	t.Run("both roles", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{}, Dialer{})
			time.Sleep(time.Hour)
			if a.ReadyState() != Open || d.ReadyState() != Open {
				t.Error("given up")
			}
			a.Abort()
			<-a.Done()
			<-d.Done()
		})
	})
	t.Run("off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			set := testSettings()
			set.pingInterval = 0
			ours, theirs := memnet.Pipe(0)
			c := accepted(set, ours, true)
			go c.run()
			time.Sleep(time.Hour)
			if theirs.Buffered() != 0 || c.ReadyState() != Open {
				t.Error("pinged")
			}
			theirs.Close()
			<-c.Done()
		})
	})
}

// waitDone2 waits without a time limit of its own, for bubbles.
func waitDone2(c *WebSocket) CloseEvent {
	ev, _ := c.Wait(context.Background())
	return ev
}

// The listener's one clock looks after all of its sockets.
func TestKeepalive_Listener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := memnet.Listen(0)
		l, err := ListenConfig{OnConnection: echoing}.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		d := Dialer{NetDial: ln.DialContext}
		alive, err := d.Dial(t.Context(), "ws://pipe/")
		if err != nil {
			t.Fatal(err)
		}
		dead, err := ln.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(dead, upgrade)
		time.Sleep(10 * time.Minute)
		if n := l.Stats().Open; n != 1 || alive.ReadyState() != Open {
			t.Errorf("%d sockets open, the live one is %v", n, alive.ReadyState())
		}
		alive.Close()
		<-alive.Done()
		dead.Close()
		l.Close()
	})
}
