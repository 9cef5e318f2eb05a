package nat

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// testPCP is a PCP mapper that knows only the fake and has less patience.
func testPCP(f *natlab.Fake) *pcp {
	p := newPCP(loopbackHost(f.Addr))
	ms := time.Millisecond
	p.probe, p.call = []time.Duration{400 * ms, 400 * ms}, []time.Duration{400 * ms, 400 * ms}
	return p
}

func goodPCP() natlab.FakePCP { return natlab.FakePCP{Serve: true, External: publicIP} }

func TestPCP(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP()})
	p := testPCP(f)
	l, err := p.Map(t.Context(), request(9000))
	if err != nil {
		t.Fatal(err)
	}
	nonce := l.token
	want := Lease{
		Internal: netip.AddrPortFrom(localIP, 9000), External: netip.AddrPortFrom(publicIP, 9000),
		Lifetime: 2 * time.Hour, Via: "pcp", Gateway: f.Addr, Obtained: l.Obtained, recheck: heartbeat, epoch: l.epoch, token: nonce,
	}
	if l != want || l.Obtained.IsZero() {
		t.Errorf("got %+v, want %+v", l, want)
	}
	if m, ok := f.Mapping(9000); !ok || m.Port != 9000 || m.Lease != 7200 || m.Nonce == [12]byte{} {
		t.Errorf("the gateway has %+v", m)
	}

	// A renewal asks the same gateway with the same nonce, without a search,
	// and so does a new mapping of the port whose lease was given up.
	r := request(9000)
	r.Previous, r.Lifetime = &l, 90*time.Second+time.Millisecond
	if l, err = p.Map(t.Context(), r); err != nil || l.Lifetime != 90*time.Second || l.token != nonce {
		t.Errorf("renewed: %+v, %v", l, err)
	}
	if l, err = p.Map(t.Context(), request(9000)); err != nil || l.token != nonce {
		t.Errorf("again: %+v, %v", l, err)
	}
	if f.Count("pcp announce") != 1 || f.Count("pcp map") != 3 || f.Mappings() != 1 {
		t.Errorf("%d announces, %d maps, %d mappings", f.Count("pcp announce"), f.Count("pcp map"), f.Mappings())
	}

	if err := p.Unmap(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if f.Mappings() != 0 || f.Count("pcp delete") != 1 {
		t.Errorf("%d mappings after Unmap, %d deletes", f.Mappings(), f.Count("pcp delete"))
	}
	if err := p.Unmap(t.Context(), l); err != nil {
		t.Errorf("a second Unmap: %v", err)
	}
	if l, err = p.Map(t.Context(), request(9000)); err != nil || l.token == nonce {
		t.Errorf("the next mapping has the nonce of the last: %+v, %v", l, err)
	}
}

// A renewal suggests the port and the address there are, and keeps the
// internal port what it was.
func TestPCPRenewalSuggests(t *testing.T) {
	t.Parallel()
	var suggested atomic.Value
	c := goodPCP()
	c.Code = func(opcode byte) byte { return 0 }
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: c})
	f.SetMapping(9000, natlab.FakeMapping{Client: "127.9.9.9", Port: 80})
	p := testPCP(f)
	l, err := p.Map(t.Context(), request(9000))
	if err != nil || l.External.Port() != 9001 || l.Internal.Port() != 9000 {
		t.Fatalf("got %+v, %v", l, err)
	}
	f.Reboot(t)
	r := request(9000)
	r.Previous = &l
	if l, err = p.Map(t.Context(), r); err != nil || l.External.Port() != 9001 || l.Internal.Port() != 9000 {
		t.Errorf("renewed: %+v, %v", l, err)
	}

	// The fake copies a failed request back, suggestion included.
	c = goodPCP()
	c.Code = func(opcode byte) byte { return opcode * 7 }
	c.Edit = func(b []byte) []byte {
		if b[1] == 0x81 {
			suggested.Store(netip.AddrFrom16([16]byte(b[44:60])).Unmap())
		}
		return b
	}
	g := natlab.StartFake(t, natlab.FakeConfig{PCP: c})
	l.Gateway = g.Addr
	_, err = testPCP(g).Map(t.Context(), r)
	wantKind(t, err, WANDown, 7)
	if suggested.Load() != publicIP {
		t.Errorf("suggested %v", suggested.Load())
	}
}

// Every result code of RFC 6887 §7.4, what it means, and for how long.
func TestPCPCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		code  byte
		life  uint32
		kind  Kind
		retry time.Duration
		diag  string
	}{
		{1, 0, Unsupported, time.Minute, "no-gateway"},
		{2, 0, Refused, time.Minute, "refused"},
		{2, 1800, Refused, 30 * time.Minute, "refused"},
		{2, 1 << 31, Refused, 30 * time.Minute, "refused"},
		{3, 0, Unsupported, time.Minute, "no-gateway"},
		{4, 0, Unsupported, time.Minute, "no-gateway"},
		{5, 0, Unsupported, time.Minute, "no-gateway"},
		{6, 0, Unsupported, time.Minute, "no-gateway"},
		{7, 0, WANDown, 30 * time.Second, "wan-down"},
		{7, 300, WANDown, 5 * time.Minute, "wan-down"},
		{8, 0, NoResources, 30 * time.Second, "conflict"},
		{8, 10, NoResources, 10 * time.Second, "conflict"},
		{9, 0, Unsupported, time.Minute, "no-gateway"},
		{10, 0, NoResources, 30 * time.Second, "conflict"},
		{11, 0, Conflict, 30 * time.Second, "conflict"},
		{12, 0, AddressMismatch, time.Minute, "double-nat"},
		{13, 0, NoResources, time.Minute, "conflict"},
		{200, 0, Refused, time.Minute, "refused"},
	} {
		s := goodPCP()
		s.ErrorLife = c.life
		s.Code = func(opcode byte) byte { return c.code * opcode } // of MAP only
		f := natlab.StartFake(t, natlab.FakeConfig{PCP: s})
		p := testPCP(f)
		_, err := p.Map(t.Context(), request(9000))
		wantKind(t, err, c.kind, int(c.code))
		e, _ := errors.AsType[*Error](err)
		if e.Mapper != "pcp" || e.Op != "map" || e.Gateway != f.Addr {
			t.Errorf("unlabelled: %+v", e)
		}
		if c.code != 1 && e.RetryAfter != c.retry {
			t.Errorf("code %d, lifetime %d: again after %v, want %v", c.code, c.life, e.RetryAfter, c.retry)
		}
		if d := diagnose(err); string(d.Code) != c.diag {
			t.Errorf("code %d: %+v", c.code, d)
		}
	}
}

// While an error stands, the gateway is not asked the same again; other ports
// are not concerned.
func TestPCPErrorStands(t *testing.T) {
	t.Parallel()
	var maps atomic.Int32
	s := goodPCP()
	s.ErrorLife = 60
	s.Code = func(opcode byte) byte {
		if opcode == 1 && maps.Add(1) == 1 {
			return 2
		}
		return 0
	}
	p := testPCP(natlab.StartFake(t, natlab.FakeConfig{PCP: s}))
	for range 3 {
		_, err := p.Map(t.Context(), request(9000))
		wantKind(t, err, Refused, 2)
		if e, _ := errors.AsType[*Error](err); e.RetryAfter > time.Minute || e.RetryAfter < 50*time.Second {
			t.Errorf("again after %v", e.RetryAfter)
		}
	}
	if n := maps.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if l, err := p.Map(t.Context(), request(9001)); err != nil {
		t.Errorf("another port: %+v, %v", l, err)
	}
	p.mu.Lock()
	for k, x := range p.stand {
		x.until = time.Now()
		p.stand[k] = x
	}
	p.mu.Unlock()
	if _, err := p.Map(t.Context(), request(9000)); err != nil || len(p.stand) != 0 {
		t.Errorf("afterwards: %v, %d errors stand", err, len(p.stand))
	}
}

// That the line is down stands for seconds only: the gateway announces when it
// is back.
func TestPCPLineBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPCP(loopbackHost())
		for _, c := range []struct {
			kind Kind
			want time.Duration
		}{{WANDown, 5 * time.Second}, {NoResources, 30 * time.Second}} {
			key := pcpKey{port: uint16(c.kind)}
			p.noteRefusal(key, &Error{Kind: c.kind, RetryAfter: 30 * time.Second})
			time.Sleep(c.want - 1)
			if p.refusedBefore(key) == nil {
				t.Errorf("%v does not stand", c.kind)
			}
			time.Sleep(time.Nanosecond)
			if err := p.refusedBefore(key); err != nil {
				t.Errorf("%v still stands", err)
			}
		}
	})
}

// A gateway behind another NAT says so in its own way.
func TestPCPBehind(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]string{"100.64.0.1": "cgnat", "192.168.3.4": "double-nat", "203.0.113.7": "conflict", "0.0.0.0": "conflict"} {
		addr := netip.MustParseAddr(a).As16()
		s := goodPCP()
		s.Code = func(opcode byte) byte { return 8 * opcode }
		s.Edit = func(b []byte) []byte {
			if b[1] == 0x81 {
				copy(b[44:], addr[:])
			}
			return b
		}
		_, err := testPCP(natlab.StartFake(t, natlab.FakeConfig{PCP: s})).Map(t.Context(), request(9000))
		if d := diagnose(err); string(d.Code) != want {
			t.Errorf("%s: %+v of %v", a, d, err)
		}
	}
}

// Which version a gateway speaks, RFC 6887 §9.
func TestPCPVersions(t *testing.T) {
	t.Parallel()
	pmp := natlab.FakePMP{Serve: true, External: publicIP}
	pcp1 := goodPCP() // a server of a draft of PCP
	pcp1.Edit = func(b []byte) []byte { b[0], b[3] = 1, 1; return b }
	mute := natlab.FakePCP{Serve: true, Edit: func([]byte) []byte { return nil }}
	for _, c := range []struct {
		name   string
		config natlab.FakeConfig
		kind   Kind
		code   int
		via    string // through Any
	}{
		{"NAT-PMP only", natlab.FakeConfig{PMP: pmp}, Unsupported, 1, "nat-pmp"},
		{"NAT-PMP, deaf to version 2", natlab.FakeConfig{PMP: pmp, PCP: mute}, Timeout, 0, "nat-pmp"},
		{"version 1", natlab.FakeConfig{PMP: pmp, PCP: pcp1}, Unsupported, 1, "nat-pmp"},
		{"PCP only", natlab.FakeConfig{PCP: goodPCP()}, 0, 0, "pcp"},
		{"both", natlab.FakeConfig{PMP: pmp, PCP: goodPCP()}, 0, 0, "pcp"},
		{"neither", natlab.FakeConfig{}, Unsupported, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, c.config)
			p := testPCP(f)
			start := time.Now()
			l, err := p.Map(t.Context(), request(9000))
			if c.kind != 0 {
				wantKind(t, err, c.kind, c.code)
				if c.kind == Unsupported && time.Since(start) > 400*time.Millisecond {
					t.Errorf("known only after %v", time.Since(start))
				}
			} else if err != nil || l.Via != "pcp" {
				t.Fatalf("%+v, %v", l, err)
			} else if err := p.Unmap(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			a := newAny(candidate{mapper: testPCP(f), blind: true}, candidate{mapper: testPMP(f), wait: 50 * time.Millisecond})
			l, err = a.Map(t.Context(), request(9000))
			if l.Via != c.via || (err == nil) != (c.via != "") {
				t.Errorf("through Any: %+v, %v", l, err)
			}
		})
	}
}

// What is no answer to our question changes nothing, and the answer behind it
// is still heard.
func TestPCPIgnores(t *testing.T) {
	t.Parallel()
	other := netip.MustParseAddr("198.51.100.66").As16()
	evil := func(b []byte) []byte { copy(b[len(b)-16:], other[:]); return b }
	for name, before := range map[string]func([]byte) []byte{
		"wrong nonce":         func(b []byte) []byte { b[24]++; return evil(b) },
		"wrong opcode":        func(b []byte) []byte { b[1] = 0x82; return evil(b) },
		"no R bit":            func(b []byte) []byte { b[1] &^= 0x80; return evil(b) },
		"wrong protocol":      func(b []byte) []byte { b[36] = 17; return evil(b) },
		"wrong internal port": func(b []byte) []byte { b[41]++; return evil(b) },
		"cut short":           func(b []byte) []byte { return evil(b)[:56] },
		"too long":            func(b []byte) []byte { return append(evil(b), make([]byte, 1100)...) },
		"odd length":          func(b []byte) []byte { return append(evil(b), 0) },
		"garbage":             func(b []byte) []byte { return []byte("HTTP/1.1 200 OK\r\n\r\n") },
		"empty":               func(b []byte) []byte { return nil },
		"error, wrong nonce":  func(b []byte) []byte { b[3], b[24] = 2, b[24]+1; return b },
		"strange":             evil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := goodPCP()
			s.Strange = name == "strange"
			s.Before = func(b []byte) []byte {
				if len(b) < 60 {
					return nil
				}
				return before(b)
			}
			l, err := testPCP(natlab.StartFake(t, natlab.FakeConfig{PCP: s})).Map(t.Context(), request(9000))
			if err != nil || l.External != netip.AddrPortFrom(publicIP, 9000) {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
}

// Wrong answers that are answers.
func TestPCPMalformed(t *testing.T) {
	t.Parallel()
	onMap := func(f func(b []byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			if b[1] == 0x81 {
				f(b)
			}
			return b
		}
	}
	for name, edit := range map[string]func([]byte) []byte{
		"port 0":     onMap(func(b []byte) { clear(b[42:44]) }),
		"lifetime 0": onMap(func(b []byte) { clear(b[4:8]) }),
	} {
		s := goodPCP()
		s.Edit = edit
		_, err := testPCP(natlab.StartFake(t, natlab.FakeConfig{PCP: s})).Map(t.Context(), request(9000))
		if kindOf(err) != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Lost datagrams are sent again, with the same nonce; silence has an end.
func TestPCPSchedule(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	s := goodPCP()
	s.Edit = func(b []byte) []byte {
		if n.Add(1)%3 != 0 {
			return nil
		}
		return b
	}
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: s})
	p := testPCP(f)
	p.probe = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 2 * time.Second}
	p.call = p.probe
	l, err := p.Map(t.Context(), request(9000))
	if err != nil || f.Count("pcp announce") != 3 || f.Count("pcp map") != 3 || f.Mappings() != 1 {
		t.Errorf("%+v, %v, %d announces, %d maps", l, err, f.Count("pcp announce"), f.Count("pcp map"))
	}
	s.Edit = func([]byte) []byte { return nil }
	f = natlab.StartFake(t, natlab.FakeConfig{PCP: s})
	p = testPCP(f)
	p.probe = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond}
	start := time.Now()
	_, err = p.Map(t.Context(), request(9000))
	wantKind(t, err, Timeout, 0)
	if took := time.Since(start); took < 300*time.Millisecond || took > 2*time.Second {
		t.Errorf("gave up after %v", took)
	}
	// The constants of the real one: to a known gateway 3.75 s.
	if p = newPCP(loopbackHost()); p.call[0] != 250*time.Millisecond || p.call[3] != 2*time.Second || len(p.call) != 4 {
		t.Errorf("%v", p.call)
	}
}

// A gateway whose ANNOUNCE is not implemented speaks PCP all the same, and a
// limit on the lifetime is kept to.
func TestPCPModest(t *testing.T) {
	t.Parallel()
	s := goodPCP()
	s.MaxLife = 600
	s.Code = func(opcode byte) byte { return 4 * (1 - opcode) }
	l, err := testPCP(natlab.StartFake(t, natlab.FakeConfig{PCP: s})).Map(t.Context(), request(9000))
	if err != nil || l.Lifetime != 10*time.Minute {
		t.Errorf("%+v, %v", l, err)
	}
}

// Broken off in the middle of a mapping, which is then given back; one that
// is being renewed stays.
func TestPCPCancel(t *testing.T) {
	t.Parallel()
	var mute atomic.Bool
	mapped := make(chan struct{}, 10)
	s := goodPCP()
	s.Edit = func(b []byte) []byte {
		if b[1] == 0x81 && mute.CompareAndSwap(true, false) {
			mapped <- struct{}{}
			return nil
		}
		return b
	}
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: s})
	p := testPCP(f)
	p.call = []time.Duration{10 * time.Second}
	broken := func(r Request) {
		mute.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-mapped
			cancel()
		}()
		start := time.Now()
		_, err := p.Map(ctx, r)
		if kindOf(err) != Canceled || !errors.Is(err, context.Canceled) || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	}
	broken(request(9000))
	if f.Mappings() != 0 || f.Count("pcp delete") == 0 {
		t.Errorf("%d mappings, %d deletes", f.Mappings(), f.Count("pcp delete"))
	}
	l, err := p.Map(t.Context(), request(9000))
	if err != nil {
		t.Fatal(err)
	}
	r := request(9000)
	r.Previous = &l
	broken(r)
	if f.Mappings() != 1 {
		t.Error("a held mapping was given back")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	_, err = p.Map(ctx, request(9001))
	wantKind(t, err, Timeout, 0)
}

func TestPCPUnmap(t *testing.T) {
	t.Parallel()
	p := newPCP(loopbackHost())
	for _, l := range []Lease{{Via: "nat-pmp", Internal: netip.AddrPortFrom(localIP, 1)}, {Via: "pcp", token: testNonce}, {Via: "pcp", Internal: netip.AddrPortFrom(localIP, 1)}} {
		wantKind(t, p.Unmap(t.Context(), l), Unsupported, 0)
	}
	// Somebody else's nonce is refused; "no resources" is miniupnpd's word
	// for what it does not have.
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP()})
	p = testPCP(f)
	l, err := p.Map(t.Context(), request(9000))
	if err != nil {
		t.Fatal(err)
	}
	l.token = testNonce
	wantKind(t, p.Unmap(t.Context(), l), Refused, 2)
	s := goodPCP()
	s.Code = func(opcode byte) byte { return 8 * opcode }
	l.Gateway = natlab.StartFake(t, natlab.FakeConfig{PCP: s}).Addr
	if err := p.Unmap(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// Of two gateways the one that answers is used, and when it goes away, the other.
func TestPCPTwoGateways(t *testing.T) {
	t.Parallel()
	deaf := natlab.StartFake(t, natlab.FakeConfig{})
	a := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP()})
	b := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP()})
	p := testPCP(a)
	p.host = loopbackHost(deaf.Addr, a.Addr, b.Addr)
	l, err := p.Map(t.Context(), request(9000))
	if err != nil || l.Gateway != a.Addr {
		t.Fatalf("got %+v, %v", l, err)
	}
	a.Stop()
	r := request(9000)
	r.Previous = &l
	old := l.token
	if l, err = p.Map(t.Context(), r); err != nil || l.Gateway != b.Addr || l.token == old {
		t.Errorf("after the first went: %+v, %v", l, err)
	}
}

// What is remembered has a limit, and the newest is never forgotten.
func TestPCPRemembersSome(t *testing.T) {
	p := newPCP(loopbackHost())
	for port := range uint16(1000) {
		key := pcpKey{port: port}
		n := p.nonce(key, nil)
		p.noteRefusal(key, &Error{RetryAfter: time.Hour})
		if p.nonce(key, nil) != n || p.refusedBefore(key) == nil {
			t.Fatalf("forgot port %d", port)
		}
	}
	if len(p.held) != pcpRemembered || len(p.stand) != pcpRemembered {
		t.Errorf("remembers %d mappings and %d errors", len(p.held), len(p.stand))
	}
}

// A mapping whose answer gets lost, or makes no sense, is not left behind.
func TestPCPNothingStaysOpen(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(a []byte) []byte{
		"lost":        func([]byte) []byte { return nil },
		"cut off":     func(a []byte) []byte { return a[:24] },
		"port 0":      func(a []byte) []byte { a[42], a[43] = 0, 0; return a },
		"no lifetime": func(a []byte) []byte { clear(a[4:8]); return a },
		"port halved": func(a []byte) []byte { a[40] = 0; return a },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := goodPCP()
			c.Edit = func(a []byte) []byte {
				if len(a) == 60 {
					return edit(a)
				}
				return a
			}
			f := natlab.StartFake(t, natlab.FakeConfig{PCP: c})
			_, err := testPCP(f).Map(t.Context(), request(9000))
			if err == nil || f.Mappings() != 0 {
				t.Errorf("%v; %d mappings left", err, f.Mappings())
			}
		})
	}
}

// An IPv4 mapping has an IPv4 address outside, or none that is known.
func TestPCPOutsideOfTheWrongFamily(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		outside []byte
		want    netip.Addr
	}{
		{[]byte{10: 0xFF, 11: 0xFF, 12: 203, 0, 113, 7}, publicIP},
		{[]byte{203, 0, 113, 7, 15: 0}, publicIP}, // four bytes, where sixteen should be
		{[]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}, netip.Addr{}},
		{make([]byte, 16), netip.Addr{}},
		{[]byte{10: 0xFF, 11: 0xFF, 15: 0}, netip.Addr{}},
	} {
		p := goodPCP()
		p.Edit = func(a []byte) []byte {
			if len(a) == 60 {
				copy(a[44:], c.outside)
			}
			return a
		}
		f := natlab.StartFake(t, natlab.FakeConfig{PCP: p})
		m := testPCP(f)
		l, err := m.Map(t.Context(), request(9000))
		if err != nil || l.External.Addr() != c.want || l.External.Port() != 9000 {
			t.Errorf("% x: %v, %v", c.outside, l.External, err)
		}
		if l, err = m.check(t.Context(), l); err != nil || l.External.Addr() != c.want {
			t.Errorf("% x, looked at again: %v, %v", c.outside, l.External, err)
		}
	}
}
