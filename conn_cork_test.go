package peerws

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// Replies to what came together leave together.
func TestCork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		p := peer{t, theirs}
		p.send(strings.Repeat(maskedHello, 64))
		go c.run()
		p.want("64 replies", strings.Repeat(hello, 64))
		if n := ours.Writes(); n != 1 {
			t.Errorf("%d writes for 64 replies", n)
		}
		theirs.Close()
		<-c.Done()
	})
}

// A slow callback does not hold earlier replies back for more than 2 ms.
func TestCork_Watchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		n := 0
		c.OnMessage(func(c *WebSocket, m Message) {
			c.Send(m)
			if n++; n == 2 {
				time.Sleep(time.Hour)
			}
		})
		p := peer{t, theirs}
		start := time.Now()
		p.send(maskedHello, maskedHello, maskedHello)
		go c.run()
		p.want("replies before the slow callback's end", hello, hello)
		if d := time.Since(start); d != corkDelay {
			t.Errorf("after %v, want %v", d, corkDelay)
		}
		p.want("the last reply", hello)
		if d := time.Since(start); d != time.Hour {
			t.Errorf("after %v", d)
		}
		theirs.Close()
		<-c.Done()
	})
}

// Replies to what came together leave together, as with callbacks.
func TestRead_Cork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		p := peer{t, theirs}
		p.send(strings.Repeat(maskedHello, 64))
		go c.run()
		go func() {
			for m, err := range c.Messages(t.Context()) {
				if err != nil || c.Send(m) != nil {
					return
				}
			}
		}()
		p.want("64 replies", strings.Repeat(hello, 64))
		if n := ours.Writes(); n > 2 {
			t.Errorf("%d writes for 64 replies", n)
		}
		theirs.Close()
		<-c.Done()
	})
}

// A program that does not read on holds the first message it sends back for 2 ms
// at most, and no later one.
func TestRead_CorkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		p := peer{t, theirs}
		p.send(maskedHello, maskedHello)
		go c.run()
		wantRead(t, c, Text, "Hello")
		for i, want := range []time.Duration{corkDelay, 0, 0} {
			start := time.Now()
			c.SendText("Hello")
			p.want("what was sent", hello)
			if d := time.Since(start); d != want {
				t.Errorf("message %d came after %v, want %v", i, d, want)
			}
		}
		wantRead(t, c, Text, "Hello")
		theirs.Close()
		<-c.Done()
	})
}
