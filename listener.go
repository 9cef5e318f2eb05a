package peerws

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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

// A WebSocketListener accepts WebSocket connections on a port that the gateway
// in front of it forwards, if it can be brought to. All methods may be called
// from any goroutine.
type WebSocketListener struct {
	// Immutable.
	set           *settings
	machine       system
	ln            net.Listener // nil for one that is mounted in a server
	engine        *engine      // that waits for its sockets; nil: the runtime's poller
	port          int
	protocols     []string
	tls           *tls.Config // nil without TLS on the port
	requireTLS    bool
	policy        *policy
	header        []byte // ListenConfig.ResponseHeader as it goes on the wire
	authorize     func(*http.Request) error
	respond       func(*http.Request, *Answer)
	maxHead       int
	maxConns      int
	maxPerIP      int
	maxHandshakes int   // in flight; 0: no limit
	loopback      bool  // loopback counts for maxPerIP
	loopbackRate  bool  // and for rate
	maxHeld       int64 // 0 and less: no limit
	proxies       []netip.Prefix
	trace         *Trace // nil: nobody
	log           *slog.Logger
	lingers       *semaphore.Weighted
	web           *webServer   // nil without ListenConfig.HTTP
	manager       *nat.Manager // nil without a gateway to ask
	verify        func(ctx context.Context, url string) error
	loopDial      dialFunc       // how to try the outside address from inside; nil not to
	ready         chan struct{}  // closed at LISTENING or CLOSED
	closing       chan struct{}  // closed when Close begins
	done          chan struct{}  // closed when it has ended
	accepting     chan struct{}  // closed when the accept loop is gone
	arrived       chan struct{}  // a token while a socket waits for Accept
	work          sync.WaitGroup // handshakes

	mu           sync.Mutex // guards what is below, but addrs; under it only the clock's lock and a transport's, never a socket's
	state        ListenerState
	onConnection func(*WebSocket)
	waiting      []*WebSocket // not handed over yet
	sockets      []*WebSocket // each knows its index: WebSocket.slot
	pending      []*arrival   // in the opening handshake
	queue        queue        // not yet there
	lastURL      string       // of the last request, shared by sockets
	reserved     int          // sockets and those about to be
	perIP        map[ipKey]int
	rate         rateLimit
	err          error
	stats        ListenerStats // of sockets only those that are gone
	refusedFor   map[RefusalReason]int64
	closed       map[closedHow]int64
	goodbye      goodbye // for sockets that nobody has taken when state is ListenerClosed

	refusals    sparing  // records of requests that are refused
	failures    sparing  // of opening handshakes that fail
	mistakes    sparing  // of answers of the program's that cannot be sent
	originsTold []string // what was said of pages that were refused

	held     atomic.Int64 // bytes held for peers, as far as their sockets have told
	shedding atomic.Bool  // shed runs

	clock *clock // keepalive of all sockets, nil if off
	addrs addressBook
}

// Listen binds the TCP port on every address of this machine, asks the gateway
// to forward it, and accepts WebSocket connections: the constructor of 2009.
// Port 0 lets the system choose. protocols are the subprotocols spoken, the
// preferred one first; a peer that offers only others is refused (ListenConfig.Respond
// can choose in another way).
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
	if l.set.pingInterval > 0 { // pings do what TCP's keepalive does, and it would cost four system calls a connection
		lc.KeepAlive = -1
	}
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(c.Address, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("peerws: listen on port %d: %w", port, err)
	}
	l.start(ln, &c, false)
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
	l.start(ln, &c, true)
	return l, nil
}

// start begins to accept on ln, which the program may have given, and to ask the gateway.
func (l *WebSocketListener) start(ln net.Listener, c *ListenConfig, given bool) {
	l.ln = ln
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		l.port = a.Port
	}
	if c.HTTP != nil {
		l.web = newWebServer(l, c)
		go l.web.serve()
	}
	if t, ok := ln.(*net.TCPListener); ok && !l.set.portable {
		l.engine, _ = newEngine(t, l.set.pingInterval <= 0) // without one, the runtime's poller waits
		if l.engine != nil {
			l.engine.given = given
		}
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
		go c.offer(f)
	}
}

// errHandled: two ways to take connections were mixed.
var errHandled = errors.New("peerws: accept: OnConnection is set, it gets the connections")

// Accept waits for the next connection. Connections wait for it, and count
// for MaxConnections meanwhile. With OnConnection set it returns an error;
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
			c.begin()
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

// openSockets returns the sockets that are open now.
func (l *WebSocketListener) openSockets() []*WebSocket {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.sockets)
}

// clockBatch is how many sockets the clock looks at between two locks of the listener.
const clockBatch = 64

// checkTimes is the clock's round. It holds the lock for a few sockets at a time; one
// that is moved by forget meanwhile may be passed over until the next round.
func (l *WebSocketListener) checkTimes(now uint32) (found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.set.handshakeTimeout; t > 0 {
		for _, a := range l.pending {
			if time.Since(a.since) >= t {
				a.cutLocked(RefusedHandshakeTimeout)
			}
		}
	}
	var batch [clockBatch]*WebSocket
	for at := 0; at < len(l.sockets); {
		n := copy(batch[:], l.sockets[at:])
		l.mu.Unlock()
		for _, c := range batch[:n] {
			c.checkTimes(now)
		}
		l.mu.Lock()
		at += n
	}
	return len(l.sockets) > 0 || len(l.pending) > 0 // who waits for a place does so beside pending ones
}

// forget uncounts a socket that has ended.
func (l *WebSocketListener) forget(c *WebSocket) {
	l.leave(c.ipKey)
	counts := c.Stats()
	c.mu.Lock()
	ev := c.eventLocked()
	c.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.sockets) - 1
	l.sockets[last].slot = c.slot
	l.sockets[c.slot] = l.sockets[last]
	l.sockets[last] = nil
	l.sockets = l.sockets[:last]
	l.reserved--
	l.stats.add(counts)
	if l.closed == nil {
		l.closed = make(map[closedHow]int64)
	}
	l.closed[closedHow{ev.Initiator, ev.Code}]++
}

// A goodbye is what a listener that is shut down tells its sockets.
type goodbye struct {
	code   StatusCode
	reason string
}

// dismiss closes a socket that is not handed over any more.
func (l *WebSocketListener) dismiss(c *WebSocket) {
	l.mu.Lock()
	bye := l.goodbye
	l.mu.Unlock()
	c.startClose(InitiatorLocal, nil, orDefault(bye.code, StatusGoingAway), bye.reason)
	c.begin()
}

// Close stops listening: nothing is accepted any more, handshakes in flight are
// dropped, sockets that nobody has taken yet are closed with 1001, the port is given
// back to the gateway, for which that has 2 s at most. Sockets that were handed
// over live on. A listener given to Serve that does not end is left behind. Close is
// idempotent and returns when all of this is done. The error of its first call says
// what is left: a gateway that has not taken the port back is a [*nat.Error] in it.
func (l *WebSocketListener) Close() error {
	if !l.setState(ListenerClosed) {
		<-l.done
		return nil
	}
	close(l.closing)
	stopped := l.stopAccepting()
	l.mu.Lock()
	for _, a := range l.pending {
		if a.stage != arrivalTaken {
			a.cutLocked(RefusedClosing)
		}
	}
	waiting, queued := l.waiting, l.queue.waiting
	l.waiting, l.queue.waiting = nil, nil
	l.mu.Unlock()
	for _, a := range queued {
		l.forgetArrival(a, errClosing)
	}
	for _, c := range waiting {
		l.dismiss(c)
	}
	var wg sync.WaitGroup
	if l.web != nil {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
			defer cancel()
			l.web.stop(ctx)
		})
	}
	var unmapped error
	wg.Go(func() { unmapped = l.stopMapping() })
	err := l.awaitStopped(stopped)
	wg.Go(l.awaitHandshakes)
	wg.Wait()
	close(l.done)
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return cmp.Or(err, unmapped)
}

// stopAccepting closes the transport listener. The channel gets the error when the
// accept loop is gone, too.
func (l *WebSocketListener) stopAccepting() <-chan error {
	stopped := make(chan error, 1)
	var err error
	switch ln := l.ln.(type) {
	case nil:
	case *net.TCPListener, *net.UnixListener:
		err = ln.Close() // at once, so that nobody comes in any more
	default:
		go func() {
			err := ln.Close()
			<-l.accepting
			stopped <- err
		}()
		return stopped
	}
	go func() {
		<-l.accepting
		stopped <- err
	}()
	return stopped
}

var errListenerStuck = errors.New("peerws: close: the transport listener does not end")

// awaitStopped waits for stopAccepting, but not for ever: the transport listener
// may be the program's.
func (l *WebSocketListener) awaitStopped(stopped <-chan error) error {
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case err := <-stopped:
		return err
	case <-t.C:
		l.log.Warn("transport listener does not end")
		return errListenerStuck
	}
}

// closeGrace is how long Close lets a transport listener of the program's, web
// requests and an Authorize that is running finish.
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
		return
	case <-t.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.pending { // a peer that does not take its answer
		a.cutLocked(RefusedClosing)
	}
}

// Shutdown is Close, and then closes every socket with 1001, at the same time,
// and waits for their closing handshakes. When ctx ends it aborts those that
// are left and returns ctx's error. It must not be called in a callback: it
// would wait for it.
func (l *WebSocketListener) Shutdown(ctx context.Context) error {
	return l.shutdown(ctx, goodbye{StatusGoingAway, ""})
}

// ShutdownWith is Shutdown with another code, and a reason for the peers, as
// [WebSocket.CloseWith] takes them: 1012 for example says that the program comes
// back. If they are not allowed it returns an error and does nothing. Sockets
// that nobody has taken yet are told the same.
func (l *WebSocketListener) ShutdownWith(ctx context.Context, code StatusCode, reason string) error {
	if err := checkClose(true, code, reason); err != nil {
		return err
	}
	return l.shutdown(ctx, goodbye{code, reason})
}

func (l *WebSocketListener) shutdown(ctx context.Context, bye goodbye) error {
	l.mu.Lock()
	l.goodbye = bye
	l.mu.Unlock()
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	<-l.closing
	sockets := l.openSockets()
	for _, c := range sockets {
		c.startClose(InitiatorLocal, nil, bye.code, bye.reason)
	}
	err := <-closed
	sockets = append(sockets, l.openSockets()...) // whose handshake has ended meanwhile
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

// closedErr is the error of a method called after Close.
func (l *WebSocketListener) closedErr(op string) error {
	if err := l.Err(); err != nil {
		return fmt.Errorf("peerws: %s: %w: %w", op, net.ErrClosed, err)
	}
	return fmt.Errorf("peerws: %s: %w", op, net.ErrClosed)
}
