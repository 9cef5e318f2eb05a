package peerws

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// From a transport to an open socket: the listening side of handshake.go with
// its connection, its deadline and the program's say.

func (l *WebSocketListener) setHandshakeDeadline(conn net.Conn) {
	if d := l.set.handshakeTimeout; d > 0 {
		conn.SetDeadline(time.Now().Add(d))
	}
}

// handshake takes one transport from its first byte to an open socket, a web
// request, or a refusal. It runs on a goroutine of its own, whose grown stack
// dies with it.
func (l *WebSocketListener) handshake(conn net.Conn, key ipKey, over func()) {
	defer over()
	if c := l.negotiate(conn, key, over); c != nil {
		l.handOver(c)
	}
}

// negotiate is the handshake up to the socket. It returns nil if the transport
// became none. What it borrows is given back before the program is called.
func (l *WebSocketListener) negotiate(conn net.Conn, key ipKey, over func()) *WebSocket {
	b := newBuffer(l.maxHead)
	defer b.free()
	var err error
	if l.tls != nil {
		conn, err = l.sniff(conn, b)
	}
	var size int
	if err == nil {
		size, err = readHead(conn, b, l.maxHead)
	}
	h := newHead()
	defer h.free()
	var secure *tls.ConnectionState
	if err == nil {
		if r := h.parseRequest(b.b[:size]); r != nil {
			err = r
		}
		secure = tlsState(conn)
		h.secure = secure != nil
	}
	if err == nil && !h.wantsUpgrade() {
		if l.heard(h.target) {
			io.WriteString(conn, loopAnswer)
			socketOf(conn).Close()
			l.leave(key)
			return nil
		}
		err = errNoUpgrade
		if string(h.method) != http.MethodGet && string(h.method) != http.MethodHead {
			err = errMethod
		}
		if l.web != nil {
			r := l.reserve()
			if r == nil {
				conn.SetDeadline(time.Time{})
				read := append([]byte(nil), b.b...)
				over()
				l.web.hand(conn, key, read)
				return nil
			}
			err = r
		}
	}
	var o opening
	if err == nil {
		var r *refusal
		if o, r = checkRequest(h, l.policy, l.protocols); r == nil {
			r = l.reserve()
		}
		if r != nil {
			err = r
		}
	}
	if err != nil {
		l.refuse(conn, err)
		l.leave(key)
		return nil
	}
	req := &request{host: o.host, target: o.target, head: append([]byte(nil), b.b[:size]...), tls: secure}
	var early *buffer
	if rest := b.b[size:]; len(rest) > 0 {
		early = newBuffer(len(rest))
		early.b = append(early.b, rest...)
	}
	return l.upgrade(conn, req.head, early, &o, req, key, over)
}

// refuse answers a request that is not accepted, if it is one.
func (l *WebSocketListener) refuse(conn net.Conn, err error) {
	l.countRefused()
	r, ok := err.(*refusal)
	if !ok {
		l.log.Debug("opening handshake failed", "remote", conn.RemoteAddr(), "err", err)
		socketOf(conn).Close()
		return
	}
	l.log.Debug("request refused", "remote", conn.RemoteAddr(), "status", r.status, "why", r.text)
	if r == errClosing { // Close drops, and does not wait
		socketOf(conn).Close()
		return
	}
	linger(conn, r.response())
}

// upgrade authorizes and answers an accepted request and returns the socket, nil
// if it was refused after all. over is called when the transport is no longer in
// its handshake.
func (l *WebSocketListener) upgrade(conn net.Conn, raw []byte, early *buffer, o *opening, req *request, key ipKey, over func()) *WebSocket {
	c := &WebSocket{set: l.set, owner: l, protocol: o.protocol, secure: req.tls != nil, ipKey: key}
	c.lf.req = req
	err := l.authorized(req, conn.RemoteAddr())
	if err == nil {
		var answer []byte
		if answer, err = o.answer(raw, l.header); err == nil {
			_, err = conn.Write(answer)
		}
	}
	if err != nil {
		early.free()
		l.unreserve() // before the peer is given time to read why
		l.refuse(conn, err)
		l.leave(key)
		return nil
	}
	c.rd.head = true
	conn = wrapTLS(conn)
	c.open(conn, false, early)
	l.mu.Lock()
	l.sockets[c] = struct{}{} // before over: Shutdown must see one of the two
	l.stats.Accepted++
	l.clock.wind()
	l.mu.Unlock()
	over()
	l.arrivedFrom(conn, req.host)
	c.mu.Lock()
	if !c.aborted.Load() {
		conn.SetDeadline(time.Time{}) // now that Close no longer sets it
		beginTLS(conn, l.set.writeTimeout)
	}
	c.mu.Unlock()
	return c
}

// authorized asks the program.
func (l *WebSocketListener) authorized(req *request, remote net.Addr) error {
	if l.authorize == nil {
		return nil
	}
	err := l.authorize(req.http(remote.String()))
	req.asked = false // its headers need not stay for that
	if err == nil {
		return nil
	}
	r := &refusal{status: http.StatusForbidden, text: "Not allowed."}
	if e, ok := errors.AsType[*RejectError](err); ok {
		if e.Status >= 400 && e.Status <= 599 {
			r.status = e.Status
		}
		r.text = orDefault(e.Body, r.text)
		if err := checkHeader("response header", e.Header, "Content-Type"); err != nil {
			l.log.Warn("RejectError.Header not sent", "err", err)
		} else {
			r.header = e.Header
		}
	}
	return r
}

// handOver gives an open socket to the program, or lets it wait.
func (l *WebSocketListener) handOver(c *WebSocket) {
	l.mu.Lock()
	f := l.onConnection
	closed := l.state == ListenerClosed
	if f == nil && !closed {
		l.waiting = append(l.waiting, c)
		l.signalArrived()
	}
	l.mu.Unlock()
	switch {
	case closed:
		c.CloseWith(StatusGoingAway, "")
		go c.run()
	case f != nil:
		f(c)
		go c.run() // a fresh goroutine has a small stack
	}
}
