//go:build !linux

package peerws

import "net"

// hungUp tells nothing here: a write that fails does.
func hungUp(net.Conn) (broken, ended bool) { return false, false }
