package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

// A finding is the outcome, as -json prints it.
type finding struct {
	Addresses []netip.Addr `json:"addresses"`
	Gateways  []netip.Addr `json:"gateways"`
	Router    router       `json:"router"` // the first of the gateways
	Protocols []protocol   `json:"protocols"`
	Port      uint16       `json:"port"`
	Mode      string       `json:"mode,omitempty"`     // "try", "wait"; "" if it was only asked
	Running   string       `json:"running,omitempty"`  // the program that listens on the port already
	Forwards  []forward    `json:"forwards"`           // of the port, that were there before
	Mapped    []mapped     `json:"mapped,omitempty"`   // with -try and -wait, if it went well; of a program that runs, what leads to it
	Visitors  []visitor    `json:"visitors,omitempty"` // with -wait: who came
	Code      nat.Code     `json:"code"`               // of peerws.Reachability; ready if asking found nothing against it
	Summary   string       `json:"summary"`
	Advice    string       `json:"advice,omitempty"`
	Detail    string       `json:"detail,omitempty"` // what the gateway said
	Reachable bool         `json:"reachable"`        // nothing stands against it
	Proved    bool         `json:"proved"`           // somebody outside has come in
}

type router struct {
	Name  string `json:"name,omitempty"`
	Maker string `json:"maker,omitempty"`
	Model string `json:"model,omitempty"`
	Page  string `json:"page,omitempty"` // where its settings are
}

type protocol struct {
	Name     string  `json:"name"`
	IPv6     bool    `json:"ipv6,omitempty"` // asked over IPv6
	Gateway  string  `json:"gateway,omitempty"`
	Version  string  `json:"version,omitempty"`
	External string  `json:"external,omitempty"`
	Millis   float64 `json:"ms"`
	Error    string  `json:"error,omitempty"`
}

type forward struct {
	Gateway     string         `json:"gateway"`
	External    uint16         `json:"external"`
	Internal    netip.AddrPort `json:"internal"`
	Description string         `json:"description,omitempty"`
	Seconds     float64        `json:"lifetime,omitempty"` // what is left, 0 = no end
}

type mapped struct {
	URL      string `json:"url"`
	Via      string `json:"via"`
	Verified bool   `json:"verified"`       // a connection has come through it
	Kept     string `json:"kept,omitempty"` // why it was not given back
}

// found puts together what was asked.
func found(r nat.Report, port uint16) finding {
	f := finding{Addresses: r.Addresses, Gateways: r.Gateways, Router: router(r.Router), Port: port, Forwards: []forward{}}
	f.conclude(peerws.Reachability(r.Diagnosis))
	for _, p := range r.Protocols {
		x := protocol{Name: p.Name, IPv6: p.Internal.Is6(), Version: p.Version, Millis: float64(p.Took.Microseconds()) / 1000}
		if p.Gateway.IsValid() {
			x.Gateway = p.Gateway.String()
		}
		if p.External.IsValid() {
			x.External = p.External.String()
		}
		if p.Err != nil {
			x.Error = p.Err.Error()
		}
		f.Protocols = append(f.Protocols, x)
		for _, e := range p.Entries {
			f.Forwards = append(f.Forwards, forward{x.Gateway, e.External, e.Internal, e.Description, e.Lifetime.Seconds()})
		}
	}
	return f
}

// tried adds what came of it.
func (f *finding) tried(addresses []peerws.Address, r peerws.Reachability) {
	for _, a := range addresses {
		if a.Via != "direct" && a.State != peerws.Lost {
			f.Mapped = append(f.Mapped, mapped{URL: a.URL, Via: a.Via, Verified: a.State == peerws.Verified})
		}
	}
	f.conclude(r)
}

// closed adds how giving back went. An error that is the router's is part of what was
// found, and not returned.
func (f *finding) closed(err error) error {
	e, ok := errors.AsType[*nat.Error](err)
	if !ok {
		return err
	}
	for i := range f.Mapped {
		if m := &f.Mapped[i]; m.Via != "static" {
			m.Kept = e.Error()
		}
	}
	return nil
}

// beside makes the finding one about a program that listens on the port already:
// which of the router's forwards lead to it, and the one that was made by hand.
func (f *finding) beside(program string, r nat.Report, byHand netip.AddrPort) {
	f.Running = program
	if byHand.IsValid() {
		f.Mapped = append(f.Mapped, mapped{URL: "ws://" + byHand.String() + "/", Via: "static"})
		f.Code, f.Reachable, f.Detail = nat.CodeMapped, true, ""
		f.Summary = fmt.Sprintf("%s was forwarded by hand to %s; not yet verified from outside.", byHand, program)
		f.Advice = fmt.Sprintf("If peers cannot connect, allow TCP port %d in this machine's firewall, if it has one.", f.Port)
		return
	}
	looked := false // into a table of forwards
	for _, p := range r.Protocols {
		looked = looked || p.Name == "upnp" && !p.Internal.Is6() && p.Gateway.IsValid()
		for _, e := range p.Entries {
			if e.Internal.Port() == f.Port && slices.Contains(r.Addresses, e.Internal.Addr()) && p.External.IsValid() {
				f.Mapped = append(f.Mapped, mapped{URL: "ws://" + netip.AddrPortFrom(p.External, e.External).String() + "/", Via: p.Name})
			}
		}
	}
	if f.Code != nat.CodeReady {
		return
	}
	switch {
	case len(f.Mapped) > 0:
		f.Code = nat.CodeMapped
		f.Summary = fmt.Sprintf("The router forwards %s to %s; not yet verified from outside.", hostOf(f.Mapped[0].URL), program)
	case looked:
		f.Reachable = false
		f.Summary = fmt.Sprintf("The router opens ports when asked, but its table has no forward to %s.", program)
		f.Advice = strings.TrimSpace("Let the program ask for one. (Some routers do not show what was asked for over PCP or NAT-PMP.) " + f.Advice)
	default:
		f.Summary = fmt.Sprintf("The router opens ports when asked; whether it forwards one to %s cannot be seen, since it has no table that could be looked into.", program)
	}
}

// hostOf is the address and port in a URL.
func hostOf(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

func (f *finding) conclude(r peerws.Reachability) {
	f.Code, f.Summary, f.Advice, f.Detail = r.Code, r.Summary, r.Advice, r.Detail
	f.Reachable = slices.Contains([]nat.Code{nat.CodePublic, nat.CodeMapped, nat.CodeVerified, nat.CodeReady}, f.Code)
}

func printJSON(w io.Writer, f finding) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(f)
}

func printTable(w io.Writer, f finding) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, a := range f.Addresses {
		fmt.Fprintf(t, "own address\t%s\n", a)
	}
	for i, g := range f.Gateways {
		name := g.String()
		if r := nat.Router(f.Router); i == 0 && (r.Name != "" || r.Model != "") {
			if name = r.String(); r.Page == "" {
				name += " at " + g.String()
			}
		}
		fmt.Fprintf(t, "router\t%s\n", name)
	}
	for _, p := range f.Protocols {
		answer := "no answer"
		switch {
		case p.Gateway != "" && p.Error != "":
			answer = "answers, but cannot: " + strings.TrimPrefix(p.Error, p.Name+" probe at "+p.Gateway+": ")
		case p.Gateway != "" && p.External != "":
			answer = fmt.Sprintf("yes (%s), outside address %s", p.Version, p.External)
		case p.Gateway != "":
			answer = fmt.Sprintf("yes (%s)", p.Version)
		}
		name := p.Name
		if p.IPv6 {
			name += " (IPv6)"
			answer = strings.Replace(answer, "outside address", "for", 1)
		}
		fmt.Fprintf(t, "%s\t%s\t%.0f ms\n", name, answer, p.Millis)
	}
	for _, e := range f.Forwards {
		fmt.Fprintf(t, "port %d\tis forwarded to %s already%s%s\n", e.External, e.Internal, quoted(e.Description), left(e.Seconds))
	}
	if f.Running != "" {
		fmt.Fprintf(t, "port %d\tis in use on this machine, by %s\n", f.Port, f.Running)
	} else {
		for _, m := range f.Mapped {
			proof := "no connection of ours came back through it, which most routers do not allow"
			if m.Verified {
				proof = "a connection of ours came back through it"
			}
			if m.Via == "static" {
				fmt.Fprintf(t, "tried\t%s, forwarded by hand; %s\n", m.URL, proof)
				continue
			}
			back := "given back"
			if m.Kept != "" {
				back = "NOT given back: " + m.Kept
			}
			fmt.Fprintf(t, "tried\t%s led here via %s; %s; %s\n", m.URL, m.Via, proof, back)
		}
	}
	return t.Flush()
}

// printVerdict prints, below a table, what it all comes to.
func printVerdict(w io.Writer, f finding) error {
	whom := "this machine"
	if f.Running != "" {
		whom = f.Running
	}
	verdict := "Peers cannot reach " + whom + " yet."
	switch {
	case f.Proved:
		verdict = "Peers outside can reach " + whom + "."
	case f.Reachable:
		verdict = "Peers outside may be able to reach " + whom + "."
	case f.overIPv6():
		verdict = "Peers outside that have IPv6 may be able to reach " + whom + ", others not yet."
	}
	s := "\n" + verdict + " " + f.Summary + "\n"
	if f.Advice != "" && !f.Proved && (f.Mode != "wait" || f.Reachable) { // else it was said at its beginning
		s += "\n" + strings.ReplaceAll(f.Advice, ". ", ".\n") + "\n"
	}
	if next := f.next(); next != "" {
		s += "\n" + next + "\n"
	}
	if f.Detail != "" {
		s += "\nWhat was said: " + f.Detail + "\n"
	}
	_, err := io.WriteString(w, s)
	return err
}

// overIPv6 reports whether nothing stands against peers over IPv6.
func (f *finding) overIPv6() bool {
	if f.Mode != "" {
		return slices.ContainsFunc(f.Mapped, func(m mapped) bool { return strings.Contains(m.URL, "[") })
	}
	return slices.ContainsFunc(f.Protocols, func(p protocol) bool { return p.IPv6 && p.Gateway != "" && p.Error == "" })
}

// next is what running the doctor in another way would add.
func (f *finding) next() string {
	switch {
	case f.Mode == "wait":
		return ""
	case f.Reachable && f.Mode == "try":
		return "Whether somebody outside gets in, -wait shows: it keeps the port open and prints a link for a phone with Wi-Fi off."
	case f.Reachable && f.Running == "":
		return "So far the router was only asked. Whether it really opens the port, -try shows; whether somebody outside gets in, -wait."
	case f.Reachable:
		return "Whether somebody outside gets in, -wait shows."
	}
	switch f.Code {
	case nat.CodeNoGateway, nat.CodeRefused, nat.CodeDoubleNAT, nat.CodeConflict, nat.CodeWANDown:
		return "When the port has been forwarded by hand, run this with -wait to see whether somebody outside gets in."
	}
	return ""
}

// quoted is what the owner of a forward calls it.
func quoted(s string) string {
	if s == "" {
		return ""
	}
	return fmt.Sprintf(", called %q", s)
}

// left is for how long a forward stays.
func left(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return fmt.Sprintf(", for another %v", time.Duration(seconds)*time.Second)
}
