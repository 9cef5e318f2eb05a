//go:build linux && (386 || race)

package peerws

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

func peerAddrOf(sa unix.Sockaddr) (a peerAddr) {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		a = peerAddr{ip: netip.AddrFrom4(sa.Addr).As16(), port: uint16(sa.Port), is4: true}
	case *unix.SockaddrInet6:
		a = peerAddr{ip: sa.Addr, zone: sa.ZoneId, port: uint16(sa.Port), is4: netip.AddrFrom16(sa.Addr).Is4In6()}
	}
	return a
}

func sysAccept(fd int) (int, peerAddr, error) {
	n, sa, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, peerAddr{}, err
	}
	return n, peerAddrOf(sa), nil
}

func sysLocalAddr(fd int) peerAddr {
	sa, _ := unix.Getsockname(fd)
	return peerAddrOf(sa)
}

func sysEpollWait(fd int, events []unix.EpollEvent) int {
	n, err := unix.EpollWait(fd, events, 0)
	if err != nil {
		return 0
	}
	return n
}

func sysSetTimer(fd uintptr, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Interval: ts, Value: ts}, nil)
}

func sysTimerFired(fd uintptr) bool {
	var b [8]byte
	n, err := unix.Read(int(fd), b[:])
	return err == nil && n == len(b)
}

func sysEpollCtl(epoll, op, fd int, ev *unix.EpollEvent) error {
	return unix.EpollCtl(epoll, op, fd, ev)
}

func sysShutdown(fd, how int) { unix.Shutdown(fd, how) }

func sysClose(fd int) error { return unix.Close(fd) }
