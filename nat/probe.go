package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Report is what Probe found.
type Report struct {
	Addresses []netip.Addr // our own, IPv4 before IPv6, without loopback and link-local ones
	Gateways  []netip.Addr // the gateways that were asked: those for IPv4, the preferred one first, then those for IPv6
	Router    Router       // what the preferred one, in UPnP, says that it is

	// Protocols has PCP, NAT-PMP and UPnP over IPv4, in the order in which Any
	// prefers them, then what further gateways answered, then PCP and UPnP over
	// IPv6, for each address of ours that peers could reach.
	Protocols []ProtocolReport

	// Diagnosis says what can be said without a mapping. Its code may be
	// "ready" instead of "mapped": the gateway answers, and nothing stands
	// against it.
	Diagnosis Diagnosis
}

// A ProtocolReport is what was found out in one protocol.
type ProtocolReport struct {
	Name     string        // as Mapper.Name
	Internal netip.Addr    // the address of ours that was asked from
	Gateway  netip.Addr    // who answered, invalid if nobody did
	Version  string        // what it speaks: "2" in PCP, "0" in NAT-PMP, the service in UPnP, as in "WANIPConnection:1"
	External netip.Addr    // its outside address; invalid if it has none, and in PCP, which tells it only with a mapping
	Took     time.Duration // from the question to this
	Entries  []PortEntry   // of ProbePort, in UPnP: forwards of that external port, or to that port of ours
	Err      error         // why it cannot be used, nil if it can
}

// probeTimeout bounds a Probe.
const probeTimeout = 10 * time.Second

// Probe asks the gateway in every protocol what it speaks and where it stands,
// and changes nothing. It takes as long as the slowest protocol, a few seconds
// where one is met with silence. The error is that of ctx; whatever else goes
// wrong is part of the report.
func Probe(ctx context.Context) (Report, error) { return ProbePort(ctx, 0) }

// ProbePort is Probe, and also asks who has this TCP port already, which only
// UPnP can tell. Of a long table no more than the first lines are read.
func ProbePort(ctx context.Context, port uint16) (Report, error) {
	return Options{}.Probe(ctx, port)
}

// A survey is what a Probe asks.
type survey struct {
	pcp   *pcp
	pmp   *natPMP
	upnp  *upnp
	six   *pcp     // PCP over IPv6
	hole  *pinhole // UPnP over IPv6; nil not to ask
	addrs func() []netip.Addr
	port  uint16 // whose entries are wanted, 0 for none
}

// A question is one of a survey's: to some gateways, in one protocol.
type question struct {
	ask   func(context.Context, []link) ProtocolReport
	links []link
	quiet bool // silence need not be reported
}

// questions lists them all, and whom they go to.
func (s survey) questions(links []link) (all []question, gateways []netip.Addr) {
	for i := range links {
		for _, ask := range []func(context.Context, []link) ProtocolReport{s.askPCP, s.askNATPMP, s.askUPnP} {
			all = append(all, question{ask, links[i : i+1], i > 0})
		}
		gateways = append(gateways, links[i].gateway)
	}
	for i, a := range s.six.host.usable() {
		links, err := s.six.host.links(a)
		if err != nil {
			continue
		}
		all = append(all, question{s.askPCP6, links, i > 0})
		if s.hole != nil {
			all = append(all, question{s.askUPnP6, links, i > 0})
		}
		for _, l := range links {
			if !slices.Contains(gateways, l.gateway) {
				gateways = append(gateways, l.gateway)
			}
		}
	}
	return all, gateways
}

func (s survey) run(ctx context.Context) (Report, error) {
	r := Report{Addresses: s.addrs()}
	links, err := s.pcp.host.links(netip.IPv4Unspecified())
	var all []question
	all, r.Gateways = s.questions(links)
	answers := make([]ProtocolReport, len(all))
	call, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	start := time.Now()
	var wg sync.WaitGroup
	for i, q := range all {
		wg.Go(func() {
			p := q.ask(call, q.links)
			p.Took, p.Internal = time.Since(start), q.links[0].local
			if e, ok := p.Err.(*Error); ok {
				if p.Gateway = e.Gateway; transport(e) {
					p.Gateway = netip.Addr{} // who was asked, and has not answered
				}
			}
			if p.Err != nil && !p.Gateway.IsValid() {
				p.Version = ""
			}
			answers[i] = p
		})
	}
	wg.Wait()
	var six []string // what gateways open ports with over IPv6
	for i, p := range answers {
		if !all[i].quiet || p.Gateway.IsValid() {
			r.Protocols = append(r.Protocols, p)
		}
		if p.Internal.Is6() && p.Err == nil && !slices.Contains(six, p.Name) {
			six = append(six, p.Name)
		}
	}
	here := s.place()
	r.Router = here.router
	if own := s.pcp.host.ownAddr(netip.IPv4Unspecified()); err == nil || isGlobal(own) { // or on a point-to-point link
		r.Diagnosis = r.diagnose(own, here)
	} else if six := r.failures6(); kindOf(err) == NoNetwork && len(six) > 0 { // there is a network, of IPv6 alone
		r.Diagnosis = here.diagnose6(telling("any", "probe", six))
	} else {
		r.Diagnosis = here.diagnose(err)
	}
	if len(six) > 0 {
		r.Diagnosis = readyOverIPv6(r.Diagnosis, strings.Join(six, ", "), s.port)
	}
	return r, ctx.Err()
}

// readyOverIPv6 is d, which is about IPv4, for a machine whose gateway lets
// peers in to the port over IPv6, asked in the protocols named.
func readyOverIPv6(d Diagnosis, names string, port uint16) Diagnosis {
	switch d.Code {
	case CodeReady, CodePublic:
	case CodeNoNetwork, CodeNoGateway:
		return Diagnosis{Code: CodeReady, Summary: fmt.Sprintf("The router lets peers in over IPv6 when asked (%s); over IPv4 none answered.", names), Advice: adviceFirewall(port)}
	default:
		d.Summary = fmt.Sprintf("Over IPv6 the router lets peers in when asked (%s). Over IPv4 they do not get in: %s", names, d.Summary)
	}
	return d
}

// failures6 is why the gateway does not let peers in over IPv6.
func (r Report) failures6() (all []error) {
	for _, p := range r.Protocols {
		if p.Internal.Is6() && p.Err != nil {
			all = append(all, p.Err)
		}
	}
	return all
}

// place is that of the preferred gateway, which is one for IPv6 where there is none
// for IPv4.
func (s survey) place() place {
	p := s.upnp.place(netip.IPv4Unspecified())
	if own := s.six.host.usable(); !p.gateway.IsValid() && len(own) > 0 {
		if s.hole != nil {
			p = s.hole.place(own[0])
		} else {
			p = s.six.place(own[0])
		}
	}
	p.local = netip.AddrPortFrom(p.local.Addr(), s.port)
	return p
}

func (s survey) askPCP(ctx context.Context, links []link) ProtocolReport {
	l, _, err := s.pcp.find(ctx, "probe", links)
	return ProtocolReport{Name: s.pcp.Name(), Gateway: l.gateway, Version: "2", Err: err}
}

// askPCP6 is askPCP over IPv6, where nothing is translated.
func (s survey) askPCP6(ctx context.Context, links []link) ProtocolReport {
	l, _, err := s.six.find(ctx, "probe", links)
	p := ProtocolReport{Name: s.six.Name(), Gateway: l.gateway, Version: "2", Err: err}
	if err == nil {
		p.External = links[0].local
	}
	return p
}

// askUPnP6 looks for a firewall that can be opened.
func (s survey) askUPnP6(ctx context.Context, links []link) ProtocolReport {
	p := ProtocolReport{Name: s.hole.Name()}
	d, err := s.hole.upnp.discover(ctx, "probe", links)
	if err != nil {
		p.Err = err
		return p
	}
	p.Gateway, p.Version, p.External = d.device.hit.device, d.urn[strings.LastIndex(d.urn, ":service:")+len(":service:"):], links[0].local
	if enabled, allowed, err := d.firewallStatus(ctx); err == nil && enabled && !allowed {
		p.Err = s.hole.fail("probe", p.Gateway, &Error{Kind: Refused, Err: errors.New("the firewall may not be opened")})
	}
	return p
}

func (s survey) askNATPMP(ctx context.Context, links []link) ProtocolReport {
	l, addr, err := s.pmp.find(ctx, "probe", links)
	return ProtocolReport{Name: s.pmp.Name(), Gateway: l.gateway, Version: "0", External: addr, Err: err}
}

func (s survey) askUPnP(ctx context.Context, links []link) ProtocolReport {
	p := ProtocolReport{Name: s.upnp.Name()}
	d, err := s.upnp.discover(ctx, "probe", links)
	if err != nil {
		p.Err = err
		return p
	}
	d.mu.Lock()
	p.External = d.external
	d.mu.Unlock()
	p.Gateway, p.Version = d.device.hit.device, d.urn[strings.LastIndex(d.urn, ":service:")+len(":service:"):]
	if s.port != 0 {
		p.Entries = d.entriesOf(ctx, s.port)
	}
	if !p.External.IsValid() {
		kind := WANDown
		if up, _ := d.connected(ctx); up {
			kind = AddressMismatch
		}
		p.Err = s.upnp.fail("probe", p.Gateway, &Error{Kind: kind})
	}
	return p
}

// diagnose says what the answers over IPv4 come to, for the address of ours
// that faces the gateway, at the place the Probe is about.
func (r Report) diagnose(own netip.Addr, here place) Diagnosis {
	if isGlobal(own) {
		return diagnosePublic(own, here.local.Port())
	}
	var names []string
	var outside netip.Addr
	var verdicts, all []error
	for _, p := range r.Protocols {
		if p.Internal.Is6() {
			continue
		}
		if p.Err == nil {
			names = append(names, p.Name)
		} else {
			all = append(all, p.Err)
			if !transport(p.Err) {
				verdicts = append(verdicts, p.Err)
			}
		}
		if p.External.IsValid() && (!outside.IsValid() || isGlobal(p.External)) {
			outside = p.External
		}
	}
	switch {
	case isGlobal(outside):
		return Diagnosis{Code: CodeReady, Summary: fmt.Sprintf("The router opens ports when asked (%s), and its own address %s is a public one.", strings.Join(names, ", "), outside), Advice: adviceFirewall(here.local.Port())}
	case outside.IsValid():
		return here.diagnoseInside(outside, "The router opens ports when asked, but", here.local.Port())
	case len(verdicts) > 0:
		return here.diagnose(telling("any", "probe", verdicts))
	case len(names) > 0:
		return Diagnosis{Code: CodeReady, Summary: fmt.Sprintf("The router opens ports when asked (%s); whether its own address is a public one, only a mapping can tell.", strings.Join(names, ", ")), Advice: adviceFirewall(here.local.Port())}
	}
	return here.diagnose(telling("any", "probe", all))
}

// localAddrs lists the addresses of all interfaces that are up.
func localAddrs() []netip.Addr {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var all []netip.Addr
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.IsGlobalUnicast() {
					all = append(all, ip.Unmap())
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return all
}
