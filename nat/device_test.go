package nat

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func testHit(t testing.TB) hit {
	u, err := url.Parse("http://192.168.1.1:5000/dir/rootDesc.xml")
	if err != nil {
		t.Fatal(err)
	}
	gw := netip.MustParseAddr("192.168.1.1")
	return hit{url: u, device: gw, link: link{gateway: gw, local: netip.MustParseAddr("192.168.1.5")}}
}

// describeXML is a description with the given services as (type, control URL)
// pairs, and something at the top of the root element.
func describeXML(top string, services ...string) string {
	var b strings.Builder
	b.WriteString(`<root xmlns="urn:schemas-upnp-org:device-1-0">` + top + `<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device><deviceList><device><serviceList>`)
	for i := 0; i < len(services); i += 2 {
		b.WriteString("<service><serviceType>" + services[i] + "</serviceType><controlURL>" + services[i+1] + "</controlURL></service>")
	}
	b.WriteString(`</serviceList></device></deviceList></device></deviceList></device></root>`)
	return b.String()
}

func TestFindServices(t *testing.T) {
	at := "http://192.168.1.1:5000"
	for _, c := range []struct {
		name string
		xml  string
		want []string // URN's end and control URL; none is no service
	}{
		{"one", describeXML("", urnIP1, "/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"without leading slash", describeXML("", urnIP1, "ctl/IPConn"), []string{urnIP1 + " " + at + "/ctl/IPConn"}},
		{"absolute", describeXML("", urnIP1, at+"/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"absolute, another port", describeXML("", urnIP1, "http://192.168.1.1:49000/ctl"), []string{urnIP1 + " http://192.168.1.1:49000/ctl"}},
		{"spaces around", describeXML("", "\n "+urnIP1+" ", " /ctl "), []string{urnIP1 + " " + at + "/ctl"}},
		{"URLBase", describeXML("<URLBase>http://192.168.1.1:80/</URLBase>", urnIP1, "/ctl"), []string{urnIP1 + " http://192.168.1.1:80/ctl", urnIP1 + " " + at + "/ctl"}},
		{"URLBase elsewhere", describeXML("<URLBase>http://192.168.99.1:80/</URLBase>", urnIP1, "/ctl"), []string{urnIP1 + " http://192.168.1.1:80/ctl", urnIP1 + " " + at + "/ctl"}},
		{"URLBase of a name", describeXML("<URLBase>http://router.lan:5000/</URLBase>", urnIP1, "/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"control characters", describeXML("<x>\x00\x01 \x1f</x>", urnIP1, "/c\x00tl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"URLBase of nonsense", describeXML("<URLBase>:::</URLBase>", urnIP1, "/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"best first, once per URL", describeXML("", urnPPP1, "/ppp", urnIP1, "/ip", urnIP2, "/ip"), []string{urnIP2 + " " + at + "/ip", urnPPP1 + " " + at + "/ppp"}},
		{"only the old draft's", describeXML("", urnOldIP, "/ip"), []string{urnOldIP + " " + at + "/ip"}},
		{"several WANs in order", describeXML("", urnIP1, "/a", urnIP1, "/b"), []string{urnIP1 + " " + at + "/a", urnIP1 + " " + at + "/b"}},
		{"other namespace", strings.Replace(describeXML("", urnIP1, "/ctl"), "urn:schemas-upnp-org:device-1-0", "urn:whatever", 1), []string{urnIP1 + " " + at + "/ctl"}},
		{"no namespace", strings.Replace(describeXML("", urnIP1, "/ctl"), ` xmlns="urn:schemas-upnp-org:device-1-0"`, "", 1), []string{urnIP1 + " " + at + "/ctl"}},
		{"declared as GB2312", `<?xml version="1.0" encoding="GB2312"?>` + describeXML("<x>\xc4\xe3</x>", urnIP1, "/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"declared as utf8", "\xef\xbb\xbf<?xml version='1.0' encoding='utf8' ?>" + describeXML("", urnIP1, "/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"bare ampersand", describeXML("<x>Tom & Jerry</x>", urnIP1, "/ctl"), []string{urnIP1 + " " + at + "/ctl"}},
		{"no WAN service", describeXML("", "urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3f"), nil},
		{"no services", describeXML(""), nil},
		{"no control URL", describeXML("", urnIP1, ""), nil},
		{"control URL elsewhere", describeXML("", urnIP1, "http://192.168.1.9/ctl"), []string{urnIP1 + " http://192.168.1.1:80/ctl"}},
		{"control URL by name", describeXML("", urnIP1, "http://router.lan:49000/ctl"), []string{urnIP1 + " http://192.168.1.1:49000/ctl"}},
		{"control URL without scheme elsewhere", describeXML("", urnIP1, "//192.168.1.9/ctl"), []string{urnIP1 + " http://192.168.1.1:80/ctl"}},
		{"control URL with https", describeXML("", urnIP1, "https://192.168.1.1/ctl"), nil},
		{"control URL of nonsense", describeXML("", urnIP1, "http://%zz/"), nil},
		{"too many devices", describeXML("", urnIP1, "/ctl")[:0] + `<root><device>` + strings.Repeat("<deviceList><device>", 20) + "<serviceList><service><serviceType>" + urnIP1 + "</serviceType><controlURL>/x</controlURL></service></serviceList>" + strings.Repeat("</device></deviceList>", 20) + `</device></root>`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			root, err := parseDevice([]byte(c.xml))
			if err == nil {
				var services []*service
				services, err = findServices(root, testHit(t))
				for _, s := range services {
					got = append(got, s.urn+" "+s.control.String())
				}
			}
			if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
				t.Errorf("got %q, %v\nwant %q", got, err, c.want)
			}
		})
	}
}

func TestParseDeviceGarbage(t *testing.T) {
	for _, s := range []string{"", "garbage", "<html><body>no</body></html>", "<root", "<root><device></root>\x00"} {
		root, err := parseDevice([]byte(s))
		if err == nil {
			_, err = findServices(root, testHit(t))
		}
		if err == nil {
			t.Errorf("%q has services", s)
		}
	}
}

func TestParseFault(t *testing.T) {
	for _, c := range []struct {
		name, body string
		code       int
		text       string
	}{
		{"the standard's", `<s:Fault><faultcode>s:Client</faultcode><detail><UPnPError><errorCode>718</errorCode><errorDescription>ConflictInMappingEntry</errorDescription></UPnPError></detail></s:Fault>`, 718, "ConflictInMappingEntry"},
		{"capital C", `<SOAP:Fault><faultCode>x</faultCode><Detail><UPnPError><ErrorCode> 725 </ErrorCode></UPnPError></Detail></SOAP:Fault>`, 725, ""},
		{"lower case", `<s:fault><detail><upnperror><errorcode>402</errorcode></upnperror></detail></s:fault>`, 402, ""},
		{"prefixed", `<s:Fault><detail><u:UPnPError><u:errorCode xmlns:u="x">501</u:errorCode><u:errorDescription>Action` + "\x01\xff" + `Failed</u:errorDescription></u:UPnPError></detail></s:Fault>`, 501, "ActionFailed"},
		{"no detail", `<s:Fault><faultcode>s:Client</faultcode></s:Fault>`, 0, ""},
		{"no number", `<s:Fault><errorCode>many</errorCode></s:Fault>`, 0, ""},
		{"no fault", `<errorCode>718</errorCode>`, 0, ""},
		{"empty", ``, 0, ""},
		{"cut off", `<s:Fault><errorCode`, 0, ""},
		{"long", `<Fault><errorCode>606</errorCode><errorDescription>` + strings.Repeat("x", 200) + `</errorDescription></Fault>`, 606, strings.Repeat("x", 80)},
	} {
		if code, text := parseFault([]byte(c.body)); code != c.code || text != c.text {
			t.Errorf("%s: %d %q", c.name, code, text)
		}
	}
}

func FuzzDeviceXML(f *testing.F) {
	f.Add([]byte(describeXML("", urnIP1, "/ctl", urnIP2, "http://192.168.1.1:49000/ctl2")))
	f.Add([]byte(`<?xml version="1.0" encoding="GB2312"?>` + describeXML("<URLBase>http://192.168.1.9/</URLBase>\xc4", urnPPP1, "ctl")))
	f.Add([]byte(describeXML("", urnIP1, "http://169.254.169.254/ctl", urnIP1, "//evil/ctl", urnOldIP, "?x")))
	f.Add([]byte("<html>"))
	f.Add([]byte(`<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if code, text := parseFault(b); code < 0 || code > 999 || len(text) > 80 {
			t.Fatalf("fault %d %q", code, text)
		}
		root, err := parseDevice(b)
		if err != nil {
			return
		}
		h := testHit(t)
		services, err := findServices(root, h)
		if (err == nil) != (len(services) > 0) || len(services) > maxDevices*maxServices {
			t.Fatalf("%d services, %v", len(services), err)
		}
		for _, s := range services {
			// Whatever is written there, we speak to the device and nobody else.
			at, err := netip.ParseAddrPort(s.control.Host)
			if err != nil || at.Addr() != h.device || s.control.Scheme != "http" || s.control.User != nil {
				t.Fatalf("control URL %v", s.control.String())
			}
			if !slices.Contains(serviceURNs[:], s.urn) {
				t.Fatalf("service type %q", s.urn)
			}
		}
	})
}
