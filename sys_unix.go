//go:build unix

package peerws

import (
	"errors"
	"net"
	"syscall"
)

// The raw path: reads and writes on a non-blocking descriptor inside
// RawConn.Read and RawConn.Write, so that a connection holds no buffer while
// the poller waits for it. The descriptor number is never kept.

// sysOps are the system calls of the raw path, replaced in tests to fail or
// shorten the k-th one.
type sysOps struct {
	read  func(fd uintptr, p []byte) (int, error)
	write func(fd uintptr, bufs [][]byte) (int, error)
}

// rawConn returns the raw access to conn if it is a plain socket, nil if not.
func rawConn(conn net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, _ = c.SyscallConn()
	case *net.UnixConn:
		raw, _ = c.SyscallConn()
	}
	return raw
}

func wouldBlock(err error) bool {
	return errors.Is(err, syscall.EAGAIN)
}

// readOnce makes one non-blocking read; n = 0 without an error is the end.
func (s *sysOps) readOnce(fd uintptr, p []byte) (n int, err error) {
	if s != nil {
		return s.read(fd, p)
	}
	for {
		n, err = sysRead(fd, p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// writeOnce makes one non-blocking write of all bufs, or as many of them as are taken.
func (s *sysOps) writeOnce(fd uintptr, bufs [][]byte) (n int, err error) {
	if s != nil {
		return s.write(fd, bufs)
	}
	for {
		n, err = sysWrite(fd, bufs)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
