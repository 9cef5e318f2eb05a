package peerws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
	"github.com/peerws/peerws/nat"
)

// A gateway is a nat.Mapper that does what the test says.
type gateway struct {
	onMap   func(ctx context.Context, r nat.Request) (nat.Lease, error)
	onUnmap func(ctx context.Context, l nat.Lease) error

	mu    sync.Mutex
	calls []string
}

func (g *gateway) Name() string { return "script" }

func (g *gateway) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, fmt.Sprintf(format, args...))
}

func (g *gateway) Map(ctx context.Context, r nat.Request) (nat.Lease, error) {
	g.note("map %v", r.Internal)
	return g.onMap(ctx, r)
}

func (g *gateway) Unmap(ctx context.Context, l nat.Lease) error {
	g.note("unmap %v", l.External)
	if g.onUnmap == nil {
		return nil
	}
	return g.onUnmap(ctx, l)
}

// grant makes a lease of 20 minutes.
func grant(external string) (nat.Lease, error) {
	return nat.Lease{External: netip.MustParseAddrPort(external), Lifetime: 20 * time.Minute, Via: "script"}, nil
}

func grants(external string) func(context.Context, nat.Request) (nat.Lease, error) {
	return func(context.Context, nat.Request) (nat.Lease, error) { return grant(external) }
}

func fails(kind nat.Kind) (nat.Lease, error) {
	return nat.Lease{}, &nat.Error{Mapper: "script", Op: "map", Kind: kind}
}

// behind starts a listener on 192.168.1.5:9000, in memory, behind a gateway.
func behind(t *testing.T, g *gateway, c ListenConfig) *WebSocketListener {
	t.Helper()
	ln := memnet.Listen(0)
	ln.Address = &net.TCPAddr{IP: net.IPv4(192, 168, 1, 5), Port: 9000}
	if g != nil {
		c.NAT = g
	}
	l, err := c.Serve(ln)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

var (
	ownAddress = Address{"ws://192.168.1.5:9000/", LAN, "direct", Bound}
	outside    = Address{"ws://5.6.7.8:12345/", Public, "script", Mapped}
)

func lost(a Address) Address { a.State = Lost; return a }

func wantAddresses(t *testing.T, when string, l *WebSocketListener, want ...Address) {
	t.Helper()
	if got := l.Addresses(); !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", when, got, want)
	}
}

// The gateway may grant another port, and take its time: peers of the LAN need
// not wait for it.
func TestAddresses_Mapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) {
			time.Sleep(3 * time.Second)
			return grant("5.6.7.8:12345")
		}}
		start := time.Now()
		l := behind(t, g, ListenConfig{})
		synctest.Wait()
		if l.ReadyState() != ListenerOpening || l.Reachability().Code != "" || l.Reachability().Summary == "" {
			t.Errorf("at first: %v, %+v", l.ReadyState(), l.Reachability())
		}
		wantAddresses(t, "at first", l, ownAddress)
		if u := l.URL(); u != ownAddress.URL {
			t.Errorf("URL at first: %q", u)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready: %v", err)
		}
		if err := l.Ready(t.Context()); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("Ready: %v after %v", err, time.Since(start))
		}
		// What is ready is there to see.
		if l.ReadyState() != ListenerListening || l.Reachability().Code != "mapped" || l.URL() != outside.URL || l.Port() != 9000 {
			t.Errorf("%v, %+v, %q, %d", l.ReadyState(), l.Reachability(), l.URL(), l.Port())
		}
		wantAddresses(t, "mapped", l, ownAddress, outside)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		wantAddresses(t, "closed", l, ownAddress, lost(outside))
		if want := []string{"map 192.168.1.5:9000", "unmap 5.6.7.8:12345"}; !slices.Equal(g.calls, want) {
			t.Errorf("%q", g.calls)
		}
	})
}

func TestAddresses_Refused(t *testing.T) {
	for kind, code := range map[nat.Kind]string{nat.Refused: "refused", nat.NoGateway: "no-gateway", nat.WANDown: "wan-down", nat.AddressMismatch: "double-nat", nat.Conflict: "conflict", nat.NoNetwork: "no-network"} {
		synctest.Test(t, func(t *testing.T) {
			g := &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) { return fails(kind) }}
			l := behind(t, g, ListenConfig{})
			if err := l.Ready(t.Context()); err != nil || l.ReadyState() != ListenerListening {
				t.Errorf("%v, %v", err, l.ReadyState())
			}
			if r := l.Reachability(); string(r.Code) != code || !strings.HasSuffix(r.Summary, ".") || r.Advice == "" {
				t.Errorf("%v: %+v", kind, r)
			}
			wantAddresses(t, code, l, ownAddress)
		})
	}
}

func TestAddresses_External(t *testing.T) {
	for external, c := range map[string]struct {
		scope Scope
		code  string
	}{
		"5.6.7.8:9000":       {Public, "mapped"},
		"100.64.1.2:9000":    {LAN, "cgnat"},
		"10.1.2.3:9000":      {LAN, "double-nat"},
		"0.0.0.0:9000":       {0, "wan-down"},
		"[2001:db8::1]:9000": {Public, "mapped"},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := behind(t, &gateway{onMap: grants(external)}, ListenConfig{})
			l.Ready(t.Context())
			if strings.HasPrefix(external, "0.") {
				wantAddresses(t, external, l, ownAddress)
			} else {
				wantAddresses(t, external, l, ownAddress, Address{"ws://" + external + "/", c.scope, "script", Mapped})
			}
			if got := l.Reachability().Code; string(got) != c.code && !strings.HasPrefix(external, "[") {
				t.Errorf("%s: %s", external, got)
			}
		})
	}
}

// A mapping that is lost is made again; the state never goes back.
func TestAddresses_LostAndMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down bool
		external := "5.6.7.8:12345"
		g := &gateway{}
		g.onMap = func(context.Context, nat.Request) (nat.Lease, error) {
			time.Sleep(time.Second)
			g.mu.Lock()
			defer g.mu.Unlock()
			if down {
				return fails(nat.NoGateway)
			}
			return grant(external)
		}
		set := func(isDown bool, to string) {
			g.mu.Lock()
			defer g.mu.Unlock()
			down, external = isDown, to
		}
		l := behind(t, g, ListenConfig{})
		var mu sync.Mutex
		var told [][]Address
		running := 0
		l.OnAddressChange(func(list []Address) {
			mu.Lock()
			if running++; running > 1 {
				t.Error("two calls at a time")
			}
			told = append(told, list)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
		})
		l.Ready(t.Context())
		synctest.Wait()
		set(true, "")
		time.Sleep(21 * time.Minute)
		synctest.Wait()
		wantAddresses(t, "lost", l, ownAddress, lost(outside))
		if l.ReadyState() != ListenerListening || l.Reachability().Code != "no-gateway" || l.URL() != ownAddress.URL {
			t.Errorf("%v, %+v, %q", l.ReadyState(), l.Reachability(), l.URL())
		}
		set(false, "5.6.7.9:12345") // the gateway has got another address
		time.Sleep(13 * time.Minute)
		synctest.Wait()
		other := Address{"ws://5.6.7.9:12345/", Public, "script", Mapped}
		wantAddresses(t, "again", l, ownAddress, other, lost(outside))
		set(false, "5.6.7.8:12345") // and the first one again: it is lost no more
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		wantAddresses(t, "as before", l, ownAddress, outside, lost(other))
		if l.ReadyState() != ListenerListening || l.Reachability().Code != "mapped" || l.URL() != outside.URL {
			t.Errorf("%v, %+v, %q", l.ReadyState(), l.Reachability(), l.URL())
		}
		l.Close()
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		want := [][]Address{
			{ownAddress, outside},
			{ownAddress, lost(outside)},
			{ownAddress, other, lost(outside)},
			{ownAddress, outside, lost(other)},
			{ownAddress, lost(outside), lost(other)},
		}
		// A change of Reachability alone is told, too.
		told = slices.CompactFunc(told, slices.Equal)
		if !slices.EqualFunc(told, want, slices.Equal) {
			t.Errorf("told:\n got %v\nwant %v", told, want)
		}
	})
}

// One step of the gateway is one call, with all of it done.
func TestOnAddressChange_OnceEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := behind(t, &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) {
			time.Sleep(time.Second)
			return grant("5.6.7.8:12345")
		}}, ListenConfig{})
		var calls atomic.Int32
		l.OnAddressChange(func(list []Address) {
			calls.Add(1)
			if l.ReadyState() != ListenerListening || l.Reachability().Code != "mapped" || len(list) != 2 {
				t.Errorf("%v, %+v, %v", l.ReadyState(), l.Reachability(), list)
			}
			time.Sleep(time.Second) // a second call for the same would come behind this one
		})
		time.Sleep(10 * time.Second)
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls", n)
		}
		l.OnAddressChange(nil)
		l.Close()
	})
}

// Old addresses are remembered so that they can be struck out, but not for ever.
func TestAddresses_FewLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		g := &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) {
			n++
			return grant(fmt.Sprintf("5.6.7.%d:9000", n%200))
		}}
		l := behind(t, g, ListenConfig{})
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		if list := l.Addresses(); len(list) != 2+maxLost || n < 100 {
			t.Errorf("%d askings, %v", n, list)
		}
	})
}

// A gateway that hangs costs Close 2 s at most, whatever it is doing.
func TestClose_GatewayHangs(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for name, c := range map[string]struct {
		g    *gateway
		want time.Duration
		says string // the one error
	}{
		"mapping":   {&gateway{onMap: func(ctx context.Context, _ nat.Request) (nat.Lease, error) { return nat.Lease{}, hang(ctx) }}, 0, ""},
		"unmapping": {&gateway{onMap: grants("5.6.7.8:12345"), onUnmap: func(ctx context.Context, _ nat.Lease) error { return hang(ctx) }}, 2 * time.Second, "not given back"},
		"refuses":   {&gateway{onMap: grants("5.6.7.8:12345"), onUnmap: func(context.Context, nat.Lease) error { return errors.New("the router says no") }}, 0, "the router says no"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := behind(t, c.g, ListenConfig{})
				synctest.Wait()
				start := time.Now()
				var wg sync.WaitGroup
				errs := make(chan error, 3)
				for range 3 {
					wg.Go(func() {
						if err := l.Close(); err != nil {
							errs <- err
						}
					})
				}
				wg.Wait()
				if n := len(errs); c.says == "" && n > 0 || c.says != "" && n != 1 {
					t.Errorf("%d errors", n)
				} else if n == 1 {
					if err := <-errs; !strings.Contains(err.Error(), c.says) {
						t.Error(err)
					}
				}
				<-l.Done()
				if d := time.Since(start); d != c.want {
					t.Errorf("Close took %v", d)
				}
				if err := l.Ready(t.Context()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Ready: %v", err)
				}
			})
		})
	}
}

// Whoever waits for Ready is told of a Close.
func TestReady_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateway{onMap: func(ctx context.Context, _ nat.Request) (nat.Lease, error) { <-ctx.Done(); return fails(nat.Canceled) }}
		l := behind(t, g, ListenConfig{})
		time.AfterFunc(time.Second, func() { l.Close() })
		if err := l.Ready(t.Context()); !errors.Is(err, net.ErrClosed) || l.ReadyState() != ListenerClosed {
			t.Errorf("%v, %v", err, l.ReadyState())
		}
	})
}

func TestOnAddressChange_ClosesTheListener(t *testing.T) {
	for _, shutdown := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := behind(t, &gateway{onMap: func(context.Context, nat.Request) (nat.Lease, error) {
				time.Sleep(time.Second)
				return grant("5.6.7.8:12345")
			}}, ListenConfig{})
			calls := 0
			l.OnAddressChange(func([]Address) {
				calls++
				if shutdown {
					l.Shutdown(context.Background())
				} else {
					l.Close()
				}
			})
			<-l.Done()
			synctest.Wait()
			if calls != 2 { // the second tells what is lost with it
				t.Errorf("%d calls", calls)
			}
		})
	}
}

func TestReachability_Off(t *testing.T) {
	l := behind(t, nil, ListenConfig{})
	if r := l.Reachability(); r.Code != "off" || r.Summary == "" || l.ReadyState() != ListenerListening {
		t.Errorf("%+v, %v", r, l.ReadyState())
	}
	// Nobody outside can reach loopback, so nobody is asked.
	g := &gateway{}
	l = openPort(t, ListenConfig{NAT: g})
	if r := l.Reachability(); r.Code != "off" || !strings.Contains(r.Summary, "127.0.0.1") || l.ReadyState() != ListenerListening {
		t.Errorf("%+v, %v", r, l.ReadyState())
	}
	l.Close()
	if len(g.calls) > 0 {
		t.Errorf("the gateway was asked: %q", g.calls)
	}
}

// A listener on every address has the gateway asked for IPv4.
func TestAddresses_WildcardInternal(t *testing.T) {
	for _, ip := range []net.IP{net.IPv6unspecified, net.IPv4zero} {
		synctest.Test(t, func(t *testing.T) {
			ln := memnet.Listen(0)
			ln.Address = &net.TCPAddr{IP: ip, Port: 9000}
			g := &gateway{onMap: grants("5.6.7.8:9000")}
			l, err := ListenConfig{NAT: g}.Serve(ln)
			if err != nil {
				t.Fatal(err)
			}
			l.Ready(t.Context())
			l.Close()
			if g.calls[0] != "map 0.0.0.0:9000" {
				t.Errorf("%q", g.calls)
			}
		})
	}
}

func TestAddresses_Bound(t *testing.T) {
	for _, c := range []struct {
		addr  net.Addr
		want  string
		scope Scope
	}{
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9000}, "ws://127.0.0.1:9000/", Loopback},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 9000}, "ws://[::1]:9000/", Loopback},
		{&net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 80}, "ws://10.1.2.3:80/", LAN},
		{&net.TCPAddr{IP: net.IPv4(100, 64, 1, 2), Port: 9000}, "ws://100.64.1.2:9000/", LAN},
		{&net.TCPAddr{IP: net.IPv4(169, 254, 1, 2), Port: 9000}, "ws://169.254.1.2:9000/", LAN},
		{&net.TCPAddr{IP: net.IPv4(5, 6, 7, 8), Port: 9000}, "ws://5.6.7.8:9000/", Public},
		{&net.TCPAddr{IP: net.ParseIP("::ffff:5.6.7.8"), Port: 9000}, "ws://5.6.7.8:9000/", Public},
		{&net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 9000}, "ws://[fd00::1]:9000/", LAN},
		{&net.TCPAddr{IP: net.ParseIP("2600::1"), Port: 9000}, "ws://[2600::1]:9000/", Public},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 9000, Zone: "eth0"}, "", LAN},
		{&net.UnixAddr{Name: "a", Net: "unix"}, "", LAN},
	} {
		ln := memnet.Listen(0)
		ln.Address = c.addr
		l, err := ListenConfig{}.Serve(ln)
		if err != nil {
			t.Fatal(err)
		}
		if u := l.URL(); u != c.want {
			t.Errorf("%v: URL %q, want %q", c.addr, u, c.want)
		}
		if c.want == "" {
			wantAddresses(t, c.addr.String(), l)
		} else {
			wantAddresses(t, c.addr.String(), l, Address{c.want, c.scope, "direct", Bound})
		}
		if l.Addr() != c.addr {
			t.Errorf("Addr %v", l.Addr())
		}
		l.Close()
	}
}

// A listener on every address has loopback among them, the widest scope last.
// What it lists is there: package net takes 0.0.0.0 for both families.
func TestAddresses_Wildcard(t *testing.T) {
	for _, address := range []string{"", "0.0.0.0"} {
		l, err := ListenConfig{Address: address}.Listen(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		list := l.Addresses()
		if !slices.Contains(list, Address{fmt.Sprintf("ws://127.0.0.1:%d/", l.Port()), Loopback, "direct", Bound}) {
			t.Errorf("%q: %v", address, list)
		}
		if !slices.IsSortedFunc(list, func(a, b Address) int { return int(a.Scope) - int(b.Scope) }) {
			t.Errorf("%q: %v", address, list)
		}
		for _, a := range list {
			if a.Scope == Loopback {
				knockURL(t, a.URL)
			}
		}
		if u := l.URL(); u == "" || strings.Contains(u, "0.0.0.0") || strings.Contains(u, "[::]") {
			t.Errorf("%q: URL %q", address, u)
		}
		closePort(t, l)
	}
}

// knockURL opens and aborts a socket.
func knockURL(t *testing.T, url string) {
	t.Helper()
	c, err := Dial(t.Context(), url)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return
	}
	c.Abort()
	waitDone(t, c)
}

func TestURL_Best(t *testing.T) {
	lan := Address{"ws://192.168.1.5:9000/", LAN, "direct", Bound}
	lan6 := Address{"ws://[fd00::1]:9000/", LAN, "direct", Bound}
	public := Address{"ws://5.6.7.8:9000/", Public, "pcp", Mapped}
	public6 := Address{"ws://[2600::1]:9000/", Public, "direct", Bound}
	verified := Address{"ws://[2600::2]:9000/", Public, "pcp", Verified}
	for _, c := range []struct {
		list []Address
		want string
	}{
		{nil, ownAddress.URL},
		{[]Address{lan6}, lan.URL},
		{[]Address{lan6, public6}, public6.URL},
		{[]Address{public6, public}, public.URL},
		{[]Address{public, public6, verified}, verified.URL},
		{[]Address{lost(public), lan6}, lan.URL},
		{[]Address{{"ws://5.6.7.8:1/", LAN, "pcp", Mapped}}, "ws://5.6.7.8:1/"},
	} {
		l := behind(t, nil, ListenConfig{})
		l.addrs.mapped = c.list
		if u := l.URL(); u != c.want {
			t.Errorf("%v: %q, want %q", c.list, u, c.want)
		}
	}
}

func TestAddresses_Texts(t *testing.T) {
	if s := fmt.Sprint(Loopback, LAN, Public, Scope(9), Bound, Mapped, Verified, Lost, AddressState(9), ListenerOpening, ListenerListening, ListenerClosed, ListenerState(9)); s !=
		"loopback lan public Scope(9) bound mapped verified lost AddressState(9) OPENING LISTENING CLOSED ListenerState(9)" {
		t.Error(s)
	}
}
