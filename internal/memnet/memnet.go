// Package memnet is a network in memory: connections with a buffer, half-close,
// deadlines and resets, as TCP has them, and a listener that is dialled without
// a socket.
//
// It exists because net.Pipe has no buffer: there two peers that both write
// first wait for each other for ever, which no TCP connection does. And because
// a socket is no good inside [testing/synctest]: waiting on it stops the fake
// clock. Here every wait is on a sync.Cond and every timer a time.AfterFunc, so
// a whole connection may live in a bubble. Nothing here starts a goroutine, and
// a Read or Write that succeeds allocates nothing.
//
// A [Conn] can be told to go wrong: see [Faults] and [Conn.Abort].
package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// DefaultBufferSize is what a buffer size of 0 stands for.
const DefaultBufferSize = 64 << 10

// A Conn is one end of a connection in memory. It is a net.Conn whose methods
// may be called from any goroutine. Errors other than io.EOF are *net.OpError,
// as those of a TCP connection are.
type Conn struct {
	in, out       *half
	local, remote net.Addr
}

// Pipe returns the two ends of a connection. Each direction holds at most
// bufSize bytes that were written and not read (0 = [DefaultBufferSize]); a
// Write beyond that waits for the reader.
//
// Until [Conn.SetAddrs] says otherwise, a is 127.0.0.1:9000 and b is
// 127.0.0.1:50000: what code that takes addresses apart expects to see.
func Pipe(bufSize int) (a, b *Conn) {
	return pipe(bufSize, defaultAddr(listenPort), defaultAddr(firstDialPort))
}

const (
	listenPort    = 9000  // the default port of the end that accepts
	firstDialPort = 50000 // and of the first that dials
)

func defaultAddr(port int) net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
}

func pipe(bufSize int, aAddr, bAddr net.Addr) (a, b *Conn) {
	if bufSize <= 0 {
		bufSize = DefaultBufferSize
	}
	toA, toB := newHalf(bufSize), newHalf(bufSize)
	a = &Conn{in: toA, out: toB, local: aAddr, remote: bAddr}
	b = &Conn{in: toB, out: toA, local: bAddr, remote: aAddr}
	return a, b
}

// SetAddrs changes what LocalAddr and RemoteAddr return at this end. It must be
// called before the connection is used.
func (c *Conn) SetAddrs(local, remote net.Addr) { c.local, c.remote = local, remote }

// LocalAddr returns the address of this end.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// Read waits until there is something to read and takes at most len(p) bytes.
// Once the other end has closed, it returns what is left and then io.EOF.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.opError("read", err)
}

// Write returns when all of p is in the buffer; while that is full it waits.
// Two Writes at the same time are done one after the other, never mixed.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.opError("write", err)
}

// Buffered returns how many bytes the other end has written that Read has not
// taken yet.
func (c *Conn) Buffered() int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.n
}

// Close ends both directions. Calls that wait at this end return net.ErrClosed;
// the other end reads what was written before and then io.EOF, and its Writes
// fail with EPIPE. The second Close returns net.ErrClosed, like that of a
// TCP connection.
func (c *Conn) Close() error {
	unread, first := c.in.closeReader(net.ErrClosed, syscall.EPIPE)
	if !first {
		return c.opError("close", net.ErrClosed)
	}
	c.out.closeWriter(net.ErrClosed, unread > 0 && c.out.resetUnread())
	return nil
}

// CloseWrite ends this end's direction only: the other end reads what was
// written before and then io.EOF. A Write at this end fails with EPIPE from now
// on; Read goes on.
func (c *Conn) CloseWrite() error {
	c.out.closeWriter(syscall.EPIPE, false)
	return nil
}

// CloseRead ends the other direction only: what is buffered is thrown away,
// Read returns io.EOF, and the other end's Writes fail with EPIPE. (TCP on most
// systems goes on taking them, and throws them away; here the writer learns of
// it.)
func (c *Conn) CloseRead() error {
	c.in.closeReader(io.EOF, syscall.EPIPE)
	return nil
}

// Abort breaks the connection as a TCP reset does: the other end loses what it
// has not read yet and gets ECONNRESET from every Read and Write. This end is
// closed.
func (c *Conn) Abort() error {
	if _, first := c.in.closeReader(net.ErrClosed, syscall.ECONNRESET); !first {
		return c.opError("close", net.ErrClosed)
	}
	c.out.closeWriter(net.ErrClosed, true)
	return nil
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline makes Read fail with os.ErrDeadlineExceeded from t on, also a
// Read that is waiting now, also when there is something to read. A zero t is
// no deadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readerErr == net.ErrClosed {
		return c.opError("set", net.ErrClosed)
	}
	h.readDeadline.setLocked(h, &h.readable, t)
	return nil
}

// SetWriteDeadline makes Write fail with os.ErrDeadlineExceeded from t on, also
// a Write that is waiting now. A zero t is no deadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writerErr == net.ErrClosed {
		return c.opError("set", net.ErrClosed)
	}
	h.writeDeadline.setLocked(h, &h.writable, t)
	return nil
}

// opError gives err the form it has from package net. io.EOF stays bare, as
// io.Reader asks.
func (c *Conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// A half is one direction of a connection: a ring of bytes between one end's
// Write and the other end's Read. Each end of it can be closed by itself; the
// mutex is held only to look and to copy, every wait is on one of the Conds.
type half struct {
	mu       sync.Mutex
	readable sync.Cond // waits of read
	writable sync.Cond // waits of write

	size int    // the bound; the ring is allocated at the first write
	ring []byte // n bytes from index r on, wrapping round
	r, n int

	writing bool // a write that had to wait holds the turn of its remaining bytes

	readerErr error // the reading end is closed: what read returns
	goneErr   error // the same, seen by the writer: what write returns
	writerErr error // the writing end is closed: what write returns
	reset     bool  // the writing end was aborted: read fails at once

	readDeadline, writeDeadline deadline
	readFaults, writeFaults     opFaults
	unreadResets                bool // Faults.ResetUnread of the writing end
}

func newHalf(size int) *half {
	h := &half{size: size}
	h.readable.L = &h.mu
	h.writable.L = &h.mu
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	short, err := h.readFaults.next()
	if err != nil {
		return 0, err
	}
	if short && len(p) > 1 {
		p = p[:1]
	}
	for {
		switch {
		case h.readerErr != nil:
			return 0, h.readerErr
		case h.readDeadline.expired:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case h.reset:
			return 0, syscall.ECONNRESET
		case h.n > 0:
			return h.takeLocked(p), nil
		case h.writerErr != nil:
			return 0, io.EOF
		}
		h.readable.Wait()
	}
}

// takeLocked moves bytes from the ring to p.
func (h *half) takeLocked(p []byte) int {
	p = p[:min(len(p), h.n)]
	k := copy(p, h.ring[h.r:])
	copy(p[k:], h.ring) // the part that wrapped round
	h.r = (h.r + len(p)) % h.size
	h.n -= len(p)
	h.writable.Broadcast()
	return len(p)
}

func (h *half) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	short, fault := h.writeFaults.next()
	switch {
	case short:
		p = p[:len(p)/2]
	case fault != nil:
		return 0, fault
	}
	n, err := h.writeLocked(p)
	if err == nil {
		err = fault
	}
	return n, err
}

func (h *half) writeLocked(p []byte) (total int, err error) {
	for h.writing && h.writeErrLocked() == nil {
		h.writable.Wait()
	}
	if err := h.writeErrLocked(); err != nil {
		return 0, err
	}
	for {
		k := h.putLocked(p)
		total += k
		p = p[k:]
		if len(p) == 0 {
			return total, nil
		}
		h.writing = true
		h.writable.Wait()
		h.writing = false
		// Others that wait for the turn find it taken again or free.
		h.writable.Broadcast()
		if err := h.writeErrLocked(); err != nil {
			return total, err
		}
	}
}

// writeErrLocked tells why a write cannot go on, nil if it can.
func (h *half) writeErrLocked() error {
	switch {
	case h.writerErr != nil:
		return h.writerErr
	case h.writeDeadline.expired:
		return os.ErrDeadlineExceeded
	}
	return h.goneErr
}

// putLocked moves bytes from p to the ring, as many as there is room for.
func (h *half) putLocked(p []byte) int {
	p = p[:min(len(p), h.size-h.n)]
	if len(p) == 0 {
		return 0
	}
	if h.ring == nil {
		h.ring = make([]byte, h.size)
	}
	k := copy(h.ring[(h.r+h.n)%h.size:], p)
	copy(h.ring, p[k:]) // the part that wraps round
	h.n += len(p)
	h.readable.Broadcast()
	return len(p)
}

// closeReader closes the reading end: read returns readerErr from now on, write
// goneErr. It reports how many bytes nobody will read any more, and whether
// this was the first close (a CloseRead is none: Close comes after it).
func (h *half) closeReader(readerErr, goneErr error) (unread int, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readerErr == net.ErrClosed {
		return 0, false
	}
	unread = h.n
	h.readerErr = readerErr
	h.goneErr = goneErr
	h.ring, h.r, h.n = nil, 0, 0
	h.readDeadline.stop()
	h.readable.Broadcast()
	h.writable.Broadcast()
	return unread, true
}

// closeWriter closes the writing end: write returns err from now on, and read
// io.EOF after what is buffered, or ECONNRESET at once.
func (h *half) closeWriter(err error, reset bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writerErr == net.ErrClosed {
		return
	}
	h.writerErr = err
	if reset {
		h.reset = true
		h.ring, h.r, h.n = nil, 0, 0
	}
	h.writeDeadline.stop()
	h.readable.Broadcast()
	h.writable.Broadcast()
}

func (h *half) resetUnread() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unreadResets
}

// A deadline is that of one end of a half, guarded by the half's mutex.
type deadline struct {
	at      time.Time
	expired bool
	timer   *time.Timer // made once and reset, so that a deadline per message costs no allocation
}

func (d *deadline) setLocked(h *half, cond *sync.Cond, t time.Time) {
	d.stop()
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.expired = true
		cond.Broadcast()
		return
	}
	// By the monotonic clock, which is the timer's too: t may come without it.
	d.at = time.Now().Add(left)
	if d.timer != nil {
		d.timer.Reset(left)
		return
	}
	d.timer = time.AfterFunc(left, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		// The deadline may have been moved while this func waited for the lock;
		// then the timer is set again and this call means nothing.
		if !d.at.IsZero() && !time.Now().Before(d.at) {
			d.expired = true
			cond.Broadcast()
		}
	})
}

func (d *deadline) stop() {
	d.expired = false
	d.at = time.Time{}
	if d.timer != nil {
		d.timer.Stop()
	}
}
