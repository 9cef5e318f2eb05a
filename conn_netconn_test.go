package peerws

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A deadline that passes and is moved at once ends the Read that waits, and
// does no harm: that Read must not take the connection's side for lent to it.
func TestNetConnDeadlineMovedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, d := Pipe(ListenConfig{}, Dialer{})
		na, nd := a.NetConn(Binary), d.NetConn(Binary)
		type result struct {
			n   int
			err error
		}
		results := make(chan result, 1)
		p := make([]byte, 16)
		read := func() {
			n, err := na.Read(p)
			results <- result{n, err}
		}
		go read()
		synctest.Wait()
		na.SetReadDeadline(time.Unix(1, 0))
		na.SetReadDeadline(time.Time{})
		synctest.Wait()
		select {
		case r := <-results:
			if r.n != 0 || !errors.Is(r.err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %d, %v, want the deadline", r.n, r.err)
			}
		default:
			t.Error("the Read goes on after its deadline has passed")
		}
		if _, err := nd.Write([]byte("next")); err != nil {
			t.Fatal(err)
		}
		if !t.Failed() {
			read()
		}
		if r := <-results; r.err != nil || string(p[:r.n]) != "next" {
			t.Errorf("Read: %q, %v", p[:r.n], r.err)
		}

		// Moved before it has passed, it ends the Read at its new time.
		go read()
		synctest.Wait()
		start := time.Now()
		na.SetReadDeadline(start.Add(time.Second))
		na.SetReadDeadline(start.Add(time.Minute))
		if r := <-results; !errors.Is(r.err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("Read: %v after %v", r.err, time.Since(start))
		}
		a.Abort()
		d.Abort()
		<-a.Done()
		<-d.Done()
	})
}

// One Write is one message, whatever its size and wherever pieces would cut text.
func TestNetConn_WriteIsOneMessage(t *testing.T) {
	for _, tt := range []struct {
		typ  MessageType
		data string
	}{
		{Text, "a"},
		{Text, strings.Repeat("€", 30_000)},
		{Text, "a" + strings.Repeat("ä", 100_000)},
		{Text, strings.Repeat("😀", 300_000)},
		{Binary, strings.Repeat("\xff", 3<<20+1)},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{MaxMessageSize: -1}, Dialer{})
			go func() {
				nd := d.NetConn(tt.typ)
				if n, err := nd.Write([]byte(tt.data)); n != len(tt.data) || err != nil {
					t.Errorf("Write: %d of %d, %v", n, len(tt.data), err)
				}
				if err := nd.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			m, err := a.Read(t.Context())
			if err != nil || m.Type != tt.typ || string(m.Data) != tt.data {
				t.Errorf("%d bytes of %d, %v", len(m.Data), len(tt.data), err)
			}
			<-a.Done()
			<-d.Done()
		})
	}
	synctest.Test(t, func(t *testing.T) { // text is checked as a whole
		a, d := Pipe(ListenConfig{}, Dialer{})
		if n, err := d.NetConn(Text).Write([]byte(strings.Repeat("a", 200_000) + "\xe2\x82")); n != 0 || err == nil {
			t.Errorf("Write of half a character: %d, %v", n, err)
		}
		a.Abort()
		d.Abort()
		<-a.Done()
		<-d.Done()
	})
}

// Close waits until the peer has answered, also behind messages that nobody
// reads, and while another goroutine reads.
func TestNetConn_CloseWaits(t *testing.T) {
	for _, reads := range []string{"nobody", "a Read that waits", "a message half read"} {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{}, Dialer{})
			na, nd := a.NetConn(Binary), d.NetConn(Binary)
			read := make(chan struct{})
			switch reads {
			case "a Read that waits":
				go func() {
					defer close(read)
					if n, err := nd.Read(make([]byte, 1)); err == nil {
						t.Errorf("Read: %d, %v", n, err)
					}
				}()
				synctest.Wait()
			default:
				na.Write(make([]byte, 300_000))
				na.Write([]byte("unread"))
				if reads != "nobody" {
					nd.Read(make([]byte, 10))
				}
				close(read)
			}
			nd.Write(make([]byte, 500_000))
			got := make(chan int64)
			go func() {
				n, _ := io.Copy(io.Discard, na)
				got <- n
			}()
			start := time.Now()
			if err := nd.Close(); err != nil {
				t.Errorf("%s: Close: %v", reads, err)
			}
			if waited := time.Since(start); waited != 0 {
				t.Errorf("%s: Close took %v", reads, waited)
			}
			if n := <-got; n != 500_000 {
				t.Errorf("%s: the peer has %d bytes", reads, n)
			}
			if err := na.Close(); err != nil {
				t.Errorf("%s: the peer's Close: %v", reads, err)
			}
			if err := nd.Close(); err != nil {
				t.Errorf("%s: Close once more: %v", reads, err)
			}
			<-read
			<-a.Done()
			<-d.Done()
		})
	}
}

// A peer that does not answer costs Close no more than CloseTimeout, and it says
// that the handshake is not complete; so it does after a complaint or a failure.
func TestNetConn_CloseFails(t *testing.T) {
	for name, before := range map[string]func(a, d *WebSocket){
		"no answer": func(a, d *WebSocket) {
			a.OnMessage(func(*WebSocket, Message) { time.Sleep(time.Hour) })
			d.SendText("hold on")
		},
		"complaint": func(a, d *WebSocket) { a.CloseWith(StatusPolicyViolation, "no") },
		"too big":   func(a, d *WebSocket) { d.SendBinary(make([]byte, 2<<20)) },
		"aborted":   func(a, d *WebSocket) { d.Abort() },
		"failed":    func(a, d *WebSocket) { a.Abort() },
	} {
		synctest.Test(t, func(t *testing.T) {
			a, d := Pipe(ListenConfig{}, Dialer{CloseTimeout: 3 * time.Second})
			before(a, d)
			synctest.Wait()
			start := time.Now()
			err := d.NetConn(Binary).Close()
			if _, ok := errors.AsType[CloseEvent](err); !ok || !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: Close: %v", name, err)
			}
			if waited := time.Since(start); name == "no answer" && waited != 3*time.Second || waited > 3*time.Second {
				t.Errorf("%s: Close took %v", name, waited)
			}
			a.Abort()
			d.Abort()
			<-a.Done()
			<-d.Done()
		})
	}
}

// A deadline ends the Write that waits for room; nothing of it was taken, and the
// next one goes on.
func TestNetConn_WriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, d := Pipe(ListenConfig{}, Dialer{MaxBufferedAmount: 1000})
		nd := d.NetConn(Binary)
		var err error
		n, sent := 0, 0
		for err == nil {
			nd.SetWriteDeadline(time.Now().Add(time.Second))
			if n, err = nd.Write(make([]byte, 200_000)); err == nil {
				sent += n
			}
		}
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: %d, %v", n, err)
		}
		nd.SetWriteDeadline(time.Time{})
		got := make(chan int64)
		go func() {
			n, _ := io.Copy(io.Discard, a.NetConn(Binary))
			got <- n
		}()
		if _, err := nd.Write([]byte("on")); err != nil {
			t.Error(err)
		}
		if err := nd.Close(); err != nil {
			t.Error(err)
		}
		if n := <-got; n != int64(sent+2) {
			t.Errorf("%d bytes, want %d", n, sent+2)
		}
		<-a.Done()
		<-d.Done()
	})
}

// NetConn's Close gives up a peer that takes nothing after CloseTimeout, and waits for
// one that takes something from time to time.
func TestTimeout_NetConnCloseBehindQueue(t *testing.T) {
	for name, takes := range map[string]bool{"takes": true, "takes nothing": false} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := memnet.Pipe(8 << 10)
			c := accepted(testSettings(), newForeign(ours), true)
			go c.run()
			n := c.NetConn(Binary)
			n.Write(make([]byte, 100_000))
			var wg sync.WaitGroup
			if takes {
				wg.Go(func() {
					b := make([]byte, 8<<10)
					for {
						time.Sleep(800 * time.Millisecond)
						n, err := theirs.Read(b)
						if bytes.HasSuffix(b[:n], []byte(close1000)) {
							io.WriteString(theirs, maskedClose)
						}
						if err != nil {
							return
						}
					}
				})
			}
			synctest.Wait() // the kernel, as it were, has its share
			start := time.Now()
			err := n.Close()
			d := time.Since(start)
			if takes && (err != nil || d < 8*time.Second) || !takes && (err == nil || d != defaultCloseTimeout) {
				t.Errorf("%s: %v after %v", name, err, d)
			}
			c.Abort()
			theirs.Close()
			<-c.Done()
			wg.Wait()
		})
	}
}
