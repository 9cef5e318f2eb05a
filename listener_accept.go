package peerws

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Admission: what is accepted from the system, and how much of it at a time.

// acceptLoop takes transports from the system. Nothing in it waits for a peer,
// but for a place among the handshakes.
func (l *WebSocketListener) acceptLoop() {
	defer close(l.accepting)
	var pause time.Duration
	for {
		conn, err := l.ln.Accept()
		if err == nil {
			pause = 0
			l.admit(conn)
			continue
		}
		select {
		case <-l.closing:
			return
		default:
		}
		if unusable(err) {
			l.mu.Lock()
			l.err = fmt.Errorf("peerws: accept: %w", err)
			l.mu.Unlock()
			l.log.Error("listener failed", "err", err)
			go l.Close()
			return
		}
		if pause == 0 { // once for all that fail in a row
			l.log.Warn("accept failed, trying on", "err", err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-l.closing:
			t.Stop()
			return
		}
	}
}

// unusable reports whether accepting can never succeed again. Every other error
// passes: the system has run out of descriptors or memory, a firewall said no,
// or, on Linux, the error is one of the connection that was to be accepted
// (accept(2)).
func unusable(err error) bool {
	for _, end := range [...]error{
		net.ErrClosed, io.EOF, io.ErrClosedPipe, // a listener that wraps another may say it so
		syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK,
	} {
		if errors.Is(err, end) {
			return true
		}
	}
	if runtime.GOOS != "windows" {
		return false
	}
	// Winsock has numbers of its own: WSAEBADF, WSAEINVAL, WSAENOTSOCK.
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && (errno == 10009 || errno == 10022 || errno == 10038)
}

// An ipKey is what MaxConnectionsPerIP counts together: an IPv4 address or the
// first 64 bits of an IPv6 address. 0 is not counted.
type ipKey uint64

func (l *WebSocketListener) keyOf(a net.Addr) ipKey {
	t, ok := a.(*net.TCPAddr)
	if !ok || l.maxPerIP < 0 {
		return 0
	}
	ip := t.AddrPort().Addr().Unmap()
	if ip.IsLoopback() && !l.loopback {
		return 0
	}
	if ip.Is4() {
		b := ip.As4()
		return 0xFFFF<<32 | ipKey(b[0])<<24 | ipKey(b[1])<<16 | ipKey(b[2])<<8 | ipKey(b[3])
	}
	var key ipKey
	b := ip.As16()
	for _, x := range b[:8] {
		key = key<<8 | ipKey(x)
	}
	return max(key, 1)
}

// admit starts the opening handshake of a transport, or turns it away.
func (l *WebSocketListener) admit(conn net.Conn) {
	key := l.keyOf(conn.RemoteAddr())
	a, r := l.enter(conn, key, true)
	if r != nil {
		l.turnAway(conn, r)
		return
	}
	go a.run()
}

// An arrival is a transport in its opening handshake. Arrivals are pooled.
type arrival struct {
	l    *WebSocketListener
	conn net.Conn // the transport itself, without TLS
	key  ipKey
	run  func() // handshake, made once: starting a goroutine of it allocates nothing

	// Guarded by l.mu.
	since uint32 // the clock's time
	slot  int    // index in l.pending, -1 if it is not there
	cut   bool   // its deadline is past: HandshakeTimeout is over, or the listener closes
}

var arrivalPool sync.Pool

// enter counts a transport as being in its opening handshake, and with count
// under its address, too.
func (l *WebSocketListener) enter(conn net.Conn, key ipKey, count bool) (*arrival, *refusal) {
	since := l.clock.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case count && key != 0 && l.perIP[key] >= l.maxPerIP:
		return nil, errCrowd
	case l.state == ListenerClosed:
		return nil, errClosing
	case l.maxHandshakes > 0 && len(l.pending) >= l.maxHandshakes:
		return nil, errFull
	}
	if count && key != 0 {
		l.perIP[key]++
	}
	a, _ := arrivalPool.Get().(*arrival)
	if a == nil {
		a = new(arrival)
		a.run = a.handshake
	}
	a.l, a.conn, a.key, a.since, a.slot = l, conn, key, since, len(l.pending)
	l.pending = append(l.pending, a)
	l.work.Add(1)
	l.clock.wind()
	return a, nil
}

// over uncounts the transport, if that has not been done, and reports whether
// its deadline is past. It will not be touched any more.
func (a *arrival) over() (cut bool) {
	l := a.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.slot >= 0 {
		last := len(l.pending) - 1
		l.pending[last].slot = a.slot
		l.pending[a.slot] = l.pending[last]
		l.pending[last] = nil
		l.pending = l.pending[:last]
		a.slot = -1
		l.work.Done()
	}
	return a.cut
}

// end is over for the last time.
func (a *arrival) end() {
	a.over()
	a.l, a.conn, a.cut = nil, nil, false
	arrivalPool.Put(a)
}

// cutLocked ends the transport's handshake. l.mu is held.
func (a *arrival) cutLocked() {
	if !a.cut {
		a.cut = true
		a.conn.SetDeadline(past)
	}
}

// turnAway refuses a transport without reading anything. A few peers at a time
// are given the chance to see it: closing with their request unread would reset
// the connection.
func (l *WebSocketListener) turnAway(conn net.Conn, r *refusal) {
	l.countRefused()
	l.log.Debug("connection turned away", "remote", conn.RemoteAddr(), "why", r.text)
	if r == errClosing || !l.lingers.TryAcquire(1) { // Close drops, and does not wait
		conn.Close()
		return
	}
	l.work.Go(func() {
		defer l.lingers.Release(1)
		linger(conn, r.response())
	})
}

// lingerTime is how long a refused peer may take to read why.
const lingerTime = time.Second

// linger sends an answer as the last thing and closes conn.
func linger(conn net.Conn, answer []byte) {
	conn.SetDeadline(time.Now().Add(lingerTime))
	if _, err := conn.Write(answer); err == nil {
		closeWrite(conn)
		b := newBuffer(portableRead)
		for {
			if _, err := conn.Read(b.b[:cap(b.b)]); err != nil {
				break
			}
		}
		b.free()
	}
	conn.Close()
}

func (l *WebSocketListener) countRefused() {
	l.mu.Lock()
	l.stats.Refused++
	l.mu.Unlock()
}

// leave uncounts a transport.
func (l *WebSocketListener) leave(key ipKey) {
	if key == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perIP[key]--; l.perIP[key] <= 0 {
		delete(l.perIP, key)
	}
}

// reserve takes one of MaxConnections.
func (l *WebSocketListener) reserve() *refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.state == ListenerClosed:
		return errClosing
	case l.maxConns >= 0 && l.reserved >= l.maxConns:
		return errFull
	}
	l.reserved++
	return nil
}

func (l *WebSocketListener) unreserve() {
	l.mu.Lock()
	l.reserved--
	l.mu.Unlock()
}
