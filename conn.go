package peerws

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
	"unsafe"
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
	// Set before the socket is open, then immutable.
	set      *settings
	owner    *WebSocketListener // nil on the dialled side
	conn     net.Conn
	raw      syscall.RawConn // nil on the portable path
	readFn   func(fd uintptr) bool
	writeFn  func(fd uintptr) bool
	drainFn  func() // the writer goroutine's body
	protocol string
	secure   bool
	ipKey    ipKey // what the owner counts the connection under

	state     atomic.Uint32 // a ReadyState, moved by setState only
	aborted   atomic.Bool   // the transport is being torn down
	phase     atomic.Uint32 // counted by beat
	pulse     pulse         // owned by the clock
	clock     *clock        // of a dialled socket
	onMessage atomic.Pointer[func(*WebSocket, Message)]

	// Read side: owned by the goroutine of run, which lends it to a Read while it
	// waits in awaitGate (life.lent).
	core core
	in   *buffer // received bytes, those behind rd.off not parsed; nil if none
	rd   struct {
		off     int
		full    event   // a complete message that a Read has begun and not taken
		stream  *stream // what NextReader works on, nil before
		verdict verdict // what a borrower found, for the reader
		direct  bool    // the last read went into the core's own buffer
		last    bool    // the read before filled all it was given (portable path)
		head    bool    // the opening request's headers are still held
		n       int
		err     error
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
	req       *request // the opening request, nil on the dialled side before OPEN
	onOpen    func(*WebSocket)
	onError   func(*WebSocket, error)
	onClose   func(*WebSocket, CloseEvent)
	tasks     []func()       // callbacks set after their event, for the reader to run
	gate      chan struct{}  // the reader waits here for somebody who wants messages; buffered, one token
	gated     bool           // it waits with a message at hand, and its side may be borrowed
	lent      bool           // it is
	resume    bool           // a borrower wants it to go on
	fill      bool           // and first of all to get more bytes
	reading   bool           // the style is Read's, not OnMessage's
	arrived   chan struct{}  // a Read waits here for gated; buffered, one token
	pings     []*waitingPing // not answered yet, the oldest first
	pingID    uint64
	turn      chan struct{} // held by the Read that is going on; buffered, one token
	running   bool          // run has been started and will look at tasks
	ended     bool          // the last event has been delivered
	lateRun   bool          // a goroutine runs tasks after the end
	doneCh    chan struct{}
	closer    *time.Timer        // CloseTimeout
	readUntil time.Time          // the reader's own deadline
	cancel    context.CancelFunc // of a dial that is going on

	caused    bool
	initiator Initiator
	cause     error
	sent      bool // the kernel has our Close frame
	received  bool // the peer's is here
	code      StatusCode
	reason    string
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
		c.writeFn = c.writable
	}
	c.setState(Open)
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
	scheme := "ws://"
	if c.secure {
		scheme = "wss://"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lf.req == nil {
		return ""
	}
	return scheme + c.lf.req.host + c.lf.req.target
}

// Protocol returns the subprotocol agreed on, "" if none.
func (c *WebSocket) Protocol() string {
	if c.ReadyState() == Connecting {
		return ""
	}
	return c.protocol
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
	if c.lf.req == nil {
		return &http.Request{Method: http.MethodGet, Header: http.Header{}, RemoteAddr: remote}
	}
	return c.lf.req.http(remote)
}

// dropHead lets the opening request's headers go. The reader calls it.
func (c *WebSocket) dropHead() {
	c.rd.head = false
	c.mu.Lock()
	c.lf.req.drop()
	c.mu.Unlock()
}

// OnOpen sets what runs once when the socket is OPEN. On a socket that is, such
// as every accepted one, it runs at once.
func (c *WebSocket) OnOpen(f func(*WebSocket)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() == Connecting || f == nil {
		c.lf.onOpen = f
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
	if !reading {
		c.onMessage.Store(&f)
		c.openGateLocked()
	}
	c.mu.Unlock()
	if reading {
		panic("peerws: OnMessage on a socket that is read by Read, Messages or NextReader")
	}
}

// OnError sets what runs once, just before OnClose, if the socket failed. Set
// after that it runs at once.
func (c *WebSocket) OnError(f func(*WebSocket, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ReadyState() != Closed || f == nil {
		c.lf.onError = f
		return
	}
	if err := c.lf.cause; err != nil {
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
	c.lf.tasks = append(c.lf.tasks, f)
	switch {
	case c.lf.ended:
		if !c.lf.lateRun {
			c.lf.lateRun = true
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
		tasks := c.lf.tasks
		c.lf.tasks = nil
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
		if c.lf.tasks == nil {
			c.lf.lateRun = false
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
		if !utf8.Valid(m.Data) {
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
	if c.lf.doneCh == nil {
		c.lf.doneCh = make(chan struct{})
		if c.lf.ended {
			close(c.lf.doneCh)
		}
	}
	return c.lf.doneCh
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
