package nat

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// pinhole is the Mapper for the firewall of a UPnP gateway (UPnP IGD
// WANIPv6FirewallControl:1): over IPv6 no port is forwarded, peers are let in.
// A gateway does so only for the address that asks, so each of ours asks from
// itself.
type pinhole struct {
	upnp *upnp // finds the gateway, over IPv6
}

func newPinhole(u *upnp) *pinhole { return &pinhole{u} }

const urnFirewall = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"

var firewallURNs = [...]string{urnFirewall}

// pinholeMaxLease is the longest that WANIPv6FirewallControl:1 §2.4 allows; 0 is
// not allowed.
const pinholeMaxLease = 86400 * time.Second

// The codes of WANIPv6FirewallControl:1 §2.6.
const (
	codePinholeSpace     = 701
	codeFirewallDisabled = 702
	codeInboundForbidden = 703
	codeNoSuchPinhole    = 704
)

var errInbound = errors.New("the gateway's firewall lets nobody open it")

// A pinholeToken is what a lease remembers.
type pinholeToken struct {
	service *service
	id      string // "" when the firewall is off and there is no pinhole
}

func (p *pinhole) Name() string { return p.upnp.Name() }

func (p *pinhole) Map(ctx context.Context, r Request) (Lease, error) {
	if err := checkInternal(r.Internal); err != nil {
		return Lease{}, p.fail("map", netip.Addr{}, err)
	}
	links, err := p.upnp.host.links(r.Internal.Addr())
	if err != nil {
		return Lease{}, p.fail("map", netip.Addr{}, err)
	}
	if s := p.remembered(links, r.Previous); s != nil {
		l, err := p.mapAt(ctx, s, r)
		if err == nil || !transport(err) || ctx.Err() != nil {
			return l, err
		}
		p.forget()
	}
	s, err := p.upnp.discover(ctx, "map", links)
	if err != nil {
		return Lease{}, err
	}
	return p.mapAt(ctx, s, r)
}

// remembered is upnp's, for a lease of ours.
func (p *pinhole) remembered(links []link, prev *Lease) *service {
	if prev == nil {
		return p.upnp.remembered(links, nil)
	}
	t, ok := prev.token.(pinholeToken)
	if !ok {
		return nil
	}
	return p.upnp.remembered(links, &Lease{token: upnpToken{service: t.service}})
}

// mapAt opens the firewall at one gateway, or keeps it open: AddPinhole for a
// pinhole there is renews it (WANIPv6FirewallControl:1 §2.5.3), and makes it
// again if the gateway was restarted.
func (p *pinhole) mapAt(ctx context.Context, s *service, r Request) (Lease, error) {
	hit := s.device.hit
	internal := netip.AddrPortFrom(hit.link.local, r.Internal.Port())
	life := r.Lifetime
	if life <= 0 {
		life = upnpLifetime
	}
	life = min(max(life.Truncate(time.Second), time.Second), pinholeMaxLease)

	asked := time.Now()
	enabled, allowed, err := s.firewallStatus(ctx)
	switch {
	case err != nil && codeOf(err) == 0: // a fault here is no verdict; silence is
		return Lease{}, p.fail("map", hit.device, err)
	case err == nil && enabled && !allowed:
		return Lease{}, p.fail("map", hit.device, &Error{Kind: Refused, Err: errInbound})
	}
	id := ""
	if err != nil || enabled {
		id, err = s.addPinhole(ctx, internal, life)
		if codeOf(err) == codeFirewallDisabled {
			id, err = "", nil
		}
		if err != nil {
			if ctx.Err() != nil && r.Previous == nil {
				p.undo(ctx, s, internal)
			}
			return Lease{}, p.fail("map", hit.device, pinholeError(err))
		}
	}
	p.upnp.mu.Lock()
	p.upnp.known = s
	p.upnp.mu.Unlock()
	return Lease{
		Internal: internal,
		External: internal,
		Lifetime: life,
		Via:      p.Name(),
		Gateway:  hit.device,
		Obtained: asked,
		reassert: upnpReassert,
		recheck:  heartbeat,
		token:    pinholeToken{s, id},
	}, nil
}

// undo closes what a call that was broken off may have opened: asking again
// tells which it is. The caller's context has ended.
func (p *pinhole) undo(ctx context.Context, s *service, internal netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if id, err := s.addPinhole(ctx, internal, time.Second); err == nil {
		_ = s.deletePinhole(ctx, id)
	}
}

// check asks after the pinhole. Whether anybody has come through does not matter.
func (p *pinhole) check(ctx context.Context, l Lease) (Lease, error) {
	t, ok := l.token.(pinholeToken)
	if !ok {
		return l, p.fail("check", l.Gateway, &Error{Kind: Unsupported, Err: errForeign})
	}
	var err error
	if t.id == "" {
		var enabled bool
		if enabled, _, err = t.service.firewallStatus(ctx); err == nil && enabled {
			return l, p.fail("check", l.Gateway, errStateLost)
		}
	} else if err = t.service.pinholePackets(ctx, t.id); codeOf(err) == codeNoSuchPinhole || codeOf(err) == codeNotAuthorized {
		// After a restart the number may be somebody else's.
		return l, p.fail("check", l.Gateway, errStateLost)
	}
	if err != nil && codeOf(err) == 0 {
		return l, p.fail("check", l.Gateway, err)
	}
	return l, nil
}

// Unmap closes the firewall again.
func (p *pinhole) Unmap(ctx context.Context, l Lease) error {
	t, ok := l.token.(pinholeToken)
	if !ok || l.Via != p.Name() {
		return p.fail("unmap", l.Gateway, &Error{Kind: Unsupported, Err: errForeign})
	}
	if t.id == "" {
		return nil
	}
	if err := t.service.deletePinhole(ctx, t.id); err != nil && codeOf(err) != codeNoSuchPinhole {
		return p.fail("unmap", l.Gateway, pinholeError(err))
	}
	return nil
}

// probeExternal is the read-only question of the race in Any. The outside
// address is our own.
func (p *pinhole) probeExternal(ctx context.Context, r Request) (netip.Addr, error) {
	links, err := p.upnp.host.links(r.Internal.Addr())
	if err != nil {
		return netip.Addr{}, p.fail("probe", netip.Addr{}, err)
	}
	s, err := p.upnp.discover(ctx, "probe", links)
	if err != nil {
		return netip.Addr{}, err
	}
	p.upnp.mu.Lock()
	p.upnp.known = s
	p.upnp.mu.Unlock()
	return s.device.hit.link.local, nil
}

func (p *pinhole) forget() { p.upnp.forget() }

func (p *pinhole) fail(op string, gateway netip.Addr, err error) *Error {
	return p.upnp.fail(op, gateway, err)
}

// pinholeError gives the codes of this service, which mean something else in
// others, their kinds.
func pinholeError(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	x := *e
	switch e.Code {
	case codePinholeSpace:
		x.Kind = NoResources
	case codeInboundForbidden:
		x.Kind = Refused
	}
	return &x
}

// firewallStatus is GetFirewallStatus (§2.5.1): whether the firewall is on, and
// whether it may be opened.
func (s *service) firewallStatus(ctx context.Context) (enabled, allowed bool, err error) {
	var out struct{ FirewallEnabled, InboundPinholeAllowed string }
	if err := s.call(ctx, "GetFirewallStatus", nil, &out); err != nil {
		return false, false, err
	}
	e, ok1 := parseUPnPBool(out.FirewallEnabled)
	a, ok2 := parseUPnPBool(out.InboundPinholeAllowed)
	if !ok1 || !ok2 {
		return false, false, malformed("firewall status %.20q, %.20q", out.FirewallEnabled, out.InboundPinholeAllowed)
	}
	return e, a, nil
}

// parseUPnPBool reads a boolean (UPnP Device Architecture 1.1 §2.5).
func parseUPnPBool(s string) (value, ok bool) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "true", "yes":
		return true, true
	case "0", "false", "no":
		return false, true
	}
	return false, false
}

// addPinhole is AddPinhole (§2.5.3) for every remote host and port, TCP.
func (s *service) addPinhole(ctx context.Context, internal netip.AddrPort, lease time.Duration) (id string, err error) {
	in := struct{ RemoteHost, RemotePort, InternalClient, InternalPort, Protocol, LeaseTime string }{
		RemotePort:     "0",
		InternalClient: internal.Addr().String(),
		InternalPort:   formatPort(internal.Port()),
		Protocol:       strconv.Itoa(protocolTCP),
		LeaseTime:      strconv.FormatInt(int64(lease/time.Second), 10),
	}
	var out struct{ UniqueID string }
	if err := s.call(ctx, "AddPinhole", &in, &out); err != nil {
		return "", err
	}
	id = strings.TrimSpace(out.UniqueID)
	if _, err := strconv.ParseUint(id, 10, 16); err != nil {
		return "", malformed("AddPinhole returned the id %.20q", id)
	}
	return id, nil
}

type pinholeID struct{ UniqueID string }

// deletePinhole is DeletePinhole (§2.5.5).
func (s *service) deletePinhole(ctx context.Context, id string) error {
	return s.call(ctx, "DeletePinhole", &pinholeID{id}, nil)
}

// pinholePackets is GetPinholePackets (§2.5.6), whose answer does not interest
// us; code 704 is that there is no such pinhole.
func (s *service) pinholePackets(ctx context.Context, id string) error {
	var out struct{ PinholePackets string }
	return s.call(ctx, "GetPinholePackets", &pinholeID{id}, &out)
}

// scoreFirewall is score for a firewall: one that is off, or can be opened, is
// as good as can be.
func (s *service) scoreFirewall(ctx context.Context) (score int, answered bool) {
	enabled, allowed, err := s.firewallStatus(ctx)
	switch {
	case err != nil:
		return scoreUnknown, codeOf(err) != 0
	case enabled && !allowed:
		return scoreDown, true
	}
	return scoreBest, true
}
