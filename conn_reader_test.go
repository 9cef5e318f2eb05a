package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// onEachUnread is onEach with a socket that nobody reads yet.
func onEachUnread(t *testing.T, set *settings, f func(t *testing.T, c *WebSocket, p peer)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			theirs.SetDeadline(time.Now().Add(10 * time.Second))
			c := accepted(set, ours, portable)
			go c.run()
			f(t, c, peer{t, theirs})
			c.Abort()
			theirs.Close()
			waitDone(t, c)
		})
	}
}

func wantRead(t *testing.T, c *WebSocket, typ MessageType, want string) {
	t.Helper()
	m, err := c.Read(t.Context())
	if err != nil || m.Type != typ || string(m.Data) != want {
		t.Fatalf("Read: %v %.40q of %d bytes, %v; want %v %.40q of %d", m.Type, m.Data, len(m.Data), err, typ, want, len(want))
	}
}

func TestRead(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		big := strings.Repeat("0123456789", 30_000)
		go p.send(maskedHello, maskedPing, "\x02\x81\x00\x00\x00\x00a", "\x80\x81\x00\x00\x00\x00b", "\x81\x80\x00\x00\x00\x00",
			string(clientFrame(0x82, []byte(big))), maskedHello, maskedClose)
		wantRead(t, c, Text, "Hello")
		wantRead(t, c, Binary, "ab")
		wantRead(t, c, Text, "")
		wantRead(t, c, Binary, big)
		wantRead(t, c, Text, "Hello")
		_, err := c.Read(t.Context())
		if ev, ok := errors.AsType[CloseEvent](err); !ok || ev.Code != 1000 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("at the end: %v", err)
		}
		p.want("pong and close", pong, close1000)
	})
}

// What Read returns is the caller's.
func TestRead_OwnsData(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		p.send(maskedHello, "\x81\x85\x00\x00\x00\x00World")
		m, _ := c.Read(t.Context())
		n, _ := c.Read(t.Context())
		if string(m.Data) != "Hello" || string(n.Data) != "World" || cap(m.Data) != 5 {
			t.Errorf("%q (capacity %d), %q", m.Data, cap(m.Data), n.Data)
		}
	})
}

// A large message is read into memory of its own, which is nobody's but the
// caller's.
func TestRead_OwnsLargeData(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		var kept [][]byte
		for i := range 6 {
			size := 1<<20 - i%2
			go p.send(string(clientFrame(0x82, bytes.Repeat([]byte{byte(i)}, size))))
			m, err := c.Read(t.Context())
			if err != nil || len(m.Data) != size || cap(m.Data) != size {
				t.Fatalf("%d bytes, capacity %d, %v", len(m.Data), cap(m.Data), err)
			}
			kept = append(kept, m.Data)
		}
		for i, data := range kept {
			if n := bytes.Count(data, []byte{byte(i)}); n != len(data) {
				t.Errorf("message %d: %d of %d bytes are left", i, n, len(data))
			}
		}
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

func waitState(t *testing.T, c *WebSocket, s ReadyState) {
	t.Helper()
	for range 1000 {
		if c.ReadyState() >= s {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("state is %v, not %v", c.ReadyState(), s)
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

func TestMessages(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		p.send(maskedHello, maskedHello, maskedClose)
		n := 0
		for m, err := range c.Messages(t.Context()) {
			if err != nil || string(m.Data) != "Hello" {
				t.Errorf("%v, %v", m, err)
			}
			n++
		}
		if n != 2 {
			t.Errorf("%d messages", n)
		}
	})
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		p.send(maskedHello)
		p.conn.Close() // not a clean end
		n, errs := 0, 0
		for _, err := range c.Messages(t.Context()) {
			if err != nil {
				errs++
			} else {
				n++
			}
		}
		if n != 1 || errs != 1 {
			t.Errorf("%d messages, %d errors", n, errs)
		}
	})
}

// Messages tells of the peer's Close, unless it had nothing to complain of, and
// says nothing about this program's own.
func TestMessages_CloseEvent(t *testing.T) {
	for _, tt := range []struct {
		code StatusCode // of the peer's Close
		told bool
	}{
		{0, false}, {1000, false}, {1001, false},
		{1008, true}, {1011, true}, {1012, true}, {1013, true}, {3000, true}, {4003, true}, {4999, true},
	} {
		for _, own := range []bool{false, true} { // this program's Close, with the same code, came first
			synctest.Test(t, func(t *testing.T) {
				a, d := Pipe(ListenConfig{}, Dialer{})
				reason := "why"
				if tt.code == 0 {
					reason = ""
				}
				closing, reading := a, d
				if own {
					reading = a
				}
				if err := closing.CloseWith(tt.code, reason); err != nil {
					t.Fatal(err)
				}
				var errs []error
				for _, err := range reading.Messages(t.Context()) {
					errs = append(errs, err)
				}
				if !tt.told || own {
					if errs != nil {
						t.Errorf("%d, own %v: %v", tt.code, own, errs)
					}
				} else if ev, ok := errors.AsType[CloseEvent](errors.Join(errs...)); len(errs) != 1 || !ok || ev.Code != tt.code || ev.Reason != reason {
					t.Errorf("%d: %v", tt.code, errs)
				}
				<-a.Done()
				<-d.Done()
			})
		}
	}
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

func TestNextReader(t *testing.T) {
	set := testSettings()
	set.core.maxMessage = -1
	onEachUnread(t, set, func(t *testing.T, c *WebSocket, p peer) {
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		go func() {
			p.send(maskedHello, string(clientFrame(0x02, big[:1<<20])), maskedPing, string(clientFrame(0x80, big[1<<20:])),
				maskedHello, "\x81\x80\x00\x00\x00\x00", maskedHello, maskedClose)
		}()
		read := func(typ MessageType, want []byte) {
			t.Helper()
			got, r, err := c.NextReader(t.Context())
			if err != nil || got != typ {
				t.Fatalf("NextReader: %v, %v", got, err)
			}
			b, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(b, want) {
				t.Fatalf("read %d bytes, %v; want %d", len(b), err, len(want))
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("behind the end: %d, %v", n, err)
			}
		}
		read(Text, []byte("Hello"))
		read(Binary, big)
		// One byte of the next, the rest is thrown away by the one after.
		if _, r, err := c.NextReader(t.Context()); err != nil {
			t.Fatal(err)
		} else if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		read(Text, nil)
		wantRead(t, c, Text, "Hello")
		if _, _, err := c.NextReader(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("at the end: %v", err)
		}
		p.want("pong, close", pong, close1000)
	})
}

// Text is checked as it is read, and a violation ends reader and connection.
func TestNextReader_Violations(t *testing.T) {
	for _, tc := range []struct {
		name, first, then string
		code              string
	}{
		{"not UTF-8", "\x01\x81\x00\x00\x00\x00a", "\x80\x81\x00\x00\x00\x00\xff", "\x03\xef"},
		{"cut character", "\x01\x81\x00\x00\x00\x00\xc3", "\x80\x80\x00\x00\x00\x00", "\x03\xef"},
		{"new message inside", "\x01\x81\x00\x00\x00\x00a", maskedHello, "\x03\xea"},
		{"too big", "\x02\x81\x00\x00\x00\x00a", "\x80\xff\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00", "\x03\xf1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
				p.send(tc.first)
				_, r, err := c.NextReader(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if b := make([]byte, 1); true {
					if _, err := r.Read(b); err != nil {
						t.Fatal(err)
					}
				}
				p.send(tc.then)
				_, err = io.ReadAll(r)
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("reader: %v", err)
				}
				head := make([]byte, 4)
				if _, err := io.ReadFull(p.conn, head); err != nil || string(head[2:]) != tc.code {
					t.Errorf("% x, %v", head, err)
				}
			})
		})
	}
}

// Memory does not grow with the message.
func TestNextReader_ConstantMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := testSettings()
		set.core.maxMessage = -1
		ours, theirs := memnet.Pipe(0)
		c := accepted(set, ours, true)
		go c.run()
		go func() {
			theirs.Write([]byte("\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00")) // 1 GiB
			b := make([]byte, 64<<10)
			for range 200 {
				theirs.Write(b)
			}
		}()
		_, r, err := c.NextReader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, 200*64<<10); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c.core.part.buf != nil || c.in != nil && cap(c.in.b) > blockSize {
			t.Error("the message was kept")
		}
		c.Abort()
		theirs.Close()
		<-c.Done()
	})
}

func TestRead_LocalClose(t *testing.T) {
	onEachUnread(t, testSettings(), func(t *testing.T, c *WebSocket, p peer) {
		got := make(chan error, 1)
		go func() { _, err := c.Read(context.Background()); got <- err }()
		time.Sleep(time.Millisecond)
		c.Close()
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
		p.want("close", "\x88\x00")
	})
}

func TestNoAllocations_Read(t *testing.T) {
	if raceMode {
		t.Skip("the race detector allocates; the test command runs this without it too")
	}
	for _, tr := range transports {
		for _, size := range []int{125, 16 << 10, 200 << 10, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", tr.name, size), func(t *testing.T) {
				defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties the pools
				ours, theirs, portable := tr.pair(t)
				c := accepted(testSettings(), ours, portable)
				go c.run()
				frame := clientFrame(0x82, make([]byte, size))
				ctx := context.Background()
				write := func() {
					for at := 0; at < len(frame); at += 32 << 10 {
						theirs.Write(frame[at:min(at+32<<10, len(frame))])
					}
				}
				buf := make([]byte, size)
				for name, f := range map[string]struct {
					most float64
					run  func()
				}{
					"Read": {1, func() {
						if m, err := c.Read(ctx); err != nil || len(m.Data) != size || cap(m.Data) != size {
							t.Fatal(len(m.Data), cap(m.Data), err)
						}
					}},
					"NextReader": {0, func() {
						_, r, err := c.NextReader(ctx)
						if err != nil {
							t.Fatal(err)
						}
						if _, err := io.ReadFull(r, buf); err != nil {
							t.Fatal(err)
						}
					}},
				} {
					round := func() {
						if size > 32<<10 { // more than the transport holds
							go write()
						} else {
							write()
						}
						f.run()
					}
					for range 20 {
						round()
					}
					most := f.most
					if size > 32<<10 {
						most++ // our own go statement
					}
					if n := testing.AllocsPerRun(100, round); n > most {
						t.Errorf("%s: %v allocations, want %v", name, n, f.most)
					}
				}
				theirs.Close()
				waitDone(t, c)
			})
		}
	}
}

func TestNextWriter(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		w, err := c.NextWriter(t.Context(), Text)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "He")
		c.SendText("after") // queues behind the message
		io.WriteString(w, "llo")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		p.want("small message in one frame", hello, "\x81\x05after")
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("write after Close")
		}
		if err := w.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}

		w, _ = c.NextWriter(t.Context(), Binary)
		go func() {
			w.Write(bytes.Repeat([]byte("a"), 5000))
			w.Write(bytes.Repeat([]byte("b"), 100_000))
			w.Close()
		}()
		got := readMessage(t, p.conn, 0x02)
		if want := strings.Repeat("a", 5000) + strings.Repeat("b", 100_000); got != want {
			t.Errorf("got %d bytes, want %d", len(got), len(want))
		}
		if c.BufferedAmount() != 0 {
			c.Flush(t.Context())
		}
		if n := c.BufferedAmount(); n != 0 {
			t.Errorf("BufferedAmount %d", n)
		}

		w, _ = c.NextWriter(t.Context(), Text)
		if _, err := w.Write([]byte("\xff")); err != errTextUTF8 {
			t.Errorf("text that is not UTF-8: %v", err)
		}
		w.Write([]byte("\xc3"))
		w.Write([]byte("\xbc"))
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		p.want("a character in two writes", "\x81\x02\xc3\xbc")
	})
}

// readMessage puts a fragmented message together by hand.
func readMessage(t *testing.T, r io.Reader, first byte) string {
	t.Helper()
	var all []byte
	for {
		var h [10]byte
		if _, err := io.ReadFull(r, h[:2]); err != nil {
			t.Fatal(err)
		}
		if h[0]&0x0f != first&0x0f {
			t.Fatalf("opcode % x, want %x", h[0], first)
		}
		first = 0
		n := int(h[1])
		switch n {
		case 126:
			io.ReadFull(r, h[2:4])
			n = int(h[2])<<8 | int(h[3])
		case 127:
			io.ReadFull(r, h[2:10])
			n = int(h[6])<<24 | int(h[7])<<16 | int(h[8])<<8 | int(h[9])
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
		if h[0]&0x80 != 0 {
			return string(all)
		}
	}
}

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
		if len(c.seldom().pings) != 0 {
			t.Error("pings kept")
		}
	})
}

func TestPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, d := Pipe(ListenConfig{OnConnection: echoing, MaxMessageSize: 100}, Dialer{})
		d.SendText("hi")
		wantRead(t, d, Text, "hi")
		d.SendBinary(make([]byte, 101))
		if _, err := d.Read(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if ev := waitDone2(d); ev.Code != 1009 {
			t.Errorf("%+v", ev)
		}
		<-a.Done()
		if r := a.Request(); r.Method != "GET" || r.URL.Path != "/" {
			t.Errorf("%+v", r)
		}
	})
}
