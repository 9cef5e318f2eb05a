package peerws

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// ReadyState is the state of a WebSocket, numbered as in the WHATWG standard.
// It never goes backwards; states may be skipped.
type ReadyState uint32

const (
	// Connecting: the opening handshake is going on. Only dialled sockets have
	// this state. Next: Open, or Closed if it fails.
	Connecting ReadyState = 0
	// Open: messages flow both ways (RFC 6455 §4.1, "established"). Next:
	// Closing, when either side starts to close or the transport fails.
	Open ReadyState = 1
	// Closing: a Close frame was sent or received (§7.1.3), or the socket was
	// aborted. No message is handed over any more. Next: Closed.
	Closing ReadyState = 2
	// Closed: the transport is gone (§7.1.4). Last state.
	Closed ReadyState = 3
)

// A lifeState is a ReadyState, with the end of the transport told apart.
type lifeState uint32

const (
	isConnecting lifeState = iota // next: isOpen, isSevered
	isOpen                        // next: isClosing, isSevered
	isClosing                     // messages are thrown away, what is queued still leaves; next: isSevered
	isSevered                     // the transport is being torn down, CLOSING to the program; next: isClosed
	isClosed                      // last
)

func (s ReadyState) String() string {
	switch s {
	case Connecting:
		return "CONNECTING"
	case Open:
		return "OPEN"
	case Closing:
		return "CLOSING"
	case Closed:
		return "CLOSED"
	}
	return "ReadyState(" + strconv.Itoa(int(s)) + ")"
}

// A WebSocket is one connection to a peer, accepted by a [WebSocketListener] or
// dialled by [Dial]: both are this one type.
//
// Every method may be called from any goroutine. The callbacks of one socket
// run one at a time, in order, on a goroutine of the library, and no lock is
// held meanwhile, so they may block and may call any method; only Wait, Ping and
// the listener's Shutdown would wait for the very callback they are called in. A
// panic in a callback is not recovered.
//
// While a callback runs, or a message waits to be read, nothing more is read from
// this peer: TCP slows it down. Its pings are answered all the same, within a quarter
// of PongTimeout (5 s by default), if no more than 16 KiB of messages lie before them.
type WebSocket struct {
	// There may be very many of these, most of them idle: what few sockets need,
	// or need for a moment, lies in rare, calls, backlog and in pooled memory.

	// Set before the socket is open, then immutable.
	set    *settings
	owner  *WebSocketListener // nil on the dialled side
	conn   net.Conn
	raw    syscall.RawConn // nil on the portable path
	readFn func(fd uintptr) bool
	url    string // as URL returns it
	ipKey  ipKey  // what the owner counts the connection under

	state     atomic.Uint32 // a lifeState, moved by setState only
	activity  atomic.Uint32 // counted by toggleWaiting
	reader    atomic.Uint64 // who has the read side: readerOwns and its successors; newHandler; and messages received
	received  atomic.Uint64 // bytes
	keepalive keepalive     // owned by the clock
	controls  atomic.Uint32 // control frames received since the clock's last round
	born      uint32        // the clock's time when it was opened; immutable
	slot      int32         // index in owner.sockets, guarded by owner.mu

	// Read side: owned by whoever has the turn, the goroutine of run or a worker of the
	// engine, and lent to a Read at the gate (readerBorrowed).
	core    core
	in      *buffer // received bytes, those behind read.off not parsed; nil if none
	handler func(*WebSocket, Message)
	read    struct {
		off      int32
		n        int32    // what the last read returned
		verdict  verdict  // what a borrower found, for the reader
		into     readInto // where the last read went
		headHeld bool     // the opening request's headers are still held
		corked   bool     // the write side collects
		ahead    bool     // there is a rare.ahead
		holding  bool     // rare.held is not 0

		protocol int16 // number of the subprotocol in owner.protocols, from 1, or 0; immutable, here is room
		err      error
	}

	// Write side.
	wmu    sync.Mutex // before mu; under it also the transport's own lock
	writer writer     // guarded by wmu

	// Life.
	mu   sync.Mutex // under it only the clock's lock and the transport's
	life life       // guarded by mu
}

// life is what a socket's events and callbacks need.
type life struct {
	requestHead string // of the opening request, what head.keep has kept, until the first message
	onClose     func(*WebSocket, CloseEvent)
	rare        *rare // nil until needed: makeRareLocked makes it, rareLocked reads it

	closing closing
	style   style
	stage   stage
	proxied bool // there is a rare.remote; immutable
}

// rare is the part of life that most sockets never need. Guarded by mu.
type rare struct {
	onOpen    func(*WebSocket)
	onError   func(*WebSocket, error)
	handler   func(*WebSocket, Message) // set while the reader runs: it will take it
	tasks     []func()                  // callbacks set after their event, for the reader to run
	doneCh    chan struct{}
	calls     *calls
	ahead     *ahead         // what has been read ahead, nil if nothing: part of the read side
	pings     []*waitingPing // not answered yet, the oldest first
	pingID    uint64
	parsed    *http.Request      // the opening request, until the first message
	request   *http.Request      // for good, since the program has asked for it
	context   context.Context    // of the opening request whose headers are gone; nil: the background
	protocol  string             // of a dialled socket
	dialHeads string             // of a dialled socket: its request and the answer
	clock     *clock             // of a dialled socket
	cancel    context.CancelFunc // of a dial that is going on
	woken     bool               // by wakeLocked
	strays    int                // time-outs that were none of ours
	pingSaw   traffic            // before a ping was sent, or later; zero: not looked
	held      int                // bytes that the read side has told noteHeld
	slow      slowness           // of the callback that runs
	remote    netip.AddrPort     // what a proxy has said of the peer; immutable
	returned  chan struct{}      // closed when OnConnection has returned, while the stage is stageHeld
	ending
}

// emptyRare stands for a rare that was never made. Nobody writes to it.
var emptyRare rare

// rareLocked returns the rare part for reading. mu is held.
func (c *WebSocket) rareLocked() *rare {
	if c.life.rare == nil {
		return &emptyRare
	}
	return c.life.rare
}

// makeRareLocked returns the rare part for writing. mu is held.
func (c *WebSocket) makeRareLocked() *rare {
	if c.life.rare == nil {
		c.life.rare = new(rare)
	}
	return c.life.rare
}

// newOpenWebSocket makes an OPEN socket of a connection whose opening handshake
// is over. early are bytes that came behind it, nil or owned by the socket.
func newOpenWebSocket(set *settings, conn net.Conn, client bool, early *buffer) *WebSocket {
	c := &WebSocket{set: set}
	c.open(conn, client, early)
	return c
}

func (c *WebSocket) open(conn net.Conn, client bool, early *buffer) {
	c.conn = conn
	c.core.client = client
	if c.core.limits == nil { // else as the handshake has agreed
		c.core.limits = &c.set.core
	}
	c.in = early
	c.received.Store(uint64(early.len()))
	if !c.set.portable {
		c.raw = rawConn(conn)
	}
	if s, ok := socketOf(conn).(*sock); ok {
		s.attach(c)
	} else if c.raw != nil {
		c.readFn = c.readable
	}
	if c.owner == nil {
		c.startClockLocked()
	}
	c.born = c.clockNowLocked()
	c.setState(isOpen)
}

// sock returns the socket of the engine whose turns are this one's, nil if it has a
// goroutine.
func (c *WebSocket) sock() *sock {
	if c.raw != nil {
		return sockOf(c.raw)
	}
	if w := readWaitOf(c.conn); w != nil {
		return w.sock
	}
	return nil
}

// A style is how the program reads. The first call decides it.
type style uint8

const (
	styleNone      style = iota // messages wait; next: styleCallbacks, styleCalls
	styleCallbacks              // OnMessage: last
	styleCalls                  // Read, Messages, NextReader, NetConn: last
)

// A stage is how far a socket's reader is, which runs the callbacks too. It is started
// when OnConnection has returned, or before, if the program reads in it or
// stays in it: then it keeps messages and callbacks back.
type stage uint8

const (
	// 0: nothing runs. Next: stageOffered, stageRunning, stageEnded if it
	// never opens.
	_ stage = iota
	// stageOffered: OnConnection runs, nobody reads yet. Next: stageHeld, or
	// stageRunning after OnConnection has returned.
	stageOffered
	// stageHeld: OnConnection runs, and the reader too. Messages go to a Read
	// only, and no other callback runs. Next: stageRunning.
	stageHeld
	// stageRunning: callbacks run as their events come. Next: stageEnded.
	stageRunning
	// stageEnded: the last event has been delivered, no goroutine is left. Next:
	// stageLate.
	stageEnded
	// stageLate: a goroutine runs callbacks that were set after the end. Next:
	// stageEnded.
	stageLate
)

// offer runs f, an OnConnection, and then the socket. The goroutine is f's.
func (c *WebSocket) offer(f func(*WebSocket)) {
	c.mu.Lock()
	c.life.stage = stageOffered
	c.mu.Unlock()
	f(c)
	c.mu.Lock()
	held := c.life.stage == stageHeld
	c.life.stage = stageRunning
	if held {
		x := c.life.rare
		close(x.returned)
		if x.handler != nil {
			c.reader.Or(newHandler)
		}
		c.openGateLocked()
		if x.tasks != nil && !c.severed() {
			c.wakeLocked(past)
		}
	}
	c.mu.Unlock()
	switch {
	case held:
	case c.sock() != nil:
		c.turn()
	default:
		c.begin()
	}
}

// beginHeldLocked starts the reader of a socket that OnConnection still has. mu
// is held.
func (c *WebSocket) beginHeldLocked() {
	if c.life.stage != stageOffered {
		return
	}
	c.life.stage = stageHeld
	x := c.makeRareLocked()
	x.returned = make(chan struct{})
	x.handler, c.handler = c.handler, nil
	c.begin()
}

// begin runs the socket: as a turn of the engine, or on a goroutine of its own, for a
// fresh one has a small stack.
func (c *WebSocket) begin() {
	if s := c.sock(); s != nil {
		s.engine.add(task{c: c})
		return
	}
	go newStarter(c).run()
}

// startWriterLocked has what is queued be written, by the engine or by the writer
// goroutine. wmu is held.
func (c *WebSocket) startWriterLocked() {
	c.writer.running = true
	if s := sockOf(c.raw); s != nil {
		c.awaitRoomLocked(s)
		return
	}
	go newStarter(c).write()
}

// A starter begins a goroutine of a socket without allocating a closure for it.
type starter struct {
	c          *WebSocket
	run, write func()
}

var starterPool sync.Pool

func newStarter(c *WebSocket) *starter {
	s, _ := starterPool.Get().(*starter)
	if s == nil {
		s = new(starter)
		s.run = func() { s.take().run() }
		s.write = func() { s.take().writeLoop() }
	}
	s.c = c
	return s
}

// take gives s back and returns its socket.
func (s *starter) take() *WebSocket {
	c := s.c
	s.c = nil
	starterPool.Put(s)
	return c
}

// setState moves the state forward to s and reports whether that was a move.
func (c *WebSocket) setState(s lifeState) bool {
	for {
		old := c.state.Load()
		if lifeState(old) >= s {
			return false
		}
		if c.state.CompareAndSwap(old, uint32(s)) {
			return true
		}
	}
}

// ReadyState returns the state. It is a snapshot: by the time it is looked at
// the socket may have moved on, but never back.
func (c *WebSocket) ReadyState() ReadyState {
	s := lifeState(c.state.Load())
	if s >= isSevered {
		s--
	}
	return ReadyState(s)
}

// severed reports whether the transport is being torn down, or is gone.
func (c *WebSocket) severed() bool { return lifeState(c.state.Load()) >= isSevered }

// URL returns the address of the listening side in its serialised form, such
// as "ws://192.168.1.5:9000/". On the accepted side it is put together from
// what the peer asked for (its Host header and request target), so it is the
// peer's claim.
func (c *WebSocket) URL() string { return c.url }

// secure reports whether there is TLS, as far as the opening request knows.
func (c *WebSocket) secure() bool { return strings.HasPrefix(c.url, "wss:") }

// hostAndTarget are those of the opening request, "" if there was none.
func (c *WebSocket) hostAndTarget() (host, target string) {
	_, rest, _ := strings.Cut(c.url, "://")
	slash := max(strings.IndexByte(rest, '/'), 0)
	return rest[:slash], rest[slash:]
}

// Protocol returns the subprotocol agreed on, "" if none.
func (c *WebSocket) Protocol() string {
	switch {
	case c.ReadyState() == Connecting:
		return ""
	case c.read.protocol > 0:
		return c.owner.protocols[c.read.protocol-1]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rareLocked().protocol
}

// Extensions returns the extensions in use, as in Sec-WebSocket-Extensions.
func (c *WebSocket) Extensions() string {
	if c.ReadyState() != Connecting && c.core.limits != nil && c.core.limits.deflate != nil {
		return c.core.limits.deflate.extension
	}
	return ""
}

// LocalAddr returns our end of the transport, nil before OPEN.
func (c *WebSocket) LocalAddr() net.Addr {
	if c.ReadyState() == Connecting || c.conn == nil {
		return nil
	}
	return c.conn.LocalAddr()
}

// RemoteAddr returns the peer's end of the transport, nil before OPEN. A transport
// that the program has made may not know it: then its Network is "unknown".
func (c *WebSocket) RemoteAddr() net.Addr {
	if c.ReadyState() == Connecting || c.conn == nil {
		return nil
	}
	return c.remoteAddr()
}

// remoteAddr is RemoteAddr of a socket that has its transport.
func (c *WebSocket) remoteAddr() net.Addr {
	if c.life.proxied {
		c.mu.Lock()
		defer c.mu.Unlock()
		return net.TCPAddrFromAddrPort(c.life.rare.remote)
	}
	return c.conn.RemoteAddr()
}

// setRemote has RemoteAddr tell what a proxy has said, if that is valid. Nobody else
// knows c yet.
func (c *WebSocket) setRemote(a netip.AddrPort) {
	if a.IsValid() {
		c.makeRareLocked().remote = a
		c.life.proxied = true
	}
}

// Request returns the opening request, never nil. On the dialled side it is the
// one that was sent, and once the socket is OPEN its Response has Status,
// StatusCode and Header of the answer. On the accepted side its
// headers are kept until the first message is handed over, and for good once
// Request was called before that; later it has Method, URL, Host, RemoteAddr and
// Context only, so that an idle connection holds no headers. Keep what you need in
// OnConnection. Its Context has what ListenConfig.Authorize has put there, and on
// a mounted listener what the handlers around it have; it does not end with the
// socket.
func (c *WebSocket) Request() *http.Request {
	var remote string
	if a := c.RemoteAddr(); a != nil {
		remote = a.String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requestLocked(remote)
}

// requestLocked is the opening request as it is known now. mu is held.
func (c *WebSocket) requestLocked(remote string) *http.Request {
	host, target := c.hostAndTarget()
	if c.life.requestHead != "" {
		c.makeRareLocked().parsed = readRequest(host, target, c.life.requestHead, remote, tlsState(c.conn))
		c.life.requestHead = ""
	}
	if x := c.rareLocked(); x.dialHeads != "" {
		x.parsed = dialledRequest(x.dialHeads, host, target, remote, tlsState(c.conn))
		x.dialHeads = ""
	}
	if x := c.rareLocked(); x.parsed != nil {
		x.request, x.parsed = x.parsed, nil
	}
	if x := c.rareLocked(); x.request != nil {
		return x.request
	}
	if c.url == "" {
		return &http.Request{Method: http.MethodGet, Header: http.Header{}, RemoteAddr: remote}
	}
	r := bareRequest(host, target, remote, tlsState(c.conn))
	if x := c.rareLocked(); x.context != nil {
		r = r.WithContext(x.context)
	}
	return r
}

// dropHead lets the opening request's headers go, unless the program has asked
// for them. The reader calls it.
func (c *WebSocket) dropHead() {
	c.read.headHeld = false
	c.mu.Lock()
	c.life.requestHead = ""
	if x := c.life.rare; x != nil && x.parsed != nil {
		if ctx := x.parsed.Context(); ctx != context.Background() { // the program's
			x.context = ctx
		}
		x.parsed = nil
	}
	c.mu.Unlock()
}
