package peerws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
	"github.com/peerws/peerws/nat"
)

// A town is a listener in memory, of which connections come from everywhere.
type town struct {
	*WebSocketListener
	t  *testing.T
	ln *memnet.Listener

	mu       sync.Mutex
	from, to *net.TCPAddr // of the next connection
}

// settle starts a listener bound to bound, behind g if that is not nil.
func settle(t *testing.T, bound string, g *gateway, c ListenConfig) *town {
	t.Helper()
	w := &town{t: t, ln: memnet.Listen(0)}
	w.ln.Address = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(bound))
	w.ln.OnDial = func(accepted, dialled *memnet.Conn) {
		accepted.SetAddrs(w.to, w.from)
		dialled.SetAddrs(w.from, w.to)
	}
	if g != nil {
		c.NAT = g
	}
	if c.OnConnection == nil {
		c.OnConnection = func(*WebSocket) {}
	}
	l, err := c.Serve(w.ln)
	if err != nil {
		t.Fatal(err)
	}
	w.WebSocketListener = l
	t.Cleanup(func() { l.Close() })
	return w
}

// connect makes a transport that the listener sees between these addresses.
func (w *town) connect(ctx context.Context, from, to string) (*memnet.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.from, w.to = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(to))
	return w.ln.Dial(ctx)
}

// visit opens a socket to url, of which the listener sees these addresses.
func (w *town) visit(url, from, to string) {
	w.t.Helper()
	d := Dialer{NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.connect(ctx, from, to) }}
	c, err := d.Dial(w.t.Context(), url)
	if err != nil {
		w.t.Fatal(err)
	}
	c.Abort()
	<-c.Done()
	synctest.Wait()
}

func (w *town) wantState(when, url string, state AddressState, code string) {
	w.t.Helper()
	got := Lost + 1
	for _, a := range w.Addresses() {
		if a.URL == url {
			got = a.State
		}
	}
	if r := w.Reachability(); got != state || string(r.Code) != code || !strings.HasSuffix(r.Summary, ".") {
		w.t.Errorf("%s: %v, %+v, want %v, %s", when, got, r, state, code)
	}
}

// What a socket that a peer has opened proves, by where it comes from, at
// which address of ours it arrived, and what its Host says.
func TestVerified_ByPeer(t *testing.T) {
	const own, mapped = "192.168.1.5:9000", "ws://5.6.7.8:12345/"
	for name, c := range map[string]struct {
		url, from, to string
		verified      bool
	}{
		"a peer outside":                   {mapped, "9.9.9.9:1", own, true},
		"by a name":                        {"ws://home.example:12345/", "9.9.9.9:1", own, true},
		"through another port":             {"ws://home.example:9000/", "9.9.9.9:1", own, false},
		"through another address":          {"ws://5.6.7.9:12345/", "9.9.9.9:1", own, false},
		"by our own address":               {"ws://" + own + "/", "9.9.9.9:1", own, false},
		"of the LAN":                       {mapped, "192.168.1.6:1", own, false},
		"of this machine":                  {mapped, "127.0.0.1:1", own, false},
		"of the provider's network":        {mapped, "100.64.0.1:1", own, false},
		"link-local":                       {mapped, "169.254.1.1:1", own, false},
		"of the LAN, the gateway hairpins": {mapped, "5.6.7.8:4444", own, false},
		"at another address of ours":       {mapped, "9.9.9.9:1", "192.168.2.5:9000", false},
		"in the other family":              {mapped, "[2600::9]:1", "[fd00::1]:9000", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &gateway{onMap: func(_ context.Context, r nat.Request) (nat.Lease, error) {
				l, err := grant("5.6.7.8:12345")
				l.Internal = r.Internal
				return l, err
			}}
			w := settle(t, own, g, ListenConfig{})
			w.Ready(t.Context())
			synctest.Wait() // LISTENING comes before the word of it
			w.wantState(name+", before", mapped, Mapped, "mapped")
			var calls int
			w.OnAddressChange(func([]Address) { calls++ })
			w.visit(c.url, c.from, c.to)
			w.visit(c.url, c.from, c.to)
			state, code, want := Mapped, "mapped", 0
			if c.verified {
				state, code, want = Verified, "verified", 1
			}
			w.wantState(name, mapped, state, code)
			if calls != want {
				t.Errorf("%s: OnAddressChange ran %d times", name, calls)
			}
			time.Sleep(3 * time.Hour) // a renewal changes nothing
			w.wantState(name+", renewed", mapped, state, code)
			w.Close()
			w.wantState(name+", closed", mapped, Lost, "off")
		})
	}
}

// An address of this machine that is public itself is verified by who comes to it.
func TestVerified_Direct(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := settle(t, "[2600::1]:9000", nil, ListenConfig{})
		const url = "ws://[2600::1]:9000/"
		for _, from := range []string{"[fe80::2]:1", "[fd00::2]:1", "[::1]:1", "[2600::1]:2"} {
			w.visit(url, from, "[2600::1]:9000")
			w.wantState(from, url, Bound, "off")
		}
		w.visit(url, "[2a00::9]:1", "[2600::1]:9000")
		w.wantState("from outside", url, Verified, "verified")
		w.visit(url, "[2a00::9]:1", "[2600::1]:9000")
		if n := len(w.addrs.direct); n != 1 {
			t.Errorf("remembered %d times", n)
		}
	})
	// What is verified in one family does not hide what is wrong in the other.
	synctest.Test(t, func(t *testing.T) {
		w := settle(t, "[2600::1]:9000", &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) { return fails(nat.Refused) }}, ListenConfig{})
		w.Ready(t.Context())
		w.visit("ws://[2600::1]:9000/", "[2a00::9]:1", "[2600::1]:9000")
		if r := w.Reachability(); r.Code != "verified" || !strings.Contains(r.Summary, "[2600::1]") && !strings.Contains(r.Summary, "2600::1") || !strings.Contains(r.Summary, "refuses") || r.Advice == "" || r.Detail == "" {
			t.Errorf("%+v", r)
		}
	})
}

// An address of this machine that the gateway lets peers in to is verified as
// long as it does.
func TestVerified_Pinhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := false
		g := &gateway{}
		g.onMap = func(_ context.Context, r nat.Request) (nat.Lease, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			if refused {
				return fails(nat.Refused)
			}
			l, err := grant("[2600::1]:9000")
			l.Internal = r.Internal
			return l, err
		}
		w := settle(t, "[2600::1]:9000", g, ListenConfig{})
		const url = "ws://[2600::1]:9000/"
		w.Ready(t.Context())
		w.wantState("let in", url, Mapped, "mapped")
		w.visit(url, "[2a00::9]:1", "[2600::1]:9000")
		w.wantState("somebody came", url, Verified, "verified")
		g.mu.Lock()
		refused = true
		g.mu.Unlock()
		time.Sleep(time.Hour)
		w.wantState("shut out", url, Bound, "refused")
		w.visit(url, "[2a00::9]:1", "[2600::1]:9000")
		w.wantState("somebody came all the same", url, Verified, "verified")
	})
}

// Another mapping has to be verified anew.
func TestVerified_LostWithTheMapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		external, via := "5.6.7.8:12345", netip.MustParseAddr("192.168.1.1")
		g := &gateway{}
		g.onMap = func(_ context.Context, r nat.Request) (nat.Lease, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			if external == "" {
				return fails(nat.Refused)
			}
			l, err := grant(external)
			l.Internal, l.Gateway = r.Internal, via
			return l, err
		}
		w := settle(t, "192.168.1.5:9000", g, ListenConfig{})
		set := func(to, gateway string) {
			g.mu.Lock()
			external, via = to, netip.MustParseAddr(gateway)
			g.mu.Unlock()
			time.Sleep(30 * time.Minute)
			synctest.Wait()
		}
		const a, b = "ws://5.6.7.8:12345/", "ws://5.6.7.9:12345/"
		w.Ready(t.Context())
		w.visit(a, "9.9.9.9:1", "192.168.1.5:9000")
		w.wantState("verified", a, Verified, "verified")
		set("5.6.7.9:12345", "192.168.1.1")
		w.wantState("moved", b, Mapped, "mapped")
		w.wantState("moved", a, Lost, "mapped")
		set("5.6.7.8:12345", "192.168.1.1")
		w.wantState("back", a, Mapped, "mapped")
		w.visit(a, "9.9.9.9:1", "192.168.1.5:9000")
		set("5.6.7.8:12345", "192.168.1.2")
		w.wantState("another gateway", a, Mapped, "mapped")
		w.visit(a, "9.9.9.9:1", "192.168.1.5:9000")
		w.wantState("verified again", a, Verified, "verified")
		set("", "192.168.1.2")
		w.wantState("refused", a, Lost, "refused")
	})
}

// A hairpin is a gateway seen from inside: what becomes of a connection to the
// outside address.
type hairpin struct {
	w     *town
	from  string // whom the listener sees, "" if nothing comes through
	local string // where we dialled from
	err   error
	calls int
	tap   func(word string)
}

func (h *hairpin) dial(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
	h.calls++
	if h.err != nil {
		return nil, h.err
	}
	here, there := memnet.Pipe(0)
	here.SetAddrs(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(h.local)), nil)
	if h.from == "" {
		return here, nil
	}
	through, err := h.w.connect(ctx, h.from, "192.168.1.5:9000")
	if err != nil {
		return nil, err
	}
	go func() {
		b := make([]byte, 4096)
		n, _ := there.Read(b)
		if h.tap != nil {
			h.tap(string(b[:n]))
		}
		through.Write(b[:n])
		io.Copy(there, through)
		there.Close()
		through.Close()
	}()
	return here, nil
}

func TestVerified_ByLoop(t *testing.T) {
	const mapped = "ws://5.6.7.8:12345/"
	for name, c := range map[string]struct {
		h        hairpin
		external string
		verified bool
	}{
		"the gateway's own address":  {hairpin{from: "192.168.1.1:5555", local: "192.168.1.5:4444"}, "5.6.7.8:12345", true},
		"the outside address":        {hairpin{from: "5.6.7.8:5555", local: "192.168.1.5:4444"}, "5.6.7.8:12345", true},
		"silence":                    {hairpin{local: "192.168.1.5:4444"}, "5.6.7.8:12345", false},
		"refused":                    {hairpin{err: errors.New("refused")}, "5.6.7.8:12345", false},
		"an address of this machine": {hairpin{from: "5.6.7.8:5555", local: "5.6.7.8:4444"}, "5.6.7.8:12345", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := c.h
				ready := make(chan struct{})
				g := &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) { <-ready; return grant(c.external) }}
				web := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the program saw a request of ours") })
				h.w = settle(t, "192.168.1.5:9000", g, ListenConfig{loopDial: h.dial, HTTP: web, OnConnection: func(*WebSocket) { t.Error("the program saw a connection of ours") }})
				close(ready)
				start := time.Now()
				h.w.Ready(t.Context())
				if d := time.Since(start); d != 0 {
					t.Errorf("LISTENING after %v", d)
				}
				time.Sleep(loopTimeout)
				synctest.Wait()
				if c.verified {
					h.w.wantState("came back", mapped, Verified, "verified")
				} else {
					h.w.wantState("did not come back", mapped, Mapped, "mapped")
				}
				time.Sleep(24 * time.Hour)
				var refused int64
				if name == "an address of this machine" {
					refused = 1 // it is hung up on without a word
				}
				if s := h.w.Stats(); h.calls != 1 || s.Refused != refused || s.Accepted != 0 || len(h.w.addrs.words) != 0 {
					t.Errorf("%d calls, %+v, words %v", h.calls, h.w.Stats(), h.w.addrs.words)
				}
				h.w.mu.Lock()
				defer h.w.mu.Unlock()
				if len(h.w.perIP) != 0 || len(h.w.pending) != 0 || h.w.reserved != 0 {
					t.Errorf("still counted: %v, %d pending, %d reserved", h.w.perIP, len(h.w.pending), h.w.reserved)
				}
			})
		})
	}
	// An address that is not public proves nothing, and is left alone.
	synctest.Test(t, func(t *testing.T) {
		h := hairpin{from: "192.168.1.1:5555", local: "192.168.1.5:4444"}
		h.w = settle(t, "192.168.1.5:9000", &gateway{onMap: grants("100.64.1.2:9000")}, ListenConfig{loopDial: h.dial})
		h.w.Ready(t.Context())
		time.Sleep(time.Hour)
		if h.calls != 0 {
			t.Error("called")
		}
	})
}

// The word is good once, and nobody can guess another one.
func TestVerified_WordIsSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hairpin{from: "", local: "192.168.1.5:4444"}
		words := make(chan string, 9)
		g := &gateway{onMap: grants("5.6.7.8:12345")}
		h.w = settle(t, "192.168.1.5:9000", g, ListenConfig{loopDial: h.dial})
		h.w.Ready(t.Context())
		synctest.Wait()
		h.w.addrs.mu.Lock()
		for word := range h.w.addrs.words {
			words <- word
		}
		h.w.addrs.mu.Unlock()
		word := <-words
		if len(word) < 26 {
			t.Errorf("word %q", word)
		}
		ask := func(target string) string {
			conn, err := h.w.connect(t.Context(), "9.9.9.9:1", "192.168.1.5:9000")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: a\r\n\r\n")
			b := make([]byte, 12)
			io.ReadFull(conn, b)
			return string(b)
		}
		for _, target := range []string{"/", "/x", "/" + word + "x", "/" + word[1:], "/" + strings.ToLower(word), "/a/" + word} {
			if s := ask(target); s != "HTTP/1.1 426" {
				t.Errorf("%s: %q", target, s)
			}
		}
		h.w.wantState("guessed", "ws://5.6.7.8:12345/", Mapped, "mapped")
		if s := ask("/" + word); s != "HTTP/1.1 204" {
			t.Errorf("%q", s)
		}
		if s := ask("/" + word); s != "HTTP/1.1 426" {
			t.Errorf("again: %q", s)
		}
		h.w.wantState("known", "ws://5.6.7.8:12345/", Verified, "verified")
	})
}

// Close ends an attempt that is under way, at once.
func TestVerified_Close(t *testing.T) {
	for name, c := range map[string]ListenConfig{
		"connected": {loopDial: func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
			here, _ := memnet.Pipe(0)
			return here, nil
		}},
		"dialling": {loopDial: func(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}},
		"asking": {Verify: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := settle(t, "192.168.1.5:9000", &gateway{onMap: grants("5.6.7.8:12345")}, c)
				w.Ready(t.Context())
				synctest.Wait()
				start := time.Now()
				w.Close()
				if d := time.Since(start); d != 0 {
					t.Errorf("Close took %v", d)
				}
			})
		})
	}
}

// A program asks a peer of its own, for each mapping once.
func TestVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		external := "5.6.7.8:12345"
		g := &gateway{}
		g.onMap = func(context.Context, nat.Request) (nat.Lease, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			return grant(external)
		}
		var asked []string
		var answer error
		w := settle(t, "192.168.1.5:9000", g, ListenConfig{
			loopDial: func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
				t.Error("dialled although a peer is asked")
				return nil, io.EOF
			},
			Verify: func(ctx context.Context, url string) error {
				asked = append(asked, url)
				if _, ok := ctx.Deadline(); ok {
					t.Error("has a deadline")
				}
				time.Sleep(5 * time.Second)
				return answer
			},
		})
		start := time.Now()
		w.Ready(t.Context())
		if time.Since(start) != 0 {
			t.Error("LISTENING waits for the peer")
		}
		w.wantState("being asked", "ws://5.6.7.8:12345/", Mapped, "mapped")
		time.Sleep(6 * time.Second)
		w.wantState("reached", "ws://5.6.7.8:12345/", Verified, "verified")

		answer = errors.New("no route to host")
		g.mu.Lock()
		external = "5.6.7.9:12345"
		g.mu.Unlock()
		time.Sleep(20 * time.Minute)
		w.wantState("not reached", "ws://5.6.7.9:12345/", Mapped, "mapped-but-unverified")
		if r := w.Reachability(); r.Advice == "" || !strings.Contains(r.Detail, "no route to host") {
			t.Errorf("%+v", r)
		}
		time.Sleep(24 * time.Hour)
		if want := []string{"ws://5.6.7.8:12345/", "ws://5.6.7.9:12345/"}; !slices.Equal(asked, want) {
			t.Errorf("asked %v", asked)
		}
		w.visit("ws://5.6.7.9:12345/", "9.9.9.9:1", "192.168.1.5:9000") // it could be reached after all
		w.wantState("somebody came", "ws://5.6.7.9:12345/", Verified, "verified")
	})
}

// On real sockets, with TLS on the port as well, the word comes in by itself.
func TestVerified_RealSocket(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c := ListenConfig{
			NAT: &gateway{onMap: grants("5.6.7.8:12345")},
			loopDial: func(ctx context.Context, _ netip.Addr, a netip.AddrPort) (net.Conn, error) {
				if a.String() != "5.6.7.8:12345" {
					t.Errorf("dialled %v", a)
				}
				return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
			},
		}
		if secure {
			c.TLSConfig = serverConfig()
		}
		l, err := c.Serve(elsewhere{ln})
		if err != nil {
			t.Fatal(err)
		}
		changed := make(chan struct{}, 10)
		l.OnAddressChange(func([]Address) { changed <- struct{}{} })
		for l.Reachability().Code != "verified" {
			select {
			case <-changed:
			case <-time.After(10 * time.Second):
				t.Fatalf("%+v", l.Reachability())
			}
		}
		if !strings.Contains(l.URL(), "5.6.7.8:12345") || l.Stats().Accepted+l.Stats().Refused != 0 {
			t.Errorf("%s, %+v", l.URL(), l.Stats())
		}
		l.Close()
	}
}

// An elsewhere says that it is bound to an address of a LAN.
type elsewhere struct{ net.Listener }

func (elsewhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 168, 1, 5), Port: 9000} }

// What a socket that is opened costs for this.
func TestVerified_NoAllocations(t *testing.T) {
	if raceMode {
		t.Skip("the race detector allocates")
	}
	w := settle(t, "192.168.1.5:9000", nil, ListenConfig{})
	conn, _ := memnet.Pipe(0)
	for _, from := range []string{"192.168.1.6:1", "9.9.9.9:1"} {
		conn.SetAddrs(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.168.1.5:9000")), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)))
		if n := testing.AllocsPerRun(100, func() { w.arrivedFrom(conn, "home.example:9000") }); n != 0 {
			t.Errorf("from %s: %v allocations", from, n)
		}
	}
}

// A forward that was made by hand, which no gateway tells: the peers who come
// through it do.
func TestVerified_ByHand(t *testing.T) {
	const own = "192.168.1.5:9000"
	silent := func() *gateway {
		return &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) { return fails(nat.NoGateway) }}
	}
	for _, c := range []struct {
		name, url, from string
		code            nat.Code
		best            string
	}{
		{"by the address", "ws://5.6.7.8:9000/", "9.9.9.9:1", nat.CodeVerified, "ws://5.6.7.8:9000/"},
		{"another external port", "ws://5.6.7.8:4000/", "9.9.9.9:1", nat.CodeVerified, "ws://5.6.7.8:4000/"},
		{"by a name", "ws://home.example:9000/", "9.9.9.9:1", nat.CodeVerified, "ws://192.168.1.5:9000/"},
		{"from inside", "ws://5.6.7.8:9000/", "192.168.1.7:1", nat.CodeNoGateway, "ws://192.168.1.5:9000/"},
		{"from inside, by way of the gateway", "ws://5.6.7.8:9000/", "5.6.7.8:1", nat.CodeNoGateway, "ws://192.168.1.5:9000/"},
		{"a provider's NAT", "ws://5.6.7.8:9000/", "100.64.1.1:1", nat.CodeNoGateway, "ws://192.168.1.5:9000/"},
		{"a private address as Host", "ws://10.1.2.3:9000/", "9.9.9.9:1", nat.CodeNoGateway, "ws://192.168.1.5:9000/"},
		{"loopback as Host", "ws://127.0.0.1:9000/", "9.9.9.9:1", nat.CodeNoGateway, "ws://192.168.1.5:9000/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := settle(t, own, silent(), ListenConfig{})
				w.Ready(t.Context())
				w.visit(c.url, c.from, own)
				if r := w.Reachability(); r.Code != c.code || w.URL() != c.best {
					t.Errorf("%+v, URL %s", r, w.URL())
				}
				w.Close()
				if r := w.Reachability(); r.Code != nat.CodeOff || len(w.Addresses()) != 1 {
					t.Errorf("closed: %+v, %v", r, w.Addresses())
				}
			})
		})
	}
	t.Run("one peer's lie", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := settle(t, own, silent(), ListenConfig{})
			w.Ready(t.Context())
			for i := range 20 {
				w.visit(fmt.Sprintf("ws://6.6.6.%d:9000/", i), "66.66.66.66:1", own)
			}
			for _, from := range []string{"9.9.9.9:1", "9.9.9.9:2", "8.8.4.4:1"} {
				w.visit("ws://6.6.6.0:9000/", from, own)
			}
			if w.URL() != "ws://6.6.6.0:9000/" || len(w.Addresses()) != 2 {
				t.Errorf("%s, %v", w.URL(), w.Addresses())
			}
		})
	})
	t.Run("beside a mapping", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) { return grant("5.6.7.8:12345") }}
			w := settle(t, own, g, ListenConfig{})
			w.Ready(t.Context())
			synctest.Wait()
			w.visit("ws://6.6.6.6:9000/", "9.9.9.9:1", own)
			if len(w.Addresses()) != 2 || w.URL() != "ws://5.6.7.8:12345/" {
				t.Errorf("%v", w.Addresses())
			}
		})
	})
}
