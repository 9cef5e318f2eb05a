package natlab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// What the tests over links share: two sockets of ours at the ends of one.

// patience is what both sides of a connection are set to.
type patience struct{ ping, pong, write, close time.Duration }

func (p patience) listen() peerws.ListenConfig {
	return peerws.ListenConfig{PingInterval: p.ping, PongTimeout: p.pong, WriteTimeout: p.write, CloseTimeout: p.close, MaxBufferedAmount: 64 << 20, MaxMessageSize: 16 << 20}
}

func (p patience) dialer() peerws.Dialer {
	return peerws.Dialer{PingInterval: p.ping, PongTimeout: p.pong, WriteTimeout: p.write, CloseTimeout: p.close, MaxBufferedAmount: 64 << 20, MaxMessageSize: 16 << 20}
}

// tick is how often a socket's clock looks at it, or a little more.
func (p patience) tick() time.Duration {
	tick := time.Second
	for _, d := range []time.Duration{p.ping / 8, p.pong / 8, p.close / 4} {
		if d > 0 {
			tick = min(tick, d)
		}
	}
	return tick
}

// silent is how long a peer that is not there any more can go unnoticed by a socket
// that has nothing to send.
func (p patience) silent() time.Duration { return p.ping*9/8 + p.pong + 2*p.tick() }

// stuck is the same for a socket whose peer takes nothing any more. Of the first
// quarter of WriteTimeout it cannot know.
func (p patience) stuck() time.Duration { return p.write*5/4 + p.tick() }

// A label is a test that runs as one of several at a time, each in a goroutine of
// its own: they wait more than they compute, and -parallel shall not count them.
type label struct {
	testing.TB
	name string
}

func (l label) Errorf(format string, args ...any) {
	l.Helper()
	l.TB.Errorf("%s: %s", l.name, fmt.Sprintf(format, args...))
}

func (l label) Logf(format string, args ...any) {
	l.Helper()
	l.TB.Logf("%s: %s", l.name, fmt.Sprintf(format, args...))
}

// together runs f for every one of the cases at the same time, each with a link of
// its own.
func together[C any](t *testing.T, cases map[string]C, link func(C) (up, down Line), f func(c C, t label, s *Star, l *Link)) {
	t.Helper()
	s := NewStar(t)
	links := map[string]*Link{}
	for name, c := range cases {
		up, down := link(c)
		links[name] = s.AddLink(t, 1, up, down)
	}
	var wg sync.WaitGroup
	for name, c := range cases {
		wg.Go(func() {
			began := time.Now()
			f(c, label{t, name}, s, links[name])
			t.Logf("%s: %.1f s", name, time.Since(began).Seconds())
		})
	}
	wg.Wait()
}

// A room is a listener of ours in the hub, and how to dial it from the link's other
// end.
type room struct {
	*peerws.WebSocketListener
	url  string
	dial peerws.Dialer
}

// narrow makes the kernel's receive buffer of a connection small, so that a program
// that reads slowly is felt at once by who sends.
func narrow(conn net.Conn, err error) (net.Conn, error) {
	if err == nil {
		err = conn.(*net.TCPConn).SetReadBuffer(8 << 10)
	}
	return conn, err
}

type narrowListener struct{ net.Listener }

func (l narrowListener) Accept() (net.Conn, error) { return narrow(l.Listener.Accept()) }

// open starts a listener for the link. The caller closes it.
func open(t testing.TB, s *Star, l *Link, cfg peerws.ListenConfig, d peerws.Dialer, secure, small bool) *room {
	ln, err := s.Hub.Listen(netip.AddrPortFrom(l.Hub, 0).String())
	if err != nil {
		t.Errorf("%v", err)
		return nil
	}
	if small {
		ln = narrowListener{ln}
	}
	scheme := "ws"
	if secure {
		scheme = "wss"
		cfg.TLSConfig, d.TLSConfig = trust(t, l.Hub)
	}
	if d.NetDial == nil {
		d.NetDial = func(ctx context.Context, _, addr string) (net.Conn, error) { return l.Host.Dial(ctx, addr) }
	}
	listener, err := cfg.Serve(ln)
	if err != nil {
		t.Errorf("%v", err)
		ln.Close()
		return nil
	}
	return &room{listener, fmt.Sprintf("%s://%v/", scheme, ln.Addr()), d}
}

// connect opens a socket and returns both of its ends.
func (r *room) connect(ctx context.Context) (accepted, dialled *peerws.WebSocket, err error) {
	if dialled, err = r.dial.Dial(ctx, r.url); err != nil {
		return nil, nil, err
	}
	if accepted, err = r.Accept(ctx); err != nil {
		dialled.Abort()
		return nil, nil, err
	}
	return accepted, dialled, nil
}

// trust makes a certificate for the addresses, and both sides' configuration for it.
func trust(t testing.TB, addrs ...netip.Addr) (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Errorf("%v", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	for _, a := range addrs {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Errorf("%v", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Errorf("%v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}
