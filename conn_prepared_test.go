package peerws

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

func TestSendPrepared(t *testing.T) {
	onEach(t, func(t *testing.T, c *WebSocket, r *recorder, p peer) {
		data := []byte("Hello")
		m, err := NewPreparedMessage(Message{Text, data})
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
			m, _ := NewPreparedMessage(Message{Binary, payload})
			go c.SendPrepared(m)
			p.want("message", string(serverMessage(payload)))
		}
		c.Abort()
		if err := c.SendPrepared(m); err == nil {
			t.Error("sent to a socket that is closing")
		}
	})
	if _, err := NewPreparedMessage(Message{Text, []byte("\xff")}); err == nil {
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
	m, _ := NewPreparedMessage(Message{Text, []byte("Hello")})
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
		ours, theirs := tcpPair(t)
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
		n := Broadcast(slices.Values(sockets), Message{Binary, payload})
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
	if n := Broadcast(slices.Values(sockets), Message{Binary, payload}); n != 0 {
		t.Errorf("%d closed sockets took it", n)
	}
}

func TestNoAllocations_Broadcast(t *testing.T) {
	if raceMode {
		t.Skip("the race detector allocates; the test command runs this without it too")
	}
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ours, theirs, portable := tr.pair(t)
			c := accepted(testSettings(), ours, portable)
			go c.run()
			m, _ := NewPreparedMessage(Message{Binary, make([]byte, 256)})
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
