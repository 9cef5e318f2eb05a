package peerws

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// testTrust is a certificate for this machine's names, and whom to trust for it.
var testTrust = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		NotBefore:             time.Unix(0, 0), // a bubble's clock begins in 2000
		NotAfter:              time.Unix(1<<33, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost", "home.example"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
})

func serverConfig() *tls.Config {
	cert, _ := testTrust()
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func clientConfig() *tls.Config {
	_, pool := testTrust()
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func trusting() Dialer {
	c := clientConfig()
	c.ServerName = ""
	return Dialer{TLSConfig: c}
}

// tlsTransports are for the engine's tests: TLS as we make it, and a connection
// that somebody else has made, net/http for example.
var tlsTransports = []transport{
	{"TLS", func(t testing.TB) (net.Conn, net.Conn, bool) {
		a, b := memnet.Pipe(0)
		server, client := tlsOver(t, &steadyConn{Conn: a}, b)
		return steady(server, defaultWriteTimeout), client, false
	}},
	{"foreign TLS", func(t testing.TB) (net.Conn, net.Conn, bool) {
		a, b := tcpPair(t)
		server, client := tlsOver(t, a, b)
		return steady(server, defaultWriteTimeout), client, false
	}},
}

func steady(conn net.Conn, stall time.Duration) net.Conn {
	conn = wrapTLS(conn)
	beginTLS(conn, stall)
	return conn
}

// tlsOver does the handshake over a pair of connections.
func tlsOver(t testing.TB, a, b net.Conn) (server, client *tls.Conn) {
	t.Helper()
	server, client = tls.Server(a, serverConfig()), tls.Client(b, clientConfig())
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	return server, client
}

// One port: a first byte of 0x16 is TLS, everything else is not.
func TestTLS_OnePort(t *testing.T) {
	requests := make(chan *http.Request, 2)
	l := listen(t, ListenConfig{
		TLSConfig: serverConfig(),
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "secure %v", r.TLS != nil && r.TLS.HandshakeComplete)
		}),
		Authorize: func(r *http.Request) error {
			if r.TLS != nil != (r.Header.Get("X-Secure") != "") {
				t.Errorf("Authorize: TLS %v, %v", r.TLS, r.Header)
			}
			return nil
		},
		OnConnection: func(c *WebSocket) {
			requests <- c.Request()
			echoing(c)
		},
	})
	if u := l.URL(); !strings.HasPrefix(u, "wss://127.0.0.1:") {
		t.Errorf("URL %q", u)
	}
	for _, a := range l.Addresses() {
		if !strings.HasPrefix(a.URL, "wss://") {
			t.Errorf("%+v", a)
		}
	}
	plain := "ws" + strings.TrimPrefix(l.URL(), "wss")
	for _, u := range []string{l.URL(), plain} {
		secure := u != plain
		d := trusting()
		if secure {
			d.Header = http.Header{"X-Secure": {"yes"}}
		}
		c, err := d.Dial(t.Context(), u+"x")
		if err != nil {
			t.Fatal(err)
		}
		r := <-requests
		if (r.TLS != nil) != secure {
			t.Errorf("%s: Request().TLS is %v", u, r.TLS)
		}
		got := make(chan Message, 1)
		c.OnMessage(func(_ *WebSocket, m Message) { got <- Message{Type: m.Type, Data: bytes.Clone(m.Data)} })
		for _, n := range []int{0, 1, 1000, 20_000, 1 << 20} {
			p := bytes.Repeat([]byte("x"), n)
			if err := c.Write(t.Context(), Message{Type: Binary, Data: p}); err != nil {
				t.Fatal(err)
			}
			if m := <-got; !bytes.Equal(m.Data, p) {
				t.Fatalf("%s: %d bytes came back as %d", u, n, len(m.Data))
			}
		}
		if c.URL() != u+"x" {
			t.Errorf("URL() is %q, not %qx", c.URL(), u)
		}
		c.CloseWith(3001, "bye")
		if ev := waitDone(t, c); !ev.WasClean || ev.Code != 3001 {
			t.Errorf("%s: %+v", u, ev)
		}
	}

	tr := &http.Transport{TLSClientConfig: clientConfig(), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, Timeout: 10 * time.Second}
	for _, scheme := range []string{"https", "http"} {
		for range 2 {
			r, err := client.Get(scheme + "://" + l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if want := fmt.Sprintf("secure %v", scheme == "https"); string(body) != want || r.ProtoMajor != 1 {
				t.Errorf("%s: %q over %s", scheme, body, r.Proto)
			}
		}
	}
}

// The accepted side's URL, and what it keeps after the first message.
func TestTLS_Request(t *testing.T) {
	l := listen(t, ListenConfig{TLSConfig: serverConfig()})
	c, err := trusting().Dial(t.Context(), l.URL()+"p?q")
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.URL() != l.URL()+"p?q" {
		t.Errorf("URL %q", a.URL())
	}
	got := make(chan struct{})
	a.OnMessage(func(*WebSocket, Message) { got <- struct{}{} })
	c.SendText("x")
	<-got
	if r := a.Request(); r.TLS == nil || r.TLS.Version < tls.VersionTLS12 || len(r.Header) > 0 {
		t.Errorf("%+v", r)
	}
	c.Abort()
}

func knockTLS(t testing.TB, l *WebSocketListener, cfg *tls.Config, parts ...string) *knocker {
	t.Helper()
	conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.NetConn().Close() })
	return knockOn(t, conn, parts...)
}

// An upgrade that comes later on a kept-alive https connection, frames with it.
func TestTLS_UpgradeOnKeptAlive(t *testing.T) {
	secure := make(chan bool, 1)
	l := openPort(t, ListenConfig{TLSConfig: serverConfig(), HTTP: page, OnConnection: func(c *WebSocket) {
		secure <- c.Request().TLS != nil && strings.HasPrefix(c.URL(), "wss://")
		echoing(c)
	}})
	for _, parts := range [][]string{
		{upgrade, maskedHello},
		{getPage, upgrade, maskedHello},
		{getPage, getPage, add("X-Fill: " + strings.Repeat("x", 5000) + "\r\n"), strings.Repeat(maskedHello, 2000)},
	} {
		k := knockTLS(t, l, clientConfig(), parts...)
		for range len(parts) - 2 {
			if r, _ := k.answer("GET"); r.StatusCode != 200 {
				t.Fatalf("status %d", r.StatusCode)
			}
		}
		k.wantOpen()
		k.wantBytes("echo", strings.Repeat(hello, strings.Count(parts[len(parts)-1], maskedHello)))
		if !<-secure {
			t.Error("TLS is not seen")
		}
	}
}

// Refusals reach a TLS peer, and their end is not a cut.
func TestTLS_Refusals(t *testing.T) {
	l := openPort(t, ListenConfig{TLSConfig: serverConfig()})
	knockTLS(t, l, clientConfig(), getPage).wantRefusal(426)
	knockTLS(t, l, clientConfig(), swap(versionLine, "Sec-WebSocket-Version: 8\r\n")).wantRefusal(426)
	knockTLS(t, l, clientConfig(), add("Origin: https://evil.example\r\n")).wantRefusal(403)
	knock(t, l, getPage).wantRefusal(426)
}

// A page's host is held against ours with the port of its scheme.
func TestTLS_Origin(t *testing.T) {
	l := openPort(t, ListenConfig{TLSConfig: serverConfig(), AllowedHosts: []string{"home.example"}, OnConnection: echoing})
	for _, c := range []struct {
		host, origin  string
		secure, plain int
	}{
		{"127.0.0.1:9000", "https://127.0.0.1:9000", 101, 101},
		{"127.0.0.1:9000", "http://127.0.0.1:9000", 101, 101}, // the port serves both
		{"home.example", "https://home.example", 101, 101},    // plain: a TLS proxy may be before us
		{"home.example", "https://home.example:443", 101, 101},
		{"home.example:443", "https://home.example", 101, 101},
		{"home.example", "http://home.example", 403, 101}, // another port of that host
		{"home.example", "http://home.example:80", 403, 101},
		{"home.example:80", "https://home.example", 403, 403},
		{"evil.example", "https://evil.example", 403, 403},
	} {
		head := strings.Replace(add("Origin: "+c.origin+"\r\n"), hostLine, "Host: "+c.host+"\r\n", 1)
		if r, _ := knockTLS(t, l, clientConfig(), head).answer("GET"); r.StatusCode != c.secure {
			t.Errorf("wss, Host %s, Origin %s: %d", c.host, c.origin, r.StatusCode)
		}
		if r, _ := knock(t, l, head).answer("GET"); r.StatusCode != c.plain {
			t.Errorf("ws, Host %s, Origin %s: %d", c.host, c.origin, r.StatusCode)
		}
	}
}

func TestTLS_Config(t *testing.T) {
	cert, _ := testTrust()
	c := ListenConfig{TLSConfig: &tls.Config{}}
	_, err := c.Listen(t.Context(), 0)
	wantSyntaxError(t, err, "TLSConfig", "")

	// Only HTTP/1.1 is agreed on, whatever the program lists; without ALPN it works too.
	given := serverConfig()
	given.NextProtos = []string{"h2", "http/1.1", protoACME}
	chosen := given.Clone()
	perClient := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return chosen, nil }}
	nothing := &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil },
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if h.ServerName != "" && h.ServerName != "localhost" {
				return nil, errors.New("not ours")
			}
			return &cert, nil
		},
	}
	for name, cfg := range map[string]*tls.Config{"plain": given, "GetConfigForClient": perClient, "GetCertificate": nothing} {
		t.Run(name, func(t *testing.T) {
			l := openPort(t, ListenConfig{TLSConfig: cfg, OnConnection: echoing})
			for _, offer := range [][]string{nil, {"http/1.1"}, {"h2", "http/1.1"}} {
				cc := clientConfig()
				cc.NextProtos = offer
				k := knockTLS(t, l, cc, upgrade, maskedHello)
				k.wantOpen()
				k.wantBytes("echo", hello)
				want := "http/1.1"
				if offer == nil {
					want = ""
				}
				if got := k.conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != want {
					t.Errorf("offered %q, agreed on %q", offer, got)
				}
			}
			cc := clientConfig()
			cc.NextProtos = []string{"h2"}
			if conn, err := tls.Dial("tcp", l.Addr().String(), cc); err == nil {
				conn.Close()
				t.Error("h2 alone was agreed on")
			}
			// An address has no server name.
			cc = clientConfig()
			cc.ServerName = "127.0.0.1"
			knockTLS(t, l, cc, upgrade).wantOpen()
			// A certificate authority's look at ours ends with the handshake.
			cc = clientConfig()
			cc.NextProtos = []string{protoACME}
			conn, err := tls.Dial("tcp", l.Addr().String(), cc)
			if (err == nil) != (name != "GetCertificate") {
				t.Errorf("acme-tls/1: %v", err)
			}
			if err == nil {
				if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
					t.Error("something follows acme-tls/1")
				}
				conn.Close()
			}
		})
	}
	if !slices.Equal(given.NextProtos, []string{"h2", "http/1.1", protoACME}) || !slices.Equal(chosen.NextProtos, given.NextProtos) {
		t.Error("the program's configuration was changed")
	}
}

// A transport listener that does TLS by itself.
func TestTLS_Serve(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure := make(chan bool, 1)
	l, err := ListenConfig{OnConnection: func(c *WebSocket) {
		secure <- c.Request().TLS != nil && strings.HasPrefix(c.URL(), "wss://")
		echoing(c)
	}}.Serve(tls.NewListener(inner, serverConfig()))
	if err != nil {
		t.Fatal(err)
	}
	defer closePort(t, l)
	k := knockTLS(t, l, clientConfig(), upgrade, maskedHello)
	k.wantOpen()
	k.wantBytes("echo", hello)
	if !<-secure {
		t.Error("TLS is not seen")
	}
}

// What is no TLS behind a first byte that says so, and what is TLS but never
// comes to an end, is dropped at the handshake's deadline at the latest.
func TestTLS_Hostile(t *testing.T) {
	tried(t, "34 TLS 1.0")
	// A whole ClientHello, as a client of ours writes it.
	helloOf := func(c *tls.Config) string {
		a, b := memnet.Pipe(0)
		go tls.Client(a, c).Handshake()
		p := make([]byte, 4096)
		n, _ := b.Read(p)
		b.Close()
		return string(p[:n])
	}
	var first string
	synctest.Test(t, func(*testing.T) { first = helloOf(clientConfig()) })
	old := clientConfig()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS10
	var old10 string
	synctest.Test(t, func(*testing.T) { old10 = helloOf(old) })
	if first[0] != recordHandshake || len(first) < 100 {
		t.Fatalf("% x", first)
	}

	for _, c := range []struct {
		name, sent string
		atOnce     bool
	}{
		{"the first byte", "\x16", false},
		{"a record that never ends", "\x16\x03\x01\x40\x00", false},
		{"half a ClientHello", first[:len(first)/2], false},
		{"a ClientHello and silence", first, false},
		{"garbage", "\x16garbage that is no record at all", true},
		{"a record that is too large", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 100), true},
		{"a record of another kind inside", "\x16\x03\x01\x00\x04\xff\xff\xff\xff", true},
		{"a handshake message of 16 MB", "\x16\x03\x01\x00\x04\x01\xff\xff\xff", true},
		{"HTTP behind the first byte", "\x16" + upgrade, true},
		{"only TLS 1.0", old10, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, ListenConfig{TLSConfig: serverConfig(), OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
				start := time.Now()
				k := dial(c.sent)
				io.Copy(io.Discard, k.conn)
				want := defaultHandshakeTimeout
				if c.atOnce {
					want = 0
				}
				if d := time.Since(start); d != want {
					t.Errorf("dropped after %v, not %v", d, want)
				}
				synctest.Wait()
				if left := leftovers(l); left != "" {
					t.Error("the listener still holds " + left)
				}
				if s := l.Stats(); s.Refused != 1 || s.Accepted != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}

	t.Run("a byte now and then", func(t *testing.T) {
		inBubble(t, ListenConfig{TLSConfig: serverConfig()}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			start := time.Now()
			k := dial()
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range len(first) {
					if _, err := k.conn.Write([]byte{first[i]}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			io.Copy(io.Discard, k.conn)
			if d := time.Since(start); d != defaultHandshakeTimeout {
				t.Errorf("dropped after %v", d)
			}
			wg.Wait()
		})
	})
	// The head's time began with the first byte of TLS.
	t.Run("half a head inside TLS", func(t *testing.T) {
		inBubble(t, ListenConfig{TLSConfig: serverConfig()}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			start := time.Now()
			k := dial()
			time.Sleep(6 * time.Second)
			c := tls.Client(k.conn, clientConfig())
			c.Write([]byte(upgradeHead))
			io.Copy(io.Discard, k.conn)
			if d := time.Since(start); d != defaultHandshakeTimeout {
				t.Errorf("dropped after %v", d)
			}
		})
	})
	t.Run("Close drops it", func(t *testing.T) {
		inBubble(t, ListenConfig{TLSConfig: serverConfig()}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			k := dial(first[:10])
			synctest.Wait()
			start := time.Now()
			l.Close()
			io.Copy(io.Discard, k.conn)
			if d := time.Since(start); d != 0 {
				t.Errorf("dropped after %v", d)
			}
		})
	})
	// Without TLSConfig it is what is no HTTP.
	t.Run("TLS is off", func(t *testing.T) {
		knock(t, openPort(t, ListenConfig{}), first).wantRefusal(400)
	})
}

// tlsBubble runs an accepted socket over TLS, in each of its two forms, with a
// transport that holds little and a fake clock.
func tlsBubble(t *testing.T, f func(t *testing.T, c *WebSocket, client *tls.Conn, slow *slowConn)) {
	t.Helper()
	for name, form := range map[string]func(net.Conn) net.Conn{
		"ours":    func(c net.Conn) net.Conn { return &steadyConn{Conn: c} },
		"foreign": func(c net.Conn) net.Conn { return c },
	} {
		t.Run(name, func(t *testing.T) {
			testTrust()
			synctest.Test(t, func(t *testing.T) {
				a, b := memnet.Pipe(1000)
				slow := &slowConn{Conn: b}
				server, client := tlsOver(t, form(a), slow)
				set := testSettings()
				c := newOpenWebSocket(set, steady(server, set.writeTimeout), false, nil)
				c.OnMessage(func(*WebSocket, Message) {})
				go c.run()
				f(t, c, client, slow)
				c.Abort()
				waitDone(t, c)
				b.Close()
			})
		})
	}
}

// A slowConn reads step bytes, then pauses.
type slowConn struct {
	net.Conn
	step  int // 0: as fast as it can
	pause time.Duration
	left  int
}

func (c *slowConn) Read(p []byte) (int, error) {
	if c.step == 0 {
		return c.Conn.Read(p)
	}
	if c.left == 0 {
		time.Sleep(c.pause)
		c.left = c.step
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// A slow peer that moves is never cut off, in the middle of a record neither,
// where tls.Conn would not survive a time-out.
func TestTLS_SlowPeerLives(t *testing.T) {
	tlsBubble(t, func(t *testing.T, c *WebSocket, client *tls.Conn, slow *slowConn) {
		slow.step, slow.pause = 500, defaultWriteTimeout-time.Second
		if _, ours := c.conn.(*tls.Conn); !ours {
			slow.step = 2 * tlsRecord // here progress is a whole record
		}
		payload := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
		if err := c.SendBinary(payload); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		done := make(chan struct{})
		go func() { // it is there, but says nothing that is worth reading
			for {
				select {
				case <-done:
					return
				case <-time.After(5 * time.Second):
					client.Write([]byte("\x8a\x80\x00\x00\x00\x00"))
				}
			}
		}()
		var got []byte
		for fin := false; !fin; { // it comes in fragments
			var p []byte
			if fin, p = readFrame(t, client); p == nil {
				break
			}
			got = append(got, p...)
		}
		if !bytes.Equal(got, payload) {
			t.Errorf("%d bytes of %d, or others", len(got), len(payload))
		}
		if d := time.Since(start); d < 4*defaultWriteTimeout {
			t.Errorf("that was not slow: %v", d)
		}
		close(done)
		if err := c.Flush(t.Context()); err != nil || c.BufferedAmount() != 0 {
			t.Errorf("%v, %d bytes", err, c.BufferedAmount())
		}
	})
}

// readFrame reads an unmasked frame of 126 bytes or more, nil if it cannot.
func readFrame(t testing.TB, r io.Reader) (fin bool, payload []byte) {
	t.Helper()
	var h [10]byte
	_, err := io.ReadFull(r, h[:4])
	n := int64(h[2])<<8 | int64(h[3])
	if h[1] == 127 && err == nil {
		_, err = io.ReadFull(r, h[4:])
		for _, x := range h[4:] {
			n = n<<8 | int64(x)
		}
	}
	if err == nil {
		payload = make([]byte, n)
		_, err = io.ReadFull(r, payload)
	}
	if err != nil {
		t.Error(err)
		return false, nil
	}
	return h[0]&0x80 != 0, payload
}

// A peer that takes nothing is cut off, and nobody waits for a goodbye.
func TestTLS_StuckPeer(t *testing.T) {
	tlsBubble(t, func(t *testing.T, c *WebSocket, client *tls.Conn, slow *slowConn) {
		start := time.Now()
		c.SendBinary(make([]byte, 100_000))
		ev := waitEnd(t, c)
		if ev.Initiator != InitiatorTimeout || !errors.Is(ev, errWriteTimeout) {
			t.Errorf("%+v", ev)
		}
		if d := time.Since(start); d < defaultWriteTimeout || d > 2*defaultWriteTimeout {
			t.Errorf("cut off after %v", d)
		}
	})
}

// waitEnd is waitDone for a fake clock.
func waitEnd(t testing.TB, c *WebSocket) CloseEvent {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	ev, err := c.Wait(ctx)
	if err != nil {
		t.Fatalf("socket did not end: %v", err)
	}
	return ev
}

// Abort, and CloseTimeout, do not wait for TLS, whose locks a stuck Write holds.
func TestTLS_AbortAtOnce(t *testing.T) {
	for name, full := range map[string]int{"idle": 0, "stuck in a record": 100_000, "stuck at the first byte": 900} {
		t.Run(name, func(t *testing.T) {
			tlsBubble(t, func(t *testing.T, c *WebSocket, client *tls.Conn, slow *slowConn) {
				c.SendBinary(make([]byte, full))
				time.Sleep(time.Second)
				start := time.Now()
				c.Close()
				c.Abort()
				waitEnd(t, c)
				if d := time.Since(start); d != 0 {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
	t.Run("CloseTimeout", func(t *testing.T) {
		tlsBubble(t, func(t *testing.T, c *WebSocket, client *tls.Conn, slow *slowConn) {
			c.SendBinary(make([]byte, 900)) // the Close frame, or the goodbye behind it, does not fit any more
			start := time.Now()
			c.Close()
			waitEnd(t, c)
			if d := time.Since(start); d > 2*defaultWriteTimeout+defaultCloseTimeout {
				t.Errorf("it took %v", d)
			}
		})
	})
}

// The orderly end says close_notify in both roles, so that the other side knows it
// from a cut. An abort is a cut. crypto/tls does not tell them apart: this looks
// at the records, which TLS 1.2 names in the clear.
func TestTLS_CloseNotify(t *testing.T) {
	const alert = 21
	for name, form := range map[string]func(net.Conn) net.Conn{
		"ours":    func(c net.Conn) net.Conn { return &steadyConn{Conn: c} },
		"foreign": func(c net.Conn) net.Conn { return c },
	} {
		end := func(t *testing.T, dialled bool, talk func(c *WebSocket, p peer)) (last byte, ev CloseEvent) {
			a, b := memnet.Pipe(0)
			tape := &tapeConn{Conn: b}
			cfg := clientConfig()
			cfg.MaxVersion = tls.VersionTLS12
			ours, theirs := tls.Server(form(a), serverConfig()), tls.Client(tape, cfg)
			if dialled {
				ours, theirs = tls.Client(form(a), cfg), tls.Server(tape, serverConfig())
			}
			var wg sync.WaitGroup
			wg.Go(func() { ours.Handshake() })
			if err := theirs.Handshake(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			c := newOpenWebSocket(testSettings(), steady(ours, defaultWriteTimeout), dialled, nil)
			c.OnMessage(func(*WebSocket, Message) {})
			go c.run()
			talk(c, peer{t, theirs})
			if rest, err := io.ReadAll(theirs); len(rest) > 0 || err != nil {
				t.Errorf("% x, %v", rest, err)
			}
			theirs.Close()
			return tape.last(), waitDone(t, c)
		}
		for what, talk := range map[string]func(c *WebSocket, p peer){
			"accepted, we begin": func(c *WebSocket, p peer) {
				c.Close()
				p.want("close", "\x88\x00")
				p.send(maskedClose0)
			},
			"accepted, the peer begins": func(c *WebSocket, p peer) {
				p.send(maskedClose)
				p.want("close", close1000)
			},
			"accepted, a violation": func(_ *WebSocket, p peer) {
				p.send("\x83\x80\x00\x00\x00\x00")
				io.ReadFull(p.conn, make([]byte, 2))
				io.ReadAll(p.conn)
			},
			"dialled, we begin": func(c *WebSocket, p peer) {
				c.Close()
				io.ReadFull(p.conn, make([]byte, 6)) // masked
				p.send("\x88\x00")
			},
			"dialled, the peer begins": func(c *WebSocket, p peer) {
				p.send("\x88\x00")
				io.ReadFull(p.conn, make([]byte, 6))
			},
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				last, ev := end(t, strings.HasPrefix(what, "dialled"), talk)
				if last != alert {
					t.Errorf("the last record is of type %d", last)
				}
				if ev.WasClean == strings.HasSuffix(what, "violation") {
					t.Errorf("%+v", ev)
				}
			})
		}
		t.Run(name+", aborted", func(t *testing.T) {
			if last, _ := end(t, false, func(c *WebSocket, _ peer) { c.Abort() }); last == alert {
				t.Error("an abort said goodbye")
			}
		})
	}
}

// A tapeConn keeps what was read.
type tapeConn struct {
	net.Conn
	tape []byte
}

func (c *tapeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.tape = append(c.tape, p[:n]...)
	return n, err
}

// last returns the type of the last TLS record.
func (c *tapeConn) last() (kind byte) {
	for b := c.tape; len(b) >= 5; b = b[min(len(b), 5+int(b[3])<<8+int(b[4])):] {
		kind = b[0]
	}
	return kind
}

// The k-th read or write under TLS fails, for every k of a conversation: each
// open socket has exactly one OnClose, and nothing is left.
func TestTLS_EveryFault(t *testing.T) {
	testTrust()
	faults := map[string]func(k int) memnet.Faults{
		"read":        func(k int) memnet.Faults { return memnet.Faults{FailRead: k} },
		"write":       func(k int) memnet.Faults { return memnet.Faults{FailWrite: k} },
		"short write": func(k int) memnet.Faults { return memnet.Faults{ShortWrite: k} },
		"short read":  func(k int) memnet.Faults { return memnet.Faults{ShortRead: k} },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for k := 1; ; k++ {
				calls := 0
				synctest.Test(t, func(t *testing.T) {
					ln := memnet.Listen(0)
					var conn *memnet.Conn
					ln.OnDial = func(a, _ *memnet.Conn) { conn = a; a.SetFaults(fault(k)) }
					var ends [2]atomic.Int32
					l, err := ListenConfig{TLSConfig: serverConfig(), OnConnection: func(c *WebSocket) {
						echoing(c)
						c.OnClose(func(*WebSocket, CloseEvent) { ends[0].Add(1) })
					}}.Serve(ln)
					if err != nil {
						t.Fatal(err)
					}
					d := trusting()
					d.NetDial = ln.DialContext
					c, err := d.Dial(t.Context(), "wss://127.0.0.1/")
					if err == nil {
						c.OnMessage(func(c *WebSocket, m Message) {
							if string(m.Data) != "Hello" {
								t.Errorf("fault %d: %q", k, m.Data)
							}
							c.Close()
						})
						c.OnClose(func(*WebSocket, CloseEvent) { ends[1].Add(1) })
						c.SendText("Hello")
						waitEnd(t, c)
						synctest.Wait() // OnClose may have been set after the end
						if n := ends[1].Load(); n != 1 {
							t.Errorf("fault %d: %d times OnClose of the dialled side", k, n)
						}
					}
					time.Sleep(time.Minute)
					if n := int64(ends[0].Load()); n != l.Stats().Accepted {
						t.Errorf("fault %d: %d times OnClose of %d accepted", k, n, l.Stats().Accepted)
					}
					if left := leftovers(l); left != "" {
						t.Errorf("fault %d: the listener still holds %s", k, left)
					}
					l.Close()
					calls = conn.Reads()
					if strings.HasSuffix(name, "write") {
						calls = conn.Writes()
					}
				})
				if calls < k {
					if k < 4 {
						t.Errorf("only %d calls", calls)
					}
					return
				}
			}
		})
	}
}

// Everything at once, over sockets.
func TestTLS_Races(t *testing.T) {
	for i := range 30 {
		a, b := tcpPair(t)
		var under net.Conn = a
		if i%2 == 0 {
			under = &steadyConn{Conn: a}
		}
		server, client := tlsOver(t, under, b)
		c := accepted(testSettings(), steady(server, defaultWriteTimeout), false)
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		go c.run()
		var wg sync.WaitGroup
		wg.Go(func() { client.Write([]byte(strings.Repeat(maskedHello, 100))) })
		wg.Go(func() { c.OnOpen(func(*WebSocket) {}) })
		wg.Go(func() { c.SendBinary(make([]byte, 5_000_000)) })
		wg.Go(func() { c.Close() })
		wg.Go(func() { c.Abort() })
		wg.Wait()
		waitDone(t, c)
		b.Close()
	}
}

// A steadyConn by itself: what a deadline means before and after begin.
func TestSteadyConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe(10)
		c := &steadyConn{Conn: a}
		wantTimeout := func(what string, took time.Duration, n int, f func() (int, error)) {
			t.Helper()
			start := time.Now()
			k, err := f()
			if k != n || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != took {
				t.Errorf("%s: %d, %v after %v", what, k, err, time.Since(start))
			}
		}
		write := func(n int) func() (int, error) { return func() (int, error) { return c.Write(make([]byte, n)) } }
		c.SetDeadline(time.Now().Add(time.Second))
		wantTimeout("a deadline before begin", time.Second, 10, write(20))
		c.SetDeadline(past)
		wantTimeout("a past one before begin", 0, 0, write(1))
		c.SetDeadline(time.Time{}) // is not for ever
		c.begin(time.Minute)
		wantTimeout("stuck", time.Minute, 0, write(1))
		wantTimeout("stuck again", time.Minute, 0, write(1))

		go func() {
			for range 20 {
				time.Sleep(59 * time.Second)
				io.ReadFull(b, make([]byte, 1))
			}
		}()
		if n, err := c.Write(make([]byte, 20)); n != 20 || err != nil {
			t.Errorf("slow: %d, %v", n, err)
		}
		go func() {
			time.Sleep(time.Second)
			c.SetWriteDeadline(past)
		}()
		wantTimeout("a past deadline while it waits", time.Second, 0, write(1))
		c.SetWriteDeadline(time.Time{})
		c.SetDeadline(time.Now().Add(time.Hour))
		wantTimeout("a past deadline stays", 0, 0, write(1))
		a.Close()
		if _, err := (&steadyConn{Conn: a}).Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("another error: %v", err)
		}

		off := &steadyConn{Conn: b}
		off.begin(0)
		go func() {
			time.Sleep(24 * time.Hour)
			off.SetWriteDeadline(past)
		}()
		a2, b2 := memnet.Pipe(1)
		off.Conn = b2
		start := time.Now()
		if n, err := off.Write([]byte("xx")); n != 1 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 24*time.Hour {
			t.Errorf("no WriteTimeout: %d, %v after %v", n, err, time.Since(start))
		}
		a2.Close()
	})
}

// What TLS adds to BenchmarkEcho.
func BenchmarkEchoTLS(b *testing.B) {
	for _, size := range []int{125, 16 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			l := listen(b, ListenConfig{TLSConfig: serverConfig(), OnConnection: func(c *WebSocket) {
				c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
			}})
			k := knockTLS(b, l, clientConfig(), upgrade)
			k.conn.SetDeadline(time.Time{})
			k.wantOpen()
			frame := clientFrame(0x82, make([]byte, size))
			reply := make([]byte, len(frame)-4)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				k.conn.Write(frame)
				if _, err := io.ReadFull(k.br, reply); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// RequireTLS: RFC 2817 §4.2 names the answer to what came without; pages are elsewhere.
func TestRequireTLS(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page of "+r.URL.Path) })
	const rest = " HTTP/1.1\r\nHost: room.example:9000\r\n\r\n"
	for _, c := range []struct {
		name    string
		request string
		web     http.Handler
		status  int
	}{
		{"an upgrade", upgrade, page, 426},
		{"a page", "GET /chat?a=b" + rest, page, 308},
		{"the head of a page", "HEAD /chat?a=b" + rest, page, 308},
		{"a form", "POST /chat?a=b" + rest, page, 426},
		{"no page", "GET /chat?a=b" + rest, nil, 426},
		{"no host", "GET /chat?a=b HTTP/1.1\r\n\r\n", page, 426},
		{"a host that is none", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", page, 426},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", page, 426},
		{"no path", "GET http://room.example/" + rest, page, 426},
	} {
		l := listen(t, ListenConfig{TLSConfig: serverConfig(), RequireTLS: true, HTTP: c.web, OnConnection: echoing})
		method, _, _ := strings.Cut(c.request, " ")
		k := knock(t, l, c.request)
		r, body := k.answer(method)
		if r.StatusCode != c.status || !r.Close {
			t.Errorf("%s: %d, want %d; %v", c.name, r.StatusCode, c.status, r.Header)
		}
		switch c.status {
		case 426:
			if u := r.Header.Get("Upgrade"); u != "TLS/1.0" || !strings.Contains(body, "wss://") {
				t.Errorf("%s: Upgrade %q, %q", c.name, u, body)
			}
		case 308:
			if to := r.Header.Get("Location"); to != "https://room.example:9000/chat?a=b" {
				t.Errorf("%s: Location %q", c.name, to)
			}
		}
		if n := l.Stats().RefusedFor[RefusedRequireTLS]; n != 1 {
			t.Errorf("%s: counted %d times", c.name, n)
		}
		k = knockTLS(t, l, clientConfig(), upgrade)
		k.wantOpen()
		k.send(maskedHello)
		k.wantBytes("echo", hello)
		if c.web != nil {
			if r, body := knockTLS(t, l, clientConfig(), "GET /chat"+rest).answer("GET"); r.StatusCode != 200 || body != "page of /chat" {
				t.Errorf("%s: %d %q over TLS", c.name, r.StatusCode, body)
			}
		}
	}
}

// A proxy has done the TLS itself.
func TestRequireTLS_TrustedProxies(t *testing.T) {
	l := listen(t, ListenConfig{TLSConfig: serverConfig(), RequireTLS: true, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, OnConnection: echoing})
	knock(t, l, "PROXY TCP4 203.0.113.9 192.0.2.1 5555 80\r\n", upgrade).wantOpen()
}

func TestRequireTLS_Options(t *testing.T) {
	if _, err := (ListenConfig{RequireTLS: true}).Listen(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "RequireTLS") {
		t.Errorf("without a certificate: %v", err)
	}
	if _, _, err := (ListenConfig{RequireTLS: true}).Handler(); err == nil || !strings.Contains(err.Error(), "RequireTLS") {
		t.Errorf("mounted: %v", err)
	}
}

// Who is over a cap of its address is told so before any handshake: with an alert if it
// speaks TLS, and in HTTP if not. Over MaxConnections the 503 comes inside TLS.
func TestTLS_Refused(t *testing.T) {
	l := listen(t, ListenConfig{TLSConfig: serverConfig(), MaxConnectionsPerIP: 1, OnConnection: echoing})
	knockTLS(t, l, clientConfig(), upgrade).wantOpen()
	_, err := tls.Dial("tcp", l.Addr().String(), clientConfig())
	if alert, ok := errors.AsType[*net.OpError](err); !ok || alert.Op != "remote error" || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("%v", err)
	}
	if _, body := knock(t, l, upgrade).wantRefusal(503); !strings.Contains(body, "MaxConnectionsPerIP") {
		t.Errorf("%q", body)
	}
	if n := l.Stats().RefusedFor[RefusedMaxConnectionsPerIP]; n != 2 {
		t.Errorf("counted %d times", n)
	}
	full := listen(t, ListenConfig{TLSConfig: serverConfig(), MaxConnections: 1, OnConnection: echoing})
	knockTLS(t, full, clientConfig(), upgrade).wantOpen()
	if _, body := knockTLS(t, full, clientConfig(), upgrade).wantRefusal(503); !strings.Contains(body, "MaxConnections") {
		t.Errorf("%q", body)
	}
}
