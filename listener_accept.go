package peerws

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Admission: what is accepted from the system, and how much of it at a time.

// acceptLoop takes transports from the system. Nothing in it waits for a peer.
func (l *WebSocketListener) acceptLoop() {
	defer close(l.accepting)
	defer l.engine.release()
	var pause time.Duration
	for {
		conn, err := l.acceptOne()
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

// acceptOne waits for a transport.
func (l *WebSocketListener) acceptOne() (net.Conn, error) {
	if l.engine != nil {
		return l.engine.accept(l.closing)
	}
	return l.ln.Accept()
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

func keyOf(ip netip.Addr) ipKey {
	if !ip.IsValid() {
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

// countedKey is what MaxConnectionsPerIP counts an address under.
func (l *WebSocketListener) countedKey(from ipKey) ipKey {
	if l.maxPerIP < 0 || !l.loopback && from.isLoopback() {
		return 0
	}
	return from
}

// isLoopback reports whether it is of 127.0.0.0/8 or ::1. All of ::/64 but that is
// unused.
func (k ipKey) isLoopback() bool { return k>>24 == 0xFFFF<<8|127 || k == 1 }

// admit starts the opening handshake of a transport, has it wait for a place among
// MaxHandshakes, or turns it away.
func (l *WebSocketListener) admit(conn net.Conn) {
	conn = adopt(conn)
	var from netip.AddrPort
	direct := foreignOf(conn) == nil
	if direct {
		from = remoteOf(conn)
	}
	away, err := l.arrive(conn, from, direct)
	if err != nil {
		l.turnAway(conn, err)
	}
	if away != nil {
		l.forgetArrival(away, errCrowd)
	}
}

// arrive is admit with the lock held.
func (l *WebSocketListener) arrive(conn net.Conn, remote netip.AddrPort, direct bool) (away *arrival, err error) {
	since := time.Now()
	proxied := l.trusts(remote.Addr())
	var from ipKey
	if !proxied {
		from = keyOf(remote.Addr())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == ListenerClosed {
		return nil, errClosing
	}
	if err := l.admitLocked(from, since); err != nil {
		return nil, err
	}
	a := newArrival(l, conn, since)
	a.key, a.from = l.countedKey(from), from
	if proxied {
		a.remote, a.proxied = remote, true
	}
	if !direct {
		a.stage = arrivalLocating
	}
	if l.maxHandshakes > 0 && len(l.pending) >= l.maxHandshakes {
		return l.queueLocked(a), nil
	}
	l.beginLocked(a)
	return nil, nil
}

// An arrival is a transport in its opening handshake. Arrivals are pooled.
type arrival struct {
	l    *WebSocketListener
	conn net.Conn // the transport itself, without TLS
	key  ipKey    // what it is counted under
	run  func()   // handshake, made once: starting a goroutine of it allocates nothing

	// Whoever does the handshake has these.
	remote  netip.AddrPort // the peer's address, or that of the last proxy on the way to it; not valid if it is the transport's
	proxied bool           // remote is a proxy's that we trust

	// Guarded by l.mu.
	from  ipKey // its address, 0 if that is not known
	sent  bool  // it waits in the queue, and has sent something
	stage arrivalStage
	slot  int       // index in l.pending, -1 if it is not there
	since time.Time // when it began
	cutAt time.Time // when its deadline was set to the past: HandshakeTimeout is over, it gives way, or the listener closes
	cut   RefusalReason
}

// An arrivalStage is how far an opening handshake has come.
type arrivalStage uint8

const (
	// arrivalLocating: it is not counted under its address yet, which its transport
	// is asked for. Next: arrivalReading, arrivalRefused.
	arrivalLocating arrivalStage = iota
	// arrivalReading: its request is being read. Next: arrivalAsked, arrivalRefused.
	arrivalReading
	// arrivalAsked: its whole request has been read. Next: arrivalTaken,
	// arrivalRefused.
	arrivalAsked
	// arrivalTaken: it is being told that it is accepted; Close says goodbye to its
	// socket. Last.
	arrivalTaken
	// arrivalRefused: it has its answer, and lingerTime to read that, if nobody
	// waits for its place. Last.
	arrivalRefused
)

var arrivalPool sync.Pool

func newArrival(l *WebSocketListener, conn net.Conn, since time.Time) *arrival {
	a, _ := arrivalPool.Get().(*arrival)
	if a == nil {
		a = new(arrival)
		a.run = a.handshake
	}
	a.l, a.conn, a.since, a.slot, a.stage = l, conn, since, -1, arrivalReading
	return a
}

// beginLocked gives an arrival a place, and starts its handshake. l.mu is held.
func (l *WebSocketListener) beginLocked(a *arrival) {
	l.enterLocked(a)
	if e := engineOf(a.conn); e != nil {
		e.add(task{a: a})
		return
	}
	go a.run()
}

// enterLocked counts an arrival as being in its opening handshake. l.mu is held.
func (l *WebSocketListener) enterLocked(a *arrival) {
	a.slot = len(l.pending)
	l.pending = append(l.pending, a)
	l.work.Add(1)
	l.clock.wind()
}

// enter is for a transport that comes with its request read already, and is counted
// under its address: it needs no place among MaxHandshakes.
func (l *WebSocketListener) enter(conn net.Conn, key ipKey) (*arrival, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == ListenerClosed {
		return nil, errClosing
	}
	a := newArrival(l, conn, time.Now())
	a.key, a.stage = key, arrivalAsked
	l.enterLocked(a)
	return a, nil
}

// forgetArrival turns away one that had no place yet.
func (l *WebSocketListener) forgetArrival(a *arrival, err error) {
	conn, key := a.conn, a.key
	a.free()
	l.leave(key)
	l.turnAway(conn, err)
}

// admitLocked counts a transport under its address, or says why not. l.mu is held.
func (l *WebSocketListener) admitLocked(from ipKey, now time.Time) error {
	key := l.countedKey(from)
	if key != 0 && l.perIP[key] >= l.maxPerIP {
		return errCrowd
	}
	if (l.loopbackRate || !from.isLoopback()) && !l.rate.allow(from, now) {
		return errRate
	}
	if key != 0 {
		l.perIP[key]++
	}
	return nil
}

// locate asks a transport that is not the system's own for its address, which
// may take until the arrival is cut, and counts it.
func (a *arrival) locate() error {
	l := a.l
	l.mu.Lock()
	known := a.stage != arrivalLocating
	l.mu.Unlock()
	if known {
		return nil
	}
	remote := addrPortOf(foreignOf(a.conn).locate())
	if l.trusts(remote.Addr()) {
		a.remote, a.proxied = remote, true
		remote = netip.AddrPort{}
	}
	from := keyOf(remote.Addr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admitLocked(from, time.Now()); err != nil {
		return err
	}
	a.key, a.from, a.stage = l.countedKey(from), from, arrivalReading
	return nil
}

// heard notes that the whole request has been read.
func (a *arrival) heard() {
	a.l.mu.Lock()
	a.stage = arrivalAsked
	a.l.mu.Unlock()
}

// lingers notes that the answer is sent, and only the peer is to read it.
func (a *arrival) lingers() {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	a.stage = arrivalRefused
	if len(a.l.queue.waiting) > 0 {
		a.cutLocked(RefusedMaxHandshakes)
	}
}

// take notes that the peer is about to be told that it is accepted.
func (a *arrival) take() {
	a.l.mu.Lock()
	a.stage = arrivalTaken
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
		l.nextLocked()
	}
	return !a.cutAt.IsZero()
}

// end is over for the last time.
func (a *arrival) end() {
	a.over()
	a.free()
}

// reason is reasonOf for this one: a deadline may have been set for several reasons.
func (a *arrival) reason(err error) RefusalReason {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	if r, _ := refusalOf(err); r == nil && !a.cutAt.IsZero() {
		return a.cut
	}
	return reasonOf(err)
}

// remoteText is the peer's address.
func (a *arrival) remoteText(conn net.Conn) string {
	if a.remote.IsValid() {
		return a.remote.String()
	}
	return conn.RemoteAddr().String()
}

func (a *arrival) free() {
	*a = arrival{run: a.run}
	arrivalPool.Put(a)
}

// ordinary makes the transport one that package net knows, for whatever comes instead
// of a WebSocket. The error is that it was closed instead.
func (a *arrival) ordinary(conn net.Conn) (net.Conn, error) {
	if engineOf(conn) == nil {
		return conn, nil
	}
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	conn, err := ordinary(conn)
	if err == nil {
		a.conn = socketOf(conn)
	}
	return conn, err
}

// cutLocked ends the transport's handshake. l.mu is held.
func (a *arrival) cutLocked(why RefusalReason) {
	if !a.cutAt.IsZero() {
		return
	}
	a.cutAt, a.cut = time.Now(), why
	if f := foreignOf(a.conn); f != nil {
		f.cut() // it may be waited for in RemoteAddr
	} else {
		a.conn.SetDeadline(past)
	}
}

// turnAway refuses a transport without a handshake. A few peers at a time
// are given the chance to see it: closing with their request unread would reset
// the connection.
func (l *WebSocketListener) turnAway(conn net.Conn, err error) {
	l.countRefused(func() string { return addrText(conn) }, err, reasonOf(err))
	if err == errClosing || !l.lingers.TryAcquire(1) { // Close drops, and does not wait
		if foreignOf(conn) == nil {
			conn.Close()
		} else {
			l.work.Go(func() { conn.Close() })
		}
		return
	}
	l.work.Go(func() {
		defer l.lingers.Release(1)
		conn, e := ordinary(conn)
		if e != nil {
			return
		}
		r, cause := refusalOf(err)
		l.logRefusal(func() string { return conn.RemoteAddr().String() }, r.status, cause)
		linger(conn, l.coldAnswer(conn, r), func() {})
	})
}

// alertBusy is a fatal alert, internal_error (RFC 8446 §6.2): what makes it impossible to
// go on has nothing to do with the peer.
var alertBusy = []byte{0x15, 3, 3, 0, 2, 2, 80}

// coldAnswer is a refusal in the peer's language, which its first byte shows where the
// port speaks TLS, too. The peer of a handshake that is not done can be told no more
// than an alert.
func (l *WebSocketListener) coldAnswer(conn net.Conn, r *refusal) []byte {
	if l.tls == nil {
		return r.response()
	}
	var first [1]byte
	conn.SetReadDeadline(time.Now().Add(lingerTime))
	if n, _ := conn.Read(first[:]); n > 0 && first[0] == recordHandshake {
		return alertBusy
	}
	return r.response()
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

// addrText is the address of a transport, "" if that has to be waited for.
func addrText(conn net.Conn) string {
	if foreignOf(conn) != nil {
		return ""
	}
	return conn.RemoteAddr().String()
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
func (l *WebSocketListener) reserve() error {
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
