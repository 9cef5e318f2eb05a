// Chat is a room that lives on one peer's machine.
//
//	go run ./examples/chat [-port 9000] [-nat=true] [-gateway ADDRESS] [-external ADDRESS:PORT] [-host NAME] [-name NAME]
//	go run ./examples/chat [-name NAME] URL
//
// Without a URL it is a peer: it listens on the port, asks the router to forward
// that port to it (-nat=false leaves the router alone), and prints links that
// lead to its room. Whoever opens an http link in a browser gets a page to chat
// on; whoever has this program gives it a link as the URL. A browser that comes by a
// name, such as that of a tunnel, is let in if -host has it. Everybody in the room
// sees every line once, in the same order. The terminal is in the room too.
//
// Ctrl-C (or SIGTERM, or closing the terminal) ends it: everybody is told, and
// the router forgets the port.
//
// The end of the input (Ctrl-D) means the same when a person types. When the
// input is a pipe or a file, a peer goes on serving; a guest leaves as soon as
// all its lines have come back from the room, and only listens if there were
// none.
//
// The protocol between a room and its peers is in protocol.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/peerws/peerws/nat"
)

func main() {
	// A reader of our output that goes away must not end us before the router
	// has been told.
	signal.Ignore(syscall.SIGPIPE)
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends us at once

	in := input{r: os.Stdin, person: isTerminal(os.Stdin)}
	in.echo = in.person && isTerminal(os.Stdout) && runtime.GOOS != "windows" && os.Getenv("TERM") != "dumb"
	os.Exit(run(ctx, os.Args[1:], in, os.Stdout, os.Stderr))
}

// run is main with everything given, and returns the exit code.
func run(ctx context.Context, args []string, in input, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("chat", flag.ContinueOnError)
	flags.SetOutput(stderr)
	port := flags.Int("port", 9000, "the `port` to listen on; 0 takes any that is free")
	useNAT := flags.Bool("nat", true, "ask the router to forward the port")
	var names []string
	flags.Func("host", "a `name` by which browsers find this machine, such as room.example; may be given again", func(s string) error {
		s = strings.TrimSuffix(s, ".")
		if !plainName.MatchString(s) {
			return errors.New("must be a host name, without a port")
		}
		names = append(names, s)
		return nil
	})
	var gateway netip.Addr
	flags.TextVar(&gateway, "gateway", netip.Addr{}, "`address` of the router to ask; that of the default route if none is given")
	var external netip.AddrPort
	flags.TextVar(&external, "external", netip.AddrPort{}, "`address:port` outside that was forwarded to the port by hand; then no router is asked")
	name := flags.String("name", defaultName(), "what the room shall call you")
	flags.Usage = func() {
		fmt.Fprint(stderr, "usage: chat [-port 9000] [-nat=true] [-gateway ADDRESS] [-external ADDRESS:PORT] [-host NAME] [-name NAME]\n"+
			"           open a room on this machine\n"+
			"       chat [-name NAME] URL\n"+
			"           join another peer's room\n")
		flags.PrintDefaults()
	}
	var urls []string
	for rest := args; ; urls, rest = append(urls, flags.Arg(0)), flags.Args()[1:] {
		switch err := flags.Parse(rest); {
		case errors.Is(err, flag.ErrHelp):
			return 0
		case err != nil:
			return 2
		}
		if flags.NArg() == 0 {
			break
		}
	}
	if len(urls) > 1 {
		fmt.Fprintln(stderr, "chat: only one URL can be joined")
		flags.Usage()
		return 2
	}

	t := newTerminal(stdout)
	var err error
	if len(urls) == 1 {
		err = join(ctx, urls[0], cleanName(*name), in, t)
	} else {
		var m nat.Mapper
		switch {
		case external.IsValid():
			m = nat.Static(external)
		case *useNAT:
			m = nat.Options{Gateway: gateway}.Any()
		}
		err = host(ctx, *port, m, names, cleanName(*name), in, t)
	}
	t.close()
	if err != nil {
		fmt.Fprintln(stderr, "chat: "+strings.TrimPrefix(err.Error(), "peerws: "))
		return 1
	}
	return 0
}

func defaultName() string {
	for _, v := range []string{"USER", "USERNAME"} {
		if name := os.Getenv(v); name != "" {
			return cleanName(name)
		}
	}
	return "guest"
}

// isTerminal reports whether f is a terminal: a character device that is not
// the null device.
func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	if err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(fi, null)
}
