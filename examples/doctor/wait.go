package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

// The check from outside: the port is kept open, and who comes is told of.

// A visitor is somebody who came.
type visitor struct {
	At      time.Time  `json:"at"`
	Address netip.Addr `json:"address"`
	From    origin     `json:"from"`
	Dialled string     `json:"dialled,omitempty"` // the address and port in its Host header; a claim
}

// An origin is where a visitor is, as far as its address tells.
type origin string

const (
	fromHere    origin = "this machine"
	fromHome    origin = "inside"  // a network that this machine is on, or one beside it
	fromRouter  origin = "router"  // our own router's address, inside or outside
	fromPrivate origin = "private" // an address that is not on the Internet, and not ours
	fromOutside origin = "outside"
)

// A home is what a visitor's address is compared with.
type home struct {
	own      []netip.Prefix // our addresses, with their networks
	gateways []netip.Addr   // addresses of our router, on either side
}

// home of the finding, and of this machine now.
func (f *finding) home() home {
	h := home{gateways: slices.Clone(f.Gateways)}
	for _, p := range f.Protocols {
		if a, err := netip.ParseAddr(p.External); err == nil && !p.IPv6 {
			h.gateways = append(h.gateways, a)
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ip, ok := netip.AddrFromSlice(n.IP)
			bits, _ := n.Mask.Size()
			if ok {
				h.own = append(h.own, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
	}
	return h
}

// homePrefix is what the networks of one home have in common over IPv6, where the
// provider gives out more than one (RFC 6177).
const homePrefix = 56

// where says where an address is.
func (h home) where(a netip.Addr) origin {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() {
		return fromHere
	}
	for _, p := range h.own {
		if p.Addr() == a {
			return fromHere
		}
	}
	for _, g := range h.gateways {
		if g.WithZone("") == a {
			return fromRouter
		}
	}
	for _, p := range h.own {
		if p.Addr().Is6() && p.Bits() > homePrefix {
			p, _ = p.Addr().Prefix(homePrefix)
		}
		if p.Contains(a) {
			return fromHome
		}
	}
	shared := netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	if a.IsPrivate() || a.IsLinkLocalUnicast() || shared.Contains(a) {
		return fromPrivate
	}
	return fromOutside
}

// told is the visitor in words: who came, and what that proves. outside are the
// addresses that lead here from outside, as the router says.
func (v visitor) told(outside []string) string {
	round := slices.Contains(outside, v.Dialled) // by the way round the router
	var where, proves string
	switch {
	case v.From == fromOutside:
		where, proves = "from outside, a public address", "Peers outside can reach this machine."
	case round && v.From != fromPrivate:
		where, proves = "from inside the home, but by the address outside", "The router forwards the port, and this machine's firewall lets it in. Whether the provider lets in what comes from outside, only somebody there can show: is Wi-Fi off on that phone?"
	case v.From == fromHere:
		where, proves = "from this machine itself", "That proves only that the page is served."
	case v.From == fromRouter:
		where, proves = "by our own router", "The router forwards the port. It hides who comes, or it was somebody inside: only an address outside proves more."
	case v.From == fromPrivate:
		where, proves = "from a private network that is not ours, in front of the router or at the other end of a VPN", "The port is open from there. It proves nothing about the rest of the Internet."
	default:
		where, proves = "from inside the home", "This machine's firewall lets it in. It proves nothing about the way from outside: is Wi-Fi off on that phone?"
	}
	return fmt.Sprintf("somebody came %s: %s. %s", where, v.Address, proves)
}

// pageScript opens a WebSocket from the page that a visitor gets, for the listener to
// see as well that somebody came.
const pageScript = `let s = new WebSocket("ws://" + location.host + "/"), p = document.querySelector("p");
s.onopen = () => p.append(" A WebSocket came through, too.");
s.onerror = () => p.append(" A WebSocket did not come through.");`

// page serves what a visitor sees, and calls came with the request of everybody who
// opens it.
func page(came func(r *http.Request)) http.Handler {
	sum := sha256.Sum256([]byte(pageScript))
	policy := "default-src 'none'; connect-src ws:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		came(r)
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		fmt.Fprintf(w, "<!doctype html><meta name=viewport content=width=device-width><title>Here you are</title>\n"+
			"<p>Here you are: your connection came from %s. Whoever runs this has just been told.</p>\n<script>%s</script>\n", addrOf(r.RemoteAddr), pageScript)
	})
	return mux
}

func addrOf(remote string) netip.Addr {
	a, _ := netip.ParseAddrPort(remote)
	return a.Addr().Unmap()
}

// sayAgain is after how long the same visitor is told of again.
const sayAgain = 30 * time.Second

// maxVisitors is how many are noted; a port that is open finds strangers.
const maxVisitors = 256

// noLink is in place of a link.
const noLink = "none"

// A watch is one time of waiting.
type watch struct {
	d       doctor
	f       *finding
	home    home
	link    string   // that was printed last, noLink if there was none to print
	outside []string // address and port of what leads here from outside
	said    string   // the reachability that was printed last
}

// wait keeps the port open until ctx ends or its time is over, and tells of
// everybody who comes. Of a program that has the port it only watches who does.
func (d doctor) wait(ctx context.Context, f *finding) error {
	ctx, cancel := context.WithTimeout(ctx, d.limit)
	defer cancel()
	w := &watch{d: d, f: f, home: f.home()}
	if f.Running != "" {
		w.beside(ctx)
		w.end()
		return nil
	}
	visits, changed := make(chan visitor, maxVisitors), make(chan struct{}, 1)
	came := func(r *http.Request) {
		v := visitor{At: time.Now(), Address: addrOf(r.RemoteAddr)}
		if a, err := netip.ParseAddrPort(r.Host); err == nil {
			v.Dialled = a.String()
		} else if a, err := netip.ParseAddr(r.Host); err == nil {
			v.Dialled = netip.AddrPortFrom(a, 80).String()
		}
		select {
		case visits <- v:
		default:
		}
	}
	fmt.Fprintln(d.talk, "\nOpening the port ...")
	l, err := peerws.ListenConfig{Address: d.address, NAT: d.mapper, HTTP: page(came), OnConnection: func(*peerws.WebSocket) {}}.Listen(ctx, int(d.port))
	if err != nil {
		return err
	}
	defer l.Close()
	l.OnAddressChange(func([]peerws.Address) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if l.Ready(ctx) == nil {
		w.offer(l.Addresses())
		w.say(l.Reachability())
		fmt.Fprintf(d.talk, "\nWaiting for %v; Ctrl-C ends it and gives the port back.\n", d.limit)
	}
	for ctx.Err() == nil {
		select {
		case v := <-visits:
			w.visit(v)
		case <-changed:
			w.offer(l.Addresses())
			w.say(l.Reachability())
		case <-ctx.Done():
		}
	}
	f.tried(l.Addresses(), l.Reachability())
	w.end()
	err = f.closed(l.Close())
	switch {
	case err != nil || len(f.Mapped) == 0 || d.external.IsValid():
	case f.Mapped[0].Kept != "":
		fmt.Fprintln(d.talk, "\nThe router still forwards the port, and does not take it back: "+f.Mapped[0].Kept)
	default:
		fmt.Fprintln(d.talk, "\nThe port is closed again.")
	}
	return err
}

// beside watches a program that has the port.
func (w *watch) beside(ctx context.Context) {
	for _, m := range w.f.Mapped {
		w.outside = append(w.outside, hostOf(m.URL))
	}
	fmt.Fprintf(w.d.talk, "\nThe port is in use by %s, so it is that one which answers, and what it shows does not matter.\n", w.f.Running)
	if len(w.outside) > 0 {
		w.print("http://"+w.outside[0]+"/", "")
	} else {
		w.noLink()
	}
	if len(tcpTable()) == 0 {
		return // nor would who comes be seen
	}
	fmt.Fprintf(w.d.talk, "\nWatching who connects for %v; Ctrl-C ends it.\n", w.d.limit)
	t := time.NewTicker(time.Second / 2)
	defer t.Stop()
	for {
		for _, a := range visitorsOf(w.d.port) {
			w.visit(visitor{At: time.Now(), Address: a})
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// visit notes and tells of somebody.
func (w *watch) visit(v visitor) {
	all := w.f.Visitors
	for _, o := range slices.Backward(all) {
		if o.Address == v.Address && o.Dialled == v.Dialled && (w.f.Running != "" || v.At.Sub(o.At) < sayAgain) {
			return
		}
	}
	if len(all) == maxVisitors {
		return
	}
	v.From = w.home.where(v.Address)
	w.f.Visitors = append(all, v)
	w.f.Proved = w.f.Proved || v.From == fromOutside
	fmt.Fprintf(w.d.talk, "%s  %s\n", v.At.Format(time.TimeOnly), v.told(w.outside))
}

// say prints what the listener says, when it is something new.
func (w *watch) say(r peerws.Reachability) {
	s := strings.TrimSpace(r.Summary + " " + r.Advice)
	if s != "" && s != w.said {
		w.said = s
		fmt.Fprintf(w.d.talk, "\n%s\n", s)
	}
}

// offer prints the link that somebody outside can open, when it is another one.
func (w *watch) offer(list []peerws.Address) {
	var best peerws.Address
	rank := 0
	w.outside = nil
	for _, a := range list {
		if a.Scope != peerws.Public || a.State == peerws.Lost {
			continue
		}
		if a.Via != "direct" && !strings.Contains(a.URL, "[") { // else neighbours come there directly
			w.outside = append(w.outside, hostOf(a.URL))
		}
		r := 1 // an IPv6 address of our own, behind whatever
		if six := strings.Contains(a.URL, "["); !six {
			r = 4
		} else if a.State != peerws.Bound {
			r = 2
		}
		if r += int(min(a.State, peerws.Verified)); r > rank {
			best, rank = a, r
		}
	}
	if rank == 0 {
		if w.link != noLink {
			w.link = noLink
			w.noLink()
		}
		return
	}
	link := "http" + strings.TrimPrefix(best.URL, "ws")
	if link == w.link {
		return
	}
	w.link = link
	note := ""
	if strings.Contains(link, "[") {
		note = "It is an IPv6 address: the phone's network must have IPv6."
		if best.State == peerws.Bound {
			note += " No firewall was opened for it; it works if none is in front."
		}
	}
	w.print(link, note)
}

// print prints a link and its QR code.
func (w *watch) print(link, note string) {
	fmt.Fprintf(w.d.talk, "\nOpen this on a phone with Wi-Fi off, or have somebody elsewhere open it:\n\n    %s\n", link)
	w.draw(link)
	if note != "" {
		fmt.Fprintf(w.d.talk, "\n%s\n", note)
	}
}

// draw draws the QR code of a link.
func (w *watch) draw(link string) {
	if s := drawQR(link, w.d.how); s != "" {
		fmt.Fprintf(w.d.talk, "\n%s", s)
	}
}

// noLink says what to open when the port will have been forwarded by hand.
func (w *watch) noLink() {
	host := "ADDRESS"
	for _, p := range w.f.Protocols {
		if a, err := netip.ParseAddr(p.External); err == nil && !p.IPv6 && w.home.public(a) {
			host = a.String()
		}
	}
	fmt.Fprintf(w.d.talk, "\nThere is no link yet that leads here from outside. When the port has been forwarded by hand, open this on a phone with Wi-Fi off:\n\n    http://%s:%d/\n", host, w.d.port)
	if host == "ADDRESS" {
		fmt.Fprintln(w.d.talk, "\nADDRESS is the one that the router has on the Internet, as its own pages say.")
		return
	}
	w.draw(fmt.Sprintf("http://%s:%d/", host, w.d.port))
}

// public reports whether a, of the router, is an address on the Internet.
func (h home) public(a netip.Addr) bool { return (home{}).where(a) == fromOutside }

// end puts what has been seen into the finding.
func (w *watch) end() {
	n := 0
	var last netip.Addr
	for _, v := range w.f.Visitors {
		if v.From == fromOutside {
			n, last = n+1, v.Address
		}
	}
	switch {
	case n > 0:
		w.f.Reachable, w.f.Code = true, nat.CodeVerified
		w.f.Summary = fmt.Sprintf("Somebody came from outside (%s).", last)
	case w.f.Reachable:
		w.f.Summary = "Nobody has come from outside. " + w.f.Summary
		w.f.Advice = strings.TrimSpace(w.f.Advice + " If the link was opened outside, did not load, and it is not the firewall, the provider may block connections from outside: ask it, or take another port.")
	}
}
