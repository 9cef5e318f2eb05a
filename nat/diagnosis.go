package nat

import (
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
	adviceEnable    = "Switch on UPnP, NAT-PMP or PCP in the router's settings, or forward the port there by hand. Guest networks and Wi-Fi isolation block these protocols."
	adviceContainer = "This looks like a container, whose network has no router to ask: publish the port on the host (docker run -p, or --network host), and forward it from there."
	adviceVPN       = "If that is a VPN, switch it off or let this program past it (split tunnelling, or a route for its answers). If there are two networks, unplug one, or make the router that forwards the default route."
	adviceDouble    = "Put the router in front into bridge mode, or forward the port on both; if the provider has no public IPv4 address for you, ask for one or use IPv6."
)

func diagnosePublic(own netip.Addr, port uint16) Diagnosis {
	return Diagnosis{
		Code:    CodePublic,
		Summary: fmt.Sprintf("This machine has the public address %s itself, no router is in between.", own),
		Advice:  adviceFirewall(port),
	}
}

// diagnoseLease explains a mapping that was made.
func diagnoseLease(l Lease) Diagnosis {
	ext := l.External
	switch {
	case l.Via == "static":
		return Diagnosis{
			Code:    CodeMapped,
			Summary: fmt.Sprintf("Port %d was forwarded by hand; not yet verified from outside.", ext.Port()),
			Advice:  adviceFirewall(l.Internal.Port()),
		}
	case !ext.Addr().IsValid() || ext.Addr().IsUnspecified():
		return Diagnosis{
			Code:    CodeWANDown,
			Summary: fmt.Sprintf("The router forwards port %d but has no Internet address of its own.", ext.Port()),
			Advice:  "Look whether the router is connected to the Internet.",
		}
	case ext.Addr().Is6():
		return Diagnosis{
			Code:    CodeMapped,
			Summary: fmt.Sprintf("The router lets peers in to %s over IPv6 (%s); not yet verified from outside.", ext, l.Via),
			Advice:  adviceFirewall(l.Internal.Port()),
		}
	case !isGlobal(ext.Addr()):
		return diagnoseInside(ext.Addr(), "The port is mapped, but")
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

// diagnoseInside explains a router whose own address a is no public one.
func diagnoseInside(a netip.Addr, what string) Diagnosis {
	if netaddr.IsSharedNAT(a) {
		return Diagnosis{
			Code:    CodeCGNAT,
			Summary: fmt.Sprintf("%s the router's own address %s is behind the provider's carrier-grade NAT.", what, a),
			Advice:  "Ask the provider for a public IPv4 address, or use IPv6.",
		}
	}
	return Diagnosis{
		Code:    CodeDoubleNAT,
		Summary: fmt.Sprintf("%s the router's own address %s is a private one: it is behind another router.", what, a),
		Advice:  adviceDouble,
	}
}

// diagnose explains why there is no mapping.
func diagnose(err error) Diagnosis {
	d := explain(err)
	if d.Code != CodeOff {
		d.Detail = errText(err)
	}
	return d
}

// diagnose6 explains why there is none for an IPv6 address of ours. Nothing
// needs to be forwarded there, so silence does not say that all is lost.
func diagnose6(err error) Diagnosis {
	d := diagnose(err)
	if d.Code == CodeNoGateway {
		d.Summary = "No router answered when asked to let peers in over IPv6; they get in only if its firewall is open."
		d.Advice = "Switch on PCP or UPnP in the router's settings, or allow connections to this machine and port in its IPv6 firewall."
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
			return diagnoseLease(l)
		}
		d.Summary += fmt.Sprintf(" Over IPv6 the router lets peers in to %s (%s).", l.External, l.Via)
		d.Advice = strings.TrimSpace("Give IPv6 peers that address. For the others: " + d.Advice)
		break
	}
	return d
}

func explain(err error) Diagnosis {
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
		return Diagnosis{
			Code:    CodeNoNetwork,
			Summary: "This machine has no default route: it is not connected to a network that leads anywhere.",
			Advice:  "Connect it to a network.",
		}
	case Refused:
		return Diagnosis{
			Code:    CodeRefused,
			Summary: "The router answered and refuses to forward the port.",
			Advice:  "Allow this machine and this port in the router's UPnP, NAT-PMP or PCP settings, take a port above 1024, or forward it by hand.",
		}
	case Malformed:
		return Diagnosis{
			Code:    CodeRefused,
			Summary: "The router answered, but not in a way that could be understood.",
			Advice:  "Update the router's firmware, or forward the port by hand.",
		}
	case AddressMismatch:
		if errors.Is(err, errBetween) {
			return Diagnosis{
				Code:    CodeDoubleNAT,
				Summary: "Another router stands between this machine and the one that was asked for the port.",
				Advice:  adviceDouble,
			}
		}
		if o, ok := errors.AsType[*outsideError](err); ok {
			return diagnoseInside(o.addr, "The router maps no port, because")
		}
		return Diagnosis{
			Code:    CodeDoubleNAT,
			Summary: "The router is connected but has no public address: it is behind another router or the provider's NAT.",
			Advice:  adviceDouble,
		}
	case WANDown:
		return Diagnosis{
			Code:    CodeWANDown,
			Summary: "The router says it has no usable Internet address.",
			Advice:  "Look whether the router is connected to the Internet; if it is, it is behind another router.",
		}
	case Conflict:
		return Diagnosis{
			Code:    CodeConflict,
			Summary: "The router has given the port, and those tried instead, to others.",
			Advice:  "Take another port, or remove old forwards in the router's settings.",
		}
	case NoResources:
		return Diagnosis{
			Code:    CodeConflict,
			Summary: "The router has no room for another forwarded port.",
			Advice:  "Remove old forwards in the router's settings, or restart it.",
		}
	}
	d := Diagnosis{
		Code:    CodeNoGateway,
		Summary: "No router answered when asked to forward the port.",
		Advice:  adviceEnable,
	}
	if inContainer() {
		d.Advice = adviceContainer
	}
	return d
}

// inContainer reports whether this looks like a container, by the files that
// Docker and Podman put there.
func inContainer() bool {
	return exists("/.dockerenv") || exists("/run/.containerenv")
}
