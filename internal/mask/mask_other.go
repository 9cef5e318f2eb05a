//go:build !amd64 || purego

package mask

// maskVector masks b if a vector kernel of ours can: there is none.
func maskVector([]byte, uint32) bool { return false }
