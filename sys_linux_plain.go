//go:build linux && (386 || race)

package peerws

import "golang.org/x/sys/unix"

func sysAccept(fd int) (int, peerAddr, error) {
	n, sa, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, peerAddr{}, err
	}
	return n, peerAddrOf(sa), nil
}

func sysEpollWait(fd int, events []unix.EpollEvent) int {
	n, err := unix.EpollWait(fd, events, 0)
	if err != nil {
		return 0
	}
	return n
}
