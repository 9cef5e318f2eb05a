//go:build linux && !386 && !race

package peerws

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls that cannot block go by RawSyscall: it does not tell the scheduler, so
// the runtime's monitor need not wake up and watch.

func sysRead(fd uintptr, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

func sysWrite(fd uintptr, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), syscall.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

func sysWritev(fd uintptr, bufs [][]byte) (int, error) {
	var iov [writeVec]syscall.Iovec
	n := 0
	for _, b := range bufs {
		if len(b) > 0 {
			iov[n].Base = &b[0]
			iov[n].SetLen(len(b))
			n++
		}
	}
	if n == 0 {
		return 0, nil
	}
	for {
		k, _, errno := syscall.RawSyscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(n))
		if errno == 0 {
			return int(k), nil
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

func sysEmpty(fd uintptr) bool {
	const pollIn = 1
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: pollIn}
	var now syscall.Timespec
	n, _, errno := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && n == 0
}

// A sockaddr is a socket address as the kernel writes it, of IPv4 or IPv6.
type sockaddr struct {
	family uint16
	port   [2]byte
	flow   [4]byte // or an IPv4 address
	ip     [16]byte
	scope  uint32
}

func (sa *sockaddr) peerAddr() peerAddr {
	a := peerAddr{port: binary.BigEndian.Uint16(sa.port[:])}
	switch sa.family {
	case unix.AF_INET:
		a.ip, a.is4 = netip.AddrFrom4(sa.flow).As16(), true
	case unix.AF_INET6:
		a.ip, a.zone = sa.ip, sa.scope
		a.is4 = netip.AddrFrom16(a.ip).Is4In6()
	}
	return a
}

// sysAccept takes a connection, non-blocking.
func sysAccept(fd int) (int, peerAddr, error) {
	var sa sockaddr
	size := uint32(unsafe.Sizeof(sa))
	n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, peerAddr{}, errno
	}
	return int(n), sa.peerAddr(), nil
}

// sysLocalAddr returns a descriptor's own end.
func sysLocalAddr(fd int) peerAddr {
	var sa sockaddr
	size := uint32(unsafe.Sizeof(sa))
	syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	return sa.peerAddr()
}

// sysEpollWait returns how many events there are now, without waiting.
func sysEpollWait(fd int, events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// sysSetTimer has a timerfd fire every d, or stops it.
func sysSetTimer(fd uintptr, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	it := unix.ItimerSpec{Interval: ts, Value: ts}
	syscall.RawSyscall6(unix.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&it)), 0, 0, 0)
}

// sysTimerFired reports whether a timerfd has fired, once.
func sysTimerFired(fd uintptr) bool {
	var b [8]byte
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&b)), uintptr(len(b)))
	return errno == 0 && n == uintptr(len(b))
}

// sysEpollCtl is epoll_ctl(2).
func sysEpollCtl(epoll, op, fd int, ev *unix.EpollEvent) error {
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func sysShutdown(fd, how int) {
	syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
}

// sysClose closes a socket. That does not wait: nobody has set SO_LINGER.
func sysClose(fd int) error {
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
