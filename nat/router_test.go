package nat

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/peerws/peerws/internal/natlab"
)

// What is said of no place in particular.
func diagnose(err error) Diagnosis    { return place{}.diagnose(err) }
func diagnose6(err error) Diagnosis   { return place{}.diagnose6(err) }
func diagnoseLease(l Lease) Diagnosis { return place{}.diagnoseLease(l) }

// deviceXML is a description of a router that has these elements.
func deviceXML(elements string) string {
	return strings.Replace(describeXML("", urnIP1, "/ctl/0"), "<device>", "<device>"+elements, 1)
}

const fritzXML = "<friendlyName>FRITZ!Box 7590</friendlyName><manufacturer>AVM Berlin</manufacturer><modelName>FRITZ!Box 7590</modelName><modelNumber>avm</modelNumber><presentationURL>http://fritz.box</presentationURL>"

func TestRouterOf(t *testing.T) {
	long := strings.Repeat("ä", 200)
	for _, c := range []struct{ name, xml, want string }{
		{"FRITZ!Box", fritzXML, "FRITZ!Box 7590 at http://192.168.1.1/"},
		{"nothing", "", "the router at http://192.168.1.1/"},
		{"empty", "<friendlyName> </friendlyName><presentationURL/>", "the router at http://192.168.1.1/"},
		{"general name", "<friendlyName>Internet Gateway Device</friendlyName><manufacturer>ASUSTeK</manufacturer><modelName>RT-AX88U</modelName><modelNumber>3.0.0.4</modelNumber>", "Internet Gateway Device (ASUSTeK RT-AX88U) at http://192.168.1.1/"},
		{"model in the number", "<manufacturer>D-Link</manufacturer><modelName>D-Link Router</modelName><modelNumber>DIR-825</modelNumber>", "D-Link Router DIR-825 at http://192.168.1.1/"},
		{"version in the number", "<friendlyName>Router</friendlyName><modelName>miniupnpd</modelName><modelNumber>1.2</modelNumber>", "Router (miniupnpd) at http://192.168.1.1/"},
		{"name has the model", "<friendlyName>ARCHER C7 (home)</friendlyName><modelName>Archer C7</modelName>", "ARCHER C7 (home) at http://192.168.1.1/"},
		{"control characters", "<friendlyName>\x1b[31mEvil\x00&#x9b;&#x202e;\n  Box\u200b\x7f</friendlyName>", "[31mEvil Box at http://192.168.1.1/"},
		{"Latin-1", "<friendlyName>B\xfcro</friendlyName>", "Büro at http://192.168.1.1/"},
		{"long", "<friendlyName>" + long + "</friendlyName>", strings.Repeat("ä", 32) + " at http://192.168.1.1/"},

		{"page", "<presentationURL>http://192.168.1.1:8080/index.html?a=b#c</presentationURL>", "the router at http://192.168.1.1:8080/index.html?a=b"},
		{"page over https", "<presentationURL>https://192.168.1.1</presentationURL>", "the router at https://192.168.1.1/"},
		{"page with zeros around", "<presentationURL>\n http://192.168.1.1/x \n</presentationURL>", "the router at http://192.168.1.1/x"},
		{"page, relative", "<presentationURL>/setup</presentationURL>", "the router at http://192.168.1.1:5000/setup"},
		{"page elsewhere", "<presentationURL>http://192.168.1.9/</presentationURL>", "the router at http://192.168.1.1/"},
		{"page outside", "<presentationURL>http://evil.example/</presentationURL>", "the router at http://192.168.1.1/"},
		{"page elsewhere, relative", "<presentationURL>//evil.example/</presentationURL>", "the router at http://192.168.1.1/"},
		{"page of somebody", "<presentationURL>http://192.168.1.1@evil.example/</presentationURL>", "the router at http://192.168.1.1/"},
		{"page with a name", "<presentationURL>http://evil.example@192.168.1.1/</presentationURL>", "the router at http://192.168.1.1/"},
		{"page as script", "<presentationURL>javascript:alert(1)</presentationURL>", "the router at http://192.168.1.1/"},
		{"page as file", "<presentationURL>file://192.168.1.1/etc/passwd</presentationURL>", "the router at http://192.168.1.1/"},
		{"page at a port that is none", "<presentationURL>http://192.168.1.1:99999/</presentationURL>", "the router at http://192.168.1.1/"},
		{"page, long", "<presentationURL>http://192.168.1.1/" + long + "</presentationURL>", "the router at http://192.168.1.1/"},
		{"page with control characters", "<presentationURL>http://192.168.1.1/?\x1b[0m&#x9b;</presentationURL>", "the router at http://192.168.1.1/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, err := parseDevice([]byte(deviceXML(c.xml)))
			if err != nil {
				t.Fatal(err)
			}
			if got := routerOf(root, testHit(t)).String(); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	if s := (Router{}).String(); s != "the router" {
		t.Error(s)
	}
}

// Browsers cannot open a link-local address, and can any other.
func TestRouterPage6(t *testing.T) {
	for gateway, want := range map[string]string{"fe80::1%eth0": "", "2001:db8::1": "http://[2001:db8::1]/"} {
		a := netip.MustParseAddr(gateway)
		u := &url.URL{Scheme: "http", Host: "[" + gateway + "]:5000", Path: "/desc.xml"}
		root, err := parseDevice([]byte(deviceXML("<presentationURL>http://192.168.1.1/</presentationURL>")))
		if err != nil {
			t.Fatal(err)
		}
		if got := routerOf(root, hit{url: u, device: a}).Page; got != want {
			t.Errorf("%s: %q, want %q", gateway, got, want)
		}
	}
}

// Of several descriptions of a gateway, that of the router counts; of ever new
// gateways, few are remembered.
func TestRouters(t *testing.T) {
	var r routers
	gateway := netip.MustParseAddr("192.168.1.1")
	if got := r.at(gateway).String(); got != "the router at http://192.168.1.1/" {
		t.Error(got)
	}
	r.note(gateway, Router{Name: "media server"}, false)
	r.note(gateway, Router{Name: "router"}, true)
	r.note(gateway, Router{Name: "printer"}, false)
	if got := r.at(gateway).Name; got != "router" {
		t.Error(got)
	}
	for a := gateway; len(r.seen) <= maxRouters && a != netip.MustParseAddr("192.168.2.0"); a = a.Next() {
		r.note(a, Router{}, true)
	}
	if len(r.seen) > maxRouters {
		t.Error(len(r.seen))
	}
}

// What a person is told to do names the router, its page, the rule to type, and
// the switch where the make is known.
func TestAdvice(t *testing.T) {
	fritz := place{
		router:  Router{Name: "FRITZ!Box 7590", Page: "http://192.168.178.1/"},
		gateway: netip.MustParseAddr("192.168.178.1"),
		local:   netip.MustParseAddrPort("192.168.178.23:9000"),
	}
	silent := fritz
	silent.router = Router{Page: "http://192.168.178.1/"}
	unknown := place{router: Router{Page: "http://192.168.1.1/"}, gateway: netip.MustParseAddr("192.168.1.1"), local: netip.MustParseAddrPort("192.168.1.5:80")}
	nowhere := place{local: netip.MustParseAddrPort("0.0.0.0:9000")}
	six := fritz
	six.local = netip.MustParseAddrPort("[2001:db8::5]:9000")
	const typed, permit, name = "TCP 9000 → 192.168.178.23 port 9000", "Permit independent port sharing", "FRITZ!Box 7590 at http://192.168.178.1/"
	said := func(advice string) Diagnosis { return Diagnosis{Advice: advice} }
	private := netip.MustParseAddr("192.168.3.4")
	for _, c := range []struct {
		name string
		d    Diagnosis
		want []string
		not  []string
	}{
		{"refused", fritz.diagnose(&Error{Kind: Refused}), []string{name, permit, "Internet > Permit Access > Port Sharing", typed}, []string{"1024"}},
		{"malformed", fritz.diagnose(&Error{Kind: Malformed}), []string{name, typed}, nil},
		{"no gateway", said(unknown.adviceSilent(false)), []string{"the router at http://192.168.1.1/", "TCP 80 → 192.168.1.5 port 80"}, []string{"FRITZ"}},
		{"no gateway, perhaps a FRITZ!Box", said(silent.adviceSilent(false)), []string{"the router at http://192.168.178.1/", "if it is a FRITZ!Box: ", permit, typed}, nil},
		{"a low port", unknown.diagnose(&Error{Kind: Refused}), []string{"1024", "TCP 80 → 192.168.1.5 port 80"}, nil},
		{"no place", said(nowhere.adviceSilent(false)), []string{"the settings of the router,", "TCP 9000 → this machine, port 9000"}, nil},
		{"no port", said(place{}.adviceSilent(false)), []string{"by hand. "}, []string{"→", "TCP 0", "port 0"}},
		{"in a container", said(unknown.adviceSilent(true)), []string{"docker run -p 80:80"}, []string{"UPnP"}},
		{"in a container, with a router", said(fritz.adviceSilent(true)), []string{name, typed}, []string{"docker"}},
		{"conflict", fritz.diagnose(&Error{Kind: Conflict}), []string{name}, nil},
		{"full", fritz.diagnose(&Error{Kind: NoResources}), []string{name}, nil},
		{"line down", fritz.diagnose(&Error{Kind: WANDown}), []string{"whether " + name + " is connected"}, nil},
		{"behind a router, mapped", fritz.diagnoseLease(Lease{Via: "upnp", Internal: fritz.local, External: netip.AddrPortFrom(private, 9001)}),
			[]string{"TCP 9001 → 192.168.3.4 port 9001"}, []string{typed}},
		{"behind a router, would be mapped", fritz.diagnoseInside(private, "But", 9000), []string{"TCP 9000 → 192.168.3.4 port 9000"}, []string{typed}},
		{"behind a router, refused", fritz.diagnose(&Error{Kind: AddressMismatch, Err: &outsideError{private}}),
			[]string{"In the router in front: TCP 9000 → 192.168.3.4 port 9000", "In " + name, typed}, nil},
		{"behind a router, its address unknown", fritz.diagnose(&Error{Kind: AddressMismatch}),
			[]string{"TCP 9000 → ADDRESS port 9000, where ADDRESS is the one that FRITZ!Box 7590 has there", "the provider's NAT", "In " + name, typed}, nil},
		{"behind the provider's NAT", fritz.diagnoseInside(netip.MustParseAddr("100.64.1.1"), "But", 9000), []string{"by hand does not help"}, []string{typed}},
		{"IPv6", six.diagnose6(&Error{Kind: NoGateway}), []string{name, permit, "TCP port 9000 of 2001:db8::5"}, []string{"→"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.d.Advice, want) {
				t.Errorf("%s: no %q in %q", c.name, want, c.d.Advice)
			}
		}
		for _, not := range c.not {
			if strings.Contains(c.d.Advice, not) {
				t.Errorf("%s: %q in %q", c.name, not, c.d.Advice)
			}
		}
		if c.d.Code != CodeWANDown && c.name != "no port" && c.name != "in a container" && !strings.Contains(c.d.Advice, "firewall") {
			t.Errorf("%s: nothing about this machine's firewall: %q", c.name, c.d.Advice)
		}
		t.Logf("%s: %s", c.name, c.d.Advice)
	}
}

// A make is told by any of the words a router has for itself, and each has words
// of its own.
func TestRouterMakes(t *testing.T) {
	for _, r := range []Router{{Name: "FRITZ!Box 7590"}, {Maker: "TP-Link"}, {Model: "NETGEAR R7000"}, {Maker: "ASUSTeK Computer Inc."}, {Maker: "MikroTik"}, {Name: "pfSense UPnP IGD"}} {
		if m := r.make(); m == nil || m.open == "" {
			t.Errorf("%v is not known", r)
		}
	}
	if m := (Router{Name: "OpenWrt router"}).make(); m != nil {
		t.Errorf("%+v", m)
	}
}

// The router's name finds its way from the description into the report of a Probe
// and the advice of a Manager, whatever the protocol that refused.
func TestRouterIsNamed(t *testing.T) {
	t.Parallel()
	no := natlab.FakeUPnP{Serve: true, Description: deviceXML(fritzXML), Fault: func(action string, _ map[string]string) int {
		if strings.HasPrefix(action, "Add") {
			return 606
		}
		return 0
	}}
	for _, c := range []struct {
		name string
		upnp natlab.FakeUPnP
		code Code
	}{
		{"refused", no, CodeRefused},
		{"no service", natlab.FakeUPnP{Serve: true, Description: strings.Replace(deviceXML(fritzXML), urnIP1, "urn:x", 1)}, CodeNoGateway},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, natlab.FakeConfig{UPnP: c.upnp})
			want := "FRITZ!Box 7590 at http://" + f.Addr.String() + "/"
			r, err := survey{testPCP(f), testPMP(f), testUPnP(f), no6, nil, localAddrs, 9000}.run(t.Context())
			if err != nil || r.Router.String() != want {
				t.Errorf("%v, %v, want %s", r.Router, err, want)
			}
			settled := make(chan Status, 8)
			m := NewManager(ManagerConfig{
				Mapper:   newAny(candidate{mapper: testPCP(f)}, candidate{mapper: testUPnP(f)}),
				Internal: netip.AddrPortFrom(anyIP, 9000),
				OnChange: func(s Status) {
					if s.Settled {
						settled <- s
					}
				},
			})
			defer m.Close()
			d := (<-settled).Diagnosis
			if d.Code != c.code || !strings.Contains(d.Advice, want) || !strings.Contains(d.Advice, "TCP 9000 → 127.") || !strings.Contains(d.Advice, "Permit independent port sharing") {
				t.Errorf("%+v", d)
			}
		})
	}
}
