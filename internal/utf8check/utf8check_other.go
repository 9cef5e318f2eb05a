//go:build !amd64 || purego

package utf8check

// Valid reports whether p is UTF-8.
func Valid(p []byte) bool { return validPortable(p) }
