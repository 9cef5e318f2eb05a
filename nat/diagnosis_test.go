package nat

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/peerws/peerws/internal/natlab"
)

// A router that forwards and does not tell its address is not one without a line.
func TestUntoldAddress(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config natlab.FakeConfig
		code   Code
	}{
		"UPnP, connected": {natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1", External: "unknown", Status: "Connected"}}}}, CodeMapped},
		"UPnP, no such action": {natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1", Status: "Connected"}}, Fault: func(action string, _ map[string]string) int {
			return map[string]int{"GetExternalIPAddress": 401}[action]
		}}}, CodeMapped},
		"UPnP, disconnected": {natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1", External: "0.0.0.0", Status: "Disconnected"}}}}, CodeWANDown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, c.config)
			l, err := testUPnP(f).Map(t.Context(), request(9000))
			if err != nil || l.External.Port() != 9000 || l.External.Addr().IsValid() {
				t.Fatalf("%+v, %v", l, err)
			}
			d := place{}.diagnoseLease(l)
			if d.Code != c.code || d.Summary == "" || d.Advice == "" {
				t.Errorf("%+v", d)
			}
		})
	}
}

// The same in NAT-PMP, of a gateway that has been found before.
func TestUntoldAddress_NATPMP(t *testing.T) {
	t.Parallel()
	var untold atomic.Bool
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP, Edit: func(b []byte) []byte {
		if b[1] == 128 && untold.Load() { // the answer to opcode 0: unsupported opcode
			b[3], b = 5, b[:8]
		}
		return b
	}}})
	m := testPMP(f)
	for i := range 2 {
		l, err := m.Map(t.Context(), request(9000))
		if err != nil {
			t.Fatal(err)
		}
		if d := (place{}).diagnoseLease(l); l.External.Addr().IsValid() != (i == 0) || d.Code != CodeMapped {
			t.Errorf("%v: %+v", l.External, d)
		}
		untold.Store(true)
	}
}

// A router that refuses one port after another may have only some to give.
func TestPortsRefused(t *testing.T) {
	t.Parallel()
	var tried atomic.Int32
	_, u := startUPnP(t, natlab.FakeUPnP{Fault: func(action string, _ map[string]string) int {
		if action != "AddPortMapping" {
			return 0
		}
		tried.Add(1)
		return 606
	}})
	_, err := u.Map(t.Context(), request(9000))
	d := place{}.diagnose(err)
	if d.Code != CodeRefused || !strings.Contains(d.Summary, "and others") || !strings.Contains(d.Advice, "MAP-E") || tried.Load() < 2 {
		t.Errorf("after %d ports: %+v, %v", tried.Load(), d, err)
	}
}

func TestDiagnose(t *testing.T) {
	lease := func(a string) Lease {
		l := Lease{Via: "upnp", External: netip.AddrPortFrom(netip.Addr{}, 9000)}
		if a != "" {
			l.External = netip.AddrPortFrom(netip.MustParseAddr(a), 9000)
		}
		return l
	}
	for a, want := range map[string]string{
		"203.0.113.7": "mapped", "8.8.8.8": "mapped", "100.64.1.1": "cgnat", "10.0.0.1": "double-nat", "192.168.0.2": "double-nat",
		"172.20.1.1": "double-nat", "192.0.0.2": "double-nat", "169.254.1.1": "double-nat", "0.0.0.0": "wan-down", "": "wan-down",
	} {
		if got := diagnoseLease(lease(a)); string(got.Code) != want {
			t.Errorf("%q: %+v, want %s", a, got, want)
		}
	}
	all := []Diagnosis{diagnosePublic(publicIP, 9000), diagnose(errOff), diagnose(&Error{Kind: Unsupported, Err: errLoopback})}
	if all[2].Code != "no-network" {
		t.Errorf("bound to loopback: %+v", all[2])
	}
	for k, want := range map[Kind]string{
		NoGateway: "no-gateway", Timeout: "no-gateway", Unsupported: "no-gateway", Refused: "refused", Conflict: "conflict", NoResources: "conflict",
		WANDown: "wan-down", AddressMismatch: "double-nat", Malformed: "refused", NoNetwork: "no-network",
	} {
		d := diagnose(&Error{Kind: k})
		all = append(all, d)
		if string(d.Code) != want {
			t.Errorf("%v: %s, want %s", k, d.Code, want)
		}
	}
	if d := diagnose(errors.New("a user's Mapper")); d.Code != "no-gateway" {
		t.Errorf("%+v", d)
	}
	for _, d := range all { // one sentence that a person reads
		if !strings.HasSuffix(d.Summary, ".") || strings.Contains(d.Summary, "\n") || d.Code != "off" && d.Advice == "" {
			t.Errorf("%+v", d)
		}
	}
}
