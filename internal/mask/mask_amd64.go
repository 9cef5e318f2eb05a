//go:build !purego

package mask

import "golang.org/x/sys/cpu"

// maskVector masks b, of at least 32 bytes, with the key turned to its start, if a
// vector kernel can, and reports whether it did.
func maskVector(b []byte, key uint32) bool {
	if !cpu.X86.HasAVX2 {
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
