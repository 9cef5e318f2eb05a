package peerws

import (
	"net"

	"golang.org/x/sys/unix"
)

// hungUp tells, without reading, whether the transport under conn has failed, and
// whether the peer has ended its direction. Both are false for a transport that is
// not a socket.
func hungUp(conn net.Conn) (broken, ended bool) {
	raw := rawConn(kernelOf(conn))
	if raw == nil {
		return false, false
	}
	raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); err == nil && n > 0 {
			broken = p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
			ended = p[0].Revents&unix.POLLRDHUP != 0
		}
	})
	return broken, ended
}
