// Doctor tells whether peers can reach this machine through its router, and if
// not, what to change.
//
//	go run ./examples/doctor [-json] [-try] [-port 9000] [-gateway ADDRESS]
//
// It only asks, also who has the port already. With -try it listens on the
// port for a moment, has it forwarded, sees whether a connection of its own
// comes back through the router, and gives it back: that shows what asking
// cannot, whether the router permits it. The exit status is 0 if nothing
// stands against a connection from outside, else 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

func main() {
	asJSON := flag.Bool("json", false, "print one JSON object instead of a table")
	try := flag.Bool("try", false, "open the port, look, and close it again")
	port := flag.Uint("port", 9000, "TCP port to ask about, and to try")
	var gateway netip.Addr
	flag.TextVar(&gateway, "gateway", netip.Addr{}, "`address` of the router to ask, such as the far end of a VPN; that of the default route if none is given")
	flag.Parse()
	if flag.NArg() > 0 || *port == 0 || *port > 65535 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f, err := examine(ctx, *try, uint16(*port), nat.Options{Gateway: gateway})
	if err == nil {
		if *asJSON {
			err = printJSON(os.Stdout, f)
		} else {
			err = printTable(os.Stdout, f)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "doctor:", err)
	}
	if err != nil || !f.Reachable {
		os.Exit(1)
	}
}

// A finding is the outcome, as -json prints it.
type finding struct {
	Addresses []netip.Addr `json:"addresses"`
	Gateways  []netip.Addr `json:"gateways"`
	Protocols []protocol   `json:"protocols"`
	Port      uint16       `json:"port"`
	Forwards  []forward    `json:"forwards"`         // of the port, that were there before
	Mapped    []mapped     `json:"mapped,omitempty"` // with -try, if it went well
	Code      nat.Code     `json:"code"`             // of peerws.Reachability; ready if asking found nothing against it
	Summary   string       `json:"summary"`
	Advice    string       `json:"advice,omitempty"`
	Detail    string       `json:"detail,omitempty"` // what the gateway said
	Reachable bool         `json:"reachable"`        // nothing stands against it
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
	Verified bool   `json:"verified"` // a connection has come through it
}

// examine asks the router and, with try, opens the port for a moment.
func examine(ctx context.Context, try bool, port uint16, o nat.Options) (finding, error) {
	if !try {
		r, err := o.Probe(ctx, port)
		return found(r, port), err
	}
	// A program that listens there already has the router's forward: it must
	// not be taken away from it.
	l, err := peerws.ListenConfig{}.Listen(ctx, int(port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return finding{}, fmt.Errorf("port %d is in use on this machine: stop the program that listens there, or choose another with -port", port)
	}
	if err != nil {
		return finding{}, err
	}
	l.Close()
	r, err := o.Probe(ctx, port) // before the port is forwarded
	if err != nil {
		return finding{}, err
	}
	f := found(r, port)
	return f, f.try(ctx, port, o.Any())
}

// proofTime is how long a connection of our own is waited for: a router that
// lets it through does so at once.
const proofTime = 3 * time.Second

// try has the port forwarded and notes what comes of it.
func (f *finding) try(ctx context.Context, port uint16, m nat.Mapper) error {
	l, err := peerws.ListenConfig{NAT: m}.Listen(ctx, int(port))
	if err != nil {
		return err
	}
	defer l.Close()
	changed := make(chan struct{}, 1)
	l.OnAddressChange(func([]peerws.Address) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err := l.Ready(ctx); err != nil {
		return err
	}
	for timeout := time.After(proofTime); l.Reachability().Code == nat.CodeMapped; {
		select {
		case <-changed:
			continue
		case <-timeout:
		case <-ctx.Done():
			return ctx.Err()
		}
		break
	}
	f.tried(l.Addresses(), l.Reachability())
	return l.Close()
}

// found puts together what was asked.
func found(r nat.Report, port uint16) finding {
	f := finding{Addresses: r.Addresses, Gateways: r.Gateways, Port: port, Forwards: []forward{}}
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
			f.Mapped = append(f.Mapped, mapped{a.URL, a.Via, a.State == peerws.Verified})
		}
	}
	f.conclude(r)
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
	for _, g := range f.Gateways {
		fmt.Fprintf(t, "router\t%s\n", g)
	}
	for _, p := range f.Protocols {
		answer := "no answer"
		switch {
		case p.Gateway != "" && p.Error != "":
			answer = "answers, but cannot: " + p.Error
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
	for _, m := range f.Mapped {
		proof := "no connection of ours came back through it, which most routers do not allow"
		if m.Verified {
			proof = "a connection of ours came back through it"
		}
		fmt.Fprintf(t, "tried\t%s led here via %s; %s; given back\n", m.URL, m.Via, proof)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "Peers cannot reach this machine yet."
	switch {
	case f.Code == nat.CodeVerified:
		verdict = "Peers can reach this machine."
	case f.Reachable:
		verdict = "Peers can reach this machine, as far as can be told from inside."
	}
	_, err := fmt.Fprintf(w, "\n%s %s", verdict, f.Summary)
	if err == nil && f.Advice != "" {
		_, err = fmt.Fprintf(w, " %s", f.Advice)
	}
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	return err
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
