package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

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

// The library cannot be interrupted, but is never left behind either.
func TestNATPMPCancel(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, Edit: func([]byte) []byte { return nil }}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := testPMP(f).Map(ctx, request(9000))
	wantKind(t, err, Timeout, 0)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 250*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestNATPMPUnmapForeign(t *testing.T) {
	n := newNATPMP(loopbackHost())
	for _, l := range []Lease{{Via: "upnp", Internal: netip.AddrPortFrom(localIP, 1)}, {Via: "nat-pmp"}} {
		wantKind(t, n.Unmap(t.Context(), l), Unsupported, 0)
	}
}

func TestPMPKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind Kind
		code int
	}{
		{nil, 0, 0},
		{context.Canceled, Canceled, 0},
		{&net.OpError{Op: "dial", Err: errors.New("network is unreachable")}, NoNetwork, 0},
		{&net.OpError{Op: "read", Err: errors.New("connection reset")}, Unsupported, 0},
		{errors.New("Non-zero result code 3 (whatever)"), WANDown, 3},
		{errors.New("something new"), Malformed, 0},
	} {
		if kind, code := pmpKind(c.err); kind != c.kind || code != c.code {
			t.Errorf("%v: %v %d", c.err, kind, code)
		}
	}
}
