package nat

import (
	"net"
	"net/netip"
	"syscall"
)

// multicastFrom makes multicasts leave by the interface that has the address
// local, and live for two hops as the UPnP Device Architecture 1.1 §1.3.2 wants.
func multicastFrom(c *net.UDPConn, local netip.Addr) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fail error
	err = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(syscall.Handle(fd), syscall.IPPROTO_IP, syscall.IP_MULTICAST_TTL, 2)
		fail = syscall.SetsockoptInet4Addr(syscall.Handle(fd), syscall.IPPROTO_IP, syscall.IP_MULTICAST_IF, local.As4())
	})
	if err != nil {
		return err
	}
	return fail
}
