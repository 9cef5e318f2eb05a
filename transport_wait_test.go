//go:build unix

package peerws

import (
	"errors"
	"io"
	"testing"

	"github.com/peerws/peerws/internal/memnet"
)

// A read takes what is there and never waits; what came behind the opening
// handshake comes first.
func TestReadWait(t *testing.T) {
	ours, theirs := tcpPair(t)
	w := newReadWait(&earlyConn{Conn: ours, early: []byte("early")})
	if w == nil {
		t.Fatal("a TCP connection cannot be waited for")
	}
	b := make([]byte, 3)
	want := func(what string, n int, err error, text string, wantErr error) {
		t.Helper()
		if string(b[:n]) != text || !errors.Is(err, wantErr) {
			t.Fatalf("%s: %q, %v; want %q, %v", what, b[:n], err, text, wantErr)
		}
	}
	n, err := w.read(b)
	want("early bytes", n, err, "ear", nil)
	n, err = w.read(b)
	want("the rest of them", n, err, "ly", nil)
	n, err = w.read(b)
	want("nothing", n, err, "", errNotYet)

	theirs.Write([]byte("late"))
	if err := w.wait(); err != nil {
		t.Fatal(err)
	}
	n, err = w.read(b[:0])
	want("no room", n, err, "", nil)
	n, err = w.read(b)
	want("a part", n, err, "lat", nil)
	if err := w.wait(); err != nil { // there is one more byte
		t.Fatal(err)
	}
	n, err = w.read(b)
	want("the rest", n, err, "e", nil)

	theirs.Close()
	if err := w.wait(); err != nil {
		t.Fatal(err)
	}
	n, err = w.read(b)
	want("the end", n, err, "", io.EOF)
	ours.Close()
	if err := w.wait(); err == nil {
		t.Error("a closed connection can be waited for")
	}

	a, _ := memnet.Pipe(1)
	defer a.Close()
	if newReadWait(a) != nil {
		t.Error("what is not a socket can be waited for")
	}
}
