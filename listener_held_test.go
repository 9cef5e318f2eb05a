package peerws

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A peer that takes nothing cannot have small or empty messages queued for ever.
func TestMaxBufferedAmount_SmallMessages(t *testing.T) {
	for _, size := range []int{0, 1, 60} {
		for _, portable := range []bool{false, true} {
			a, b := realPair(t, portable)
			set := testSettings()
			set.maxBuffered = 100_000
			c := accepted(set, a, portable)
			c.begin()
			var err error
			for full := time.Now(); err == nil && time.Since(full) < 50*time.Millisecond; { // the kernel's share first
				if c.BufferedAmount() > 0 {
					time.Sleep(time.Millisecond)
					continue
				}
				full = time.Now()
				err = c.Send(Message{Type: Binary, Data: make([]byte, 50_000)})
			}
			n := 0
			for msg := make([]byte, size); err == nil && n < 1_000_000; n++ {
				err = c.Send(Message{Type: Binary, Data: msg})
			}
			if !errors.Is(err, ErrBufferFull) {
				t.Fatalf("size %d: %v after %d", size, err, n)
			}
			c.wmu.Lock()
			queued := c.writer.out.waiting()
			c.wmu.Unlock()
			// The kernel may have taken some of it since.
			if most := 100_000 + 100_000/headersShare + headersMore + 100; queued > most {
				t.Errorf("size %d, portable %v: %d bytes are queued, at most %d may be", size, portable, queued, most)
			}
			if n*(2+size) < 40_000 {
				t.Errorf("size %d, portable %v: full after %d", size, portable, n)
			}
			c.Abort()
			waitDone(t, c)
			b.Close()
		}
	}
}

// The one that holds the most is ended, and nobody else.
func TestMaxHeldBytes(t *testing.T) {
	frame := func(have int) string { // the beginning of a message of 1 MiB
		return "\x82\xff\x00\x00\x00\x00\x00\x10\x00\x00abcd" + strings.Repeat("x", have)
	}
	for name, c := range map[string]ListenConfig{
		"callbacks": {OnConnection: func(c *WebSocket) { c.OnMessage(ignore) }},
		"calls":     {OnConnection: func(c *WebSocket) { go c.Read(context.Background()) }},
		"portable":  {OnConnection: func(c *WebSocket) { c.OnMessage(ignore) }, portable: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.MaxHeldBytes = 1331 << 10 // buffers may be larger than what is in them
			c.CloseTimeout = time.Second
			l := listen(t, c)
			small := knock(t, l, upgrade, frame(100<<10))
			small.wantOpen()
			large := knock(t, l, upgrade, frame(900<<10))
			large.wantOpen()
			for l.Stats().Held < 900<<10 {
				time.Sleep(time.Millisecond)
			}
			other := knock(t, l, upgrade, frame(400<<10))
			other.wantOpen()
			s := l.Stats()
			for ; s.Accepted < 3 || s.Open > 2; s = l.Stats() { // the answer may be here before it is counted
				time.Sleep(time.Millisecond)
			}
			if len(s.Closed) != 1 || s.Closed[0].Initiator != InitiatorLimit || s.Held > c.MaxHeldBytes {
				t.Errorf("%+v", s)
			}
			small.conn.Close()
			other.conn.Close()
			large.conn.Close()
			for s := l.Stats(); s.Open > 0 || s.Held != 0; s = l.Stats() {
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// Queues count as well.
func TestMaxHeldBytes_Queue(t *testing.T) {
	ended := make(chan CloseEvent, 1)
	l := listen(t, ListenConfig{MaxHeldBytes: 1 << 20, MaxBufferedAmount: 100 << 20, OnConnection: func(c *WebSocket) {
		c.OnClose(func(_ *WebSocket, ev CloseEvent) { ended <- ev })
		go func() {
			for c.SendBinary(make([]byte, 64<<10)) == nil {
			}
		}()
	}})
	k := knock(t, l, upgrade)
	k.wantOpen()
	ev := <-ended
	if e, ok := errors.AsType[*LimitError](ev.Err); !ok || e.Option != "MaxHeldBytes" || e.Limit != 1<<20 || !strings.Contains(ev.Err.Error(), "MaxHeldBytes of 1048576") {
		t.Errorf("%v", ev)
	}
	if n := l.Stats().Held; n != 0 {
		t.Errorf("%d bytes are held", n)
	}
}
