package peerws

import (
	"cmp"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The engine: on Linux, a socket that a listener has accepted has no goroutine while
// it waits. Its descriptor is ours, in an epoll set of the listener's. One goroutine,
// the loop, takes the events and never runs anything of the program's; workers run
// the turns of the sockets that are ready. A turn reads, runs the callbacks, and ends
// when there is nothing more to read.
//
// A descriptor and its turn (sock.state, an atomic word):
//
//	what happens              state                   then
//	accept                    run                     the handshake, and the first turn
//	event: bytes              + run again             a turn is queued, if run was not set
//	event: an end, an error   + run again hup         the same
//	the program wants it      + run again wake        the same
//	the turn is about to read - again hup             with hup it reads on to the end
//	a short read, or EAGAIN   - run, unless again     idle; else the turn goes on
//	its share is over         run stays               queued again, behind the others
//	the end                   run stays for ever      close
//
// Who has set run owns the read side, and only he closes the descriptor: reading needs
// no lock. Writing is done with wmu held, or by the writer goroutine, and never after
// writer.mode is writeShut, which finish sees to before it closes. Everything else that
// needs the descriptor takes sock.mu, under which it is closed.
//
// Events are edge-triggered. An event that comes while a turn runs sets again before
// the turn can give run back, so none is lost; Go's atomics are enough for that. The
// queue of a peer that is slow is written in the same way: blocked, writes and room are
// to it what watched, run and again are to reading.
// Numbers of descriptors come back as soon as they are closed: an event carries the
// generation too, and is dropped if the table has another.

// Bits of sock.state.
const (
	sockRun     uint32 = 1 << iota // somebody has the turn, or is about to
	sockAgain                      // an event came meanwhile: read once more
	sockHup                        // it told of an end or an error: read until that comes
	sockWake                       // the reader is to look around: WebSocket.wokenUp
	sockWaited                     // somebody waits in sock.wait
	sockWatched                    // it is in the epoll set
	sockBlocked                    // bytes are queued until there is room
	sockWrites                     // somebody writes them, or is about to
	sockRoom                       // an event came meanwhile: try once more
)

const (
	epollListener = unix.EPOLLIN | unix.EPOLLET&0xffffffff
	listenerGen   = 0 // sockets begin with 1

	epollIn  = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	epollEnd = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLPRI // at urgent data a read stops short
)

// An engine is one epoll set with its loop and its workers. It lives as long as the
// listener or one of its sockets.
type engine struct {
	listener syscall.RawConn
	arrived  chan struct{} // a token: somebody waits to be accepted
	acceptFn func(fd uintptr)
	accepted acceptance // by acceptFn

	epoll int // the epoll set
	table table
	gen   uint32       // of the last socket: the accept loop's
	refs  atomic.Int64 // the listener and its sockets
	workers
	inline

	looper atomic.Pointer[looper] // who has the loop
	lmu    sync.Mutex             // guards changes of looper and timer, and over; under it only workers.mu
	over   bool                   // nobody needs the engine any more

	// The loop's.
	events [128]unix.EpollEvent
	ready  []task
}

// newEngine returns the engine for ln's connections. Options are set on its socket,
// which accepted ones inherit. keepalive has the system send TCP keepalives.
func newEngine(ln *net.TCPListener, keepalive bool) (*engine, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	e := &engine{listener: raw, arrived: make(chan struct{}, 1)}
	e.acceptFn = e.tryAccept
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	unix.SetNonblock(e.epoll, true)
	e.need.Store(quickLeast)
	e.refs.Store(1)
	failed := raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if keepalive { // as package net does
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15)
		}
		err = sysEpollCtl(e.epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: epollListener, Fd: int32(fd), Pad: listenerGen})
	})
	e.lmu.Lock()
	defer e.lmu.Unlock()
	var l *looper
	if err = cmp.Or(err, failed); err == nil {
		l, err = e.newLooper()
	}
	if err != nil {
		unix.Close(e.epoll)
		return nil, err
	}
	e.startLocked(l)
	return e, nil
}

// release gives up the listener's or a socket's hold on the engine.
func (e *engine) release() {
	if e == nil || e.refs.Add(-1) > 0 {
		return
	}
	e.lmu.Lock()
	defer e.lmu.Unlock()
	e.over = true
	go e.looper.Load().file.Close() // the loop comes back; it may be our caller, for which Close would wait
	if t := e.timer.Load(); t != nil {
		go t.file.Close()
	}
	unix.Close(e.epoll)
	e.stopWorkers()
}

// poll is the loop of l. RawConn.Read calls it whenever there may be events; it returns
// false when it has seen that there are none. A batch that does not fill its array was
// the last: every member is edge-triggered.
func (e *engine) poll(l *looper, fd int) bool {
	for {
		n := sysEpollWait(fd, e.events[:])
		for i := range n {
			e.event(&e.events[i])
		}
		e.takeInline(l)
		e.add(e.ready...)
		clear(e.ready)
		e.ready = e.ready[:0]
		if !e.runInline(l) {
			return true
		}
		if n < len(e.events) {
			return false
		}
	}
}

// event takes one event, and adds to ready what is to be done for it.
func (e *engine) event(ev *unix.EpollEvent) {
	if ev.Pad == listenerGen {
		signal(e.arrived)
		return
	}
	s := e.table.get(int(ev.Fd))
	if s == nil || s.gen != uint32(ev.Pad) {
		return
	}
	var bits uint32
	if ev.Events&epollEnd != 0 {
		bits = sockRun | sockAgain | sockHup
	} else if ev.Events&unix.EPOLLIN != 0 {
		bits = sockRun | sockAgain
	}
	old := s.state.Load()
	if bits != 0 {
		old = s.state.Or(bits)
	}
	if old&sockWaited != 0 {
		s.signal()
	}
	if bits != 0 && old&sockRun == 0 {
		e.ready = append(e.ready, task{c: s.owner.Load()})
	}
	if old&sockBlocked != 0 && ev.Events&(unix.EPOLLOUT|epollEnd) != 0 && s.state.Or(sockWrites|sockRoom)&sockWrites == 0 {
		e.ready = append(e.ready, task{c: s.owner.Load(), write: true})
	}
}

// table finds the socket of a descriptor.
type table struct {
	mu     sync.Mutex // guards growing
	chunks atomic.Pointer[[]*tableChunk]
}

type tableChunk [256]atomic.Pointer[sock]

func (t *table) get(fd int) *sock {
	if chunks := t.chunks.Load(); chunks != nil && fd>>8 < len(*chunks) {
		return (*chunks)[fd>>8][fd&255].Load()
	}
	return nil
}

func (t *table) put(fd int, s *sock) {
	chunks := t.chunks.Load()
	if chunks == nil || fd>>8 >= len(*chunks) {
		t.mu.Lock()
		var grown []*tableChunk
		if chunks = t.chunks.Load(); chunks != nil {
			grown = append(grown, *chunks...)
		}
		for fd>>8 >= len(grown) {
			grown = append(grown, new(tableChunk))
		}
		chunks = &grown
		t.chunks.Store(chunks)
		t.mu.Unlock()
	}
	(*chunks)[fd>>8][fd&255].Store(s)
}

// An acceptance is what accept4 has returned.
type acceptance struct {
	fd   int
	from peerAddr
	err  error
}

// accept waits for the next connection, or for closing. Only the accept loop calls it.
func (e *engine) accept(closing <-chan struct{}) (net.Conn, error) {
	a := &e.accepted
	for {
		if err := e.listener.Control(e.acceptFn); err != nil {
			return nil, err
		}
		switch a.err {
		case nil:
			if e.gen++; e.gen == listenerGen {
				e.gen++
			}
			s := &sock{engine: e, gen: e.gen, peer: a.from}
			s.fd.Store(int32(a.fd))
			s.state.Store(sockRun)
			e.refs.Add(1)
			e.table.put(a.fd, s)
			return s, nil
		case syscall.EINTR, syscall.ECONNABORTED:
		case syscall.EAGAIN:
			select {
			case <-e.arrived:
			case <-closing:
				return nil, net.ErrClosed
			}
		default:
			return nil, os.NewSyscallError("accept4", a.err)
		}
	}
}

func (e *engine) tryAccept(fd uintptr) {
	a := &e.accepted
	a.fd, a.from, a.err = sysAccept(int(fd))
}

// share is how many blocks a turn may read before others that wait have theirs.
const share = 16

// park ends the turn, unless something has come meanwhile, and reports whether it did.
// If so another may have begun already: the socket must not be touched.
func (c *WebSocket) park(s *sock) (bool, error) {
	c.settle()
	c.toggleWaiting()
	err := s.watch(0)
	for err == nil {
		v := s.state.Load()
		if v&(sockAgain|sockHup|sockWake) != 0 {
			break
		}
		if s.state.CompareAndSwap(v, v&^sockRun) {
			return true, nil
		}
	}
	c.toggleWaiting()
	return false, err
}

// turn is what a worker does for a socket that is ready.
func (c *WebSocket) turn() {
	s := c.sock()
	s.reads = 0
	from := vMore
	switch {
	case s.gated:
		s.gated = false
		from = vGated
	case !s.begun:
		s.begun = true
		c.started()
	case c.activity.Load()&1 != 0:
		c.toggleWaiting()
	}
	switch v := c.readLoop(from); {
	case v == vParked:
	case s.inline: // what comes now may take its time
		s.engine.add(task{c: c, end: v})
	default:
		c.finish(v)
	}
}

// turnFill is fill for a socket of the engine. vParked is the end of the turn, vMore
// the result of a read.
func (c *WebSocket) turnFill(s *sock) (n int, err error, v verdict) {
	for {
		if c.wakePassed(s) {
			return 0, nil, vParked
		}
		if s.state.Load()&sockWake != 0 {
			s.state.And(^sockWake)
			s.dry = false
			return 0, os.ErrDeadlineExceeded, vMore
		}
		if !s.dry {
			if c.shared(s) {
				return 0, nil, vParked
			}
			if s.state.And(^(sockAgain|sockHup))&sockHup != 0 {
				s.hup = true
			}
			p := c.room()
			n, err := c.sysRead(uintptr(s.fd.Load()), p)
			if err == nil || !wouldBlock(err) {
				s.dry = err == nil && n < len(p) && !s.hup && c.set.sys == nil // a test's read may be short for no reason
				return n, err, vMore
			}
		}
		s.dry, s.hup = false, false
		if v, err := c.pause(s); v != vMore || err != nil {
			return 0, err, v
		}
	}
}

// shared is called before each read. It reports whether the turn has had its share, and
// is queued again.
func (c *WebSocket) shared(s *sock) bool {
	if s.reads++; s.reads < share || s.stays {
		return false
	}
	s.reads = 0
	if s.inline || s.engine.busy() {
		s.engine.add(task{c: c})
		return true
	}
	runtime.Gosched()
	return false
}

// A turn that the loop runs, or a Read of the program's, must not run callbacks: it is
// passed on to a worker when there are any. wakePassed and tasksPassed report whether it
// was.

func (c *WebSocket) wakePassed(s *sock) bool {
	if !s.inline || s.state.Load()&sockWake == 0 {
		return false
	}
	s.engine.add(task{c: c})
	return true
}

func (c *WebSocket) tasksPassed(s *sock) bool {
	if !s.inline {
		return false
	}
	c.mu.Lock()
	tasks := c.rareLocked().tasks
	c.mu.Unlock()
	if tasks == nil {
		return false
	}
	s.gated = true
	s.engine.add(task{c: c})
	return true
}

// turnInline goes on with a turn on the goroutine of a Read.
func (c *WebSocket) turnInline(s *sock) {
	s.inline = true
	c.turn()
}

// stopAtGate has the next turn begin in awaitGate.
func (s *sock) stopAtGate() { s.gated = true }

// pause is for a reader that has found nothing more to read: the end of its turn, which
// is vParked, or of its wait.
func (c *WebSocket) pause(s *sock) (verdict, error) {
	if s.stays {
		c.settle()
		c.toggleWaiting()
		err := s.wait(unix.EPOLLIN)
		c.toggleWaiting()
		return vMore, err
	}
	parked, err := c.park(s)
	if parked {
		return vParked, nil
	}
	return vMore, err
}

// look is what a reader that does not use turnFill does before each read. It reports
// whether the program wants it to look around.
func (s *sock) look() (woken bool) {
	s.state.And(^(sockAgain | sockHup))
	return s.state.And(^sockWake)&sockWake != 0
}
