package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// Chaos: many goroutines call every method of both ends of a connection at
// random. Whatever comes of it, nothing may hang, OnClose runs once and last,
// callbacks never overlap, what one goroutine has sent arrives in order, whole,
// once, and nothing is left at the end. A failure names its seed; chaosSeed runs
// that again.

const chaosSeed = 0 // 0: another one every time

func TestChaos(t *testing.T) { chaos(t, 12, 80) }

func TestChaos_Long(t *testing.T) {
	if os.Getenv("PEERWS_LONG") == "" {
		t.Skip("takes long; the test command runs it with -long")
	}
	chaos(t, 150, 200)
}

// chaosKinds are the ways two sockets can be connected.
var chaosKinds = []struct {
	name string
	pair func(t testing.TB, set *settings) (a, d *WebSocket)
}{
	{"engine", func(t testing.TB, set *settings) (a, d *WebSocket) {
		x, y := enginePair(t)
		return accepted(set, x, false), newOpenWebSocket(set, y, true, nil)
	}},
	{"raw", func(t testing.TB, set *settings) (a, d *WebSocket) {
		x, y := tcpPair(t)
		return accepted(set, x, false), newOpenWebSocket(set, y, true, nil)
	}},
	{"portable", func(t testing.TB, set *settings) (a, d *WebSocket) {
		x, y := tcpPair(t)
		s := *set
		s.portable = true
		return newOpenWebSocket(&s, x, false, nil), newOpenWebSocket(&s, y, true, nil)
	}},
	{"memory", func(t testing.TB, set *settings) (a, d *WebSocket) {
		x, y := memnet.Pipe(10_000) // small, so that writers wait
		return newOpenWebSocket(set, x, false, nil), newOpenWebSocket(set, y, true, nil)
	}},
	{"foreign", func(t testing.TB, set *settings) (a, d *WebSocket) {
		x, y := tcpPair(t)
		return newOpenWebSocket(set, newForeign(halfTCP{deadTCP{x}}), false, nil), newOpenWebSocket(set, newForeign(deadTCP{y}), true, nil)
	}},
	{"TLS", func(t testing.TB, set *settings) (a, d *WebSocket) {
		x, y := tcpPair(t)
		server, client := tlsOver(t, &steadyConn{Conn: x}, &steadyConn{Conn: y})
		return newOpenWebSocket(set, steady(server, set.writeTimeout), false, nil), newOpenWebSocket(set, steady(client, set.writeTimeout), true, nil)
	}},
}

func chaos(t *testing.T, rounds, ops int) {
	for _, kind := range chaosKinds {
		t.Run(kind.name, func(t *testing.T) {
			for range rounds {
				seed := uint64(chaosSeed)
				if seed == 0 {
					seed = rand.Uint64()
				}
				watchdog := time.AfterFunc(time.Minute, func() {
					b := make([]byte, 4<<20)
					b = b[:runtime.Stack(b, true)]
					panic(fmt.Sprintf("chaos %s, seed %#x: stuck\n%s", kind.name, seed, b))
				})
				t.Run("", func(t *testing.T) {
					chaosRound(t, seed, ops, kind.pair)
					if t.Failed() {
						t.Logf("seed %#x", seed)
					}
				})
				watchdog.Stop()
			}
		})
	}
}

// A chaosEnd is one socket and what is known of it.
type chaosEnd struct {
	t       *testing.T
	c       *WebSocket
	reading bool // by calls
	other   *chaosEnd

	in     atomic.Int32 // callbacks that are running
	closed atomic.Int32 // OnClose
	opened atomic.Int32

	readMu sync.Mutex // a Read and what it notes
	mu     sync.Mutex
	sent   map[string]int // messages that were taken, by sender
	got    map[string]int // messages of the other end that came
	gone   bool           // a close is under way: messages may be lost now
}

func (e *chaosEnd) enter(last bool) func() {
	if e.in.Add(1) != 1 {
		e.t.Error("two callbacks at the same time")
	}
	if !last && e.closed.Load() > 0 {
		e.t.Error("a callback after OnClose")
	}
	return func() { e.in.Add(-1) }
}

// payload is the n-th message of a sender.
func chaosPayload(sender string, n, size int) []byte {
	b := fmt.Appendf(nil, "%s:%d:%d:", sender, n, size)
	return append(b, bytes.Repeat([]byte{'a' + byte(n%26)}, size)...)
}

// note looks at a message, or the beginning of one, of the other end.
func (e *chaosEnd) note(b []byte, whole bool) {
	head := string(b[:min(len(b), 60)])
	f := strings.SplitN(head, ":", 4)
	if len(f) != 4 {
		e.t.Errorf("damaged: %q", head)
		return
	}
	var n, size int
	fmt.Sscan(f[1], &n)
	fmt.Sscan(f[2], &size)
	if whole && !bytes.Equal(b, chaosPayload(f[0], n, size)) {
		e.t.Errorf("damaged: %q, %d bytes", head, len(b))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if want := e.got[f[0]]; n != want {
		e.t.Errorf("message %d of %s, want %d", n, f[0], want)
	}
	e.got[f[0]] = n + 1
}

// send sends the next message of a sender in one of the ways there are. In a
// callback none of them waits for long: two callbacks that wait for each other's
// reading would wait for WriteTimeout.
func (e *chaosEnd) send(rng *rand.Rand, sender string, inCallback bool) {
	e.mu.Lock()
	n := e.sent[sender]
	e.mu.Unlock()
	size := []int{0, 10, 100, 3000, 5000, 70_000, 150_000}[rng.IntN(7)]
	b := chaosPayload(sender, n, size)
	typ := MessageType(1 + rng.IntN(2))
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(3000))*time.Microsecond)
	defer cancel()
	var err error
	way := rng.IntN(6)
	if inCallback && way == 3 {
		way = 4
	}
	switch way {
	case 0:
		err = e.c.SendText(string(b))
	case 1:
		err = e.c.SendBinary(b)
	case 2:
		err = e.c.Write(ctx, Message{Type: typ, Data: b})
	case 3:
		var w io.WriteCloser
		if w, err = e.c.NextWriter(ctx, typ); err != nil {
			break
		}
		// Once begun, a message is ended: a cut one could not be told from loss.
		w.(*messageWriter).ctx = context.Background()
		k := rng.IntN(len(b))
		_, e1 := w.Write(b[:k])
		_, e2 := w.Write(b[k:])
		err = errors.Join(e1, e2, w.Close())
	default:
		err = e.c.Send(Message{Type: typ, Data: b})
	}
	for i := range b { // it is not kept
		b[i] = '?'
	}
	switch {
	case err == nil:
		e.mu.Lock()
		e.sent[sender]++
		e.mu.Unlock()
	case err == ErrBufferFull, errors.Is(err, context.DeadlineExceeded), errors.Is(err, net.ErrClosed):
	default:
		e.t.Errorf("sending: %v", err)
	}
}

// receive reads in one of the ways there are.
func (e *chaosEnd) receive(rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(2000))*time.Microsecond)
	defer cancel()
	e.readMu.Lock()
	defer e.readMu.Unlock()
	switch rng.IntN(4) {
	case 0:
		if m, err := e.c.Read(ctx); err == nil {
			e.note(m.Data, true)
		}
	case 1:
		for m, err := range e.c.Messages(ctx) {
			if err != nil || ctx.Err() != nil && m.Data == nil {
				break
			}
			e.note(m.Data, true)
			if rng.IntN(4) == 0 {
				break
			}
		}
	case 2:
		_, r, err := e.c.NextReader(ctx)
		if err != nil {
			return
		}
		// The head must be read to know which message it was.
		r.(*stream).ctx = context.Background()
		b := make([]byte, 60)
		k, _ := io.ReadFull(r, b)
		if k == 0 && e.isGone() {
			return
		}
		if bytes.Count(b[:k], []byte(":")) == 3 || !e.isGone() {
			e.note(b[:k], false)
		}
		io.CopyN(io.Discard, r, rng.Int64N(100_000))
	case 3:
		_, r, err := e.c.NextReader(ctx)
		if err != nil {
			return
		}
		r.(*stream).ctx = context.Background()
		if b, err := io.ReadAll(r); err == nil {
			e.note(b, true)
		} else if !errors.Is(err, net.ErrClosed) {
			e.t.Errorf("reading: %v", err)
		}
	}
}

func (e *chaosEnd) isGone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.gone
}

func (e *chaosEnd) goes() {
	for _, x := range []*chaosEnd{e, e.other} {
		x.mu.Lock()
		x.gone = true
		x.mu.Unlock()
	}
}

// act does one thing at random.
func (e *chaosEnd) act(rng *rand.Rand, sender string, inCallback bool) {
	c := e.c
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(2000))*time.Microsecond)
	defer cancel()
	switch rng.IntN(20) {
	case 0:
		if err := c.Flush(ctx); err == nil && c.BufferedAmount() < 0 {
			e.t.Error("BufferedAmount below 0")
		}
	case 1:
		if n := c.BufferedAmount(); n < 0 {
			e.t.Errorf("BufferedAmount is %d", n)
		}
	case 2:
		if !inCallback {
			c.Ping(ctx)
		}
	case 3:
		if !inCallback {
			c.Wait(ctx)
		}
	case 4:
		_, _, _, _ = c.URL(), c.Protocol(), c.Extensions(), c.Request()
		_, _ = c.LocalAddr(), c.RemoteAddr()
	case 5:
		c.OnOpen(func(*WebSocket) { e.opened.Add(1) })
	case 6:
		c.OnError(func(*WebSocket, error) {})
	case 7:
		if !e.reading {
			c.OnMessage(e.message(rng.Uint64()))
		}
	case 8:
		if !e.reading {
			if _, err := c.Read(ctx); err != ErrReading {
				e.t.Errorf("Read with OnMessage: %v", err)
			}
		}
	case 9:
		n := c.NetConn(Binary)
		n.SetDeadline(time.Now().Add(time.Millisecond))
		n.LocalAddr()
	case 10:
		select {
		case <-c.Done():
			if c.ReadyState() != Closed {
				e.t.Error("Done before CLOSED")
			}
		default:
		}
	default:
		e.send(rng, sender, inCallback)
	}
}

// message is an OnMessage callback.
func (e *chaosEnd) message(seed uint64) func(*WebSocket, Message) {
	rng := rand.New(rand.NewPCG(seed, 1))
	return func(c *WebSocket, m Message) {
		defer e.enter(false)()
		if rng.IntN(5) == 0 {
			e.act(rng, "callback", true)
		}
		e.note(m.Data, true)
	}
}

func chaosRound(t *testing.T, seed uint64, ops int, pair func(t testing.TB, set *settings) (a, d *WebSocket)) {
	rng := rand.New(rand.NewPCG(seed, 0))
	set := testSettings()
	set.maxBuffered = []int{-1, 1000, 100_000, 1 << 20}[rng.IntN(4)]
	set.closeTimeout = 2 * time.Second
	set.pingInterval = time.Millisecond // keepalive takes part
	set.pongTimeout = 20 * time.Second
	a, d := pair(t, set)
	ends := [2]*chaosEnd{}
	for i, c := range []*WebSocket{a, d} {
		ends[i] = &chaosEnd{t: t, c: c, reading: rng.IntN(2) == 0, sent: map[string]int{}, got: map[string]int{}}
	}
	for i, e := range ends {
		e.other = ends[1-i]
		if !e.reading {
			e.c.OnMessage(e.message(rng.Uint64()))
		}
		e.c.OnClose(func(_ *WebSocket, ev CloseEvent) {
			defer e.enter(true)()
			if e.closed.Add(1) > 1 {
				t.Error("OnClose twice")
			}
			if e.c.ReadyState() != Closed {
				t.Error("OnClose before CLOSED")
			}
		})
		e.c.OnError(func(*WebSocket, error) { e.enter(false)() })
		go e.c.run()
	}
	const senders = 3
	early := rng.IntN(2) == 0 // somebody closes while all are at work
	var wg, readers sync.WaitGroup
	stop := make(chan struct{})
	for _, e := range ends {
		for i := range senders {
			rng := rand.New(rand.NewPCG(seed, rng.Uint64()))
			sender := fmt.Sprint("g", i)
			wg.Go(func() {
				for range ops {
					e.act(rng, sender, false)
				}
			})
		}
		if e.reading {
			for range 2 {
				rng := rand.New(rand.NewPCG(seed, rng.Uint64()))
				readers.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							e.receive(rng)
						}
					}
				})
			}
		}
	}
	end := func(rng *rand.Rand) {
		e := ends[rng.IntN(2)]
		e.goes()
		switch rng.IntN(5) {
		case 0:
			e.c.Abort()
		case 1:
			e.c.Close()
		case 2:
			e.c.CloseWith(4000, "chaos")
		case 3:
			socketOf(e.c.conn).Close() // as good as a cable that is cut
			e.c.Abort()
		case 4:
			e.c.CloseWith(1000, "")
			e.other.c.CloseWith(1000, "")
		}
	}
	if early {
		rng := rand.New(rand.NewPCG(seed, 99))
		wg.Go(func() {
			time.Sleep(time.Duration(rng.IntN(20_000)) * time.Microsecond)
			end(rng)
		})
	}
	wg.Wait()
	if !early {
		// All that was taken arrives.
		for _, e := range ends {
			if err := e.c.Flush(context.Background()); err != nil {
				t.Errorf("Flush: %v", err)
			}
			if n := e.c.BufferedAmount(); n < 0 {
				t.Errorf("BufferedAmount %d", n)
			}
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			missing := ""
			for _, e := range ends {
				e.mu.Lock()
				e.other.mu.Lock()
				for s, n := range e.sent {
					if e.other.got[s] != n {
						missing = fmt.Sprintf("%s of %v: %d sent, %d came", s, e.c.core.client, n, e.other.got[s])
					}
				}
				e.other.mu.Unlock()
				e.mu.Unlock()
				if t.Failed() {
					missing = ""
				}
			}
			if missing == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Error(missing)
				break
			}
		}
		end(rng)
	}
	for _, e := range ends {
		if ev := waitDone(t, e.c); ev.Code == 0 {
			t.Errorf("%+v", ev)
		}
	}
	close(stop)
	readers.Wait()
	for _, e := range ends {
		if e.closed.Load() != 1 {
			t.Errorf("OnClose ran %d times", e.closed.Load())
		}
		c := e.c
		if c.in != nil || c.writer.out != nil || c.writer.heldLocked() != nil || c.writer.cork != nil || c.writer.running || c.core.part != nil {
			t.Error("memory or a writer is left")
		}
		if err := c.SendText("late"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after the end: %v", err)
		}
		if _, err := c.Read(context.Background()); !errors.Is(err, net.ErrClosed) && err != ErrReading {
			t.Errorf("Read after the end: %v", err)
		}
	}
}
