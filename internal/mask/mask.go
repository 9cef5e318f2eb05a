// Package mask has the masking of RFC 6455 §5.3: kernels for amd64, each with a
// twin in plain Go, and the choice of the fastest for each size.
package mask

import (
	"encoding/binary"
	"math/bits"

	"github.com/gobwas/ws"
)

// blockMask is the size from which gobwas's block kernel beats the word loop, on
// processors for which we have no kernel of our own.
const blockMask = 512

// Bytes XORs b with key in place (RFC 6455 §5.3). offset is where b starts
// within the payload, so that a payload may be (un)masked in pieces. Masking
// twice gives the original back.
func Bytes(b []byte, key [4]byte, offset int64) {
	switch k := turned(key, offset); {
	case len(b) < minVector:
		maskWords(b, k)
	case !maskVector(b, k):
		maskPortable(b, key, offset)
	}
}

// minVector is the shortest payload for which a vector kernel wins. Ours needs 32
// bytes.
const minVector = 64

// turned is key as a word whose lowest byte is for the byte at offset.
func turned(key [4]byte, offset int64) uint32 {
	return bits.RotateLeft32(binary.LittleEndian.Uint32(key[:]), -8*int(offset&3))
}

// maskPortable is Bytes for all processors.
func maskPortable(b []byte, key [4]byte, offset int64) {
	if len(b) >= blockMask {
		n := len(b) &^ 63 // the kernel does what is left of a block byte by byte
		ws.Cipher(b[:n], key, int(offset&3))
		b = b[n:]
	}
	maskWords(b, turned(key, offset))
}

// maskWords is Bytes with the key turned to the start of b, for short payloads.
func maskWords(b []byte, k uint32) {
	w := uint64(k)<<32 | uint64(k)
	le := binary.LittleEndian
	for len(b) >= 64 {
		p := b[:64]
		le.PutUint64(p, le.Uint64(p)^w)
		le.PutUint64(p[8:], le.Uint64(p[8:])^w)
		le.PutUint64(p[16:], le.Uint64(p[16:])^w)
		le.PutUint64(p[24:], le.Uint64(p[24:])^w)
		le.PutUint64(p[32:], le.Uint64(p[32:])^w)
		le.PutUint64(p[40:], le.Uint64(p[40:])^w)
		le.PutUint64(p[48:], le.Uint64(p[48:])^w)
		le.PutUint64(p[56:], le.Uint64(p[56:])^w)
		b = b[64:]
	}
	for len(b) >= 8 {
		le.PutUint64(b, le.Uint64(b)^w)
		b = b[8:]
	}
	if len(b) >= 4 {
		le.PutUint32(b, le.Uint32(b)^k)
		b = b[4:]
	}
	if len(b) >= 2 {
		le.PutUint16(b, le.Uint16(b)^uint16(k))
		b, k = b[2:], k>>16
	}
	if len(b) >= 1 {
		b[0] ^= byte(k)
	}
}
