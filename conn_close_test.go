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
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

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
			if err := c.Write(t.Context(), Message{Type: Binary, Data: big[:300_000]}); err != nil {
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

// What the peer sends is life: it may have queued much before it could know of our
// Close. But it cannot go on for ever.
func TestTimeout_CloseWhilePeerSends(t *testing.T) {
	const piece = 4 * time.Second
	for name, end := range map[string]func(c *WebSocket) error{
		"CloseWait": func(c *WebSocket) error {
			ev, err := c.CloseWait(context.Background(), 1000, "")
			if err == nil && (ev.Err != nil || !ev.WasClean) {
				err = ev
			}
			return err
		},
		"NetConn": func(c *WebSocket) error { return c.NetConn(Text).Close() },
	} {
		for pieces, ok := range map[int]bool{10: true, 30: false} {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := memnet.Pipe(0)
				c := accepted(testSettings(), ours, true)
				go c.run()
				var wg sync.WaitGroup
				wg.Go(func() {
					for range pieces {
						time.Sleep(piece)
						if _, err := io.WriteString(theirs, maskedHello); err != nil {
							return
						}
					}
					io.WriteString(theirs, maskedClose)
				})
				go io.Copy(io.Discard, theirs)
				start := time.Now()
				err := end(c)
				d := time.Since(start)
				most := closingMost*defaultCloseTimeout + 2*piece
				switch {
				case ok && (err != nil || d != time.Duration(pieces)*piece):
					t.Errorf("%s, %d pieces: %v after %v", name, pieces, err, d)
				case !ok && (!errors.Is(err, errCloseTimeout) || d < closingMost*defaultCloseTimeout || d > most):
					t.Errorf("%s, %d pieces: %v after %v", name, pieces, err, d)
				}
				theirs.Close()
				<-c.Done()
				wg.Wait()
			})
		}
	}
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

// The deadline that abort sets must win against every other.
func TestAbort_Races(t *testing.T) {
	for range 200 {
		ours, theirs := enginePair(t)
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

// CloseWait is CloseWith and Wait.
func TestCloseWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, d := Pipe(ListenConfig{}, Dialer{})
		got := 0
		a.OnMessage(func(_ *WebSocket, m Message) { got = len(m.Data) })
		d.SendBinary(make([]byte, 700<<10))
		if _, err := d.CloseWait(t.Context(), 1001, ""); err == nil || d.ReadyState() != Open {
			t.Errorf("code 1001 of the dialling side: %v, %v", err, d.ReadyState())
		}
		ev, err := d.CloseWait(t.Context(), 4001, "done")
		if err != nil || !ev.WasClean || ev.Code != 4001 || ev.Reason != "done" || ev.Initiator != InitiatorLocal || d.ReadyState() != Closed {
			t.Errorf("%+v, %v, %v", ev, err, d.ReadyState())
		}
		if ev, err := d.CloseWait(t.Context(), 0, ""); err != nil || ev.Code != 4001 {
			t.Errorf("once more: %+v, %v", ev, err)
		}
		if <-a.Done(); got != 700<<10 {
			t.Errorf("the peer has %d bytes", got)
		}
	})
	synctest.Test(t, func(t *testing.T) { // ctx ends the wait, not the closing
		a, d := Pipe(ListenConfig{}, Dialer{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		a.OnMessage(func(*WebSocket, Message) { time.Sleep(time.Second) })
		d.SendText("hold on")
		synctest.Wait()
		if _, err := d.CloseWait(ctx, 0, ""); err != context.Canceled {
			t.Error(err)
		}
		<-a.Done()
		<-d.Done()
	})
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
					"Send": c.SendText("x"), "Write": c.Write(t.Context(), Message{Type: Binary, Data: nil}), "Ping": ping, "NextWriter": next,
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

// What the peer has sent and we do not read must not turn our Close frame into
// a reset: real sockets do that when they are closed with bytes unread.
func TestClose_UnreadBytesDoNotReset(t *testing.T) {
	for _, portable := range []bool{false, true} {
		for range 20 {
			ours, theirs := realPair(t, portable)
			theirs.SetDeadline(time.Now().Add(10 * time.Second))
			c := accepted(testSettings(), ours, portable)
			c.OnMessage(func(c *WebSocket, m Message) { c.CloseWith(4000, "enough") })
			p := peer{t, theirs}
			p.send(strings.Repeat(maskedHello, 10))
			go c.run()
			for range 20 {
				p.send(strings.Repeat(maskedHello, 1000))
			}
			p.want("Close frame", "\x88\x08\x0f\xa0enough")
			p.send(maskedClose)
			p.wantEOF()
			theirs.Close()
			if ev := waitDone(t, c); !ev.WasClean || ev.Initiator != InitiatorLocal {
				t.Fatalf("%+v", ev)
			}
		}
	}
}
