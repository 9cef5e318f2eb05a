package nat

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// told collects events.
type told struct {
	mu  sync.Mutex
	all []Event
}

func (o *told) event(e Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, e)
}

// take returns what was told since the last time.
func (o *told) take() string {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	s := eventNames(o.all)
	o.all = nil
	return s
}

func eventNames(all []Event) string {
	var names []string
	for _, e := range all {
		name := strings.TrimPrefix(fmt.Sprintf("%T", e), "nat.")
		switch e := e.(type) {
		case Diagnosed:
			name += " " + string(e.Diagnosis.Code)
		case ExternalChanged:
			name += fmt.Sprintf(" %v %v", e.Old, e.New)
		case GatewayChanged:
			name += fmt.Sprintf(" %v %v", e.Old, e.New)
		case Lost:
			name += fmt.Sprintf(" %v", kindOf(e.Err))
		case Degraded:
			name += fmt.Sprintf(" %v", kindOf(e.Err))
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// The life of a mapping, as it is told.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, o := &checked{gate: newGate(time.Hour)}, new(told)
		m := newManager(ManagerConfig{Mapper: c, Internal: netip.MustParseAddrPort("0.0.0.0:9000"), OnEvent: o.event},
			func(ctx context.Context, _ string, _ link, _ func()) error { <-ctx.Done(); return nil }, time.Now)
		step := func(what string, d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			if got := o.take(); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		step("granted", time.Second, "Mapped, Diagnosed mapped")
		step("renewed", 39*time.Minute, "Renewed")
		c.set(func() { c.external = netip.MustParseAddr("100.64.1.2") })
		step("moved", 39*time.Minute, "ExternalChanged 203.0.113.7:9000 100.64.1.2:9000, Diagnosed cgnat")
		c.set(func() { c.err = &Error{Mapper: "gate", Op: "map", Kind: Timeout} })
		step("deaf", 39*time.Minute, "Degraded no answer in time")
		step("deaf for long", 30*time.Minute, "Lost no answer in time, Diagnosed no-gateway")
		c.set(func() { c.err, c.external = nil, publicIP })
		step("back", 15*time.Minute, "Mapped, Diagnosed mapped")
		c.set(func() {
			c.err = &Error{Mapper: "gate", Op: "map", Kind: Refused}
			c.answer = func(l Lease) (Lease, error) { return l, &Error{Mapper: "gate", Op: "check", Err: errStateLost} }
		})
		step("rebooted and refusing", 90*time.Second, "Lost refused, Diagnosed refused")
		_ = m.Close()
		step("closed", time.Hour, "")
	})
}

// What follows from two statuses alone.
func TestEventsBetween(t *testing.T) {
	now := time.Now()
	lease := func(internal, external, gateway string, obtained int) Lease {
		return Lease{Internal: netip.MustParseAddrPort(internal), External: netip.MustParseAddrPort(external), Gateway: netip.MustParseAddr(gateway), Via: "pcp", Obtained: now.Add(time.Duration(obtained))}
	}
	v4 := lease("192.168.1.5:9000", "203.0.113.7:9000", "192.168.1.1", 0)
	moved := lease("192.168.2.5:9000", "203.0.113.7:9000", "192.168.2.1", 1)
	a := lease("[2001:db8::1]:9000", "[2001:db8::1]:9000", "fe80::1", 0)
	b := lease("[2001:db8::2]:9000", "[2001:db8::2]:9000", "fe80::1", 0)
	other := v4
	other.Via = "upnp"
	for i, c := range []struct {
		old, now []Lease
		want     string
	}{
		{nil, nil, ""},
		{nil, []Lease{v4, a}, "Mapped, Mapped"},
		{[]Lease{v4, a}, []Lease{v4, a}, ""},
		{[]Lease{v4, a}, []Lease{moved, a}, "Renewed, GatewayChanged 192.168.1.1 192.168.2.1"},
		{[]Lease{v4}, []Lease{other}, "GatewayChanged 192.168.1.1 192.168.1.1"},
		{[]Lease{v4, a}, []Lease{v4, b}, "Mapped, Lost kind 0"},
		{[]Lease{a, b, v4}, []Lease{b}, "Lost kind 0, Lost kind 0"},
	} {
		if got := eventNames(eventsBetween(Status{Leases: c.old}, Status{Leases: c.now})); got != c.want {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
	}
}

// A receiver that does not return holds nothing up, and misses the oldest.
func TestEventsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(time.Minute)
		entered, release := make(chan struct{}), make(chan struct{})
		var got []Event
		m := NewManager(ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort("0.0.0.0:9000"), OnEvent: func(e Event) {
			if got = append(got, e); len(got) == 1 {
				close(entered)
				<-release
			}
		}})
		<-entered
		time.Sleep(24 * time.Hour)
		n := len(g.times())
		if n < 24*60 {
			t.Fatalf("renewed %d times in a day", n)
		}
		close(release)
		synctest.Wait()
		if len(got) != 1+maxEvents || slices.ContainsFunc(got[1:], func(e Event) bool { _, ok := e.(Renewed); return !ok }) {
			t.Errorf("%d events: %s", len(got), eventNames(got))
		}
		_ = m.Close()
	})
	synctest.Test(t, func(t *testing.T) { // Close waits for it, and then nothing comes
		entered, release := make(chan struct{}), make(chan struct{})
		calls := 0
		m := NewManager(ManagerConfig{Mapper: newGate(time.Minute), Internal: netip.MustParseAddrPort("0.0.0.0:9000"), OnEvent: func(Event) {
			calls++
			close(entered)
			<-release
		}})
		<-entered
		time.AfterFunc(time.Second, func() { close(release) })
		start := time.Now()
		_ = m.Close()
		if time.Since(start) != time.Second {
			t.Errorf("Close returned after %v", time.Since(start))
		}
		time.Sleep(time.Hour)
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
	})
}
