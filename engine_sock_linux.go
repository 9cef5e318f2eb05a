package peerws

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A sock is a TCP connection of the engine: a descriptor, and what the loop knows of
// it. As a net.Conn it is what the opening handshake and the end of a connection need:
// it waits, with the goroutine that reads or writes. One goroutine waits at a time: who
// has the turn, or the writer goroutine.
type sock struct {
	engine *engine
	owner  atomic.Pointer[WebSocket] // nil during the opening handshake
	fd     atomic.Int32              // -1: closed
	gen    uint32
	state  atomic.Uint32

	// Of who has the turn.
	begun    bool  // the first turn has
	stays    bool  // he waits for bytes himself, and does not give the turn back
	inline   bool  // this turn is the loop's, or a Read's
	gated    bool  // the last one ended in awaitGate
	finishes bool  // he has come to WebSocket.finish
	hup      bool  // an event told of an end: read until that comes, or there is nothing
	dry      bool  // the last read has taken all there was
	reads    uint8 // of this turn

	mu     sync.Mutex // nothing is locked under it
	events uint32     // that are in the epoll set, 0: it is not there
	cutIn  bool       // waiting for bytes is over
	cutOut bool       // waiting for room is over
	waiter *waiter    // nil until needed
	local  *peerAddr  // kept for when it is closed

	peer peerAddr
}

// A waiter is what waiting for an event needs.
type waiter struct {
	ch    chan struct{} // a token for each event; buffered, one token
	until time.Time     // how long waiting for room may take; zero: for ever. Guarded by sock.mu
}

// peerAddr is a socket address in little room.
type peerAddr struct {
	ip   [16]byte
	zone uint32 // index of the interface, for IPv6 link-local
	port uint16
	is4  bool
}

func (a *peerAddr) addrPort() netip.AddrPort {
	ip := netip.AddrFrom16(a.ip)
	if a.is4 {
		ip = ip.Unmap()
	}
	return netip.AddrPortFrom(ip, a.port)
}

func (a *peerAddr) tcp() *net.TCPAddr {
	t := net.TCPAddrFromAddrPort(a.addrPort())
	if a.zone != 0 {
		t.Zone = strconv.Itoa(int(a.zone))
		if i, err := net.InterfaceByIndex(int(a.zone)); err == nil {
			t.Zone = i.Name
		}
	}
	return t
}

// attach gives the connection to c: from now on events are c's.
func (s *sock) attach(c *WebSocket) { s.owner.Store(c) }

// stay has the turn never end by itself: who has it waits.
func (s *sock) stay() { s.stays = true }

// watch puts the descriptor into the epoll set, if it is not there, and has it look for
// more, which is unix.EPOLLOUT or nothing. What has come already is an event, too.
func (s *sock) watch(more uint32) error {
	if s.state.Load()&sockWatched != 0 && more == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watchLocked(more)
}

func (s *sock) watchLocked(more uint32) error {
	op, events := unix.EPOLL_CTL_MOD, s.events|more
	if s.events == 0 {
		op, events = unix.EPOLL_CTL_ADD, epollIn|more
	}
	fd := s.fd.Load()
	if fd < 0 {
		return net.ErrClosed
	}
	err := sysEpollCtl(s.engine.epoll, op, int(fd), &unix.EpollEvent{Events: events, Fd: fd, Pad: int32(s.gen)})
	if err == nil {
		s.events = events
		s.state.Or(sockWatched)
	}
	return err
}

// signal wakes who waits. The loop calls it, for any event.
func (s *sock) signal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signalLocked()
}

func (s *sock) signalLocked() {
	if s.waiter != nil {
		signal(s.waiter.ch)
	}
}

func (s *sock) waiterLocked() *waiter {
	if s.waiter == nil {
		s.waiter = &waiter{ch: make(chan struct{}, 1)}
	}
	return s.waiter
}

// wait waits for an event since the last read, or, with unix.EPOLLOUT, for room. The
// error is os.ErrDeadlineExceeded, or the system's.
func (s *sock) wait(event uint32) error {
	s.mu.Lock()
	w := s.waiterLocked()
	s.state.Or(sockWaited) // before the socket is looked at
	defer s.state.And(^sockWaited)
	var err error
	if event == unix.EPOLLOUT || s.events == 0 {
		err = s.watchLocked(event & unix.EPOLLOUT)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	var timer *time.Timer
	for first := true; ; first = false {
		s.mu.Lock()
		cut, until := s.cutIn, time.Time{}
		if event == unix.EPOLLOUT {
			cut, until = s.cutOut, w.until
		}
		s.mu.Unlock()
		switch {
		case cut:
			return os.ErrDeadlineExceeded
		case event == unix.EPOLLOUT && !first, event != unix.EPOLLOUT && s.state.Load()&(sockAgain|sockHup) != 0:
			return nil
		}
		var over <-chan time.Time
		if !until.IsZero() {
			timer = time.NewTimer(time.Until(until))
			over = timer.C
		}
		select {
		case <-w.ch:
		case <-over:
			return os.ErrDeadlineExceeded
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// Read reads what there is, and waits if there is nothing. Who has the turn calls it.
func (s *sock) Read(p []byte) (int, error) {
	for {
		s.state.And(^(sockAgain | sockHup))
		n, err := sysRead(uintptr(s.fd.Load()), p)
		switch {
		case err == nil && n == 0 && len(p) > 0:
			return 0, io.EOF
		case err == nil:
			return n, nil
		case !wouldBlock(err):
			return 0, s.opError("read", err)
		}
		if err := s.wait(unix.EPOLLIN); err != nil {
			return 0, s.opError("read", err)
		}
	}
}

// Write writes all of p, and waits for room if there is none.
func (s *sock) Write(p []byte) (int, error) {
	for at := 0; ; {
		n, err := sysWrite(uintptr(s.fd.Load()), p[at:])
		at += n
		if at == len(p) {
			return at, nil
		}
		if err != nil && !wouldBlock(err) {
			return at, s.opError("write", err)
		}
		if err != nil {
			if err := s.wait(unix.EPOLLOUT); err != nil {
				return at, s.opError("write", err)
			}
		}
	}
}

// opError makes an error look as those of package net do.
func (s *sock) opError(op string, err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		if s.fd.Load() < 0 {
			err = net.ErrClosed
		} else {
			err = os.NewSyscallError(op, errno)
		}
	}
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// Close closes the descriptor. Only who has the turn calls it; he keeps the turn for
// ever, so that no event is anybody's any more.
func (s *sock) Close() error {
	s.mu.Lock()
	fd := s.fd.Load()
	if fd < 0 {
		s.mu.Unlock()
		return net.ErrClosed
	}
	local := s.localLocked()
	s.local = &local
	s.leaveLocked()
	err := sysClose(int(fd))
	s.mu.Unlock()
	s.engine.release()
	return err
}

// leaveLocked takes the descriptor out of the table. mu is held.
func (s *sock) leaveLocked() {
	s.engine.table.put(int(s.fd.Load()), nil)
	s.fd.Store(-1)
	s.events = 0
}

// ordinary makes a sock a connection of package net: for requests that ask for no
// WebSocket, and for refusals. Any other conn it returns as it is. With an error conn
// is closed. Who has the turn calls it, before there is a WebSocket.
func ordinary(conn net.Conn) (net.Conn, error) {
	if s, ok := conn.(*sock); ok {
		return s.ordinary()
	}
	for c := conn; c != nil; c = under(c) {
		if e, ok := c.(*earlyConn); ok { // as under TLS
			made, err := ordinary(e.Conn)
			if err != nil {
				return nil, err
			}
			e.Conn = made
		}
	}
	return conn, nil
}

func (s *sock) ordinary() (net.Conn, error) {
	s.mu.Lock()
	fd := int(s.fd.Load())
	if fd < 0 {
		s.mu.Unlock()
		return nil, net.ErrClosed
	}
	if s.events != 0 { // the copy of the descriptor would stay in the set
		sysEpollCtl(s.engine.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	}
	s.leaveLocked()
	cut := s.cutIn || s.cutOut
	s.mu.Unlock()
	s.engine.release()
	f := os.NewFile(uintptr(fd), "")
	made, err := net.FileConn(f)
	f.Close()
	if err == nil && cut {
		made.SetDeadline(past)
	}
	return made, err
}

func (s *sock) CloseRead() error  { return s.shutdown(unix.SHUT_RD) }
func (s *sock) CloseWrite() error { return s.shutdown(unix.SHUT_WR) }

func (s *sock) shutdown(how int) error {
	return s.control(func(fd uintptr) { sysShutdown(int(fd), how) })
}

// control calls f with the descriptor. Any goroutine may call it; f must not wait.
func (s *sock) control(f func(fd uintptr)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd := s.fd.Load()
	if fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(fd))
	return nil
}

func (s *sock) RemoteAddr() net.Addr { return s.peer.tcp() }

func (s *sock) LocalAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.localLocked()
	return a.tcp()
}

// remote is RemoteAddr as a value.
func (s *sock) remote() netip.AddrPort { return s.peer.addrPort() }

func (s *sock) localLocked() peerAddr {
	if s.local != nil {
		return *s.local
	}
	return sysLocalAddr(int(s.fd.Load()))
}

// SetDeadline and its parts know three times: zero, one that is over, and, for writing,
// one to come. A reader that is to wake up later is woken then.
func (s *sock) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *sock) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	s.cutIn = !t.IsZero() && !t.After(time.Now())
	cut := s.cutIn
	if cut {
		s.signalLocked()
	}
	s.mu.Unlock()
	if !cut {
		s.state.And(^sockWake)
	} else if s.state.Or(sockRun|sockAgain|sockWake)&sockRun == 0 {
		s.engine.add(task{c: s.owner.Load()})
	}
	return nil
}

func (s *sock) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutOut = !t.IsZero() && !t.After(time.Now())
	if s.waiter != nil || !t.IsZero() && !s.cutOut {
		s.waiterLocked().until = t
	}
	if s.cutOut {
		s.signalLocked()
	}
	return nil
}

func (s *sock) SyscallConn() (syscall.RawConn, error) { return (*rawSock)(s), nil }

// A rawSock is the syscall.RawConn of a sock. Its Read does not wait.
type rawSock sock

func (r *rawSock) Control(f func(fd uintptr)) error { return (*sock)(r).control(f) }

func (r *rawSock) Read(f func(fd uintptr) bool) error {
	if fd := r.fd.Load(); fd >= 0 {
		f(uintptr(fd))
		return nil
	}
	return net.ErrClosed
}

func (r *rawSock) Write(f func(fd uintptr) bool) error {
	s := (*sock)(r)
	for {
		fd := s.fd.Load()
		if fd < 0 {
			return net.ErrClosed
		}
		if f(uintptr(fd)) {
			return nil
		}
		if err := s.wait(unix.EPOLLOUT); err != nil {
			return err
		}
	}
}

// sockOf returns the engine's socket that a WebSocket stands on, nil if it stands on
// something else.
func sockOf(raw syscall.RawConn) *sock {
	r, _ := raw.(*rawSock)
	return (*sock)(r)
}

// engineOf returns the engine that a transport belongs to, nil if none.
func engineOf(conn net.Conn) *engine {
	if s, ok := socketOf(conn).(*sock); ok {
		return s.engine
	}
	return nil
}
