package peerws

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
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
	where  string // host and target of the opening request; "" if there was none
	ipKey  ipKey  // what the owner counts the connection under

	state   atomic.Uint32 // a ReadyState, moved by setState only
	aborted atomic.Bool   // the transport is being torn down
	phase   atomic.Uint32 // counted by beat
	reader  atomic.Uint32 // who has the read side: readerOwns and its successors; and newHandler
	pulse   pulse         // owned by the clock
	slot    int32         // index in owner.sockets, guarded by owner.mu

	// Read side: owned by the goroutine of run, which lends it to a Read while it
	// waits in awaitGate (life.lent).
	core    core
	in      *buffer // received bytes, those behind rd.off not parsed; nil if none
	handler func(*WebSocket, Message)
	rd      struct {
		off     int32
		n       int32   // what the last read returned
		verdict verdict // what a borrower found, for the reader
		direct  bool    // the last read went into the core's own buffer
		last    bool    // the read before filled all it was given (portable path)
		head    bool    // the opening request's headers are still held
		corked  bool    // the write side collects
		ahead   bool    // there is a rare.ahead

		protocol int16 // number of the subprotocol in owner.protocols, from 1, or 0; immutable, here is room
		err      error
	}

	// Write side.
	wmu sync.Mutex // locked before mu where both are needed
	wr  writer     // guarded by wmu

	// Life.
	mu sync.Mutex // leaf: nothing is locked under it
	lf life       // guarded by mu
}

// life is what a socket's events and callbacks need.
type life struct {
	head    string // of the opening request, what head.keep has kept, until the first message
	onClose func(*WebSocket, CloseEvent)
	x       *rare // nil until needed: rareLocked makes it, seldom reads it

	code      StatusCode // of the peer's Close frame
	initiator Initiator
	secure    bool  // immutable
	callbacks bool  // the style is OnMessage's
	reading   bool  // or Read's
	gated     bool  // the reader waits with a message at hand, and its side may be borrowed
	lent      bool  // it is
	resume    bool  // a borrower wants it to go on
	fill      bool  // and first of all to get more bytes
	running   bool  // run has been started and will look at tasks
	ended     bool  // the last event has been delivered
	entry     entry // whether OnConnection has the socket
	caused    bool  // initiator, and rare.cause, say why the socket ended
	sent      bool  // the kernel has our Close frame
	received  bool  // the peer's is here
}

// rare is the part of life that most sockets never need. Guarded by mu.
type rare struct {
	onOpen    func(*WebSocket)
	onError   func(*WebSocket, error)
	handler   func(*WebSocket, Message) // set while the reader runs: it will take it
	tasks     []func()                  // callbacks set after their event, for the reader to run
	lateRun   bool                      // a goroutine runs tasks after the end
	doneCh    chan struct{}
	shaken    chan struct{} // closed once the closing handshake is complete, or cannot be any more
	calls     *calls
	ahead     *ahead         // what has been read ahead, nil if nothing: part of the read side
	pings     []*waitingPing // not answered yet, the oldest first
	pingID    uint64
	parsed    *http.Request // the opening request, until the first message, or for good once asked for
	asked     bool
	context   context.Context    // of the opening request whose headers are gone; nil: the background
	protocol  string             // of a dialled socket
	heads     string             // of a dialled socket: its request and the answer
	clock     *clock             // of a dialled socket
	cancel    context.CancelFunc // of a dial that is going on
	readUntil time.Time          // the reader's own deadline: writing has failed
	woken     bool               // by wakeLocked
	odd       bool               // a time-out that was none of ours has been seen
	// What the peer had acknowledged when it was looked at last, 0: not looked.
	pingAcked, closeAcked uint64
	returned              chan struct{} // closed when OnConnection has returned, while entry is entryHeld
	cause                 error
	reason                string // of the peer's Close frame
}

// noneRare stands for a rare that was never made. Nobody writes to it.
var noneRare rare

// seldom returns the rare part for reading. mu is held.
func (c *WebSocket) seldom() *rare {
	if c.lf.x == nil {
		return &noneRare
	}
	return c.lf.x
}

// rareLocked returns the rare part for writing. mu is held.
func (c *WebSocket) rareLocked() *rare {
	if c.lf.x == nil {
		c.lf.x = new(rare)
	}
	return c.lf.x
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
	c.core = core{client: client, limits: &c.set.core}
	c.in = early
	if !c.set.portable {
		c.raw = rawConn(conn)
	}
	if c.raw != nil {
		c.readFn = c.readable
	}
	if c.owner == nil {
		c.startClock()
	}
	c.setState(Open)
}

// entry tells whether the program's OnConnection has the socket. Its goroutine,
// which reads, is started when that has returned, or before, if the program reads
// in it or stays in it: then it keeps messages and callbacks back.
type entry uint8

const (
	// entryNone: OnConnection has returned, or there is none. Next: entryOffered.
	entryNone entry = iota
	// entryOffered: OnConnection runs, nobody reads yet. Next: entryHeld, or
	// entryNone when it returns.
	entryOffered
	// entryHeld: OnConnection runs, and the reader too. Messages go to a Read
	// only, and no other callback runs. Next: entryNone.
	entryHeld
)

// offer runs f, an OnConnection, and then the socket. The goroutine is f's.
func (c *WebSocket) offer(f func(*WebSocket)) {
	c.mu.Lock()
	c.lf.entry = entryOffered
	c.mu.Unlock()
	f(c)
	c.mu.Lock()
	held := c.lf.entry == entryHeld
	c.lf.entry = entryNone
	if held {
		x := c.lf.x
		close(x.returned)
		if x.handler != nil {
			c.reader.Or(newHandler)
		}
		c.openGateLocked()
		if x.tasks != nil && !c.aborted.Load() {
			c.wakeLocked(past)
		}
	}
	c.mu.Unlock()
	if !held {
		c.begin()
	}
}

// beginHeldLocked starts the reader of a socket that OnConnection still has. mu
// is held.
func (c *WebSocket) beginHeldLocked() {
	if c.lf.entry != entryOffered {
		return
	}
	c.lf.entry = entryHeld
	x := c.rareLocked()
	x.returned = make(chan struct{})
	x.handler, c.handler = c.handler, nil
	c.lf.running = true
	c.begin()
}

// begin runs the socket on a goroutine of its own: a fresh one has a small stack.
func (c *WebSocket) begin() {
	go newStarter(c).run()
}

// startWriter starts the writer goroutine. wmu is held.
func (c *WebSocket) startWriter() {
	c.wr.running = true
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
func (c *WebSocket) setState(s ReadyState) bool {
	for {
		old := c.state.Load()
		if ReadyState(old) >= s {
			return false
		}
		if c.state.CompareAndSwap(old, uint32(s)) {
			return true
		}
	}
}

// ReadyState returns the state. It is a snapshot: by the time it is looked at
// the socket may have moved on, but never back.
func (c *WebSocket) ReadyState() ReadyState { return ReadyState(c.state.Load()) }

// URL returns the address of the listening side in its serialised form, such
// as "ws://192.168.1.5:9000/". On the accepted side it is put together from
// what the peer asked for (its Host header and request target), so it is the
// peer's claim.
func (c *WebSocket) URL() string {
	switch {
	case c.where == "":
		return ""
	case c.lf.secure:
		return "wss://" + c.where
	}
	return "ws://" + c.where
}

// Protocol returns the subprotocol agreed on, "" if none.
func (c *WebSocket) Protocol() string {
	switch {
	case c.ReadyState() == Connecting:
		return ""
	case c.rd.protocol > 0:
		return c.owner.protocols[c.rd.protocol-1]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seldom().protocol
}

// Extensions returns the extensions in use, as in Sec-WebSocket-Extensions.
func (c *WebSocket) Extensions() string { return "" }

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
	return c.conn.RemoteAddr()
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
	slash := max(strings.IndexByte(c.where, '/'), 0)
	host, target := c.where[:slash], c.where[slash:]
	if c.lf.head != "" {
		c.rareLocked().parsed = readRequest(host, target, c.lf.head, remote, tlsState(c.conn))
		c.lf.head = ""
	}
	if x := c.seldom(); x.heads != "" {
		x.parsed = dialledRequest(x.heads, host, target, remote, tlsState(c.conn))
		x.heads = ""
	}
	if x := c.seldom(); x.parsed != nil {
		x.asked = true
		return x.parsed
	}
	if c.where == "" {
		return &http.Request{Method: http.MethodGet, Header: http.Header{}, RemoteAddr: remote}
	}
	r := bareRequest(host, target, remote, tlsState(c.conn))
	if x := c.seldom(); x.context != nil {
		r = r.WithContext(x.context)
	}
	return r
}

// dropHead lets the opening request's headers go, unless the program has asked
// for them. The reader calls it.
func (c *WebSocket) dropHead() {
	c.rd.head = false
	c.mu.Lock()
	c.lf.head = ""
	if x := c.lf.x; x != nil && x.parsed != nil && !x.asked {
		if ctx := x.parsed.Context(); ctx != context.Background() { // the program's
			x.context = ctx
		}
		x.parsed = nil
	}
	c.mu.Unlock()
}
