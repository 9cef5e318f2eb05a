package mask

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/gobwas/ws"
)

// rfcKey is the masking key of RFC 6455 §5.7's example.
var rfcKey = [4]byte{0x37, 0xFA, 0x21, 0x3D}

// pattern returns n bytes that do not repeat in step with a masking key.
func pattern(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return string(b)
}

// xor is §5.3 to the letter: octet i of the data is XORed with octet i MOD 4 of
// the key.
func xor(data string, key [4]byte, offset int) string {
	b := []byte(data)
	for i := range b {
		b[i] ^= key[(offset+i)%4]
	}
	return string(b)
}

// Section 5.3, with every size around the kernels' steps, every phase of the
// key and every alignment.
func TestSection5_3_Masking(t *testing.T) {
	const guard = "guardgua"
	sizes := []int{511, 512, 513, 1000, 4096, 65537}
	for n := range 301 {
		sizes = append(sizes, n)
	}
	buf := make([]byte, len(guard)+8+65537+len(guard))
	for _, n := range sizes {
		data := pattern(n)
		for offset := range 8 {
			want := xor(data, rfcKey, offset)
			for start := range 8 {
				for name, way := range map[string]func([]byte, [4]byte, int64){"Bytes": Bytes, "maskPortable": maskPortable} {
					b := append(append(append(buf[:0], guard[:start]...), data...), guard...)
					way(b[start:start+n], rfcKey, int64(offset))
					if string(b[start:start+n]) != want {
						t.Fatalf("%s, size %d, offset %d, start %d: wrong bytes", name, n, offset, start)
					}
					if string(b[:start]) != guard[:start] || string(b[start+n:]) != guard {
						t.Fatalf("%s, size %d, offset %d, start %d: bytes outside changed", name, n, offset, start)
					}
				}
			}
		}
	}
	Bytes(nil, rfcKey, 3)
}

// An offset may be larger than an int of 32 bits.
func TestSection5_3_MaskingFarInside(t *testing.T) {
	for _, n := range []int{5, 200} {
		for phase := range 4 {
			b := []byte(pattern(n))
			Bytes(b, rfcKey, math.MaxInt64-3+int64(phase)) // 2⁶³ - 4 is 0 MOD 4
			if string(b) != xor(pattern(n), rfcKey, phase) {
				t.Errorf("size %d, phase %d: wrong bytes", n, phase)
			}
		}
	}
}

func TestSection5_3_MaskingInPieces(t *testing.T) {
	const n = 300
	data := pattern(n)
	want := xor(data, rfcKey, 0)
	for i := range n + 1 {
		// Three pieces, the middle one up to 70 bytes: both kernels meet.
		j := min(n, i+i%71)
		b := []byte(data)
		Bytes(b[:i], rfcKey, 0)
		Bytes(b[i:j], rfcKey, int64(i))
		Bytes(b[j:], rfcKey, int64(j))
		if string(b) != want {
			t.Fatalf("cut at %d and %d: not the same as masking at once", i, j)
		}
	}
	b := []byte(data)
	for i := range b {
		Bytes(b[i:i+1], rfcKey, int64(i))
	}
	if string(b) != want {
		t.Error("byte by byte: not the same as masking at once")
	}
	Bytes(b, rfcKey, 0)
	if string(b) != data {
		t.Error("masking twice does not give the original back")
	}
}

// FuzzMask compares the kernels with the definition of §5.3, byte by byte.
func FuzzMask(f *testing.F) {
	f.Add([]byte("Hello"), uint32(0x37fa213d), int64(0))
	f.Add(bytes.Repeat([]byte("0123456789"), 70), uint32(1), int64(3))
	f.Add(make([]byte, 129), uint32(0xFF000000), int64(1)<<40+1)
	f.Fuzz(func(t *testing.T, data []byte, k uint32, offset int64) {
		offset &= math.MaxInt64
		var key [4]byte
		binary.BigEndian.PutUint32(key[:], k)
		want := []byte(xor(string(data), key, int(offset&3)))
		whole, portable, words := bytes.Clone(data), bytes.Clone(data), bytes.Clone(data)
		Bytes(whole, key, offset)
		maskPortable(portable, key, offset)
		maskWords(words, turned(key, offset))
		if !bytes.Equal(whole, want) || !bytes.Equal(portable, want) || !bytes.Equal(words, want) {
			t.Fatalf("%x with %x from %d: %x, %x, %x, want %x", data, key, offset, whole, portable, words, want)
		}
	})
}

func TestMaskAllocations(t *testing.T) {
	small, large := bytes.Repeat([]byte{1}, 50), bytes.Repeat([]byte{1}, 5000)
	if n := testing.AllocsPerRun(100, func() {
		Bytes(small, rfcKey, 1)
		Bytes(large, rfcKey, 1)
	}); n != 0 {
		t.Errorf("%v allocations a run, want 0", n)
	}
}

// Ours beside its parts: the word loop, gobwas's kernel, and the copy that
// nothing can beat by much.
func BenchmarkMask(b *testing.B) {
	key := [4]byte{0x37, 0xFA, 0x21, 0x3D}
	other := make([]byte, 1<<20)
	for _, way := range []struct {
		name string
		do   func([]byte)
	}{
		{"ours", func(p []byte) { Bytes(p, key, 0) }},
		{"words", func(p []byte) { maskWords(p, turned(key, 0)) }},
		{"gobwas", func(p []byte) { ws.Cipher(p, key, 0) }},
		{"copy", func(p []byte) { copy(other, p) }},
	} {
		for _, size := range []int{5, 16, 32, 64, 125, 256, 1 << 10, 16 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/size=%d", way.name, size), func(b *testing.B) {
				p := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					way.do(p)
				}
			})
		}
	}
}
