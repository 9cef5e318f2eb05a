package peerws

import (
	"bytes"
	"strings"
	"testing"
)

// drain takes what the outbox has to write, at most n bytes at a time, as the
// kernel would, and returns it and how much of it was said to be payload.
func drain(o *outbox, n int) (wire string, payload int) {
	var b strings.Builder
	var vec vector
	for {
		k := o.wire(&vec, false)
		if k == 0 {
			return b.String(), payload
		}
		left := n
		for _, p := range vec[:k] {
			p = p[:min(len(p), left)]
			b.Write(p)
			left -= len(p)
		}
		payload += o.wrote(n - left)
	}
}

func TestOutbox(t *testing.T) {
	long := bytes.Repeat([]byte("x"), blockSize+5000) // takes more than one chunk
	want := "\x81\x05hello" + "\x82\x7f\x00\x00\x00\x00\x00\x01\x13\x88" + string(long) + "\x82\x00"
	for _, n := range []int{1, 2, 7, 125, 4096, blockSize, 1 << 20} {
		o := newOutbox()
		if !o.empty() {
			t.Fatal("a new one is not empty")
		}
		o.enqueueFrame(header{fin: true, op: opText, length: 5}, []byte("hello"))
		o.enqueueFrame(header{fin: true, op: opBinary, length: int64(len(long))}, long)
		o.push([]byte("\x82\x00"))
		if o.empty() {
			t.Fatal("empty with frames in it")
		}
		wire, payload := drain(o, n)
		if wire != want || payload != 5+len(long) || !o.empty() {
			t.Errorf("%d bytes at a time: %d bytes, want %d; %d of payload; empty %v", n, len(wire), len(want), payload, o.empty())
		}
		o.free()
	}
}

// §5.4: a control frame goes between two frames, never into one; the newest ping
// is answered, our own pings all go, and neither counts as payload.
func TestOutbox_ControlFramesBetween(t *testing.T) {
	for taken, want := range map[int]string{
		0: "\x89\x01p\x8a\x02p2" + "\x81\x05hello" + "\x81\x05world",
		1: "\x81\x05hello" + "\x89\x01p\x8a\x02p2" + "\x81\x05world",
		6: "\x81\x05hello" + "\x89\x01p\x8a\x02p2" + "\x81\x05world",
		7: "\x81\x05hello" + "\x89\x01p\x8a\x02p2" + "\x81\x05world",
		8: "\x81\x05hello" + "\x81\x05world" + "\x89\x01p\x8a\x02p2",
	} {
		for _, n := range []int{1, 3, 100} {
			o := newOutbox()
			o.enqueueFrame(header{fin: true, op: opText, length: 5}, []byte("hello"))
			o.enqueueFrame(header{fin: true, op: opText, length: 5}, []byte("world"))
			var vec vector
			var first string
			if taken > 0 {
				o.wire(&vec, false)
				first = string(vec[0][:taken])
			}
			payload := o.wrote(taken)
			o.answer([]byte("p1"))
			o.answer([]byte("p2"))
			if !o.ping([]byte("p"), false) {
				t.Fatal("no room for a ping")
			}
			wire, more := drain(o, n)
			if first+wire != want || payload+more != 10 {
				t.Errorf("after %d bytes, %d at a time: %q, want %q; %d of payload", taken, n, first+wire, want, payload+more)
			}
			o.free()
		}
	}
}

// Our own pings are bounded while the peer takes nothing.
func TestOutbox_PingsAreBounded(t *testing.T) {
	o := newOutbox()
	defer o.free()
	n := 0
	for o.ping(make([]byte, maxControlSize), true) {
		if n++; n > maxPings {
			t.Fatal("without end")
		}
	}
	if n == 0 || o.pings.len() > maxPings {
		t.Errorf("%d pings, %d bytes", n, o.pings.len())
	}
}

// What waited for something else goes behind what waits already.
func TestOutbox_Join(t *testing.T) {
	o, p := newOutbox(), newOutbox()
	o.push([]byte("\x81\x01a"))
	p.push([]byte("\x81\x01b"))
	o.join(p)
	o.push([]byte("\x81\x01c"))
	if wire, payload := drain(o, 2); wire != "\x81\x01a\x81\x01b\x81\x01c" || payload != 3 {
		t.Errorf("%q, %d", wire, payload)
	}
	o.free()
}
