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

func TestNoAllocations_Read(t *testing.T) {
	countsAllocations(t)
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
