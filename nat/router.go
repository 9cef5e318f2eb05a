package nat

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/huin/goupnp"
)

// Which router it is that a person has to go to, and what to do there.

// A Router is what the gateway says of itself in its UPnP description, for a
// person who looks for it and its settings. It is the gateway's own word, made
// fit to be shown: of bounded length, without control characters. The zero value
// is a router of which nothing is known.
type Router struct {
	Name  string // what it is called, as in "FRITZ!Box 7590"; "" if it does not say
	Maker string // who made it, "" if it does not say
	Model string // the model, with its number where the name has none; "" if it does not say

	// Page is where its settings are, as in "http://192.168.178.1/": the page it
	// names if that is at its own address, else the root there. It is "" if no
	// browser could open that, as with a link-local IPv6 address.
	Page string
}

// String is such as "FRITZ!Box 7590 at http://192.168.178.1/", and "the router"
// for the zero value.
func (r Router) String() string {
	s, kind := r.Name, r.Model
	if r.Maker != "" && !contains(r.Model, r.Maker) {
		kind = strings.TrimSpace(r.Maker + " " + r.Model)
	}
	switch {
	case r.nameless():
		s = "the router"
	case s == "":
		s = kind
	case r.Model != "" && !contains(s, r.Model):
		s += " (" + kind + ")"
	}
	if r.Page != "" {
		s += " at " + r.Page
	}
	return s
}

// title is String without the page.
func (r Router) title() string {
	r.Page = ""
	return r.String()
}

// nameless reports whether it has not said what it is.
func (r Router) nameless() bool { return r.Name == "" && r.Model == "" }

// contains reports whether s has part in it, however it is written.
func contains(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

// maxRouterPage is how long, in bytes, a URL in a description may be that is shown.
const maxRouterPage = 128

// routerOf is what a description says of the device at h.
func routerOf(root *goupnp.RootDevice, h hit) Router {
	d := &root.Device
	r := Router{Name: shown(d.FriendlyName), Maker: shown(d.Manufacturer), Model: shown(d.ModelName)}
	if n := shown(d.ModelNumber); isModelNumber(n) && !strings.ContainsFunc(r.Model, unicode.IsDigit) {
		r.Model = strings.TrimSpace(r.Model + " " + n)
	}
	r.Page = pageAt(h.device)
	if p, ok := pageOf(d.PresentationURL.Str, h); ok {
		r.Page = p
	}
	return r
}

// isModelNumber reports whether s can be one: many write the version of their
// software there.
func isModelNumber(s string) bool {
	return strings.ContainsFunc(s, unicode.IsDigit) && strings.ContainsFunc(s, unicode.IsUpper)
}

// shown is s as it may be shown to a person: one short line.
func shown(s string) string {
	return strings.TrimSpace(printable(strings.Join(strings.Fields(s), " ")))
}

// pageOf is the page of a description's presentationURL (UPnP Device Architecture
// 1.1 §2.3), if it is one of the device's own.
func pageOf(s string, h hit) (page string, ok bool) {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > maxRouterPage || isLinkLocal6(h.device) {
		return "", false
	}
	ref, err := url.Parse(s)
	if err != nil {
		return "", false
	}
	u := h.url.ResolveReference(ref)
	if a, err := netip.ParseAddr(u.Hostname()); err != nil || a.Unmap() != h.device || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return "", false
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", false
		}
	}
	if u.Fragment, u.RawFragment = "", ""; u.Path == "" {
		u.Path = "/"
	}
	page = u.String()
	plain := !strings.ContainsFunc(page, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	return page, plain && len(page) <= maxRouterPage
}

// pageAt is where a gateway has its settings, if it does not say.
func pageAt(gateway netip.Addr) string {
	if !gateway.IsValid() || isLinkLocal6(gateway) {
		return ""
	}
	if gateway.Is6() {
		return "http://[" + gateway.String() + "]/"
	}
	return "http://" + gateway.String() + "/"
}

// isLinkLocal6 reports whether browsers have no way to write a.
func isLinkLocal6(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// maxRouters is how many gateways are remembered, long after this machine has
// left their networks.
const maxRouters = 8

// routers remembers what gateways said of themselves.
type routers struct {
	mu   sync.Mutex
	seen map[netip.Addr]seenRouter
}

type seenRouter struct {
	Router
	forwards bool // it was in a description that can be asked to forward
}

// note takes down what a description of the gateway says. A gateway may have
// several, of which one is that of a router.
func (r *routers) note(gateway netip.Addr, x Router, forwards bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.seen[gateway]; ok && old.forwards && !forwards {
		return
	}
	if r.seen == nil || len(r.seen) >= maxRouters {
		r.seen = make(map[netip.Addr]seenRouter)
	}
	r.seen[gateway] = seenRouter{x, forwards}
}

// at is what is known of the gateway: its page at least.
func (r *routers) at(gateway netip.Addr) Router {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x, ok := r.seen[gateway]; ok {
		return x.Router
	}
	return Router{Page: pageAt(gateway)}
}

// A place is where a diagnosis is about: what a person needs to know to act. Its
// zero value is one of which nothing is known.
type place struct {
	router  Router
	gateway netip.Addr     // of router
	local   netip.AddrPort // where peers are to be forwarded to; its address may be unspecified
}

// A placer is a Mapper that knows, without asking anybody, the gateway of a
// listener bound to bound.
type placer interface {
	place(bound netip.Addr) place
}

// place is that of the keeper's mapping.
func (k *keeper) place() place {
	var p place
	if m, ok := k.m.c.Mapper.(placer); ok {
		p = m.place(k.internal.Addr())
	}
	if a := k.internal.Addr(); !a.IsUnspecified() {
		p.local = netip.AddrPortFrom(a, 0)
	}
	p.local = netip.AddrPortFrom(p.local.Addr(), k.internal.Port())
	return p
}

func (h host) place(bound netip.Addr) place {
	links, err := h.links(bound)
	if err != nil {
		return place{}
	}
	l := links[0]
	return place{router: Router{Page: pageAt(l.gateway)}, gateway: l.gateway, local: netip.AddrPortFrom(l.local, 0)}
}

func (p *pcp) place(bound netip.Addr) place    { return p.host.place(bound) }
func (n *natPMP) place(bound netip.Addr) place { return n.host.place(bound) }

func (u *upnp) place(bound netip.Addr) place {
	p := u.host.place(bound)
	if p.gateway.IsValid() {
		p.router = u.routers.at(p.gateway)
	}
	return p
}

func (p *pinhole) place(bound netip.Addr) place { return p.upnp.place(bound) }

// place is that of the candidate that can name the router.
func (a *anyMapper) place(bound netip.Addr) (best place) {
	for _, c := range a.candidates {
		if m, ok := c.mapper.(placer); ok {
			if p := m.place(bound); !best.gateway.IsValid() || !p.router.nameless() {
				best = p
			}
		}
	}
	return best
}

// place is that of the family. Over IPv6 routers say little of themselves, and
// have no page that a browser can open: it is the same box as over IPv4, as a rule.
func (d *dual) place(bound netip.Addr) place {
	m, ok := d.of(bound).(placer)
	if !ok {
		return place{}
	}
	p := m.place(bound)
	if four, ok := d.four.(placer); ok && p.router.Page == "" {
		if q := four.place(netip.IPv4Unspecified()); q.gateway.IsValid() {
			p.router = q.router
		}
	}
	return p
}

// A routerMake is a maker whose names for things are known from its manuals.
type routerMake struct {
	name    string
	marks   []string // one of them is in the name, the maker or the model
	factory string   // the address it has when it is new, "" if others have that too
	open    string   // where programs are allowed to open ports
	forward string   // where ports are forwarded by hand, and IPv6 peers let in; "" if not known
}

func routerMakes() []routerMake {
	return []routerMake{
		{"FRITZ!Box", []string{"fritz!box", "fritzbox"}, "192.168.178.1", `Internet > Permit Access > Port Sharing, this device, "Permit independent port sharing for this device"`, "Internet > Permit Access > Port Sharing"},
		{"TP-Link router", []string{"tp-link"}, "", "Advanced > NAT Forwarding > UPnP", "Advanced > NAT Forwarding > Virtual Servers"},
		{"NETGEAR router", []string{"netgear"}, "", `Advanced > Advanced Setup > UPnP, "Turn UPnP On"`, "Advanced > Advanced Setup > Port Forwarding / Port Triggering"},
		{"ASUS router", []string{"asus"}, "", `WAN > Internet Connection, "Enable UPnP"`, ""},
		{"MikroTik router", []string{"mikrotik", "routeros"}, "192.168.88.1", "IP > UPnP, Enabled", ""},
		{"pfSense", []string{"pfsense"}, "", "Services > UPnP & NAT-PMP", "Firewall > NAT > Port Forward"},
	}
}

// make is the router's, nil if it is not known.
func (r Router) make() *routerMake {
	all := r.Name + " " + r.Maker + " " + r.Model
	for _, m := range routerMakes() {
		for _, mark := range m.marks {
			if contains(all, mark) {
				return &m
			}
		}
	}
	return nil
}

// settings is where in the router's settings programs are allowed to open ports:
// "" or a hint in brackets. Of a router that says nothing, its address may be a
// hint.
func (p place) settings() string {
	if m := p.router.make(); m != nil {
		return " (" + m.open + ")"
	}
	if p.router.nameless() && p.gateway.IsValid() {
		for _, m := range routerMakes() {
			if m.factory == p.gateway.String() {
				return " (if it is a " + m.name + ": " + m.open + ")"
			}
		}
	}
	return ""
}

// byHand is where in its settings a port is forwarded by hand: "" or a hint in
// brackets.
func (p place) byHand() string {
	if m := p.router.make(); m != nil && m.forward != "" {
		return " (" + m.forward + ")"
	}
	return ""
}

// rule is what to type into a router: TCP and the external port, then where to.
func rule(external uint16, to netip.Addr, port uint16) string {
	host := "ADDRESS"
	if to.IsValid() {
		host = to.String()
	}
	return fmt.Sprintf("TCP %d → %s port %d", external, host, port)
}

// rule is what to type into the router of the place, behind a colon; "" if it is
// about no port.
func (p place) rule() string {
	port := p.local.Port()
	switch a := p.local.Addr(); {
	case port == 0:
		return ""
	case a.IsValid() && !a.IsUnspecified():
		return ": " + rule(port, a, port)
	}
	return fmt.Sprintf(": TCP %d → this machine, port %d", port, port)
}

// opening is rule for IPv6, where nothing is translated.
func (p place) opening() string {
	port := p.local.Port()
	if port == 0 {
		return ""
	}
	to := "this machine"
	if a := p.local.Addr(); a.IsValid() && !a.IsUnspecified() {
		to = a.String()
	}
	return fmt.Sprintf(": TCP port %d of %s", port, to)
}
