package peerws

// What users of other WebSocket libraries hit, and the test that keeps it from
// happening here. Compression (5 to 7) is not built.
//
//	 1  concurrent writers corrupt the stream          TestSenders_KeepTheirOrder, TestChaos
//	 2  control frame splits a data frame              TestSenders_KeepTheirOrder, TestLargeMessage_ControlFramesBetween
//	 3  huge declared length takes the memory          TestFailConnection_MaxMessageSize, TestHugeLengthsWithoutLimit, TestSpaceIsBoundedByArrival
//	 4  endless fragments, floods of control frames    TestFailConnection_MaxFragments, TestPain04_PingFlood
//	 8  dead peers are never noticed                   TestKeepalive, TestKeepalive_Listener
//	 9  keepalive kills a peer because we were busy    TestKeepalive
//	10  reader waits to write a pong, both sides stuck TestPain10_BothSidesWrite
//	11  control frames dropped under back pressure     TestBackPressure, TestPain11_CloseBehindAFullQueue
//	12  Close blocks                                   TestPain12_CloseReturnsAtOnce
//	13  Close inside a callback deadlocks              TestCloseAndAbort_InsideCallbacks, TestClose_WhileCallbackBlocks
//	14  close code lost, or another one per method     TestPain14_OneStory, TestClose_UnreadBytesDoNotReset
//	15  1005 or 1006 on the wire, two Close frames     TestCloseWith_Arguments, TestSection5_5_1_EveryCodeIsEchoed, TestSection5_5_1_NothingBehindClose
//	16  a context's end destroys the connection        TestRead_ContextEnds, TestPain16_ContextEndsOnlyTheWait
//	17  read limit surprises                           TestPain17_LimitIsNamed, TestErrors_Texts, TestNegativeLimitsAreNone
//	18  slow consumer grows memory                     TestBackPressure, TestBackPressure_RawPath, TestPain18_SlowConsumer
//	19  writer wedged on a peer that reads no more     TestTimeout_Write, TestPain19_WedgedPeer
//	20  Shutdown forgets hijacked connections          TestShutdown, TestHTTP_Close, TestHandler_Shutdown, TestPain20_ShutdownInParallel
//	21  allocations for each message                   TestNoAllocations_Echo, TestNoAllocations_Ping, TestNoAllocations_Read
//	22  idle connections cost kilobytes                TestPain22_IdleHoldsNothing, TestPain22_HeadersGoWithTheFirstMessage
//	23  handshake abuse, stale deadlines, early frames TestHandshakeTimeout, TestMaxHandshakes, TestDial_ContextEndsLater, TestEarlyFrames_EverySplit, TestDial_EarlyFrames
//	24  subprotocol mismatch                           TestSection4_2_2_Subprotocols, TestSection4_1_Answer
//	25  cross-site hijack, DNS rebinding               TestSection10_2_Origin, TestSection4_2_1_BadRequests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A peer that sends pings and reads nothing costs us one pong, not a queue.
func TestPain04_PingFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		c := accepted(testSettings(), ours, true)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		p := peer{t, theirs}
		c.SendBinary(make([]byte, 3000)) // more than the peer takes
		synctest.Wait()
		for i := range 20_000 {
			p.send("\x89\x84\x00\x00\x00\x00", fmt.Sprintf("%04x", i))
		}
		synctest.Wait()
		size := 0
		c.wmu.Lock()
		for _, f := range c.wr.out.chunks {
			size += cap(f.b)
		}
		if c.wr.out.lane != nil {
			size += cap(c.wr.out.lane.b)
		}
		size += cap(c.wr.out.pong)
		c.wmu.Unlock()
		if size > 8<<10 || c.ReadyState() != Open {
			t.Errorf("%d bytes held, %v", size, c.ReadyState())
		}
		// The newest is among what the peer gets.
		var all []byte
		for theirs.Buffered() > 0 {
			b := make([]byte, 1000)
			n, _ := theirs.Read(b)
			all = append(all, b[:n]...)
			synctest.Wait()
		}
		if !bytes.HasSuffix(all, []byte("\x8a\x044e1f")) || len(all) > 5000 {
			t.Errorf("%d bytes, the last % x", len(all), all[max(0, len(all)-6):])
		}
		theirs.Close()
		<-c.Done()
	})
}

// Both sides write more than the transport holds, with pings, before either has
// read anything: readers never wait for writers, so all of it arrives.
func TestPain10_BothSidesWrite(t *testing.T) {
	for _, kind := range chaosKinds {
		t.Run(kind.name, func(t *testing.T) {
			set := testSettings()
			set.maxBuffered = -1
			a, d := kind.pair(t, set)
			const messages, size = 40, 200_000
			var wg sync.WaitGroup
			for _, c := range []*WebSocket{a, d} {
				wg.Add(1)
				n := 0
				c.OnMessage(func(_ *WebSocket, m Message) {
					c.ping([]byte("p"))
					if n++; n == messages {
						wg.Done()
					}
				})
				for range messages {
					if err := c.SendBinary(make([]byte, size)); err != nil {
						t.Error(err)
					}
				}
			}
			go a.run()
			go d.run()
			wg.Wait()
			for _, c := range []*WebSocket{a, d} {
				if err := c.Flush(t.Context()); err != nil {
					t.Error(err)
				}
				wantBuffered(t, c, 0)
			}
			a.CloseWith(1000, "")
			for _, c := range []*WebSocket{a, d} {
				if ev := waitDone(t, c); !ev.WasClean {
					t.Errorf("%+v", ev)
				}
			}
		})
	}
}

// MaxBufferedAmount is for messages: a full queue still takes the Close frame
// and the pong.
func TestPain11_CloseBehindAFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := memnet.Pipe(1000)
		set := testSettings()
		set.maxBuffered = 1
		c := accepted(set, ours, true)
		go c.run()
		c.SendBinary(make([]byte, 5000))
		if err := c.SendText("xx"); err != ErrBufferFull {
			t.Fatal(err)
		}
		c.CloseWith(1000, "")
		p := peer{t, theirs}
		p.want("message and Close", string(serverFrame(0x82, make([]byte, 5000))), close1000)
		p.send(maskedClose)
		p.wantEOF()
		theirs.Close()
		if ev := waitDone2(c); !ev.WasClean {
			t.Errorf("%+v", ev)
		}
	})
}

// Close, CloseWith and Abort return at once, however stuck the peer is and
// whatever callback is running.
func TestPain12_CloseReturnsAtOnce(t *testing.T) {
	for name, act := range map[string]func(*WebSocket){
		"Close":     func(c *WebSocket) { c.Close() },
		"CloseWith": func(c *WebSocket) { c.CloseWith(4000, "go") },
		"Abort":     func(c *WebSocket) { c.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := memnet.Pipe(1000)
				c := accepted(testSettings(), ours, true)
				leave := make(chan struct{})
				c.OnMessage(func(c *WebSocket, m Message) {
					c.SendBinary(make([]byte, 5000)) // more than the peer takes
					<-leave
				})
				go c.run()
				peer{t, theirs}.send(maskedHello)
				synctest.Wait()
				start := time.Now()
				act(c)
				act(c)
				if d := time.Since(start); d != 0 || c.ReadyState() != Closing {
					t.Errorf("after %v it is %v", d, c.ReadyState())
				}
				close(leave)
				waitDone2(c)
				// On the portable path progress is seen when a write ends only.
				if d := time.Since(start); name == "Abort" && d != 0 || d > 2*defaultWriteTimeout {
					t.Errorf("the end came after %v", d)
				}
				theirs.Close()
			})
		})
	}
}

// Every method tells the same story of the end.
func TestPain14_OneStory(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(c *WebSocket, s side)
		want CloseEvent // but for Err
		err  bool
	}{
		{"peer", func(c *WebSocket, s side) { s.send("\x88\x05\x0f\xa1bye"); s.next(); s.wantEnd() },
			CloseEvent{Code: 4001, Reason: "bye", WasClean: true, Initiator: InitiatorPeer}, false},
		{"program", func(c *WebSocket, s side) {
			c.CloseWith(4000, "mine")
			s.next()
			s.send("\x88\x03\x0f\xa0k")
			s.wantEnd()
		}, CloseEvent{Code: 4000, Reason: "k", WasClean: true, Initiator: InitiatorLocal}, false},
		{"limit", func(c *WebSocket, s side) { s.send("\x83\x00"); s.next(); s.wantEnd() },
			CloseEvent{Code: 1006, Initiator: InitiatorLimit}, true},
		{"network", func(c *WebSocket, s side) { s.conn.Close() }, CloseEvent{Code: 1006, Initiator: InitiatorNetwork}, true},
		{"abort", func(c *WebSocket, s side) { c.Abort() }, CloseEvent{Code: 1006, Initiator: InitiatorLocal}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onBoth(t, testSettings(), func(t *testing.T, c *WebSocket, r *recorder, s side) {
				seen := make(chan CloseEvent, 2)
				c.OnClose(func(_ *WebSocket, ev CloseEvent) { seen <- ev })
				tc.end(c, s)
				ev := waitDone(t, c)
				if tc.err != (ev.Err != nil) {
					t.Errorf("Err: %v", ev.Err)
				}
				bare := ev
				bare.Err = nil
				if bare != tc.want {
					t.Errorf("%+v, want %+v", ev, tc.want)
				}
				if got := <-seen; got != ev {
					t.Errorf("OnClose: %+v", got)
				}
				c.OnClose(func(_ *WebSocket, ev CloseEvent) { seen <- ev })
				if got := <-seen; got != ev {
					t.Errorf("OnClose that is set late: %+v", got)
				}
				_, ping := c.Ping(t.Context())
				_, next := c.NextWriter(t.Context(), Text)
				for what, err := range map[string]error{
					"Send": c.SendText("x"), "Write": c.Write(t.Context(), Message{Binary, nil}), "Ping": ping, "NextWriter": next,
				} {
					if got, ok := errors.AsType[CloseEvent](err); !ok || got != ev || !errors.Is(err, net.ErrClosed) || tc.err && !errors.Is(err, ev.Err) {
						t.Errorf("%s: %v", what, err)
					}
				}
				if c.Close() != nil || c.CloseWith(1000, "again") != nil || c.Abort() != nil || c.ReadyState() != Closed {
					t.Error("closing again is no error")
				}
			})
		})
	}
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
			"Write": func(ctx context.Context) error { return c.Write(ctx, Message{Text, big}) },
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

// Who went over which limit is said on both sides.
func TestPain17_LimitIsNamed(t *testing.T) {
	for _, limit := range []int64{10, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{MaxMessageSize: limit}, Dialer{})
			a.OnMessage(func(*WebSocket, Message) {})
			for _, n := range []int64{limit, limit + 1} {
				if err := d.Write(t.Context(), Message{Binary, make([]byte, n)}); err != nil {
					t.Fatal(err)
				}
			}
			ev := waitDone2(a)
			e, ok := errors.AsType[*LimitError](ev)
			if !ok || e.Option != "MaxMessageSize" || e.Limit != limit || e.Size <= limit || e.Size > limit+1 || e.Code != 1009 {
				t.Errorf("%+v", ev)
			}
			if ev := waitDone2(d); ev.Code != 1009 || ev.Initiator != InitiatorPeer {
				t.Errorf("%+v", ev)
			}
		})
	}
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

// A writer that waits for a peer that reads no more: WriteTimeout ends it
// whatever was called, and everybody who waits learns why.
func TestPain19_WedgedPeer(t *testing.T) {
	for _, closing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(1000)
			c := accepted(testSettings(), ours, true)
			go c.run()
			start := time.Now()
			c.SendBinary(make([]byte, 1<<20))
			var wg sync.WaitGroup
			if closing {
				c.CloseWith(1000, "")
			} else {
				wg.Go(func() {
					if err := c.Write(t.Context(), Message{Binary, make([]byte, 100_000)}); !errors.Is(err, net.ErrClosed) || !errors.Is(err, errWriteTimeout) {
						t.Errorf("Write: %v", err)
					}
				})
			}
			wg.Go(func() {
				if err := c.Flush(t.Context()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Flush: %v", err)
				}
			})
			for range 10 { // it lives, and sends, but reads nothing
				time.Sleep(time.Second)
				peer{t, theirs}.send(maskedPing)
			}
			ev := waitDone2(c)
			wg.Wait()
			if d := time.Since(start); d > 2*defaultWriteTimeout || !errors.Is(ev, errWriteTimeout) && !closing { // twice: as above
				t.Errorf("after %v: %+v", d, ev)
			}
			if closing && ev.Initiator != InitiatorLocal || !closing && ev.Initiator != InitiatorTimeout {
				t.Errorf("%+v", ev)
			}
			theirs.Close()
		})
	}
}

// Peers that do not answer are waited for together, not one after the other.
func TestPain20_ShutdownInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := memnet.Listen(0)
		l, err := ListenConfig{OnConnection: echoing}.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		var conns []net.Conn
		for range 30 {
			conn, err := ln.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, upgrade)
			conns = append(conns, conn)
		}
		synctest.Wait()
		if n := l.Stats().Open; n != 30 {
			t.Fatalf("%d open", n)
		}
		start := time.Now()
		if err := l.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != defaultCloseTimeout {
			t.Errorf("%d peers took %v", len(conns), d)
		}
		for _, conn := range conns {
			b, _ := io.ReadAll(conn)
			if !bytes.HasSuffix(b, []byte("\r\n\r\n\x88\x02\x03\xe9")) {
				t.Errorf("got %q", b)
			}
			conn.Close()
		}
	})
}

// An idle connection holds no buffer, whatever it did before, and is one
// goroutine. A read of the portable path has to hold one while it waits.
func TestPain22_IdleHoldsNothing(t *testing.T) {
	if raceMode {
		t.Skip("looks at the parked reader's fields, which only it may touch; the test command runs this without the race detector too")
	}
	busy := func(t *testing.T, a, d *WebSocket, style string) {
		const n = 10
		got := make(chan struct{}, 2*n)
		for _, c := range []*WebSocket{a, d} {
			switch style {
			case "OnMessage":
				c.OnMessage(func(_ *WebSocket, m Message) { got <- struct{}{} })
			case "Read":
				go func() {
					for range n {
						if _, err := c.Read(context.Background()); err != nil {
							t.Error(err)
						}
						got <- struct{}{}
					}
				}()
			case "NextReader":
				go func() {
					for range n {
						_, r, err := c.NextReader(context.Background())
						if err != nil {
							t.Error(err)
							return
						}
						io.Copy(io.Discard, r)
						got <- struct{}{}
					}
				}()
			}
		}
		for i := range n {
			for _, c := range []*WebSocket{a, d} {
				if err := c.Write(context.Background(), Message{Binary, make([]byte, []int{0, 100, 5000, 70_000, 300_000}[i%5])}); err != nil {
					t.Error(err)
				}
				if _, err := c.Ping(context.Background()); err != nil {
					t.Error(err)
				}
			}
		}
		for range 2 * n {
			<-got
		}
	}
	for _, kind := range chaosKinds {
		for _, style := range []string{"OnMessage", "Read", "NextReader"} {
			t.Run(kind.name+"/"+style, func(t *testing.T) {
				set := testSettings()
				set.maxBuffered = -1
				a, d := kind.pair(t, set)
				go a.run()
				go d.run()
				busy(t, a, d, style)
				// Until both are at rest, and stay so: nothing can wake them then.
				state := ""
				for end, calm := time.Now().Add(5*time.Second), 0; calm < 5 && time.Now().Before(end); time.Sleep(time.Millisecond) {
					calm++
					if state = holding(a) + holding(d); state != "" {
						calm = 0
					}
				}
				if state != "" {
					t.Error(state)
				}
				a.Abort()
				waitDone(t, a)
				waitDone(t, d)
			})
		}
	}
}

// holding says what an idle socket holds that it should not.
func holding(c *WebSocket) string {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	var s []string
	if c.wr.out != nil || c.wr.held() != nil || c.wr.cork != nil || c.wr.running {
		s = append(s, "the write side is busy")
	}
	if c.phase.Load()&1 == 0 {
		return "the reader is not reading; "
	}
	if n := cap(c.in.bytes()); c.raw != nil && n > 0 || n > portableRead {
		s = append(s, fmt.Sprintf("%d bytes to read to", n))
	}
	if c.core.part != nil {
		s = append(s, "a message")
	}
	if len(s) == 0 {
		return ""
	}
	return strings.Join(s, ", ") + "; "
}

// One goroutine for each idle accepted connection: the reader.
func TestPain22_OneGoroutine(t *testing.T) {
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
		if left = readers() - before; left == n {
			break
		}
	}
	if left != n {
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

// The opening request's headers go with the first message, in every style of
// reading, so that an idle connection holds none.
func TestPain22_HeadersGoWithTheFirstMessage(t *testing.T) {
	for style, read := range map[string]func(c *WebSocket) error{
		"OnMessage": func(c *WebSocket) error {
			got := make(chan struct{})
			c.OnMessage(func(*WebSocket, Message) { close(got) })
			<-got
			return nil
		},
		"Read": func(c *WebSocket) error { _, err := c.Read(context.Background()); return err },
		"NextReader": func(c *WebSocket) error {
			_, r, err := c.NextReader(context.Background())
			if err != nil {
				return err
			}
			_, err = io.ReadAll(r)
			return err
		},
		"NetConn": func(c *WebSocket) error {
			_, err := c.NetConn(Text).Read(make([]byte, 5))
			return err
		},
	} {
		t.Run(style, func(t *testing.T) {
			sockets := make(chan *WebSocket, 1)
			l := openPort(t, ListenConfig{OnConnection: func(c *WebSocket) { sockets <- c }})
			k := knock(t, l, add("Cookie: "+strings.Repeat("c", 3000)+"\r\n"))
			k.wantOpen()
			c := <-sockets
			k.send(maskedHello)
			if err := read(c); err != nil {
				t.Fatal(err)
			}
			if r := c.Request(); len(r.Header) != 0 || r.Host != "127.0.0.1:9000" {
				t.Errorf("still there: %v", slices.Collect(func(yield func(string) bool) {
					for name := range r.Header {
						if !yield(name) {
							return
						}
					}
				}))
			}
		})
	}
}
