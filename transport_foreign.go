package peerws

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A transport that is not the system's own: one that Dialer.NetDial or a program's
// net.Listener has made, through SSH for example. Its deadlines may fail, or do
// nothing; its Close may wait, or end no Read or Write that is stuck; its
// addresses may have to be waited for.

// A foreignConn gives such a transport what the engine takes from a socket:
// deadlines that are kept, addresses, a Close that returns. Nothing of the
// transport is called by whoever calls a foreignConn, but by goroutines that
// are left behind if they do not come back: one reads as long as the connection
// lives, one is made for each Write, one for the end.
type foreignConn struct {
	conn net.Conn // the transport, or TLS over it
	deadlines

	gone    chan struct{} // closed by cut
	closed  chan struct{} // closed when the transport's Close has returned closeErr
	late    chan struct{} // closed foreignGrace after cut, if something is still going on in the transport
	arrived chan struct{} // a Read waits here; buffered, one token
	taken   chan struct{} // the pump waits here for Read to take what it has; buffered, one token
	turn    chan struct{} // held by the Write that is going on; buffered, one token
	wrote   chan result   // of the transport's Write that is going on; buffered, one value

	out      *buffer // what that one writes, nil without one; held by turn
	closeErr error
	piece    int          // what a WebSocket's writer gives at a time: its own
	inside   atomic.Int32 // calls that are in the transport now

	mu            sync.Mutex // taken under any other lock; nothing is locked under it
	cutOff        bool       // gone is closed
	pumping       bool
	in            *buffer // what has been read and not taken: from off on; nil if nothing
	off           int
	readErr       error         // how reading has ended
	located       chan struct{} // closed when the addresses are known; nil if nobody has asked
	asked         time.Time     // when somebody has
	local, remote net.Addr      // written before located is closed
}

type result struct {
	n   int
	err error
}

// foreignGrace is how long the end of a foreign transport is waited for.
const foreignGrace = time.Second

// How much a WebSocket gives a foreign transport at a time. That the peer takes
// something is seen only when it has taken all of it, so a slow one gets little.
const (
	leastPiece = 1 << 10
	firstPiece = 4 << 10
	mostPiece  = blockSize
)

var (
	errCloseStuck  = errors.New("the transport's Close does not return")
	errNotTheSame  = errors.New("a Write after one that has timed out must begin with what that left")
	errSelfTimeout = errors.New("the transport has timed out by itself")
)

// adopt returns conn, made by the program, as the engine can use it.
func adopt(conn net.Conn) net.Conn {
	if isSocket(socketOf(conn)) || foreignOf(conn) != nil {
		return conn
	}
	return newForeign(conn)
}

func newForeign(conn net.Conn) *foreignConn {
	return &foreignConn{
		conn: conn, piece: firstPiece,
		deadlines: newDeadlines(),
		gone:      make(chan struct{}), closed: make(chan struct{}), late: make(chan struct{}),
		arrived: make(chan struct{}, 1), taken: make(chan struct{}, 1),
		turn: make(chan struct{}, 1), wrote: make(chan result, 1),
	}
}

// isSocket reports whether conn is the system's own: it knows its address, keeps
// deadlines and closes at once. Any other may wait for the peer in each of its
// methods: one that reads a PROXY protocol header does so in RemoteAddr.
func isSocket(conn net.Conn) bool {
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn, *sock:
		return true
	}
	return false
}

// Read takes from what the pump has read.
func (f *foreignConn) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if err := f.await(); err != nil {
			return 0, err
		}
		f.mu.Lock()
		switch {
		case f.cutOff:
			f.mu.Unlock()
			return 0, net.ErrClosed
		case f.in != nil:
			n := copy(p, f.in.b[f.off:])
			if f.off += n; f.off == f.in.len() {
				f.in.free()
				f.in, f.off = nil, 0
				signal(f.taken)
			}
			f.mu.Unlock()
			return n, nil
		case f.readErr != nil:
			err := f.readErr
			f.mu.Unlock()
			signal(f.arrived) // for the next one
			return 0, err
		}
		f.mu.Unlock() // another Read was faster
	}
	return 0, nil
}

// await waits until Read has something to say, holding no memory for it.
func (f *foreignConn) await() error {
	now := f.rd.now()
	for {
		if err := now.Err(); err != nil {
			return err
		}
		f.mu.Lock()
		there := f.in != nil || f.readErr != nil
		if !f.pumping && !f.cutOff {
			f.pumping = true
			go f.pump()
		}
		f.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-f.arrived:
		case <-now.Done():
		case <-f.gone:
			return net.ErrClosed
		}
	}
}

// pump reads ahead, one buffer at a time: the first when somebody reads.
func (f *foreignConn) pump() {
	for size := portableRead; ; {
		b := newBuffer(size)
		n, err := f.readSome(b.b[:cap(b.b)])
		size = portableRead
		if n == cap(b.b) {
			size = blockSize // there is more, it seems
		}
		b.extend(n)
		f.mu.Lock()
		if n > 0 && !f.cutOff {
			f.in = b
		} else {
			b.free()
		}
		f.readErr = err
		f.mu.Unlock()
		signal(f.arrived)
		if err != nil {
			return
		}
		select {
		case <-f.taken:
		case <-f.gone:
			return
		}
	}
}

// readSome is one Read of the transport that brings something. A time-out of the
// transport is none that anybody here has asked for, and the end.
func (f *foreignConn) readSome(p []byte) (int, error) {
	const tries = 100 // as many as bufio's
	f.inside.Add(1)
	defer f.inside.Add(-1)
	for range tries {
		n, err := f.conn.Read(p)
		if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
			err = fmt.Errorf("%w: %v", errSelfTimeout, err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// Write has p written. When the deadline passes, what is being written goes on
// being so: a Write after that must be of the same bytes, from there on, and waits
// for it.
func (f *foreignConn) Write(p []byte) (n int, err error) {
	now := f.wr.now()
	select {
	case f.turn <- struct{}{}:
	case <-now.Done():
		return 0, now.Err()
	case <-f.gone:
		return 0, net.ErrClosed
	}
	defer func() { <-f.turn }()
	for n < len(p) && err == nil {
		var k int
		k, err = f.writePiece(p[n:min(n+blockSize, len(p))], now)
		n += k
	}
	return n, err
}

func (f *foreignConn) writePiece(p []byte, now moment) (int, error) {
	if err := now.Err(); err != nil {
		return 0, err
	}
	select {
	case <-f.gone:
		return 0, net.ErrClosed
	default:
	}
	if f.out == nil {
		f.out = newBuffer(len(p))
		f.out.b = append(f.out.b, p...)
		go f.send(f.out.b)
	} else if !bytes.HasPrefix(p, f.out.b) {
		return 0, errNotTheSame
	}
	select {
	case r := <-f.wrote:
		if r.err == nil && r.n < f.out.len() {
			r.err = io.ErrShortWrite
		}
		f.out.free()
		f.out = nil
		return r.n, r.err
	case <-now.Done():
		return 0, now.Err()
	case <-f.gone:
		return 0, net.ErrClosed
	}
}

// send is one Write of the transport.
func (f *foreignConn) send(p []byte) {
	f.inside.Add(1)
	n, err := f.conn.Write(p)
	f.inside.Add(-1)
	f.wrote <- result{n, err}
}

// pace adapts piece to how the last one went.
func (f *foreignConn) pace(n int, slow bool) {
	switch {
	case slow:
		f.piece = max(f.piece/4, leastPiece)
	case n == f.piece:
		f.piece = min(2*f.piece, mostPiece)
	}
}

// CloseWrite ends our direction of the transport, if it has such a thing.
func (f *foreignConn) CloseWrite() error {
	h, ok := transportOf(f.conn).(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	f.while(func() { h.CloseWrite() })
	return nil
}

// while waits for do, which may get stuck in the transport, for a moment.
func (f *foreignConn) while(do func()) {
	done := make(chan struct{})
	go func() {
		do()
		close(done)
	}()
	t := time.NewTimer(foreignGrace)
	defer t.Stop()
	select {
	case <-done:
	case <-f.gone:
	case <-t.C:
	}
}

// cut ends everything, and waits for nothing.
func (f *foreignConn) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cutOff {
		return
	}
	f.cutOff = true
	close(f.gone)
	f.in.free()
	f.in = nil
	go f.end()
}

// end closes the transport. If that does not end what is going on in it, its
// deadlines may.
func (f *foreignConn) end() {
	f.SetDeadline(time.Time{})
	f.inside.Add(1)
	t := time.AfterFunc(foreignGrace, func() {
		close(f.late)
		if f.inside.Load() > 0 {
			f.conn.SetDeadline(past)
		}
	})
	f.closeErr = transportOf(f.conn).Close()
	close(f.closed)
	if f.inside.Add(-1) == 0 {
		t.Stop()
	}
}

// Close ends everything and waits for the transport's Close, but not for ever.
func (f *foreignConn) Close() error {
	f.cut()
	select {
	case <-f.closed:
		return f.closeErr
	case <-f.late:
		return errCloseStuck
	}
}

// hungUp tells whether the transport has failed, and whether the peer has ended
// its direction, as far as the pump has come.
func (f *foreignConn) hungUp() (broken, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readErr != nil && f.readErr != io.EOF, f.readErr == io.EOF
}

// full reports whether the pump waits for Read, and so would not see an end.
func (f *foreignConn) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.in != nil
}

// nowhere is the address of a transport that does not say its own.
type nowhere struct{}

func (nowhere) Network() string { return "unknown" }
func (nowhere) String() string  { return "unknown" }

// LocalAddr and RemoteAddr wait a moment for a transport that has not been asked
// yet.
func (f *foreignConn) LocalAddr() net.Addr {
	local, _ := f.addrs()
	return local
}

func (f *foreignConn) RemoteAddr() net.Addr {
	_, remote := f.addrs()
	return remote
}

func (f *foreignConn) addrs() (local, remote net.Addr) {
	known, asked := f.askAddrs()
	t := time.NewTimer(time.Until(asked.Add(foreignGrace)))
	defer t.Stop()
	select {
	case <-known:
		return f.local, f.remote
	case <-t.C:
	}
	select {
	case <-known:
		return f.local, f.remote
	default:
		return nowhere{}, nowhere{}
	}
}

// locate waits until the transport knows its addresses, or is over, and returns
// the peer's.
func (f *foreignConn) locate() net.Addr {
	known, _ := f.askAddrs()
	select {
	case <-known:
	case <-f.gone:
		select {
		case <-known:
		case <-f.late:
			return nowhere{}
		}
	}
	return f.remote
}

// askAddrs asks the transport, unless that has been done at the time asked.
func (f *foreignConn) askAddrs() (known <-chan struct{}, asked time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.located == nil {
		known := make(chan struct{})
		f.located, f.asked = known, time.Now()
		f.inside.Add(1)
		go func() {
			f.local, f.remote = addrOr(f.conn.LocalAddr()), addrOr(f.conn.RemoteAddr())
			close(known)
			f.inside.Add(-1)
		}()
	}
	return f.located, f.asked
}

func addrOr(a net.Addr) net.Addr {
	if a == nil {
		return nowhere{}
	}
	return a
}
