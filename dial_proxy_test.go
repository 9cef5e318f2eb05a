package peerws

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// A fakeProxy is a proxy on loopback that speaks by hand: it reads what serve
// says, then joins the connection with one to target.
type fakeProxy struct {
	t      *testing.T
	ln     net.Listener
	target string
	work   sync.WaitGroup

	mu   sync.Mutex
	seen []string // the requests
}

// newFakeProxy starts a proxy. serve talks to the client and reports whether it
// may go on to the target; config makes it speak TLS.
func newFakeProxy(t *testing.T, target string, config *tls.Config, serve func(p *fakeProxy, conn net.Conn) bool) *fakeProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeProxy{t: t, ln: ln, target: target}
	p.work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if config != nil {
					conn = tls.Server(conn, config)
				}
				if serve(p, conn) {
					p.join(conn)
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.work.Wait()
	})
	return p
}

func (p *fakeProxy) join(conn net.Conn) {
	to, err := net.Dial("tcp", p.target)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer to.Close()
	// Not by splice, whose pipes the runtime keeps for a while.
	p.work.Go(func() {
		io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{conn})
		to.(*net.TCPConn).CloseWrite()
	})
	io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{to})
}

func (p *fakeProxy) saw(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, s)
}

func (p *fakeProxy) url(scheme, user string) func(*http.Request) (*url.URL, error) {
	u := &url.URL{Scheme: scheme, Host: p.ln.Addr().String()}
	if name, password, ok := strings.Cut(user, ":"); ok {
		u.User = url.UserPassword(name, password)
	} else if user != "" {
		u.User = url.User(user)
	}
	return http.ProxyURL(u)
}

// readHeadOf reads a request head byte by byte, so that nothing behind it is
// taken.
func readHeadOf(conn net.Conn) string {
	var b []byte
	for c := make([]byte, 1); !bytes.HasSuffix(b, []byte("\r\n\r\n")); b = append(b, c[0]) {
		if _, err := io.ReadFull(conn, c); err != nil {
			break
		}
	}
	return string(b)
}

// connectProxy answers every CONNECT.
func connectProxy(answer string) func(*fakeProxy, net.Conn) bool {
	return func(p *fakeProxy, conn net.Conn) bool {
		p.saw(readHeadOf(conn))
		io.WriteString(conn, answer)
		return strings.Contains(answer, " 200 ")
	}
}

// echoOver dials, sends and closes.
func echoOver(t *testing.T, d Dialer, url string) *WebSocket {
	t.Helper()
	c, err := d.Dial(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	c.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
	for _, s := range []string{"a", strings.Repeat("b", 200_000)} {
		if err := c.Write(t.Context(), Message{Type: Text, Data: []byte(s)}); err != nil {
			t.Fatal(err)
		}
		select {
		case back := <-got:
			if back != s {
				t.Fatalf("%d bytes came back as %d", len(s), len(back))
			}
		case <-c.Done():
			t.Fatal("closed")
		}
	}
	c.Close()
	if ev := waitDone(t, c); !ev.WasClean {
		t.Errorf("%+v", ev)
	}
	return c
}

func TestProxy_Connect(t *testing.T) {
	l := openPort(t, ListenConfig{TLSConfig: serverConfig(), AllowedHosts: []string{"home.example"}, OnConnection: echoing})
	login := "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("ann:se cret:1")) + "\r\n"
	for _, answer := range []string{
		"HTTP/1.1 200 Connection established\r\n\r\n",
		"HTTP/1.0 200 OK\r\nProxy-Agent: old\r\n\r\n",
		"HTTP/1.1 200 \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", // of no meaning here, RFC 9110 §9.3.6
	} {
		for _, scheme := range []string{"http", "https"} {
			var config *tls.Config
			if scheme == "https" {
				config = serverConfig()
			}
			p := newFakeProxy(t, l.Addr().String(), config, connectProxy(answer))
			d := trusting()
			d.Proxy = p.url(scheme, "ann:se cret:1")
			d.Header = http.Header{"Authorization": {"mine"}}
			for _, target := range []string{"ws://home.example/", "wss://home.example:9000/", "ws://[::1]:9000/"} {
				c := echoOver(t, d, target)
				u, _ := url.Parse(target)
				addr := u.Host
				if u.Port() == "" {
					addr += ":80"
				}
				want := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\n" + login + "\r\n"
				if got := p.seen[len(p.seen)-1]; got != want {
					t.Errorf("%q, want %q", got, want)
				}
				if raw := rawConn(c.conn) != nil; (c.raw != nil) != raw || raw && (scheme == "https" || u.Scheme == "wss") {
					t.Errorf("%s by way of %s: raw path %v", target, scheme, c.raw != nil)
				}
				if c.URL() != target {
					t.Errorf("URL %q", c.URL())
				}
			}
			d.Proxy = p.url(scheme, "ann")
			echoOver(t, d, "ws://home.example/")
			if got := p.seen[len(p.seen)-1]; !strings.Contains(got, "Basic "+base64.StdEncoding.EncodeToString([]byte("ann:"))+"\r\n") {
				t.Errorf("%q", got)
			}
			d.Proxy = p.url(scheme, "")
			echoOver(t, d, "ws://home.example/")
			if got := p.seen[len(p.seen)-1]; strings.Contains(got, "uthorization") {
				t.Errorf("%q", got)
			}
		}
	}
}

// An https proxy and the peer behind it are each held against their own name.
func TestProxy_Names(t *testing.T) {
	l := openPort(t, ListenConfig{TLSConfig: serverConfig(), OnConnection: echoing})
	p := newFakeProxy(t, l.Addr().String(), serverConfig(), connectProxy("HTTP/1.1 200 OK\r\n\r\n"))
	d := trusting()
	d.Proxy = p.url("https", "")
	d.TLSConfig.ServerName = "home.example" // the peer's
	echoOver(t, d, "wss://other.example/")
	d.TLSConfig.ServerName = ""
	_, err := d.Dial(t.Context(), "wss://other.example/")
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok || !strings.Contains(err.Error(), "TLS with other.example:443") {
		t.Errorf("%v", err)
	}
	d.Proxy = http.ProxyURL(&url.URL{Scheme: "https", Host: "proxy.example:1"})
	d.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "proxy.example:1" {
			t.Errorf("dialled %q", addr)
		}
		return new(net.Dialer).DialContext(ctx, network, p.ln.Addr().String())
	}
	_, err = d.Dial(t.Context(), "ws://home.example/")
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok || !strings.Contains(err.Error(), "proxy proxy.example:1") {
		t.Errorf("%v", err)
	}
}

func TestProxy_Refuses(t *testing.T) {
	for _, c := range []struct{ name, answer, want string }{
		{"407", "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", "the proxy answered 407 Proxy Authentication Required"},
		{"502", "HTTP/1.0 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n", "the proxy answered 502 Bad Gateway"},
		{"a redirect", "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\n\r\n", "the proxy answered 302 Found"},
		{"too much before the answer", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 400), "MaxHeaderBytes"},
		{"101", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "the proxy answered 101"},
		{"no HTTP", "\x05\x00", "the proxy's answer is not HTTP/1.1"},
		{"no number", "HTTP/1.1 2xx OK\r\n\r\n", "the proxy's answer is malformed"},
		{"HTTP/2", "HTTP/2 200\r\n\r\n", "the proxy's answer is malformed"},
		{"a head that is too large", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 9000) + "\r\n\r\n", "larger than MaxHeaderBytes"},
		{"a cut", "HTTP/1.1 200 OK\r\n", "EOF"},
		{"nothing", "", "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newFakeProxy(t, "", nil, func(p *fakeProxy, conn net.Conn) bool {
				p.saw(readHeadOf(conn))
				io.WriteString(conn, c.answer)
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn) // nothing more comes
				return false
			})
			_, err := Dialer{Proxy: p.url("http", "ann:secret")}.Dial(t.Context(), "ws://home.example/")
			e, ok := errors.AsType[*HandshakeError](err)
			if !ok || !strings.Contains(err.Error(), c.want) || e.Status != 0 {
				t.Errorf("%#v: %v", e, err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the password is told: %v", err)
			}
		})
	}
}

// What comes behind the proxy's answer belongs to the peer.
func TestProxy_EarlyBytes(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\n\r\n"
	for cut := 1; cut <= len(answer)+4; cut++ {
		synctest.Test(t, func(t *testing.T) {
			a, b := memnet.Pipe(0)
			stream := answer + "peer"
			go func() {
				io.WriteString(b, stream[:cut])
				time.Sleep(time.Second)
				io.WriteString(b, stream[cut:])
				b.CloseWrite()
			}()
			conn, err := new(Dialer).connectHTTP(a, nil, "home.example:80")
			if err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(conn); err != nil || string(rest) != "peer" {
				t.Fatalf("cut at %d: %q, %v", cut, rest, err)
			}
			if socketOf(conn) != net.Conn(a) {
				t.Error("the socket is not found")
			}
			a.Close()
			b.Close()
		})
	}
}

// A peer that speaks first: the whole way, with TLS inside a tunnel whose
// answer came together with the peer's first bytes.
func TestProxy_EarlyAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe(0)
		var wg sync.WaitGroup
		wg.Go(func() {
			br := bufio.NewReader(b)
			for range 2 { // CONNECT, and then the request itself
				r, err := http.ReadRequest(br)
				if err != nil {
					t.Error(err)
					return
				}
				if r.Method == http.MethodConnect {
					io.WriteString(b, "HTTP/1.1 200 OK\r\n\r\n")
					continue
				}
				io.WriteString(b, accepts(r, "", hello))
			}
		})
		d := Dialer{
			Proxy:   http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.example"}),
			NetDial: func(context.Context, string, string) (net.Conn, error) { return a, nil },
		}
		c, err := d.Dial(t.Context(), "ws://home.example/")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		c.OnMessage(func(_ *WebSocket, m Message) { got <- string(m.Data) })
		if s := <-got; s != "Hello" {
			t.Errorf("%q", s)
		}
		c.Abort()
		waitDone(t, c)
		b.Close()
		wg.Wait()
	})
}

// A proxy that says nothing, or a byte now and then, or nothing in TLS, is left
// when the time is up, or the context ends.
func TestProxy_TimeIsBounded(t *testing.T) {
	for _, scheme := range []string{"http", "https", "socks5"} {
		for name, talk := range map[string]func(net.Conn){
			"silent": func(net.Conn) {},
			"slow": func(c net.Conn) {
				for _, x := range []byte("HTTP/1.1 200 OK\r\nX: a name that goes on and on\r\n\r\n") {
					time.Sleep(time.Second)
					if _, err := c.Write([]byte{x}); err != nil {
						return
					}
				}
			},
		} {
			if name == "slow" && scheme != "http" {
				continue
			}
			for _, limit := range []time.Duration{3 * time.Second, defaultHandshakeTimeout} {
				t.Run(fmt.Sprint(scheme, " ", name, " ", limit), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						a, b := memnet.Pipe(0)
						var wg sync.WaitGroup
						wg.Go(func() { io.Copy(io.Discard, b) })
						wg.Go(func() { talk(b) })
						ctx, cancel := context.WithTimeout(t.Context(), limit)
						defer cancel()
						start := time.Now()
						_, err := Dialer{
							Proxy:   http.ProxyURL(&url.URL{Scheme: scheme, Host: "proxy.example"}),
							NetDial: func(context.Context, string, string) (net.Conn, error) { return a, nil },
						}.Dial(ctx, "wss://home.example/")
						if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "proxy proxy.example:") {
							t.Errorf("%v", err)
						}
						if d := time.Since(start); d != limit {
							t.Errorf("left after %v", d)
						}
						if _, err := a.Write(nil); !errors.Is(err, net.ErrClosed) {
							t.Errorf("left open: %v", err)
						}
						wg.Wait()
					})
				})
			}
		}
	}
}

// What Proxy is asked, and what its answers do.
func TestProxy_Func(t *testing.T) {
	own := errors.New("no proxy today")
	dialled := ""
	for _, c := range []struct {
		url, proxy string
		err        error
		asked      string
		dialled    string
		want       string // in the error
	}{
		{"ws://home.example/a?b", "", nil, "http://home.example/a?b", "home.example:80", "dialled"},
		{"wss://home.example/", "", nil, "https://home.example/", "home.example:443", "dialled"},
		{"http://home.example:81/", "", nil, "http://home.example:81/", "home.example:81", "dialled"},
		{"ws://home.example/", "", own, "http://home.example/", "", "no proxy today"},
		{"ws://home.example/", "http://p", nil, "http://home.example/", "p:80", "proxy p:80"},
		{"ws://home.example/", "https://p", nil, "http://home.example/", "p:443", "proxy p:443"},
		{"ws://home.example/", "socks5://p", nil, "http://home.example/", "p:1080", "proxy p:1080"},
		{"ws://home.example/", "socks5h://[::1]:99", nil, "http://home.example/", "[::1]:99", "proxy [::1]:99"},
		{"ws://home.example/", "ftp://p", nil, "http://home.example/", "", `proxy scheme "ftp" is none of http, https, socks5 and socks5h`},
		{"ws://home.example/", "socks4://p", nil, "http://home.example/", "", `"socks4"`},
		{"ws://home.example/", "p:80", nil, "http://home.example/", "", `proxy scheme "p"`},
		{"ws://home.example/", "http://", nil, "http://home.example/", "", "no host"},
	} {
		dialled = ""
		stop := errors.New("dialled")
		d := Dialer{
			Header: http.Header{"X-Who": {"ann"}},
			Proxy: func(r *http.Request) (*url.URL, error) {
				if got := r.URL.String(); got != c.asked || r.Method != "GET" || r.Header.Get("X-Who") != "ann" || r.Host != r.URL.Host || r.Context() == context.Background() {
					t.Errorf("asked about %q, want %q; %+v", got, c.asked, r)
				}
				r.Header.Set("X-Who", "somebody else") // is a copy
				if c.err != nil || c.proxy == "" {
					return nil, c.err
				}
				return url.Parse(c.proxy)
			},
			NetDial: func(_ context.Context, network, addr string) (net.Conn, error) {
				dialled = addr
				return nil, stop
			},
		}
		_, err := d.Dial(t.Context(), c.url)
		if _, ok := errors.AsType[*HandshakeError](err); !ok || !strings.Contains(err.Error(), c.want) || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s by way of %q: %v", c.url, c.proxy, err)
		}
		if dialled != c.dialled {
			t.Errorf("%s by way of %q: dialled %q", c.url, c.proxy, dialled)
		}
		if d.Header.Get("X-Who") != "ann" {
			t.Error("Proxy changed the header")
		}
	}
}

// The zero Dialer asks the environment, which net/http reads once: so this runs
// the test in a process of its own.
func TestProxy_Environment(t *testing.T) {
	const mark = "PEERWS_TEST_PROXY"
	if p := os.Getenv(mark); p != "" {
		os.Setenv("HTTP_PROXY", p)
		os.Setenv("NO_PROXY", "direct.example")
		for _, u := range []string{"ws://home.example/", "ws://127.0.0.1:1/", "ws://localhost:1/"} {
			_, err := Dial(t.Context(), u)
			fmt.Printf("%s: %v\n", u, err)
		}
		off := Dialer{
			Proxy:   func(*http.Request) (*url.URL, error) { return nil, nil },
			NetDial: func(_ context.Context, _, addr string) (net.Conn, error) { return nil, errors.New("direct") },
		}
		_, err := off.Dial(t.Context(), "ws://home.example/")
		fmt.Printf("off: %v\n", err)
		_, err = Dialer{NetDial: off.NetDial}.Dial(t.Context(), "ws://direct.example/")
		fmt.Printf("listed: %v\n", err)
		return
	}
	p := newFakeProxy(t, "", nil, connectProxy("HTTP/1.1 418 Not here\r\n\r\n"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestProxy_Environment$", "-test.timeout=20s")
	cmd.Env = append(os.Environ(), mark+"=http://ann:secret@"+p.ln.Addr().String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"ws://home.example/: peerws: opening handshake: the proxy answered 418",
		"ws://127.0.0.1:1/: peerws: opening handshake: connecting to 127.0.0.1:1:",
		"ws://localhost:1/: peerws: opening handshake: connecting to localhost:1:",
		"off: peerws: opening handshake: connecting to home.example:80: direct",
		"listed: peerws: opening handshake: connecting to direct.example:80: direct",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if len(p.seen) != 1 || !strings.HasPrefix(p.seen[0], "CONNECT home.example:80 ") || !strings.Contains(p.seen[0], "Proxy-Authorization: Basic ") {
		t.Errorf("the proxy saw %q", p.seen)
	}
}
