package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// Control frames are answered while the program is elsewhere.
func TestRead_ProgramElsewhere(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		p.send(maskedHello)
		wantRead(t, c, Text, "Hello")
		p.send(maskedPing)
		p.want("pong", pong)
		p.send("\x01\x81\x00\x00\x00\x00x") // behind it TCP pushes back
		p.send("\x80\x81\x00\x00\x00\x00y", maskedPing)
		wantRead(t, c, Text, "xy")
		p.want("pong", pong)
		p.send(maskedClose)
		p.want("close", close1000)
		waitState(t, c, Closing)
		if _, err := c.Read(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	})
}

// A context that ends takes nothing with it, wherever the message stands.
func TestRead_ContextEnds(t *testing.T) {
	frame := string(clientFrame(0x81, bytes.Repeat([]byte("z"), 300)))
	for cut := 0; cut < len(frame); cut += 17 {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(0)
			c := accepted(testSettings(), ours, true)
			go c.run()
			p := peer{t, theirs}
			p.send(frame[:cut])
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := c.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cut %d: %v", cut, err)
			}
			p.send(frame[cut:], maskedHello)
			synctest.Wait()
			wantRead(t, c, Text, strings.Repeat("z", 300))
			wantRead(t, c, Text, "Hello")
			theirs.Close()
			<-c.Done()
		})
	}
}

func TestReadingStyles_DoNotMix(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		p.send(maskedHello)
		wantRead(t, c, Text, "Hello")
		defer func() {
			if recover() == nil {
				t.Error("OnMessage after Read did not panic")
			}
		}()
		c.OnMessage(func(*WebSocket, Message) {})
	})
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		if _, err := c.Read(t.Context()); err != ErrReading {
			t.Errorf("Read after OnMessage: %v", err)
		}
		if _, _, err := c.NextReader(t.Context()); err != ErrReading {
			t.Errorf("NextReader after OnMessage: %v", err)
		}
		for _, err := range c.Messages(t.Context()) {
			if err != ErrReading {
				t.Errorf("Messages after OnMessage: %v", err)
			}
		}
	})
}

// Reads from many goroutines take turns; each message goes to one.
func TestRead_ManyGoroutines(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		const n = 500
		var mu sync.Mutex
		seen := map[string]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for m, err := range c.Messages(t.Context()) {
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					seen[string(m.Data)]++
					mu.Unlock()
				}
			})
		}
		for i := range n {
			p.send(string(clientFrame(0x81, fmt.Append(nil, i))))
		}
		p.send(maskedClose)
		wg.Wait()
		if len(seen) != n {
			t.Errorf("%d different messages, want %d", len(seen), n)
		}
	})
}

// A context that ends takes back what had to wait, and that alone: the stream
// stays whole and the connection open.
func TestPain16_ContextEndsOnlyTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		set := testSettings()
		set.maxBuffered = 5000
		set.writeTimeout = 0
		c := accepted(set, ours, true)
		go c.run()
		big := bytes.Repeat([]byte("b"), 4900)
		if err := c.SendBinary(big); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // its first byte is on the way: no ping goes before it
		soon := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			t.Cleanup(cancel)
			return ctx
		}
		cause := errors.New("enough")
		withCause, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		for what, f := range map[string]func(ctx context.Context) error{
			"Write": func(ctx context.Context) error { return c.Write(ctx, Message{Type: Text, Data: big}) },
			"Flush": c.Flush,
			"Read":  func(ctx context.Context) error { _, err := c.Read(ctx); return err },
			"Ping":  func(ctx context.Context) error { _, err := c.Ping(ctx); return err },
			"NextReader": func(ctx context.Context) error {
				_, _, err := c.NextReader(ctx)
				return err
			},
			"Wait": func(ctx context.Context) error { _, err := c.Wait(ctx); return err },
		} {
			start := time.Now()
			if err := f(soon()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("%s: %v after %v", what, err, time.Since(start))
			}
			if err := f(withCause); err != cause {
				t.Errorf("%s: %v, want the context's cause", what, err)
			}
		}
		if n := c.BufferedAmount(); n != 4900 || c.ReadyState() != Open {
			t.Errorf("%d bytes, %v", n, c.ReadyState())
		}
		c.SendText("last")
		p := peer{t, theirs}
		p.want("the message that was taken", string(serverFrame(0x82, big)))
		for b := make([]byte, 10); ; { // the pings were sent
			io.ReadFull(theirs, b[:2])
			if b[0] == 0x81 {
				p.want("and the last", "last")
				break
			}
			if b[0] != 0x89 || b[1] != 8 {
				t.Fatalf("% x", b[:2])
			}
			io.ReadFull(theirs, b[:8])
		}
		p.send(maskedHello)
		wantRead(t, c, Text, "Hello")
		theirs.Close()
		<-c.Done()
	})
}

// An idle accepted connection has one goroutine, the reader; on Linux none.
func TestPain22_IdleGoroutines(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing})
	var conns []*knocker
	const n = 50
	for range 3 {
		k := knock(t, l, upgrade)
		k.wantOpen()
		k.send(maskedHello)
		k.wantBytes("echo", hello) // its goroutine runs
		conns = append(conns, k)
	}
	least, most := n, n
	if l.engine != nil {
		least, most = -3, 5 // a few workers, those of the first three included
	}
	before := readers()
	for range n {
		k := knock(t, l, upgrade)
		k.wantOpen()
		k.send(maskedHello, string(clientFrame(0x82, make([]byte, 300_000))))
		k.wantBytes("echo", hello+string(serverMessage(make([]byte, 300_000))))
		conns = append(conns, k)
	}
	left := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if left = readers() - before; left >= least && left <= most {
			break
		}
	}
	if left < least || left > most {
		t.Errorf("%d goroutines for %d connections", left, n)
	}
	for _, k := range conns {
		k.conn.Close()
	}
}

// readers counts the goroutines that run code of ours.
func readers() (n int) {
	b := make([]byte, 4<<20)
	b = b[:runtime.Stack(b, true)]
	for g := range strings.SplitSeq(string(b), "\n\n") {
		if strings.Contains(g, "peerws.(*WebSocket)") {
			n++
		}
	}
	return n
}
