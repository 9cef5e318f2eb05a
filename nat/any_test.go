package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// A scripted is a candidate whose answers, and the time it takes for them,
// are written down.
type scripted struct {
	name  string
	delay time.Duration // before the answer to a probe
	addr  netip.Addr    // outside address
	probe error         // the answer to a probe
	fail  error         // the answer to a map
	blind bool          // a probe does not tell addr

	mu      sync.Mutex
	probes  int
	maps    []Request
	unmaps  int
	forgets int
	held    int // mappings made and not given back
}

func (s *scripted) Name() string { return s.name }

func (s *scripted) Map(ctx context.Context, r Request) (Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maps = append(s.maps, r)
	if s.fail != nil {
		return Lease{}, s.fail
	}
	if r.Previous == nil {
		s.held++
	}
	return Lease{Internal: r.Internal, External: netip.AddrPortFrom(s.addr, r.external()), Lifetime: time.Hour, Via: s.name, Obtained: time.Now()}, nil
}

func (s *scripted) Unmap(context.Context, Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unmaps++
	s.held--
	return nil
}

func (s *scripted) probeExternal(ctx context.Context, r Request) (netip.Addr, error) {
	s.mu.Lock()
	s.probes++
	s.mu.Unlock()
	select {
	case <-time.After(s.delay):
		if s.blind {
			return netip.Addr{}, s.probe
		}
		return s.addr, s.probe
	case <-ctx.Done():
		return netip.Addr{}, &Error{Mapper: s.name, Op: "probe", Kind: Canceled, Err: ctx.Err()}
	}
}

func (s *scripted) forget() { s.forgets++ }

func scriptedError(name string, k Kind) error { return &Error{Mapper: name, Op: "map", Kind: k} }

// Who wins, and when.
func TestAnyRace(t *testing.T) {
	private := netip.MustParseAddr("192.168.0.5")
	ms := time.Millisecond
	for _, c := range []struct {
		name     string
		pcp      *scripted // nil is none
		pmp, igd *scripted
		via      string // "" is failure
		at       time.Duration
		kind     Kind
	}{
		{name: "NAT-PMP answers", pmp: &scripted{delay: 5 * ms, addr: publicIP}, igd: &scripted{delay: ms, addr: publicIP}, via: "nat-pmp", at: 5 * ms},
		{name: "NAT-PMP is refused at once", pmp: &scripted{delay: ms, probe: scriptedError("nat-pmp", Unsupported)}, igd: &scripted{delay: 50 * ms, addr: publicIP}, via: "upnp", at: 50 * ms},
		{name: "NAT-PMP is silent for long", pmp: &scripted{delay: 2000 * ms, probe: scriptedError("nat-pmp", Timeout)}, igd: &scripted{delay: 50 * ms, addr: publicIP}, via: "upnp", at: 1000 * ms},
		{name: "NAT-PMP is slow", pmp: &scripted{delay: 800 * ms, addr: publicIP}, igd: &scripted{delay: 50 * ms, addr: publicIP}, via: "nat-pmp", at: 800 * ms},
		{name: "UPnP is slower than the patience", pmp: &scripted{delay: 1500 * ms, addr: publicIP}, igd: &scripted{delay: 1200 * ms, addr: publicIP}, via: "upnp", at: 1200 * ms},
		{name: "NAT-PMP refuses to map", pmp: &scripted{delay: ms, addr: publicIP, fail: scriptedError("nat-pmp", Refused)}, igd: &scripted{delay: 50 * ms, addr: publicIP}, via: "upnp", at: 50 * ms},
		{name: "both refuse", pmp: &scripted{delay: ms, addr: publicIP, fail: scriptedError("nat-pmp", Refused)}, igd: &scripted{delay: 50 * ms, fail: scriptedError("upnp", NoResources)}, at: 50 * ms, kind: Refused},
		{name: "nobody", pmp: &scripted{delay: 1000 * ms, probe: scriptedError("nat-pmp", Timeout)}, igd: &scripted{delay: 3000 * ms, probe: scriptedError("upnp", NoGateway)}, at: 3000 * ms, kind: Timeout},
		{name: "no network", pmp: &scripted{probe: scriptedError("nat-pmp", NoNetwork)}, igd: &scripted{probe: scriptedError("upnp", NoNetwork)}, kind: NoNetwork},
		{name: "private address, the other's is public", pmp: &scripted{delay: ms, addr: private}, igd: &scripted{delay: 50 * ms, addr: publicIP}, via: "upnp", at: 50 * ms},
		{name: "private address, the other's too", pmp: &scripted{delay: ms, addr: private}, igd: &scripted{delay: 50 * ms, addr: private}, via: "nat-pmp", at: 50 * ms},
		{name: "private address, the other is silent", pmp: &scripted{delay: ms, addr: private}, igd: &scripted{delay: 3000 * ms, probe: scriptedError("upnp", NoGateway)}, via: "nat-pmp", at: 3000 * ms},
		{name: "no address at all", pmp: &scripted{delay: ms}, igd: &scripted{delay: 50 * ms}, via: "nat-pmp", at: 50 * ms},
		{name: "a preferred one gets its 250 ms", pcp: &scripted{delay: 200 * ms, addr: publicIP}, pmp: &scripted{delay: ms, addr: publicIP}, igd: &scripted{delay: ms}, via: "pcp", at: 200 * ms},
		{name: "and no more", pcp: &scripted{delay: 400 * ms, addr: publicIP}, pmp: &scripted{delay: ms, addr: publicIP}, igd: &scripted{delay: ms}, via: "nat-pmp", at: 250 * ms},
		{name: "a blind one is taken at once", pcp: &scripted{delay: 2 * ms, addr: publicIP, blind: true}, pmp: &scripted{delay: ms, addr: publicIP}, igd: &scripted{delay: ms, addr: publicIP}, via: "pcp", at: 2 * ms},
		{name: "a blind one turns out private, another is public", pcp: &scripted{delay: 2 * ms, addr: private, blind: true}, pmp: &scripted{delay: 40 * ms, addr: private}, igd: &scripted{delay: 50 * ms, addr: publicIP}, via: "upnp", at: 50 * ms},
		{name: "a blind one turns out private, so are all", pcp: &scripted{delay: 2 * ms, addr: private, blind: true}, pmp: &scripted{delay: 40 * ms, addr: private}, igd: &scripted{delay: 50 * ms, addr: private}, via: "pcp", at: 50 * ms},
		{name: "a blind one turns out private, nobody else is there", pcp: &scripted{delay: 2 * ms, addr: private, blind: true}, pmp: &scripted{delay: 40 * ms, probe: scriptedError("nat-pmp", Timeout)}, igd: &scripted{delay: 50 * ms, probe: scriptedError("upnp", NoGateway)}, via: "pcp", at: 50 * ms},
		{name: "a blind one refuses", pcp: &scripted{delay: 2 * ms, blind: true, fail: scriptedError("pcp", Refused)}, pmp: &scripted{delay: 40 * ms, addr: publicIP}, igd: &scripted{delay: 50 * ms}, via: "nat-pmp", at: 40 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.pmp.name, c.igd.name = "nat-pmp", "upnp"
				candidates := []candidate{{mapper: c.pmp, wait: 250 * ms}, {mapper: c.igd, wait: time.Second}}
				if c.pcp != nil {
					c.pcp.name = "pcp"
					candidates = append([]candidate{{mapper: c.pcp, blind: c.pcp.blind}}, candidates...)
				}
				a := newAny(candidates...)
				start := time.Now()
				l, err := a.Map(t.Context(), request(9000))
				if got := time.Since(start); l.Via != c.via || got != c.at || kindOf(err) != c.kind {
					t.Errorf("via %q after %v, %v; want %q after %v, kind %v", l.Via, got, err, c.via, c.at, c.kind)
				}
				held := c.pmp.held + c.igd.held
				if c.pcp != nil {
					held += c.pcp.held
				}
				if held > 1 || err == nil && held != 1 {
					t.Errorf("%d mappings are held", held)
				}
				if err != nil && a.Name() != "any" {
					t.Error(a.Name())
				}
			})
		})
	}
}

// Renewals go to the protocol that made the lease; its silence leads to a new
// race with the same port, its refusal to giving the mapping back before
// another protocol gets it.
func TestAnyRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pmp := &scripted{name: "nat-pmp", addr: publicIP, probe: scriptedError("nat-pmp", Timeout), delay: time.Second}
		igd := &scripted{name: "upnp", addr: publicIP}
		a := newAny(candidate{mapper: pmp, wait: 250 * time.Millisecond}, candidate{mapper: igd, wait: time.Second})
		l, err := a.Map(t.Context(), request(9000))
		if err != nil || l.Via != "upnp" {
			t.Fatalf("%+v, %v", l, err)
		}

		// NAT-PMP would be preferred now, but the lease is UPnP's.
		pmp.probe, pmp.delay = nil, 0
		r := request(9000)
		r.External = 9555
		l.External = netip.AddrPortFrom(publicIP, 9444)
		r.Previous = &l
		if l, err = a.Map(t.Context(), r); err != nil || l.Via != "upnp" || len(pmp.maps) != 0 || l.External.Port() != 9444 {
			t.Errorf("renewed: %+v, %v", l, err)
		}

		// Its line is down: the mapping stays, and nobody else is asked.
		igd.fail = scriptedError("upnp", WANDown)
		asked := pmp.probes
		_, err = a.Map(t.Context(), r)
		if wantKind(t, err, WANDown, 0); pmp.probes != asked || len(pmp.maps) != 0 || igd.unmaps != 0 {
			t.Errorf("line down: %d probes, %d maps of the other, %d unmaps", pmp.probes-asked, len(pmp.maps), igd.unmaps)
		}

		// It refuses: given back, then the other with the same port.
		igd.fail = scriptedError("upnp", Refused)
		if l, err = a.Map(t.Context(), r); err != nil || l.Via != "nat-pmp" || igd.held != 0 || pmp.held != 1 || l.External.Port() != 9444 {
			t.Errorf("after a refusal: %+v, %v, UPnP holds %d", l, err, igd.held)
		}
		if pmp.maps[0].Previous != nil {
			t.Error("the other protocol was handed a lease that is not its own")
		}

		// It is silent: forgotten, and raced for again at once.
		forgets, probes := pmp.forgets, igd.probes
		pmp.fail, igd.fail = scriptedError("nat-pmp", Timeout), nil
		r.Previous = &l
		if l, err = a.Map(t.Context(), r); err != nil || l.Via != "upnp" || pmp.forgets == forgets || igd.probes != probes+1 || pmp.unmaps != 0 {
			t.Errorf("after silence: %+v, %v", l, err)
		}
		if err := a.Unmap(t.Context(), l); err != nil || igd.unmaps != 2 {
			t.Errorf("unmap: %v, %d", err, igd.unmaps)
		}
		wantKind(t, a.Unmap(t.Context(), Lease{Via: "pcp"}), Unsupported, 0)
	})
}

// Listeners that share the Mapper share its discovery, also when they start
// at the same time: the gateway is searched for once, found or not.
func TestAnySharesDiscovery(t *testing.T) {
	t.Parallel()
	const listeners = 5
	one := func(t *testing.T, via string, n int) (asked int, took time.Duration) {
		c := natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}}
		switch via {
		case "nat-pmp":
			c = natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP, Delay: 20 * time.Millisecond}}
		case "pcp":
			c = natlab.FakeConfig{PCP: natlab.FakePCP{Serve: true, External: publicIP, Delay: 20 * time.Millisecond}}
		case "":
			c.UPnP.Replies = func(string) []string { return nil }
		}
		f := natlab.StartFake(t, c)
		mapper := Mapper(newAny(candidate{mapper: testPCP(f), blind: true}, candidate{mapper: testPMP(f)}, candidate{mapper: testUPnP(f), wait: time.Second}))
		if via == "upnp" { // alone it shares too
			mapper = testUPnP(f)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				l, err := mapper.Map(t.Context(), request(9000+uint16(i)))
				if l.Via != via || (err == nil) != (via != "") {
					t.Errorf("%+v, %v", l, err)
				}
			})
		}
		wg.Wait()
		if f.Mappings() != n && via != "" {
			t.Errorf("%d mappings", f.Mappings())
		}
		// One that starts later finds what they have found.
		if via != "" {
			searches := func() int { return f.Count("pcp announce") + f.Count("ssdp") }
			before := searches()
			for n := -1; n != before; { // the gateway may still be counting what was sent before the answer came
				n = before
				time.Sleep(20 * time.Millisecond)
				before = searches()
			}
			if l, err := mapper.Map(t.Context(), request(9900)); err != nil || l.Via != via || searches() != before {
				t.Errorf("later: %+v, %v, %d searches more", l, err, searches()-before)
			}
			n++
		}
		switch via {
		case "nat-pmp":
			return f.Count("pmp external") - n, 0 // each mapping asks for the address once more
		case "pcp":
			return f.Count("pcp announce"), 0
		}
		return f.Count("ssdp"), time.Since(start)
	}
	for _, via := range []string{"pcp", "nat-pmp", "upnp", ""} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			alone, limit := one(t, via, 1)
			together, took := one(t, via, listeners)
			if alone == 0 || together > 3*alone { // on a busy machine each question is repeated twice
				t.Errorf("one listener: %d searches; %d: %d", alone, listeners, together)
			}
			if via == "" && took > limit+300*time.Millisecond {
				t.Errorf("one listener knew after %v, %d after %v", limit, listeners, took)
			}
		})
	}
}

func TestAnyCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &scripted{name: "nat-pmp", delay: time.Hour}
		a := newAny(candidate{mapper: slow, wait: 0})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		start := time.Now()
		_, err := a.Map(ctx, request(9000))
		if kindOf(err) != Canceled || !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// All protocols of a fake gateway through the real mappers.
func TestAnyAtGateway(t *testing.T) {
	t.Parallel()
	pmp := natlab.FakePMP{Serve: true, External: publicIP}
	refuse := natlab.FakePMP{Serve: true, External: publicIP, Edit: func(b []byte) []byte {
		if b[1] == 130 {
			binary.BigEndian.PutUint16(b[2:], 2)
		}
		return b
	}}
	down := natlab.FakePMP{Serve: true, Edit: func(b []byte) []byte { binary.BigEndian.PutUint16(b[2:], 3); return b[:12] }}
	igd := natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1", External: publicIP.String()}}}
	behind := natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1"}}, Fault: func(action string, _ map[string]string) int {
		if action == "AddPortMapping" {
			return 501
		}
		return 0
	}}
	outside := natlab.FakePCP{Serve: true, External: publicIP}
	full := outside
	full.Code = func(opcode byte) byte { return opcode * 8 }
	swallows := outside
	swallows.Edit = func(b []byte) []byte {
		if b[1] == 0x81 {
			return nil
		}
		return b
	}
	inside := natlab.FakePCP{Serve: true, External: netip.MustParseAddr("192.168.0.5")}
	for _, c := range []struct {
		name string
		pcp  natlab.FakePCP
		pmp  natlab.FakePMP
		igd  natlab.FakeUPnP
		via  string
		kind Kind
	}{
		{"both", natlab.FakePCP{}, pmp, igd, "nat-pmp", 0},
		{"only NAT-PMP", natlab.FakePCP{}, pmp, natlab.FakeUPnP{}, "nat-pmp", 0},
		{"only UPnP", natlab.FakePCP{}, natlab.FakePMP{}, igd, "upnp", 0},
		{"NAT-PMP refuses", natlab.FakePCP{}, refuse, igd, "upnp", 0},
		{"neither", natlab.FakePCP{}, natlab.FakePMP{}, natlab.FakeUPnP{}, "", Unsupported},
		{"behind another NAT", natlab.FakePCP{}, down, behind, "", AddressMismatch},
		{"all", outside, pmp, igd, "pcp", 0},
		{"PCP is full", full, pmp, igd, "nat-pmp", 0},
		{"PCP swallows mappings", swallows, pmp, igd, "nat-pmp", 0},
		{"PCP's address is private", inside, natlab.FakePMP{}, igd, "upnp", 0},
		{"PCP's address is private, UPnP silent", inside, natlab.FakePMP{}, natlab.FakeUPnP{}, "pcp", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, natlab.FakeConfig{PCP: c.pcp, PMP: c.pmp, UPnP: c.igd})
			a := newAny(candidate{mapper: testPCP(f), blind: true, limit: 500 * time.Millisecond}, candidate{mapper: testPMP(f), wait: 250 * time.Millisecond}, candidate{mapper: testUPnP(f), wait: time.Second})
			l, err := a.Map(t.Context(), request(9000))
			if l.Via != c.via || kindOf(err) != c.kind {
				t.Fatalf("%+v, %v", l, err)
			}
			if err != nil {
				return
			}
			if f.Mappings() != 1 {
				t.Errorf("%d mappings", f.Mappings())
			}
			if err := a.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
				t.Errorf("unmap: %v, %d left", err, f.Mappings())
			}
		})
	}
}
