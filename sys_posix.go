//go:build unix && (!linux || 386 || race)

package peerws

import "syscall"

// These go by the syscall package, which knows how each system calls them. On
// linux/386 that is socketcall: the package has no number of recvfrom or sendto.

func sysRead(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

func sysWrite(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// sysWritev is writev by single writes: the syscall package has no other.
func sysWritev(fd uintptr, bufs [][]byte) (n int, err error) {
	for _, b := range bufs {
		k, err := sysWrite(fd, b)
		n += k
		if err != nil {
			if n > 0 { // the next call will tell
				return n, nil
			}
			return 0, err
		}
		if k < len(b) {
			break
		}
	}
	return n, nil
}

func sysEmpty(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	return err != nil && wouldBlock(err)
}
