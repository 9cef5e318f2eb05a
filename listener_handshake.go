package peerws

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"
)

// From a transport to an open socket: the listening side of handshake.go with
// its connection, its deadline and the program's say.

// handshake takes one transport from its first byte to an open socket, a web
// request, or a refusal. It may take its time: it runs on a worker of the engine, or on
// a goroutine of its own.
func (a *arrival) handshake() {
	l := a.l
	if err := a.locate(); err != nil {
		l.turnAway(a.conn, err)
		a.end()
		return
	}
	c := l.negotiate(a)
	a.end()
	if c != nil {
		l.handOver(c)
	}
}

// firstHead is the room a head gets to begin with. Most programs' need no more,
// browsers' may.
const firstHead = 1 << 10

// negotiate is the handshake up to the socket, in three steps: the request is read,
// checked, and answered. It returns nil if the transport became no socket: it has
// been refused, or somebody else has it. What negotiate borrows is given back
// before the program is called.
func (l *WebSocketListener) negotiate(a *arrival) *WebSocket {
	b := newBuffer(min(firstHead, l.maxHead))
	defer b.free()
	h := newHead()
	defer h.free()
	conn, size, err := l.receive(a, b, h)
	if err != nil {
		return l.refuseHead(a, conn, b, err)
	}
	if !h.wantsUpgrade() {
		if err := l.serveWeb(a, conn, b, h); err != nil {
			return l.refuseHead(a, conn, b, err)
		}
		return nil
	}
	if a.proxied {
		if err := a.identifyBy(h); err != nil {
			return l.refuseHead(a, conn, b, err)
		}
	}
	if l.mustBeSecure(a, h) {
		return l.refuseHead(a, conn, b, errPlain)
	}
	o, err := l.check(h)
	if err != nil {
		return l.refuseHead(a, conn, b, err)
	}
	if err := l.reserve(); err != nil {
		return l.refuseHead(a, conn, b, err)
	}
	c := l.newSocket(&o, h.secure, a.key)
	c.setRemote(a.remote)
	c.life.requestHead = h.keep(size)
	if rest := b.b[size:]; len(rest) > 0 {
		c.in = newBuffer(len(rest))
		c.in.b = append(c.in.b, rest...)
	}
	return l.upgrade(a, conn, c, &o, nil)
}

// receive reads the request's head into b, through TLS if it comes so, and takes it
// apart into h. conn is what the answer goes to, also with an error.
func (l *WebSocketListener) receive(a *arrival, b *buffer, h *head) (conn net.Conn, size int, err error) {
	conn = a.conn
	if a.proxied {
		if err := a.identify(b); err != nil {
			return conn, 0, err
		}
	}
	if l.tls != nil {
		if conn, err = l.sniff(conn, b); err != nil {
			return conn, 0, err
		}
	}
	if size, err = readRequestHead(conn, b, l.maxHead); err != nil {
		return conn, 0, err
	}
	a.heard()
	if t := tlsOf(conn); t != nil {
		h.secure, h.ours = true, t.ConnectionState().ServerName
	}
	return conn, size, h.parseRequest(b.b[:size])
}

// serveWeb deals with a request that asks for no WebSocket: our own, by which the
// way through the router is tried, or one for ListenConfig.HTTP. An error is the
// answer to it.
func (l *WebSocketListener) serveWeb(a *arrival, conn net.Conn, b *buffer, h *head) error {
	switch {
	case l.heard(h.target):
		io.WriteString(conn, loopAnswer)
		transportOf(conn).Close()
		l.leave(a.key)
		return nil
	case l.mustBeSecure(a, h):
		return l.plainPage(h)
	case l.web != nil:
		if err := l.reserve(); err != nil {
			return err
		}
		conn, err := a.ordinary(conn)
		if err != nil {
			l.unreserve()
			l.leave(a.key)
			return nil
		}
		wc := &webConn{earlyConn: earlyConn{conn, bytes.Clone(b.b)}, owner: l, key: a.key, remote: a.remote, proxied: a.proxied}
		if a.over() { // just now
			a.conn.SetDeadline(time.Time{})
		}
		l.web.hand(wc)
		return nil
	case string(h.method) != http.MethodGet && string(h.method) != http.MethodHead:
		return errMethod
	}
	return errNoUpgrade
}

// mustBeSecure reports whether a request needs TLS and has none. Those that a proxy
// brings have been its matter.
func (l *WebSocketListener) mustBeSecure(a *arrival, h *head) bool {
	return l.requireTLS && !h.secure && !a.remote.IsValid()
}

// plainPage is the answer to a request for a page that came without TLS: where the page
// is, if there is one.
func (l *WebSocketListener) plainPage(h *head) error {
	host, n := h.get("Host")
	read := string(h.method) == http.MethodGet || string(h.method) == http.MethodHead
	if l.web == nil || !read || n != 1 || !validHost(host) || !bytes.HasPrefix(h.target, []byte("/")) {
		return errPlain
	}
	to := "https://" + string(host) + string(h.target)
	return &rejection{&refusal{http.StatusPermanentRedirect, http.Header{"Location": {to}}, "This page is at " + to}, errPlain}
}

// refuseHead refuses the request whose head is in b, as far as that has come.
func (l *WebSocketListener) refuseHead(a *arrival, conn net.Conn, b *buffer, err error) *WebSocket {
	method := http.MethodGet
	if bytes.HasPrefix(b.b, []byte("HEAD ")) {
		method = http.MethodHead
	}
	l.refuse(a, conn, method, err, nil)
	l.leave(a.key)
	return nil
}

// check is checkRequest for this listener. With Respond set it is Respond's to say
// whether one of the subprotocols offered is spoken.
func (l *WebSocketListener) check(h *head) (opening, error) {
	o, err := checkRequest(h, l.policy, l.protocols)
	if err == errNoProtocol && l.respond != nil {
		o.foreign, err = true, nil
	}
	if err == nil {
		o.deflate, o.compress = acceptDeflate(h, l.set.compress)
	}
	return o, originRefused(err, h)
}

// newSocket makes the socket of an accepted request, without its transport.
func (l *WebSocketListener) newSocket(o *opening, secure bool, key ipKey) *WebSocket {
	c := &WebSocket{set: l.set, owner: l, ipKey: key}
	c.read.protocol = int16(o.protocol)
	c.read.headHeld = true
	if o.compress {
		c.core.limits = l.set.compress.agreed(o.deflate, false)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Most peers have asked for the same, so most sockets can share a string.
	scheme := "ws://"
	if secure {
		scheme = "wss://"
	}
	from := len(scheme)
	to := from + len(o.host)
	if u := l.lastURL; len(u) != to+len(o.target) || u[:from] != scheme || u[from:to] != string(o.host) || u[to:] != string(o.target) {
		l.lastURL = scheme + string(o.host) + string(o.target)
	}
	c.url = l.lastURL
	return c
}

// refuse answers a request that is not accepted, if it is one, with the lines of
// outer in the answer.
func (l *WebSocketListener) refuse(a *arrival, conn net.Conn, method string, err error, outer []byte) {
	remote := func() string { return a.remoteText(conn) }
	l.countRefused(remote, err, a.reason(err))
	r, cause := refusalOf(err)
	if r == nil {
		l.logFailure(remote, err)
		transportOf(conn).Close()
		return
	}
	l.logRefusal(remote, r.status, cause)
	if r == errClosing { // Close drops, and does not wait
		transportOf(conn).Close()
		return
	}
	answer := r.responseTo(method, outer)
	if conn, err = a.ordinary(conn); err == nil {
		linger(conn, answer, a.lingers)
	}
}

// upgrade authorizes and answers an accepted request, with the lines of outer in
// the answer, gives c its transport and returns it, or nil if the request was
// refused after all. a is over then.
func (l *WebSocketListener) upgrade(a *arrival, conn net.Conn, c *WebSocket, o *opening, outer []byte) *WebSocket {
	early := c.in
	c.in = nil
	c.conn = conn // for Request
	err := l.authorized(c)
	var lines []byte
	var protocol string
	if err == nil {
		lines, protocol, err = l.answer(c, o, outer)
	}
	if err == nil {
		b := newBuffer(answerSize + len(lines))
		b.b = o.appendAnswer(b.b, lines, protocol)
		a.take()
		_, err = conn.Write(b.b)
		b.free()
	}
	if err != nil {
		early.free()
		l.unreserve() // before the peer is given time to read why
		l.refuse(a, conn, http.MethodGet, err, outer)
		l.leave(a.key)
		return nil
	}
	conn = wrapTLS(conn)
	c.open(conn, false, early)
	l.mu.Lock()
	c.slot = int32(len(l.sockets))
	l.sockets = append(l.sockets, c) // before over: Shutdown must see one of the two
	l.stats.Accepted++
	l.clock.wind()
	l.mu.Unlock()
	cut := a.over()
	if !a.remote.IsValid() { // a proxy's peer says nothing of the way from outside
		host, _ := c.hostAndTarget()
		l.arrivedFrom(conn, host)
	}
	if l.trace != nil && l.trace.Opened != nil {
		l.trace.Opened(c)
	}
	if !cut && !c.secure() {
		return c
	}
	c.mu.Lock()
	if !c.severed() {
		if cut { // just now
			a.conn.SetDeadline(time.Time{})
		}
		beginTLS(conn, l.set.writeTimeout)
	}
	c.mu.Unlock()
	return c
}

// A stranger can cause as many refusals as he likes: there is at most one record
// in refusalPause, and a Warn for each of the first originsMost pages, with what
// would let them in.
const (
	refusalPause = time.Second
	originsMost  = 16
)

// A sparing counts what is not logged because something like it just was. Guarded by
// WebSocketListener.mu.
type sparing struct {
	last   time.Time
	others int // since then
}

// spare reports whether a record may be made, and how many were not since the last one.
func (l *WebSocketListener) spare(s *sparing) (others int, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(s.last) < refusalPause {
		s.others++
		return 0, false
	}
	others = s.others
	s.last, s.others = now, 0
	return others, true
}

// logRefusal tells the program of a request that is refused, or counts it for the
// next record.
func (l *WebSocketListener) logRefusal(remote func() string, status int, why error) {
	if !l.log.Enabled(context.Background(), slog.LevelWarn) {
		return
	}
	if e, ok := why.(originError); ok && l.newOrigin(string(e)) {
		l.log.Warn("web page refused", "remote", remote(), "status", status, "why", why)
		return
	}
	if others, ok := l.spare(&l.refusals); ok {
		l.log.Info("request refused", "remote", remote(), "status", status, "why", why, "others", others)
	}
}

// newOrigin reports whether the program has not been told of that page yet.
func (l *WebSocketListener) newOrigin(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.originsTold) >= originsMost || slices.Contains(l.originsTold, text) {
		return false
	}
	l.originsTold = append(l.originsTold, text)
	return true
}

// logFailure tells the program of an opening handshake that has failed without an answer.
func (l *WebSocketListener) logFailure(remote func() string, err error) {
	if !l.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	if others, ok := l.spare(&l.failures); ok {
		l.log.Debug("opening handshake failed", "remote", remote(), "err", err, "others", others)
	}
}

// logMistake tells the program of an answer of its own that cannot be sent.
func (l *WebSocketListener) logMistake(text string, err error) {
	if others, ok := l.spare(&l.mistakes); ok {
		l.log.Warn(text, "err", err, "others", others)
	}
}

// logClosed tells the program how a socket ended.
func (l *WebSocketListener) logClosed(c *WebSocket, ev CloseEvent) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("connection closed", "remote", c.RemoteAddr(), "by", ev.Initiator, "code", int(ev.Code), "reason", ev.Reason, "clean", ev.WasClean, "err", ev.Err)
	}
}

// authorized asks the program.
func (l *WebSocketListener) authorized(c *WebSocket) error {
	if l.authorize == nil {
		return nil
	}
	return l.rejected(l.authorize(l.requestOf(c)))
}

// requestOf returns the request of a socket that is not open yet.
func (l *WebSocketListener) requestOf(c *WebSocket) *http.Request {
	remote := c.remoteAddr().String()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requestLocked(remote)
	if x := c.life.rare; x != nil {
		x.parsed, x.request = x.request, nil // its headers need not stay for that
	}
	return r
}

// rejected is the refusal of a request to which the program said err.
func (l *WebSocketListener) rejected(err error) error {
	if err == nil {
		return nil
	}
	r := &refusal{status: http.StatusForbidden, text: "Not allowed."}
	if e, ok := errors.AsType[*RejectError](err); ok {
		if e.Status >= 300 && e.Status <= 599 {
			r.status = e.Status
		}
		r.text = orDefault(e.Body, r.text)
		if err := checkHeader("response header", e.Header, "Content-Type"); err != nil {
			l.logMistake("RejectError.Header not sent", err)
		} else {
			r.header = e.Header
		}
	}
	return &rejection{r, err}
}

// A rejection is a refusal with a cause that the log is told and the peer is not: the
// program's, or in words of our own.
type rejection struct {
	*refusal
	cause error
}

// refusalOf returns what err tells the peer, nil if nothing, and the log.
func refusalOf(err error) (r *refusal, cause error) {
	switch x := err.(type) {
	case *refusal:
		return x, x
	case *rejection:
		return x.refusal, x.cause
	}
	return nil, err
}

// handOver gives an open socket to the program, or lets it wait.
func (l *WebSocketListener) handOver(c *WebSocket) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("connection opened", "remote", c.RemoteAddr(), "url", c.URL(), "protocol", c.Protocol())
	}
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
		l.dismiss(c)
	case f != nil:
		c.offer(f)
	}
}
