// Doctor tells whether peers can reach this machine through its router, and if
// not, what to change.
//
//	go run ./examples/doctor [-json] [-try] [-port 9000]
//
// It only asks. With -try it also has the port forwarded and then gives it
// back, which shows what asking cannot: whether the router permits it. The exit
// status is 0 if nothing stands against a connection from outside, else 1.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/peerws/peerws/nat"
)

func main() {
	asJSON := flag.Bool("json", false, "print one JSON object instead of a table")
	try := flag.Bool("try", false, "open the port, look, and close it again")
	port := flag.Uint("port", 9000, "TCP port to try")
	flag.Parse()
	if flag.NArg() > 0 || *port == 0 || *port > 65535 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f, err := examine(ctx, *try, uint16(*port))
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
	Mapped    *mapped      `json:"mapped,omitempty"` // with -try, if it went well
	Code      string       `json:"code"`             // of nat.Diagnosis
	Summary   string       `json:"summary"`
	Advice    string       `json:"advice,omitempty"`
	Reachable bool         `json:"reachable"` // nothing stands against it
}

type protocol struct {
	Name     string  `json:"name"`
	Gateway  string  `json:"gateway,omitempty"`
	Version  string  `json:"version,omitempty"`
	External string  `json:"external,omitempty"`
	Millis   float64 `json:"ms"`
	Error    string  `json:"error,omitempty"`
}

type mapped struct {
	External netip.AddrPort `json:"external"`
	Internal netip.AddrPort `json:"internal"`
	Via      string         `json:"via"`
	Seconds  float64        `json:"lifetime"`
}

// examine asks the router and, with try, opens the port for a moment.
func examine(ctx context.Context, try bool, port uint16) (finding, error) {
	r, err := nat.Probe(ctx)
	if err != nil {
		return finding{}, err
	}
	if !try {
		return found(r, nat.Status{Diagnosis: r.Diagnosis}), nil
	}
	settled := make(chan nat.Status, 1)
	m := nat.NewManager(nat.ManagerConfig{
		Mapper:      nat.Any(),
		Internal:    netip.AddrPortFrom(netip.IPv4Unspecified(), port),
		Description: "peerws doctor",
		Lifetime:    2 * time.Minute, // if it could not be given back
		OnChange: func(s nat.Status) {
			select {
			case settled <- s:
			default:
			}
		},
	})
	defer m.Close()
	select {
	case s := <-settled:
		return found(r, s), m.Close()
	case <-ctx.Done():
		return finding{}, ctx.Err()
	}
}

// found puts together what was asked and what was tried.
func found(r nat.Report, s nat.Status) finding {
	f := finding{Addresses: r.Addresses, Gateways: r.Gateways, Code: s.Diagnosis.Code, Summary: s.Diagnosis.Summary, Advice: s.Diagnosis.Advice}
	switch f.Code {
	case "public", "mapped", "ready":
		f.Reachable = true
	}
	for _, p := range r.Protocols {
		x := protocol{Name: p.Name, Version: p.Version, Millis: float64(p.Took.Microseconds()) / 1000}
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
	}
	if len(s.Leases) > 0 {
		l := s.Leases[0]
		f.Mapped = &mapped{External: l.External, Internal: l.Internal, Via: l.Via, Seconds: l.Lifetime.Seconds()}
	}
	return f
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
		fmt.Fprintf(t, "%s\t%s\t%.0f ms\n", p.Name, answer, p.Millis)
	}
	if m := f.Mapped; m != nil {
		fmt.Fprintf(t, "tried\t%s was forwarded to %s via %s, and given back\n", m.External, m.Internal, m.Via)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "Peers cannot reach this machine yet."
	if f.Reachable {
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
