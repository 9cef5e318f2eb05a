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
	client   netip.Addr
	port     uint16
	lease    time.Duration // what is left of it, 0 = no end
	external uint16
}

// ours reports whether the entry forwards to us.
func (e entry) ours(internal netip.AddrPort) bool {
	return e.client == internal.Addr() && e.port == internal.Port()
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
func newAdd(internal netip.AddrPort, external uint16, description string, lease time.Duration) *addMapping {
	return &addMapping{
		NewExternalPort:           formatPort(external),
		NewProtocol:               "TCP",
		NewInternalPort:           formatPort(internal.Port()),
		NewInternalClient:         internal.Addr().String(),
		NewEnabled:                "1",
		NewPortMappingDescription: description,
		NewLeaseDuration:          strconv.FormatInt(int64(lease/time.Second), 10),
	}
}

// add is AddPortMapping: this port or an error.
func (s *service) add(ctx context.Context, internal netip.AddrPort, external uint16, description string, lease time.Duration) error {
	return s.call(ctx, "AddPortMapping", newAdd(internal, external, description, lease), nil)
}

// addAny is AddAnyPortMapping of WANIPConnection:2 §2.6.20: this port, or
// another the gateway chooses.
func (s *service) addAny(ctx context.Context, internal netip.AddrPort, external uint16, description string, lease time.Duration) (uint16, error) {
	var out struct{ NewReservedPort string }
	if err := s.call(ctx, "AddAnyPortMapping", newAdd(internal, external, description, lease), &out); err != nil {
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
		NewInternalPort   string
		NewInternalClient string
		NewLeaseDuration  string
	}
	if err := s.call(ctx, "GetSpecificPortMappingEntry", &mappingKey{NewExternalPort: formatPort(external), NewProtocol: "TCP"}, &out); err != nil {
		return entry{}, err
	}
	e := entry{external: external}
	port, err := strconv.ParseUint(strings.TrimSpace(out.NewInternalPort), 10, 16)
	if err != nil {
		return entry{}, malformed("mapping entry with port %.20q", out.NewInternalPort)
	}
	e.port = uint16(port)
	if e.client, err = netip.ParseAddr(strings.TrimSpace(out.NewInternalClient)); err != nil {
		return entry{}, malformed("mapping entry with client %.40q", out.NewInternalClient)
	}
	if seconds, err := strconv.ParseUint(strings.TrimSpace(out.NewLeaseDuration), 10, 32); err == nil {
		e.lease = time.Duration(seconds) * time.Second
	}
	return e, nil
}

// externalAddr is GetExternalIPAddress. That the call succeeds is no address
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
