//go:build !unix && !windows

package nat

import (
	"net"
	"net/netip"
)

// multicastFrom leaves the choice of the interface to the system.
func multicastFrom(*net.UDPConn, netip.Addr) error { return nil }
