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

// admit starts the opening handshake of a transport, or turns it away. It
// returns when the transport has a place.
func (l *WebSocketListener) admit(conn net.Conn) {
	var key ipKey
	conn = adopt(conn)
	direct := foreignOf(conn) == nil
	if direct {
		key = l.keyOf(conn.RemoteAddr())
	}
	r := l.awaitPlace(key)
	if r == nil {
		var a *arrival
		if a, r = l.enter(conn, key, direct); r == nil {
			go a.run()
			return
		}
	}
	l.turnAway(conn, r)
}

// silenceGrace is how long an arrival may take to send its request while others
// wait for its place.
const silenceGrace = 500 * time.Millisecond

// awaitPlace waits until there is a place among MaxHandshakes. Later ones wait
// in the system's backlog. While nobody leaves by itself, the oldest arrival that
// has been silent for too long gives way. Only acceptLoop calls it.
func (l *WebSocketListener) awaitPlace(key ipKey) *refusal {
	var t *time.Timer
	for {
		l.mu.Lock()
		switch {
		case l.state == ListenerClosed:
			l.mu.Unlock()
			return errClosing
		case l.crowdedLocked(key):
			l.mu.Unlock()
			return errCrowd
		case l.maxHandshakes == 0 || len(l.pending) < l.maxHandshakes:
			l.mu.Unlock()
			return nil
		}
		l.crowd = true
		wait := l.makeWayLocked(time.Now())
		l.mu.Unlock()
		if t == nil {
			t = time.NewTimer(wait)
			defer t.Stop()
		} else {
			t.Reset(wait)
		}
		select {
		case <-l.place:
		case <-l.closing:
		case <-t.C:
		}
	}
}

// makeWayLocked cuts an arrival that was refused and is still there, or else the
// oldest that is still to send its request and has had its grace, unless one that
// was cut is about to leave. It returns when
// to look again if nobody leaves until then. l.mu is held.
func (l *WebSocketListener) makeWayLocked(now time.Time) time.Duration {
	const again = silenceGrace / 4
	var oldest *arrival
	for _, a := range l.pending {
		switch {
		case a.cut && now.Sub(a.cutAt) < again:
			return again
		case a.cut:
		case a.refused:
			a.cutLocked()
			return again
		case !a.asked && (oldest == nil || a.since.Before(oldest.since)) && !a.unread(now):
			oldest = a
		}
	}
	if oldest == nil {
		return again
	}
	if left := silenceGrace - now.Sub(oldest.since); left > 0 {
		return left
	}
	oldest.cutLocked()
	return again
}

// unread reports whether the peer has sent what the handshake has not taken yet,
// for want of processor time. It is asked only of one that is to give way.
func (a *arrival) unread(now time.Time) bool {
	if now.Sub(a.since) < silenceGrace {
		return false
	}
	raw := rawConn(a.conn)
	if raw == nil {
		return false
	}
	empty := true
	raw.Control(func(fd uintptr) { empty = sysEmpty(fd) })
	return !empty
}

// An arrival is a transport in its opening handshake. Arrivals are pooled.
type arrival struct {
	l    *WebSocketListener
	conn net.Conn // the transport itself, without TLS
	key  ipKey
	late bool   // not counted under its address yet
	run  func() // handshake, made once: starting a goroutine of it allocates nothing

	// Guarded by l.mu.
	since   time.Time // when it began
	cutAt   time.Time // if cut
	slot    int       // index in l.pending, -1 if it is not there
	asked   bool      // its whole request has been read
	refused bool      // it may take lingerTime to read why, if nobody waits for its place
	taken   bool      // it is being told that it is accepted: Close says goodbye to its socket
	cut     bool      // its deadline is past: HandshakeTimeout is over, it gives way, or the listener closes
}

var arrivalPool sync.Pool

// enter counts a transport as being in its opening handshake, and with count
// under its address, too. One that comes with its request read already needs no
// place among MaxHandshakes.
func (l *WebSocketListener) enter(conn net.Conn, key ipKey, count bool) (*arrival, *refusal) {
	since := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case count && l.crowdedLocked(key):
		return nil, errCrowd
	case l.state == ListenerClosed:
		return nil, errClosing
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
	a.late, a.asked, a.refused, a.taken = !count, false, false, false
	l.pending = append(l.pending, a)
	l.work.Add(1)
	l.clock.wind()
	return a, nil
}

// crowdedLocked reports whether MaxConnectionsPerIP is reached. l.mu is held.
func (l *WebSocketListener) crowdedLocked(key ipKey) bool {
	return key != 0 && l.perIP[key] >= l.maxPerIP
}

// locate asks a transport that is not the system's own for its address, which
// may take until the arrival is cut, and counts it.
func (a *arrival) locate() *refusal {
	if !a.late {
		return nil
	}
	l := a.l
	key := l.keyOf(foreignOf(a.conn).locate())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.crowdedLocked(key) {
		return errCrowd
	}
	if key != 0 {
		l.perIP[key]++
	}
	a.key, a.late = key, false
	return nil
}

// heard notes that the whole request has been read.
func (a *arrival) heard() {
	a.l.mu.Lock()
	a.asked = true
	a.l.mu.Unlock()
}

// lingers notes that the answer is sent, and only the peer is to read it.
func (a *arrival) lingers() {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	a.refused = true
	a.l.signalPlaceLocked()
}

// signalPlaceLocked has acceptLoop look again, if it waits. l.mu is held.
func (l *WebSocketListener) signalPlaceLocked() {
	if l.crowd {
		l.crowd = false
		select {
		case l.place <- struct{}{}:
		default:
		}
	}
}

// take notes that the peer is about to be told that it is accepted.
func (a *arrival) take() {
	a.l.mu.Lock()
	a.taken = true
	a.l.mu.Unlock()
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
		l.signalPlaceLocked()
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
	if a.cut {
		return
	}
	a.cut, a.cutAt = true, time.Now()
	if f := foreignOf(a.conn); f != nil {
		f.cut() // it may be waited for in RemoteAddr
	} else {
		a.conn.SetDeadline(past)
	}
}

// turnAway refuses a transport without reading anything. A few peers at a time
// are given the chance to see it: closing with their request unread would reset
// the connection.
func (l *WebSocketListener) turnAway(conn net.Conn, r *refusal) {
	l.countRefused()
	if r == errClosing || !l.lingers.TryAcquire(1) { // Close drops, and does not wait
		if foreignOf(conn) == nil {
			conn.Close()
		} else {
			l.work.Go(func() { conn.Close() })
		}
		return
	}
	l.work.Go(func() {
		defer l.lingers.Release(1)
		l.logRefusal(conn.RemoteAddr(), r.status, r)
		linger(conn, r.response(), func() {})
	})
}

// lingerTime is how long a refused peer may take to read why.
const lingerTime = time.Second

// linger sends an answer as the last thing, calls sent, and closes conn when the
// peer has read it.
func linger(conn net.Conn, answer []byte, sent func()) {
	conn.SetDeadline(time.Now().Add(lingerTime))
	if _, err := conn.Write(answer); err == nil {
		closeWrite(conn)
		sent()
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
