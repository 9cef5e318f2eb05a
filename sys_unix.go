//go:build unix

package peerws

import (
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
	case *sock:
		raw, _ = c.SyscallConn()
	case *net.UnixConn:
		raw, _ = c.SyscallConn()
	}
	return raw
}

func wouldBlock(err error) bool {
	return err == syscall.EAGAIN
}

// sysRead, sysWrite and sysWritev make one system call each: n = 0 without an
// error is the end of reading; of what is to be written some may be taken.
// sysEmpty reports whether a read of the socket would find nothing now; its end
// and an error are something.
