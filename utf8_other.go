//go:build !amd64 || purego

package peerws

// validUTF8 reports whether p is UTF-8.
func validUTF8(p []byte) bool { return validPortable(p) }
