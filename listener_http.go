package peerws

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// One port serves WebSockets and ordinary HTTP: a connection whose first
// request is not an upgrade is handed to an http.Server of ours, head and all. An
// upgrade that comes later on such a connection is taken back.

// httpIdle is how long a kept-alive HTTP connection may be silent.
const httpIdle = 60 * time.Second

// A webServer runs ListenConfig.HTTP.
type webServer struct {
	srv   http.Server
	conns chan net.Conn
	once  sync.Once
	gone  chan struct{}
	owner *WebSocketListener
}

func newWebServer(l *WebSocketListener, c *ListenConfig) *webServer {
	w := &webServer{conns: make(chan net.Conn), gone: make(chan struct{}), owner: l}
	logger := log.New(io.Discard, "", 0)
	if c.Logger != nil {
		logger = slog.NewLogLogger(c.Logger.Handler(), slog.LevelWarn)
	}
	w.srv = http.Server{
		Handler:           http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { l.serveHTTP(rw, r, c.HTTP) }),
		ReadHeaderTimeout: l.set.handshakeTimeout,
		IdleTimeout:       httpIdle,
		MaxHeaderBytes:    l.maxHead,
		ErrorLog:          logger,
	}
	return w
}

// serve runs the server until stop.
func (w *webServer) serve() { w.srv.Serve(w) }

// Accept, Close and Addr make the server its own net.Listener.
func (w *webServer) Accept() (net.Conn, error) {
	select {
	case conn := <-w.conns:
		return conn, nil
	case <-w.gone:
		return nil, net.ErrClosed
	}
}

func (w *webServer) Close() error {
	w.once.Do(func() { close(w.gone) })
	return nil
}

func (w *webServer) Addr() net.Addr { return w.owner.Addr() }

// hand gives a connection over.
func (w *webServer) hand(wc *webConn) {
	var conn net.Conn = wc
	if state := tlsState(wc.Conn); state != nil {
		conn = &webTLSConn{wc, *state}
	}
	select {
	case w.conns <- conn:
	case <-w.gone:
		conn.Close()
	}
}

// stop lets requests that are being answered finish until ctx ends.
func (w *webServer) stop(ctx context.Context) {
	if w.srv.Shutdown(ctx) != nil {
		w.srv.Close()
	}
}

// A webConn is a connection of which some bytes have been read already, and that
// is counted.
type webConn struct {
	earlyConn
	owner *WebSocketListener
	key   ipKey // what the owner counts it under
	once  sync.Once

	remote  netip.AddrPort // as in arrival
	proxied bool
}

// RemoteAddr is the peer's address, if a proxy has said it in the PROXY protocol.
func (c *webConn) RemoteAddr() net.Addr {
	if c.remote.IsValid() {
		return net.TCPAddrFromAddrPort(c.remote)
	}
	return c.Conn.RemoteAddr()
}

// A webTLSConn lets net/http see that it is TLS.
type webTLSConn struct {
	*webConn
	state tls.ConnectionState
}

func (c *webTLSConn) ConnectionState() tls.ConnectionState { return c.state }

func (c *webConn) Close() error {
	var err error
	if foreignOf(c.Conn) == nil {
		err = c.Conn.Close()
	} else {
		go c.Conn.Close() // it may wait, and net/http has a lock
	}
	c.once.Do(func() {
		c.owner.leave(c.key)
		c.owner.unreserve()
	})
	return err
}

// CloseWrite lets net/http end an answer without a reset.
func (c *webConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// serveHTTP is the handler of the web server.
func (l *WebSocketListener) serveHTTP(w http.ResponseWriter, r *http.Request, next http.Handler) {
	h := headOf(r)
	h.ours = patternHost(r.Pattern)
	if r.TLS != nil {
		h.secure, h.ours = true, orDefault(h.ours, r.TLS.ServerName)
	}
	if !h.wantsUpgrade() {
		next.ServeHTTP(w, r)
		return
	}
	o, err := l.check(h)
	if err == nil {
		err = l.reserve()
	}
	if err != nil {
		l.refuseHTTP(w, r, err)
		return
	}
	outer := outerHeader(w.Header())
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		l.unreserve()
		http.Error(w, "This server cannot hand its connections over.", http.StatusInternalServerError)
		return
	}
	early := newBuffer(max(rw.Reader.Buffered(), 1))
	early.b = early.b[:rw.Reader.Buffered()]
	io.ReadFull(rw.Reader, early.b)
	var key ipKey
	if c, ok := conn.(*webTLSConn); ok {
		conn = c.webConn
	}
	var remote netip.AddrPort // as in arrival
	proxied := false
	if c, ok := conn.(*webConn); ok {
		l.unreserve() // the transport's place: the socket has one of its own
		conn, key = c.Conn, c.key
		remote, proxied = c.remote, c.proxied
		early.b = append(early.b, c.early...)
	} else if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && l.trusts(a.Addr()) {
		remote = l.forwarded(a, h)
	}
	conn.SetDeadline(time.Time{}) // the server's
	conn = adopt(conn)
	a, refused := l.enter(conn, key)
	if refused != nil {
		early.free()
		l.unreserve()
		l.countRefused(func() string { return r.RemoteAddr }, refused, reasonOf(refused))
		transportOf(conn).Close() // the listener is closed
		l.leave(key)
		return
	}
	a.remote, a.proxied = remote, proxied
	c := l.newSocket(&o, r.TLS != nil, key)
	c.in = early
	x := c.makeRareLocked() // nobody else knows c yet
	x.parsed = r.WithContext(context.WithoutCancel(r.Context()))
	x.parsed.Body = http.NoBody
	if target := string(o.target); x.parsed.RequestURI != target { // it was in absolute form
		x.parsed.RequestURI, x.parsed.URL = target, targetURL(target)
	}
	go func() { // net/http would recover a panic of the program's here
		if a.proxied {
			if err := a.identifyBy(h); err != nil {
				early.free()
				l.unreserve()
				l.refuse(a, conn, http.MethodGet, err, outer)
				l.leave(a.key)
				a.end()
				return
			}
			c.ipKey = a.key
		}
		c.setRemote(a.remote)
		c := l.upgrade(a, conn, c, &o, outer)
		a.end()
		if c != nil {
			l.handOver(c)
		}
	}()
}

// patternHost returns the host name of a pattern of [http.ServeMux], or "": the
// program's own word for what its name is.
func patternHost(pattern string) string {
	if _, rest, ok := strings.Cut(pattern, " "); ok { // behind a method
		pattern = strings.TrimLeft(rest, " \t")
	}
	host, _, _ := strings.Cut(pattern, "/")
	return host
}

// outerHeader renders what the program's own handlers around this one have put
// into their answer, a cookie for example, but not what belongs to a body or to
// the handshake.
func outerHeader(h http.Header) []byte {
	var b bytes.Buffer
	for name, values := range h {
		one := http.Header{name: values}
		if strings.HasPrefix(http.CanonicalHeaderKey(name), "Content-") || checkHeader("header", one, "Trailer", "Keep-Alive") != nil {
			continue
		}
		one.Write(&b)
	}
	return b.Bytes()
}

// headOf puts a request that net/http has read back into a head.
func headOf(r *http.Request) *head {
	h := &head{method: []byte(r.Method), target: []byte(r.RequestURI), proto: []byte(r.Proto)}
	h.fields = append(h.store[:0], field{[]byte("Host"), []byte(r.Host)})
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		h.fields = append(h.fields, field{[]byte("Transfer-Encoding"), []byte("chunked")})
	}
	for name, values := range r.Header {
		for _, v := range values {
			h.fields = append(h.fields, field{[]byte(name), []byte(v)})
		}
	}
	return h
}
