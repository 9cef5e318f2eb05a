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
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// Who went over which limit is said on both sides.
func TestPain17_LimitIsNamed(t *testing.T) {
	for _, limit := range []int64{10, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{MaxMessageSize: limit}, Dialer{})
			a.OnMessage(func(*WebSocket, Message) {})
			for _, n := range []int64{limit, limit + 1} {
				if err := d.Write(t.Context(), Message{Type: Binary, Data: make([]byte, n)}); err != nil {
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
				if err := c.Write(context.Background(), Message{Type: Binary, Data: make([]byte, []int{0, 100, 5000, 70_000, 300_000}[i%5])}); err != nil {
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
	if c.writer.out != nil || c.writer.heldLocked() != nil || c.writer.cork != nil || c.writer.running {
		s = append(s, "the write side is busy")
	}
	if c.activity.Load()&1 == 0 {
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
