package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A transport is a way to connect a socket under test to a scripted peer.
type transport struct {
	name string
	pair func(t testing.TB) (ours, theirs net.Conn, portable bool)
}

// A socket of the engine (elsewhere than on Linux there is none, and it is the raw path
// again), the raw path over a real socket, the portable path over one, and the portable
// path over a connection that is none.
var transports = []transport{
	{"engine", func(t testing.TB) (net.Conn, net.Conn, bool) { a, b := enginePair(t); return a, b, false }},
	{"raw", func(t testing.TB) (net.Conn, net.Conn, bool) { a, b := tcpPair(t); return a, b, false }},
	{"portable", func(t testing.TB) (net.Conn, net.Conn, bool) { a, b := tcpPair(t); return a, b, true }},
	{"memory", func(t testing.TB) (net.Conn, net.Conn, bool) { a, b := memnet.Pipe(0); return a, b, false }},
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if a, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// enginePair is a TCP connection whose first end the engine waits for, where there is
// one.
func enginePair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	e, err := newEngine(ln.(*net.TCPListener), false)
	if errors.Is(err, errors.ErrUnsupported) {
		return tcpPair(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer e.release()
	if b, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = e.accept(nil); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// realPair is a TCP connection for the portable path, or for the best one there is.
func realPair(t testing.TB, portable bool) (a, b net.Conn) {
	if portable {
		return tcpPair(t)
	}
	return enginePair(t)
}

// testSettings are the defaults of a listener.
func testSettings() *settings {
	l, err := (&ListenConfig{}).prepare(nil)
	if err != nil {
		panic(err)
	}
	return l.set
}

// A peer is the other end of a socket under test: bytes by hand.
type peer struct {
	t    testing.TB
	conn net.Conn
}

func (p peer) send(parts ...string) {
	p.t.Helper()
	if _, err := p.conn.Write([]byte(strings.Join(parts, ""))); err != nil {
		p.t.Fatalf("peer: send: %v", err)
	}
}

func (p peer) want(what string, parts ...string) {
	p.t.Helper()
	want := strings.Join(parts, "")
	got := make([]byte, len(want))
	n, err := io.ReadFull(p.conn, got)
	if err != nil || string(got) != want {
		p.t.Fatalf("peer: %s: got %d bytes % .40x (%v), want %d bytes % .40x", what, n, got[:n], err, len(want), want)
	}
}

func (p peer) wantEOF() {
	p.t.Helper()
	b, err := io.ReadAll(p.conn)
	if err != nil || len(b) > 0 {
		p.t.Fatalf("peer: got % x (%v), want the end", b, err)
	}
}

// A recorder collects the events of a socket in order.
type recorder struct {
	mu   sync.Mutex
	list []string
	in   int // callbacks running: must never be more than one
	over bool
}

func (r *recorder) enter(f string, args ...any) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := fmt.Sprintf(f, args...)
	if r.in++; r.in > 1 {
		s += " (at the same time as another)"
	}
	if r.over {
		s += " (after OnClose)"
	}
	r.list = append(r.list, s)
	return func() {
		r.mu.Lock()
		r.in--
		r.mu.Unlock()
	}
}

func (r *recorder) attach(c *WebSocket) {
	c.OnOpen(func(*WebSocket) { r.enter("open")() })
	c.OnMessage(func(_ *WebSocket, m Message) { r.enter("%v %q", m.Type, m.Data)() })
	c.OnError(func(_ *WebSocket, err error) { r.enter("error %v", err)() })
	c.OnClose(func(_ *WebSocket, ev CloseEvent) {
		r.enter("close %d %q clean=%v by %v", ev.Code, ev.Reason, ev.WasClean, ev.Initiator)()
		r.mu.Lock()
		r.over = true
		r.mu.Unlock()
	})
}

func (r *recorder) want(t testing.TB, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.list, want) {
		t.Fatalf("events:\n got %q\nwant %q", r.list, want)
	}
}

// accepted makes an accepted socket on ours with no reader started yet.
func accepted(set *settings, ours net.Conn, portable bool) *WebSocket {
	s := *set
	s.portable = portable
	return newOpenWebSocket(&s, ours, false, nil)
}

// waitDone waits for the end of c.
func waitDone(t testing.TB, c *WebSocket) CloseEvent {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ev, err := c.Wait(ctx)
	if err != nil {
		t.Fatalf("socket did not end: %v", err)
	}
	return ev
}

// onEach runs a test with an accepted socket that is being read, and its peer,
// over each transport, those of TLS included.
func onEach(t *testing.T, f func(t *testing.T, c *WebSocket, r *recorder, p peer)) {
	for _, tr := range slices.Concat(transports, tlsTransports, foreignTransports) {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			theirs.SetDeadline(time.Now().Add(10 * time.Second))
			c := accepted(testSettings(), ours, portable)
			r := new(recorder)
			r.attach(c)
			go c.run()
			f(t, c, r, peer{t, theirs})
			c.Abort()
			theirs.Close()
			waitDone(t, c)
			if s := c.ReadyState(); s != Closed {
				t.Errorf("state at the end: %v", s)
			}
		})
	}
}

// Frames by hand. Masked ones have the key 0, which leaves the payload legible.
const (
	maskedHello  = "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58" // RFC 6455 §5.7
	hello        = "\x81\x05Hello"                                // §5.7
	maskedPing   = "\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
	pong         = "\x8a\x05Hello" // §5.7
	maskedClose  = "\x88\x82\x00\x00\x00\x00\x03\xe8"
	maskedClose0 = "\x88\x80\x00\x00\x00\x00"
	close1000    = "\x88\x02\x03\xe8"
)

func TestReadyState_OnlyForward(t *testing.T) {
	states := []lifeState{isConnecting, isOpen, isClosing, isSevered, isClosed}
	shown := []ReadyState{Connecting, Open, Closing, Closing, Closed}
	for _, from := range states {
		for _, to := range states {
			c := &WebSocket{}
			c.state.Store(uint32(from))
			moved := c.setState(to)
			if want := to > from; moved != want {
				t.Errorf("%v → %v: moved = %v", from, to, moved)
			}
			if got, want := c.ReadyState(), shown[max(from, to)]; got != want {
				t.Errorf("%v → %v: state is %v", from, to, got)
			}
		}
	}
}

func TestSection5_7_Echo(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		p.send(maskedHello)
		p.want("echo", hello)
		p.send("\x01\x83\x00\x00\x00\x00Hel", "\x80\x82\x00\x00\x00\x00lo")
		p.want("echo of a fragmented message", hello)
		p.send(maskedPing)
		p.want("pong", pong)
		p.send(maskedClose)
		p.want("close", close1000)
		p.wantEOF()
		p.conn.Close()
		if ev := waitDone(t, c); !ev.WasClean || ev.Code != 1000 || ev.Initiator != InitiatorPeer || ev.Err != nil {
			t.Errorf("%+v", ev)
		}
	})
}

// Every size class, and every way a message can take: in place, in pieces, by
// way of the queue.
func TestEchoSizes(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		c.OnMessage(func(c *WebSocket, m Message) { c.Write(context.Background(), m) })
		for _, n := range []int{0, 1, 125, 126, 4095, 4096, 4097, 65535, 65536, 65537, 100_000, 300_000, 1 << 20} {
			payload := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
			go p.conn.Write(clientFrame(0x82, payload))
			p.want(fmt.Sprintf("echo of %d bytes", n), string(serverMessage(payload)))
		}
	})
}

// clientFrame and serverFrame write a frame without the codec under test.
func clientFrame(b0 byte, payload []byte) []byte {
	f := frameHead(b0, 0x80, len(payload))
	key := [4]byte{1, 2, 3, 4}
	f = append(f, key[:]...)
	for i, x := range payload {
		f = append(f, x^key[i%4])
	}
	return f
}

func serverFrame(b0 byte, payload []byte) []byte {
	return append(frameHead(b0, 0, len(payload)), payload...)
}

// serverMessage is a binary message as we cut it: over 128 KiB in frames of 64 KiB.
func serverMessage(payload []byte) []byte {
	if len(payload) <= 128<<10 {
		return serverFrame(0x82, payload)
	}
	m := serverFrame(0x02, payload[:64<<10])
	for payload = payload[64<<10:]; len(payload) > 64<<10; payload = payload[64<<10:] {
		m = append(m, serverFrame(0x00, payload[:64<<10])...)
	}
	return append(m, serverFrame(0x80, payload)...)
}

func frameHead(b0, b1 byte, n int) []byte {
	switch {
	case n < 126:
		return []byte{b0, b1 | byte(n)}
	case n < 1<<16:
		return []byte{b0, b1 | 126, byte(n >> 8), byte(n)}
	}
	return []byte{b0, b1 | 127, 0, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// Whatever read or write fails or is short, at whatever point: OnClose comes
// exactly once, messages before it are neither lost nor doubled, nothing leaks.
func TestEveryFault(t *testing.T) {
	const messages = 5
	script := strings.Repeat(maskedHello+maskedPing, messages) + maskedClose
	for _, short := range []bool{false, true} {
		for _, write := range []bool{false, true} {
			for k := 1; ; k++ {
				ours, theirs := memnet.Pipe(64)
				f := memnet.Faults{}
				switch {
				case write && short:
					f.ShortWrite = k
				case write:
					f.FailWrite = k
				case short:
					f.ShortRead = k
				default:
					f.FailRead = k
				}
				ours.SetFaults(f)
				c := accepted(testSettings(), ours, true)
				r := new(recorder)
				r.attach(c)
				c.OnMessage(func(c *WebSocket, m Message) {
					r.enter("%q", m.Data)()
					c.Send(m)
				})
				go c.run()
				go func() {
					theirs.Write([]byte(script))
					theirs.CloseWrite()
				}()
				replies, _ := io.ReadAll(theirs)
				waitDone(t, c)
				theirs.Close()
				closes, got := 0, 0
				for _, e := range r.list {
					switch {
					case strings.HasPrefix(e, "close"):
						closes++
					case e == `"Hello"`:
						got++
					}
				}
				if closes != 1 || !strings.HasPrefix(r.list[len(r.list)-1], "close") {
					t.Fatalf("short=%v write=%v k=%d: events %q", short, write, k, r.list)
				}
				if write && !short && got != messages { // reading was never disturbed
					t.Errorf("write fault %d: %d messages delivered", k, got)
				}
				if n := bytes.Count(replies, []byte(hello)); n > got {
					t.Errorf("k=%d: %d replies to %d messages", k, n, got)
				}
				if !write && short && got != messages {
					t.Errorf("short read %d: %d messages delivered", k, got)
				}
				done := ours.Reads()
				if write {
					done = ours.Writes()
				}
				if done < k {
					break
				}
			}
		}
	}
}

// The promise of zero allocations: a message received and one sent back.
func TestNoAllocations_Echo(t *testing.T) {
	countsAllocations(t)
	for _, tr := range transports {
		for _, size := range []int{32, 125, 4 << 10, 16 << 10, 100 << 10, 1<<20 - 1024} {
			t.Run(fmt.Sprintf("%s/%d", tr.name, size), func(t *testing.T) {
				ours, theirs, portable := tr.pair(t)
				set := testSettings()
				set.maxBuffered = -1 // the reply may be here before its writer has counted it
				c := accepted(set, ours, portable)
				c.OnMessage(func(c *WebSocket, m Message) {
					if err := c.Send(m); err != nil {
						t.Error(err)
					}
				})
				go c.run()
				frame := clientFrame(0x82, make([]byte, size))
				reply := make([]byte, len(serverMessage(make([]byte, size))))
				echo := func() {
					for at := 0; at < len(frame); {
						n := min(len(frame)-at, 32<<10)
						theirs.Write(frame[at : at+n])
						at += n
					}
					if _, err := io.ReadFull(theirs, reply); err != nil {
						t.Fatal(err)
					}
				}
				for range 20 {
					echo()
				}
				if n := testing.AllocsPerRun(200, echo); n > 0 {
					t.Errorf("%v allocations for an echo of %d bytes", n, size)
				}
				theirs.Close()
				waitDone(t, c)
			})
		}
	}
}

// ignore is an OnMessage that wants nothing.
func ignore(*WebSocket, Message) {}
