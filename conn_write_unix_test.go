//go:build unix

package peerws

import (
	"bytes"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
)

// A raw socket takes parts of frames: the count stays exact, and only the
// newest of many pings is answered, between two frames.
func TestBackPressure_RawPath(t *testing.T) {
	ours, theirs := enginePair(t)
	rawConn(ours).Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 64<<10) })
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
