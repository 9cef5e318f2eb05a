package nat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// A checked gate is a gateway that can be looked after.
type checked struct {
	*gate
	looks  []time.Duration // when, since start
	answer func(l Lease) (Lease, error)
}

func (c *checked) Map(ctx context.Context, r Request) (Lease, error) {
	l, err := c.gate.Map(ctx, r)
	if err == nil {
		l.recheck, l.Gateway = heartbeat, netip.MustParseAddr("192.168.1.1")
	}
	return l, err
}

func (c *checked) check(_ context.Context, l Lease) (Lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looks = append(c.looks, time.Since(c.start))
	if c.answer != nil {
		return c.answer(l)
	}
	return l, nil
}

// keepChecked starts a manager of c, and returns what makes it hear something
// and how often it began to listen.
func keepChecked(c *checked, w *watch) (m *Manager, announce func(), listeners *int) {
	heard := make(chan func(), 10)
	listeners = new(int)
	config := ManagerConfig{Mapper: c, Internal: netip.MustParseAddrPort("0.0.0.0:9000")}
	if w != nil {
		config.OnChange = w.change
	}
	m = newManager(config, func(ctx context.Context, via string, l link, f func()) error {
		if *listeners++; via != "gate" || l.gateway != netip.MustParseAddr("192.168.1.1") {
			return errors.New("listening to somebody else")
		}
		heard <- f
		<-ctx.Done()
		return nil
	}, time.Now)
	synctest.Wait()
	var f func()
	select {
	case f = <-heard:
	default:
	}
	return m, f, listeners
}

// A held mapping is looked after once a minute and otherwise left alone.
func TestManagerHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := &checked{gate: newGate(2 * time.Hour)}, new(watch)
		m, _, listeners := keepChecked(c, w)
		time.Sleep(10*time.Hour + time.Second)
		synctest.Wait()
		if n := len(c.looks) + len(c.times()); n < 9*60 || n > 10*60+10 {
			t.Errorf("asked %d times in ten hours", n)
		}
		if len(c.times()) < 8 || len(c.times()) > 10 {
			t.Errorf("renewed at %v", c.times())
		}
		if w.codes() != "mapped/1" || *listeners != 1 {
			t.Errorf("%s, listened %d times", w.codes(), *listeners)
		}
		_ = m.Close()
		n := len(c.looks)
		time.Sleep(time.Hour)
		if len(c.looks) != n {
			t.Error("looked after Close")
		}
	})
}

// A gateway that has lost the mapping is asked again at once, for the same
// port; when it then refuses, the mapping is lost for the user too.
func TestManagerReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := &checked{gate: newGate(2 * time.Hour)}, new(watch)
		c.port = 9321
		m, _, _ := keepChecked(c, w)
		defer m.Close()
		lost := func(l Lease) (Lease, error) { return l, &Error{Mapper: "gate", Op: "check", Err: errStateLost} }
		c.set(func() { c.answer, c.port = lost, 0 })
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		times := c.times()
		if len(times) != 2 || times[1] != time.Minute || c.requests[1].Previous == nil || c.requests[1].external() != 9321 {
			t.Fatalf("asked at %v", times)
		}
		c.set(func() { c.err = &Error{Mapper: "gate", Op: "map", Kind: Refused} })
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := m.Status(); len(s.Leases) != 0 || s.Diagnosis.Code != "refused" {
			t.Errorf("%+v", s)
		}
		n := len(c.looks)
		c.set(func() { c.err, c.answer = nil, nil })
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if len(c.looks) != n {
			t.Error("looked after a mapping that is lost")
		}
		if s := m.Status(); len(s.Leases) != 1 || s.Leases[0].External.Port() != 9321 {
			t.Errorf("%+v", s)
		}
		if w.codes() != "mapped/1 refused/0 mapped/1" {
			t.Errorf("changes: %s", w.codes())
		}
	})
}

// The outside address changes between two renewals.
func TestManagerNoticesAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := &checked{gate: newGate(2 * time.Hour)}, new(watch)
		m, _, _ := keepChecked(c, w)
		defer m.Close()
		for _, a := range []string{"198.51.100.9", "100.64.0.9", "203.0.113.7"} {
			c.set(func() {
				c.answer = func(l Lease) (Lease, error) {
					l.External = netip.AddrPortFrom(netip.MustParseAddr(a), l.External.Port())
					return l, nil
				}
			})
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if s := m.Status(); s.Leases[0].External.String() != a+":9000" {
				t.Errorf("%s: %+v", a, s)
			}
		}
		if len(c.times()) != 1 || w.codes() != "mapped/1 mapped/1 cgnat/1 mapped/1" {
			t.Errorf("asked at %v, changes: %s", c.times(), w.codes())
		}
	})
}

// A gateway that does not answer a check is being restarted, as likely as
// not: it is looked for more often for a while, and the mapping believed. One
// that is not where it was is searched for at once.
func TestManagerDeafGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := &checked{gate: newGate(2 * time.Hour)}, new(watch)
		m, _, _ := keepChecked(c, w)
		defer m.Close()
		c.set(func() {
			c.answer = func(l Lease) (Lease, error) { return l, &Error{Mapper: "gate", Op: "check", Kind: Timeout} }
		})
		time.Sleep(4*time.Minute + time.Second)
		synctest.Wait()
		want := []time.Duration{60, 65, 75, 95, 135, 195}
		if len(c.looks) != len(want) {
			t.Fatalf("looked at %v", c.looks)
		}
		for i, at := range c.looks {
			if at != want[i]*time.Second {
				t.Errorf("looked at %v", c.looks)
			}
		}
		if len(c.times()) != 1 || w.codes() != "mapped/1" {
			t.Errorf("asked at %v, changes: %s", c.times(), w.codes())
		}
		c.set(func() {
			c.answer = func(l Lease) (Lease, error) { return l, &Error{Mapper: "gate", Op: "check", Kind: NoGateway} }
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(c.times()) != 2 {
			t.Errorf("asked at %v", c.times())
		}
	})
}

// An announcement leads to a look within a second, a flood of them to one in
// five, and none of it to more than a look.
func TestManagerAnnouncement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &checked{gate: newGate(2 * time.Hour)}
		m, announce, _ := keepChecked(c, nil)
		defer m.Close()
		time.Sleep(30 * time.Second)
		announce()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(c.looks) != 1 {
			t.Fatalf("looked at %v", c.looks)
		}
		for range 1000 {
			announce()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := len(c.looks); n < 15 || n > 21 || len(c.times()) != 1 {
			t.Errorf("in 100 s: looked %d times, asked at %v", n, c.times())
		}
	})
}

// While there is no mapping, an announcement is a reason to ask.
func TestManagerAnnouncementAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &checked{gate: newGate(time.Hour)}
		m, announce, _ := keepChecked(c, nil)
		defer m.Close()
		c.set(func() { c.err = &Error{Mapper: "gate", Op: "map", Kind: Timeout} })
		time.Sleep(3*time.Hour + 7*time.Second)
		c.set(func() { c.err = nil })
		n := len(c.times())
		announce()
		time.Sleep(minCheckGap + announceWait)
		synctest.Wait()
		if s := m.Status(); len(c.times()) != n+1 || len(s.Leases) != 1 {
			t.Errorf("asked %d times, %+v", len(c.times())-n, s)
		}
	})
}

// A moving machine has an address that changes.
type moving struct {
	*gate
	at netip.Addr
}

func (m *moving) ownAddr(netip.Addr) netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}

// Another address of our own, none, and the old one again: each is a reason to
// ask at once, also in the middle of a backoff, and nothing else is.
func TestManagerMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &moving{gate: newGate(2 * time.Hour), at: netip.MustParseAddr("192.168.1.5")}
		m := start(g, nil)
		defer m.Close()
		time.Sleep(31 * time.Second)
		for i, a := range []netip.Addr{netip.MustParseAddr("192.168.1.6"), {}, netip.MustParseAddr("192.168.1.5")} {
			g.set(func() {
				g.at, g.err = a, nil
				if !a.IsValid() {
					g.err = &Error{Mapper: "gate", Op: "map", Kind: NoNetwork}
				}
			})
			time.Sleep(watchEvery)
			synctest.Wait()
			if n := len(g.times()); n != i+2 {
				t.Fatalf("change %d: asked at %v", i, g.times())
			}
			time.Sleep(10 * time.Second)
		}
		time.Sleep(50 * time.Minute)
		if n := len(g.times()); n != 4 {
			t.Errorf("asked at %v", g.times())
		}
	})
}

// The clock of the day runs on while the machine sleeps.
func TestManagerWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2 * time.Hour)
		var jump atomic.Int64
		m := newManager(ManagerConfig{Mapper: g, Internal: netip.MustParseAddrPort("0.0.0.0:9000")}, nil,
			func() time.Time { return time.Now().Add(time.Duration(jump.Load())) })
		defer m.Close()
		for i, d := range []time.Duration{0, 10 * time.Second, -time.Hour, 0, 3 * time.Hour, 3 * time.Hour, 6 * time.Hour} {
			jump.Store(int64(d))
			time.Sleep(watchEvery)
			synctest.Wait()
			if n, want := len(g.times()), [...]int{1, 1, 1, 1, 2, 2, 3}[i]; n != want {
				t.Errorf("%d, the clock off by %v: asked %d times, want %d", i, d, n, want)
			}
		}
	})
}

// Weeks of a gateway that can be looked after, and at random reboots, refuses,
// falls silent, gives the port away and gets another address: whenever the
// mapping is gone, or there again, or elsewhere, an event has said so within
// two minutes, the status with it, and no hour sees more than some 80 requests.
func TestManagerWeeks(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			c := &checked{gate: newGate(2 * time.Hour)}
			var deaf error // of checks
			c.answer = func(l Lease) (Lease, error) {
				if deaf != nil {
					return l, deaf
				}
				if !time.Now().Before(c.until) {
					return l, &Error{Mapper: "gate", Op: "check", Err: errStateLost}
				}
				l.External = netip.AddrPortFrom(c.external, l.External.Port())
				return l, nil
			}
			var mu sync.Mutex
			var told netip.AddrPort // where peers connect, by the events; invalid if nowhere
			kinds := map[string]int{}
			heard := make(chan func(), 100)
			m := newManager(ManagerConfig{Mapper: c, Internal: netip.MustParseAddrPort("0.0.0.0:9000"), OnEvent: func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				kinds[fmt.Sprintf("%T", e)]++
				switch e := e.(type) {
				case Mapped:
					told = e.Lease.External
				case ExternalChanged:
					if told != e.Old {
						t.Errorf("changed from %v, it was %v", e.Old, told)
					}
					told = e.New
				case Lost:
					told = netip.AddrPort{}
				}
			}}, func(ctx context.Context, _ string, _ link, f func()) error {
				heard <- f
				<-ctx.Done()
				return nil
			}, time.Now)
			defer m.Close()
			synctest.Wait()
			announce := <-heard
			wrong := 0 // minutes in a row that the events have been wrong
			asked := 0
			for hour := range 7 * 24 {
				c.set(func() {
					c.err, deaf = nil, nil
					switch random.IntN(6) {
					case 0: // a lost mapping could not be known
						c.err = &Error{Mapper: "gate", Op: "map", Kind: Timeout}
						deaf = c.err
						return
					case 1:
						c.err = &Error{Mapper: "gate", Op: "map", Kind: Refused}
					case 2:
						c.err = &Error{Mapper: "gate", Op: "map", Kind: Conflict}
					case 3:
						c.external = netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + random.IntN(200))})
					}
					if random.IntN(3) == 0 {
						c.until = time.Time{} // rebooted
					}
				})
				if random.IntN(2) == 0 {
					announce()
				}
				for minute := range 60 {
					time.Sleep(time.Minute)
					synctest.Wait()
					var want netip.AddrPort
					c.set(func() {
						if time.Now().Before(c.until) {
							want = netip.AddrPortFrom(c.external, 9000)
						}
					})
					mu.Lock()
					got := told
					mu.Unlock()
					var status netip.AddrPort
					if s := m.Status(); len(s.Leases) > 0 {
						status = s.Leases[0].External
					}
					if status != got {
						t.Fatalf("hour %d, minute %d: the events say %v, the status %v", hour, minute, got, status)
					}
					if wrong++; got == want {
						wrong = 0
					}
					if wrong > 2 {
						t.Fatalf("hour %d, minute %d: mapped %v, told %v, status %+v", hour, minute, want, got, m.Status())
					}
				}
				n := len(c.looks) + len(c.times())
				if n-asked > 80 {
					t.Errorf("hour %d: %d requests", hour, n-asked)
				}
				asked = n
			}
			if kinds["nat.Mapped"] < 5 || kinds["nat.Lost"] < 5 || kinds["nat.ExternalChanged"] < 5 || kinds["nat.Renewed"] < 20 || kinds["nat.Degraded"] < 2 {
				t.Errorf("the script is too kind: %v", kinds)
			}
		})
	}
}

// What each protocol's check sees of a gateway that goes on, reboots, changes
// its address, and is gone.
func TestChecks(t *testing.T) {
	t.Parallel()
	other := netip.MustParseAddr("198.51.100.9")
	config := natlab.FakeConfig{
		PCP:  goodPCP(),
		PMP:  natlab.FakePMP{Serve: true, External: publicIP},
		UPnP: natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1", External: publicIP.String()}}},
	}
	for _, via := range []string{"pcp", "nat-pmp", "upnp"} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, config)
			f.SetEpoch(time.Hour)
			a := newAny(candidate{mapper: testPCP(f), blind: true}, candidate{mapper: testPMP(f)}, candidate{mapper: testUPnP(f)})
			m := a.candidates[a.index(via)].mapper
			l, err := m.Map(t.Context(), request(9000))
			if err != nil || l.recheck != time.Minute {
				t.Fatalf("%+v, %v", l, err)
			}
			ok, err := a.check(t.Context(), l)
			if err != nil || ok.External != l.External || ok.Obtained != l.Obtained || ok.token != l.token {
				t.Errorf("%+v, %v", ok, err)
			}
			maps := 1
			if via != "upnp" { // the check is a renewal
				maps = 2
			}
			if f.Count("pcp map")+f.Count("pmp map")+f.Count("soap AddPortMapping") != maps || f.Mappings() != 1 {
				t.Error("a check changed something")
			}
			f.SetExternal(other)
			ok, err = a.check(t.Context(), ok)
			if want := netip.AddrPortFrom(other, 9000); err != nil || ok.External != want {
				t.Errorf("%+v, %v", ok, err)
			}
			f.Reboot(t)
			if via == "upnp" {
				// Another port, as after a restart: not there any more.
				if _, err = a.check(t.Context(), ok); kindOf(err) != NoGateway {
					t.Errorf("rebooted: %v", err)
				}
				r := request(9000)
				r.Previous = &ok
				if ok, err = m.Map(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				f.SetMapping(9000, natlab.FakeMapping{Client: "127.9.9.9", Port: 9000})
			}
			if _, err = a.check(t.Context(), ok); !errors.Is(err, errStateLost) {
				t.Errorf("lost: %v", err)
			}
			f.Stop()
			_, err = a.check(t.Context(), ok)
			if k := kindOf(err); errors.Is(err, errStateLost) || k != Unsupported && k != NoGateway && k != Timeout {
				t.Errorf("gone: %v", err)
			}
		})
	}
	// The line is down: the mapping stays, its address is none, and then again one.
	var down atomic.Bool
	f := natlab.StartFake(t, natlab.FakeConfig{
		PMP: natlab.FakePMP{Serve: true, External: publicIP, Edit: func(b []byte) []byte {
			if down.Load() {
				b[3], b = 3, b[:8]
			}
			return b
		}},
		PCP: natlab.FakePCP{Serve: true, External: publicIP, Code: func(opcode byte) byte {
			if down.Load() {
				return 7 * opcode
			}
			return 0
		}},
	})
	for _, m := range []interface {
		Mapper
		checker
	}{testPMP(f), testPCP(f)} {
		held, err := m.Map(t.Context(), request(9000))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []bool{true, false} {
			down.Store(x)
			held, err = m.check(t.Context(), held)
			if err != nil || held.External.Port() != 9000 || held.External.Addr().IsValid() == x {
				t.Errorf("%s, line down %v: %+v, %v", m.Name(), x, held, err)
			}
		}
		if err := m.Unmap(t.Context(), held); err != nil {
			t.Error(err)
		}
	}

	l, err := newAny().check(t.Context(), Lease{Via: "user's"})
	if err != nil || l.Via != "user's" {
		t.Errorf("%+v, %v", l, err)
	}
	_, err = newUPnP(loopbackHost(), searcher{}).check(t.Context(), Lease{Via: "upnp"})
	wantKind(t, err, Unsupported, 0)
}

// The whole of it: a fake gateway with three protocols reboots, and the
// manager, told so, has the mapping back.
func TestManagerAtRebootedGateway(t *testing.T) {
	t.Parallel()
	config := natlab.FakeConfig{PCP: goodPCP()}
	f := natlab.StartFake(t, config)
	f.SetEpoch(time.Hour)
	heard := make(chan func(), 1)
	mapped := make(chan Status, 10)
	m := newManager(ManagerConfig{Mapper: testPCP(f), Internal: netip.AddrPortFrom(anyIP, 9000), OnChange: func(s Status) { mapped <- s }},
		func(ctx context.Context, _ string, _ link, f func()) error {
			heard <- f
			<-ctx.Done()
			return nil
		}, time.Now)
	defer m.Close()
	<-mapped
	announce := <-heard
	f.Reboot(t)
	announce()
	start := time.Now()
	for f.Mappings() == 0 {
		if time.Since(start) > minCheckGap+announceWait+time.Second {
			t.Fatal("not mapped again")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(mapped) != 0 {
		t.Errorf("a user was told: %+v", <-mapped)
	}
}

func TestAnnouncesEpoch(t *testing.T) {
	for s, want := range map[string]bool{
		"02 80 00 00 00000000 00000000 000000000000000000000000": true,
		"00 80 0000 00000001 cb007107":                           true,
		"02 80 00 02 00000000 00000000 000000000000000000000000": false,
		"02 00 0000 00000000 00000000000000000000ffffc0a80105":   false,
		goldenMapAnswer:      false,
		"00 80 0001":         false,
		"00 00":              false,
		"4e4f54494659202a20": false,
		"":                   false,
	} {
		if got := announcesEpoch(unhex(t, s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
}

// Which of a device's notices are news.
func TestNotices(t *testing.T) {
	alive := func(boot, location string) string {
		return "NOTIFY * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nNTS:ssdp:alive\r\nLOCATION: " + location + "\r\nBOOTID.UPNP.ORG: " + boot + "\r\n\r\n"
	}
	bye := "NOTIFY * HTTP/1.1\r\nnts: ssdp:byebye\r\n\r\n"
	const place, other = "http://192.168.1.1:5000/d.xml", "http://192.168.1.1:5001/d.xml"
	s := new(notices)
	for i, c := range []struct {
		in   string
		news bool
	}{
		{alive("1", place), true}, // the first
		{alive("1", place), false},
		{alive("2", place), true}, // booted
		{alive("2", place), false},
		{alive("2", other), true}, // moved
		{bye, false},
		{alive("2", other), true}, // back
		{alive("2", other), false},
		{bye, false},
		{bye, false},
		{alive("3", place), true},
		{"M-SEARCH * HTTP/1.1\r\nNTS: ssdp:alive\r\n\r\n", false},
		{"NOTIFY * HTTP/1.1\r\n\r\n", false},
		{"", false},
		{"\x02\x80\x00\x00", false},
	} {
		if got := s.announces([]byte(c.in)); got != c.news {
			t.Errorf("%d %q: %v", i, c.in, got)
		}
	}
}

// Only the gateway is listened to, and the end is prompt.
func TestHear(t *testing.T) {
	t.Parallel()
	listen := func() (*net.UDPConn, *net.UDPAddr) {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c, c.LocalAddr().(*net.UDPAddr)
	}
	said := []byte("news")
	for _, c := range []struct {
		gateway netip.Addr
		want    bool
	}{{localIP, true}, {netip.MustParseAddr("127.0.0.9"), false}} {
		conn, addr := listen()
		ctx, cancel := context.WithCancel(t.Context())
		heard, judged, done := make(chan bool, 10), make(chan bool, 10), make(chan error, 1)
		go func() {
			done <- hear(ctx, conn, c.gateway, func(b []byte) bool { judged <- true; return string(b) == "news" }, func() { heard <- true })
		}()
		from, _ := listen()
		for _, b := range [][]byte{[]byte("noise"), said} {
			if _, err := from.WriteToUDP(b, addr); err != nil {
				t.Fatal(err)
			}
		}
		if c.want {
			<-heard
		} else {
			time.Sleep(50 * time.Millisecond)
		}
		from.Close()
		cancel()
		if err := <-done; err != nil || !c.want && len(judged) != 0 || len(heard) != 0 {
			t.Errorf("gateway %v: %v, %d judged, %d heard", c.gateway, err, len(judged), len(heard))
		}
	}
	if err := listenAnnounced(t.Context(), "static", link{}, nil); err != nil {
		t.Error(err)
	}
}
