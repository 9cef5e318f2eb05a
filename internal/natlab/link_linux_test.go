package natlab

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// The witness: if the link is not what its Line says, what the tests over it say
// is worth nothing.
func TestLinkWitness(t *testing.T) {
	Need(t)
	t.Parallel()
	s := NewStar(t)
	line := Line{Rate: 1_000_000, Delay: 40 * time.Millisecond, Queue: 32 << 10}
	l := s.AddLink(t, 1, line, line)
	ln, err := s.Hub.Listen(":9000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := ln.Accept(); err == nil {
			accepted <- conn
		}
	}()
	began := time.Now()
	conn, err := l.Host.Dial(t.Context(), netip.AddrPortFrom(l.Hub, 9000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if took := time.Since(began); took < 80*time.Millisecond || took > time.Second {
		t.Errorf("a round trip took %v, want 80 ms", took)
	}
	peer := <-accepted
	defer peer.Close()

	// Megabit a second: 250 kB take two seconds and the way.
	const size = 250_000
	go conn.Write(make([]byte, size))
	began = time.Now()
	if _, err := io.CopyN(io.Discard, peer, size); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 1900*time.Millisecond || took > 4*time.Second {
		t.Errorf("%d bytes took %v, want 2 s", size, took)
	}

	l.Cut()
	go conn.Write([]byte("lost"))
	peer.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	if n, err := peer.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came through a cable that is cut", n)
	}
	l.Mend()
	peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4)
	if _, err := io.ReadFull(peer, b); err != nil || string(b) != "lost" {
		t.Errorf("%q, %v", b, err)
	}

	// Nobody answers, and nothing says so, where the cable is cut.
	l.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if conn, err := l.Host.Dial(ctx, netip.AddrPortFrom(l.Hub, 9000).String()); err == nil {
		conn.Close()
		t.Error("connected through a cable that is cut")
	}
}
