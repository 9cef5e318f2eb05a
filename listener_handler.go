package peerws

import (
	"net/http"

	"github.com/peerws/peerws/nat"
)

// A listener without a port: its requests come from a server that the program
// already runs.

// errHTTP2 answers an attempt to open a WebSocket by RFC 8441 or 9220, and what
// a mounted listener without ListenConfig.HTTP gets over HTTP/2.
var errHTTP2 = &refusal{505, nil, "A WebSocket is opened with HTTP/1.1 here, not with this version of HTTP."}

// Handler is Listen for a program that runs an [http.Server] already: the
// listener gets the upgrades that the handler sees, and has no port of its own.
// Requests that are not an upgrade go to c.HTTP, or get a small 426.
//
//	l, h, err := peerws.ListenConfig{OnConnection: greet}.Handler("chat")
//	mux.Handle("/chat", h)
//
// The listener is ListenerListening at once. Port is 0, Addr nil, URL "" and
// Addresses empty, for they are the server's; so are the limits on reading the
// request, and MaxConnectionsPerIP is not counted. Everything else holds as with
// Listen. Address, NAT, TLSConfig, Identity and RequireTLS must not be set: the error is a
// *SyntaxError.
//
// Web pages of the server's own name may connect if the server speaks TLS, or the
// pattern of its [http.ServeMux] has the name, such as "room.example/chat"; behind a
// proxy, and without TLS, the name belongs into AllowedHosts.
//
// Headers that handlers around it have set in w.Header, such as Set-Cookie, are in
// the answer, unless they belong to a body or to the opening handshake.
//
// The handler takes the connection over and returns; callbacks run on goroutines
// of the library, so that the server does not recover their panics, and the
// server's Shutdown knows nothing of the sockets: call the listener's too. After
// Close the handler answers 503 to everything. It needs HTTP/1.1: over HTTP/2 a
// WebSocket is refused with 505.
func (c ListenConfig) Handler(protocols ...string) (*WebSocketListener, http.Handler, error) {
	for _, o := range []struct {
		name string
		set  bool
	}{{"Address", c.Address != ""}, {"NAT", c.NAT != nil}, {"TLSConfig", c.TLSConfig != nil}, {"Identity", c.Identity != nil}, {"RequireTLS", c.RequireTLS}} {
		if o.set {
			return nil, nil, &SyntaxError{"option", o.name, "is for a listener with a port of its own, a Handler has none"}
		}
	}
	l, err := c.prepare(protocols)
	if err != nil {
		return nil, nil, err
	}
	close(l.accepting)
	l.setReach(Reachability{Code: nat.CodeOff, Summary: "The port is that of the server the listener is mounted in."})
	l.setState(ListenerListening)
	next := c.HTTP
	if next == nil {
		next = http.HandlerFunc(l.refuseWeb)
	}
	return l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case l.ReadyState() == ListenerClosed:
			l.refuseHTTP(w, r, errClosing)
		case r.ProtoMajor > 1 && wantsBootstrap(r):
			l.refuseHTTP(w, r, errHTTP2)
		default:
			l.serveHTTP(w, r, next)
		}
	}), nil
}

// wantsBootstrap reports whether a request of HTTP/2 or 3 asks for a WebSocket.
func wantsBootstrap(r *http.Request) bool {
	return r.Method == http.MethodConnect || r.Header.Get("Sec-Websocket-Version") != "" || r.Header.Get("Sec-Websocket-Key") != ""
}

// refuseWeb answers what is not an upgrade.
func (l *WebSocketListener) refuseWeb(w http.ResponseWriter, r *http.Request) {
	no := errNoUpgrade
	switch {
	case r.ProtoMajor > 1:
		no = errHTTP2
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		no = errMethod
	}
	l.refuseHTTP(w, r, no)
}

// refuseHTTP is refuse for a request that net/http has read. err is a *refusal or a
// *rejection.
func (l *WebSocketListener) refuseHTTP(w http.ResponseWriter, r *http.Request, err error) {
	remote := func() string { return r.RemoteAddr }
	l.countRefused(remote, err, reasonOf(err))
	no, cause := refusalOf(err)
	l.logRefusal(remote, no.status, cause)
	no.writeTo(w, r)
}
