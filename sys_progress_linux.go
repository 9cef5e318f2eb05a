package peerws

import (
	"net"

	"golang.org/x/sys/unix"
)

// trafficOf asks the kernel. Where it does not know, because conn is not TCP or the
// kernel is older than Linux 4.1, everything is 0.
//
// What the peer acknowledges stands still for a round trip while a lost packet is
// sent again, and that is seconds where a modem's queue is long. So what arrives
// behind the gap counts too (Linux 4.18, and 4.6 for the other direction).
func trafficOf(conn net.Conn) (t traffic) {
	raw := rawConn(kernelOf(conn))
	if raw == nil {
		return traffic{}
	}
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.Bytes_acked == 0 {
			return
		}
		t.taken = info.Bytes_acked + uint64(info.Delivered)
		t.window = info.Snd_wnd
		t.came = info.Data_segs_in
		t.pending = info.Unacked > 0 || info.Notsent_bytes > 0
		t.gaps = info.Rcv_ooopack > 0
	})
	return t
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
