package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A gate is a Mapper for the keeper's tests: a gateway that does what the
// test says, and notes when it was asked for what.
type gate struct {
	mu       sync.Mutex
	lifetime time.Duration
	reassert time.Duration
	external netip.Addr
	port     uint16 // granted; 0 = as asked
	err      error
	slow     time.Duration

	start    time.Time
	asked    []time.Duration // when, since start
	requests []Request
	unmapped []Lease
	until    time.Time // the mapping's end
}

func newGate(lifetime time.Duration) *gate {
	return &gate{lifetime: lifetime, external: publicIP, start: time.Now()}
}

func (g *gate) Name() string { return "gate" }

func (g *gate) Map(ctx context.Context, r Request) (Lease, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, time.Since(g.start))
	g.requests = append(g.requests, r)
	if g.slow > 0 {
		select {
		case <-time.After(g.slow):
		case <-ctx.Done():
			return Lease{}, &Error{Mapper: "gate", Op: "map", Kind: ctxKind(ctx), Err: ctx.Err()}
		}
	}
	if g.err != nil {
		return Lease{}, g.err
	}
	port := g.port
	if port == 0 {
		port = r.external()
	}
	g.until = time.Now().Add(g.lifetime)
	return Lease{Internal: r.Internal, External: netip.AddrPortFrom(g.external, port), Lifetime: g.lifetime, Via: "gate", Obtained: time.Now(), reassert: g.reassert}, nil
}

func (g *gate) Unmap(ctx context.Context, l Lease) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unmapped = append(g.unmapped, l)
	if g.slow > 0 {
		select {
		case <-time.After(g.slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (g *gate) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *gate) times() []time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// watch collects the changes of a manager.
type watch struct {
	mu  sync.Mutex
	all []Status
}

func (w *watch) change(s Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, s)
}

func (w *watch) codes() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var c []string
	for _, s := range w.all {
		c = append(c, fmt.Sprintf("%s/%d", s.Diagnosis.Code, len(s.Leases)))
	}
	return strings.Join(c, " ")
}

func start(g Mapper, w *watch) *Manager {
	c := ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort("0.0.0.0:9000")}
	if w != nil {
		c.OnChange = w.change
	}
	return NewManager(c)
}

// between fails unless each of the gaps is in its range.
func between(t *testing.T, got time.Duration, low, high time.Duration) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("after %v, want %v to %v", got, low, high)
	}
}

func TestManagerMapsRenewsUnmaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := newGate(2*time.Hour), new(watch)
		g.port = 9321
		m := start(g, w)
		if s := m.Status(); s.Settled && len(g.times()) == 0 {
			t.Error("settled before anybody was asked")
		}
		synctest.Wait()
		s := m.Status()
		if !s.Settled || len(s.Leases) != 1 || s.Err != nil || s.Diagnosis.Code != "mapped" || s.Leases[0].External.Port() != 9321 {
			t.Fatalf("got %+v", s)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		times := g.times()
		for i := 1; i < len(times); i++ {
			between(t, times[i]-times[i-1], time.Hour, 75*time.Minute)
		}
		for i, r := range g.requests {
			if i == 0 && (r.Previous != nil || r.External != 0) || i > 0 && (r.Previous == nil || r.Previous.External.Port() != 9321 || r.Internal.Port() != 9000) {
				t.Errorf("request %d: %+v", i, r)
			}
		}
		if w.codes() != "mapped/1" {
			t.Errorf("renewals were reported: %s", w.codes())
		}
		if err := m.Close(); err != nil || len(g.unmapped) != 1 || g.unmapped[0].External.Port() != 9321 {
			t.Errorf("%v, %+v", err, g.unmapped)
		}
		if m.Close() != nil || len(g.unmapped) != 1 || len(m.Status().Leases) != 0 {
			t.Error("a second Close did something")
		}
		if w.codes() != "mapped/1" {
			t.Errorf("Close was reported: %s", w.codes())
		}
	})
}

// How soon leases of all lengths are renewed.
func TestManagerRenewalPoints(t *testing.T) {
	for _, c := range []struct {
		life, reassert, low, high time.Duration
	}{
		{2 * time.Hour, 0, time.Hour, 75 * time.Minute},
		{time.Hour, 20 * time.Minute, 17*time.Minute + 30*time.Second, 20 * time.Minute},
		{20 * time.Minute, 20 * time.Minute, 10 * time.Minute, 12*time.Minute + 30*time.Second},
		{time.Minute, 0, 30 * time.Second, 37500 * time.Millisecond},
		{5 * time.Second, 0, 4 * time.Second, 4 * time.Second},
		{0, 0, 17*time.Minute + 30*time.Second, 20 * time.Minute}, // for ever, they say
		{30 * 24 * time.Hour, 0, 12 * time.Hour, 15 * time.Hour},  // no lease is believed for a month
		{30 * 24 * time.Hour, 20 * time.Minute, 17 * time.Minute, 20 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(c.life)
			g.reassert = c.reassert
			m := start(g, nil)
			defer m.Close()
			time.Sleep(c.high + time.Second)
			synctest.Wait()
			times := g.times()
			if len(times) < 2 {
				t.Fatalf("lifetime %v: not renewed", c.life)
			}
			between(t, times[1], c.low, c.high)
		})
	}
}

// A gateway that stops answering: renewal at the backoff's and the lease's
// points, the lease believed to its end, then lost, then the same port again.
func TestManagerLosesAndRegains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := newGate(time.Hour), new(watch)
		g.port = 9321
		m := start(g, w)
		defer m.Close()
		synctest.Wait()
		g.set(func() { g.err = &Error{Mapper: "gate", Op: "map", Kind: Timeout} })
		time.Sleep(time.Hour - time.Second)
		synctest.Wait()
		if s := m.Status(); len(s.Leases) != 1 || s.Diagnosis.Code != "mapped" || kindOf(s.Err) != Timeout {
			t.Errorf("a second before the end: %+v", s)
		}
		before := g.times()
		if n := len(before); n < 5 || n > 12 {
			t.Errorf("asked %d times before the end: %v", n, before)
		}
		near := func(want time.Duration) bool {
			return slices.ContainsFunc(before, func(d time.Duration) bool { return d >= want-time.Second && d <= want+time.Minute*10 })
		}
		if !near(45*time.Minute) || !near(52*time.Minute+30*time.Second) {
			t.Errorf("not asked after 3/4 and 7/8: %v", before)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := m.Status(); len(s.Leases) != 0 || s.Diagnosis.Code != "no-gateway" {
			t.Errorf("a second after the end: %+v", s)
		}
		g.set(func() { g.err, g.port = nil, 0 })
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		if s := m.Status(); len(s.Leases) != 1 || s.Leases[0].External.Port() != 9321 || s.Err != nil {
			t.Errorf("regained: %+v", s)
		}
		if got := w.codes(); got != "mapped/1 mapped/1 no-gateway/0 mapped/1" {
			t.Errorf("changes: %s", got)
		}
	})
}

// Failures come back at 30 s, 1, 2, 5, 10, 10 min, ±20 %, and not before the
// gateway wishes.
func TestManagerBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := newGate(time.Hour), new(watch)
		g.err = &Error{Mapper: "gate", Op: "map", Kind: Refused, Code: 2}
		m := start(g, w)
		defer m.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		times := g.times()
		for i := 1; i < len(times); i++ {
			want := backoff[min(i, len(backoff))-1]
			between(t, times[i]-times[i-1], want*8/10, want*12/10)
		}
		if len(times) < 8 || len(times) > 11 {
			t.Errorf("asked %d times in an hour", len(times))
		}
		if s := m.Status(); !s.Settled || s.Diagnosis.Code != "refused" || w.codes() != "refused/0" {
			t.Errorf("%+v, %s", s, w.codes())
		}
	})
	synctest.Test(t, func(t *testing.T) { // a line may come back at any moment
		g := newGate(time.Hour)
		g.err = &Error{Mapper: "gate", Op: "map", Kind: WANDown, RetryAfter: 5 * time.Second}
		m := start(g, nil)
		defer m.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		times := g.times()
		for i := 1; i < len(times); i++ {
			between(t, times[i]-times[i-1], 20*time.Second, time.Minute)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Hour)
		g.err = &Error{Mapper: "gate", Op: "map", Kind: NoResources, RetryAfter: 25 * time.Minute}
		m := start(g, nil)
		defer m.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(g.times()); n != 3 {
			t.Errorf("asked %d times, %v", n, g.times())
		}
	})
}

// The gateway's outside address, or the granted port, changes.
func TestManagerExternalChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := newGate(time.Hour), new(watch)
		m := start(g, w)
		defer m.Close()
		synctest.Wait()
		other := netip.MustParseAddr("198.51.100.9")
		g.set(func() { g.external = other })
		time.Sleep(40 * time.Minute)
		g.set(func() { g.external = netip.MustParseAddr("100.64.0.9") })
		time.Sleep(40 * time.Minute)
		synctest.Wait()
		if w.codes() != "mapped/1 mapped/1 cgnat/1" || w.all[1].Leases[0].External.Addr() != other {
			t.Errorf("changes: %s", w.codes())
		}
	})
}

// Close while the gateway is slow: in a first asking, in a renewal, and when
// it is deaf to the giving back.
func TestManagerCloseIsPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Hour)
		g.slow = 20 * time.Second
		m := start(g, nil)
		time.Sleep(time.Second)
		at := time.Now()
		if err := m.Close(); err != nil || time.Since(at) != 0 || len(g.unmapped) != 0 {
			t.Errorf("%v after %v", err, time.Since(at))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Hour)
		m := start(g, nil)
		synctest.Wait()
		g.set(func() { g.slow = 20 * time.Second })
		at := time.Now()
		err := m.Close()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(at) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(at))
		}
	})
}

// Close from several goroutines, with OnChange running: all wait for it, and
// none is called after.
func TestManagerCloseAndOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Hour)
		entered, release := make(chan struct{}), make(chan struct{})
		closed := false
		calls := 0
		m := NewManager(ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort("0.0.0.0:9000"), OnChange: func(s Status) {
			calls++
			if closed {
				t.Error("called after Close returned")
			}
			close(entered)
			<-release
		}})
		<-entered
		_ = m.Status() // not blocked by the callback
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _ = m.Close() })
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		closed = true
		time.Sleep(2 * time.Hour)
		if calls != 1 || len(g.unmapped) != 1 {
			t.Errorf("%d calls, %d unmapped", calls, len(g.unmapped))
		}
	})
}

func TestManagerOff(t *testing.T) {
	for _, mapper := range []Mapper{nil, None()} {
		synctest.Test(t, func(t *testing.T) {
			w := new(watch)
			m := start(mapper, w)
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			if s := m.Status(); !s.Settled || s.Diagnosis.Code != "off" || s.Err != nil || w.codes() != "off/0" {
				t.Errorf("%+v, %s", s, w.codes())
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestManagerStatic(t *testing.T) {
	for ext, want := range map[string]string{"203.0.113.7:4000": "203.0.113.7:4000", "203.0.113.7:0": "203.0.113.7:9000"} {
		synctest.Test(t, func(t *testing.T) {
			m := start(Static(netip.MustParseAddrPort(ext)), nil)
			defer m.Close()
			synctest.Wait()
			s := m.Status()
			if len(s.Leases) != 1 || s.Leases[0].External.String() != want || s.Leases[0].Via != "static" || s.Diagnosis.Code != "mapped" {
				t.Errorf("%s: %+v", ext, s)
			}
		})
	}
}

// own is a gate on a machine that knows its own address.
type own struct {
	*gate
	addr netip.Addr
}

func (o own) ownAddr(netip.Addr) netip.Addr { return o.addr }

// A public address of our own needs no gateway, and where none answers that is
// soon clear.
func TestManagerPublic(t *testing.T) {
	for name, c := range map[string]struct {
		own, external netip.Addr
		err           error
		code          Code
		leases        int
	}{
		"no router":            {publicIP, netip.Addr{}, &Error{Kind: NoGateway}, CodePublic, 0},
		"silence":              {publicIP, netip.Addr{}, &Error{Kind: Timeout}, CodePublic, 0},
		"a firewall":           {publicIP, publicIP, nil, CodePublic, 1},
		"a firewall refuses":   {publicIP, netip.Addr{}, &Error{Kind: Refused}, CodeRefused, 0},
		"a private address":    {netip.MustParseAddr("192.168.1.5"), publicIP, nil, CodeMapped, 1},
		"somebody else's":      {netip.MustParseAddr("169.168.1.142"), publicIP, nil, CodeMapped, 1},
		"somebody else's, CGN": {netip.MustParseAddr("169.168.1.142"), netip.MustParseAddr("100.64.1.1"), nil, CodeCGNAT, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, w := newGate(time.Hour), new(watch)
				g.external, g.err = c.external, c.err
				m := start(own{g, c.own}, w)
				time.Sleep(time.Hour)
				synctest.Wait()
				if s := m.Status(); !s.Settled || s.Diagnosis.Code != c.code || len(s.Leases) != c.leases || w.codes() != fmt.Sprintf("%s/%d", c.code, c.leases) {
					t.Errorf("%+v; %s", s, w.codes())
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // one that swallows everything
		g := newGate(time.Hour)
		g.slow = time.Hour
		m := start(own{g, publicIP}, nil)
		defer m.Close()
		time.Sleep(publicTimeout)
		synctest.Wait()
		if s := m.Status(); !s.Settled || s.Diagnosis.Code != CodePublic {
			t.Errorf("%+v", s)
		}
	})
}

// leaving is a gate on a machine that sends to the outside from an address.
type leaving struct {
	*gate
	host host
}

func (l leaving) otherWay(own, dst netip.Addr) netip.Addr { return l.host.otherWay(own, dst) }

// leavingFrom is one that sends from out, which with near is of the gateway's network.
func leavingFrom(g *gate, out netip.Addr, near bool) leaving {
	return leaving{g, host{
		source: func(netip.Addr) (netip.Addr, error) {
			if !out.IsValid() {
				return out, errors.New("network is unreachable")
			}
			return out, nil
		},
		prefixes: func() ([]netip.Prefix, error) {
			if near {
				return []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}, nil
			}
			return []netip.Prefix{netip.MustParsePrefix("192.168.1.5/32"), netip.PrefixFrom(out, 32)}, nil
		},
	}}
}

// A forward whose answers go out by another way leads nowhere, and is not called
// mapped.
func TestManagerAnswersElsewhere(t *testing.T) {
	own := netip.MustParseAddrPort("192.168.1.5:9000")
	for name, c := range map[string]struct {
		out      string
		near     bool
		external string
		code     Code
	}{
		"by the gateway":           {"192.168.1.5", false, "203.0.113.7", CodeMapped},
		"by a tunnel":              {"10.8.0.2", false, "203.0.113.7", CodeVPN},
		"by an exit node":          {"100.101.102.103", false, "203.0.113.7", CodeVPN},
		"by a proxy's tunnel":      {"198.18.0.1", false, "203.0.113.7", CodeVPN},
		"by another network":       {"192.168.2.5", false, "203.0.113.7", CodeVPN},
		"by Wi-Fi to the same":     {"192.168.1.6", true, "203.0.113.7", CodeMapped},
		"nobody knows":             {"", false, "203.0.113.7", CodeMapped},
		"it is of no use anyway":   {"10.8.0.2", false, "100.64.1.1", CodeCGNAT},
		"the outside is ours, too": {"203.0.113.7", false, "203.0.113.7", CodeMapped},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(time.Hour)
				g.external = netip.MustParseAddr(c.external)
				out, _ := netip.ParseAddr(c.out)
				m := NewManager(ManagerConfig{Mapper: leavingFrom(g, out, c.near), Internal: own})
				defer m.Close()
				synctest.Wait()
				if d := m.Status().Diagnosis; d.Code != c.code {
					t.Errorf("%+v", d)
				}
			})
		})
	}
}

// A VPN that is switched on and off while a forward is held is noticed.
func TestManagerVPNComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out atomic.Pointer[netip.Addr]
		set := func(s string) {
			a := netip.MustParseAddr(s)
			out.Store(&a)
		}
		set("192.168.1.5")
		w := new(watch)
		m := NewManager(ManagerConfig{Mapper: wandering{newGate(2 * time.Hour), &out}, Internal: netip.MustParseAddrPort("192.168.1.5:9000"), OnChange: w.change})
		defer m.Close()
		synctest.Wait()
		for _, s := range []string{"10.8.0.2", "192.168.1.5"} {
			set(s)
			time.Sleep(2 * watchEvery)
			synctest.Wait()
		}
		if got := w.codes(); got != "mapped/1 vpn/1 mapped/1" {
			t.Error(got)
		}
	})
}

// wandering is a gate on a machine whose way out changes.
type wandering struct {
	*gate
	out *atomic.Pointer[netip.Addr]
}

func (w wandering) otherWay(own, dst netip.Addr) netip.Addr {
	return leavingFrom(w.gate, *w.out.Load(), false).otherWay(own, dst)
}

// Without a default route everything is settled at once.
func TestManagerNoNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := loopbackHost()
		m := start(newAny(candidate{mapper: newNATPMP(h), wait: 250 * time.Millisecond}, candidate{mapper: newUPnP(h, systemSearcher()), wait: time.Second}), nil)
		defer m.Close()
		at := time.Now()
		synctest.Wait()
		if s := m.Status(); !s.Settled || s.Diagnosis.Code != "no-network" || time.Since(at) != 0 || !errors.Is(s.Err, errNoRoute) {
			t.Errorf("%+v after %v", s, time.Since(at))
		}
	})
}

// Days of a gateway that forgets, refuses and falls silent at random points
// of a fixed script: the mapping is live, or the status says otherwise within
// a lease's life, and nobody is stormed.
func TestManagerDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(30 * time.Minute)
		m := NewManager(ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort("0.0.0.0:9000"), Logger: slog.New(slog.DiscardHandler)})
		defer m.Close()
		errs := []error{nil, &Error{Kind: Timeout}, nil, &Error{Kind: Conflict}, nil, nil, &Error{Kind: WANDown}}
		for i := range 14 * 24 {
			g.set(func() { g.err = errs[i%len(errs)] })
			for range 60 {
				time.Sleep(time.Minute)
				synctest.Wait()
				g.set(func() {
					live := time.Now().Before(g.until)
					if s := m.Status(); len(s.Leases) > 0 != live && time.Since(g.until) > time.Second {
						t.Fatalf("after %v: live %v, status %+v", time.Since(g.start), live, s)
					}
				})
			}
		}
		// With the line down it is asked as often as it is looked after with a mapping.
		if n := len(g.times()); n > 14*24*(8+75/len(errs)) {
			t.Errorf("%d requests in 14 days", n)
		}
	})
}
