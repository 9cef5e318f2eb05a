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
	"unsafe"

	"github.com/peerws/peerws/internal/utf8check"
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
// the listener's Shutdown would wait for the very callback they are called in. While a callback runs nothing more is read from this
// peer: TCP slows it down. A panic in a callback is not recovered.
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

	state      atomic.Uint32 // a ReadyState, moved by setState only
	aborted    atomic.Bool   // the transport is being torn down
	phase      atomic.Uint32 // counted by beat
	newHandler atomic.Bool   // rare.handler is to replace handler
	pulse      pulse         // owned by the clock
	slot       int32         // index in owner.sockets, guarded by owner.mu

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
	secure    bool // immutable
	callbacks bool // the style is OnMessage's
	reading   bool // or Read's
	gated     bool // the reader waits with a message at hand, and its side may be borrowed
	lent      bool // it is
	resume    bool // a borrower wants it to go on
	fill      bool // and first of all to get more bytes
	running   bool // run has been started and will look at tasks
	ended     bool // the last event has been delivered
	caused    bool // initiator, and rare.cause, say why the socket ended
	sent      bool // the kernel has our Close frame
	received  bool // the peer's is here
}

// rare is the part of life that most sockets never need. Guarded by mu.
type rare struct {
	onOpen    func(*WebSocket)
	onError   func(*WebSocket, error)
	handler   func(*WebSocket, Message) // set while the reader runs: it will take it
	tasks     []func()                  // callbacks set after their event, for the reader to run
	lateRun   bool                      // a goroutine runs tasks after the end
	doneCh    chan struct{}
	calls     *calls
	pings     []*waitingPing // not answered yet, the oldest first
	pingID    uint64
	parsed    *http.Request // the opening request, until the first message, or for good once asked for
	asked     bool
	protocol  string             // of a dialled socket
	clock     *clock             // of a dialled socket
	cancel    context.CancelFunc // of a dial that is going on
	readUntil time.Time          // the reader's own deadline
	cause     error
	reason    string // of the peer's Close frame
}

// calls is what reading by calls needs, and a message that waits to be wanted.
type calls struct {
	gate    chan struct{} // the reader waits here for somebody who wants messages; buffered, one token
	arrived chan struct{} // a Read waits here for life.gated; buffered, one token
	turn    chan struct{} // held by the Read that is going on; buffered, one token

	// Part of the read side, like core.
	full   event   // a complete message that a Read has begun and not taken
	stream *stream // what NextReader works on, nil before
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

// callsLocked returns the part for reading by calls. mu is held.
func (c *WebSocket) callsLocked() *calls {
	x := c.rareLocked()
	if x.calls == nil {
		x.calls = &calls{
			gate:    make(chan struct{}, 1),
			arrived: make(chan struct{}, 1),
			turn:    make(chan struct{}, 1),
		}
	}
	return x.calls
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

// RemoteAddr returns the peer's end of the transport, nil before OPEN.
func (c *WebSocket) RemoteAddr() net.Addr {
	if c.ReadyState() == Connecting || c.conn == nil {
		return nil
	}
	return c.conn.RemoteAddr()
}

// Request returns the opening request, never nil. On the accepted side its
// headers are kept until the first message is handed over, and for good once
// Request was called before that; later it has Method, URL, Host and RemoteAddr
// only, so that an idle connection holds no headers. Keep what you need in
// OnConnection.
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
		c.rareLocked().parsed = readRequest(restore(host, target, c.lf.head), remote, tlsState(c.conn))
		c.lf.head = ""
	}
	if x := c.seldom(); x.parsed != nil {
		x.asked = true
		return x.parsed
	}
	if c.where == "" {
		return &http.Request{Method: http.MethodGet, Header: http.Header{}, RemoteAddr: remote}
	}
	return bareRequest(host, target, remote, tlsState(c.conn))
}

// dropHead lets the opening request's headers go, unless the program has asked
// for them. The reader calls it.
func (c *WebSocket) dropHead() {
	c.rd.head = false
	c.mu.Lock()
	c.lf.head = ""
	if x := c.lf.x; x != nil && !x.asked {
		x.parsed = nil
	}
	c.mu.Unlock()
}

// OnOpen sets what runs once when the socket is OPEN. On a socket that is, such
// as every accepted one, it runs at once.
func (c *WebSocket) OnOpen(f func(*WebSocket)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() == Connecting || f == nil {
		c.rareLocked().onOpen = f
		return
	}
	if c.conn != nil { // it was open once
		c.postLocked(func() { f(c) })
	}
}

// OnMessage sets what runs for every message. It may be replaced at any time,
// from the next message on. Reading starts with the first OnMessage: messages
// that came before wait. m.Data is loaned: it is a window into the read buffer,
// valid until f returns; bytes.Clone keeps it.
//
// A socket that has been read by calls cannot get callbacks: OnMessage after a
// Read panics.
func (c *WebSocket) OnMessage(f func(c *WebSocket, m Message)) {
	if f == nil {
		f = func(*WebSocket, Message) {}
	}
	c.mu.Lock()
	reading := c.lf.reading
	switch {
	case reading:
	case !c.lf.running:
		c.lf.callbacks = true
		c.handler = f
	default:
		c.lf.callbacks = true
		c.rareLocked().handler = f
		c.newHandler.Store(true)
		c.openGateLocked()
	}
	c.mu.Unlock()
	if reading {
		panic("peerws: OnMessage on a socket that is read by Read, Messages or NextReader")
	}
}

// messageHandler returns what OnMessage has set, nil if nothing. The reader
// calls it.
func (c *WebSocket) messageHandler() func(*WebSocket, Message) {
	if c.newHandler.Load() {
		c.mu.Lock()
		c.takeHandlerLocked()
		c.mu.Unlock()
	}
	return c.handler
}

func (c *WebSocket) takeHandlerLocked() {
	if c.newHandler.Load() {
		c.handler = c.lf.x.handler
		c.newHandler.Store(false)
	}
}

// OnError sets what runs once, just before OnClose, if the socket failed. Set
// after that it runs at once.
func (c *WebSocket) OnError(f func(*WebSocket, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() != Closed || f == nil {
		c.rareLocked().onError = f
		return
	}
	if err := c.seldom().cause; err != nil {
		c.postLocked(func() { f(c, err) })
	}
}

// OnClose sets what runs once as the last event of the socket, also if it never
// opened. Set after that it runs at once.
func (c *WebSocket) OnClose(f func(*WebSocket, CloseEvent)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() != Closed || f == nil {
		c.lf.onClose = f
		return
	}
	ev := c.eventLocked()
	c.postLocked(func() { f(c, ev) })
}

// postLocked has f run on the socket's goroutine: the reader's, or after its
// end one that is made for it. mu is held.
func (c *WebSocket) postLocked(f func()) {
	x := c.rareLocked()
	x.tasks = append(x.tasks, f)
	switch {
	case c.lf.ended:
		if !x.lateRun {
			x.lateRun = true
			go c.runLate()
		}
	case c.lf.running:
		c.openGateLocked()
		if !c.aborted.Load() {
			c.conn.SetReadDeadline(past)
		}
	}
}

// past is a deadline that has expired whenever it is looked at.
var past = time.Unix(1, 0)

// runTasks runs what postLocked left. The reader calls it.
func (c *WebSocket) runTasks() {
	for {
		c.mu.Lock()
		tasks := c.seldom().tasks
		if tasks != nil {
			c.lf.x.tasks = nil
		}
		c.mu.Unlock()
		if tasks == nil {
			return
		}
		for _, f := range tasks {
			f()
		}
	}
}

// runLate runs callbacks that are set after the last event.
func (c *WebSocket) runLate() {
	for {
		c.runTasks()
		c.mu.Lock()
		if c.lf.x.tasks == nil {
			c.lf.x.lateRun = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

// Send sends a message and never blocks: it is handed to the kernel at once, or
// queued if the kernel does not take it now. m.Data is not kept, so loaned data
// may be sent.
//
// If messages are queued already and m would bring them over MaxBufferedAmount,
// Send returns [ErrBufferFull] and the connection lives; [WebSocket.Write] waits
// instead. Once the socket is closing the error wraps net.ErrClosed and the
// [CloseEvent].
func (c *WebSocket) Send(m Message) error { return c.transmit(noWait, m) }

// SendText sends s as a text message, like Send.
func (c *WebSocket) SendText(s string) error {
	return c.Send(Message{Text, unsafe.Slice(unsafe.StringData(s), len(s))}) // only read
}

// SendBinary sends p as a binary message, like Send.
func (c *WebSocket) SendBinary(p []byte) error { return c.Send(Message{Binary, p}) }

// checkOutgoing returns the opcode for m. Text that is not UTF-8 is refused
// here: the peer would have to fail the connection for it (RFC 6455 §8.1).
func checkOutgoing(m Message) (opcode, error) {
	switch m.Type {
	case Binary:
		return opBinary, nil
	case Text:
		if !utf8check.Valid(m.Data) {
			return 0, errTextUTF8
		}
		return opText, nil
	}
	return 0, errMessageType
}

// Write is Send for programs that must not drop: while the queue has no room it
// waits, until ctx ends. The connection is not harmed by that; m was not taken.
func (c *WebSocket) Write(ctx context.Context, m Message) error { return c.transmit(ctx, m) }

// Flush waits until the kernel has taken everything that was sent, until the
// socket is closed, or until ctx ends. It returns nil in the first case.
func (c *WebSocket) Flush(ctx context.Context) error {
	for {
		empty, err := c.push()
		if empty || err != nil {
			return err
		}
		if err := c.awaitRoom(ctx); err != nil {
			return err
		}
	}
}

// BufferedAmount returns the payload bytes that were accepted and that the
// kernel has not taken. After the end it stays where it was.
func (c *WebSocket) BufferedAmount() int {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.wr.buffered
}

// Done returns a channel that is closed after OnClose has returned: no callback
// of this socket runs after that, but one that is set even later.
func (c *WebSocket) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doneLocked()
}

func (c *WebSocket) doneLocked() chan struct{} {
	x := c.rareLocked()
	if x.doneCh == nil {
		x.doneCh = make(chan struct{})
		if c.lf.ended {
			close(x.doneCh)
		}
	}
	return x.doneCh
}

// Wait waits for the end and returns how it came. An error is ctx's.
func (c *WebSocket) Wait(ctx context.Context) (CloseEvent, error) {
	select {
	case <-c.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.eventLocked(), nil
	case <-ctx.Done():
		return CloseEvent{}, context.Cause(ctx)
	}
}
