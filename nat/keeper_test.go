package nat

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// What is due first, and what it is.
func TestAgenda(t *testing.T) {
	now := time.Unix(1000, 0)
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		name string
		agenda
		step step
		at   time.Time
	}{
		{"nothing but the renewal", agenda{ask: at(60)}, stepAsk, at(60)},
		{"the check", agenda{ask: at(60), check: at(30), watch: at(40)}, stepCheck, at(30)},
		{"our own addresses", agenda{ask: at(60), check: at(30), watch: at(5)}, stepWatch, at(5)},
		{"an announcement, and a lease to check", agenda{ask: at(60), check: at(30), watch: at(5), announce: at(1), checks: true}, stepCheck, at(1)},
		{"an announcement, and none", agenda{ask: at(60), watch: at(5), announce: at(1)}, stepAsk, at(1)},
		{"an announcement after the check", agenda{ask: at(60), check: at(2), announce: at(3), checks: true}, stepCheck, at(2)},
		{"renewal and check at once", agenda{ask: at(30), check: at(30), watch: at(30)}, stepAsk, at(30)},
	} {
		if what, when := c.next(); what != c.step || !when.Equal(c.at) {
			t.Errorf("%s: step %d at %v, want %d at %v", c.name, what, when.Sub(now), c.step, c.at.Sub(now))
		}
	}
	for unanswered, want := range map[int]time.Duration{0: time.Minute, 1: 5 * time.Second, 2: 10 * time.Second, 4: 40 * time.Second, 5: time.Minute, 1000: time.Minute} {
		if got := checkAt(time.Minute, now, unanswered).Sub(now); got != want {
			t.Errorf("after %d checks without an answer: %v, want %v", unanswered, got, want)
		}
	}
}

// confirming grants leases that are to be looked at once more soon.
type confirming struct{ *checked }

func (c confirming) Map(ctx context.Context, r Request) (Lease, error) {
	l, err := c.checked.Map(ctx, r)
	l.confirm = 250 * time.Millisecond
	return l, err
}

// A new mapping is used at once, and looked at again soon. One that is lost again
// and again is not asked for in a circle.
func TestKeeperConfirms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := &checked{gate: newGate(2 * time.Hour)}, new(watch)
		m := newManager(ManagerConfig{Mapper: confirming{c}, Internal: netip.MustParseAddrPort("0.0.0.0:9000"), OnChange: w.change}, silentListen, time.Now)
		defer m.Close()
		synctest.Wait()
		if w.codes() != "mapped/1" {
			t.Errorf("at once: %s", w.codes())
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if len(c.looks) != 1 || c.looks[0] != 250*time.Millisecond {
			t.Errorf("looked at %v", c.looks)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := &checked{gate: newGate(2 * time.Hour)}
		c.answer = func(l Lease) (Lease, error) { return l, &Error{Mapper: "gate", Op: "check", Err: errStateLost} }
		m := newManager(ManagerConfig{Mapper: confirming{c}, Internal: netip.MustParseAddrPort("0.0.0.0:9000")}, silentListen, time.Now)
		defer m.Close()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := len(c.times()); n != 2 {
			t.Errorf("asked %d times in 30 s", n)
		}
	})
}

func silentListen(ctx context.Context, _ string, _ link, _ func()) error {
	<-ctx.Done()
	return nil
}

// Another program takes the port in the same moment: it keeps it, and we get another.
func TestUPnPOverwritten(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{})
	u.settle = 50 * time.Millisecond
	other := natlab.FakeMapping{Client: "127.0.0.99", Port: 1, Lease: 3600}
	first := true
	changed := make(chan Status, 16)
	m := NewManager(ManagerConfig{Mapper: u, Internal: request(9000).Internal, OnChange: func(s Status) {
		if first && len(s.Leases) == 1 {
			first = false
			f.SetMapping(9000, other)
		}
		changed <- s
	}})
	defer m.Close()
	for s := range changed {
		if len(s.Leases) == 1 && s.Leases[0].External.Port() != 9000 {
			break
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if got, _ := f.Mapping(9000); got != other || f.Mappings() != 1 {
		t.Errorf("%+v, %d mappings", got, f.Mappings())
	}
}

// A gateway that shows a new entry a moment later has it all the same.
func TestUPnPShowsLate(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	f, u := startUPnP(t, natlab.FakeUPnP{Fault: func(action string, _ map[string]string) int {
		if action == "GetSpecificPortMappingEntry" && asked.Add(1) <= 2 || action == "GetGenericPortMappingEntry" {
			return 714
		}
		return 0
	}})
	l, err := u.Map(t.Context(), request(9000))
	if err != nil || l.External.Port() != 9000 || f.Mappings() != 1 {
		t.Errorf("%+v, %v", l, err)
	}
}
