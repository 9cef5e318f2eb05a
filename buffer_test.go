package peerws

import (
	"bytes"
	"strings"
	"testing"
)

func TestBufferSizes(t *testing.T) {
	for _, tt := range []struct{ n, capacity int }{
		{-1, 64},
		{0, 64},
		{1, 64},
		{64, 64},
		{65, 128},
		{512, 512},
		{513, 1024},
		{64 << 10, 64 << 10},
		{64<<10 + 1, 128 << 10},
		{1 << 20, 1 << 20},
		{1<<20 + 1, 1<<20 + 1}, // not pooled, so not rounded
		{3 << 20, 3 << 20},
	} {
		b := newBuffer(tt.n)
		if len(b.b) != 0 || cap(b.b) != tt.capacity {
			t.Errorf("newBuffer(%d): len %d, cap %d, want 0, %d", tt.n, len(b.b), cap(b.b), tt.capacity)
		}
		b.free()
	}
	b := newBlock()
	if cap(b.b) != blockSize || 1<<blockLog != blockSize {
		t.Errorf("a block has %d bytes", cap(b.b))
	}
	b.free()
}

// What comes from a pool is empty and of its class, whatever went in.
func TestBufferPoolsTakeOnlyTheirSizes(t *testing.T) {
	for _, c := range []int{0, 63, 100, 255, 511, 513, 600, 1000, 1025, 3 << 10, 1<<20 + 1, 2 << 20} {
		(&buffer{make([]byte, c)}).free()
	}
	for class := minClass; class <= maxClass; class++ {
		var got []*buffer
		for range 4 {
			b := newBuffer(1 << class)
			if len(b.b) != 0 || cap(b.b) != 1<<class {
				t.Errorf("class %d: len %d, cap %d", class, len(b.b), cap(b.b))
			}
			got = append(got, b)
		}
		for _, b := range got {
			b.extend(1) // the user leaves bytes in it
			b.free()
		}
	}
}

func TestBufferNil(t *testing.T) {
	var b *buffer
	if b.len() != 0 || len(b.bytes()) != 0 {
		t.Error("no buffer is not empty")
	}
	b.free()
	if b = b.grow(100); cap(b.b) < 100 || b.len() != 0 {
		t.Errorf("grown from nothing: len %d, cap %d", b.len(), cap(b.b))
	}
	b.free()
}

func TestBufferGrowKeepsBytes(t *testing.T) {
	b := newBuffer(10)
	b.b = append(b.b, "Hello"...)
	if g := b.grow(64); g != b {
		t.Error("replaced although there was room")
	}
	g := b.grow(65)
	if g == b || string(g.bytes()) != "Hello" || cap(g.b) != 128 {
		t.Errorf("grown: %q, cap %d", g.bytes(), cap(g.b))
	}
	copy(g.b[5:10], " pool")
	g.extend(5)
	if string(g.bytes()) != "Hello pool" || g.len() != 10 {
		t.Errorf("extended: %q", g.bytes())
	}
	g.free()
}

// Test builds overwrite memory whose loan has ended, also what is not pooled
// (and so can be looked at here afterwards).
func TestFreedBufferIsPoisoned(t *testing.T) {
	window := make([]byte, 600)
	(&buffer{window[:5]}).free()
	want := byte(0)
	if poison {
		want = 0xDB
	}
	if !bytes.Equal(window, bytes.Repeat([]byte{want}, 600)) {
		t.Errorf("after free: % .10x…, want %#x everywhere", window, want)
	}
}

func TestPoisonBytes(t *testing.T) {
	for n := range 100 {
		b := make([]byte, n+1)
		poisonBytes(b[:n])
		if !bytes.Equal(b[:n], bytes.Repeat([]byte{0xDB}, n)) || b[n] != 0 {
			t.Errorf("%d bytes: % x", n, b)
		}
	}
}

// Bytes that arrive in small pieces are copied a constant number of times, in a
// buffer of at most four times their number, also beyond the pooled sizes.
func TestPartialGrowsWithArrival(t *testing.T) {
	for _, tt := range []struct {
		piece, n, buffers int // 512 · 2^(buffers-1) ≥ n
	}{
		{1, 64 << 10, 8},
		{1000, 4_000_000, 14},
	} {
		p := newPartial()
		p.left = 1 << 30
		data := pattern(tt.n)
		buffers, last := 0, (*buffer)(nil)
		for have := 0; have < tt.n; have += tt.piece {
			p.append([]byte(data[have : have+tt.piece]))
			p.left -= int64(tt.piece)
			if p.buf != last {
				buffers, last = buffers+1, p.buf
			}
			if c := cap(p.buf.b); c > max(512, 4*p.buf.len()) {
				t.Fatalf("%d bytes arrived, a buffer of %d", p.buf.len(), c)
			}
		}
		if buffers > tt.buffers {
			t.Errorf("%d buffers for %d bytes in pieces of %d", buffers, tt.n, tt.piece)
		}
		if string(p.buf.bytes()) != data {
			t.Errorf("%d bytes in pieces of %d: not the same", tt.n, tt.piece)
		}
		p.free()
	}
}

// So are messages of many frames, which browsers send: each frame is small against
// what has arrived.
func TestPartialGrowsWithFrames(t *testing.T) {
	const frame, frames = 64 << 10, 256
	for _, direct := range []bool{false, true} {
		p := newPartial()
		data := pattern(frame)
		buffers, last := 0, (*buffer)(nil)
		for i := range frames {
			p.left, p.fin = frame, i == frames-1
			for p.left > 0 {
				rest := data[frame-p.left:]
				n := min(len(rest), 10_000)
				if direct {
					n = copy(p.space(false), rest)
					p.buf.extend(n)
				} else {
					p.append([]byte(rest[:n]))
				}
				p.left -= int64(n)
				if p.buf != last {
					buffers, last = buffers+1, p.buf
				}
				if c := cap(p.buf.b); c > 4*p.buf.len() {
					t.Fatalf("%d bytes arrived, a buffer of %d", p.buf.len(), c)
				}
			}
		}
		if buffers > 16 {
			t.Errorf("direct %v: %d buffers for %d frames", direct, buffers, frames)
		}
		if string(p.buf.bytes()) != strings.Repeat(data, frames) {
			t.Errorf("direct %v: not the same", direct)
		}
		p.free()
	}
}

// A frame is never given more memory than the class that holds all of it.
func TestPartialNeverBeyondFrame(t *testing.T) {
	for _, size := range []int{1, 511, 513, 40_000, 70_000} {
		p := newPartial()
		p.left = int64(size)
		for p.left > 0 {
			p.append(make([]byte, min(p.left, 300)))
			p.left -= min(p.left, 300)
			if c := cap(p.buf.b); c >= 2*size && c > 512 {
				t.Fatalf("frame of %d, buffer of %d", size, c)
			}
		}
		if p.buf.len() != size {
			t.Errorf("frame of %d, %d stored", size, p.buf.len())
		}
		p.free()
	}
}

// Section 5.3: the key must not be predictable, so not constant to begin with.
func TestSection5_3_MaskKeysDiffer(t *testing.T) {
	seen := map[[4]byte]bool{}
	for range 100 {
		seen[newMaskKey()] = true
	}
	if len(seen) < 95 {
		t.Errorf("%d different keys of 100", len(seen))
	}
}

func TestBufferAllocations(t *testing.T) {
	for class := minClass; class <= maxClass; class++ {
		wantNoAllocs(t, "newBuffer", func() { newBuffer(1<<class - 1).free() })
	}
	wantNoAllocs(t, "newBlock", func() { newBlock().free() })
	wantNoAllocs(t, "newPartial", func() { newPartial().free() })
	wantNoAllocs(t, "newMaskKey", func() { newMaskKey() })
}
