package peerws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/peerws/peerws/nat"
)

// ListenerState is the state of a [WebSocketListener], numbered as in the
// proposal of 2009. It never goes backwards.
type ListenerState uint32

const (
	// ListenerOpening: connections are accepted already, and the gateway is
	// being asked. Next: ListenerListening or ListenerClosed.
	ListenerOpening ListenerState = 0
	// ListenerListening: asking the gateway has settled, well or badly;
	// Reachability says which. Next: ListenerClosed.
	ListenerListening ListenerState = 1
	// ListenerClosed: nothing is accepted any more. Last state.
	ListenerClosed ListenerState = 2
)

func (s ListenerState) String() string {
	switch s {
	case ListenerOpening:
		return "OPENING"
	case ListenerListening:
		return "LISTENING"
	case ListenerClosed:
		return "CLOSED"
	}
	return "ListenerState(" + strconv.Itoa(int(s)) + ")"
}

// A ListenConfig sets a listener up. Its zero value is good: everything at its
// default, and the gateway is not touched. For every number and time zero means
// the default, negative means off or unlimited. It is copied when the listener
// starts.
type ListenConfig struct {
	// Address is the host name or IP address to bind, "" for every address of
	// this machine, IPv4 and IPv6.
	Address string

	// OnConnection runs once for each connection, on a goroutine of the
	// library, for different connections at the same time. Nothing is read from
	// the peer before it returns.
	OnConnection func(*WebSocket)

	// NAT asks the gateway to forward the port. nil: no mapping. nat.Any() asks
	// in every protocol.
	NAT nat.Mapper

	// TLSConfig makes the port speak TLS too, wss and https: a connection whose
	// first byte begins TLS is TLS, any other stays plain. Its Certificates,
	// GetCertificate or GetConfigForClient choose the certificate; pages reach
	// the port without a browser's warning only by the names and addresses that
	// stand in it. Peers that connect by an address send no server name. HTTP/1.1
	// is all that is agreed on, and acme-tls/1 if NextProtos lists it. nil: no TLS.
	TLSConfig *tls.Config

	// HTTP answers requests that are no upgrade, on the same port. nil: they
	// get a small 426. Its requests have no time limit of their own once their
	// head has been read.
	HTTP http.Handler

	// Authorize decides about a request that is otherwise acceptable. An error
	// refuses it: a *RejectError with its own answer, any other with 403.
	// It runs within HandshakeTimeout, for different requests at the same time.
	Authorize func(*http.Request) error

	// ResponseHeader is added to the answer of every accepted handshake.
	ResponseHeader http.Header

	// AllowedOrigins lists origins of web pages that may connect, such as
	// "https://example.com"; "*" allows all. Pages that come from the very host
	// they connect to are allowed if that host is an IP address, localhost or
	// one of AllowedHosts. Programs, which send no Origin, are always allowed.
	AllowedOrigins []string

	// AllowedHosts lists names of this machine, without port.
	AllowedHosts []string

	HandshakeTimeout    time.Duration // for the whole opening handshake, TLS included; 0: 10 s
	MaxHeaderBytes      int           // of a request head; 0: 8 KiB; there is always a limit
	MaxHandshakes       int           // opening handshakes at a time; 0: 128
	MaxConnections      int           // sockets at a time, and connections of HTTP; 0: 1024
	MaxConnectionsPerIP int           // transports at a time from one IPv4 address or IPv6 /64; 0: 64, loopback not counted
	MaxMessageSize      int64         // bytes over all fragments of a message; 0: 1 MiB
	MaxFragments        int           // of a message; 0: 1024
	MaxBufferedAmount   int           // payload bytes queued on one socket; 0: 1 MiB
	WriteTimeout        time.Duration // without the peer taking anything; 0: 30 s
	PingInterval        time.Duration // silence of the peer before it is pinged, more or less; 0: 25 s
	PongTimeout         time.Duration // silence after a ping before the peer is given up; 0: 20 s
	CloseTimeout        time.Duration // of the closing handshake; 0: 5 s

	// Logger gets what happens. nil: silent.
	Logger *slog.Logger

	portable bool // test seam: never take the raw path
	sys      *sysOps
}

// A RejectError is returned by [ListenConfig.Authorize] to choose the answer.
type RejectError struct {
	Status int         // 400 to 599; else 403 is sent
	Header http.Header // added to the answer
	Body   string      // plain text
}

func (e *RejectError) Error() string {
	return fmt.Sprintf("rejected with status %d: %s", orDefault(e.Status, http.StatusForbidden), e.Body)
}

// A WebSocketListener accepts WebSocket connections on a port that the gateway
// in front of it forwards, if it can be brought to. All methods may be called
// from any goroutine.
type WebSocketListener struct {
	// Immutable.
	set        *settings
	ln         net.Listener // nil for one that is mounted in a server
	port       int
	protocols  []string
	tls        *tls.Config // nil without TLS on the port
	policy     *policy
	header     http.Header
	authorize  func(*http.Request) error
	maxHead    int
	maxConns   int
	maxPerIP   int
	loopback   bool // loopback counts for maxPerIP
	log        *slog.Logger
	handshakes *semaphore.Weighted
	lingers    *semaphore.Weighted
	web        *webServer     // nil without ListenConfig.HTTP
	manager    *nat.Manager   // nil without a gateway to ask
	ready      chan struct{}  // closed at LISTENING or CLOSED
	closing    chan struct{}  // closed when Close begins
	done       chan struct{}  // closed when it has ended
	accepting  chan struct{}  // closed when the accept loop is gone
	arrived    chan struct{}  // a token while a socket waits for Accept
	work       sync.WaitGroup // handshakes

	mu           sync.Mutex // leaf: guards what is below
	state        ListenerState
	onConnection func(*WebSocket)
	waiting      []*WebSocket // not handed over yet
	sockets      map[*WebSocket]struct{}
	pending      map[net.Conn]struct{} // in the opening handshake
	reserved     int                   // sockets and those about to be
	perIP        map[ipKey]int
	err          error
	stats        ListenerStats

	clock *clock // keepalive of all sockets, nil if off
	addrs addressBook
}

// ListenerStats counts what a listener has seen.
type ListenerStats struct {
	Open     int   // sockets now, those waiting for Accept included
	Accepted int64 // opening handshakes that succeeded
	Refused  int64 // transports and requests turned away, for whatever reason
}

// Listen binds the TCP port on every address of this machine, asks the gateway
// to forward it, and accepts WebSocket connections: the constructor of 2009.
// Port 0 lets the system choose. protocols are the subprotocols spoken, the
// preferred one first; a peer that offers only others is refused.
//
// It returns as soon as the port is bound, ListenerOpening while the gateway is
// being asked. Errors: a port that cannot be or is in use, a protocol that is
// no token or stands twice.
func Listen(port int, protocols ...string) (*WebSocketListener, error) {
	return ListenConfig{NAT: nat.Any()}.Listen(context.Background(), port, protocols...)
}

// Listen is like the function [Listen] with the options of c; ctx bounds the
// binding only.
func (c ListenConfig) Listen(ctx context.Context, port int, protocols ...string) (*WebSocketListener, error) {
	if port < 0 || port > 65535 {
		return nil, &SyntaxError{"port", strconv.Itoa(port), "must be 0 to 65535"}
	}
	l, err := c.prepare(protocols)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(c.Address, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("peerws: listen on port %d: %w", port, err)
	}
	l.start(ln, &c)
	return l, nil
}

// Serve is Listen on a transport listener that exists already, such as one from
// socket activation. The WebSocketListener owns it from now on. TLS is better
// left to TLSConfig than done by ln, of which URL and Addresses know nothing.
func (c ListenConfig) Serve(ln net.Listener, protocols ...string) (*WebSocketListener, error) {
	l, err := c.prepare(protocols)
	if err != nil {
		return nil, err
	}
	l.start(ln, &c)
	return l, nil
}

// prepare checks the options and makes a listener that is not bound yet.
func (c *ListenConfig) prepare(protocols []string) (*WebSocketListener, error) {
	if err := checkProtocols(protocols); err != nil {
		return nil, err
	}
	if err := checkHeader("response header", c.ResponseHeader); err != nil {
		return nil, err
	}
	hosts := c.AllowedHosts
	if _, err := netip.ParseAddr(c.Address); err != nil && c.Address != "" {
		if _, ok := hostName(c.Address); !ok {
			return nil, &SyntaxError{"address", c.Address, "must be a host name or an IP address, without a port"}
		}
		hosts = append(hosts[:len(hosts):len(hosts)], c.Address)
	}
	policy, err := newPolicy(c.AllowedOrigins, hosts)
	if err != nil {
		return nil, err
	}
	var secure *tls.Config
	if c.TLSConfig != nil {
		if secure, err = serverTLS(c.TLSConfig); err != nil {
			return nil, err
		}
	}
	l := &WebSocketListener{
		set: &settings{
			core: coreLimits{
				maxMessage:   orDefault(c.MaxMessageSize, defaultMaxMessageSize),
				maxFragments: orDefault(c.MaxFragments, defaultMaxFragments),
			},
			maxBuffered:      orDefault(c.MaxBufferedAmount, defaultMaxBufferedAmount),
			handshakeTimeout: orOff(c.HandshakeTimeout, defaultHandshakeTimeout),
			writeTimeout:     orOff(c.WriteTimeout, defaultWriteTimeout),
			closeTimeout:     orOff(c.CloseTimeout, defaultCloseTimeout),
			pingInterval:     orOff(c.PingInterval, defaultPingInterval),
			pongTimeout:      orOff(c.PongTimeout, defaultPongTimeout),
			portable:         c.portable,
			sys:              c.sys,
		},
		protocols:    append([]string(nil), protocols...),
		tls:          secure,
		policy:       policy,
		header:       c.ResponseHeader.Clone(),
		authorize:    c.Authorize,
		maxHead:      max(orDefault(c.MaxHeaderBytes, defaultMaxHeaderBytes), 512),
		maxConns:     orDefault(c.MaxConnections, 1024),
		maxPerIP:     orDefault(c.MaxConnectionsPerIP, 64),
		loopback:     c.MaxConnectionsPerIP > 0,
		log:          c.Logger,
		lingers:      semaphore.NewWeighted(16),
		ready:        make(chan struct{}),
		closing:      make(chan struct{}),
		done:         make(chan struct{}),
		accepting:    make(chan struct{}),
		arrived:      make(chan struct{}, 1),
		onConnection: c.OnConnection,
		sockets:      make(map[*WebSocket]struct{}),
		pending:      make(map[net.Conn]struct{}),
		perIP:        make(map[ipKey]int),
	}
	l.clock = newClock(l.set, l.eachSocket)
	if n := orDefault(c.MaxHandshakes, 128); n > 0 {
		l.handshakes = semaphore.NewWeighted(int64(n))
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	return l, nil
}

// start begins to accept on ln and to ask the gateway.
func (l *WebSocketListener) start(ln net.Listener, c *ListenConfig) {
	l.ln = ln
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		l.port = a.Port
	}
	if c.HTTP != nil {
		l.web = newWebServer(l, c)
		go l.web.serve()
	}
	l.startMapping(c)
	go l.acceptLoop()
}

// Port returns the TCP port that is bound, 0 if that is another server's
// ([ListenConfig.Handler]). Peers outside may need another: Addresses has it.
func (l *WebSocketListener) Port() int { return l.port }

// Addr returns the address that is bound, nil if that is another server's.
func (l *WebSocketListener) Addr() net.Addr {
	if l.ln == nil {
		return nil
	}
	return l.ln.Addr()
}

// ReadyState returns the state, a snapshot.
func (l *WebSocketListener) ReadyState() ListenerState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// setState moves the state forward to s and reports whether that was a move.
func (l *WebSocketListener) setState(s ListenerState) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state >= s {
		return false
	}
	if l.state == ListenerOpening {
		close(l.ready)
	}
	l.state = s
	return true
}

// Ready waits until asking the gateway has settled. It returns nil also when
// the gateway refused: Reachability tells. An error wraps net.ErrClosed, or is
// ctx's.
func (l *WebSocketListener) Ready(ctx context.Context) error {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if l.ReadyState() == ListenerClosed {
		return l.closedErr("ready")
	}
	return nil
}

// OnConnection sets what runs once for each connection, as in [ListenConfig].
// Connections that came before it was set are handed over now. nil makes them
// wait, for Accept.
func (l *WebSocketListener) OnConnection(f func(*WebSocket)) {
	l.mu.Lock()
	l.onConnection = f
	var waiting []*WebSocket
	if f != nil {
		waiting, l.waiting = l.waiting, nil
		l.signalArrived() // an Accept that waits is over
	}
	l.mu.Unlock()
	for _, c := range waiting {
		go func() {
			f(c)
			go c.run() // a fresh goroutine has a small stack
		}()
	}
}

// errHandled: two ways to take connections were mixed.
var errHandled = errors.New("peerws: accept: OnConnection is set, it gets the connections")

// Accept waits for the next connection. Connections wait for it, and count
// against MaxConnections meanwhile. With OnConnection set it returns an error;
// once the listener is closed one that wraps net.ErrClosed.
func (l *WebSocketListener) Accept(ctx context.Context) (*WebSocket, error) {
	for {
		l.mu.Lock()
		if l.onConnection != nil {
			l.signalArrived() // for the next one that waits
			l.mu.Unlock()
			return nil, errHandled
		}
		if l.state == ListenerClosed {
			l.mu.Unlock()
			return nil, l.closedErr("accept")
		}
		if len(l.waiting) > 0 {
			c := l.waiting[0]
			l.waiting = append(l.waiting[:0], l.waiting[1:]...)
			if len(l.waiting) > 0 {
				l.signalArrived()
			}
			l.mu.Unlock()
			go c.run()
			return c, nil
		}
		l.mu.Unlock()
		select {
		case <-l.arrived:
		case <-l.closing:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *WebSocketListener) signalArrived() {
	select {
	case l.arrived <- struct{}{}:
	default:
	}
}

// Connections returns an iterator over the connections as Accept returns them.
// It ends silently when the listener is closed or ctx ends, else with one error.
func (l *WebSocketListener) Connections(ctx context.Context) iter.Seq2[*WebSocket, error] {
	return func(yield func(*WebSocket, error) bool) {
		for {
			c, err := l.Accept(ctx)
			if err != nil {
				if l.Err() != nil || !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
					yield(nil, err)
				}
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// acceptLoop takes transports from the system.
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
		if errors.Is(err, net.ErrClosed) || !temporary(err) {
			l.mu.Lock()
			l.err = fmt.Errorf("peerws: accept: %w", err)
			l.mu.Unlock()
			l.log.Error("listener failed", "err", err)
			go l.Close()
			return
		}
		// Out of descriptors or memory: it passes.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		l.log.Warn("accept failed", "err", err, "retry", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-l.closing:
			t.Stop()
			return
		}
	}
}

// temporary reports whether accepting may succeed later.
func temporary(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && (e.Timeout() || isTemporary(e))
}

func isTemporary(err any) bool {
	t, ok := err.(interface{ Temporary() bool })
	return ok && t.Temporary()
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
	l.mu.Lock()
	full := key != 0 && l.perIP[key] >= l.maxPerIP
	if !full && key != 0 {
		l.perIP[key]++
	}
	l.mu.Unlock()
	if full {
		l.turnAway(conn, errCrowd)
		return
	}
	over, r := l.enter(conn)
	if r != nil {
		l.leave(key)
		l.turnAway(conn, r)
		return
	}
	go l.handshake(conn, key, over)
}

// enter counts a transport as being in its opening handshake, until over is
// called, however often.
func (l *WebSocketListener) enter(conn net.Conn) (over func(), r *refusal) {
	if l.handshakes != nil && !l.handshakes.TryAcquire(1) {
		return nil, errFull
	}
	release := func() {
		if l.handshakes != nil {
			l.handshakes.Release(1)
		}
	}
	l.setHandshakeDeadline(conn) // before Close can find it in pending and set its own
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == ListenerClosed {
		release()
		return nil, errClosing
	}
	l.pending[conn] = struct{}{}
	l.work.Add(1)
	return sync.OnceFunc(func() {
		l.mu.Lock()
		delete(l.pending, conn)
		l.mu.Unlock()
		release()
		l.work.Done()
	}), nil
}

// turnAway refuses a transport without reading anything. A few peers at a time
// are given the chance to see it: closing with their request unread would reset
// the connection.
func (l *WebSocketListener) turnAway(conn net.Conn, r *refusal) {
	l.countRefused()
	l.log.Debug("connection turned away", "remote", conn.RemoteAddr(), "why", r.text)
	if !l.lingers.TryAcquire(1) {
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
	l.clock.wind()
	l.mu.Unlock()
	over()
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
	l.stats.Accepted++
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

// eachSocket calls yield for every socket that is open now. It holds no lock
// meanwhile.
func (l *WebSocketListener) eachSocket(yield func(*WebSocket) bool) {
	l.mu.Lock()
	sockets := slices.Collect(maps.Keys(l.sockets))
	l.mu.Unlock()
	for _, c := range sockets {
		if !yield(c) {
			return
		}
	}
}

// forget uncounts a socket that has ended.
func (l *WebSocketListener) forget(c *WebSocket) {
	l.leave(c.ipKey)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sockets, c)
	l.reserved--
}

// Close stops listening: nothing is accepted any more, handshakes in flight are
// dropped, sockets that wait for Accept are closed with 1001, the port is given
// back to the gateway, for which that has 2 s at most. Sockets that were handed
// over live on. It is idempotent and returns when all of this is done.
func (l *WebSocketListener) Close() error {
	if !l.setState(ListenerClosed) {
		<-l.done
		return nil
	}
	close(l.closing)
	var err error
	if l.ln != nil {
		err = l.ln.Close()
	}
	l.mu.Lock()
	for conn := range l.pending {
		conn.SetDeadline(past)
	}
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, c := range waiting {
		c.CloseWith(StatusGoingAway, "")
		go c.run()
	}
	var wg sync.WaitGroup
	if l.web != nil {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
			defer cancel()
			l.web.stop(ctx)
		})
	}
	wg.Go(l.stopMapping)
	<-l.accepting
	wg.Go(l.awaitHandshakes)
	wg.Wait()
	close(l.done)
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// closeGrace is how long Close lets web requests and an Authorize that is
// running finish.
const closeGrace = 2 * time.Second

// awaitHandshakes waits for the goroutines that admit has started.
func (l *WebSocketListener) awaitHandshakes() {
	over := make(chan struct{})
	go func() {
		l.work.Wait()
		close(over)
	}()
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case <-over:
	case <-t.C:
	}
}

// Shutdown is Close, and then closes every socket with 1001, at the same time,
// and waits for their closing handshakes. When ctx ends it aborts those that
// are left and returns ctx's error. It must not be called in a callback: it
// would wait for it.
func (l *WebSocketListener) Shutdown(ctx context.Context) error {
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	<-l.closing
	sockets := slices.Collect(l.eachSocket)
	for _, c := range sockets {
		c.CloseWith(StatusGoingAway, "")
	}
	err := <-closed
	sockets = slices.AppendSeq(sockets, l.eachSocket) // whose handshake has ended meanwhile
	for _, c := range sockets {
		select {
		case <-c.Done():
			continue
		default:
		}
		select {
		case <-c.Done():
		case <-ctx.Done():
			err = context.Cause(ctx)
			c.Abort()
		}
	}
	return err
}

// Done returns a channel that is closed when Close has given the port back. It
// does not wait for sockets.
func (l *WebSocketListener) Done() <-chan struct{} { return l.done }

// Err returns why the listener ended if nobody closed it, else nil.
func (l *WebSocketListener) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Stats returns what has been counted so far.
func (l *WebSocketListener) Stats() ListenerStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Open = len(l.sockets)
	return s
}

// closedErr is the error of a method called after Close.
func (l *WebSocketListener) closedErr(op string) error {
	if err := l.Err(); err != nil {
		return fmt.Errorf("peerws: %s: %w: %w", op, net.ErrClosed, err)
	}
	return fmt.Errorf("peerws: %s: %w", op, net.ErrClosed)
}
