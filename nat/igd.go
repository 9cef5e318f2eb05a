package nat

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The actions of a WAN connection service (UPnP IGD WANIPConnection:2 §2.6,
// the same in :1 and in WANPPPConnection:1 but for AddAnyPortMapping).

// An entry is a line of the port mapping table.
type entry struct {
	client      netip.Addr // invalid if the gateway shows a name, as WANIPConnection:1 §2.2.18 lets it
	port        uint16
	lease       time.Duration // what is left of it, 0 = no end
	external    uint16
	description string
	disabled    bool // it is there, and forwards nothing
}

// ours reports whether the entry forwards to us, internal being where to, and
// description what we call it. Behind a name there may be anybody: then it is ours
// by what it is called.
func (e entry) ours(internal netip.AddrPort, description string) bool {
	return e.port == internal.Port() && (e.client == internal.Addr() || !e.client.IsValid() && likeDescription(e.description, description))
}

// likeDescription reports whether a gateway's table may show want as got: some
// add to it, some cut it.
func likeDescription(got, want string) bool {
	const least = 6 // bytes that are left of it
	return want != "" && (strings.Contains(got, want) || len(got) >= least && strings.HasPrefix(want, got))
}

// parseClient reads an InternalClient: an address, perhaps with zeros in front of
// its numbers, which all devices that write them mean as decimal ones. A name is
// an invalid address.
func parseClient(s string) netip.Addr {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap()
	}
	parts := strings.Split(s, ".")
	for i, p := range parts {
		if parts[i] = strings.TrimLeft(p, "0"); p != "" && parts[i] == "" {
			parts[i] = "0"
		}
	}
	a, _ := netip.ParseAddr(strings.Join(parts, "."))
	return a
}

type addMapping struct {
	NewRemoteHost             string
	NewExternalPort           string
	NewProtocol               string
	NewInternalPort           string
	NewInternalClient         string
	NewEnabled                string
	NewPortMappingDescription string
	NewLeaseDuration          string
}

type mappingKey struct {
	NewRemoteHost   string
	NewExternalPort string
	NewProtocol     string
}

// newAdd fills in what is the same for both ways to add: every remote host
// (some devices want the element there and empty), TCP in upper case (some
// know no other), and never port 0, which could mean all of them.
func newAdd(w wanted) *addMapping {
	return &addMapping{
		NewExternalPort:           formatPort(w.external),
		NewProtocol:               "TCP",
		NewInternalPort:           formatPort(w.internal.Port()),
		NewInternalClient:         w.internal.Addr().String(),
		NewEnabled:                "1",
		NewPortMappingDescription: w.description,
		NewLeaseDuration:          strconv.FormatInt(int64(w.lease/time.Second), 10),
	}
}

// add is AddPortMapping: this port or an error.
func (s *service) add(ctx context.Context, w wanted) error {
	return s.call(ctx, "AddPortMapping", newAdd(w), nil)
}

// addAny is AddAnyPortMapping of WANIPConnection:2 §2.6.20: this port, or
// another the gateway chooses.
func (s *service) addAny(ctx context.Context, w wanted) (uint16, error) {
	var out struct{ NewReservedPort string }
	if err := s.call(ctx, "AddAnyPortMapping", newAdd(w), &out); err != nil {
		return 0, err
	}
	port, err := strconv.ParseUint(strings.TrimSpace(out.NewReservedPort), 10, 16)
	if err != nil || port == 0 {
		return 0, malformed("AddAnyPortMapping reserved port %.20q", out.NewReservedPort)
	}
	return uint16(port), nil
}

// remove is DeletePortMapping.
func (s *service) remove(ctx context.Context, external uint16) error {
	return s.call(ctx, "DeletePortMapping", &mappingKey{NewExternalPort: formatPort(external), NewProtocol: "TCP"}, nil)
}

// entry is GetSpecificPortMappingEntry: who has this external port. Code 714
// is nobody.
func (s *service) entry(ctx context.Context, external uint16) (entry, error) {
	var out struct {
		NewInternalPort           string
		NewInternalClient         string
		NewEnabled                string
		NewPortMappingDescription string
		NewLeaseDuration          string
	}
	if err := s.call(ctx, "GetSpecificPortMappingEntry", &mappingKey{NewExternalPort: formatPort(external), NewProtocol: "TCP"}, &out); err != nil {
		return entry{}, err
	}
	e := entry{external: external, description: strings.TrimSpace(out.NewPortMappingDescription), disabled: strings.TrimSpace(out.NewEnabled) == "0"}
	port, err := strconv.ParseUint(strings.TrimSpace(out.NewInternalPort), 10, 16)
	if err != nil {
		return entry{}, malformed("mapping entry with port %.20q", out.NewInternalPort)
	}
	e.port = uint16(port)
	e.client = parseClient(out.NewInternalClient)
	if seconds, err := strconv.ParseUint(strings.TrimSpace(out.NewLeaseDuration), 10, 32); err == nil {
		e.lease = time.Duration(seconds) * time.Second
	}
	return e, nil
}

// externalAddr is GetExternalIPAddress. That the call succeeds does not make it an address
// yet: "", 0.0.0.0 and loopback are what gateways say that have none.
func (s *service) externalAddr(ctx context.Context) (netip.Addr, error) {
	var out struct{ NewExternalIPAddress string }
	if err := s.call(ctx, "GetExternalIPAddress", nil, &out); err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(strings.TrimSpace(out.NewExternalIPAddress))
	if a = a.Unmap(); err != nil || !a.Is4() || a.IsUnspecified() || a.IsLoopback() {
		a = netip.Addr{}
	}
	s.mu.Lock()
	s.external, s.asked = a, time.Now()
	s.mu.Unlock()
	return a, nil
}

// connected is GetStatusInfo: whether the connection is up, and whether that
// is known at all.
func (s *service) connected(ctx context.Context) (up, known bool) {
	var out struct{ NewConnectionStatus string }
	if err := s.call(ctx, "GetStatusInfo", nil, &out); err != nil {
		return false, false
	}
	switch strings.ToLower(strings.TrimSpace(out.NewConnectionStatus)) {
	case "connected", "up":
		return true, true
	case "":
		return false, false
	}
	return false, true
}

// score says how useful a service is: a device may list a WAN that is down
// before the one that works. A service that does not answer about itself is
// not excluded, only last but one; answered says whether it did, be it with a
// fault.
func (s *service) score(ctx context.Context, alone bool) (score int, answered bool) {
	if s.urn == urnFirewall {
		return s.scoreFirewall(ctx)
	}
	a, err := s.externalAddr(ctx)
	answered = err == nil || codeOf(err) != 0
	if alone && err == nil {
		// Its status would decide nothing.
		if isGlobal(a) {
			return scoreBest, true
		}
		return scorePrivate, true
	}
	up, known := s.connected(ctx)
	answered = answered || known
	switch {
	case known && !up:
		return scoreDown, answered
	case isGlobal(a):
		return scoreBest, answered
	case known && a.IsValid():
		return scorePrivate, answered
	}
	return scoreUnknown, answered
}

const (
	scoreDown = iota + 1
	scoreUnknown
	scorePrivate
	scoreBest
)

func formatPort(p uint16) string { return strconv.Itoa(int(p)) }
