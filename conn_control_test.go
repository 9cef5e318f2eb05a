package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// Pings get through between the pieces of a large message.
func TestLargeMessage_ControlFramesBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		c := accepted(testSettings(), ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		c.SendBinary(make([]byte, 1<<20))
		p := peer{t, theirs}
		p.send(maskedPing)
		synctest.Wait()
		var seen int
		for i := 0; ; i++ {
			h := make([]byte, 10)
			io.ReadFull(theirs, h[:2])
			if h[0] == 0x8a {
				seen = i
				io.ReadFull(theirs, h[:5])
				break
			}
			io.ReadFull(theirs, h[2:10])
			io.CopyN(io.Discard, theirs, 64<<10)
		}
		if seen > 9 { // the writer had 8 chunks in hand
			t.Errorf("pong behind %d pieces", seen)
		}
		theirs.Close()
		<-c.Done()
	})
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		go c.run()
		p := peer{t, theirs}
		got := make(chan time.Duration, 2)
		for range 2 {
			go func() {
				d, err := c.Ping(t.Context())
				if err != nil {
					t.Error(err)
				}
				got <- d
			}()
			synctest.Wait()
		}
		p.want("two pings", "\x89\x08\x00\x00\x00\x00\x00\x00\x00\x01", "\x89\x08\x00\x00\x00\x00\x00\x00\x00\x02")
		time.Sleep(70 * time.Millisecond)
		p.send("\x8a\x88\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x63") // an id that was never sent
		p.send("\x8a\x88\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02") // the newest, which answers both
		if a, b := <-got, <-got; a != 70*time.Millisecond || b != 70*time.Millisecond {
			t.Errorf("%v, %v", a, b)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) || c.ReadyState() != Open {
			t.Errorf("%v, %v", err, c.ReadyState())
		}
		go func() { time.Sleep(time.Second); theirs.Close() }()
		if _, err := c.Ping(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
		if len(c.rareLocked().pings) != 0 {
			t.Error("pings kept")
		}
	})
}

// A peer that sends pings and reads nothing costs us one pong, not a queue.
func TestPain04_PingFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		c := accepted(testSettings(), ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		p := peer{t, theirs}
		c.SendBinary(make([]byte, 3000)) // more than the peer takes
		synctest.Wait()
		for i := range 20_000 {
			p.send("\x89\x84\x00\x00\x00\x00", fmt.Sprintf("%04x", i))
		}
		synctest.Wait()
		size := 0
		c.wmu.Lock()
		for _, f := range c.writer.out.chunks {
			size += cap(f.b)
		}
		if c.writer.out.lane != nil {
			size += cap(c.writer.out.lane.b)
		}
		size += cap(c.writer.out.pong)
		c.wmu.Unlock()
		if size > 8<<10 || c.ReadyState() != Open {
			t.Errorf("%d bytes held, %v", size, c.ReadyState())
		}
		// The newest is among what the peer gets.
		var all []byte
		for theirs.Buffered() > 0 {
			b := make([]byte, 1000)
			n, _ := theirs.Read(b)
			all = append(all, b[:n]...)
			synctest.Wait()
		}
		if !bytes.HasSuffix(all, []byte("\x8a\x044e1f")) || len(all) > 5000 {
			t.Errorf("%d bytes, the last % x", len(all), all[max(0, len(all)-6):])
		}
		theirs.Close()
		<-c.Done()
	})
}

func TestNoAllocations_Ping(t *testing.T) {
	countsAllocations(t)
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			c := accepted(testSettings(), ours, portable)
			go c.run()
			frame, reply := []byte(maskedPing), make([]byte, len(pong))
			ping := func() {
				theirs.Write(frame)
				io.ReadFull(theirs, reply)
			}
			ping()
			if n := testing.AllocsPerRun(200, ping); n > 0 {
				t.Errorf("%v allocations for a ping", n)
			}
			theirs.Close()
			waitDone(t, c)
		})
	}
}

// Nobody needs so many control frames: the peer is told 1008. What came before counts
// anew with each round of the clock.
func TestControlFlood(t *testing.T) {
	pings := func(n int) string { return strings.Repeat("\x8a\x80\x00\x00\x00\x00", n) } // pongs need no answer
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		set := testSettings()
		set.pingInterval = -1
		c := accepted(set, ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		p := peer{t, theirs}
		for range 3 {
			p.send(pings(maxControls))
			time.Sleep(2*time.Second + 7*time.Millisecond) // not at the very moment of a round, which might come amid the next ones
		}
		if c.ReadyState() != Open {
			t.Fatal("ended too early")
		}
		p.send(pings(maxControls + 1))
		p.want("Close frame", "\x88\x19\x03\xf0too many control frames")
		theirs.Close()
		if ev := waitDone2(c); ev.Initiator != InitiatorLimit || !errors.Is(ev, errControls) {
			t.Errorf("%+v", ev)
		}
	})
	synctest.Test(t, func(t *testing.T) { // without a clock nothing is counted
		ours, theirs := memnet.Pipe(0)
		c := accepted(&settings{core: coreLimits{maxMessage: -1, maxFragments: -1}}, ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		p := peer{t, theirs}
		for range 3 {
			p.send(pings(maxControls))
		}
		p.send(maskedClose)
		theirs.Close()
		if ev := waitDone2(c); errors.Is(ev, errControls) {
			t.Errorf("%+v", ev)
		}
	})
}
