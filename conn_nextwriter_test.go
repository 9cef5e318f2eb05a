package peerws

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A side is a socket under test in one of the two roles, seen from its peer.
// Frames are given as the listening side writes them; those of the dialling
// side are masked and unmasked on the way.
type side struct {
	peer
	dialled bool             // the socket under test is
	keys    map[[4]byte]bool // masking keys of its frames
}

// onBoth runs a test with a socket that is being read, in both roles over each
// plain transport. r has its events.
func onBoth(t *testing.T, set *settings, f func(t *testing.T, c *WebSocket, r *recorder, s side)) {
	for _, tr := range slices.Concat(transports, foreignTransports) {
		for _, dialled := range []bool{false, true} {
			t.Run(tr.name+"/"+map[bool]string{false: "accepted", true: "dialled"}[dialled], func(t *testing.T) {
				ours, theirs, portable := tr.pair(t)
				theirs.SetDeadline(time.Now().Add(10 * time.Second))
				own := *set
				own.portable = portable
				c := newOpenWebSocket(&own, ours, dialled, nil)
				r := new(recorder)
				r.attach(c)
				go c.run()
				f(t, c, r, side{peer{t, theirs}, dialled, map[[4]byte]bool{}})
				c.Abort()
				theirs.Close()
				waitDone(t, c)
			})
		}
	}
}

// encode writes frames as the peer of the socket under test sends them.
func (s side) encode(frames ...string) string {
	if s.dialled {
		return strings.Join(frames, "")
	}
	return diallers(frames)
}

func (s side) send(frames ...string) {
	s.t.Helper()
	s.peer.send(s.encode(frames...))
}

// next reads one frame; of a dialled socket it must be masked, of an accepted
// one it must not.
func (s side) next() (string, error) {
	h := make([]byte, 14)
	if _, err := io.ReadFull(s.conn, h[:2]); err != nil {
		return "", err
	}
	n, size := int(h[1]&0x7f), 2
	switch n {
	case 126:
		size = 4
		io.ReadFull(s.conn, h[2:4])
		n = int(h[2])<<8 | int(h[3])
	case 127:
		size = 10
		io.ReadFull(s.conn, h[2:10])
		n = int(h[6])<<24 | int(h[7])<<16 | int(h[8])<<8 | int(h[9])
	}
	masked := h[1]&0x80 != 0
	if masked != s.dialled {
		s.t.Errorf("frame % x: masked is %v, dialled %v", h[:2], masked, s.dialled)
	}
	key := 0
	if masked {
		key = 4
	}
	b := append(h[:size], make([]byte, key+n)...)
	if _, err := io.ReadFull(s.conn, b[size:]); err != nil {
		return "", err
	}
	if !masked {
		return string(b), nil
	}
	f, k := sent(b)
	if s.keys != nil {
		s.keys[k] = true
	}
	return f, nil
}

func (s side) want(what string, frames ...string) {
	s.t.Helper()
	for i, want := range frames {
		got, err := s.next()
		if err != nil || got != want {
			s.t.Fatalf("%s: frame %d: got %d bytes % .40x (%v), want %d bytes % .40x", what, i, len(got), got, err, len(want), want)
		}
	}
}

// wantEnd waits for the transport's end, with nothing before it. The listening
// side ends it first (§7.1.1).
func (s side) wantEnd() {
	s.t.Helper()
	end := s.conn.(interface{ CloseWrite() error }).CloseWrite
	if s.dialled {
		end()
	}
	if f, err := s.next(); err != io.EOF {
		s.t.Fatalf("behind the last frame: % x, %v", f, err)
	}
	end()
}

// plainFrame is an unmasked frame of any length.
func plainFrame(b0 byte, payload string) string { return string(serverFrame(b0, []byte(payload))) }

// §5.4: a message in pieces. What does not fill a frame is kept back, so that a
// message of many small Writes is no flood of small frames.
func TestNextWriter_Frames(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		w, err := c.NextWriter(t.Context(), Text)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s.want("empty message", "\x81\x00")

		w, _ = c.NextWriter(t.Context(), Binary)
		for range 9000 {
			if n, err := w.Write([]byte("z")); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s.want("many small Writes", plainFrame(0x02, strings.Repeat("z", 4096)), plainFrame(0x00, strings.Repeat("z", 4096)),
			plainFrame(0x80, strings.Repeat("z", 808)))

		w, _ = c.NextWriter(t.Context(), Text)
		wrote := make(chan error, 1)
		go func() {
			_, err := io.WriteString(w, strings.Repeat("é", 40_000))
			wrote <- errors.Join(err, w.Close())
		}()
		var got strings.Builder
		for first := byte(0x01); ; first = 0 {
			f, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			if f[0]&0x7f != first {
				t.Fatalf("frame begins with %#x", f[0])
			}
			head := map[byte]int{126: 4, 127: 10}[f[1]]
			if head == 0 {
				head = 2
			}
			got.WriteString(f[head:])
			if f[0]&0x80 != 0 {
				break
			}
		}
		if err := <-wrote; err != nil || got.String() != strings.Repeat("é", 40_000) {
			t.Errorf("%d bytes, %v", len(got.String()), err)
		}
	})
}

// §5.4: fragments of two messages are never interleaved, whatever is called
// meanwhile; control frames are.
func TestNextWriter_OthersWait(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		w, err := c.NextWriter(t.Context(), Binary)
		if err != nil {
			t.Fatal(err)
		}
		big := strings.Repeat("b", 5000)
		io.WriteString(w, big)
		io.WriteString(w, "tail") // is kept back
		s.want("first piece", plainFrame(0x02, big))
		if err := c.SendText("one"); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(t.Context(), Message{Type: Text, Data: []byte("two")}); err != nil {
			t.Fatal(err)
		}
		wantBuffered(t, c, 6)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if err := c.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush: %v", err)
		}
		second := make(chan io.WriteCloser, 1)
		go func() {
			w, err := c.NextWriter(context.Background(), Text)
			if err != nil {
				t.Error(err)
			}
			second <- w
		}()
		s.send("\x89\x01p")
		s.want("pong inside the message", "\x8a\x01p")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s.want("the rest, then what waited in order", "\x80\x04tail", "\x81\x03one", "\x81\x03two")
		w = <-second
		io.WriteString(w, "three")
		c.SendText("four")
		w.Close()
		s.want("second writer", "\x81\x05three", "\x81\x04four")
		if err := c.Flush(t.Context()); err != nil || c.BufferedAmount() != 0 {
			t.Errorf("%v, %d", err, c.BufferedAmount())
		}
	})
}

// wantBuffered waits for BufferedAmount to come to n: the peer may have read
// what its writer has not counted yet.
func wantBuffered(t testing.TB, c *WebSocket, n int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); c.BufferedAmount() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("BufferedAmount is %d, want %d", c.BufferedAmount(), n)
		}
	}
}

// MaxBufferedAmount counts what waits behind an open NextWriter.
func TestNextWriter_MaxBufferedAmount(t *testing.T) {
	set := testSettings()
	set.maxBuffered = 100
	onBoth(t, set, func(t *testing.T, c *WebSocket, r *recorder, s side) {
		w, err := c.NextWriter(t.Context(), Text)
		if err != nil {
			t.Fatal(err)
		}
		x := bytes.Repeat([]byte("x"), 60)
		if err := c.SendBinary(x); err != nil {
			t.Fatal(err)
		}
		if err := c.SendBinary(x); err != ErrBufferFull {
			t.Fatalf("over the limit: %v", err)
		}
		if err := c.SendBinary(x[:40]); err != nil {
			t.Fatalf("up to the limit: %v", err)
		}
		// The message that the others wait for gets on.
		if _, err := io.WriteString(w, strings.Repeat("w", 300)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if err := c.Write(ctx, Message{Type: Binary, Data: x}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Write: %v", err)
		}
		waited := make(chan error, 1)
		go func() { waited <- c.Write(context.Background(), Message{Type: Text, Data: []byte("last")}) }()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-waited; err != nil {
			t.Error(err)
		}
		s.want("all", plainFrame(0x81, strings.Repeat("w", 300)), plainFrame(0x82, string(x)), plainFrame(0x82, string(x[:40])), "\x81\x04last")
	})
}

// What waits behind a message that ends in a callback's cork is counted once.
func TestNextWriter_BufferedAmountInCallback(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		c.OnMessage(func(c *WebSocket, m Message) {
			w, err := c.NextWriter(t.Context(), Text)
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(w, "first")
			c.SendText("second")
			w.Close()
			if n := c.BufferedAmount(); n < 0 || n > 22 {
				t.Errorf("BufferedAmount is %d", n)
			}
		})
		s.send("\x81\x05Hello", "\x81\x05Hello", "\x8a\x00") // the cork is open for both
		s.want("replies", "\x81\x05first", "\x81\x06second", "\x81\x05first", "\x81\x06second")
		wantBuffered(t, c, 0)
	})
}

// Close during a message: the Close frame goes out between two of its frames,
// and nothing of it or of what waits behind it follows (§5.5.1).
func TestNextWriter_CloseFrameInside(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		w, err := c.NextWriter(t.Context(), Binary)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, strings.Repeat("a", 5000))
		waits := make(chan error, 1)
		go func() { _, err := c.NextWriter(context.Background(), Text); waits <- err }()
		c.SendText("behind")
		c.CloseWith(1000, "")
		s.want("piece and Close", plainFrame(0x02, strings.Repeat("a", 5000)), close1000)
		if _, err := w.Write(make([]byte, 5000)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
		if err := w.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
		if err := <-waits; !errors.Is(err, net.ErrClosed) {
			t.Errorf("NextWriter that waited: %v", err)
		}
		if _, err := c.NextWriter(t.Context(), Text); !errors.Is(err, net.ErrClosed) {
			t.Errorf("NextWriter: %v", err)
		}
		s.send(close1000)
		s.wantEnd()
	})
}

// A context that ends takes a waiting NextWriter back and nothing else.
func TestNextWriter_ContextEnds(t *testing.T) {
	onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
		w, err := c.NextWriter(t.Context(), Text)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "one")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.NextWriter(ctx, Text); err != context.Canceled {
			t.Errorf("%v", err)
		}
		w.Close()
		s.want("message", "\x81\x03one")
		// Room at once: no wait, so the context is not asked.
		w, err = c.NextWriter(ctx, Text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("t"), 5000)); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		s.want("message", plainFrame(0x01, strings.Repeat("t", 5000)), "\x80\x00")
	})
}

// A Write that a context ended says how much of it was taken. The message cannot
// be completed any more, and Close passes no part of it off as the whole: it ends
// the socket with 1011.
func TestNextWriter_WriteAbandoned(t *testing.T) {
	for _, first := range []int{0, 1, 4095, 4096} {
		for _, text := range []string{strings.Repeat("x", 200_000), "x" + strings.Repeat("é", 100_000), strings.Repeat("é", 100_000)} {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := memnet.Pipe(1000)
				set := testSettings()
				set.maxBuffered = 6000
				c := accepted(set, ours, true)
				go c.run()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				w, err := c.NextWriter(ctx, Text)
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(w, strings.Repeat("-", first))
				n, err := io.WriteString(w, text)
				if !errors.Is(err, context.DeadlineExceeded) || n >= len(text) {
					t.Fatalf("%d, %v", n, err)
				}
				if _, again := io.WriteString(w, "x"); again != err {
					t.Errorf("Write after the error: %v", again)
				}
				closed := w.Close()
				if _, err := c.NextWriter(t.Context(), Text); !errors.Is(err, net.ErrClosed) {
					t.Errorf("NextWriter afterwards: %v", err)
				}
				theirs.SetReadDeadline(time.Now().Add(time.Second))
				whole, message := readFragments(theirs)
				taken := strings.Repeat("-", first) + text[:n]
				if whole || closed != err || !strings.HasPrefix(taken, message) {
					t.Errorf("first %d: got %d bytes, whole %v, Write took %d; Close: %v", first, len(message), whole, len(taken), closed)
				}
				if ev := waitDone2(c); ev.Initiator != InitiatorLocal || !errors.Is(ev, context.DeadlineExceeded) {
					t.Errorf("first %d: %+v", first, ev)
				}
				c.Abort()
				theirs.Close()
				<-c.Done()
			})
		}
	}
}

// readFragments reads the frames of one message and tells whether it was ended.
func readFragments(r io.Reader) (whole bool, message string) {
	for {
		var h [10]byte
		if _, err := io.ReadFull(r, h[:2]); err != nil || h[0]&0x0f > 2 {
			return false, message
		}
		n := int(h[1])
		switch n {
		case 126:
			io.ReadFull(r, h[2:4])
			n = int(h[2])<<8 | int(h[3])
		case 127:
			io.ReadFull(r, h[2:10])
			n = int(h[7])<<16 | int(h[8])<<8 | int(h[9])
		}
		b := make([]byte, n)
		k, _ := io.ReadFull(r, b)
		message += string(b[:k])
		if h[0]&0x80 != 0 {
			return k == n, message
		}
	}
}

// A writer that nobody closes holds the others up only until the socket ends.
func TestNextWriter_Abandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		go c.run()
		if _, err := c.NextWriter(t.Context(), Binary); err != nil {
			t.Fatal(err)
		}
		c.SendText("behind")
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := c.NextWriter(t.Context(), Text); !errors.Is(err, net.ErrClosed) {
					t.Errorf("NextWriter: %v", err)
				}
			})
			wg.Go(func() {
				if err := c.Flush(t.Context()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Flush: %v", err)
				}
			})
		}
		synctest.Wait()
		c.Close()
		peer{t, theirs}.want("Close only", "\x88\x00")
		theirs.Close()
		wg.Wait()
		<-c.Done()
		if c.writer.heldLocked() != nil || c.writer.out != nil {
			t.Error("memory kept")
		}
	})
}

// A transport that fails inside a message ends everybody's wait.
func TestNextWriter_TransportFails(t *testing.T) {
	for k := 1; k < 8; k++ {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(1000)
			ours.SetFaults(memnet.Faults{FailWrite: k})
			c := accepted(testSettings(), ours, true)
			r := new(recorder)
			r.attach(c)
			go c.run()
			go io.Copy(io.Discard, theirs)
			w, err := c.NextWriter(t.Context(), Binary)
			if err != nil {
				t.Fatal(err)
			}
			for range 12 {
				if _, err = w.Write(make([]byte, 4096)); err != nil {
					break
				}
				synctest.Wait()
				c.SendText("behind")
			}
			if err == nil {
				err = w.Close()
			} else {
				w.Close()
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("fault %d: %v", k, err)
			}
			ev := waitDone2(c)
			if ev.Initiator != InitiatorNetwork || ev.Err == nil {
				t.Errorf("fault %d: %+v", k, ev)
			}
			theirs.Close()
		})
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
