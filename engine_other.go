//go:build !linux

package peerws

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Elsewhere than on Linux the runtime's poller waits for every socket, with a goroutine.

type (
	engine struct{ given bool }
	sock   struct {
		net.Conn
		engine *engine
	}
	task struct {
		c *WebSocket
		a *arrival
	}
)

func newEngine(*net.TCPListener, bool) (*engine, error) { return nil, errors.ErrUnsupported }

func (*engine) accept(<-chan struct{}) (net.Conn, error) { return nil, errors.ErrUnsupported }
func (*engine) add(...task)                              {}
func (*engine) release()                                 {}

func (*sock) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }
func (*sock) attach(*WebSocket)                     {}
func (*sock) remote() netip.AddrPort                { return netip.AddrPort{} }
func (*sock) stay()                                 {}

func sockOf(syscall.RawConn) *sock { return nil }
func engineOf(net.Conn) *engine    { return nil }

func ordinary(conn net.Conn) (net.Conn, error) { return conn, nil }

func (*sock) look() bool                                          { return false }
func (c *WebSocket) awaitRoomLocked(*sock)                        {}
func (c *WebSocket) stopWriterLocked(*sock)                       {}
func (c *WebSocket) checkBlocked(uint32)                          {}
func (*sock) stopAtGate()                                         {}
func (*sock) giveWay()                                            {}
func (c *WebSocket) wakePassed(*sock) bool                        { return false }
func (c *WebSocket) tasksPassed(*sock) bool                       { return false }
func (c *WebSocket) turnInline(*sock)                             {}
func (c *WebSocket) shared(*sock) bool                            { return false }
func (c *WebSocket) yield(*sock) bool                             { return false }
func shares(*sock) int                                            { return -1 }
func (c *WebSocket) pause(*sock) (verdict, error)                 { return vMore, nil }
func (c *WebSocket) turn()                                        {}
func (c *WebSocket) turnFill(*sock) (n int, v verdict, err error) { return }
