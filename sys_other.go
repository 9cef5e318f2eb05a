//go:build !unix

package peerws

import (
	"errors"
	"net"
	"syscall"
)

// Without non-blocking descriptors every connection takes the portable path.

type sysOps struct{}

func rawConn(net.Conn) syscall.RawConn { return nil }

func wouldBlock(error) bool { return false }

var errNoRaw = errors.New("peerws: no raw path on this system")

func (s *sysOps) readOnce(uintptr, []byte) (int, error)    { return 0, errNoRaw }
func (s *sysOps) writeOnce(uintptr, [][]byte) (int, error) { return 0, errNoRaw }
