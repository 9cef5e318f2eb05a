package peerws

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/peerws/peerws/nat"
)

// A ListenConfig sets a listener up. Its zero value is good: everything at its
// default, and the gateway is not touched. For every number and time zero means
// the default, negative means off or unlimited. It is copied when the listener
// starts.
type ListenConfig struct {
	// Address is the host name or IP address to bind, "" for every address of
	// this machine, IPv4 and IPv6.
	Address string

	// OnConnection runs once for each connection, on a goroutine of the
	// library, for different connections at the same time. Nothing is read from
	// the peer before it returns.
	OnConnection func(*WebSocket)

	// NAT asks the gateway to forward the port. nil: no mapping. nat.Any() asks
	// in every protocol.
	NAT nat.Mapper

	// Verify asks somebody outside to connect to url, and returns nil if that
	// went well: the address is Verified then. It is called, in the background,
	// once for each public address that the gateway forwards, and again when
	// the mapping has changed; it may take its time, until ctx ends with the
	// mapping or with the listener, and must not call Close. A chat, for example,
	// sends the URL to a friend it is connected with, who dials it and sends back
	// how that went. Only the program knows whom to ask; no service of
	// anybody's is used. An error becomes part of Reachability, with the code
	// mapped-but-unverified. nil: the address is connected to once from here, for
	// the gateways that let that through (3 s at most); and in either case the
	// first peer that comes in from outside verifies the address.
	Verify func(ctx context.Context, url string) error

	// TLSConfig makes the port speak TLS too, wss and https: a connection whose
	// first byte begins TLS is TLS, any other stays plain. Its Certificates,
	// GetCertificate or GetConfigForClient choose the certificate; pages reach
	// the port without a browser's warning only by the names and addresses that
	// stand in it. Peers that connect by an address send no server name. HTTP/1.1
	// is all that is agreed on, and acme-tls/1 if NextProtos lists it; TLS 1.2 is the least,
	// whatever MinVersion says. nil: no TLS.
	TLSConfig *tls.Config

	// Identity makes the port speak TLS as TLSConfig does, with a key that programs know
	// from a link ([Dialer].PeerKey), and that needs no certificate authority. Beside a
	// TLSConfig it is shown only to a Dialer that asks for it. nil: none.
	Identity *Identity

	// RequireTLS refuses requests that come without TLS: those for a page of HTTP are
	// sent to its https form (308), all others get 426. A proxy of TrustedProxies has
	// done the TLS itself, and is let in without.
	RequireTLS bool

	// HTTP answers requests that are not an upgrade, on the same port. nil: they
	// get a small 426. Its requests have no time limit of their own once their
	// head has been read.
	HTTP http.Handler

	// Authorize decides about a request that is otherwise acceptable. An error
	// refuses it: a *RejectError with its own answer, any other with 403.
	// It runs within HandshakeTimeout, for different requests at the same time.
	// What it puts into the request's context is in that of WebSocket.Request:
	//
	//	*r = *r.WithContext(context.WithValue(r.Context(), userKey{}, user))
	Authorize func(*http.Request) error

	// ResponseHeader is added to the answer of every accepted handshake.
	ResponseHeader http.Header

	// Respond adds to the answer of one accepted handshake, a cookie for example,
	// or chooses its subprotocol. It runs behind Authorize, on the same request and
	// under the same rules. With Respond set a peer that offers only subprotocols
	// which are not the listener's is refused if Respond chooses none of them. An
	// answer that cannot be sent becomes a 500, and a Warn record of Logger says why.
	Respond func(*http.Request, *Answer)

	// AllowedOrigins lists origins of web pages that may connect, such as
	// "https://example.com", "null" or "file://"; "*" allows all. Pages that come
	// from the very host and port they connect to are allowed if that host is ours:
	// an IP address, localhost, one of AllowedHosts, or what the request itself
	// proves (see there). So are programs that send the address they dial as Origin.
	// Programs that send none are always allowed.
	AllowedOrigins []string

	// AllowedHosts lists names of this machine, without port. They are needed where
	// pages come by a name and without TLS: whoever has a name of their own can make
	// it point here. Over TLS a browser has compared the name with our certificate,
	// and the host in a pattern of [http.ServeMux] is the program's own word: such
	// names need not be listed.
	AllowedHosts []string

	HandshakeTimeout       time.Duration // for the whole opening handshake, TLS included; 0: 10 s
	MaxHeaderBytes         int           // of a request head; 0 and less: 8 KiB, at least 512; there is always a limit
	MaxHandshakes          int           // opening handshakes at a time; more wait, up to 16 for each, and who says nothing then gives way, of the busiest address first; 0: 128
	MaxConnections         int           // sockets at a time, and connections of HTTP; 0: 1024
	MaxConnectionsPerIP    int           // transports at a time from one IPv4 address or IPv6 /64; 0: 64, loopback not counted
	MaxConnectionRatePerIP int           // transports a second from one such address on average, eight seconds' worth at once; 0: 32, loopback not counted
	MaxHeldBytes           int64         // bytes held for all peers together: of messages that have not come whole, or are being worked on, and of queues; beyond it who holds the most is ended; 0: 512 MiB, at least what four peers may hold
	MaxMessageSize         int64         // bytes over all fragments of a message; 0: 1 MiB
	MaxFragments           int           // of a message, and one more for every 512 bytes of it; 0: 1024, or off with MaxMessageSize
	MaxBufferedAmount      int           // payload bytes queued on one socket, with an eighth more and 4 KiB for their headers; 0: 1 MiB
	WriteTimeout           time.Duration // without the peer taking anything, of the kernel's queue neither (Linux); 0: 30 s
	PingInterval           time.Duration // silence of the peer before it is pinged, more or less; 0: 25 s
	PongTimeout            time.Duration // silence after a ping, the peer taking nothing either (Linux), before it is given up; 0: 20 s
	FirstMessageTimeout    time.Duration // from the opening of a socket until its first message has come; 0: off
	CloseTimeout           time.Duration // of the closing handshake, anew while the peer takes what lies before our Close frame (Linux) or, 16 times at most, sends; 0: 5 s

	// TrustedProxies are the addresses of reverse proxies, of which every peer seems to
	// come else, and share their limits. They are asked whom they speak for: in the
	// PROXY protocol before the request, versions 1 and 2, or in Forwarded (RFC 7239)
	// or X-Forwarded-For. RemoteAddr and the limits of an address then mean the peer. List
	// no address from which anybody else can connect: the whole of it is believed.
	TrustedProxies []netip.Prefix

	// Trace is told what happens to peers. nil costs nothing.
	Trace *Trace

	// Compression is permessage-deflate (RFC 7692). The zero value is off.
	Compression Compression

	// Logger gets what happens: at Info also the requests that are refused, one a
	// second at most; at Warn each web page that is refused, once, with the option
	// that would let it in; at Debug the opening of every connection, and its end with
	// the cause. What strangers can cause without a connection is told once a second
	// at most, with how many others there were. nil: silent.
	Logger *slog.Logger

	portable bool     // test seam: never take the raw path
	loopDial dialFunc // test seam: in place of dialOutside
	sys      *sysOps
}

// A RejectError is returned by [ListenConfig.Authorize] to choose the answer.
//
// A redirect has its target in Header, as Location; programs may follow it,
// browsers do not and take it as a failure.
//
// On a mounted listener the answer also has what handlers around it have set, a
// cookie or the headers of CORS, but for names that are in Header too; a Set-Cookie
// there is added.
type RejectError struct {
	Status int         // 300 to 599; else 403 is sent
	Header http.Header // added to the answer; what ResponseHeader must not have is not sent, nor Content-Type
	Body   string      // plain text; a 304 has none
}

func (e *RejectError) Error() string {
	return fmt.Sprintf("rejected with status %d: %s", orDefault(e.Status, http.StatusForbidden), e.Body)
}

// prepare checks the options and makes a listener that is not bound yet.
func (c *ListenConfig) prepare(protocols []string) (*WebSocketListener, error) {
	if err := checkProtocols(protocols); err != nil {
		return nil, err
	}
	limits := coreLimits{
		maxMessage:   orDefault(c.MaxMessageSize, defaultMaxMessageSize),
		maxFragments: fragmentLimit(c.MaxFragments, c.MaxMessageSize),
	}
	for _, p := range c.TrustedProxies {
		if !p.IsValid() {
			return nil, &SyntaxError{"trusted proxy", p.String(), "must be a prefix such as 10.0.0.1/32"}
		}
	}
	compress, err := c.Compression.prepare(limits)
	if err != nil {
		return nil, err
	}
	if err := checkHeader("response header", c.ResponseHeader); err != nil {
		return nil, err
	}
	hosts := c.AllowedHosts
	if _, err := netip.ParseAddr(c.Address); err != nil && c.Address != "" {
		if _, ok := hostName(c.Address); !ok {
			return nil, &SyntaxError{"address", c.Address, "must be a host name or an IP address, without a port"}
		}
		hosts = append(hosts[:len(hosts):len(hosts)], c.Address)
	}
	policy, err := newPolicy(c.AllowedOrigins, hosts)
	if err != nil {
		return nil, err
	}
	var secure *tls.Config
	if c.TLSConfig != nil || c.Identity != nil {
		if secure, err = serverTLS(c.TLSConfig, c.Identity); err != nil {
			return nil, err
		}
	} else if c.RequireTLS {
		return nil, &SyntaxError{"option", "RequireTLS", "needs TLSConfig or Identity"}
	}
	l := &WebSocketListener{
		machine: thisMachine(),
		set: &settings{
			core:             limits,
			compress:         compress,
			maxBuffered:      orDefault(c.MaxBufferedAmount, defaultMaxBufferedAmount),
			handshakeTimeout: orOff(c.HandshakeTimeout, defaultHandshakeTimeout),
			writeTimeout:     orOff(c.WriteTimeout, defaultWriteTimeout),
			closeTimeout:     orOff(c.CloseTimeout, defaultCloseTimeout),
			pingInterval:     orOff(c.PingInterval, defaultPingInterval),
			pongTimeout:      orOff(c.PongTimeout, defaultPongTimeout),
			firstMessage:     max(c.FirstMessageTimeout, 0),
			portable:         c.portable,
			sys:              c.sys,
		},
		protocols:    append([]string(nil), protocols...),
		tls:          secure,
		requireTLS:   c.RequireTLS,
		policy:       policy,
		authorize:    c.Authorize,
		respond:      c.Respond,
		maxHead:      headLimit(c.MaxHeaderBytes),
		maxConns:     orDefault(c.MaxConnections, defaultMaxConnections),
		maxPerIP:     orDefault(c.MaxConnectionsPerIP, defaultMaxConnectionsPerIP),
		loopback:     c.MaxConnectionsPerIP > 0,
		loopbackRate: c.MaxConnectionRatePerIP > 0,
		proxies:      slices.Clone(c.TrustedProxies),
		trace:        c.Trace,
		log:          c.Logger,
		lingers:      semaphore.NewWeighted(maxLingers),
		ready:        make(chan struct{}),
		closing:      make(chan struct{}),
		done:         make(chan struct{}),
		accepting:    make(chan struct{}),
		arrived:      make(chan struct{}, 1),
		onConnection: c.OnConnection,
		verify:       c.Verify,
		loopDial:     c.loopDial,
		perIP:        make(map[ipKey]int),
	}
	if rate := orDefault(c.MaxConnectionRatePerIP, defaultMaxConnectionRatePerIP); rate > 0 {
		l.rate.every = time.Second / time.Duration(rate)
	}
	l.maxHeld = heldLimit(c.MaxHeldBytes, limits.maxMessage, l.set.maxBuffered)
	l.clock = newClock(l.set, l.checkTimes)
	l.maxHandshakes = max(orDefault(c.MaxHandshakes, defaultMaxHandshakes), 0)
	var header bytes.Buffer
	c.ResponseHeader.Write(&header)
	l.header = header.Bytes()
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	return l, nil
}

// settings are the limits and times of a listener or dialer with the defaults
// filled in. They never change, so all of its sockets share one.
type settings struct {
	core             coreLimits
	compress         *compression  // nil if it is off
	maxBuffered      int           // payload bytes queued on one socket; negative: no limit
	handshakeTimeout time.Duration // of the whole opening handshake; 0: none
	writeTimeout     time.Duration // without progress; 0: none
	pingInterval     time.Duration // of silence before a ping; 0: none
	pongTimeout      time.Duration // of silence after a ping; 0: none
	firstMessage     time.Duration // from the opening to the first message; 0: none
	closeTimeout     time.Duration // from our Close frame leaving to the end; 0: none

	// Seams of our tests.
	portable bool    // never take the raw path
	sys      *sysOps // system calls of the raw path, nil for the real ones
}

// Defaults of the fields that ListenConfig and Dialer share.
const (
	defaultMaxMessageSize    = 1 << 20
	defaultMaxFragments      = 1024
	defaultMaxBufferedAmount = 1 << 20
	defaultHandshakeTimeout  = 10 * time.Second
	defaultWriteTimeout      = 30 * time.Second
	defaultCloseTimeout      = 5 * time.Second
	defaultPingInterval      = 25 * time.Second
	defaultPongTimeout       = 20 * time.Second
	defaultMaxHeaderBytes    = 8 << 10
)

// Defaults and limits of a listener.
const (
	defaultMaxConnections      = 1024
	defaultMaxConnectionsPerIP = 64
	defaultMaxHandshakes       = 128

	defaultMaxConnectionRatePerIP = 32
	defaultMaxHeldBytes           = 512 << 20

	minHeaderBytes = 512 // a smaller MaxHeaderBytes would refuse what every browser sends
	maxLingers     = 16  // refused peers at a time that are read on, so that they get their answer
)

// heldLimit resolves MaxHeldBytes. Its default leaves room for a few peers that go to
// their own limits. Negative is none.
func heldLimit(n, message int64, buffered int) int64 {
	if n != 0 {
		return n
	}
	if message < 0 || message > maxInt/16 || buffered < 0 { // a peer has no limit of its own
		return defaultMaxHeldBytes
	}
	return max(defaultMaxHeldBytes, 4*(message+int64(buffered)))
}

// headLimit resolves MaxHeaderBytes. There is always a limit.
func headLimit(n int) int {
	if n < 0 {
		n = 0
	}
	return max(orDefault(n, defaultMaxHeaderBytes), minHeaderBytes)
}

// orDefault resolves a field by the rule of every option: zero is the default,
// negative is off.
func orDefault[T cmp.Ordered](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// fragmentLimit resolves MaxFragments. Its default follows MaxMessageSize: where
// a message may have any size, it may have any number of fragments.
func fragmentLimit(fragments int, size int64) int {
	if fragments == 0 && size < 0 {
		return -1
	}
	return orDefault(fragments, defaultMaxFragments)
}

// orOff is orDefault for times, where 0 then stands for off.
func orOff(d, def time.Duration) time.Duration { return max(orDefault(d, def), 0) }
