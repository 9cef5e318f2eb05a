package memnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// inBubble runs f in a bubble: there a forgotten goroutine or a call that is
// never woken fails the test at once, and waiting costs no time.
func inBubble(t *testing.T, bufSize int, f func(t *testing.T, a, b *Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe(bufSize)
		f(t, a, b)
		a.Close()
		b.Close()
	})
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

func mustWrite(t *testing.T, c *Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("Write(%q) = %d, %v", s, n, err)
	}
}

func wantRead(t *testing.T, c *Conn, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
		t.Fatalf("read %q, %v; want %q", buf, err, want)
	}
}

func wantEOF(t *testing.T, c *Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read = %d, %v; want 0, EOF", n, err)
	}
}

func wantTimeout(t *testing.T, what string, err error) {
	t.Helper()
	wantErr(t, what, err, os.ErrDeadlineExceeded)
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Errorf("%s: %v is no net.Error with Timeout() true", what, err)
	}
}

// The checks of golang.org/x/net/nettest, by their names there.

func TestBasicIO(t *testing.T) {
	for _, bufSize := range []int{1, 7, 1000, 0} {
		inBubble(t, bufSize, func(t *testing.T, a, b *Conn) {
			want := make([]byte, 1<<17)
			for i := range want {
				want[i] = byte(rand.Uint32())
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				n, err := io.Copy(a, bytes.NewReader(want))
				if int(n) != len(want) || err != nil {
					t.Errorf("copy to a = %d, %v", n, err)
				}
				a.CloseWrite()
			})
			wg.Go(func() { // echo
				io.Copy(b, b)
				b.Close()
			})
			got, err := io.ReadAll(a)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("buffer %d: read %d bytes back, %v; want the %d that were sent", bufSize, len(got), err, len(want))
			}
			wg.Wait()
		})
	}
}

func TestPingPong(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, a, b *Conn) {
		const rounds = 200
		player := func(c *Conn, serve bool) {
			buf := make([]byte, 8)
			for i := range rounds {
				if serve || i > 0 {
					if _, err := c.Write(buf); err != nil {
						t.Error(err)
					}
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					t.Error(err)
				}
				buf[0]++
			}
			if !serve {
				c.Write(buf)
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { player(a, true) })
		wg.Go(func() { player(b, false) })
		wg.Wait()
	})
}

// Many readers and writers at once: every byte arrives once, and a Write is
// never mixed with another.
func TestRacyReadWrite(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, a, b *Conn) {
		const writers, each = 8, 50
		var wg, rwg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for range each {
					if _, err := a.Write(bytes.Repeat([]byte{byte('a' + w)}, 12)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		got, err := make([]byte, 0, writers*each*12), error(nil)
		rwg.Go(func() { got, err = io.ReadAll(b) })
		wg.Wait()
		a.Close()
		rwg.Wait()
		if err != nil || len(got) != writers*each*12 {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		for msg := got; len(msg) > 0; msg = msg[12:] {
			if bytes.Count(msg[:12], msg[:1]) != 12 {
				t.Fatalf("two Writes mixed: %q", msg[:12])
			}
		}
	})
	inBubble(t, 5, func(t *testing.T, a, b *Conn) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := 0
		for range 8 {
			wg.Go(func() {
				buf := make([]byte, 3)
				for {
					n, err := b.Read(buf)
					mu.Lock()
					total += n
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		a.Write(make([]byte, 1000))
		a.Close()
		wg.Wait()
		if total != 1000 {
			t.Errorf("read %d bytes, want 1000", total)
		}
	})
}

func TestReadTimeout(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		mustWrite(t, b, "x")
		a.SetReadDeadline(aLongTimeAgo)
		n, err := a.Read(make([]byte, 1))
		if n != 0 {
			t.Error("a Read after its deadline moved data")
		}
		wantTimeout(t, "Read", err)
		mustWrite(t, a, "the write side is not concerned")
		a.SetReadDeadline(time.Time{})
		wantRead(t, a, "x")
	})
}

func TestWriteTimeout(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		a.SetWriteDeadline(aLongTimeAgo)
		n, err := a.Write([]byte("x"))
		if n != 0 {
			t.Error("a Write after its deadline moved data")
		}
		wantTimeout(t, "Write", err)
		mustWrite(t, b, "y")
		wantRead(t, a, "y")
		a.SetWriteDeadline(time.Time{})
		mustWrite(t, a, "z")
		wantRead(t, b, "z")
	})
}

// A deadline in the past and one of this moment wake calls that wait already.
func TestPastAndPresentTimeout(t *testing.T) {
	for _, deadline := range []func() time.Time{
		func() time.Time { return aLongTimeAgo },
		time.Now,
		func() time.Time { return time.Now().Add(time.Second) },
		func() time.Time { return time.Now().Add(time.Second).Round(0) }, // no monotonic clock in it
	} {
		inBubble(t, 4, func(t *testing.T, a, b *Conn) {
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					_, err := a.Read(make([]byte, 1))
					wantTimeout(t, "Read", err)
				})
				wg.Go(func() {
					n, err := a.Write(make([]byte, 10))
					wantTimeout(t, "Write", err)
					if n != 4 && n != 0 {
						t.Errorf("Write took %d bytes into a buffer of 4", n)
					}
				})
			}
			synctest.Wait()
			a.SetDeadline(deadline())
			wg.Wait()
			if got := b.Buffered(); got != 4 {
				t.Errorf("%d bytes buffered, want the 4 there was room for", got)
			}
		})
	}
}

func TestFutureTimeout(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, a, b *Conn) {
		start := time.Now()
		a.SetDeadline(start.Add(100 * time.Millisecond))
		var wg sync.WaitGroup
		for _, f := range []func([]byte) (int, error){a.Read, a.Write} {
			wg.Go(func() {
				_, err := f(make([]byte, 10))
				wantTimeout(t, "call", err)
				if d := time.Since(start); d != 100*time.Millisecond {
					t.Errorf("woken after %v", d)
				}
			})
		}
		wg.Wait()
		a.SetDeadline(time.Time{})
		wantRead(t, b, "\x00\x00\x00\x00")
		mustWrite(t, b, "ok")
		wantRead(t, a, "ok")
	})
}

// A deadline that is moved before it comes does nothing at its old time.
func TestMovedDeadline(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		start := time.Now()
		a.SetReadDeadline(start.Add(time.Second))
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := a.Read(make([]byte, 1))
			wantTimeout(t, "Read", err)
			if d := time.Since(start); d != 3*time.Second {
				t.Errorf("woken after %v, want 3s", d)
			}
		})
		time.Sleep(500 * time.Millisecond)
		a.SetReadDeadline(start.Add(3 * time.Second))
		wg.Wait()

		a.SetReadDeadline(time.Now().Add(time.Second))
		a.SetReadDeadline(time.Time{})
		wg.Go(func() { wantRead(t, a, "x") })
		time.Sleep(time.Hour)
		mustWrite(t, b, "x")
		wg.Wait()
	})
}

func TestCloseUnblocks(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, a, b *Conn) {
		mustWrite(t, a, "x") // a's direction is full
		mustWrite(t, b, "y") // b's too
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := a.Write([]byte("z"))
			wantErr(t, "Write at the end that closes", err, net.ErrClosed)
		})
		wg.Go(func() {
			_, err := b.Write([]byte("z"))
			wantErr(t, "Write at the other end", err, syscall.EPIPE)
		})
		synctest.Wait()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()

		wantRead(t, b, "x")
		wantEOF(t, b)
		wantErr(t, "second Close", a.Close(), net.ErrClosed)
		wantErr(t, "SetDeadline after Close", a.SetDeadline(time.Now()), net.ErrClosed)
		_, err := a.Read(make([]byte, 1))
		wantErr(t, "Read after Close", err, net.ErrClosed)
		_, err = a.Read(nil)
		wantErr(t, "empty Read after Close", err, net.ErrClosed)
	})
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := a.Read(make([]byte, 1))
			wantErr(t, "Read at the end that closes", err, net.ErrClosed)
		})
		wg.Go(func() { wantEOF(t, b) })
		synctest.Wait()
		a.Close()
		wg.Wait()
	})
}

// Every method at once, while others close: no panic, no race, and all return.
func TestConcurrentMethods(t *testing.T) {
	inBubble(t, 16, func(t *testing.T, a, b *Conn) {
		var wg sync.WaitGroup
		for _, c := range []*Conn{a, b} {
			for range 20 {
				wg.Go(func() { c.Read(make([]byte, 100)) })
				wg.Go(func() { c.Write(make([]byte, 100)) })
				wg.Go(func() { c.SetDeadline(time.Now().Add(10 * time.Millisecond)) })
				wg.Go(func() { c.SetReadDeadline(aLongTimeAgo) })
				wg.Go(func() { c.SetWriteDeadline(time.Time{}) })
				wg.Go(func() { c.LocalAddr(); c.RemoteAddr(); c.Buffered(); c.Reads(); c.Writes() })
			}
		}
		wg.Go(func() { time.Sleep(5 * time.Millisecond); a.CloseWrite(); b.CloseRead(); b.Close(); a.Abort() })
		wg.Wait()
	})
}

// What net.Pipe cannot do, and a close handshake needs: both ends write before
// either reads.
func TestBuffered(t *testing.T) {
	inBubble(t, 8, func(t *testing.T, a, b *Conn) {
		mustWrite(t, a, "12345")
		mustWrite(t, b, "abcde")
		mustWrite(t, a, "678")
		if b.Buffered() != 8 || a.Buffered() != 5 {
			t.Errorf("buffered %d and %d, want 8 and 5", b.Buffered(), a.Buffered())
		}
		wantRead(t, b, "12345678")
		wantRead(t, a, "abcde")
	})
}

// A full buffer holds the writer back until the reader has made room.
func TestBackPressure(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, a, b *Conn) {
		done := make(chan bool)
		go func() { mustWrite(t, a, "123456"); close(done) }()
		synctest.Wait()
		select {
		case <-done:
			t.Error("a Write of 6 bytes did not wait, with room for 4")
		default:
		}
		wantRead(t, b, "1")
		wantRead(t, b, "2345")
		<-done
		wantRead(t, b, "6")

		// The second of two waiting Writes needs no further Read once there is
		// room for it.
		var wg sync.WaitGroup
		mustWrite(t, a, "1234")
		wg.Go(func() { a.Write([]byte("x")) })
		wg.Go(func() { a.Write([]byte("y")) })
		synctest.Wait()
		wantRead(t, b, "1234")
		wg.Wait()
	})
}

func TestHalfClose(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		mustWrite(t, a, "last words")
		a.CloseWrite()
		wantRead(t, b, "last words")
		wantEOF(t, b)
		_, err := a.Write([]byte("x"))
		wantErr(t, "Write after CloseWrite", err, syscall.EPIPE)
		mustWrite(t, b, "answer")
		wantRead(t, a, "answer")
	})
	inBubble(t, 4, func(t *testing.T, a, b *Conn) {
		mustWrite(t, b, "lost")
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := b.Write([]byte("x"))
			wantErr(t, "waiting Write after the other end's CloseRead", err, syscall.EPIPE)
		})
		synctest.Wait()
		a.CloseRead()
		wg.Wait()
		wantEOF(t, a)
		mustWrite(t, a, "ok")
		wantRead(t, b, "ok")
	})
}

func TestAbort(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, a, b *Conn) {
		mustWrite(t, a, "lost")
		if err := a.Abort(); err != nil {
			t.Error(err)
		}
		_, err := b.Read(make([]byte, 4))
		wantErr(t, "Read of a reset connection", err, syscall.ECONNRESET)
		_, err = b.Write([]byte("x"))
		wantErr(t, "Write to a reset connection", err, syscall.ECONNRESET)
		_, err = a.Write([]byte("x"))
		wantErr(t, "Write after Abort", err, net.ErrClosed)
		wantErr(t, "Close after Abort", a.Close(), net.ErrClosed)
	})
	inBubble(t, 4, func(t *testing.T, a, b *Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := b.Read(make([]byte, 4))
			wantErr(t, "waiting Read", err, syscall.ECONNRESET)
		})
		wg.Go(func() {
			_, err := b.Write(make([]byte, 5))
			wantErr(t, "waiting Write", err, syscall.ECONNRESET)
		})
		synctest.Wait()
		a.Abort()
		wg.Wait()
	})
	inBubble(t, 4, func(t *testing.T, a, b *Conn) { // a half-closed connection can still be reset
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := b.Write(make([]byte, 5))
			wantErr(t, "waiting Write", err, syscall.ECONNRESET)
		})
		synctest.Wait()
		a.CloseWrite()
		wantEOF(t, b)
		a.Abort()
		wg.Wait()
		_, err := b.Read(make([]byte, 4))
		wantErr(t, "Read of a reset connection", err, syscall.ECONNRESET)
	})
}

func TestFailRead(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		mustWrite(t, b, "abcdef")
		a.SetFaults(Faults{FailRead: 3})
		wantRead(t, a, "a")
		wantRead(t, a, "b")
		for range 2 { // a broken connection stays broken
			n, err := a.Read(make([]byte, 1))
			wantErr(t, "third Read", err, syscall.ECONNRESET)
			if n != 0 {
				t.Error("the failing Read moved data")
			}
		}
		if a.Reads() != 4 || a.Writes() != 0 {
			t.Errorf("%d reads, %d writes; want 4, 0", a.Reads(), a.Writes())
		}
		mustWrite(t, a, "writing is not concerned")

		boom := errors.New("boom")
		a.SetFaults(Faults{FailRead: 5, Err: boom, Once: true})
		_, err := a.Read(make([]byte, 1))
		wantErr(t, "fifth Read", err, boom)
		wantRead(t, a, "c")
		a.SetFaults(Faults{FailRead: 7, Err: io.EOF})
		wantEOF(t, a)
	})
}

func TestFailWrite(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		a.SetFaults(Faults{FailWrite: 2})
		mustWrite(t, a, "1")
		for range 2 {
			n, err := a.Write([]byte("2"))
			wantErr(t, "failing Write", err, syscall.ECONNRESET)
			if n != 0 {
				t.Error("the failing Write moved data")
			}
		}
		a.Close()
		wantRead(t, b, "1")
		wantEOF(t, b)
	})
}

func TestShort(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		mustWrite(t, b, "abcdef")
		read := func(want int) {
			t.Helper()
			if n, err := a.Read(make([]byte, 3)); n != want || err != nil {
				t.Errorf("Read = %d, %v; want %d", n, err, want)
			}
		}
		a.SetFaults(Faults{ShortRead: 1})
		read(1)
		read(3)
		a.SetFaults(Faults{ShortRead: Every})
		read(1)
		read(1)

		b.SetFaults(Faults{ShortWrite: 2})
		n, err := b.Write([]byte("1234"))
		wantErr(t, "short Write", err, syscall.ECONNRESET)
		if n != 2 {
			t.Errorf("short Write took %d bytes, want 2", n)
		}
		_, err = b.Write([]byte("5"))
		wantErr(t, "Write after the short one", err, syscall.ECONNRESET)
		b.Close()
		wantRead(t, a, "12")
		wantEOF(t, a)
	})
}

func TestResetUnread(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		a.SetFaults(Faults{ResetUnread: true})
		mustWrite(t, a, "close frame")
		mustWrite(t, b, "never read")
		a.Close()
		_, err := b.Read(make([]byte, 1))
		wantErr(t, "Read", err, syscall.ECONNRESET)
	})
	inBubble(t, 0, func(t *testing.T, a, b *Conn) {
		a.SetFaults(Faults{ResetUnread: true})
		mustWrite(t, a, "close frame")
		mustWrite(t, b, "x")
		wantRead(t, a, "x")
		a.Close()
		wantRead(t, b, "close frame")
		wantEOF(t, b)
	})
}

func TestAddrs(t *testing.T) {
	a, b := Pipe(0)
	if a.LocalAddr().String() != "127.0.0.1:9000" || b.RemoteAddr().String() != "127.0.0.1:9000" ||
		b.LocalAddr().String() != "127.0.0.1:50000" || a.RemoteAddr().Network() != "tcp" {
		t.Errorf("addresses %v, %v, %v, %v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
	}
	b.SetAddrs(&net.TCPAddr{IP: net.IPv6loopback, Port: 1}, a.LocalAddr())
	if b.LocalAddr().String() != "[::1]:1" {
		t.Error(b.LocalAddr())
	}
}

func TestNoAllocations(t *testing.T) {
	a, b := Pipe(0)
	buf := make([]byte, 1000)
	check := func(what string, f func()) {
		f()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
	check("Write and Read", func() { a.Write(buf); b.Read(buf) })
	check("SetDeadline", func() { a.SetDeadline(time.Now().Add(time.Hour)); a.SetDeadline(time.Time{}) })
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen(0)
		var hooked int
		l.OnDial = func(accepted, dialled *Conn) { hooked++ }
		got := make(chan net.Conn)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					wantErr(t, "Accept", err, net.ErrClosed)
					close(got)
					return
				}
				got <- c
			}
		}()
		for range 2 {
			d, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c := <-got
			mustWrite(t, d, "hello")
			wantRead(t, c.(*Conn), "hello")
			if c.RemoteAddr().String() != d.LocalAddr().String() || c.LocalAddr().String() != "127.0.0.1:9000" {
				t.Errorf("accepted %v from %v, dialled from %v", c.LocalAddr(), c.RemoteAddr(), d.LocalAddr())
			}
		}
		if hooked != 2 {
			t.Errorf("OnDial ran %d times", hooked)
		}
		l.Close()
		<-got
		wantErr(t, "second Close", l.Close(), net.ErrClosed)
		_, err := l.DialContext(t.Context(), "tcp", "example.test:80")
		wantErr(t, "Dial after Close", err, syscall.ECONNREFUSED)
	})
}

func TestListenerBacklog(t *testing.T) {
	l := Listen(0)
	first, _ := l.Dial(t.Context())
	second, _ := l.Dial(t.Context())
	if first.LocalAddr().String() == second.LocalAddr().String() {
		t.Error("two dialled ends have one address")
	}
	c, err := l.Accept()
	if err != nil || c.RemoteAddr().String() != first.LocalAddr().String() {
		t.Fatalf("Accept = %v, %v; want the first dialled", c, err)
	}
	l.Close()
	_, err = second.Read(make([]byte, 1))
	wantErr(t, "Read of a connection never accepted", err, syscall.ECONNRESET)
	mustWrite(t, first, "lives on")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Listen(0).Dial(ctx)
	wantErr(t, "Dial with a context that is over", err, context.Canceled)
}

func BenchmarkWriteRead(b *testing.B) {
	x, y := Pipe(0)
	buf := make([]byte, 125)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		x.Write(buf)
		y.Read(buf)
	}
}
