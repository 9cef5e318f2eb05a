//go:build race

package peerws

// Builds with the race detector are test builds: loaned memory is overwritten
// when the loan ends, so that a program that kept a window notices, and system
// calls go through the syscall package's ordinary functions, which the detector sees.
const (
	poison   = true
	raceMode = true
)
