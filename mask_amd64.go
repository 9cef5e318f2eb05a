//go:build !purego

package peerws

import "golang.org/x/sys/cpu"

// minVector is the shortest payload that goes to maskAVX2. It needs 32 bytes, and
// wins from here.
const minVector = 64

// maskVector masks b, with the key turned to its start, if a vector kernel can,
// and reports whether it did.
func maskVector(b []byte, key uint32) bool {
	if len(b) < minVector || !cpu.X86.HasAVX2 {
		return false
	}
	maskAVX2(b, key)
	return true
}

// maskAVX2 XORs b, of at least 32 bytes, with key again and again, lowest byte
// first.
//
//go:noescape
func maskAVX2(b []byte, key uint32)
