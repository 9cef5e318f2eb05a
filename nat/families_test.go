package nat

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// twoGates is a Mapper with a gateway for IPv4 and one for each IPv6 address.
type twoGates struct {
	*gate // for IPv4
	six   map[netip.Addr]*gate

	network sync.Mutex // a gate's own is held while it is slow
	addrs   []netip.Addr
	gateway netip.Addr // in front of them
}

var (
	first6, second6 = netip.MustParseAddr("2001:db8:1::5"), netip.MustParseAddr("2001:db8:2::5")
	both            = netip.MustParseAddrPort("[::]:9000")
)

func newTwoGates() *twoGates {
	t := &twoGates{gate: newGate(2 * time.Hour), six: make(map[netip.Addr]*gate), addrs: []netip.Addr{first6}}
	for _, a := range []netip.Addr{first6, second6} {
		t.six[a] = newGate(2 * time.Hour)
		t.six[a].external = a
	}
	return t
}

func (g *twoGates) of(a netip.Addr) *gate {
	if x := g.six[a]; x != nil {
		return x
	}
	return g.gate
}

func (g *twoGates) Map(ctx context.Context, r Request) (Lease, error) {
	return g.of(r.Internal.Addr()).Map(ctx, r)
}

func (g *twoGates) Unmap(ctx context.Context, l Lease) error {
	return g.of(l.Internal.Addr()).Unmap(ctx, l)
}

func (g *twoGates) addrs6() []netip.Addr {
	g.network.Lock()
	defer g.network.Unlock()
	return slices.Clone(g.addrs)
}

func (g *twoGates) gateway6(netip.Addr) netip.Addr {
	g.network.Lock()
	defer g.network.Unlock()
	return g.gateway
}

func (g *twoGates) change(f func()) {
	g.network.Lock()
	defer g.network.Unlock()
	f()
}

func externals(s Status) string {
	var all []string
	for _, l := range s.Leases {
		all = append(all, l.External.String())
	}
	return strings.Join(all, " ")
}

// Both families are mapped, renewed and given back beside each other.
func TestManagerBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := newTwoGates(), new(watch)
		m := NewManager(ManagerConfig{Mapper: g, Internal: both, OnChange: w.change})
		synctest.Wait()
		if s := m.Status(); !s.Settled || externals(s) != "203.0.113.7:9000 [2001:db8:1::5]:9000" || s.Diagnosis.Code != "mapped" || s.Err != nil {
			t.Errorf("%+v", s)
		}
		g.set(func() {
			if r := g.requests[0]; r.Internal != netip.MustParseAddrPort("0.0.0.0:9000") {
				t.Errorf("asked for %v", r.Internal)
			}
		})
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		for _, x := range []*gate{g.gate, g.six[first6]} {
			if n := len(x.times()); n < 19 || n > 24 {
				t.Errorf("asked %d times in a day", n)
			}
		}
		if len(g.six[second6].times()) != 0 {
			t.Error("asked for an address that is not ours")
		}
		at := time.Now()
		g.set(func() { g.slow = time.Second })
		g.six[first6].set(func() { g.six[first6].slow = time.Second })
		if err := m.Close(); err != nil || time.Since(at) != time.Second || len(g.unmapped) != 1 || len(g.six[first6].unmapped) != 1 {
			t.Errorf("%v after %v", err, time.Since(at))
		}
		if s := m.Status(); len(s.Leases) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Who has IPv4 does not wait for a silent IPv6 router; who has not waits a
// little, in case that there is at least IPv6.
func TestManagerSettles(t *testing.T) {
	silent := &Error{Mapper: "gate", Op: "map", Kind: Timeout}
	for _, c := range []struct {
		name         string
		err4, err6   error
		slow4, slow6 time.Duration
		settled      time.Duration
		code         string
	}{
		{"both at once", nil, nil, time.Second, time.Second, time.Second, "mapped"},
		{"IPv6 silent", nil, silent, 100 * time.Millisecond, 20 * time.Second, 100 * time.Millisecond, "mapped"},
		{"IPv6 refused early", nil, &Error{Kind: Refused}, time.Second, 0, time.Second, "mapped"},
		{"IPv4 silent, IPv6 slow", silent, nil, 3 * time.Second, 4 * time.Second, 4 * time.Second, "no-gateway"},
		{"both silent", silent, silent, 3 * time.Second, 3 * time.Second, 3 * time.Second, "no-gateway"},
		{"IPv4 silent, IPv6 for ever", silent, silent, 3 * time.Second, 20 * time.Second, settleLimit, "no-gateway"},
		{"IPv4 missing", &Error{Kind: NoNetwork}, nil, 0, time.Second, time.Second, "mapped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newTwoGates()
				six := g.six[first6]
				g.err, g.slow, six.err, six.slow = c.err4, c.slow4, c.err6, c.slow6
				m := NewManager(ManagerConfig{Mapper: g, Internal: both})
				defer m.Close()
				if c.settled > 0 {
					time.Sleep(c.settled - time.Millisecond)
					synctest.Wait()
					if m.Status().Settled {
						t.Error("settled too early")
					}
					time.Sleep(time.Millisecond)
				}
				synctest.Wait()
				if s := m.Status(); !s.Settled || string(s.Diagnosis.Code) != c.code {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// Addresses come, go, and get another router in front of them.
func TestManagerAddressesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, events := newTwoGates(), new(told)
		m := NewManager(ManagerConfig{Mapper: g, Internal: both, OnEvent: events.event})
		defer m.Close()
		events.take()
		for _, c := range []struct {
			addrs []netip.Addr
			want  string
			told  string
		}{
			{[]netip.Addr{first6, second6}, "203.0.113.7:9000 [2001:db8:1::5]:9000 [2001:db8:2::5]:9000", "Mapped"},
			{[]netip.Addr{second6}, "203.0.113.7:9000 [2001:db8:2::5]:9000", "Lost kind 0"},
			{nil, "203.0.113.7:9000", "Lost kind 0"},
			{[]netip.Addr{first6}, "203.0.113.7:9000 [2001:db8:1::5]:9000", "Mapped"},
		} {
			g.change(func() { g.addrs = c.addrs })
			time.Sleep(watchEvery + time.Millisecond)
			synctest.Wait()
			if s := m.Status(); externals(s) != c.want {
				t.Errorf("with %v: %s, want %s", c.addrs, externals(s), c.want)
			}
			if got := events.take(); got != c.told {
				t.Errorf("with %v: %s, want %s", c.addrs, got, c.told)
			}
		}
		if n := len(g.six[first6].unmapped); n != 1 {
			t.Errorf("%d given back of the address that went", n)
		}
		if len(g.times()) != 1 {
			t.Errorf("IPv4 was asked at %v", g.times())
		}
		six := g.six[first6]
		n := len(six.times())
		g.change(func() { g.gateway = netip.MustParseAddr("fe80::9%eth0") })
		time.Sleep(watchEvery + time.Millisecond)
		synctest.Wait()
		if len(six.times()) != n+1 || len(g.times()) != 1 {
			t.Errorf("another router: asked %d times", len(six.times())-n)
		}
		if got := events.take(); got != "Renewed" {
			t.Errorf("another router: %s", got)
		}
	})
}

// What a person is told where IPv4 leads nowhere and IPv6 does.
func TestManagerSaysIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, w := newTwoGates(), new(watch)
		g.external = netip.MustParseAddr("100.64.7.8")
		m := NewManager(ManagerConfig{Mapper: g, Internal: both, OnChange: w.change})
		defer m.Close()
		synctest.Wait()
		d := m.Status().Diagnosis
		if d.Code != "cgnat" || !strings.Contains(d.Summary, "lets peers in to [2001:db8:1::5]:9000") || !strings.HasPrefix(d.Advice, "Give IPv6 peers that address.") {
			t.Errorf("%+v", d)
		}
		g.change(func() { g.addrs = nil })
		time.Sleep(watchEvery + time.Millisecond)
		synctest.Wait()
		if d := m.Status().Diagnosis; d.Code != "cgnat" || strings.Contains(d.Summary, "IPv6") {
			t.Errorf("without IPv6: %+v", d)
		}
	})
}

// A listener bound to one IPv6 address has that alone, of any Mapper; one bound
// to all has IPv4 alone of a Mapper that says nothing of IPv6.
func TestManagerFamilyFollowsInternal(t *testing.T) {
	for internal, want := range map[string]string{"[2001:db8:1::5]:9000": "[2001:db8:1::5]:9000", "[::]:9000": "0.0.0.0:9000", "0.0.0.0:9000": "0.0.0.0:9000", "[::ffff:192.0.2.1]:9000": "192.0.2.1:9000"} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(time.Hour)
			m := NewManager(ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort(internal)})
			defer m.Close()
			synctest.Wait()
			if len(g.requests) != 1 || g.requests[0].Internal.String() != want {
				t.Errorf("%s: %+v", internal, g.requests)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		g := newTwoGates()
		m := NewManager(ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort("0.0.0.0:9000")})
		defer m.Close()
		synctest.Wait()
		if s := m.Status(); externals(s) != "203.0.113.7:9000" {
			t.Errorf("bound to IPv4: %s", externals(s))
		}
	})
}

// slowAddrs takes its time to list the addresses, as reading the kernel's tables does.
type slowAddrs struct{ *twoGates }

func (s slowAddrs) addrs6() []netip.Addr {
	time.Sleep(time.Millisecond)
	return s.twoGates.addrs6()
}

// A machine without IPv4: what is settled, and said, is what IPv6 comes to.
func TestManagerIPv6Only(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code Code
	}{
		"mapped":      {nil, CodeMapped},
		"silence":     {&Error{Kind: Timeout}, CodeNoGateway},
		"refused":     {&Error{Kind: Refused}, CodeRefused},
		"no IPv6 way": {&Error{Kind: NoNetwork}, CodeNoNetwork},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, w := newTwoGates(), new(watch)
				g.err, g.six[first6].slow, g.six[first6].err = &Error{Kind: NoNetwork}, 50*time.Millisecond, c.err
				m := NewManager(ManagerConfig{Mapper: slowAddrs{g}, Internal: both, OnChange: w.change})
				defer m.Close()
				time.Sleep(time.Second)
				synctest.Wait()
				if len(w.all) != 1 || !w.all[0].Settled || w.all[0].Diagnosis.Code != c.code || c.err != nil && w.all[0].Err == nil {
					t.Errorf("%+v", w.all)
				}
			})
		})
	}
}
