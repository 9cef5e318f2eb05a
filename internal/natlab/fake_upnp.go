package natlab

import (
	"encoding/xml"
	"fmt"
	"html"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// FakeUPnP scripts the UPnP side. With Serve false there is none.
type FakeUPnP struct {
	Serve    bool
	Services []FakeService // what the description lists; none is one WANIPConnection:1

	// Replies are the answers to each search, made from the place of the
	// description; nil is one good answer.
	Replies func(location string) []string

	// Targets are the search targets it answers to; none is all.
	Targets []string

	// Witness, when valid, is another address that answers in the fake's
	// place, as a stranger on the network would.
	Witness netip.Addr

	// OtherPort makes it answer searches from a port that was not asked.
	OtherPort bool

	// HTTP may answer a request itself, and says whether it did.
	HTTP func(w http.ResponseWriter, r *http.Request) bool

	// Description replaces the device description.
	Description string

	// Fault makes a call fail: with a UPnP error code, or, negative, with a
	// bare HTTP status. 0 lets it through.
	Fault func(action string, args map[string]string) int

	// FaultBody makes the status and body of a fault; nil is the standard's.
	FaultBody func(code int) (status int, body string)

	// Body changes the body of every good answer of the control URLs.
	Body func(action, body string) string

	// Forgetful says yes to every mapping and keeps none.
	Forgetful bool

	// Overwrites lets everybody take everybody's port.
	Overwrites bool

	// SamePorts makes every external port the internal one, without a word.
	SamePorts bool

	// AnyPort, when not 0, is the port AddAnyPortMapping grants.
	AnyPort uint16

	// FirewallOff and FirewallClosed are what GetFirewallStatus tells of a
	// WANIPv6FirewallControl:1.
	FirewallOff, FirewallClosed bool
}

// A FakeService is one WAN connection.
type FakeService struct {
	URN      string // "WANIPConnection:1" means the standard's URN for it
	Control  string // control URL as in the description; "" is /ctl/N
	External string // what GetExternalIPAddress says
	Status   string // what GetStatusInfo says; "" is Connected
}

func (s FakeService) urn() string {
	if strings.HasPrefix(s.URN, "urn:") {
		return s.URN
	}
	return "urn:schemas-upnp-org:service:" + s.URN
}

// DescriptionPath is where the device description is.
const DescriptionPath = "/desc.xml"

func (f *Fake) startUPnP(t testing.TB) {
	t.Helper()
	f.startHTTP(t)
	at := f.Addr
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	f.SSDPPort = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	answer := c
	w := f.config.UPnP.Witness
	if f.config.UPnP.OtherPort {
		w = f.Addr
	}
	if w.IsValid() {
		if answer, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w, 0))); err != nil {
			t.Fatal(err)
		}
		f.close = append(f.close, answer.Close)
	}
	f.close = append(f.close, c.Close)
	f.wg.Go(func() { f.serveSSDP(c, answer) })
}

// serveSSDP answers every search (UPnP Device Architecture 1.1 §1.3.3).
func (f *Fake) serveSSDP(c, answer *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		q := string(b[:n])
		if !strings.HasPrefix(q, "M-SEARCH * HTTP/1.1\r\n") || !strings.Contains(q, "MAN: \"ssdp:discover\"\r\n") || !strings.HasSuffix(q, "\r\n\r\n") {
			f.counted("ssdp malformed")
			continue
		}
		f.counted("ssdp")
		_, st, _ := strings.Cut(q, "\r\nST: ")
		st, _, _ = strings.Cut(st, "\r\n")
		if t := f.config.UPnP.Targets; t != nil && !slices.Contains(t, st) {
			continue
		}
		f.mu.Lock()
		location := fmt.Sprintf("http://%s%s", netip.AddrPortFrom(f.Addr, f.httpPort), DescriptionPath)
		f.mu.Unlock()
		replies := []string{"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: " + st + "\r\nUSN: uuid:fake::" + st + "\r\nEXT:\r\nSERVER: fake/1 UPnP/1.1 fake/1\r\nLOCATION: " + location + "\r\n\r\n"}
		if r := f.config.UPnP.Replies; r != nil {
			replies = r(location)
		}
		for _, r := range replies {
			_, _ = answer.WriteToUDPAddrPort([]byte(r), from)
		}
	}
}

// startHTTP starts the HTTP server, in place of the one there was.
func (f *Fake) startHTTP(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	old := f.server
	f.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	s := f.serveHTTP(t, http.HandlerFunc(f.handle))
	f.mu.Lock()
	f.server = s
	f.mu.Unlock()
}

func (f *Fake) handle(w http.ResponseWriter, r *http.Request) {
	f.counted("http " + r.URL.Path)
	u := f.config.UPnP
	if u.HTTP != nil && u.HTTP(w, r) {
		return
	}
	if r.Method == http.MethodGet && r.URL.Path == DescriptionPath {
		w.Header().Set("Content-Type", "text/xml")
		if u.Description != "" {
			_, _ = io.WriteString(w, u.Description)
		} else {
			_, _ = io.WriteString(w, f.description())
		}
		return
	}
	for i, s := range f.services() {
		if r.Method == http.MethodPost && r.URL.Path == s.path(i) {
			f.control(w, r, s)
			return
		}
	}
	http.NotFound(w, r)
}

func (f *Fake) services() []FakeService {
	if s := f.config.UPnP.Services; s != nil {
		return s
	}
	return []FakeService{{URN: "WANIPConnection:1", External: "203.0.113.7"}}
}

// path is the path of the control URL of the i-th service.
func (s FakeService) path(i int) string {
	c := s.Control
	if c == "" {
		return fmt.Sprintf("/ctl/%d", i)
	}
	if _, rest, ok := strings.Cut(c, "://"); ok {
		if _, p, ok := strings.Cut(rest, "/"); ok {
			c = p
		}
	}
	return "/" + strings.TrimPrefix(c, "/")
}

// description is a device description (§2.3) in the shape of an Internet
// gateway: a root, a WAN device in it, a WAN connection device in that.
func (f *Fake) description() string {
	var b strings.Builder
	for i, s := range f.services() {
		control := s.Control
		if control == "" {
			control = s.path(i)
		}
		fmt.Fprintf(&b, "<service><serviceType>%s</serviceType><serviceId>urn:upnp-org:serviceId:WAN%d</serviceId><controlURL>%s</controlURL><eventSubURL>/evt</eventSubURL><SCPDURL>/scpd.xml</SCPDURL></service>", s.urn(), i, html.EscapeString(control))
	}
	return `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>` +
		`<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>fake</friendlyName><UDN>uuid:fake</UDN>` +
		`<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>` +
		`<serviceList>` + b.String() + `</serviceList></device></deviceList></device></deviceList></device></root>`
}

// control answers a call (§3.2).
func (f *Fake) control(w http.ResponseWriter, r *http.Request, s FakeService) {
	header := r.Header.Get("SOAPAction")
	action, ok := strings.CutPrefix(header, `"`+s.urn()+"#")
	action, ok2 := strings.CutSuffix(action, `"`)
	if !ok || !ok2 || r.ContentLength <= 0 || len(r.TransferEncoding) > 0 {
		f.counted("soap malformed")
		http.Error(w, "bad SOAPAction or framing", http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return
	}
	args := soapArgs(string(body))
	f.mu.Lock()
	f.count["soap "+action]++
	f.args[action] = append(f.args[action], args)
	f.mu.Unlock()

	out, code := "", 0
	if fault := f.config.UPnP.Fault; fault != nil {
		code = fault(action, args)
	}
	if code == 0 {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		out, code = f.perform(s, action, args, client)
	}
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	switch {
	case code < 0:
		w.WriteHeader(-code)
	case code > 0:
		status, body := http.StatusInternalServerError, SOAPFault(code)
		if b := f.config.UPnP.FaultBody; b != nil {
			status, body = b(code)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	default:
		body := `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:` +
			action + `Response xmlns:u="` + s.urn() + `">` + out + `</u:` + action + `Response></s:Body></s:Envelope>`
		if b := f.config.UPnP.Body; b != nil {
			body = b(action, body)
		}
		_, _ = io.WriteString(w, body)
	}
}

// SOAPFault is the standard's body of a fault (§3.2.2).
func SOAPFault(code int) string {
	return fmt.Sprintf(`<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>scripted</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, code)
}

// perform does what an action wants, and returns its out arguments or an
// error code.
func (f *Fake) perform(s FakeService, action string, args map[string]string, client string) (out string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	port := func(name string) uint16 {
		n, _ := strconv.ParseUint(args[name], 10, 16)
		return uint16(n)
	}
	external := port("NewExternalPort")
	if strings.Contains(s.URN, "Firewall") {
		return f.performFirewall(action, args, client)
	}
	switch action {
	case "GetExternalIPAddress":
		if f.outside.IsValid() {
			s.External = f.outside.String()
		}
		return element("NewExternalIPAddress", s.External), 0
	case "GetStatusInfo":
		status := s.Status
		if status == "" {
			status = "Connected"
		}
		return element("NewConnectionStatus", status) + element("NewLastConnectionError", "ERROR_NONE") + element("NewUptime", "77"), 0
	case "GetSpecificPortMappingEntry":
		m, ok := f.table[external]
		if !ok {
			return "", 714
		}
		return element("NewInternalPort", fmt.Sprint(m.Port)) + element("NewInternalClient", m.Client) + element("NewEnabled", "1") +
			element("NewPortMappingDescription", m.Description) + element("NewLeaseDuration", fmt.Sprint(m.Lease)), 0
	case "GetGenericPortMappingEntry":
		index, err := strconv.Atoi(args["NewPortMappingIndex"])
		if ports := slices.Sorted(maps.Keys(f.table)); err == nil && index >= 0 && index < len(ports) {
			m := f.table[ports[index]]
			return element("NewRemoteHost", "") + element("NewExternalPort", fmt.Sprint(ports[index])) + element("NewProtocol", "TCP") +
				element("NewInternalPort", fmt.Sprint(m.Port)) + element("NewInternalClient", m.Client) + element("NewEnabled", "1") +
				element("NewPortMappingDescription", m.Description) + element("NewLeaseDuration", fmt.Sprint(m.Lease)), 0
		}
		return "", 713
	case "DeletePortMapping":
		if _, ok := f.table[external]; !ok {
			return "", 714
		}
		delete(f.table, external)
		return "", 0
	case "AddPortMapping", "AddAnyPortMapping":
		if action == "AddAnyPortMapping" && !strings.HasSuffix(s.URN, "WANIPConnection:2") {
			return "", 401
		}
		lease, err := strconv.ParseUint(args["NewLeaseDuration"], 10, 32)
		if remote, ok := args["NewRemoteHost"]; !ok || remote != "" || args["NewProtocol"] != "TCP" || external == 0 || err != nil || args["NewEnabled"] != "1" {
			return "", 402
		}
		m := FakeMapping{Client: args["NewInternalClient"], Port: port("NewInternalPort"), Lease: uint32(lease), Description: args["NewPortMappingDescription"]}
		if m.Client != client {
			return "", 606
		}
		if f.config.UPnP.SamePorts {
			external = m.Port
		}
		if action == "AddAnyPortMapping" && f.config.UPnP.AnyPort != 0 {
			external = f.config.UPnP.AnyPort
		}
		if old, ok := f.table[external]; ok && old.Client != m.Client && !f.config.UPnP.Overwrites {
			if action == "AddPortMapping" {
				return "", 718
			}
			for ok {
				external++
				_, ok = f.table[external]
			}
		}
		if !f.config.UPnP.Forgetful {
			f.table[external] = m
		}
		if action == "AddAnyPortMapping" {
			return element("NewReservedPort", fmt.Sprint(external)), 0
		}
		return "", 0
	}
	return "", 401
}

// performFirewall is perform for a WANIPv6FirewallControl:1. A pinhole's number is
// its port, also in the table. mu is held.
func (f *Fake) performFirewall(action string, args map[string]string, client string) (out string, code int) {
	number := func(name string, most uint64) uint64 {
		n, err := strconv.ParseUint(args[name], 10, 32)
		if err != nil || n > most {
			return 0
		}
		return n
	}
	bit := map[bool]string{false: "0", true: "1"}
	switch action {
	case "GetFirewallStatus":
		return element("FirewallEnabled", bit[!f.config.UPnP.FirewallOff]) + element("InboundPinholeAllowed", bit[!f.config.UPnP.FirewallClosed]), 0
	case "AddPinhole":
		port, lease := number("InternalPort", 65535), number("LeaseTime", 86400)
		remote, ok := args["RemoteHost"]
		switch {
		case f.config.UPnP.FirewallOff:
			return "", 702
		case f.config.UPnP.FirewallClosed:
			return "", 703
		case args["InternalClient"] != client:
			return "", 606
		case !ok || remote != "" || args["RemotePort"] != "0" || args["Protocol"] != "6" || port == 0 || lease == 0:
			return "", 402
		}
		f.table[uint16(port)] = FakeMapping{Client: client, Port: uint16(port), Lease: uint32(lease)}
		return element("UniqueID", fmt.Sprint(port)), 0
	case "GetPinholePackets", "DeletePinhole":
		id := uint16(number("UniqueID", 65535))
		hole, ok := f.table[id]
		switch {
		case !ok:
			return "", 704
		case hole.Client != client:
			return "", 606
		case action == "DeletePinhole":
			delete(f.table, id)
			return "", 0
		}
		return element("PinholePackets", "0"), 0
	}
	return "", 401
}

func element(name, value string) string {
	return "<" + name + ">" + html.EscapeString(value) + "</" + name + ">"
}

// soapArgs reads the arguments of a call: every element that has only text.
func soapArgs(body string) map[string]string {
	args := make(map[string]string)
	d := xml.NewDecoder(strings.NewReader(body))
	name, text := "", ""
	for {
		token, err := d.Token()
		if err != nil {
			return args
		}
		switch x := token.(type) {
		case xml.StartElement:
			name, text = x.Name.Local, ""
		case xml.CharData:
			text += string(x)
		case xml.EndElement:
			if x.Name.Local == name {
				args[name] = text
			}
			name = ""
		}
	}
}
