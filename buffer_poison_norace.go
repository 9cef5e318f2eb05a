//go:build !race

package peerws

const (
	poison   = false
	raceMode = false
)
