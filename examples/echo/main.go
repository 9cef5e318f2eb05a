// Echo is a peer that sends every message back.
//
//	go run ./examples/echo [-port 9000] [-nat] [-protocols a,b] [-origins ...] [-max BYTES] [-per-ip N] [-compress off|on|context]
//
// It drops nothing: a peer that sends faster than it reads is slowed down, and
// only one that takes nothing for WriteTimeout is cut off.
//
// Its standard output is for programs, one fact a line:
//
//	SCOPE VIA STATE URL            an address, when it becomes known or changes;
//	                               the last line about a URL is what counts
//	listening                      the gateway has been asked, or there was no need
//	reachability CODE: SENTENCE    whenever that changes
//
// Everything else goes to standard error. SIGINT and SIGTERM end it: sockets
// are closed, the port mapping is removed, the exit status is 0.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

func main() {
	port := flag.Int("port", 9000, "TCP port to listen on, 0 for any")
	useNAT := flag.Bool("nat", false, "ask the router to forward the port")
	protocols := flag.String("protocols", "", "subprotocols to speak, separated by commas")
	origins := flag.String("origins", "", "origins of web pages that may connect, separated by commas; * for all")
	most := flag.Int64("max", 0, "largest message in `bytes`, 0 for the default of 1 MiB, -1 for no limit")
	perIP := flag.Int("per-ip", 0, "connections at a time from one address, 0 for the default of 64, -1 for no limit")
	compress := flag.String("compress", "off", "compress messages, if the peer can: off, on, or context to refer to earlier ones")
	verbose := flag.Bool("v", false, "log more")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "echo: unexpected argument", flag.Arg(0))
		os.Exit(2)
	}
	modes := map[string]peerws.CompressionMode{"off": peerws.CompressionOff, "on": peerws.CompressionNoContext, "context": peerws.CompressionContext}
	mode, ok := modes[*compress]
	if !ok {
		fmt.Fprintln(os.Stderr, "echo: -compress must be off, on or context")
		os.Exit(2)
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	config := peerws.ListenConfig{
		AllowedOrigins:      list(*origins),
		MaxMessageSize:      *most,
		MaxConnectionsPerIP: *perIP,
		OnConnection:        echo,
		Compression:         peerws.Compression{Mode: mode},
		Logger:              slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	if *useNAT {
		config.NAT = nat.Any()
	}
	if err := run(config, *port, list(*protocols)); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// list splits a flag at its commas.
func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// echo sends back what comes. Write waits when the peer is slow, and while it
// does nothing more is read from it.
func echo(c *peerws.WebSocket) {
	c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) {
		c.Write(context.Background(), m) // an error means that the peer is gone: OnClose would tell
	})
}

func run(config peerws.ListenConfig, port int, protocols []string) error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	l, err := config.Listen(stop, port, protocols...)
	if err != nil {
		return err
	}
	r := &reporter{w: os.Stdout, l: l}
	l.OnAddressChange(func([]peerws.Address) { r.report() })
	r.report()
	if l.Ready(stop) == nil {
		r.listening()
	}
	select {
	case <-stop.Done():
	case <-l.Done():
		return l.Err()
	}
	cancel() // a second signal kills
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	l.Shutdown(ctx) // its error is that some peer did not answer in time: it was cut off
	r.report()
	return nil
}

// A reporter prints what is new about a listener.
type reporter struct {
	l *peerws.WebSocketListener

	mu    sync.Mutex
	w     io.Writer
	known []peerws.Address // as printed last
	reach peerws.Reachability
}

func (r *reporter) listening() {
	r.report()
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintln(r.w, "listening")
}

// report prints addresses and reachability as far as they have changed.
func (r *reporter) report() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.l.Addresses()
	for _, old := range r.known {
		if old.State != peerws.Lost && find(now, old.URL) == nil {
			old.State = peerws.Lost
			now = append(now, old)
		}
	}
	for _, a := range now {
		if old := find(r.known, a.URL); old == nil && a.State != peerws.Lost || old != nil && *old != a {
			fmt.Fprintln(r.w, a.Scope, a.Via, a.State, a.URL)
		}
	}
	r.known = now
	if reach := r.l.Reachability(); reach.Code != "" && reach != r.reach {
		r.reach = reach
		fmt.Fprintf(r.w, "reachability %s: %s\n", reach.Code, reach.Summary)
	}
}

func find(list []peerws.Address, url string) *peerws.Address {
	for i := range list {
		if list[i].URL == url {
			return &list[i]
		}
	}
	return nil
}
