package peerws

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// BufferedAmount is exact, a full queue refuses and the connection lives, what
// was accepted arrives in order, and a pong overtakes what is queued.
func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		set := testSettings()
		set.maxBuffered = 10_000
		c := accepted(set, ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		p := peer{t, theirs}

		msg := bytes.Repeat([]byte("m"), 4000)
		for i := range 3 {
			if err := c.SendBinary(msg); (err != nil) != (i == 2) || err != nil && err != ErrBufferFull {
				t.Fatalf("send %d: %v", i, err)
			}
		}
		synctest.Wait()
		// 1000 bytes are with the transport, 4 of them the header... but only a
		// whole Write is known to be taken on this path.
		if n := c.BufferedAmount(); n != 8000 {
			t.Errorf("BufferedAmount = %d, want 8000", n)
		}
		p.send(maskedPing)
		synctest.Wait()
		// The second message may be in the Write that waits, or behind the pong.
		frame := string(serverFrame(0x82, msg))
		got := make([]byte, 2*len(frame)+len(pong))
		if _, err := io.ReadFull(theirs, got); err != nil || string(got) != frame+frame+pong && string(got) != frame+pong+frame {
			t.Fatalf("peer: got % .40x (%v), want two messages and a pong, not before the first", got, err)
		}
		synctest.Wait()
		if n := c.BufferedAmount(); n != 0 {
			t.Errorf("BufferedAmount = %d, want 0", n)
		}
		// An empty queue takes one message of any size.
		if err := c.SendBinary(bytes.Repeat(msg, 10)); err != nil {
			t.Errorf("large message to an empty queue: %v", err)
		}
		if err := c.SendText("x"); err != ErrBufferFull {
			t.Errorf("behind it: %v", err)
		}
		wrote := make(chan error, 1)
		go func() { wrote <- c.Write(t.Context(), Message{Type: Text, Data: []byte("x")}) }()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Fatalf("Write did not wait: %v", err)
		default:
		}
		p.want("large message", string(serverFrame(0x82, bytes.Repeat(msg, 10))))
		p.want("waiting message", "\x81\x01x")
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		if err := c.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		theirs.Close()
		<-c.Done()
	})
}

func TestTimeout_Write(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		c := accepted(testSettings(), ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		start := time.Now()
		c.SendBinary(make([]byte, 5000))
		// A peer that reads slowly is left alone: every byte starts the clock anew.
		time.Sleep(defaultWriteTimeout - time.Second)
		io.ReadFull(theirs, make([]byte, 10))
		time.Sleep(defaultWriteTimeout - time.Second)
		if c.ReadyState() != Open {
			t.Fatal("cut off in spite of progress")
		}
		ev := waitDone(t, c)
		if ev.Initiator != InitiatorTimeout || !errors.Is(ev, errWriteTimeout) {
			t.Errorf("%+v", ev)
		}
		if d := time.Since(start); d > 3*defaultWriteTimeout {
			t.Errorf("ended after %v", d)
		}
		theirs.Close()
	})
}

// Both sides write more than the transport holds, with pings, before either has
// read anything: readers never wait for writers, so all of it arrives.
func TestPain10_BothSidesWrite(t *testing.T) {
	for _, kind := range chaosKinds {
		t.Run(kind.name, func(t *testing.T) {
			set := testSettings()
			set.maxBuffered = -1
			a, d := kind.pair(t, set)
			const messages, size = 40, 200_000
			var wg sync.WaitGroup
			for _, c := range []*WebSocket{a, d} {
				wg.Add(1)
				n := 0
				c.OnMessage(func(_ *WebSocket, m Message) {
					c.ping([]byte("p"))
					if n++; n == messages {
						wg.Done()
					}
				})
				for range messages {
					if err := c.SendBinary(make([]byte, size)); err != nil {
						t.Error(err)
					}
				}
			}
			go a.run()
			go d.run()
			wg.Wait()
			for _, c := range []*WebSocket{a, d} {
				if err := c.Flush(t.Context()); err != nil {
					t.Error(err)
				}
				wantBuffered(t, c, 0)
			}
			a.CloseWith(1000, "")
			for _, c := range []*WebSocket{a, d} {
				if ev := waitDone(t, c); !ev.WasClean {
					t.Errorf("%+v", ev)
				}
			}
		})
	}
}

// A writer that waits for a peer that reads no more: WriteTimeout ends it
// whatever was called, and everybody who waits learns why.
func TestPain19_WedgedPeer(t *testing.T) {
	for _, closing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(1000)
			c := accepted(testSettings(), ours, true)
			go c.run()
			start := time.Now()
			c.SendBinary(make([]byte, 1<<20))
			var wg sync.WaitGroup
			if closing {
				c.CloseWith(1000, "")
			} else {
				wg.Go(func() {
					if err := c.Write(t.Context(), Message{Type: Binary, Data: make([]byte, 100_000)}); !errors.Is(err, net.ErrClosed) || !errors.Is(err, errWriteTimeout) {
						t.Errorf("Write: %v", err)
					}
				})
			}
			wg.Go(func() {
				if err := c.Flush(t.Context()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Flush: %v", err)
				}
			})
			for range 10 { // it lives, and sends, but reads nothing
				time.Sleep(time.Second)
				peer{t, theirs}.send(maskedPing)
			}
			ev := waitDone2(c)
			wg.Wait()
			if d := time.Since(start); d > 2*defaultWriteTimeout || !errors.Is(ev, errWriteTimeout) && !closing { // twice: as above
				t.Errorf("after %v: %+v", d, ev)
			}
			if closing && ev.Initiator != InitiatorLocal || !closing && ev.Initiator != InitiatorTimeout {
				t.Errorf("%+v", ev)
			}
			theirs.Close()
		})
	}
}
