package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A transport is a way to connect a socket under test to a scripted peer.
type transport struct {
	name string
	pair func(t testing.TB) (ours, theirs net.Conn, portable bool)
}

// The raw path over a real socket, the portable path over one, and the portable
// path over a connection that is none.
var transports = []transport{
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
	states := []ReadyState{Connecting, Open, Closing, Closed}
	for _, from := range states {
		for _, to := range states {
			c := &WebSocket{}
			c.state.Store(uint32(from))
			moved := c.setState(to)
			if want := to > from; moved != want {
				t.Errorf("%v → %v: moved = %v", from, to, moved)
			}
			if got, want := c.ReadyState(), max(from, to); got != want {
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

func TestClosingHandshake_PeerFirst(t *testing.T) {
	for _, tc := range []struct{ name, in, out, event string }{
		{"no code", maskedClose0, "\x88\x00", `close 1005 "" clean=true by peer`},
		{"1000", maskedClose, close1000, `close 1000 "" clean=true by peer`},
		{"reason", "\x88\x85\x00\x00\x00\x00\x0f\xa1bye", "\x88\x05\x0f\xa1bye", `close 4001 "bye" clean=true by peer`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
				p.send(maskedHello, tc.in, maskedHello) // what comes behind a Close is ignored
				p.want("the same code and reason", tc.out)
				p.wantEOF()
				p.conn.Close()
				waitDone(t, c)
				r.want(t, "open", `text "Hello"`, tc.event)
			})
		})
	}
}

func TestClosingHandshake_LocalFirst(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		if err := c.CloseWith(4000, "done"); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWith(4001, "again"); err != nil {
			t.Fatal("second close:", err)
		}
		if err := c.SendText("late"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send after close: %v", err)
		} else if ev, ok := errors.AsType[CloseEvent](err); !ok || ev.Initiator != InitiatorLocal {
			t.Errorf("send after close: no CloseEvent in %v", err)
		}
		p.want("close", "\x88\x06\x0f\xa0done")
		p.send(maskedHello, "\x88\x84\x00\x00\x00\x00\x0f\xa0ok") // the message is not delivered any more
		p.wantEOF()
		p.conn.Close()
		waitDone(t, c)
		r.want(t, "open", `close 4000 "ok" clean=true by local`)
	})
}

func TestClosingHandshake_QueuedMessagesGoFirst(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		big := bytes.Repeat([]byte("x"), 900_000)
		for range 3 {
			if err := c.Write(t.Context(), Message{Binary, big[:300_000]}); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		for range 3 {
			p.want("message", string(serverMessage(big[:300_000])))
		}
		p.want("close", "\x88\x00")
	})
}

// §7.1.7: a violation is answered with its code, and then nothing counts.
func TestFailConnection(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		code     int
	}{
		{"unmasked", hello, 1002},
		{"reserved opcode", "\x83\x80\x00\x00\x00\x00", 1002},
		{"reserved bit", "\xc1\x80\x00\x00\x00\x00", 1002},
		{"close of one byte", "\x88\x81\x00\x00\x00\x00\x03", 1002},
		{"close with 1006", "\x88\x82\x00\x00\x00\x00\x03\xee", 1002},
		{"text not UTF-8", "\x81\x81\x00\x00\x00\x00\xff", 1007},
		{"too big", "\x82\xff\x00\x00\x00\x00\x00\x10\x00\x01\x00\x00\x00\x00", 1009},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
				p.send(maskedHello, tc.in, maskedHello)
				var head [4]byte
				if _, err := io.ReadFull(p.conn, head[:]); err != nil {
					t.Fatal(err)
				}
				if code := int(head[2])<<8 | int(head[3]); head[0] != 0x88 || code != tc.code {
					t.Errorf("got % x, want Close %d", head, tc.code)
				}
				if _, err := io.ReadAll(p.conn); err != nil {
					t.Errorf("the rest of the Close frame: %v", err)
				}
				p.conn.Close()
				ev := waitDone(t, c)
				if ev.Code != 1006 || ev.WasClean || ev.Initiator != InitiatorLimit || ev.Err == nil {
					t.Errorf("%+v", ev)
				}
				r.want(t, "open", `text "Hello"`, "error "+ev.Err.Error(), `close 1006 "" clean=false by limit`)
			})
		})
	}
}

func TestConnectionLost(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		p.send(maskedHello, "\x81") // the header of the second is cut off
		p.conn.Close()
		ev := waitDone(t, c)
		if ev.Code != 1006 || ev.WasClean || ev.Initiator != InitiatorNetwork || ev.Err == nil {
			t.Errorf("%+v", ev)
		}
		r.want(t, "open", `text "Hello"`, "error "+ev.Err.Error(), `close 1006 "" clean=false by network`)
	})
}

// A conversation cut into single bytes gives the same events and replies.
func TestEverySplit(t *testing.T) {
	conversation := maskedHello + maskedPing + "\x02\x81\x00\x00\x00\x00a" + maskedPing + "\x00\x80\x00\x00\x00\x00" +
		"\x80\x82\x00\x00\x00\x00bc" + string(clientFrame(0x82, bytes.Repeat([]byte("z"), 200))) + maskedClose
	for cut := range len(conversation) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		r := new(recorder)
		r.attach(c)
		go c.run()
		p := peer{t, theirs}
		if cut == 0 {
			for i := range len(conversation) {
				p.send(conversation[i : i+1])
			}
		} else {
			p.send(conversation[:cut])
			p.send(conversation[cut:])
		}
		p.want("replies", pong, pong, close1000)
		theirs.Close()
		waitDone(t, c)
		r.want(t, "open", `text "Hello"`, `binary "abc"`, `binary "`+strings.Repeat("z", 200)+`"`, `close 1000 "" clean=true by peer`)
	}
}

func TestCloseAndAbort_InsideCallbacks(t *testing.T) {
	for _, tc := range []struct {
		name string
		act  func(*WebSocket)
		out  string
	}{
		{"Close", func(c *WebSocket) { c.Close() }, "\x88\x00"},
		{"CloseWith", func(c *WebSocket) { c.CloseWith(1000, "") }, close1000},
		{"Abort", func(c *WebSocket) { c.Abort() }, ""},
	} {
		t.Run(tc.name+" in OnMessage", func(t *testing.T) {
			onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
				n := 0
				c.OnMessage(func(c *WebSocket, m Message) { n++; tc.act(c) })
				p.send(maskedHello, maskedHello, maskedHello)
				if tc.out != "" {
					p.want("close", tc.out)
					p.send(maskedClose)
					p.wantEOF()
				} else {
					io.Copy(io.Discard, p.conn)
				}
				p.conn.Close()
				waitDone(t, c)
				if n != 1 {
					t.Errorf("%d messages delivered, want 1", n)
				}
			})
		})
		t.Run(tc.name+" in OnOpen", func(t *testing.T) {
			onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
				c.OnOpen(tc.act)
				if tc.out != "" {
					p.want("close", tc.out)
				}
				p.conn.Close()
				waitDone(t, c)
			})
		})
		t.Run(tc.name+" in OnClose", func(t *testing.T) {
			onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
				called := 0
				c.OnClose(func(c *WebSocket, _ CloseEvent) { called++; tc.act(c) })
				p.conn.Close()
				waitDone(t, c)
				if called != 1 {
					t.Errorf("OnClose ran %d times", called)
				}
			})
		})
	}
}

// From elsewhere, while a callback blocks: the call returns at once, the peer
// sees the end, and no event comes before the callback has returned.
func TestAbort_WhileCallbackBlocks(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		inside, leave := make(chan struct{}), make(chan struct{})
		var returned, closedEarly bool
		c.OnMessage(func(*WebSocket, Message) {
			close(inside)
			<-leave
			returned = true
		})
		c.OnClose(func(*WebSocket, CloseEvent) { closedEarly = !returned })
		p.send(maskedHello)
		<-inside
		c.Abort()
		io.Copy(io.Discard, p.conn) // ends although the callback still blocks
		if s := c.ReadyState(); s != Closing {
			t.Errorf("state %v, want %v", s, Closing)
		}
		close(leave)
		waitDone(t, c)
		if closedEarly {
			t.Error("OnClose ran before the callback had returned")
		}
	})
}

func TestClose_WhileCallbackBlocks(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		inside, leave := make(chan struct{}), make(chan struct{})
		c.OnMessage(func(*WebSocket, Message) { close(inside); <-leave })
		p.send(maskedHello, maskedHello)
		<-inside
		c.CloseWith(1000, "")
		p.want("close", close1000)
		p.send(maskedClose)
		close(leave)
		p.wantEOF()
		p.conn.Close()
		if ev := waitDone(t, c); !ev.WasClean || ev.Initiator != InitiatorLocal {
			t.Errorf("%+v", ev)
		}
	})
}

// No message is lost between the opening and OnMessage, and pings before it are
// answered.
func TestReadingStartsWithOnMessage(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			c := accepted(testSettings(), ours, portable)
			p := peer{t, theirs}
			p.send(maskedPing, maskedHello, maskedPing)
			go c.run()
			p.want("pong before the first message", pong)
			if c.ReadyState() != Open {
				t.Error("not open")
			}
			r := new(recorder)
			r.attach(c)
			p.want("pong behind the first message", pong)
			p.send(maskedClose)
			p.want("close", close1000)
			theirs.Close()
			waitDone(t, c)
			if !slices.Contains(r.list, `text "Hello"`) {
				t.Errorf("message lost: %q", r.list)
			}
		})
	}
}

// A socket nobody reads can be closed and aborted.
func TestClose_WhileMessageWaits(t *testing.T) {
	for _, tr := range transports {
		for _, abort := range []bool{false, true} {
			t.Run(fmt.Sprint(tr.name, "/abort=", abort), func(t *testing.T) {
				ours, theirs, portable := tr.pair(t)
				c := accepted(testSettings(), ours, portable)
				go c.run()
				p := peer{t, theirs}
				p.send(maskedPing, maskedHello)
				p.want("pong", pong)
				if abort {
					c.Abort()
				} else {
					c.Close()
					p.want("close", "\x88\x00")
					p.send(maskedClose0)
					p.wantEOF()
				}
				theirs.Close()
				waitDone(t, c)
			})
		}
	}
}

// OnOpen, OnError and OnClose set after their event run once, at once.
func TestEvents_SetLate(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		opened := make(chan struct{})
		c.OnOpen(func(*WebSocket) { close(opened) }) // the reader is parked: it must wake up
		<-opened
		p.conn.Close()
		waitDone(t, c)
		late := make(chan string, 4)
		c.OnError(func(_ *WebSocket, err error) { late <- "error" })
		c.OnClose(func(_ *WebSocket, ev CloseEvent) { late <- fmt.Sprint("close ", ev.Code) })
		if a, b := <-late, <-late; a != "error" || b != "close 1006" {
			t.Errorf("late events: %q, %q", a, b)
		}
	})
}

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
		go func() { wrote <- c.Write(t.Context(), Message{Text, []byte("x")}) }()
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

// A raw socket takes parts of frames: the count stays exact, and only the
// newest of many pings is answered, between two frames.
func TestBackPressure_RawPath(t *testing.T) {
	ours, theirs := tcpPair(t)
	ours.(*net.TCPConn).SetWriteBuffer(64 << 10)
	theirs.(*net.TCPConn).SetReadBuffer(64 << 10)
	set := testSettings()
	set.maxBuffered = -1
	c := accepted(set, ours, false)
	c.OnMessage(func(*WebSocket, Message) {})
	go c.run()
	p := peer{t, theirs}
	var want []byte
	total := 0
	for i := range 200 {
		msg := bytes.Repeat([]byte{byte(i)}, i*320)
		total += len(msg)
		if err := c.SendBinary(msg); err != nil {
			t.Fatal(err)
		}
		want = append(want, serverFrame(0x82, msg)...)
	}
	if n := c.BufferedAmount(); n <= 0 || n >= total {
		t.Fatalf("BufferedAmount = %d of %d: the test needs a full socket", n, total)
	}
	for range 50 {
		p.send("\x89\x81\x00\x00\x00\x00a")
	}
	p.send("\x89\x81\x00\x00\x00\x00b")
	got, pongs := []byte(nil), ""
	head := make([]byte, 4)
	for len(got) < len(want) || !strings.HasSuffix(pongs, "b") {
		// Take frame by frame.
		if _, err := io.ReadFull(theirs, head[:2]); err != nil {
			t.Fatal(err)
		}
		n, size := int(head[1]), 2
		if n == 126 {
			io.ReadFull(theirs, head[2:4])
			n, size = int(head[2])<<8|int(head[3]), 4
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(theirs, body); err != nil {
			t.Fatal(err)
		}
		if head[0] == 0x8a {
			pongs += string(body)
			continue
		}
		got = append(append(got, head[:size]...), body...)
	}
	if !bytes.Equal(got, want) {
		t.Error("messages damaged or out of order")
	}
	if len(pongs) > 10 {
		t.Errorf("%d pongs for 51 pings behind a full queue", len(pongs))
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if n := c.BufferedAmount(); n != 0 {
		t.Errorf("BufferedAmount = %d at the end", n)
	}
	theirs.Close()
	waitDone(t, c)
}

// Replies to what came together leave together.
func TestCork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		p := peer{t, theirs}
		p.send(strings.Repeat(maskedHello, 64))
		go c.run()
		p.want("64 replies", strings.Repeat(hello, 64))
		if n := ours.Writes(); n != 1 {
			t.Errorf("%d writes for 64 replies", n)
		}
		theirs.Close()
		<-c.Done()
	})
}

// A slow callback does not hold earlier replies back for more than 2 ms.
func TestCork_Watchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		n := 0
		c.OnMessage(func(c *WebSocket, m Message) {
			c.Send(m)
			if n++; n == 2 {
				time.Sleep(time.Hour)
			}
		})
		p := peer{t, theirs}
		start := time.Now()
		p.send(maskedHello, maskedHello, maskedHello)
		go c.run()
		p.want("replies before the slow callback's end", hello, hello)
		if d := time.Since(start); d != corkDelay {
			t.Errorf("after %v, want %v", d, corkDelay)
		}
		p.want("the last reply", hello)
		if d := time.Since(start); d != time.Hour {
			t.Errorf("after %v", d)
		}
		theirs.Close()
		<-c.Done()
	})
}

func TestTimeout_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(0)
		c := accepted(testSettings(), ours, true)
		go c.run()
		start := time.Now()
		c.CloseWith(1000, "")
		peer{t, theirs}.want("close", close1000)
		ev := waitDone(t, c)
		if d := time.Since(start); d != defaultCloseTimeout {
			t.Errorf("ended after %v", d)
		}
		if ev.WasClean || ev.Code != 1006 || ev.Initiator != InitiatorLocal || !errors.Is(ev, errCloseTimeout) {
			t.Errorf("%+v", ev)
		}
		theirs.Close()
	})
}

// With WriteTimeout off, CloseTimeout holds for the queue too.
func TestTimeout_CloseBehindQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := testSettings()
		set.writeTimeout = 0
		ours, theirs := memnet.Pipe(1000)
		c := accepted(set, ours, true)
		go c.run()
		c.SendBinary(make([]byte, 5000))
		start := time.Now()
		c.Close()
		if ev := waitDone2(c); !errors.Is(ev, errCloseTimeout) || time.Since(start) != defaultCloseTimeout {
			t.Errorf("%+v after %v", ev, time.Since(start))
		}
		theirs.Close()
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

func TestCloseWith_Arguments(t *testing.T) {
	ours, theirs := memnet.Pipe(0)
	listener := accepted(testSettings(), ours, true)
	dialled := newOpenWebSocket(testSettings(), theirs, true, nil)
	for code := range 5010 {
		want := code == 0 || code == 1000 || code >= 3000 && code <= 4999
		server := want || slices.Contains([]int{1001, 1008, 1011, 1012, 1013}, code)
		for c, ok := range map[*WebSocket]bool{listener: server, dialled: want} {
			if ok {
				continue // it would close
			}
			if err := c.CloseWith(StatusCode(code), ""); err == nil {
				t.Errorf("code %d accepted, client=%v", code, c.core.client)
			}
		}
	}
	for _, reason := range []string{strings.Repeat("x", 124), "\xff"} {
		if err := listener.CloseWith(1000, reason); err == nil {
			t.Errorf("reason %q accepted", reason)
		}
	}
	if err := listener.CloseWith(0, "why"); err == nil {
		t.Error("reason without a code accepted")
	}
	if listener.ReadyState() != Open || ours.Writes() != 0 {
		t.Error("a refused close did something")
	}
	for _, c := range []*WebSocket{listener, dialled} {
		c.Abort()
		go c.run()
		<-c.Done()
	}
}

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

// Loaned memory is overwritten when the loan ends, in test builds.
func TestLoanIsPoisoned(t *testing.T) {
	if !raceMode {
		t.Skip("only builds with the race detector overwrite loaned memory; the test command runs this there")
	}
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		var kept []byte
		second := make(chan string, 1)
		c.OnMessage(func(_ *WebSocket, m Message) {
			if kept == nil {
				kept = m.Data
				return
			}
			second <- string(kept)
		})
		p.send(maskedHello)
		p.send("\x81\x81\x00\x00\x00\x00x") // may come to lie where the first lay
		if s := <-second; s == "Hello" {
			t.Error("a kept window still reads Hello")
		}
	})
}

// The promise of zero allocations: a message received and one sent back.
func TestNoAllocations_Echo(t *testing.T) {
	if raceMode {
		t.Skip("the race detector allocates; the test command runs this without it too")
	}
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

func TestNoAllocations_Ping(t *testing.T) {
	if raceMode {
		t.Skip("the race detector allocates; the test command runs this without it too")
	}
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			c := accepted(testSettings(), ours, portable)
			go c.run()
			frame, reply := []byte(maskedPing), make([]byte, len(pong))
			ping := func() {
				theirs.Write(frame)
				io.ReadFull(theirs, reply)
			}
			ping()
			if n := testing.AllocsPerRun(200, ping); n > 0 {
				t.Errorf("%v allocations for a ping", n)
			}
			theirs.Close()
			waitDone(t, c)
		})
	}
}

// The deadline that abort sets must win against every other.
func TestAbort_Races(t *testing.T) {
	for range 200 {
		ours, theirs := tcpPair(t)
		c := accepted(testSettings(), ours, false)
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		go c.run()
		var wg sync.WaitGroup
		wg.Go(func() { theirs.Write([]byte(strings.Repeat(maskedHello, 100))) })
		wg.Go(func() { c.OnOpen(func(*WebSocket) {}) })
		wg.Go(func() { c.SendBinary(make([]byte, 500_000)) })
		wg.Go(func() { c.Abort() })
		wg.Go(func() { c.Close() })
		wg.Wait()
		waitDone(t, c)
		theirs.Close()
	}
}

func TestErrors_Texts(t *testing.T) {
	ev := CloseEvent{Code: 1006, Initiator: InitiatorLimit, Err: &LimitError{Option: "MaxMessageSize", Limit: 10, Size: 11, Code: 1009}}
	err := error(&closedError{"send", ev})
	if !errors.Is(err, net.ErrClosed) {
		t.Error("does not wrap net.ErrClosed")
	}
	if le, ok := errors.AsType[*LimitError](err); !ok || le.Option != "MaxMessageSize" {
		t.Error("does not wrap the cause")
	}
	for _, want := range []string{"MaxMessageSize", "10", "11"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("wraps too much")
	}
}
