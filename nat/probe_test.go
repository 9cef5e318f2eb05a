package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// no6 is for machines without IPv6.
var no6 = newPCP(host6(nil))

// What is made of what a gateway says in each protocol.
func TestProbe(t *testing.T) {
	t.Parallel()
	service := func(external, status string) natlab.FakeUPnP {
		return natlab.FakeUPnP{Serve: true, Services: []natlab.FakeService{{URN: "WANIPConnection:1", External: external, Status: status}}}
	}
	pmp := natlab.FakePMP{Serve: true, External: publicIP}
	pmpDown := natlab.FakePMP{Serve: true, Edit: func(b []byte) []byte { binary.BigEndian.PutUint16(b[2:], 3); return b[:12] }}
	private := natlab.FakePMP{Serve: true, External: netip.MustParseAddr("192.168.3.4")}
	shared := natlab.FakePMP{Serve: true, External: netip.MustParseAddr("100.64.3.4")}
	for _, c := range []struct {
		name     string
		config   natlab.FakeConfig
		versions [3]string // "" is no answer
		outside  [3]string
		usable   [3]bool
		code     string
	}{
		{"all", natlab.FakeConfig{PCP: goodPCP(), PMP: pmp, UPnP: service("203.0.113.7", "")},
			[3]string{"2", "0", "WANIPConnection:1"}, [3]string{"", "203.0.113.7", "203.0.113.7"}, [3]bool{true, true, true}, "ready"},
		{"PCP", natlab.FakeConfig{PCP: goodPCP()}, [3]string{"2"}, [3]string{}, [3]bool{true}, "ready"},
		{"NAT-PMP", natlab.FakeConfig{PMP: pmp}, [3]string{"", "0"}, [3]string{"", "203.0.113.7"}, [3]bool{false, true}, "ready"},
		{"UPnP", natlab.FakeConfig{UPnP: service("203.0.113.7", "")}, [3]string{"", "", "WANIPConnection:1"}, [3]string{"", "", "203.0.113.7"}, [3]bool{false, false, true}, "ready"},
		{"nothing", natlab.FakeConfig{}, [3]string{}, [3]string{}, [3]bool{}, "no-gateway"},
		{"behind a router", natlab.FakeConfig{PMP: private}, [3]string{"", "0"}, [3]string{"", "192.168.3.4"}, [3]bool{false, true}, "double-nat"},
		{"behind the provider's NAT", natlab.FakeConfig{PCP: goodPCP(), PMP: shared}, [3]string{"2", "0"}, [3]string{"", "100.64.3.4"}, [3]bool{true, true}, "cgnat"},
		{"one of two is public", natlab.FakeConfig{PMP: private, UPnP: service("203.0.113.7", "")},
			[3]string{"", "0", "WANIPConnection:1"}, [3]string{"", "192.168.3.4", "203.0.113.7"}, [3]bool{false, true, true}, "ready"},
		{"as miniupnpd says it", natlab.FakeConfig{PCP: goodPCP(), PMP: pmpDown, UPnP: service("", "Connected")},
			[3]string{"2", "0", "WANIPConnection:1"}, [3]string{}, [3]bool{true}, "double-nat"},
		{"down", natlab.FakeConfig{PCP: goodPCP(), PMP: pmpDown, UPnP: service("", "Disconnected")},
			[3]string{"2", "0", "WANIPConnection:1"}, [3]string{}, [3]bool{true}, "wan-down"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, c.config)
			own := []netip.Addr{netip.MustParseAddr("192.168.1.5")}
			s := survey{testPCP(f), testPMP(f), testUPnP(f), no6, nil, func() []netip.Addr { return own }, 0}
			r, err := s.run(t.Context())
			if err != nil || len(r.Protocols) != 3 || len(r.Gateways) != 1 || r.Gateways[0] != f.Addr || len(r.Addresses) != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			for i, p := range r.Protocols {
				outside := ""
				if p.External.IsValid() {
					outside = p.External.String()
				}
				if p.Name != [...]string{"pcp", "nat-pmp", "upnp"}[i] || p.Version != c.versions[i] || outside != c.outside[i] || (p.Err == nil) != c.usable[i] || p.Took <= 0 {
					t.Errorf("%+v", p)
				}
				if answered := c.versions[i] != ""; answered != (p.Gateway == f.Addr) {
					t.Errorf("%s: answered by %v", p.Name, p.Gateway)
				}
			}
			if string(r.Diagnosis.Code) != c.code {
				t.Errorf("%+v", r.Diagnosis)
			}
			if f.Mappings() != 0 || f.Count("pcp map")+f.Count("pmp map")+f.Count("soap AddPortMapping") != 0 {
				t.Error("a probe has changed something")
			}
		})
	}
}

func TestProbeNoNetwork(t *testing.T) {
	h := loopbackHost()
	r, err := survey{newPCP(h), newNATPMP(h), newUPnP(h, systemSearcher()), no6, nil, localAddrs, 0}.run(t.Context())
	if err != nil || r.Diagnosis.Code != "no-network" || len(r.Protocols) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	r.Protocols = nil
	if d := r.diagnose(publicIP, place{}); d.Code != "public" {
		t.Errorf("%+v", d)
	}
}

func TestProbeCancel(t *testing.T) {
	t.Parallel()
	mute := natlab.FakePCP{Serve: true, Edit: func([]byte) []byte { return nil }}
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: mute})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := survey{testPCP(f), testPMP(f), testUPnP(f), no6, nil, localAddrs, 0}.run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Who has a port already: found by its number, or, where the gateway lists its
// table, because it leads to ours.
func TestProbePort(t *testing.T) {
	t.Parallel()
	for _, list := range []bool{true, false} {
		u := natlab.FakeUPnP{Serve: true, Fault: func(action string, _ map[string]string) int {
			if action == "GetGenericPortMappingEntry" && !list {
				return 401
			}
			return 0
		}}
		f := natlab.StartFake(t, natlab.FakeConfig{UPnP: u})
		f.SetMapping(9000, natlab.FakeMapping{Client: "127.9.9.9", Port: 80, Lease: 600, Description: "their\u009b31m\u202e page"})
		f.SetMapping(9001, natlab.FakeMapping{Client: localIP.String(), Port: 9000, Description: strings.Repeat("ä", 40)})
		f.SetMapping(9002, natlab.FakeMapping{Client: localIP.String(), Port: 9002})
		f.SetMapping(9003, natlab.FakeMapping{Client: "127.9.9.9", Port: 9000})
		r, err := survey{testPCP(f), testPMP(f), testUPnP(f), no6, nil, localAddrs, 9000}.run(t.Context())
		if err != nil || len(r.Protocols) != 3 {
			t.Fatalf("%+v, %v", r, err)
		}
		want := []PortEntry{
			{9000, netip.MustParseAddrPort("127.9.9.9:80"), "their31m page", 10 * time.Minute},
			{9001, netip.AddrPortFrom(localIP, 9000), strings.Repeat("ä", 32), 0},
		}
		if !list {
			want = want[:1]
		}
		if got := r.Protocols[2].Entries; !slices.Equal(got, want) {
			t.Errorf("listing %v: %+v", list, got)
		}
		if f.Count("soap AddPortMapping")+f.Count("soap DeletePortMapping") != 0 || f.Count("soap GetGenericPortMappingEntry") > 5 {
			t.Error("asked too much")
		}
	}
	// A table without end is left after a while.
	f := natlab.StartFake(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}})
	for port := range uint16(200) {
		f.SetMapping(20000+port, natlab.FakeMapping{Client: "127.9.9.9", Port: 9000})
	}
	r, err := survey{testPCP(f), testPMP(f), testUPnP(f), no6, nil, localAddrs, 9000}.run(t.Context())
	if n := f.Count("soap GetGenericPortMappingEntry"); err != nil || n != maxEntries || len(r.Protocols[2].Entries) != 0 {
		t.Errorf("%d lines read, %+v, %v", n, r, err)
	}
}

// Each of several gateways is asked in each protocol; of the further ones only
// answers are shown.
func TestProbeSeveralGateways(t *testing.T) {
	t.Parallel()
	first := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: netip.MustParseAddr("192.168.3.4")}})
	second := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP(), PMP: natlab.FakePMP{Serve: true, External: publicIP}})
	h := loopbackHost(first.Addr, second.Addr)
	none := searcher{listen: 50 * time.Millisecond}
	r, err := survey{newPCP(h), newNATPMP(h), newUPnP(h, none), no6, nil, localAddrs, 0}.run(t.Context())
	var got []string
	for _, p := range r.Protocols {
		got = append(got, p.Name+" "+p.Gateway.String())
	}
	want := []string{"pcp invalid IP", "nat-pmp " + first.Addr.String(), "upnp invalid IP", "pcp " + second.Addr.String(), "nat-pmp " + second.Addr.String()}
	if err != nil || !slices.Equal(got, want) || r.Diagnosis.Code != "ready" {
		t.Errorf("%q, %+v, %v", got, r.Diagnosis, err)
	}
}

// A gateway that speaks PCP over IPv6 is found for each address of ours.
func TestProbeIPv6(t *testing.T) {
	t.Parallel()
	own := netip.MustParseAddr("::1")
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: own.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		b := make([]byte, 1100)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n != 24 || b[0] != 2 || b[1] != 0 { // ANNOUNCE: RFC 6887 §14.1
				t.Errorf("asked %x", b[:n])
				continue
			}
			answer := make([]byte, 24)
			answer[0], answer[1], answer[11] = 2, 0x80, 9
			c.WriteToUDPAddrPort(answer, from)
		}
	}()
	h := host6([]route{{gateway: own, iface: "lo"}}, at6("::1", "lo"))
	h.loopback = true
	six := newPCP(h)
	six.port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()

	without := loopbackHost() // no way out over IPv4
	r, err := survey{newPCP(without), newNATPMP(without), newUPnP(without, systemSearcher()), six, nil, localAddrs, 0}.run(t.Context())
	if err != nil || r.Diagnosis.Code != "ready" || !strings.Contains(r.Diagnosis.Summary, "IPv6") || !slices.Equal(r.Gateways, []netip.Addr{own}) || len(r.Protocols) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if p := r.Protocols[0]; p.Name != "pcp" || p.Version != "2" || p.Gateway != own || p.External != own || p.Internal != own || p.Err != nil {
		t.Errorf("%+v", p)
	}
	f := natlab.StartFake(t, natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: netip.MustParseAddr("192.168.3.4")}})
	r, err = survey{testPCP(f), testPMP(f), testUPnP(f), six, nil, localAddrs, 0}.run(t.Context())
	if err != nil || r.Diagnosis.Code != "double-nat" || !strings.Contains(r.Diagnosis.Summary, "Over IPv6") || len(r.Gateways) != 2 || len(r.Protocols) != 4 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A firewall that UPnP opens, and one that it may not.
func TestProbeFirewall(t *testing.T) {
	t.Parallel()
	for _, allowed := range []bool{true, false} {
		u := natlab.FakeUPnP{Serve: true, FirewallClosed: !allowed}
		f := fake6(t, natlab.FakeConfig{UPnP: u})
		h := loopbackHost()
		r, err := survey{newPCP(h), newNATPMP(h), newUPnP(h, systemSearcher()), testPCP6(f), testPinhole(f), localAddrs, 0}.run(t.Context())
		if err != nil || len(r.Protocols) != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
		p := r.Protocols[1]
		if p.Name != "upnp" || p.Version != "WANIPv6FirewallControl:1" || p.Gateway != f.Addr || p.External != local6.Addr() || (p.Err == nil) != allowed {
			t.Errorf("%+v", p)
		}
		if ready := r.Diagnosis.Code == "ready" && strings.Contains(r.Diagnosis.Summary, "(upnp)"); ready != allowed {
			t.Errorf("%+v", r.Diagnosis)
		}
	}
}

// On a network of IPv6 alone whose gateway is silent, that is what is said, and not
// that there is no network.
func TestProbeIPv6Alone(t *testing.T) {
	t.Parallel()
	f := natlab.StartFake(t, natlab.FakeConfig{IPv6: true})
	six := testPCP6(f)
	h := loopbackHost()
	r, err := survey{newPCP(h), newNATPMP(h), newUPnP(h, systemSearcher()), six, nil, localAddrs, 9000}.run(t.Context())
	if err != nil || r.Diagnosis.Code != CodeNoGateway || !strings.Contains(r.Diagnosis.Summary, "over IPv6") || !strings.Contains(r.Diagnosis.Advice, "TCP port 9000 of ::1") {
		t.Errorf("%+v, %v", r.Diagnosis, err)
	}
}
