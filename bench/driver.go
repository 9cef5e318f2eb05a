//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// This file is the load driver: sockets that do not block, one epoll, one
// thread that spins, frames made beforehand. It allocates nothing while it
// measures, so that its own cost is small and the same for every server.

// patience is how long a server may keep the driver waiting.
const patience = 10 * time.Second

// A client is one connection of the driver.
type client struct {
	fd   int
	left []byte // of the request, not yet written
	at   int    // bytes of the current reply that have come
	seen int    // replies that were complete
	part fragments
}

// Fragments is a reply that comes in several frames (RFC 6455 §5.4), which a
// server may do with a large one.
type fragments struct {
	on   bool     // inside such a reply
	more bool     // not in its first frame's header
	head [10]byte // of the current frame
	n    int      // bytes of head that have come, 0 once it was complete
	fin  bool
	left int // payload bytes of the frame that have not come
	at   int // payload bytes of the message that have
}

// A queue is when the unanswered requests of one client were due, oldest first.
// It is long enough for a machine that stands still for a second.
type queue struct {
	at   [1024]time.Duration
	head uint
	tail uint
}

// A driver drives one server with one workload.
type driver struct {
	request, reply []byte
	payload        []byte // of the message, a part of reply
	messages       int    // in a request
	clients        []client
	spin           bool // it has a CPU of its own
	epoll          int
	buf            []byte
	events         [256]syscall.EpollEvent
	start          time.Time
	complete       int // requests answered
	outstanding    int
	sent           []queue         // of pace, for each client
	latencies      []time.Duration // of pace
}

// open connects to the server on port and upgrades, n times. The raw TCP server
// plays along, so that it too has accepted each connection when open returns.
func open(port, n int, pack bool) (*driver, error) {
	d := &driver{buf: make([]byte, 256*kib), clients: make([]client, 0, n), start: time.Now()}
	var err error
	if d.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for range n {
		fd, err := dial(port)
		if err == nil {
			err = upgrade(fd, pack)
		}
		if err == nil {
			err = syscall.SetNonblock(fd, true)
		}
		if err != nil {
			d.close()
			return nil, fmt.Errorf("connection %d: %w", len(d.clients)+1, err)
		}
		d.clients = append(d.clients, client{fd: fd})
		if err := d.watch(syscall.EPOLL_CTL_ADD, len(d.clients)-1, syscall.EPOLLIN); err != nil {
			d.close()
			return nil, err
		}
	}
	return d, nil
}

// dial makes a blocking connection to loopback. On failure the descriptor is
// closed.
func dial(port int) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1),
		// A close without TIME_WAIT: ports must not run out.
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: int64(patience / time.Second)}),
		syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// The handshake of RFC 6455 §1.3 and the closing handshake of §5.5.1.
const (
	opening = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
	accepted = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
	answer   = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + accepted + "\r\n\r\n"
	closeFrame = "\x88\x82\x01\x02\x03\x04\x02\xEA" // 1000, masked with 1, 2, 3, 4
	closeReply = "\x88\x02\x03\xE8"
)

// offer is the header line that asks for compression.
const offer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"

// checkAnswer looks at a complete response head.
func checkAnswer(b []byte) error {
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 101 ")) || !bytes.Contains(b, []byte(accepted)) {
		return fmt.Errorf("the server answers the handshake with %.200q", b)
	}
	return nil
}

// upgrade makes a blocking connection a WebSocket, with compression if the server can.
func upgrade(fd int, pack bool) error {
	request := opening
	if pack {
		request = strings.TrimSuffix(opening, "\r\n") + offer + "\r\n"
	}
	if _, err := syscall.Write(fd, []byte(request)); err != nil {
		syscall.Close(fd)
		return err
	}
	var head [4096]byte
	n := 0
	for !bytes.HasSuffix(head[:n], []byte("\r\n\r\n")) {
		k, err := syscall.Read(fd, head[n:])
		if err == syscall.EINTR {
			continue
		}
		if err == nil && k == 0 {
			err = fmt.Errorf("the server hangs up after %q", head[:n])
		}
		if err != nil {
			syscall.Close(fd)
			return err
		}
		n += k
	}
	err := checkAnswer(head[:n])
	if err != nil {
		syscall.Close(fd)
	}
	return err
}

func (d *driver) close() {
	for i := range d.clients {
		syscall.Close(d.clients[i].fd)
	}
	syscall.Close(d.epoll)
}

func (d *driver) watch(op, i int, events uint32) error {
	return syscall.EpollCtl(d.epoll, op, d.clients[i].fd, &syscall.EpollEvent{Events: events, Fd: int32(i)})
}

// wait returns how many events there are. It spins: a driver that slept would
// be woken by the server's write, at the server's cost.
func (d *driver) wait(timeout time.Duration) (int, error) {
	if d.spin || timeout <= 0 {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(d.epoll), uintptr(unsafe.Pointer(&d.events)), uintptr(len(d.events)), 0, 0, 0)
		if errno != 0 && errno != syscall.EINTR {
			return 0, errno
		}
		if errno != 0 {
			n = 0
		}
		return int(n), nil
	}
	n, err := syscall.EpollWait(d.epoll, d.events[:], max(1, int(timeout/time.Millisecond)))
	if err == syscall.EINTR {
		return 0, nil
	}
	return n, err
}

func rawRead(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

func rawWrite(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

// send writes the request on client i.
func (d *driver) send(i int) error {
	d.outstanding++
	return d.push(i, d.request)
}

// push writes b, and what the socket does not take when it is writable.
func (d *driver) push(i int, b []byte) error {
	c := &d.clients[i]
	waiting := len(c.left) > 0
	n, errno := rawWrite(c.fd, b)
	switch errno {
	case 0:
	case syscall.EAGAIN, syscall.EINTR:
		n = 0
	default:
		return fmt.Errorf("write: %w", errno)
	}
	c.left = b[n:]
	if now := len(c.left) > 0; now != waiting {
		var events uint32 = syscall.EPOLLIN
		if now {
			events |= syscall.EPOLLOUT
		}
		return d.watch(syscall.EPOLL_CTL_MOD, i, events)
	}
	return nil
}

// receive reads once from client i, compares with what must come, and returns
// how many replies became complete.
func (d *driver) receive(i int) (int, error) {
	c := &d.clients[i]
	n, errno := rawRead(c.fd, d.buf)
	switch {
	case errno == syscall.EAGAIN || errno == syscall.EINTR:
		return 0, nil
	case errno != 0:
		return 0, fmt.Errorf("read: %w", errno)
	case n == 0:
		return 0, errors.New("the server hangs up")
	}
	done := 0
	for b := d.buf[:n]; len(b) > 0; {
		if c.at == 0 && (c.part.on || b[0]&0x80 == 0 && d.reply[0]&0x80 != 0 && d.messages == 1) {
			k, whole, err := c.part.take(b, d.reply[0]&0x0F, d.payload)
			if err != nil {
				return 0, fmt.Errorf("reply %d: %w", c.seen+1, err)
			}
			if b = b[k:]; whole {
				c.seen++
				done++
				d.complete++
				d.outstanding--
			}
			continue
		}
		k := min(len(b), len(d.reply)-c.at)
		// Large replies are compared in full now and then, the others by their
		// length and header only.
		if k > 4*kib && c.seen%16 != 0 {
			if k = min(k, 64); c.at > 0 {
				k = 0
			}
		}
		if !bytes.Equal(b[:k], d.reply[c.at:c.at+k]) {
			return 0, fmt.Errorf("reply %d differs from what was sent, %d bytes in: %.40q", c.seen+1, c.at, b)
		}
		k = min(len(b), len(d.reply)-c.at)
		b = b[k:]
		if c.at += k; c.at == len(d.reply) {
			c.at = 0
			c.seen++
			done++
			d.complete++
			d.outstanding--
		}
	}
	return done, nil
}

// take takes bytes of a reply in fragments from the start of b, whose payload
// must be p, and returns how many, and whether the reply is whole.
func (f *fragments) take(b []byte, opcode byte, p []byte) (n int, whole bool, err error) {
	f.on = true
	for f.left == 0 && n < len(b) {
		f.head[f.n] = b[n]
		f.n++
		n++
		size := 2
		switch {
		case f.n < 2:
			continue
		case f.head[1] == 126:
			size = 4
		case f.head[1] == 127:
			size = 10
		}
		if f.n < size {
			continue
		}
		if f.more {
			opcode = 0 // §5.4: continuation
		}
		if f.head[0]&0x7F != opcode || f.head[1]&0x80 != 0 {
			return 0, false, fmt.Errorf("a fragment begins with %x", f.head[:f.n])
		}
		f.fin, f.more, f.n = f.head[0]&0x80 != 0, true, 0
		switch size {
		case 2:
			f.left = int(f.head[1])
		case 4:
			f.left = int(binary.BigEndian.Uint16(f.head[2:]))
		default:
			f.left = int(binary.BigEndian.Uint64(f.head[2:]))
		}
		break
	}
	k := min(f.left, len(b)-n)
	if k > len(p)-f.at || !bytes.Equal(b[n:n+k], p[f.at:f.at+k]) {
		return 0, false, fmt.Errorf("a fragment differs from what was sent, %d bytes in", f.at)
	}
	f.left -= k
	f.at += k
	n += k
	if f.n > 0 || f.left > 0 || !f.fin {
		return n, false, nil
	}
	if f.at != len(p) {
		return 0, false, fmt.Errorf("%d bytes come back, not %d", f.at, len(p))
	}
	*f = fragments{}
	return n, true, nil
}

// now is the time since the driver opened.
func (d *driver) now() time.Duration { return time.Since(d.start) }

// step waits for events and handles them; answered is called for every client
// with a new complete reply. It fails when nothing has come since `last` for
// too long.
func (d *driver) step(timeout time.Duration, last *time.Duration, answered func(i, replies int) error) error {
	n, err := d.wait(timeout)
	if err != nil {
		return err
	}
	now := d.now()
	if n == 0 && d.outstanding > 0 && now-*last > patience {
		return fmt.Errorf("%d requests got no reply within %v", d.outstanding, patience)
	}
	if n > 0 || d.outstanding == 0 {
		*last = now
	}
	for _, ev := range d.events[:n] {
		i := int(ev.Fd)
		if ev.Events&syscall.EPOLLOUT != 0 && len(d.clients[i].left) > 0 {
			if err := d.push(i, d.clients[i].left); err != nil {
				return err
			}
		}
		if ev.Events&^syscall.EPOLLOUT == 0 {
			continue
		}
		replies, err := d.receive(i)
		if err != nil {
			return err
		}
		if replies > 0 {
			if err := answered(i, replies); err != nil {
				return err
			}
		}
	}
	return nil
}

// echo keeps one request in flight on every client for a while, then waits for
// the last replies. It returns the number of messages that came back.
func (d *driver) echo(window time.Duration) (int, error) {
	begin, last := d.complete, d.now()
	end := last + window
	for i := range d.clients {
		if err := d.send(i); err != nil {
			return 0, err
		}
	}
	again := func(i, _ int) error {
		if last < end {
			return d.send(i)
		}
		return nil
	}
	for d.outstanding > 0 {
		if err := d.step(time.Second, &last, again); err != nil {
			return 0, err
		}
	}
	return (d.complete - begin) * d.messages, nil
}

// pace sends rate requests a second, one client after the other, whether or
// not earlier ones were answered, and notes how long each took.
func (d *driver) pace(window time.Duration, rate int) (int, error) {
	begin, last := d.complete, d.now()
	first, end := last, last+window
	interval := time.Second / time.Duration(rate)
	d.latencies = d.latencies[:0]
	timed := func(i, replies int) error {
		now, q := d.now(), &d.sent[i]
		for range replies {
			if q.head == q.tail {
				return errors.New("a reply that nobody asked for")
			}
			d.latencies = append(d.latencies, now-q.at[q.head%uint(len(q.at))])
			q.head++
		}
		return nil
	}
	for k := 0; ; {
		now := d.now()
		for due := first + time.Duration(k)*interval; due <= now && due < end; due = first + time.Duration(k)*interval {
			i := k % len(d.clients)
			q := &d.sent[i]
			if q.tail-q.head == uint(len(q.at)) {
				return 0, fmt.Errorf("the server cannot take %d messages a second", rate)
			}
			if len(d.clients[i].left) > 0 {
				break // its turn comes when the socket takes more
			}
			// From when it was due: a driver that is late must not make the
			// server look quick.
			q.at[q.tail%uint(len(q.at))] = due
			q.tail++
			k++
			if err := d.send(i); err != nil {
				return 0, err
			}
		}
		if now >= end && d.outstanding == 0 {
			return d.complete - begin, nil
		}
		if err := d.step(time.Millisecond, &last, timed); err != nil {
			return 0, err
		}
	}
}

// broadcast sends on the first client, waits until every client has the
// message, and sends again. It returns the number of deliveries.
func (d *driver) broadcast(window time.Duration) (int, error) {
	begin, last := d.complete, d.now()
	end := last + window
	none := func(int, int) error { return nil }
	for last < end {
		if err := d.send(0); err != nil {
			return 0, err
		}
		d.outstanding += len(d.clients) - 1
		for d.outstanding > 0 {
			if err := d.step(time.Second, &last, none); err != nil {
				return 0, err
			}
		}
	}
	return d.complete - begin, nil
}
