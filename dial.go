package peerws

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The dialling side of the opening handshake (RFC 6455 §4.1), by the URL and
// protocol rules of the WHATWG standard.

// A Dialer opens WebSockets to listeners. Its zero value is good; for every
// number and time zero means the default, negative means off or unlimited.
type Dialer struct {
	// Header is added to the request.
	Header http.Header

	// TLSConfig is for wss and for an https proxy, whose certificate is checked for its own
	// name. nil: the system's trust, the URL's host name. HTTP/1.1 is all that is
	// agreed on. Renegotiation works if it is allowed; with TLS 1.2 that costs one
	// more goroutine.
	TLSConfig *tls.Config

	// PeerKey is the key of the one peer that is accepted, as its link has it; wss only.
	// The certificate's name, time and issuer are not looked at: the key says it all.
	// Another key is a [*PeerKeyError] in the error. Zero: TLSConfig decides.
	PeerKey PeerKey

	// Identity is shown to a listener that has one: [WebSocket.PeerKey] has its key there.
	Identity *Identity

	// Proxy returns the proxy for a request, whose URL has the scheme http for
	// ws and https for wss; nil for none. The proxy's scheme is http, https,
	// socks5 or socks5h, which is the same: it looks the name up. User and
	// password are taken from its URL. nil: http.ProxyFromEnvironment, which uses
	// none for localhost and what NO_PROXY lists. Off is
	//
	//	func(*http.Request) (*url.URL, error) { return nil, nil }
	Proxy func(*http.Request) (*url.URL, error)

	// NetDial makes the transport, to the proxy if there is one. nil: a
	// net.Dialer, which tries IPv6 and IPv4 at the same time (RFC 6555). Of a
	// transport that is not a TCP or Unix socket itself, such as a channel of SSH,
	// only Read, Write and Close need work: its deadlines are not used, and what
	// does not return in time, NetDial included, is left behind on a goroutine of
	// its own. It has one more goroutine and 4 KiB than a socket.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)

	HandshakeTimeout  time.Duration // name lookup, transport, proxy, TLS and handshake together; 0: 10 s
	MaxHeaderBytes    int           // of an answer's head; 0: 8 KiB; there is always a limit
	MaxMessageSize    int64         // bytes over all fragments of a message; 0: 1 MiB
	MaxFragments      int           // of a message, and one more for every 512 bytes of it; 0: 1024, or off with MaxMessageSize
	MaxBufferedAmount int           // payload bytes queued; 0: 1 MiB
	WriteTimeout      time.Duration // without the peer taking anything; 0: 30 s
	PingInterval      time.Duration // silence of the peer before it is pinged, more or less; 0: 25 s
	PongTimeout       time.Duration // silence after a ping before the peer is given up; 0: 20 s
	CloseTimeout      time.Duration // of the closing handshake; 0: 5 s

	// Compression is permessage-deflate (RFC 7692), offered to the peer. The zero value
	// is off.
	Compression Compression

	portable bool // test seam: never take the raw path
	sys      *sysOps
}

// Dial opens a WebSocket to url and waits until it is OPEN. ctx bounds that
// only. The url's scheme is ws, wss, http or https; protocols are the
// subprotocols offered, of which the peer must choose one. The error is a
// *SyntaxError if the arguments are wrong, else a *HandshakeError.
func Dial(ctx context.Context, url string, protocols ...string) (*WebSocket, error) {
	return Dialer{}.Dial(ctx, url, protocols...)
}

// NewWebSocket is the constructor of 2009: it returns at once with a socket
// that is CONNECTING, and OnOpen, or OnError and OnClose, tell how that went.
// The error is a *SyntaxError.
func NewWebSocket(url string, protocols ...string) (*WebSocket, error) {
	return Dialer{}.NewWebSocket(url, protocols...)
}

// Dial is like the function [Dial] with the options of d.
func (d Dialer) Dial(ctx context.Context, url string, protocols ...string) (*WebSocket, error) {
	c, a, err := d.prepare(url, protocols)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.makeRareLocked().cancel = cancel
	if err := d.connect(ctx, c, a); err != nil {
		return nil, err
	}
	c.begin()
	return c, nil
}

// NewWebSocket is like the function [NewWebSocket] with the options of d.
func (d Dialer) NewWebSocket(url string, protocols ...string) (*WebSocket, error) {
	c, a, err := d.prepare(url, protocols)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.makeRareLocked().cancel = cancel
	go func() {
		err := d.connect(ctx, c, a)
		cancel()
		if err == nil {
			c.begin()
			return
		}
		by := InitiatorNetwork
		if errors.Is(err, context.DeadlineExceeded) {
			by = InitiatorTimeout
		}
		c.because(by, err)
		c.end()
	}()
	return c, nil
}

// An attempt is a dial as the arguments say it.
type attempt struct {
	url       *url.URL // normalised: scheme ws or wss
	target    string   // of the request: a % in the URL's path that is not an escape stays
	addr      string   // host:port
	protocols []string
}

// prepare checks the arguments and makes a socket that is CONNECTING.
func (d *Dialer) prepare(rawURL string, protocols []string) (*WebSocket, *attempt, error) {
	u, target, addr, err := parseURL(rawURL)
	if err != nil {
		return nil, nil, err
	}
	if u.Scheme != "wss" && d.PeerKey != (PeerKey{}) {
		return nil, nil, &SyntaxError{"URL", rawURL, "must be wss, for over ws no peer can show its key (PeerKey)"}
	}
	if err := checkProtocols(protocols); err != nil {
		return nil, nil, err
	}
	if err := checkHeader("request header", d.Header, "Host"); err != nil {
		return nil, nil, err
	}
	header := make(http.Header, len(d.Header)) // a copy: NewWebSocket reads it later
	for name, values := range d.Header {
		for _, v := range values {
			header.Add(name, v)
		}
	}
	d.Header = header
	limits := coreLimits{
		maxMessage:   orDefault(d.MaxMessageSize, defaultMaxMessageSize),
		maxFragments: fragmentLimit(d.MaxFragments, d.MaxMessageSize),
	}
	compress, err := d.Compression.prepare(limits)
	if err != nil {
		return nil, nil, err
	}
	c := &WebSocket{
		set: &settings{
			core:             limits,
			compress:         compress,
			maxBuffered:      orDefault(d.MaxBufferedAmount, defaultMaxBufferedAmount),
			handshakeTimeout: orOff(d.HandshakeTimeout, defaultHandshakeTimeout),
			writeTimeout:     orOff(d.WriteTimeout, defaultWriteTimeout),
			closeTimeout:     orOff(d.CloseTimeout, defaultCloseTimeout),
			pingInterval:     orOff(d.PingInterval, defaultPingInterval),
			pongTimeout:      orOff(d.PongTimeout, defaultPongTimeout),
			portable:         d.portable,
			sys:              d.sys,
		},
		url: u.Scheme + "://" + u.Host + target,
	}
	return c, &attempt{u, target, addr, slices.Clone(protocols)}, nil
}

// connect opens the transport, does the handshake and makes c OPEN.
func (d *Dialer) connect(ctx context.Context, c *WebSocket, a *attempt) error {
	if t := c.set.handshakeTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, fmt.Errorf("not done within HandshakeTimeout %v: %w", t, context.DeadlineExceeded))
		defer cancel()
	}
	failed := func(reason string, err error) error {
		if e, ok := err.(*HandshakeError); ok {
			return e
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return &HandshakeError{Reason: reason, Err: err}
	}
	proxy, err := d.proxyFor(ctx, a)
	if err != nil {
		return failed("choosing a proxy", err)
	}
	to, what := a.addr, a.addr
	if proxy != nil {
		to = proxyAddr(proxy)
		what = "proxy " + to
	}
	socket, err := d.transport(ctx, to)
	if err != nil {
		return failed("connecting to "+what, err)
	}
	stop := context.AfterFunc(ctx, func() { socket.SetDeadline(past) })
	defer stop()
	conn, early, what, err := d.establish(ctx, socket, proxy, c, a)
	if err == nil && !stop() { // socket's deadline may be past already
		early.free()
		transportOf(conn).Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		socket.Close()
		return failed(what, err)
	}
	conn = wrapTLS(conn)
	if givenUp := c.opened(conn, early); givenUp != nil {
		transportOf(conn).Close()
		early.free()
		return failed("given up", givenUp)
	}
	return nil
}

// opened makes c OPEN, unless it was closed while it was connecting: then it
// returns why.
func (c *WebSocket) opened(conn net.Conn, early *buffer) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.severed() {
		return c.rareLocked().cause
	}
	beginTLS(conn, c.set.writeTimeout)
	c.open(conn, true, early)
	return nil
}

// establish takes a transport to the peer or its proxy through all handshakes.
// It returns what the engine is to use, and what has come early; on failure,
// with which step, and everything is closed.
func (d *Dialer) establish(ctx context.Context, conn net.Conn, proxy *url.URL, c *WebSocket, a *attempt) (_ net.Conn, early *buffer, step string, err error) {
	defer func() {
		if err != nil {
			transportOf(conn).Close()
		}
	}()
	if proxy != nil {
		if conn, err = d.tunnel(ctx, conn, proxy, a.addr); err != nil {
			return nil, nil, "proxy " + proxyAddr(proxy), err
		}
	}
	if c.secure() {
		name, _, _ := splitHost(a.url.Host)
		if d.TLSConfig != nil {
			name = orDefault(d.TLSConfig.ServerName, name)
		}
		if conn, err = d.startTLS(ctx, conn, name, d.pinTLS); err != nil {
			return nil, nil, "TLS with " + a.addr, err
		}
	}
	if early, err = d.handshake(conn, c, a); err != nil {
		return nil, nil, "answer of " + a.addr, err
	}
	if e, ok := conn.(*earlyConn); ok && len(e.early) == 0 {
		conn = e.Conn
	}
	return conn, early, "answer of " + a.addr, nil
}

// startTLS does the TLS handshake with the holder of a name. The deadlines are
// the caller's. With an error it returns what is to be closed.
func (d *Dialer) startTLS(ctx context.Context, conn net.Conn, name string, change func(*tls.Config)) (net.Conn, error) {
	cfg := &tls.Config{}
	if d.TLSConfig != nil {
		cfg = d.TLSConfig.Clone()
	}
	cfg.ServerName = name
	cfg.NextProtos = []string{protoHTTP} // there is no Upgrade in HTTP/2
	change(cfg)
	t := tls.Client(&steadyConn{Conn: conn}, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return t, err
	}
	if cfg.Renegotiation != tls.RenegotiateNever && t.ConnectionState().Version < tls.VersionTLS13 {
		// A handshake may begin in any Read, and a deadline in the middle of one
		// would be the end of it.
		return newForeign(t), nil
	}
	return t, nil
}

// handshake sends the request and checks the answer. It returns what came
// behind that.
func (d *Dialer) handshake(conn net.Conn, c *WebSocket, a *attempt) (early *buffer, err error) {
	var nonce [16]byte
	rand.Read(nonce[:])
	key := base64.StdEncoding.EncodeToString(nonce[:])
	request := d.request(a, key, c.set.compress)
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	most := d.maxHead()
	b := newBuffer(most)
	defer b.free()
	size, err := readAnswer(conn, b, most)
	if r, ok := err.(*refusal); ok {
		if !c.secure() && b.len() > 0 && (b.b[0] == 0x15 || b.b[0] == 0x16) { // alert, handshake: RFC 8446 §5.1
			return nil, &HandshakeError{Reason: "the answer is TLS: this port takes wss://, not ws://", Err: r}
		}
		return nil, &HandshakeError{Reason: "the answer is malformed", Err: r}
	} else if err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return nil, err
	}
	protocol, limits, herr := checkResponse(b.b[:size], acceptKey(key), a.protocols, c.set.compress)
	if herr != nil {
		herr.explain(conn, b.b[:size], b.b[size:])
		if !c.secure() {
			herr.hint()
		}
		return nil, herr
	}
	c.core.limits = limits
	c.mu.Lock()
	c.makeRareLocked().protocol = protocol
	c.makeRareLocked().dialHeads = string(request) + string(b.b[:size])
	c.mu.Unlock()
	if rest := b.b[size:]; len(rest) > 0 {
		early = newBuffer(len(rest))
		early.b = append(early.b, rest...)
	}
	return early, nil
}

// readAnswer is readHead for an answer: those with a status of 1xx but 101 are
// not looked at (RFC 9110 §15.2), and taken out of b. All together have at most
// most bytes.
func readAnswer(conn io.Reader, b *buffer, most int) (size int, err error) {
	for {
		if most <= 0 {
			return 0, errHeadTooLarge
		}
		if size, err = readHead(conn, b, most); err != nil {
			return 0, err
		}
		line, _, _ := bytes.Cut(b.b[:size], []byte("\r\n"))
		proto, code, _ := bytes.Cut(line, []byte(" "))
		if !isHTTP11(proto) || len(code) < 3 || code[0] != '1' || bytes.HasPrefix(code, []byte("101")) {
			return size, nil
		}
		var h head
		if _, err := h.parseResponse(b.b[:size]); err != nil {
			return 0, err
		}
		b.b = b.b[:copy(b.b, b.b[size:])]
		most -= size
	}
}

// dialledRequest returns a dialled socket's opening request and answer from
// their heads, the one behind the other.
func dialledRequest(heads, host, target, remote string, secure *tls.ConnectionState) *http.Request {
	sent, answer, _ := strings.Cut(heads, "\r\n\r\n")
	r := bareRequest(host, target, remote, secure)
	_, lines, _ := strings.Cut(sent, "\r\n")
	r.Header = headerOf(lines)
	r.Header.Del("Host")
	line, lines, _ := strings.Cut(answer, "\r\n")
	_, status, _ := strings.Cut(line, " ")
	r.Response = &http.Response{
		Status: status, StatusCode: http.StatusSwitchingProtocols,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: headerOf(lines), Body: http.NoBody,
	}
	return r
}

const (
	maxErrorBody  = 4 << 10         // of HandshakeError.Body
	errorBodyWait = 2 * time.Second // for what comes of it, if nothing says how long it is
)

// explain adds what the answer with the given head says: its header lines and,
// unless it is a 101, the beginning of its body, of which early has come with
// the head. The deadlines are the caller's, but a body is not worth all that
// time. Nothing can be done with conn afterwards.
func (e *HandshakeError) explain(conn net.Conn, head, early []byte) {
	_, lines, _ := strings.Cut(string(head), "\r\n")
	e.Header = headerOf(lines)
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	_, code, _ := bytes.Cut(line, []byte(" "))
	for _, none := range []string{"101", "204", "304"} { // RFC 9112 §6.3
		if bytes.HasPrefix(code, []byte(none)) {
			return
		}
	}
	stop := time.AfterFunc(errorBodyWait, func() { conn.SetReadDeadline(past) })
	defer stop.Stop()
	var body io.Reader = io.MultiReader(bytes.NewReader(early), conn)
	if strings.EqualFold(e.Header.Get("Transfer-Encoding"), "chunked") {
		body = httputil.NewChunkedReader(body)
	} else if n, err := strconv.ParseInt(e.Header.Get("Content-Length"), 10, 64); err == nil {
		body = io.LimitReader(body, n)
	}
	e.Body, _ = io.ReadAll(io.LimitReader(body, maxErrorBody)) // what came of it
}

// hint adds to the answer to a request over plain text what is often behind it.
func (e *HandshakeError) hint() {
	switch body := strings.ToUpper(string(e.Body)); {
	case e.Status == http.StatusBadRequest && (strings.Contains(body, "HTTPS") || strings.Contains(body, "TLS") || strings.Contains(body, "SSL")):
		e.Reason += ": this port seems to take wss://, not ws://"
	case e.Status == http.StatusOK, e.Status == http.StatusBadRequest, e.Status == http.StatusUpgradeRequired:
		e.Reason += ": perhaps a proxy on the way took Upgrade out of the request"
	}
}

// maxHead is MaxHeaderBytes, with the least that is of use.
func (d *Dialer) maxHead() int {
	return headLimit(d.MaxHeaderBytes)
}

// request renders the opening request.
func (d *Dialer) request(a *attempt, key string, compress *compression) []byte {
	b := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n",
		a.target, a.url.Host, key)
	if len(a.protocols) > 0 {
		b = fmt.Appendf(b, "Sec-WebSocket-Protocol: %s\r\n", strings.Join(a.protocols, ", "))
	}
	if compress != nil {
		b = append(b, "Sec-WebSocket-Extensions: "...)
		b = append(compress.appendOffer(b), "\r\n"...)
	}
	if u := a.url.User; u != nil && d.Header.Get("Authorization") == "" {
		password, _ := u.Password()
		b = fmt.Appendf(b, "Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	for name, values := range d.Header {
		for _, v := range values {
			b = fmt.Appendf(b, "%s: %s\r\n", name, v)
		}
	}
	return append(b, "\r\n"...)
}

// acceptKey is what the answer must have in Sec-WebSocket-Accept (§4.2.2).
func acceptKey(key string) string {
	return string(appendAccept(nil, []byte(key)))
}

// checkResponse checks an answer's head by RFC 6455 §4.1 and the standard, and
// returns the subprotocol chosen, and the limits if compression was agreed on, else nil.
func checkResponse(b []byte, accept string, offered []string, compress *compression) (protocol string, _ *coreLimits, _ *HandshakeError) {
	var h head
	status, err := h.parseResponse(b)
	if err != nil {
		return "", nil, &HandshakeError{Reason: "the answer is malformed", Err: err}
	}
	if status == http.StatusSwitchingProtocols && bytes.HasPrefix(b, []byte("HTTP/1.0 ")) {
		return "", nil, &HandshakeError{Reason: "the answer is malformed", Err: errHeadLine}
	}
	fail := func(reason string) (string, *coreLimits, *HandshakeError) {
		return "", nil, &HandshakeError{Status: status, Reason: reason}
	}
	if status != http.StatusSwitchingProtocols {
		return fail(fmt.Sprintf("the listener answered %d %s", status, http.StatusText(status)))
	}
	up, ups := h.get("Upgrade")
	if ups != 1 || !strings.EqualFold(string(up), "websocket") {
		return fail("the answer lacks Upgrade: websocket")
	}
	if !h.hasToken("Connection", "upgrade") {
		return fail("the answer lacks Connection: Upgrade")
	}
	if v, n := h.get("Sec-WebSocket-Accept"); n != 1 || string(v) != accept {
		return fail("the answer's Sec-WebSocket-Accept is wrong")
	}
	params, agreed, ok := compress.answered(&h)
	if !ok {
		return fail("the answer has an extension that was not offered, or not so")
	}
	v, n := h.get("Sec-WebSocket-Protocol")
	switch {
	case n > 1, n == 1 && !slices.Contains(offered, string(v)):
		return fail("the answer has a subprotocol that was not offered")
	case n == 0 && len(offered) > 0:
		return fail("the listener speaks none of the offered subprotocols")
	}
	var limits *coreLimits
	if agreed {
		limits = compress.agreed(params, true)
	}
	return string(v), limits, nil
}
