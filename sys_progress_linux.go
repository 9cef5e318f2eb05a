package peerws

import (
	"net"

	"golang.org/x/sys/unix"
)

// taken tells how many bytes of ours the peer's kernel has acknowledged since the
// connection began, and whether more are on their way to it. ok is false where
// that is not known: conn is not TCP, or the kernel is older than Linux 4.1.
func taken(conn net.Conn) (acked uint64, pending, ok bool) {
	raw := rawConn(kernelOf(conn))
	if raw == nil {
		return 0, false, false
	}
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			acked, ok = info.Bytes_acked, info.Bytes_acked > 0
			pending = info.Unacked > 0 || info.Notsent_bytes > 0
		}
	})
	return acked, pending, ok
}

// notSentLowat is how much the kernel queues of what it may not send yet. More
// there would only stand before pings and the Close frame.
const notSentLowat = 128 << 10

// keepQueueShort has the kernel's queue of conn follow notSentLowat.
func keepQueueShort(conn net.Conn) {
	if raw := rawConn(kernelOf(conn)); raw != nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat) // not TCP: nothing to do
		})
	}
}
