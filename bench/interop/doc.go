// Package interop lets peerws and the other WebSocket libraries for Go talk to
// each other (interop_test.go), and shows what the others' users stumble over
// (pains_test.go). It lives in the module of bench/ so that nobody who uses
// peerws gets their dependencies.
package interop
