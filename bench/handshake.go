//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// A greeting is one connection of the handshake workload: it connects, sends
// the request head, reads the answer, sends a close frame, reads the one that
// comes back, and then the end.
type greeting struct {
	fd      int
	n       int
	closing bool
	got     [1024]byte
}

// greet runs n such connections at a time for a while and returns how many went
// all the way.
func greet(port, n int, spin bool, window time.Duration) (int, error) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return 0, err
	}
	d := &driver{epoll: epoll, spin: spin, start: time.Now()}
	all := make([]greeting, n)
	for i := range all {
		all[i].fd = -1
	}
	defer func() {
		for i := range all {
			if all[i].fd >= 0 {
				syscall.Close(all[i].fd)
			}
		}
		syscall.Close(epoll)
	}()
	open, complete, last := 0, 0, time.Duration(0)
	for i := range all {
		if err := all[i].begin(epoll, i, port); err != nil {
			return 0, err
		}
		open++
	}
	for open > 0 {
		k, err := d.wait(time.Second)
		if err != nil {
			return 0, err
		}
		now := d.now()
		if k > 0 {
			last = now
		} else if now-last > patience {
			return 0, fmt.Errorf("%d handshakes got no answer within %v", open, patience)
		}
		for _, ev := range d.events[:k] {
			i := int(ev.Fd)
			over, err := all[i].step()
			if err != nil {
				return 0, err
			}
			if !over {
				continue
			}
			complete++
			open--
			if now < window {
				if err := all[i].begin(epoll, i, port); err != nil {
					return 0, err
				}
				open++
			}
		}
	}
	return complete, nil
}

// begin connects and sends the request. A connection over loopback is there
// when connect returns, before the server has accepted it.
func (g *greeting) begin(epoll, i, port int) error {
	fd, err := dial(port)
	if err != nil {
		return err
	}
	*g = greeting{fd: fd}
	// An ordinary close, as a program does it.
	if err := syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{}); err != nil {
		return err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}); err != nil {
		return err
	}
	_, err = syscall.Write(fd, []byte(opening))
	return err
}

// step reads once, and reports whether the connection is over.
func (g *greeting) step() (bool, error) {
	if g.n == len(g.got) {
		return false, fmt.Errorf("the server says more than %d bytes: %.200q", g.n, g.got[:])
	}
	n, errno := rawRead(g.fd, g.got[g.n:])
	switch {
	case errno == syscall.EAGAIN || errno == syscall.EINTR:
		return false, nil
	case errno != 0:
		return false, fmt.Errorf("after %.200q: %w", g.got[:g.n], errno)
	case n == 0 && !g.closing:
		return false, fmt.Errorf("the server hangs up after %.200q", g.got[:g.n])
	case n == 0:
		if !strings.HasPrefix(string(g.got[:g.n]), closeReply) && !bytes.HasPrefix(g.got[:g.n], []byte{0x88}) {
			return false, fmt.Errorf("the server answers the close frame with %x", g.got[:g.n])
		}
		err := syscall.Close(g.fd)
		g.fd = -1
		return true, err
	}
	g.n += n
	if g.closing || !bytes.HasSuffix(g.got[:g.n], []byte("\r\n\r\n")) {
		return false, nil
	}
	if err := checkAnswer(g.got[:g.n]); err != nil {
		return false, err
	}
	g.closing, g.n = true, 0
	_, err := syscall.Write(g.fd, []byte(closeFrame))
	return false, err
}

// openTLS makes n connections over TLS, each after one message.
func openTLS(port, n int, request, reply []byte) (closeAll func(), err error) {
	var all []net.Conn
	closeAll = func() {
		for _, c := range all {
			c.Close()
		}
	}
	// The certificate is the harness's own, and so is the server: who it is
	// need not be checked.
	config := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: nil}
	for range n {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", fmt.Sprintf("127.0.0.1:%d", port), config)
		if err == nil {
			all = append(all, c)
			c.NetConn().(*net.TCPConn).SetLinger(0)
			c.SetDeadline(time.Now().Add(patience))
			err = firstMessage(c, request, reply)
		}
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("connection %d: %w", len(all)+1, err)
		}
	}
	return closeAll, nil
}

// firstMessage upgrades c, sends the request and waits for the reply.
func firstMessage(c net.Conn, request, reply []byte) error {
	if _, err := io.WriteString(c, opening); err != nil {
		return err
	}
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, b[0]) {
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
	}
	if err := checkAnswer(head); err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	got := make([]byte, len(reply))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, reply) {
		return errors.New("the reply differs from what was sent")
	}
	return nil
}
