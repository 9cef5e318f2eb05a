package peerws

import (
	"cmp"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The engine: on Linux, a TCP connection that a listener has accepted has no goroutine
// while it waits. Its descriptor is ours, in an epoll set of the listener's. One
// goroutine, the loop, takes the events; workers run the turns of the sockets that are
// ready, and the loop itself a few that are quick. A turn reads, runs the callbacks, and
// ends when there is nothing more to read.
//
// Dialled connections, those of a mounted listener, and sockets that are not TCP wait
// in the runtime's poller, with a goroutine each, as all do on other systems: package
// net has their descriptors.
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
//	nobody wants the message  run stays, gated        openGateLocked queues the next turn
//	the end                   run stays for ever      close
//
//	a write that is short     + blocked               the rest is queued, EPOLLOUT asked for
//	event: room               + writes room           writing is queued, if writes was not set
//	nothing more fits         - writes, unless room   idle; else it is tried again
//	all is written            - blocked
//
// Who has set run owns the read side, and only he closes the descriptor: reading needs
// no lock. Writing is done with wmu held (over TLS by the writer goroutine), and never
// after writer.mode is writeShut, which finish sees to before it closes. Everything else
// that needs the descriptor takes sock.mu, under which it is closed.
//
// Events are edge-triggered. One that comes while a turn runs sets again before the turn
// can give run back, so none is lost; Go's atomics are enough for that. A short read has
// taken all there was: what comes later is an event. Numbers of descriptors come back
// as soon as they are closed: an event carries the socket's generation too, and is
// dropped if the table has another.

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
	listener  syscall.RawConn
	given     bool          // it is the program's
	keepalive bool          // the system sends TCP keepalives
	arrived   chan struct{} // a token: somebody waits to be accepted
	acceptFn  func(fd uintptr)
	accepted  acceptance // by acceptFn

	epoll int // the epoll set; -1, with pmu held, when nobody needs it any more
	table table
	gen   uint32       // of the last socket; the accept loop's
	naked bool         // accepted sockets do not inherit options; the accept loop's
	refs  atomic.Int64 // the listener and its sockets
	workers
	inline

	looper atomic.Pointer[looper] // who has the loop
	lmu    sync.Mutex             // guards changes of looper and timer, and over; under it only pmu and workers.mu
	over   bool                   // nobody needs the engine any more

	pmu    sync.Mutex // guards the two below; under it only workers.mu and those of sockets
	events [128]unix.EpollEvent
	ready  []task // what is to be done for them
}

// newEngine returns the engine for ln's connections. Options are set on its socket,
// which accepted ones inherit. keepalive has the system send TCP keepalives.
func newEngine(ln *net.TCPListener, keepalive bool) (*engine, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	e := &engine{listener: raw, keepalive: keepalive, arrived: make(chan struct{}, 1)}
	e.acceptFn = e.tryAccept
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	unix.SetNonblock(e.epoll, true)
	e.need.Store(quickLeast)
	e.refs.Store(1)
	failed := raw.Control(func(fd uintptr) {
		e.setOptions(int(fd))
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

// setOptions sets what a socket's connections are to have, as package net does.
func (e *engine) setOptions(fd int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if e.keepalive {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15)
	}
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
	e.pmu.Lock()
	unix.Close(e.epoll)
	e.epoll = -1
	e.pmu.Unlock()
	e.stopWorkers()
}

// poll is the loop of l. RawConn.Read calls it whenever there may be events; it returns
// false when it has seen that there are none. A batch that does not fill its array was
// the last: every member is edge-triggered.
func (e *engine) poll(l *looper) bool {
	for {
		e.pmu.Lock()
		n := e.collectLocked()
		e.takeInline(l)
		e.add(e.ready...)
		clear(e.ready)
		e.ready = e.ready[:0]
		e.pmu.Unlock()
		if !e.runInline(l) {
			return true
		}
		if n < len(e.events) {
			return false
		}
	}
}

// collectLocked takes the events that there are, and returns how many. pmu is held.
func (e *engine) collectLocked() int {
	if e.epoll < 0 {
		return 0
	}
	n := sysEpollWait(e.epoll, e.events[:])
	for i := range n {
		e.event(&e.events[i])
	}
	return n
}

// event takes one event, and adds to ready what is to be done for it. pmu is held.
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

// listenerLook is how often a listener that the program has made is looked at: it may
// have been closed.
const listenerLook = 2 * time.Second

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
			if e.gen == 1 {
				on, err := unix.GetsockoptInt(a.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
				e.naked = err == nil && on == 0
			}
			if e.naked {
				e.setOptions(a.fd)
			}
			s := &sock{engine: e, gen: e.gen, peer: a.from}
			s.fd.Store(int32(a.fd))
			s.state.Store(sockRun)
			e.refs.Add(1)
			e.table.put(a.fd, s)
			return s, nil
		case syscall.EINTR, syscall.ECONNABORTED:
		case syscall.EAGAIN:
			var look <-chan time.Time // nobody tells when the program closes its listener behind our back
			if e.given {
				look = time.After(listenerLook)
			}
			select {
			case <-e.arrived:
			case <-look:
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
