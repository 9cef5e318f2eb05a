// Doctor tells whether peers can reach this machine through its router, and if
// not, what to change.
//
//	go run ./examples/doctor [-json] [-try | -wait] [-port 9000] [-for 10m] [-gateway ADDRESS] [-external ADDRESS:PORT]
//
// It only asks, also who has the port already. With -try it listens on the
// port for a moment, has it forwarded, sees whether a connection of its own
// comes back through the router, and gives it back: that shows what asking
// cannot, whether the router permits it. With -wait it keeps the port open and
// prints a link, and a QR code of it, for a phone with Wi-Fi off: whoever opens
// it is told of at once, and only that shows that peers outside get in. It ends
// with Ctrl-C, or after -for.
//
// If a program listens on the port already, the doctor looks at that one, and
// leaves it alone.
//
// The exit status is 0 if nothing stands against a connection from outside, else
// 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, drawingOn(os.Stdout))
	stop()
	os.Exit(code)
}

// run is main with everything given, and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, how drawing) int {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	asJSON := flags.Bool("json", false, "print one JSON object instead of a table")
	try := flags.Bool("try", false, "open the port, look, and close it again")
	wait := flags.Bool("wait", false, "keep the port open, print a link to it for somebody outside, and tell who comes")
	limit := flags.Duration("for", 10*time.Minute, "how long -wait waits")
	port := flags.Uint("port", 9000, "TCP `port` to ask about, and to try")
	var gateway netip.Addr
	flags.TextVar(&gateway, "gateway", netip.Addr{}, "`address` of the router to ask, such as the far end of a VPN; that of the default route if none is given")
	var external netip.AddrPort
	flags.TextVar(&external, "external", netip.AddrPort{}, "`address:port` outside that was forwarded to the port by hand; then no router is asked to open it")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0 || *port == 0 || *port > 65535 || *try && *wait || *limit <= 0:
		flags.Usage()
		return 2
	case external.IsValid() && !*try && !*wait:
		fmt.Fprintln(stderr, "doctor: -external needs -try or -wait: a forward made by hand cannot be asked about, only tried")
		return 2
	}
	o := nat.Options{Gateway: gateway}
	d := doctor{port: uint16(*port), external: external, probe: o.Probe, mapper: o.Any(), limit: *limit, talk: stdout, how: how}
	if external.IsValid() {
		d.mapper = nat.Static(external)
	}
	if *asJSON {
		d.talk, d.how = stderr, drawNothing
	}
	f, err := d.examine(ctx, *try, *wait)
	if err == nil || f.Mode != "" {
		var failed error
		switch {
		case *asJSON:
			failed = printJSON(stdout, f)
		case *wait: // the table stands above
			failed = printVerdict(stdout, f)
		default:
			failed = printTable(stdout, f)
			if failed == nil {
				failed = printVerdict(stdout, f)
			}
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		fmt.Fprintln(stderr, "doctor: "+strings.TrimPrefix(err.Error(), "peerws: "))
	}
	if err != nil || !f.Reachable {
		return 1
	}
	return 0
}

// wsaeAddrInUse is what Windows says in place of EADDRINUSE.
const wsaeAddrInUse = 10048

// A doctor examines one port.
type doctor struct {
	port     uint16
	address  string         // of this machine, to listen at; "" is all
	external netip.AddrPort // forwarded by hand, invalid if nothing is known to be
	probe    func(ctx context.Context, port uint16) (nat.Report, error)
	mapper   nat.Mapper // opens the port
	limit    time.Duration
	talk     io.Writer // gets what happens while it waits
	how      drawing
}

// examine asks the router. With try or wait it opens the port as well, unless a
// program has it: that one already has the router's forward, and it must not be
// taken away from it.
func (d doctor) examine(ctx context.Context, try, wait bool) (finding, error) {
	running := false
	if try || wait {
		l, err := peerws.ListenConfig{Address: d.address}.Listen(ctx, int(d.port))
		switch {
		case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.Errno(wsaeAddrInUse)):
			running = true
		case err != nil:
			return finding{}, err
		default:
			l.Close()
		}
	} else {
		running = answers(ctx, d.port)
	}
	r, err := d.probe(ctx, d.port) // before the port is forwarded
	if err != nil {
		return finding{}, err
	}
	f := found(r, d.port)
	switch {
	case running:
		f.beside(holder(d.port), r, d.external)
	case try:
		f.Mode = "try"
		return f, d.try(ctx, &f)
	}
	if wait {
		f.Mode = "wait"
		if err := printTable(d.talk, f); err != nil {
			return f, err
		}
		return f, d.wait(ctx, &f)
	}
	return f, nil
}

// answers reports whether a program of this machine listens on the port.
func answers(ctx context.Context, port uint16) bool {
	d := net.Dialer{Timeout: time.Second}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
			c.Close()
			return true
		}
	}
	return false
}

// proofTime is how long a connection of our own is waited for: a router that
// lets it through does so at once.
const proofTime = 3 * time.Second

// try has the port forwarded and notes what comes of it.
func (d doctor) try(ctx context.Context, f *finding) error {
	l, err := peerws.ListenConfig{Address: d.address, NAT: d.mapper}.Listen(ctx, int(d.port))
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
	return f.closed(l.Close())
}

// drawingOn is what can be drawn on f.
func drawingOn(f *os.File) drawing {
	fi, err := f.Stat()
	switch {
	case err != nil || fi.Mode()&os.ModeCharDevice == 0:
		return drawNothing
	case runtime.GOOS == "windows" || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "":
		return drawBlocks
	}
	return drawColours
}
