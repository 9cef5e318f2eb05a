package nat

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/peerws/peerws/internal/netaddr"
)

// A Code is what a program wants to know of a Diagnosis, or of a listener's
// Reachability, in a word; "" is that nothing can be said yet.
type Code string

// The codes. CodeVerified and CodeUnverified are a listener's, which sees who
// comes; CodeReady is that of Probe.
const (
	CodeVerified   Code = "verified"              // peers outside can connect: a connection has come through an address
	CodeUnverified Code = "mapped-but-unverified" // the gateway says that it forwards the port, but somebody who was asked to could not connect
	CodePublic     Code = "public"                // our own address is a public one
	CodeMapped     Code = "mapped"                // the gateway forwards a port of its public address to us; not yet verified from outside
	CodeReady      Code = "ready"                 // the gateway opens ports, and nothing stands against it
	CodeNoGateway  Code = "no-gateway"            // no gateway answered in any protocol
	CodeRefused    Code = "refused"               // the gateway answered and does not want to
	CodeWANDown    Code = "wan-down"              // the gateway has no Internet address
	CodeDoubleNAT  Code = "double-nat"            // the gateway is itself behind another one
	CodeCGNAT      Code = "cgnat"                 // the gateway is behind the provider's carrier-grade NAT (RFC 6598)
	CodeVPN        Code = "vpn"                   // what we send leaves by another way than by the gateway that forwards, or could
	CodeConflict   Code = "conflict"              // no external port could be had: taken, or the gateway's table is full
	CodeNoNetwork  Code = "no-network"            // there is no way out of this machine
	CodeOff        Code = "off"                   // mapping is switched off
)

// A Diagnosis explains to a person whether peers outside can reach us.
type Diagnosis struct {
	// Code is for programs; "" if nothing can be said yet.
	Code Code

	// Summary is one sentence.
	Summary string

	// Advice says what to do about it, empty if nothing.
	Advice string

	// Detail is what the gateway said, for the curious, empty if nothing.
	Detail string
}

// The advice that several failures share.
const (
	adviceVPN = "If that is a VPN, switch it off or let this program past it (split tunnelling, or a route for its answers). If there are two networks, unplug one, or make the router that forwards the default route."
)

// adviceSilent is for where no router answered that could be asked. In a container
// there is none, unless one has said who it is.
func (p place) adviceSilent(container bool) string {
	if container && p.router.nameless() {
		publish := "-p"
		if port := p.local.Port(); port != 0 {
			publish = fmt.Sprintf("-p %d:%d", port, port)
		}
		return fmt.Sprintf("This looks like a container, whose network has no router to ask: publish the port on the host (docker run %s, or --network host), and forward it from there.", publish)
	}
	return fmt.Sprintf("Switch on UPnP, NAT-PMP or PCP in the settings of %s%s, or forward the port there by hand%s%s. Guest networks and Wi-Fi isolation block these protocols.",
		p.router, p.settings(), p.byHand(), p.rule()) + p.adviceHost()
}

// firstUserPort is the first that gateways do not take for a system service's (RFC 6335 §6).
const firstUserPort = 1024

// adviceRefused is for a router that answers and does not open the port.
func (p place) adviceRefused() string {
	s := fmt.Sprintf("Allow this machine to open ports in the settings of %s%s, or forward the port there by hand%s%s.", p.router, p.settings(), p.byHand(), p.rule())
	if port := p.local.Port(); port != 0 && port < firstUserPort {
		s = "Take a port of 1024 or above. Or: " + s
	}
	return s + p.adviceHost()
}

// adviceDouble is for a router behind another one. inner is its address there;
// invalid if it does not say, and then it may as well be behind the provider's
// NAT. external is the port that it forwards, 0 if it forwards none and has to be
// told to by hand.
func (p place) adviceDouble(inner netip.Addr, external uint16) string {
	port := p.local.Port()
	front := cmp.Or(external, port)
	s := "Put the router in front into bridge mode, or forward the port on both."
	if !inner.IsValid() {
		s = "If another router of yours is in front, put it into bridge mode, or forward the port on both."
	}
	switch {
	case port == 0:
	case inner.IsValid():
		s += fmt.Sprintf(" In the router in front: %s.", rule(front, inner, front))
	default:
		s += fmt.Sprintf(" In the router in front: %s, where ADDRESS is the one that %s has there.", rule(front, inner, front), p.router.title())
	}
	switch {
	case port == 0:
	case external != 0:
		s = strings.Replace(s, "on both.", "there, too.", 1)
	default:
		s += fmt.Sprintf(" In %s%s%s.", p.router, p.byHand(), p.rule())
	}
	if !inner.IsValid() {
		s += " If it is the provider's NAT, only the provider can help: ask for a public IPv4 address, or use IPv6."
	} else {
		s += " If the provider has no public IPv4 address for you, ask for one, or use IPv6."
	}
	return s + p.adviceHost()
}

// adviceHost is what this machine's own firewall has to do with advice about the
// router, behind a space.
func (p place) adviceHost() string {
	if p.local.Port() == 0 {
		return ""
	}
	return " " + alsoFirewall(p.local.Port())
}

func diagnosePublic(own netip.Addr, port uint16) Diagnosis {
	return Diagnosis{
		Code:    CodePublic,
		Summary: fmt.Sprintf("This machine has the public address %s itself, no router is in between.", own),
		Advice:  adviceFirewall(port),
	}
}

// diagnoseLease explains a mapping that was made.
func (p place) diagnoseLease(l Lease) Diagnosis {
	ext := l.External
	switch {
	case l.Via == "static":
		return Diagnosis{
			Code:    CodeMapped,
			Summary: fmt.Sprintf("Port %d was forwarded by hand; not yet verified from outside.", ext.Port()),
			Advice:  adviceFirewall(l.Internal.Port()),
		}
	case !ext.Addr().IsValid() && l.untold:
		return Diagnosis{
			Code:    CodeMapped,
			Summary: fmt.Sprintf("The router forwards port %d but does not tell its address outside; not yet verified from there.", ext.Port()),
			Advice:  fmt.Sprintf("Look the address up in the settings of %s, or on a page that shows it, and give peers that with port %d. ", p.router, ext.Port()) + adviceFirewall(l.Internal.Port()),
		}
	case !ext.Addr().IsValid() || ext.Addr().IsUnspecified():
		return Diagnosis{
			Code:    CodeWANDown,
			Summary: fmt.Sprintf("The router forwards port %d but has no Internet address of its own.", ext.Port()),
			Advice:  fmt.Sprintf("Look whether %s is connected to the Internet.", p.router),
		}
	case ext.Addr().Is6():
		return Diagnosis{
			Code:    CodeMapped,
			Summary: fmt.Sprintf("The router lets peers in to %s over IPv6 (%s); not yet verified from outside.", ext, l.Via),
			Advice:  adviceFirewall(l.Internal.Port()),
		}
	case !isGlobal(ext.Addr()):
		p.local = netip.AddrPortFrom(p.local.Addr(), l.Internal.Port())
		return p.diagnoseInside(ext.Addr(), "The port is mapped, but", ext.Port())
	}
	return Diagnosis{
		Code:    CodeMapped,
		Summary: fmt.Sprintf("The router forwards %s to us (%s); not yet verified from outside.", ext, l.Via),
		Advice:  adviceFirewall(l.Internal.Port()),
	}
}

// diagnoseOtherWay explains a mapping of which the answers go out from another
// address of ours.
func diagnoseOtherWay(l Lease, out netip.Addr) Diagnosis {
	return Diagnosis{
		Code:    CodeVPN,
		Summary: fmt.Sprintf("The router forwards %s to %s, but what this machine sends leaves from %s, by another way: peers get no answer.", l.External, l.Internal.Addr(), out),
		Advice:  adviceVPN,
	}
}

// diagnoseInside explains a router whose own address a is not a public one.
// external is the port of it that is forwarded to us, or would be if it were asked;
// 0 if there is none.
func (p place) diagnoseInside(a netip.Addr, what string, external uint16) Diagnosis {
	if netaddr.IsSharedNAT(a) {
		return Diagnosis{
			Code:    CodeCGNAT,
			Summary: fmt.Sprintf("%s the router's own address %s is behind the provider's carrier-grade NAT.", what, a),
			Advice:  "Forwarding a port by hand does not help. Ask the provider for a public IPv4 address, or use IPv6." + p.adviceHost(),
		}
	}
	return Diagnosis{
		Code:    CodeDoubleNAT,
		Summary: fmt.Sprintf("%s the router's own address %s is a private one: it is behind another router.", what, a),
		Advice:  p.adviceDouble(a, external),
	}
}

// diagnose explains why there is no mapping.
func (p place) diagnose(err error) Diagnosis {
	d := p.explain(err)
	if d.Code != CodeOff {
		d.Detail = errText(err)
	}
	return d
}

// diagnose6 explains why there is none for an IPv6 address of ours. Nothing
// needs to be forwarded there, so silence does not say that all is lost.
func (p place) diagnose6(err error) Diagnosis {
	d := p.diagnose(err)
	if d.Code == CodeNoGateway {
		d.Summary = "No router answered when asked to let peers in over IPv6; they get in only if its firewall is open."
		d.Advice = fmt.Sprintf("Switch on PCP or UPnP in the settings of %s%s, or let the port in there by hand%s%s.", p.router, p.settings(), p.byHand(), p.opening()) + p.adviceHost()
	}
	return d
}

// besideIPv6 adds to d, which is about IPv4, that peers get in over IPv6, if
// one of the leases says so and they do not get in over IPv4. It changes no
// Code: that of a machine without an IPv4 network excepted, d's stays true.
func besideIPv6(d Diagnosis, leases []Lease) Diagnosis {
	if d.Code == CodeMapped || d.Code == CodePublic {
		return d
	}
	for _, l := range leases {
		if a := l.External.Addr(); !a.Is6() || a.Is4In6() || !isGlobal(a) {
			continue
		}
		if d.Code == CodeNoNetwork {
			return place{}.diagnoseLease(l)
		}
		d.Summary = fmt.Sprintf("Over IPv6 the router lets peers in to %s (%s). Over IPv4 they do not get in: %s", l.External, l.Via, d.Summary)
		d.Advice = strings.TrimSpace("Give IPv6 peers that address. For the others: " + strings.ReplaceAll(d.Advice, ", or use IPv6.", "."))
		break
	}
	return d
}

func (p place) explain(err error) Diagnosis {
	if errors.Is(err, errOff) {
		return Diagnosis{
			Code:    CodeOff,
			Summary: "Port mapping is switched off.",
		}
	}
	if errors.Is(err, errLoopback) {
		return Diagnosis{
			Code:    CodeNoNetwork,
			Summary: "The listener is bound to loopback, which no other machine can reach.",
			Advice:  "Bind it to 0.0.0.0 or to an address of the local network.",
		}
	}
	switch {
	case errors.Is(err, errTunnel):
		return Diagnosis{
			Code:    CodeVPN,
			Summary: "What this machine sends leaves through a tunnel, a VPN as a rule, on which there is no router to ask.",
			Advice:  adviceVPN,
		}
	case errors.Is(err, errOtherWay):
		return Diagnosis{
			Code:    CodeVPN,
			Summary: "What this machine sends leaves by a rule of its own, that of a VPN as a rule, and not by a router that could be asked.",
			Advice:  adviceVPN,
		}
	}
	switch kindOf(err) {
	case NoNetwork:
		if errors.Is(err, errUnplugged) {
			return Diagnosis{
				Code:    CodeNoNetwork,
				Summary: "This machine's network is interrupted: the cable is out, or the Wi-Fi gone.",
				Advice:  "Connect it again; the port is then opened again by itself.",
			}
		}
		return Diagnosis{
			Code:    CodeNoNetwork,
			Summary: "This machine has no default route: it is not connected to a network that leads anywhere.",
			Advice:  "Connect it to a network.",
		}
	case Refused:
		d := Diagnosis{
			Code:    CodeRefused,
			Summary: "The router answered and refuses to forward the port.",
			Advice:  p.adviceRefused(),
		}
		if errors.Is(err, errPortsRefused) {
			d.Summary = "The router answered and refuses to forward this port and others."
			d.Advice += " Where the provider shares one address among several lines (MAP-E), or the router has a list of ports that may be opened, only those can be had: take one of them."
		}
		return d
	case Malformed:
		return Diagnosis{
			Code:    CodeRefused,
			Summary: "The router answered, but not in a way that could be understood.",
			Advice:  fmt.Sprintf("Update the firmware of %s, or forward the port there by hand%s%s.", p.router, p.byHand(), p.rule()) + p.adviceHost(),
		}
	case AddressMismatch:
		if errors.Is(err, errBetween) {
			return Diagnosis{
				Code:    CodeDoubleNAT,
				Summary: "Another router stands between this machine and the one that was asked for the port.",
				Advice:  "Put the router in front into bridge mode, or forward the port on both. If the provider has no public IPv4 address for you, ask for one, or use IPv6." + p.adviceHost(),
			}
		}
		if o, ok := errors.AsType[*outsideError](err); ok {
			return p.diagnoseInside(o.addr, "The router maps no port, because", 0)
		}
		return Diagnosis{
			Code:    CodeDoubleNAT,
			Summary: "The router is connected but has no public address: it is behind another router or the provider's NAT.",
			Advice:  p.adviceDouble(netip.Addr{}, 0),
		}
	case WANDown:
		return Diagnosis{
			Code:    CodeWANDown,
			Summary: "The router says it has no usable Internet address.",
			Advice:  fmt.Sprintf("Look whether %s is connected to the Internet. If it is, it is behind another router.", p.router),
		}
	case Conflict:
		return Diagnosis{
			Code:    CodeConflict,
			Summary: "The router has given the port, and those tried instead, to others.",
			Advice:  fmt.Sprintf("Take another port, or go to the settings of %s%s and remove old forwards.", p.router, p.byHand()) + p.adviceHost(),
		}
	case NoResources:
		return Diagnosis{
			Code:    CodeConflict,
			Summary: "The router has no room for another forwarded port.",
			Advice:  fmt.Sprintf("Go to the settings of %s%s and remove old forwards, or restart it.", p.router, p.byHand()) + p.adviceHost(),
		}
	}
	return Diagnosis{
		Code:    CodeNoGateway,
		Summary: "No router answered when asked to forward the port.",
		Advice:  p.adviceSilent(inContainer()),
	}
}

// inContainer reports whether this looks like a container, by the files that
// Docker and Podman put there.
func inContainer() bool {
	return exists("/.dockerenv") || exists("/run/.containerenv")
}
