package nat

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pmp "github.com/jackpal/go-nat-pmp"

	"github.com/peerws/peerws/internal/natlab"
)

func TestNATPMP(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	n := testPMP(f)
	l, err := n.Map(t.Context(), request(9000))
	if err != nil {
		t.Fatal(err)
	}
	want := Lease{
		Internal: netip.AddrPortFrom(localIP, 9000), External: netip.AddrPortFrom(publicIP, 9000),
		Lifetime: 2 * time.Hour, Via: "nat-pmp", Gateway: f.Addr, Obtained: l.Obtained, recheck: heartbeat, epoch: l.epoch,
	}
	if l != want || l.Obtained.IsZero() {
		t.Errorf("got %+v, want %+v", l, want)
	}
	if m, ok := f.Mapping(9000); !ok || m.Port != 9000 || m.Lease != 7200 {
		t.Errorf("the gateway has %+v", m)
	}

	// A renewal asks the same gateway again, without a search.
	asked := f.Count("pmp external")
	r := request(9000)
	r.Previous, r.Lifetime = &l, 90*time.Second+time.Millisecond
	if l, err = n.Map(t.Context(), r); err != nil || l.Lifetime != 90*time.Second {
		t.Errorf("renewed: %+v, %v", l, err)
	}
	if got := f.Count("pmp external") - asked; got != 1 || f.Count("pmp map") != 2 {
		t.Errorf("renewal asked for the address %d times, mapped %d times in all", got, f.Count("pmp map"))
	}

	if err := n.Unmap(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if f.Mappings() != 0 || f.Count("pmp delete") != 1 {
		t.Errorf("%d mappings after Unmap, %d deletes", f.Mappings(), f.Count("pmp delete"))
	}
	if err := n.Unmap(t.Context(), l); err != nil {
		t.Errorf("a second Unmap: %v", err)
	}
}

// The port of somebody else is not ours: the gateway gives another one, and a
// renewal keeps it, and keeps the internal one what it was.
func TestNATPMPOtherPort(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	f.SetMapping(9000, natlab.FakeMapping{Client: "127.9.9.9", Port: 80})
	n := testPMP(f)
	l, err := n.Map(t.Context(), request(9000))
	if err != nil || l.External.Port() != 9001 || l.Internal.Port() != 9000 {
		t.Fatalf("got %+v, %v", l, err)
	}
	r := request(9000)
	r.Previous = &l
	if l, err = n.Map(t.Context(), r); err != nil || l.External.Port() != 9001 || l.Internal.Port() != 9000 {
		t.Errorf("renewed: %+v, %v", l, err)
	}
}

// Every way to answer wrongly, or not at all.
func TestNATPMPFailures(t *testing.T) {
	t.Parallel()
	code := func(n uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint16(b[2:], n); return b[:8] }
	}
	onMap := func(f func([]byte) []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			if b[1] == 130 {
				return f(b)
			}
			return b
		}
	}
	for _, c := range []struct {
		name string
		pmp  natlab.FakePMP
		kind Kind
		code int
	}{
		{"closed port", natlab.FakePMP{}, Unsupported, 0},
		{"silence", natlab.FakePMP{Serve: true, Edit: func([]byte) []byte { return nil }}, Timeout, 0},
		{"silence to a map", natlab.FakePMP{Serve: true, Edit: onMap(func([]byte) []byte { return nil })}, Timeout, 0},
		{"too slow", natlab.FakePMP{Serve: true, Delay: 500 * time.Millisecond}, Timeout, 0},
		{"1 unsupported version", natlab.FakePMP{Serve: true, Edit: code(1)}, Unsupported, 1},
		{"2 refused", natlab.FakePMP{Serve: true, Edit: code(2)}, Refused, 2},
		{"2 refused to a map", natlab.FakePMP{Serve: true, Edit: onMap(code(2))}, Refused, 2},
		{"3 network failure", natlab.FakePMP{Serve: true, Edit: code(3)}, WANDown, 3},
		{"4 out of resources", natlab.FakePMP{Serve: true, Edit: onMap(code(4))}, NoResources, 4},
		{"5 unsupported opcode", natlab.FakePMP{Serve: true, Edit: onMap(code(5))}, Unsupported, 5},
		{"unknown code", natlab.FakePMP{Serve: true, Edit: onMap(code(77))}, Refused, 77},
		{"PCP only", natlab.FakePMP{Serve: true, Edit: func(b []byte) []byte { b[0] = 2; return b }}, Unsupported, 0},
		{"wrong opcode", natlab.FakePMP{Serve: true, Edit: func(b []byte) []byte { b[1] = 129; return b }}, Malformed, 0},
		{"cut off", natlab.FakePMP{Serve: true, Edit: func(b []byte) []byte { return b[:len(b)-2] }}, Malformed, 0},
		{"two bytes", natlab.FakePMP{Serve: true, Edit: func(b []byte) []byte { return b[:2] }}, Malformed, 0},
		{"another internal port", natlab.FakePMP{Serve: true, Edit: onMap(func(b []byte) []byte { b[9]++; return b })}, Malformed, 0},
		{"external port 0", natlab.FakePMP{Serve: true, Edit: onMap(func(b []byte) []byte { b[10], b[11] = 0, 0; return b })}, Malformed, 0},
		{"lifetime 0", natlab.FakePMP{Serve: true, Edit: onMap(func(b []byte) []byte { clear(b[12:16]); return b })}, Malformed, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := testPMP(natlab.StartFake(t, natlab.FakeConfig{PMP: c.pmp}))
			_, err := n.Map(t.Context(), request(9000))
			wantKind(t, err, c.kind, c.code)
			if e, _ := errors.AsType[*Error](err); e.Mapper != "nat-pmp" || e.Op != "map" {
				t.Errorf("unlabelled: %+v", e)
			}
		})
	}
}

// A mapping without an address is still a mapping.
func TestNATPMPNoAddress(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true}})
	l, err := testPMP(f).Map(t.Context(), request(9000))
	if err != nil || l.External.Addr().IsValid() || l.External.Port() != 9000 {
		t.Errorf("got %+v, %v", l, err)
	}
}

// Of two gateways the one that answers is used, and when it goes away, the other.
func TestNATPMPTwoGateways(t *testing.T) {
	t.Parallel()
	deaf := natlab.StartFake(t, natlab.FakeConfig{})
	a := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	b := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	n := testPMP(a)
	n.host = loopbackHost(deaf.Addr, a.Addr, b.Addr)
	l, err := n.Map(t.Context(), request(9000))
	if err != nil || l.Gateway != a.Addr {
		t.Fatalf("got %+v, %v", l, err)
	}
	a.Stop()
	r := request(9000)
	r.Previous = &l
	if l, err = n.Map(t.Context(), r); err != nil || l.Gateway != b.Addr {
		t.Errorf("after the first went: %+v, %v", l, err)
	}
}

// Broken off in the middle of a mapping, at once, and the mapping is given
// back; one that is being renewed stays.
func TestNATPMPCancel(t *testing.T) {
	t.Parallel()
	var mute atomic.Bool
	mapped := make(chan struct{}, 10)
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP, Edit: func(b []byte) []byte {
		if b[1] == 130 && mute.CompareAndSwap(true, false) {
			mapped <- struct{}{}
			return nil
		}
		return b
	}}})
	n := testPMP(f)
	n.call = []time.Duration{10 * time.Second}
	broken := func(r Request) {
		mute.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-mapped
			cancel()
		}()
		start := time.Now()
		_, err := n.Map(ctx, r)
		if kindOf(err) != Canceled || !errors.Is(err, context.Canceled) || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	}
	broken(request(9000))
	if f.Mappings() != 0 || f.Count("pmp delete") == 0 {
		t.Errorf("%d mappings, %d deletes", f.Mappings(), f.Count("pmp delete"))
	}
	l, err := n.Map(t.Context(), request(9000))
	if err != nil {
		t.Fatal(err)
	}
	r := request(9000)
	r.Previous = &l
	broken(r)
	if f.Mappings() != 1 {
		t.Error("a held mapping was given back")
	}

	// Also while the gateway is searched for.
	f = natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, Edit: func([]byte) []byte { return nil }}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = testPMP(f).Map(ctx, request(9000))
	wantKind(t, err, Timeout, 0)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 250*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// What is no answer to our question changes nothing, and the answer behind it
// is still heard.
func TestNATPMPIgnores(t *testing.T) {
	t.Parallel()
	evil := func(b []byte) []byte { b[len(b)-1] ^= 0xff; return b }
	for name, before := range map[string]func([]byte) []byte{
		"wrong opcode":        func(b []byte) []byte { b[1]++; return evil(b) },
		"a request":           func(b []byte) []byte { b[1] &^= 128; return evil(b) },
		"cut short":           func(b []byte) []byte { return b[:len(b)-1] },
		"too long":            func(b []byte) []byte { return append(evil(b), 0) },
		"garbage":             func(b []byte) []byte { return []byte("HTTP/1.1 200 OK\r\n\r\n") },
		"empty":               func(b []byte) []byte { return nil },
		"wrong internal port": func(b []byte) []byte { b[9] ^= 1; return evil(b) },
		"strange":             evil,
		"a strange refusal":   func(b []byte) []byte { b[3] = 2; return b },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{
				Serve: true, External: publicIP, Strange: strings.Contains(name, "strange"),
				Before: func(b []byte) []byte {
					if name == "wrong internal port" && b[1] != 130 {
						return nil
					}
					return before(b)
				},
			}})
			l, err := testPMP(f).Map(t.Context(), request(9000))
			if err != nil || l.External != netip.AddrPortFrom(publicIP, 9000) || l.Lifetime != 2*time.Hour {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
}

// Lost datagrams are sent again; silence has an end.
func TestNATPMPSchedule(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP, Edit: func(b []byte) []byte {
		if asked.Add(1)%3 != 0 {
			return nil
		}
		return b
	}}})
	n := testPMP(f)
	n.probe = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 2 * time.Second}
	n.call = n.probe
	if l, err := n.Map(t.Context(), request(9000)); err != nil || asked.Load() != 9 || f.Mappings() != 1 {
		t.Errorf("%+v, %v, asked %d times", l, err, asked.Load())
	}
	// The constants of the real one: 2 s for a gateway that never answered.
	var probe, call time.Duration
	for _, d := range newNATPMP(loopbackHost()).probe {
		probe += d
	}
	for _, d := range newNATPMP(loopbackHost()).call {
		call += d
	}
	if probe != 2*time.Second || call != 3750*time.Millisecond {
		t.Errorf("%v, %v", probe, call)
	}
}

// A second gateway that is silent holds up nothing.
func TestSilentSecondGateway(t *testing.T) {
	t.Parallel()
	mute := func([]byte) []byte { return nil }
	silent := natlab.StartFake(t, natlab.FakeConfig{PCP: natlab.FakePCP{Serve: true, Edit: mute}, PMP: natlab.FakePMP{Serve: true, Edit: mute}})
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP(), PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	n, p := testPMP(f), testPCP(f)
	n.host = loopbackHost(f.Addr, silent.Addr)
	p.host = n.host
	n.probe, p.probe = []time.Duration{10 * time.Second}, []time.Duration{10 * time.Second}
	for _, m := range []Mapper{n, p} {
		start := time.Now()
		l, err := m.Map(t.Context(), request(9000))
		if took := time.Since(start); err != nil || l.Gateway != f.Addr || took > 5*time.Second {
			t.Errorf("%+v, %v after %v", l, err, took)
		}
		if err := m.Unmap(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
}

func TestNATPMPUnmapForeign(t *testing.T) {
	n := newNATPMP(loopbackHost())
	for _, l := range []Lease{{Via: "upnp", Internal: netip.AddrPortFrom(localIP, 1)}, {Via: "nat-pmp"}} {
		wantKind(t, n.Unmap(t.Context(), l), Unsupported, 0)
	}
}

// Answers as they must be read, bytes by hand from RFC 6886 §3.2, §3.3 and §3.5.
func TestParsePMP(t *testing.T) {
	for _, c := range []struct {
		in   string
		want pmpResponse
		ok   bool
	}{
		{"00 80 0000 00000e10 cb007107", pmpResponse{epoch: 3600, address: publicIP}, true},
		{"00 82 0000 00000001 2328 2329 00001c20", pmpResponse{opcode: 2, epoch: 1, internal: 9000, external: 9001, lifetime: 7200}, true},
		{"00 82 0002 00000001 2328 0000 00000000", pmpResponse{opcode: 2, code: 2}, true},
		{"00 82 0003", pmpResponse{opcode: 2, code: 3}, true},
		{"02 82 0001 00000000 00000000 000000000000000000000000", pmpResponse{version: 2, opcode: 2}, true},
		{"00 80 0000 00000e10 cb0071", pmpResponse{}, false},
		{"00 80 0000 00000e10 cb007107 00", pmpResponse{}, false},
		{"00 82 0000 00000001 2328 2329 00001c", pmpResponse{}, false},
		{"00 81 0000 00000001 2328 2329 00001c20", pmpResponse{}, false}, // of UDP
		{"00 02 0000 2328 2328 00001c20", pmpResponse{}, false},          // a request
		{"00 80 00", pmpResponse{}, false},
		{"", pmpResponse{}, false},
	} {
		if got, ok := parsePMP(unhex(t, c.in)); ok != c.ok || got != c.want {
			t.Errorf("%s: %+v, %v", c.in, got, ok)
		}
	}
	for want, q := range map[string]pmpRequest{
		"00 00":                         {opcode: pmpExternal},
		"00 02 0000 2328 2329 00001c20": {opcode: pmpMapTCP, internal: 9000, external: 9001, lifetime: 7200},
		"00 02 0000 2328 0000 00000000": {opcode: pmpMapTCP, internal: 9000},
	} {
		if got := q.append(nil); !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%+v: %x, want %s", q, got, want)
		}
	}
}

// A second opinion: an independent library and our mapper get the same of the
// same gateway, which is scripted by hand, and so is not wrong in our way.
func TestNATPMPWitness(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	f.SetEpoch(time.Hour)
	witness := pmp.NewClientWithTimeout(f.Addr.AsSlice(), time.Second)
	addr, err := witness.GetExternalAddress()
	if err != nil || netip.AddrFrom4(addr.ExternalIPAddress) != publicIP {
		t.Fatalf("%+v, %v", addr, err)
	}
	made, err := witness.AddPortMapping("tcp", 9000, 9123, 600)
	if err != nil {
		t.Fatal(err)
	}
	n := testPMP(f)
	l, err := n.Map(t.Context(), request(9000))
	if err != nil || l.External.Addr() != publicIP || l.External.Port() != made.MappedExternalPort || l.epoch.seconds < made.SecondsSinceStartOfEpoc || l.epoch.seconds > made.SecondsSinceStartOfEpoc+5 {
		t.Errorf("got %+v, %v; the library got %+v", l, err, made)
	}
	if err := n.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
		t.Errorf("%v, %d mappings left", err, f.Mappings())
	}
}

func FuzzNATPMP(f *testing.F) {
	for _, s := range []string{"00 80 0000 00000e10 cb007107", "00 82 0000 00000001 2328 2329 00001c20", "00 82 0003", "02 82 0001"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parsePMP(b)
		if !ok {
			return
		}
		if len(b) < 4 || b[1] != r.opcode+128 || r.version != b[0] {
			t.Fatalf("%x: %+v", b, r)
		}
		if r.version == 0 && r.code == 0 && len(b) != 12+4*int(r.opcode)/2 {
			t.Fatalf("%x: %+v", b, r)
		}
	})
}

// A mapping whose answer gets lost, or makes no sense, is not left behind.
func TestNATPMPNothingStaysOpen(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(a []byte) []byte{
		"lost":         func([]byte) []byte { return nil },
		"cut off":      func(a []byte) []byte { return a[:8] },
		"port 0":       func(a []byte) []byte { a[10], a[11] = 0, 0; return a },
		"no lifetime":  func(a []byte) []byte { clear(a[12:]); return a },
		"ports halved": func(a []byte) []byte { a[8], a[10] = 0, 0; return a },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP, Edit: func(a []byte) []byte {
				if len(a) == 16 {
					return edit(a)
				}
				return a
			}}})
			_, err := testPMP(f).Map(t.Context(), request(9000))
			if err == nil || f.Mappings() != 0 || f.Count("pmp delete") == 0 {
				t.Errorf("%v; %d mappings left, %d deletes", err, f.Mappings(), f.Count("pmp delete"))
			}
		})
	}
}

// The standard's delete names the internal port alone. If the external one is
// another, a second names that, for gateways that look at it.
func TestNATPMPDelete(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	n := testPMP(f)
	r := request(9000)
	for external, deletes := range map[uint16]int{9000: 1, 9001: 2} {
		r.External = external
		l, err := n.Map(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		before := f.Count("pmp delete")
		if err := n.Unmap(t.Context(), l); err != nil || f.Count("pmp delete")-before != deletes || f.Mappings() != 0 {
			t.Errorf("external port %d: %v, %d deletes, %d mappings left", external, err, f.Count("pmp delete")-before, f.Mappings())
		}
	}
}
