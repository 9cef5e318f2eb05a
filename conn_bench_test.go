//go:build unix

package peerws

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// BenchmarkEngine_Pipelined is the whole way of 64 messages of one block and
// their replies, without the kernel: the system calls are replaced.
func BenchmarkEngine_Pipelined(b *testing.B) {
	block := bytes.Repeat(clientFrame(0x82, make([]byte, 125)), 64)
	left := 0
	s := *testSettings()
	s.sys = &sysOps{
		read: func(_ uintptr, p []byte) (int, error) {
			if left == 0 {
				return 0, io.EOF
			}
			left--
			return copy(p, block), nil
		},
		write: func(_ uintptr, bufs [][]byte) (n int, err error) {
			for _, p := range bufs {
				n += len(p)
			}
			return n, nil
		},
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	theirs, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer theirs.Close()
	ours, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	c := newOpenWebSocket(&s, ours, false, nil)
	c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
	left = b.N/64 + 1
	theirs.Write([]byte{0})
	b.ReportAllocs()
	b.ResetTimer()
	c.run()
}
