package nat

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/natlab"
	"github.com/peerws/peerws/internal/netaddr"
)

// loopbackHost6 is a machine whose IPv6 gateway is itself: there is one
// loopback address.
func loopbackHost6() host {
	h := host6([]route{{gateway: netip.IPv6Loopback(), iface: "lo"}}, netaddr.Addr6{Addr: netip.IPv6Loopback(), Bits: 128, Iface: "lo"})
	h.loopback = true
	return h
}

var local6 = netip.AddrPortFrom(netip.IPv6Loopback(), 9000)

func request6() Request { return Request{Internal: local6, Description: "peerws"} }

func fake6(t *testing.T, c natlab.FakeConfig) *natlab.Fake {
	c.IPv6 = true
	if c.UPnP.Services == nil {
		c.UPnP.Services = []natlab.FakeService{{URN: "WANIPConnection:2", External: "203.0.113.7"}, {URN: "WANIPv6FirewallControl:1"}}
	}
	return natlab.StartFake(t, c)
}

func testPinhole(f *natlab.Fake) *pinhole {
	u := newUPnP(loopbackHost6(), searcher{
		port:   max(f.SSDPPort, 9),
		resend: []time.Duration{50 * time.Millisecond, 150 * time.Millisecond},
		listen: 400 * time.Millisecond,
	})
	u.patience, u.grace = 200*time.Millisecond, 50*time.Millisecond
	return newPinhole(u)
}

func testPCP6(f *natlab.Fake) *pcp {
	p := newPCP(loopbackHost6())
	ms := time.Millisecond
	p.port, p.probe, p.call = f.Port5351, []time.Duration{400 * ms, 400 * ms}, []time.Duration{400 * ms, 400 * ms}
	return p
}

// A pinhole is made, looked after, made again after a restart, and closed.
func TestPinhole(t *testing.T) {
	t.Parallel()
	f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}})
	p := testPinhole(f)
	l, err := p.Map(t.Context(), request6())
	if err != nil {
		t.Fatal(err)
	}
	if l.Internal != local6 || l.External != local6 || l.Lifetime != time.Hour || l.Via != "upnp" || l.Gateway != f.Addr || l.recheck != heartbeat {
		t.Errorf("got %+v", l)
	}
	if m, ok := f.Mapping(9000); !ok || m.Lease != 3600 || m.Client != "::1" {
		t.Errorf("the gateway has %+v", m)
	}
	searches := f.Count("ssdp")
	r := request6()
	r.Previous, r.Lifetime = &l, 30*24*time.Hour
	if l, err = p.Map(t.Context(), r); err != nil || l.Lifetime != 24*time.Hour {
		t.Errorf("renewed: %+v, %v", l, err)
	}
	if _, err := p.check(t.Context(), l); err != nil {
		t.Errorf("check: %v", err)
	}
	if f.Count("soap AddPinhole") != 2 || f.Mappings() != 1 || f.Count("ssdp") != searches || f.Count("soap GetExternalIPAddress") != 0 {
		t.Errorf("%d calls, %d pinholes, %d searches", f.Count("soap AddPinhole"), f.Mappings(), f.Count("ssdp"))
	}

	f.Reboot(t)
	if _, err := p.check(t.Context(), l); kindOf(err) != NoGateway {
		t.Errorf("check at the old place: %v", err)
	}
	r.Previous = &l
	if l, err = p.Map(t.Context(), r); err != nil || f.Mappings() != 1 {
		t.Errorf("after a restart: %+v, %v", l, err)
	}
	if err := p.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
		t.Errorf("%v, %d pinholes", err, f.Mappings())
	}
	if _, err := p.check(t.Context(), l); !errors.Is(err, errStateLost) {
		t.Errorf("check of what is gone: %v", err)
	}
	if err := p.Unmap(t.Context(), l); err != nil {
		t.Errorf("a second Unmap: %v", err)
	}
}

// A firewall that is off needs no pinhole, until it is on.
func TestPinholeFirewallOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]natlab.FakeUPnP{
		"said":      {Serve: true, FirewallOff: true},
		"found out": {Serve: true, FirewallOff: true, Fault: func(action string, _ map[string]string) int { return map[string]int{"GetFirewallStatus": 401}[action] }},
	} {
		t.Run(name, func(t *testing.T) {
			f := fake6(t, natlab.FakeConfig{UPnP: c})
			p := testPinhole(f)
			l, err := p.Map(t.Context(), request6())
			if err != nil || l.External != local6 || f.Mappings() != 0 {
				t.Fatalf("%+v, %v", l, err)
			}
			if _, err := p.check(t.Context(), l); err != nil {
				t.Errorf("check: %v", err)
			}
			if err := p.Unmap(t.Context(), l); err != nil || f.Count("soap DeletePinhole") != 0 {
				t.Errorf("Unmap: %v", err)
			}
		})
	}
	f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}})
	p := testPinhole(f)
	l, err := p.Map(t.Context(), request6())
	if err != nil {
		t.Fatal(err)
	}
	l.token = pinholeToken{l.token.(pinholeToken).service, ""}
	if _, err := p.check(t.Context(), l); !errors.Is(err, errStateLost) {
		t.Errorf("the firewall was switched on: %v", err)
	}
}

// What a gateway refuses, and what it means.
func TestPinholeFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, action string
		code         int
		kind         Kind
		diag         string
	}{
		{"not authorized", "AddPinhole", 606, Refused, "refused"},
		{"space", "AddPinhole", 701, NoResources, "conflict"},
		{"forbidden", "AddPinhole", 703, Refused, "refused"},
		{"protocol", "AddPinhole", 705, Refused, "refused"},
		{"no such action", "AddPinhole", 401, Unsupported, "no-gateway"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, Fault: func(action string, _ map[string]string) int {
				if action == c.action {
					return c.code
				}
				return 0
			}}})
			_, err := testPinhole(f).Map(t.Context(), request6())
			wantKind(t, err, c.kind, c.code)
			if d := diagnose6(err); string(d.Code) != c.diag {
				t.Errorf("%+v", d)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, FirewallClosed: true}})
		_, err := testPinhole(f).Map(t.Context(), request6())
		wantKind(t, err, Refused, 0)
		if f.Count("soap AddPinhole") != 0 {
			t.Error("asked all the same")
		}
	})
	t.Run("an IGD without a firewall service", func(t *testing.T) {
		t.Parallel()
		f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:2"}}}})
		_, err := testPinhole(f).Map(t.Context(), request6())
		wantKind(t, err, Unsupported, 0)
	})
	t.Run("redirect", func(t *testing.T) {
		t.Parallel()
		f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, HTTP: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://[2001:db8::1]/", http.StatusFound)
			return true
		}}})
		_, err := testPinhole(f).Map(t.Context(), request6())
		wantKind(t, err, NoGateway, http.StatusFound)
	})
}

// A call that is broken off leaves no hole behind.
func TestPinholeCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := fake6(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true, Body: func(action, body string) string {
		if action == "AddPinhole" && ctx.Err() == nil {
			cancel()
			time.Sleep(100 * time.Millisecond)
		}
		return body
	}}})
	_, err := testPinhole(f).Map(ctx, request6())
	wantKind(t, err, Canceled, 0)
	if f.Mappings() != 0 || f.Count("soap DeletePinhole") != 1 {
		t.Errorf("%d pinholes", f.Mappings())
	}
}

// PCP over IPv6: our own address comes back, with our port also if the gateway
// says 0.
func TestPCP6(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func([]byte) []byte{
		"plain": nil,
		"says nothing": func(b []byte) []byte {
			if b[1] == 0x81 {
				clear(b[42:60])
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fake6(t, natlab.FakeConfig{PCP: natlab.FakePCP{Serve: true, External: netip.IPv6Loopback(), Edit: edit}})
			p := testPCP6(f)
			l, err := p.Map(t.Context(), request6())
			if err != nil || l.Internal != local6 || l.External != local6 || l.Gateway != f.Addr || l.Via != "pcp" {
				t.Fatalf("%+v, %v", l, err)
			}
			nonce := l.token
			r := request6()
			r.Previous = &l
			if l, err = p.Map(t.Context(), r); err != nil || l.External != local6 || l.token != nonce {
				t.Errorf("renewed: %+v, %v", l, err)
			}
			if l, err = p.check(t.Context(), l); err != nil {
				t.Errorf("check: %v", err)
			}
			f.SetEpoch(0)
			l.epoch.seconds += 100
			if _, err := p.check(t.Context(), l); !errors.Is(err, errStateLost) {
				t.Errorf("restarted: %v", err)
			}
			if err := p.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
				t.Errorf("%v, %d mappings", err, f.Mappings())
			}
		})
	}
}

// PCP is preferred; the firewall is asked over UPnP where PCP gives nothing.
func TestAny6(t *testing.T) {
	t.Parallel()
	any6 := func(f *natlab.Fake) Mapper {
		return newDual(None(), loopbackHost6(), newAny(candidate{mapper: testPCP6(f), blind: true}, candidate{mapper: testPinhole(f), wait: 300 * time.Millisecond}))
	}
	good := natlab.FakePCP{Serve: true, External: netip.IPv6Loopback()}
	refusing := good
	refusing.Code = func(opcode byte) byte { return 2 * opcode }
	for name, c := range map[string]struct {
		config natlab.FakeConfig
		via    string
	}{
		"both":             {natlab.FakeConfig{PCP: good, UPnP: natlab.FakeUPnP{Serve: true}}, "pcp"},
		"UPnP alone":       {natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}}, "upnp"},
		"PCP that refuses": {natlab.FakeConfig{PCP: refusing, UPnP: natlab.FakeUPnP{Serve: true}}, "upnp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fake6(t, c.config)
			m := any6(f)
			l, err := m.Map(t.Context(), request6())
			if err != nil || l.Via != c.via || f.Mappings() != 1 {
				t.Fatalf("%+v, %v, %d mappings", l, err, f.Mappings())
			}
			if l, err = m.(checker).check(t.Context(), l); err != nil {
				t.Error(err)
			}
			if err := m.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
				t.Errorf("%v, %d mappings", err, f.Mappings())
			}
		})
	}
}

// Only the gateway is ever asked for a description, also over IPv6.
func TestCheckLocation6(t *testing.T) {
	t.Parallel()
	gateway, host := netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("fe80::2%eth0")
	for _, c := range []struct {
		location string
		from     netip.Addr
		want     string // "" = refused
	}{
		{"http://[fe80::1]:5000/d.xml", gateway, "http://[fe80::1%25eth0]:5000/d.xml"},
		{"http://[fe80::1%25eth0]:5000/d.xml", gateway, "http://[fe80::1%25eth0]:5000/d.xml"},
		{"http://[2001:db8::1]:5000/d.xml", gateway, "http://[fe80::1%25eth0]:5000/d.xml"},
		{"http://[2001:db8::1]/d.xml", netip.MustParseAddr("2001:db8::1"), "http://[fe80::1%25eth0]:80/d.xml"},
		{"http://[fe80::2]:5000/d.xml", host, "http://[fe80::1%25eth0]:5000/d.xml"},
		{"http://[::1]:5000/d.xml", gateway, "http://[fe80::1%25eth0]:5000/d.xml"},
		{"http://[2001:db8::99]:5000/d.xml", host, ""},
		{"http://192.168.1.1:5000/d.xml", gateway, "http://[fe80::1%25eth0]:5000/d.xml"},
		{"http://router.example/d.xml", gateway, "http://[fe80::1%25eth0]:80/d.xml"},
		{"http://192.168.1.1:5000/d.xml", host, ""},
		{"http://router.example/d.xml", host, ""},
		{"https://[fe80::1]/d.xml", gateway, ""},
		{"http://me@[fe80::1]/d.xml", gateway, ""},
		{"http://[fe80::1%eth0]/d.xml", gateway, ""},
	} {
		got := ""
		if u, err := checkLocation(c.location, c.from, gateway, false); err == nil {
			got = u.String()
		}
		if got != c.want {
			t.Errorf("%s from %v: %q, want %q", c.location, c.from, got, c.want)
		}
	}
	if _, err := checkLocation("http://[::1]:5000/", netip.IPv6Loopback(), netip.IPv6Loopback(), false); err == nil {
		t.Error("loopback")
	}
}

// A gateway that deletes nothing is told to let it end soon.
func TestPCP6RefusedDelete(t *testing.T) {
	t.Parallel()
	f := fake6(t, natlab.FakeConfig{PCP: natlab.FakePCP{Serve: true, External: netip.IPv6Loopback(), Edit: func(b []byte) []byte {
		if b[1] == 0x81 && [4]byte(b[4:8]) == [4]byte{} {
			b[3] = 2
		}
		return b
	}}})
	p := testPCP6(f)
	l, err := p.Map(t.Context(), request6())
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, p.Unmap(t.Context(), l), Refused, 2)
	if m, ok := f.Mapping(9000); !ok || m.Lease != 1 || m.Nonce != [12]byte(l.token.(pcpNonce)) {
		t.Errorf("the gateway has %+v", m)
	}
}
