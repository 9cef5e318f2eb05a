package nat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

func startUPnP(t *testing.T, c natlab.FakeUPnP) (*natlab.Fake, *upnp) {
	t.Helper()
	c.Serve = true
	f := natlab.StartFake(t, natlab.FakeConfig{UPnP: c})
	return f, testUPnP(f)
}

func ipConnection(version int) []natlab.FakeService {
	return []natlab.FakeService{{URN: fmt.Sprintf("WANIPConnection:%d", version), External: "203.0.113.7"}}
}

// Each kind of service maps, renews with the same ports, and unmaps.
func TestUPnP(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		urn  string
		adds string // the action of the first mapping
	}{
		{"WANIPConnection:1", "AddPortMapping"},
		{"WANIPConnection:2", "AddAnyPortMapping"},
		{"WANPPPConnection:1", "AddPortMapping"},
		{urnOldIP, "AddPortMapping"},
		{urnOldPPP, "AddPortMapping"},
	} {
		t.Run(c.urn, func(t *testing.T) {
			t.Parallel()
			f, u := startUPnP(t, natlab.FakeUPnP{Services: []natlab.FakeService{{URN: c.urn, External: "203.0.113.7"}}})
			l, err := u.Map(t.Context(), request(9000))
			if err != nil {
				t.Fatal(err)
			}
			want := Lease{
				Internal: netip.AddrPortFrom(localIP, 9000), External: netip.AddrPortFrom(publicIP, 9000),
				Lifetime: time.Hour, Via: "upnp", Gateway: f.Addr, Obtained: l.Obtained, reassert: 20 * time.Minute, recheck: heartbeat, confirm: u.settle, token: l.token,
			}
			if l != want || l.token == nil || l.Obtained.IsZero() {
				t.Errorf("got %+v, want %+v", l, want)
			}
			if m, _ := f.Mapping(9000); m != (natlab.FakeMapping{Client: "127.0.0.1", Port: 9000, Lease: 3600, Description: "peerws 9000"}) {
				t.Errorf("the gateway has %+v", m)
			}
			if f.Count("soap "+c.adds) != 1 || f.Count("soap malformed") != 0 || f.Count("ssdp malformed") != 0 {
				t.Errorf("%s was called %d times; malformed: %d calls, %d searches", c.adds, f.Count("soap "+c.adds), f.Count("soap malformed"), f.Count("ssdp malformed"))
			}

			searched := f.Count("http " + natlab.DescriptionPath)
			r := request(9000)
			r.Previous = &l
			if l, err = u.Map(t.Context(), r); err != nil || l.External != want.External || l.Internal != want.Internal {
				t.Errorf("renewed: %+v, %v", l, err)
			}
			if got := f.Count("http " + natlab.DescriptionPath); got != searched {
				t.Errorf("a renewal read the description again")
			}
			if f.Mappings() != 1 {
				t.Errorf("%d mappings", f.Mappings())
			}

			if err := u.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
				t.Errorf("unmap: %v, %d left", err, f.Mappings())
			}
			if err := u.Unmap(t.Context(), l); err != nil {
				t.Errorf("a second unmap: %v", err)
			}
		})
	}
}

// What gateways do to a mapping request, and what comes of it.
func TestUPnPQuirks(t *testing.T) {
	t.Parallel()
	leases := func(code int, ok ...string) func(string, map[string]string) int {
		return func(action string, args map[string]string) int {
			if !strings.HasPrefix(action, "Add") {
				return 0
			}
			if slices.Contains(ok, args["NewLeaseDuration"]) {
				return 0
			}
			return code
		}
	}
	always := func(code int) func(string, map[string]string) int {
		return leases(code)
	}
	taken := natlab.FakeMapping{Client: "127.9.9.9", Port: 80, Lease: 60}
	for _, c := range []struct {
		name     string
		upnp     natlab.FakeUPnP
		external uint16 // wished, 0 = 9000
		table    map[uint16]natlab.FakeMapping
		kind     Kind // of failure, 0 = it maps
		code     int
		lifetime time.Duration
		port     uint16 // granted, 0 = 9000, 1 = an alternative
		adds     int    // calls that add, 0 = do not care
	}{
		{name: "725 only permanent leases", upnp: natlab.FakeUPnP{Fault: leases(725, "0")}, lifetime: 0, adds: 2},
		{name: "402 for 725", upnp: natlab.FakeUPnP{Fault: leases(402, "0")}, lifetime: 0, adds: 2},
		{name: "501 for 725", upnp: natlab.FakeUPnP{Fault: leases(501, "0")}, lifetime: 0, adds: 2},
		{name: "bare 500 for 725", upnp: natlab.FakeUPnP{Fault: leases(-500, "0")}, lifetime: 0, adds: 2},
		{name: "402 also for 0", upnp: natlab.FakeUPnP{Fault: leases(402, "604800")}, lifetime: 604800 * time.Second, adds: 3},
		{name: "725 on IGD2", upnp: natlab.FakeUPnP{Services: ipConnection(2), Fault: leases(725, "0")}, lifetime: 0, adds: 2},
		{name: "402 whatever is asked", upnp: natlab.FakeUPnP{Fault: always(402)}, kind: Refused, code: 402, adds: 9},
		{name: "501 whatever is asked", upnp: natlab.FakeUPnP{Fault: always(501)}, kind: Refused, code: 501, adds: 6},
		{name: "606 not authorized", upnp: natlab.FakeUPnP{Fault: always(606)}, kind: Refused, code: 606, adds: 3},
		{name: "727 only wildcard ports", upnp: natlab.FakeUPnP{Fault: always(727)}, kind: Refused, code: 727, adds: 3},
		{name: "728 table full", upnp: natlab.FakeUPnP{Fault: always(728)}, kind: NoResources, code: 728, adds: 1},
		{name: "729 other mechanism", upnp: natlab.FakeUPnP{Fault: always(729)}, kind: Conflict, code: 729, adds: 5},
		{name: "718 for ever", upnp: natlab.FakeUPnP{Fault: always(718)}, kind: Conflict, code: 718, adds: 5},
		{name: "718 somebody has it", table: map[uint16]natlab.FakeMapping{9000: taken}, lifetime: time.Hour, port: 1, adds: 1},
		{name: "another program of this machine has it", table: map[uint16]natlab.FakeMapping{9000: {Client: "127.0.0.1", Port: 9001, Lease: 60}}, lifetime: time.Hour, port: 1, adds: 1},
		{name: "another program of this machine has it, IGD2", upnp: natlab.FakeUPnP{Services: ipConnection(2)}, table: map[uint16]natlab.FakeMapping{9000: {Client: "127.0.0.1", Port: 9001, Lease: 60}}, lifetime: time.Hour, port: 1, adds: 1},
		{name: "nobody's entry", table: map[uint16]natlab.FakeMapping{9000: {Client: "0.0.0.0"}}, kind: Conflict, code: 718, adds: 5, upnp: natlab.FakeUPnP{Fault: always(718)}},
		{name: "taken, and it would overwrite", upnp: natlab.FakeUPnP{Overwrites: true}, table: map[uint16]natlab.FakeMapping{9000: taken}, lifetime: time.Hour, port: 1, adds: 1},
		{name: "718 from a gateway that cannot show entries", upnp: natlab.FakeUPnP{Fault: func(action string, args map[string]string) int {
			switch {
			case action == "GetSpecificPortMappingEntry":
				return 401
			case args["NewExternalPort"] == "9000" && action == "AddPortMapping":
				return 718
			}
			return 0
		}}, lifetime: time.Hour, port: 1, adds: 2},
		{name: "718 although it is ours", upnp: natlab.FakeUPnP{Fault: always(718)}, table: map[uint16]natlab.FakeMapping{9000: {Client: "127.0.0.1", Port: 9000, Lease: 1234}}, lifetime: 1234 * time.Second, adds: 1},
		{name: "718 and ours with another internal port", upnp: natlab.FakeUPnP{Fault: always(718)}, table: map[uint16]natlab.FakeMapping{9000: {Client: "127.0.0.1", Port: 9001}}, kind: Conflict, code: 718, adds: 4},
		{name: "724 same ports", external: 8080, upnp: natlab.FakeUPnP{Fault: func(action string, args map[string]string) int {
			if action == "AddPortMapping" && args["NewExternalPort"] != args["NewInternalPort"] {
				return 724
			}
			return 0
		}}, lifetime: time.Hour, adds: 2},
		{name: "724 although they are", upnp: natlab.FakeUPnP{Fault: always(724)}, kind: Refused, code: 724, adds: 1},
		{name: "maps only same ports, and does not say so", external: 8080, upnp: natlab.FakeUPnP{SamePorts: true}, lifetime: time.Hour, adds: 1},
		{name: "715 no wildcard for the sender", upnp: natlab.FakeUPnP{Fault: always(715)}, kind: Refused, code: 715, adds: 1},
		{name: "716 no wildcard for the port", upnp: natlab.FakeUPnP{Fault: always(716)}, kind: Refused, code: 716, adds: 3},
		{name: "726 only wildcard senders", upnp: natlab.FakeUPnP{Fault: always(726)}, kind: Refused, code: 726, adds: 1},
		{name: "725 whatever is asked", upnp: natlab.FakeUPnP{Fault: always(725)}, kind: Refused, code: 725, adds: 2},
		{name: "bare 500 whatever is asked", upnp: natlab.FakeUPnP{Fault: always(-500)}, kind: Refused, code: 500, adds: 6},
		{name: "718 because our internal port has another external one", upnp: natlab.FakeUPnP{Fault: always(718)}, table: map[uint16]natlab.FakeMapping{9001: {Client: "127.0.0.1", Port: 9000}}, kind: Conflict, code: 718, adds: 5},
		{name: "401 no such action", upnp: natlab.FakeUPnP{Fault: always(401)}, kind: Unsupported, code: 401},
		{name: "IGD2 without AddAnyPortMapping", upnp: natlab.FakeUPnP{Services: ipConnection(2), Fault: func(action string, _ map[string]string) int {
			if action == "AddAnyPortMapping" {
				return 602
			}
			return 0
		}}, lifetime: time.Hour, adds: 2},
		{name: "IGD2 with another port", upnp: natlab.FakeUPnP{Services: ipConnection(2), AnyPort: 1024}, lifetime: time.Hour, port: 1024, adds: 1},
		{name: "IGD2 and a taken port", upnp: natlab.FakeUPnP{Services: ipConnection(2)}, table: map[uint16]natlab.FakeMapping{9000: taken}, lifetime: time.Hour, port: 1, adds: 1},
		{name: "IGD2 refuses with 728", upnp: natlab.FakeUPnP{Services: ipConnection(2), Fault: func(action string, _ map[string]string) int {
			return map[string]int{"AddAnyPortMapping": 728, "AddPortMapping": 606}[action]
		}}, kind: Refused, code: 606, adds: 6},
		{name: "IGD2 reserves nonsense", upnp: natlab.FakeUPnP{Services: ipConnection(2), Body: func(action, body string) string {
			if action == "AddAnyPortMapping" {
				return strings.Replace(body, "9000<", "0<", 1)
			}
			return body
		}}, lifetime: time.Hour},
		{name: "says yes and keeps nothing", upnp: natlab.FakeUPnP{Forgetful: true}, kind: NoResources, code: 714},
		{name: "says yes and has another's", upnp: natlab.FakeUPnP{Forgetful: true}, table: map[uint16]natlab.FakeMapping{9000: {Client: "127.0.0.1", Port: 9001}}, kind: NoResources, code: 714},
		{name: "shows a shorter lease", upnp: natlab.FakeUPnP{Body: func(action, body string) string {
			return strings.Replace(body, "<NewLeaseDuration>3600<", "<NewLeaseDuration>120<", 1)
		}}, lifetime: 2 * time.Minute},
		{name: "shows a lease for none", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), Body: func(action, body string) string {
			return strings.Replace(body, "<NewLeaseDuration>0<", "<NewLeaseDuration>604800<", 1)
		}}, lifetime: 604800 * time.Second},
		{name: "cannot show entries", upnp: natlab.FakeUPnP{Fault: func(action string, _ map[string]string) int {
			if action == "GetSpecificPortMappingEntry" {
				return 401
			}
			return 0
		}}, lifetime: time.Hour},
		{name: "shows nonsense for entries", upnp: natlab.FakeUPnP{Body: func(action, body string) string {
			if action == "GetSpecificPortMappingEntry" {
				return "<html>"
			}
			return body
		}}, lifetime: time.Hour},
		{name: "faults in lower case", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), FaultBody: func(code int) (int, string) {
			return 500, strings.ToLower(natlab.SOAPFault(code))
		}}, lifetime: 0, adds: 2},
		{name: "faults with status 200", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), FaultBody: func(code int) (int, string) {
			return 200, natlab.SOAPFault(code)
		}}, lifetime: 0, adds: 2},
		{name: "faults with capital letters", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), FaultBody: func(code int) (int, string) {
			return 500, strings.NewReplacer("faultcode", "faultCode", "faultstring", "faultString").Replace(natlab.SOAPFault(code))
		}}, lifetime: 0, adds: 2},
		{name: "faults without a detail", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), FaultBody: func(code int) (int, string) {
			before, after, _ := strings.Cut(natlab.SOAPFault(code), "<detail>")
			_, after, _ = strings.Cut(after, "</detail>")
			return 500, before + after
		}}, lifetime: 0, adds: 2},
		{name: "faults as a web page", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), FaultBody: func(int) (int, string) { return 500, "<html><h1>Internal Server Error</h1>" }}, lifetime: 0, adds: 2},
		{name: "faults with another prefix", upnp: natlab.FakeUPnP{Fault: leases(725, "0"), FaultBody: func(code int) (int, string) {
			return 500, strings.NewReplacer("s:", "SOAP:", ":s=", ":SOAP=").Replace(natlab.SOAPFault(code))
		}}, lifetime: 0, adds: 2},
		{name: "answers in Latin-1", upnp: natlab.FakeUPnP{Body: func(_, body string) string {
			return strings.Replace(body, `<?xml version="1.0"?>`, "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><!-- \xe9 -->", 1)
		}}, lifetime: time.Hour},
		{name: "describes itself in GB2312", upnp: natlab.FakeUPnP{Description: "<?xml version=\"1.0\" encoding=\"GB2312\"?>" + describeXML("<friendlyName>\xc2\xb7\xd3\xc9</friendlyName>", urnIP1, "ctl/0")}, lifetime: time.Hour},
		{name: "URLBase wrong, control URL without a slash", upnp: natlab.FakeUPnP{Description: describeXML("<URLBase>http://192.168.99.1:80/</URLBase>", urnIP1, "ctl/0")}, lifetime: time.Hour},
		{name: "two devices and old types in one", upnp: natlab.FakeUPnP{Description: describeXML("", "urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3f", urnOldIP, "/nothing", urnIP1, "/ctl/0")}, lifetime: time.Hour},
		{name: "answers after a while", upnp: natlab.FakeUPnP{HTTP: func(http.ResponseWriter, *http.Request) bool { time.Sleep(70 * time.Millisecond); return false }}, lifetime: time.Hour, adds: 1},
		{name: "answers with nonsense", upnp: natlab.FakeUPnP{Body: func(_, body string) string { return "<html>" }}, kind: Malformed},
		{name: "answers with too much", upnp: natlab.FakeUPnP{Body: func(_, body string) string { return body + strings.Repeat(" ", 65<<10) }}, kind: Malformed},
		{name: "asks for a password", upnp: natlab.FakeUPnP{Fault: always(-401)}, kind: Refused, code: 401},
		{name: "control URL is dead", upnp: natlab.FakeUPnP{Fault: func(string, map[string]string) int { return -404 }}, kind: NoGateway, code: 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, u := startUPnP(t, c.upnp)
			for port, m := range c.table {
				f.SetMapping(port, m)
			}
			r := request(9000)
			r.External = c.external
			l, err := u.Map(t.Context(), r)
			if adds := f.Count("soap AddPortMapping") + f.Count("soap AddAnyPortMapping"); c.adds != 0 && adds != c.adds {
				t.Errorf("%d calls that add, want %d: %v", adds, c.adds, f.Args("AddPortMapping"))
			}
			for _, args := range append(f.Args("AddPortMapping"), f.Args("AddAnyPortMapping")...) {
				if args["NewExternalPort"] == "0" {
					t.Error("external port 0 was asked for")
				}
			}
			if c.kind != 0 {
				wantKind(t, err, c.kind, c.code)
				if n := f.Mappings(); n != len(c.table) {
					t.Errorf("%d entries left behind by a call that failed", n-len(c.table))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for port, m := range c.table {
				if got, _ := f.Mapping(port); got != m {
					t.Errorf("%+v became %+v", m, got)
				}
			}
			port := c.port
			switch port {
			case 0:
				port = 9000
			case 1:
				port = alternatives(l.Internal, f.Addr)[0]
			}
			if l.Lifetime != c.lifetime || l.External.Port() != port || l.Internal.Port() != 9000 {
				t.Errorf("got %+v, want lifetime %v, port %d", l, c.lifetime, port)
			}
		})
	}
}

// That it takes only permanent leases is remembered: the next mapping does
// not ask for another again.
func TestUPnPRemembersPermanent(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{Fault: func(action string, args map[string]string) int {
		if action == "AddPortMapping" && args["NewLeaseDuration"] != "0" {
			return 725
		}
		return 0
	}})
	for range 2 {
		if _, err := u.Map(t.Context(), request(9000)); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Count("soap AddPortMapping"); n != 3 {
		t.Errorf("%d calls, want 3", n)
	}
}

// What a gateway says of its outside address, and what follows.
func TestUPnPExternal(t *testing.T) {
	t.Parallel()
	refuse := func(action string, _ map[string]string) int {
		if strings.HasPrefix(action, "Add") {
			return 501
		}
		return 0
	}
	for _, c := range []struct {
		external, status string
		fault            func(string, map[string]string) int
		want             string // address of the lease
		kind             Kind
	}{
		{"203.0.113.7", "", nil, "203.0.113.7", 0},
		{" 203.0.113.7\n", "", nil, "203.0.113.7", 0},
		{"192.168.0.5", "", nil, "192.168.0.5", 0},
		{"100.64.3.2", "", nil, "100.64.3.2", 0},
		{"", "", nil, "invalid IP", 0},
		{"0.0.0.0", "", nil, "invalid IP", 0},
		{"127.0.0.1", "", nil, "invalid IP", 0},
		{"unknown", "", nil, "invalid IP", 0},
		{"203.0.113.7", "", refuse, "", Refused},
		{"192.168.0.5", "", refuse, "", AddressMismatch},
		{"", "Connected", refuse, "", AddressMismatch},
		{"", "Up", refuse, "", AddressMismatch},
		{"", "Disconnected", refuse, "", WANDown},
		{"0.0.0.0", " ", refuse, "", WANDown},
	} {
		t.Run(c.external+c.status, func(t *testing.T) {
			t.Parallel()
			_, u := startUPnP(t, natlab.FakeUPnP{Fault: c.fault, Services: []natlab.FakeService{{URN: "WANIPConnection:1", External: c.external, Status: c.status}}})
			l, err := u.Map(t.Context(), request(9000))
			if kindOf(err) != c.kind {
				t.Fatalf("%v, want kind %v", err, c.kind)
			}
			if err == nil && l.External.Addr().String() != c.want {
				t.Errorf("got %v, want %s", l.External.Addr(), c.want)
			}
		})
	}
}

// Of several WANs the one that works is used, wherever it stands; one that
// says nothing about itself comes before one that is down.
func TestUPnPChoice(t *testing.T) {
	t.Parallel()
	up := natlab.FakeService{URN: "WANPPPConnection:1", External: "203.0.113.7"}
	down := natlab.FakeService{URN: "WANIPConnection:2", Status: "Disconnected"}
	private := natlab.FakeService{URN: "WANIPConnection:1", External: "10.1.2.3"}
	mute := natlab.FakeService{URN: "WANIPConnection:1", Status: " "}
	for _, c := range []struct {
		name     string
		services []natlab.FakeService
		want     string
	}{
		{"down, private, up", []natlab.FakeService{down, private, up}, up.URN},
		{"up, down", []natlab.FakeService{up, down}, up.URN},
		{"down, private", []natlab.FakeService{down, private}, private.URN},
		{"down, mute", []natlab.FakeService{down, mute}, mute.URN},
		{"only down", []natlab.FakeService{down}, down.URN},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, u := startUPnP(t, natlab.FakeUPnP{Services: c.services})
			l, err := u.Map(t.Context(), request(9000))
			if err != nil {
				t.Fatal(err)
			}
			if got := l.token.(upnpToken).service.urn; !strings.HasSuffix(got, c.want) {
				t.Errorf("chose %s, want %s", got, c.want)
			}
		})
	}
}

// A restarted gateway has another HTTP port: one failed renewal is enough to
// find it again, keep the external port, and delete there.
func TestUPnPReboot(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{})
	r := request(9000)
	r.External = 9123
	l, err := u.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	f.Reboot(t)
	r = request(9000)
	r.Previous = &l
	if l, err = u.Map(t.Context(), r); err != nil || l.External.Port() != 9123 {
		t.Fatalf("after a reboot: %+v, %v", l, err)
	}
	saved, _ := f.Mapping(9123)
	f.Reboot(t)
	f.SetMapping(9123, saved) // some keep their table
	if err := u.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
		t.Errorf("unmap after a reboot: %v, %d left", err, f.Mappings())
	}
}

// Of several leases at a restarted gateway the first to be renewed finds it
// again, for all.
func TestUPnPRebootOfMany(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{})
	var leases []Lease
	for i := range 4 {
		l, err := u.Map(t.Context(), request(9000+uint16(i)))
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	f.Reboot(t)
	read := f.Count("http " + natlab.DescriptionPath)
	for i := range leases[:3] {
		r := request(leases[i].Internal.Port())
		r.Previous = &leases[i]
		l, err := u.Map(t.Context(), r)
		if err != nil || l.External.Port() != r.Internal.Port() {
			t.Errorf("%+v, %v", l, err)
		}
		leases[i] = l
	}
	for _, l := range leases { // the last of them knows only the old place
		if err := u.Unmap(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
	if n := f.Count("http "+natlab.DescriptionPath) - read; n != 1 || f.Mappings() != 0 {
		t.Errorf("the description was read %d times, %d mappings are left", n, f.Mappings())
	}
}

// A port that has gone to somebody else meanwhile is not deleted.
func TestUPnPUnmapNotOurs(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{})
	l, err := u.Map(t.Context(), request(9000))
	if err != nil {
		t.Fatal(err)
	}
	f.SetMapping(9000, natlab.FakeMapping{Client: "127.9.9.9", Port: 9000})
	if err := u.Unmap(t.Context(), l); err != nil || f.Mappings() != 1 || f.Count("soap DeletePortMapping") != 0 {
		t.Errorf("%v, %d mappings, %d deletes", err, f.Mappings(), f.Count("soap DeletePortMapping"))
	}
	wantKind(t, u.Unmap(t.Context(), Lease{Via: "upnp"}), Unsupported, 0)
}

// A call that is broken off takes back what it may have made.
func TestUPnPCancelUndoes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	f, u := startUPnP(t, natlab.FakeUPnP{Body: func(action, body string) string {
		if action == "AddPortMapping" {
			cancel()
			<-release
		}
		return body
	}})
	_, err := u.Map(ctx, request(9000))
	close(release)
	if !errors.Is(err, context.Canceled) || kindOf(err) != Canceled {
		t.Errorf("got %v", err)
	}
	if f.Mappings() != 0 || f.Count("soap DeletePortMapping") != 1 {
		t.Errorf("%d mappings left, %d deletes", f.Mappings(), f.Count("soap DeletePortMapping"))
	}
}

// Our own address changes. The old entry is deleted and made anew at the same
// port where the gateway allows it, which of the protocols only UPnP can; else
// another port is had, and the old entry ends with its lease.
func TestMovedKeepsPort(t *testing.T) {
	t.Parallel()
	old, now := netip.MustParseAddrPort("127.0.0.55:9000"), netip.MustParseAddrPort("127.0.0.56:9000")
	strict := natlab.FakeUPnP{Serve: true, Fault: func(action string, _ map[string]string) int {
		if action == "DeletePortMapping" {
			return 606
		}
		return 0
	}}
	for _, c := range []struct {
		name   string
		config natlab.FakeConfig
		mapper func(*natlab.Fake) Mapper
		port   uint16
		left   int // mappings
	}{
		{"UPnP", natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}}, func(f *natlab.Fake) Mapper { return testUPnP(f) }, 9000, 1},
		{"UPnP, strict", natlab.FakeConfig{UPnP: strict}, func(f *natlab.Fake) Mapper { return testUPnP(f) }, 0, 2},
		{"PCP", natlab.FakeConfig{PCP: goodPCP()}, func(f *natlab.Fake) Mapper { return testPCP(f) }, 9001, 2},
		{"NAT-PMP", natlab.FakeConfig{PMP: natlab.FakePMP{Serve: true, External: publicIP}}, func(f *natlab.Fake) Mapper { return testPMP(f) }, 9001, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := natlab.StartFake(t, c.config)
			m := c.mapper(f)
			l, err := m.Map(t.Context(), Request{Internal: old})
			if err != nil {
				t.Fatal(err)
			}
			want := c.port
			if want == 0 {
				want = alternatives(now, f.Addr)[0]
			}
			l, err = m.Map(t.Context(), Request{Internal: now, Previous: &l})
			if err != nil || l.Internal != now || l.External.Port() != want || f.Mappings() != c.left {
				t.Errorf("%+v, %v, %d mappings", l, err, f.Mappings())
			}
		})
	}

	// Somebody else's entry at that port is not touched.
	f := natlab.StartFake(t, natlab.FakeConfig{UPnP: natlab.FakeUPnP{Serve: true}})
	m := testUPnP(f)
	l, err := m.Map(t.Context(), Request{Internal: old})
	if err != nil {
		t.Fatal(err)
	}
	other := natlab.FakeMapping{Client: old.Addr().String(), Port: 80}
	f.SetMapping(9000, other)
	l, err = m.Map(t.Context(), Request{Internal: now, Previous: &l})
	if got, _ := f.Mapping(9000); err != nil || got != other || l.External.Port() == 9000 {
		t.Errorf("%+v, %v; %+v became %+v", l, err, other, got)
	}
}

func TestDescribeMapping(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"peerws", "peerws 9000"},
		{"", "peerws 9000"},
		{"żółć", "peerws 9000"},
		{"<b>chat & talk</b>", "bchat talkb 9000"},
		{"chat 9000", "chat 9000"},
		{"a very long description of a program", "a very long description of 9000"},
		{strings.Repeat("x", 40), strings.Repeat("x", 27) + " 9000"},
	} {
		if got := describeMapping(c.in, 9000); got != c.want || len(got) > 32 {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestAlternatives(t *testing.T) {
	in := netip.MustParseAddrPort("192.168.1.5:9000")
	gw := netip.MustParseAddr("192.168.1.1")
	a, b := alternatives(in, gw), alternatives(in, gw)
	if len(a) != maxAlternatives || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%v, then %v", a, b)
	}
	for i, p := range a {
		if p < 20000 || p > 59999 || i > 0 && p == a[i-1] {
			t.Errorf("%v", a)
		}
	}
	if fmt.Sprint(alternatives(netip.MustParseAddrPort("192.168.1.6:9000"), gw)) == fmt.Sprint(a) {
		t.Error("the same for another host")
	}
}

// onlyPort makes calls that add fail for the external port 9000.
func onlyPort(code int) func(string, map[string]string) int {
	return func(action string, args map[string]string) int {
		if strings.HasPrefix(action, "Add") && args["NewExternalPort"] == "9000" {
			return code
		}
		return 0
	}
}

// answersAs changes the bodies of one action.
func answersAs(action string, change func(body string) string) func(string, string) string {
	return func(a, body string) string {
		if a == action {
			return change(body)
		}
		return body
	}
}

// Gateways that forward and answer oddly: the mapping is known, and given back.
// Or the call fails and leaves nothing open.
func TestUPnPNothingStaysOpen(t *testing.T) {
	t.Parallel()
	becomes := func(s string) func(string) string { return func(string) string { return s } }
	replace := func(old, new string) func(string) string {
		return func(body string) string { return strings.Replace(body, old, new, 1) }
	}
	for _, c := range []struct {
		name string
		upnp natlab.FakeUPnP
		kind Kind // of the failure; 0 if it maps
		port uint16
	}{
		{name: "402 for this port", upnp: natlab.FakeUPnP{Fault: onlyPort(402)}, port: 1},
		{name: "500 for this port", upnp: natlab.FakeUPnP{Fault: onlyPort(-500)}, port: 1},
		{name: "501 for this port", upnp: natlab.FakeUPnP{Fault: onlyPort(501)}, port: 1},
		{name: "606 for this port", upnp: natlab.FakeUPnP{Fault: onlyPort(606)}, port: 1},
		{name: "716 for this port", upnp: natlab.FakeUPnP{Fault: onlyPort(716)}, port: 1},
		{name: "727 for this port", upnp: natlab.FakeUPnP{Fault: onlyPort(727)}, port: 1},
		{name: "fault -911 with status 200", upnp: natlab.FakeUPnP{Fault: func(action string, _ map[string]string) int {
			if strings.HasPrefix(action, "Add") {
				return 911
			}
			return 0
		}, FaultBody: func(int) (int, string) { return 200, natlab.SOAPFault(-911) }}, kind: Refused},
		{name: "empty answer", upnp: natlab.FakeUPnP{Body: answersAs("AddPortMapping", becomes(""))}, port: 9000},
		{name: "garbled answer", upnp: natlab.FakeUPnP{Body: answersAs("AddPortMapping", becomes("<html>OK"))}, port: 9000},
		{name: "cut-off answer", upnp: natlab.FakeUPnP{Body: answersAs("AddPortMapping", func(s string) string { return s[:len(s)/2] })}, port: 9000},
		{name: "garbled answers, and no entries to be seen", upnp: natlab.FakeUPnP{Body: func(action, body string) string {
			if action == "AddPortMapping" || strings.HasSuffix(action, "Entry") {
				return "<html>"
			}
			return body
		}}, kind: Malformed},
		{name: "another SOAP namespace", upnp: natlab.FakeUPnP{Body: func(_, body string) string {
			return strings.Replace(body, "http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2001/12/soap-envelope", 1)
		}}, port: 9000},
		{name: "no SOAP namespace", upnp: natlab.FakeUPnP{Body: func(_, body string) string {
			return strings.NewReplacer("s:Envelope", "Envelope", "s:Body", "Body", `xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" `, "").Replace(body)
		}}, port: 9000},
		{name: "control characters", upnp: natlab.FakeUPnP{Body: func(_, body string) string { return strings.Replace(body, "<s:Body>", "<s:Body>\x00\x07", 1) }}, port: 9000},
		{name: "client by name", upnp: natlab.FakeUPnP{Body: answersAs("GetSpecificPortMappingEntry", replace("<NewInternalClient>127.0.0.1<", "<NewInternalClient>laptop.lan<"))}, port: 9000},
		{name: "client with zeros", upnp: natlab.FakeUPnP{Body: answersAs("GetSpecificPortMappingEntry", replace("<NewInternalClient>127.0.0.1<", "<NewInternalClient>127.000.000.001<"))}, port: 9000},
		{name: "switched off", upnp: natlab.FakeUPnP{Body: answersAs("GetSpecificPortMappingEntry", replace("<NewEnabled>1<", "<NewEnabled>0<"))}, kind: Refused},
		{name: "an entry that is not found", upnp: natlab.FakeUPnP{Fault: func(action string, _ map[string]string) int {
			if action == "GetSpecificPortMappingEntry" {
				return 714
			}
			return 0
		}}, kind: NoResources},
		{name: "another port, without a word", upnp: natlab.FakeUPnP{SamePorts: true}, port: 8080},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, u := startUPnP(t, c.upnp)
			r := request(9000)
			if c.port == 8080 {
				r = request(8080)
				r.External = 9000
			}
			l, err := u.Map(t.Context(), r)
			if c.kind != 0 {
				wantKind(t, err, c.kind, codeOf(err))
				if n := f.Mappings(); n != 0 {
					t.Errorf("%v; %d entries left behind by a call that failed", err, n)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p := l.External.Port(); p != c.port && (c.port != 1 || p == 9000) || f.Mappings() != 1 {
				t.Errorf("mapped to %v, want port %d; %d entries", l.External, c.port, f.Mappings())
			}
			if l, err = u.check(t.Context(), l); err != nil {
				t.Error(err)
			}
			if err := u.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
				t.Errorf("unmap: %v; %d entries left", err, f.Mappings())
			}
		})
	}
}

func TestParseClient(t *testing.T) {
	for s, want := range map[string]string{
		"192.168.1.5": "192.168.1.5", " 192.168.1.5\n": "192.168.1.5", "192.168.001.005": "192.168.1.5", "127.000.000.001": "127.0.0.1", "010.000.000.008": "10.0.0.8", "::ffff:10.0.0.8": "10.0.0.8",
		"": "invalid IP", "laptop": "invalid IP", "laptop.lan": "invalid IP", "1.2.3": "invalid IP", "1..2.3": "invalid IP", "0256.1.1.1": "invalid IP",
	} {
		if got := parseClient(s); got.String() != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
