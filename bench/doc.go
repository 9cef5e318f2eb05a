// Package bench holds what peerws does beside the other WebSocket libraries for
// Go: they talk to each other (interop_test.go), and what the others' users
// stumble over is shown (pains_test.go). It has a go.mod of its own so that
// nobody who uses peerws gets their dependencies.
package bench
