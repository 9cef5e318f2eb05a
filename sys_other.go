//go:build !unix

package peerws

import (
	"errors"
	"net"
	"syscall"
)

// Without non-blocking descriptors every connection takes the portable path.

type sysOps struct {
	read  func(fd uintptr, p []byte) (int, error)
	write func(fd uintptr, bufs [][]byte) (int, error)
}

func rawConn(net.Conn) syscall.RawConn { return nil }

func wouldBlock(error) bool { return false }

var errNoRaw = errors.New("peerws: no raw path on this system")

func sysEmpty(uintptr) bool                    { return false }
func sysRead(uintptr, []byte) (int, error)     { return 0, errNoRaw }
func sysWrite(uintptr, []byte) (int, error)    { return 0, errNoRaw }
func sysWritev(uintptr, [][]byte) (int, error) { return 0, errNoRaw }
