//go:build !linux

package peerws

import "net"

// taken tells nothing here: only what a write hands over counts.
func taken(net.Conn) (acked uint64, pending, ok bool) { return 0, false, false }

func keepQueueShort(net.Conn) {}
