package peerws

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

func TestSendPrepared(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		data := []byte("Hello")
		m, err := NewPreparedMessage(Message{Type: Text, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		copy(data, "xxxxx") // it was copied
		for range 3 {
			if err := c.SendPrepared(m); err != nil {
				t.Fatal(err)
			}
			p.want("message", hello)
		}
		for _, n := range []int{0, 4096, 5000, 128 << 10, 300_000} {
			payload := bytes.Repeat([]byte("p"), n)
			m, _ := NewPreparedMessage(Message{Type: Binary, Data: payload})
			go c.SendPrepared(m)
			p.want("message", string(serverMessage(payload)))
		}
		c.Abort()
		if err := c.SendPrepared(m); err == nil {
			t.Error("sent to a socket that is closing")
		}
	})
	if _, err := NewPreparedMessage(Message{Type: Text, Data: []byte("\xff")}); err == nil {
		t.Error("text that is not UTF-8 prepared")
	}
	if _, err := NewPreparedMessage(Message{}); err == nil {
		t.Error("message without a type prepared")
	}
}

// A dialled socket masks, with a key of its own each time.
func TestSendPrepared_Dialled(t *testing.T) {
	ours, theirs := memnet.Pipe(0)
	c := newOpenWebSocket(testSettings(), ours, true, nil)
	go c.run()
	m, _ := NewPreparedMessage(Message{Type: Text, Data: []byte("Hello")})
	var keys [2][4]byte
	for i := range keys {
		c.SendPrepared(m)
		b := make([]byte, 11)
		if _, err := io.ReadFull(theirs, b); err != nil || b[0] != 0x81 || b[1] != 0x85 {
			t.Fatalf("% x, %v", b, err)
		}
		keys[i] = [4]byte(b[2:6])
		for k := range 5 {
			b[6+k] ^= keys[i][k%4]
		}
		if string(b[6:]) != "Hello" {
			t.Errorf("%q", b[6:])
		}
	}
	if keys[0] == keys[1] {
		t.Error("the same key twice")
	}
	theirs.Close()
	waitDone(t, c)
}

// A receiver that does not read costs the others nothing, and gets whole
// messages or none.
func TestBroadcast(t *testing.T) {
	var sockets []*WebSocket
	var peers []net.Conn
	for range 5 {
		ours, theirs := enginePair(t)
		c := accepted(testSettings(), ours, false)
		c.OnMessage(func(*WebSocket, Message) {})
		go c.run()
		sockets, peers = append(sockets, c), append(peers, theirs)
	}
	sockets[4].Abort()
	payload := bytes.Repeat([]byte("b"), 60_000)
	const rounds = 300 // 18 MB: more than a socket's buffers and MaxBufferedAmount
	took := 0
	for _, theirs := range peers[1:4] {
		go io.Copy(io.Discard, theirs)
	}
	for range rounds {
		n := Broadcast(slices.Values(sockets), Message{Type: Binary, Data: payload})
		took += n
		for _, c := range sockets[1:4] {
			if err := c.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stuck := took - 3*rounds // what the one that does not read took
	if stuck <= 0 || stuck >= rounds {
		t.Errorf("the socket that is not read took %d of %d", stuck, rounds)
	}
	peers[0].SetDeadline(time.Now().Add(10 * time.Second))
	frame := serverFrame(0x82, payload)
	got := make([]byte, len(frame))
	for range stuck {
		if _, err := io.ReadFull(peers[0], got); err != nil || !bytes.Equal(got, frame) {
			t.Fatalf("message damaged: % .10x, %v", got, err)
		}
	}
	for i, c := range sockets {
		c.Abort()
		peers[i].Close()
		waitDone(t, c)
	}
	if n := Broadcast(slices.Values(sockets), Message{Type: Binary, Data: payload}); n != 0 {
		t.Errorf("%d closed sockets took it", n)
	}
}

// BroadcastFunc names those who missed the message, and why.
func TestBroadcastFunc(t *testing.T) {
	type miss struct {
		c   *WebSocket
		err error
	}
	synctest.Test(t, func(t *testing.T) {
		pipe := func(max int) (accepted, dialled *WebSocket) {
			return Pipe(ListenConfig{MaxBufferedAmount: max, WriteTimeout: -1, PingInterval: -1}, Dialer{WriteTimeout: -1, PingInterval: -1})
		}
		good, goodPeer := pipe(0)
		full, fullPeer := pipe(1000)
		closing, closingPeer := pipe(0)
		gone, gonePeer := pipe(0)
		// A peer that does not read: as much as the pipe holds, then as much as the queue.
		for range 3 {
			full.SendBinary(make([]byte, 100_000))
			synctest.Wait()
		}
		closing.CloseWith(4000, "bye")
		gone.Abort()
		<-gone.Done()
		var missed []miss
		note := func(c *WebSocket, err error) { missed = append(missed, miss{c, err}) }
		all := slices.Values([]*WebSocket{full, good, closing, gone})

		if n := BroadcastFunc(all, Message{Type: Text, Data: []byte("hi")}, note); n != 1 || len(missed) != 3 {
			t.Fatalf("%d took it, missed %v", n, missed)
		}
		if m := missed[0]; m.c != full || !errors.Is(m.err, ErrBufferFull) {
			t.Errorf("%v", m.err)
		}
		for i, c := range []*WebSocket{closing, gone} {
			_, ok := errors.AsType[CloseEvent](missed[1+i].err)
			if m := missed[1+i]; m.c != c || !ok || !errors.Is(m.err, net.ErrClosed) {
				t.Errorf("%v", m.err)
			}
		}
		if n := BroadcastFunc(all, Message{Type: Text, Data: []byte("hi")}, nil); n != 1 {
			t.Errorf("%d took it", n)
		}
		// What cannot be sent is missed by all.
		missed = nil
		if n := BroadcastFunc(all, Message{Type: Text, Data: []byte("\xff")}, note); n != 0 || len(missed) != 4 || missed[1].c != good {
			t.Errorf("%d took it, missed %v", n, missed)
		}
		if n := BroadcastFunc(all, Message{}, nil); n != 0 {
			t.Errorf("%d took it", n)
		}
		// Who missed something may be closed at once.
		BroadcastFunc(all, Message{Type: Text, Data: []byte("hi")}, func(c *WebSocket, _ error) { c.Abort() })
		for _, c := range []*WebSocket{good, goodPeer, fullPeer, closingPeer, gonePeer} {
			c.Abort()
		}
		for _, c := range []*WebSocket{good, full, closing, gone, goodPeer, fullPeer, closingPeer, gonePeer} {
			<-c.Done()
		}
	})
}

func TestNoAllocations_Broadcast(t *testing.T) {
	countsAllocations(t)
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			c := accepted(testSettings(), ours, portable)
			go c.run()
			m, _ := NewPreparedMessage(Message{Type: Binary, Data: make([]byte, 256)})
			b := make([]byte, 260)
			send := func() {
				if err := c.SendPrepared(m); err != nil {
					t.Fatal(err)
				}
				io.ReadFull(theirs, b)
			}
			send()
			if n := testing.AllocsPerRun(200, send); n > 0 {
				t.Errorf("%v allocations for a receiver", n)
			}
			theirs.Close()
			waitDone(t, c)
		})
	}
}
