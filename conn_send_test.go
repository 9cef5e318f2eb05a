package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

func TestSend_Arguments(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		if err := c.Send(Message{Data: []byte("x")}); err == nil {
			t.Error("message without a type accepted")
		}
		if err := c.SendText("\xff"); err == nil {
			t.Error("text that is not UTF-8 accepted")
		}
		if err := c.SendText(""); err != nil {
			t.Error(err)
		}
		p.want("only the good one", "\x81\x00")
	})
}

// Messages of many goroutines, by every way of sending: each arrives whole and
// once, and those of one goroutine in order.
func TestSenders_KeepTheirOrder(t *testing.T) {
	set := testSettings()
	set.core.maxMessage = -1
	onBoth(t, set, func(t *testing.T, c *WebSocket, r *recorder, s side) {
		const senders, each = 6, 30
		var wg sync.WaitGroup
		for i := range senders {
			wg.Go(func() {
				for k := range each {
					size := []int{10, 300, 5000, 70_000, 140_000}[(i+k)%5]
					m := fmt.Appendf(nil, "%d:%d:", i, k)
					m = append(m, bytes.Repeat([]byte{'a' + byte(i)}, size)...)
					var err error
					if k%3 == 2 {
						var w io.WriteCloser
						if w, err = c.NextWriter(context.Background(), Binary); err == nil {
							_, err = w.Write(m[:len(m)/2])
							_, err2 := w.Write(m[len(m)/2:])
							err = errors.Join(err, err2, w.Close())
						}
					} else {
						err = c.Write(context.Background(), Message{Type: Binary, Data: m})
					}
					if err != nil {
						t.Error(err)
						return
					}
					if k%7 == 0 {
						c.ping(nil)
					}
				}
			})
		}
		next := make([]int, senders)
		var message []byte
		for range senders * each {
			for message = message[:0]; ; {
				f, err := s.next()
				if err != nil {
					t.Fatal(err)
				}
				if f[0] == 0x89 {
					continue
				}
				if cont := f[0]&0x0f == 0; cont != (len(message) > 0) {
					t.Fatalf("frame %#x inside a message: %v", f[0], len(message) > 0)
				}
				head := map[byte]int{126: 4, 127: 10}[f[1]]
				message = append(message, f[max(head, 2):]...)
				if f[0]&0x80 != 0 {
					break
				}
			}
			var i, k int
			if _, err := fmt.Sscanf(string(message[:min(len(message), 20)]), "%d:%d:", &i, &k); err != nil {
				t.Fatalf("%v: %.40q", err, message)
			}
			if k != next[i] {
				t.Fatalf("sender %d: message %d, want %d", i, k, next[i])
			}
			next[i]++
			body := message[bytes.LastIndexByte(message, ':')+1:]
			if len(body) != []int{10, 300, 5000, 70_000, 140_000}[(i+k)%5] || bytes.Count(body, []byte{'a' + byte(i)}) != len(body) {
				t.Fatalf("message %d of sender %d is damaged", k, i)
			}
		}
		wg.Wait()
		if slices.Contains(next, 0) {
			t.Error(next)
		}
	})
}

// A peer that reads nothing costs the others nothing, and us no more than
// MaxBufferedAmount.
func TestPain18_SlowConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := memnet.Listen(1000)
		var mu sync.Mutex
		var room []*WebSocket
		l, err := ListenConfig{MaxBufferedAmount: 10_000, OnConnection: func(c *WebSocket) {
			mu.Lock()
			defer mu.Unlock()
			room = append(room, c)
			c.OnMessage(func(*WebSocket, Message) {})
		}}.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		slow, err := ln.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(slow, upgrade)
		fast, err := Dialer{NetDial: ln.DialContext}.Dial(t.Context(), "ws://pipe/")
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		fast.OnMessage(func(_ *WebSocket, m Message) { got++ })
		synctest.Wait()
		start := time.Now()
		took := 0
		for range 200 {
			for _, c := range room {
				if err := c.SendBinary(make([]byte, 999)); err == nil {
					took++
				} else if err != ErrBufferFull {
					t.Error(err)
				}
				if n := c.BufferedAmount(); n > 10_000 {
					t.Fatalf("%d bytes buffered", n)
				}
			}
			synctest.Wait()
		}
		if got != 200 || time.Since(start) != 0 {
			t.Errorf("the fast peer got %d messages in %v", got, time.Since(start))
		}
		if took != 200+11 && took != 200+10 {
			t.Errorf("%d messages taken", took)
		}
		slow.Close()
		fast.Abort()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l.Shutdown(ctx)
		<-fast.Done()
	})
}
