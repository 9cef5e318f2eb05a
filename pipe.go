package peerws

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/peerws/peerws/internal/memnet"
)

// Pipe returns two sockets that are connected in memory, both OPEN: one as a
// listener with l's options has accepted it, one as d has dialled it. It is for
// tests of programs. There is no handshake and no subprotocol: [PipeListener] has
// them. l.OnConnection runs first, if it is set. Both work inside testing/synctest.
// It panics if the options are wrong.
func Pipe(l ListenConfig, d Dialer) (accepted, dialled *WebSocket) {
	listener, err := l.prepare(nil)
	if err != nil {
		panic(fmt.Sprintf("peerws: Pipe: %v", err))
	}
	dialled, _, err = d.prepare("ws://pipe/", nil)
	if err != nil {
		panic(fmt.Sprintf("peerws: Pipe: %v", err))
	}
	a, b := memnet.Pipe(0)
	accepted = newOpenWebSocket(listener.set, a, false, nil)
	accepted.url = "ws://pipe/"
	dialled.open(b, true, nil)
	dialled.begin()
	if l.OnConnection != nil {
		accepted.offer(l.OnConnection)
	} else {
		accepted.begin()
	}
	return accepted, dialled
}

// A PipeListener is a [net.Listener] in memory, for tests of programs. What is
// dialled through it goes the whole way, so that a path, a header, a subprotocol or
// an Origin does what it does over the net:
//
//	ln := peerws.NewPipeListener()
//	l, err := config.Serve(ln, "chat")
//	d := ln.Dialer()
//	d.Header = http.Header{"Cookie": {"user=ann"}}
//	c, err := d.Dial(ctx, "ws://chat.example/rooms/7", "chat")
//
// An [http.Server] in which a listener is mounted can serve it as well. Its
// connections have addresses of loopback, and no gateway is asked to forward it. It
// works inside testing/synctest. All methods may be called from any goroutine.
type PipeListener struct{ ln *memnet.Listener }

// NewPipeListener returns a PipeListener, which whoever serves it closes.
func NewPipeListener() *PipeListener { return &PipeListener{memnet.Listen(0)} }

// Accept waits for the next connection. After Close its error wraps
// net.ErrClosed.
func (p *PipeListener) Accept() (net.Conn, error) { return p.ln.Accept() }

// Close ends Accept, and the connections that it has not returned.
func (p *PipeListener) Close() error { return p.ln.Close() }

// Addr returns an address of loopback, which is not bound.
func (p *PipeListener) Addr() net.Addr { return p.ln.Addr() }

// DialContext makes a connection to p, whatever network and addr are, and does not
// wait for Accept. [http.Transport] has a field for it.
func (p *PipeListener) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return p.ln.DialContext(ctx, network, addr)
}

// Dialer returns a Dialer whose transports lead to p, whatever host a URL names,
// and through no proxy. Its other options are at their defaults.
func (p *PipeListener) Dialer() Dialer {
	return Dialer{
		NetDial: p.DialContext,
		Proxy:   func(*http.Request) (*url.URL, error) { return nil, nil },
	}
}
