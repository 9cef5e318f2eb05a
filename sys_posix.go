//go:build unix && (!linux || race)

package peerws

import "syscall"

func sysRead(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }

func sysWrite(fd uintptr, bufs [][]byte) (int, error) { return writeEach(fd, bufs) }

// writeEach is writev by single writes, which this system or build does not have.
func writeEach(fd uintptr, bufs [][]byte) (n int, err error) {
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		k, err := syscall.Write(int(fd), b)
		if k > 0 {
			n += k
		}
		if err != nil {
			if n > 0 { // the rest is told by the next call
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
