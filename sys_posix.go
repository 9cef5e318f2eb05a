//go:build unix && (!linux || race)

package peerws

import "syscall"

func sysRead(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }

func sysWrite(fd uintptr, bufs [][]byte) (int, error) { return writeEach(fd, bufs) }
