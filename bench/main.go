//go:build linux

// Command bench compares peerws with the other WebSocket servers, side by side:
//
//	go run .              about ten minutes; writes RESULTS.md and results.svg
//	go run . -full        everything, longer
//	go run . -floods      what a port bears
//	go run . -run '^(b125|pipe64)$' -servers peerws,gws
//
// It runs every server in a process of its own on one CPU, and drives them from
// another. RESULTS.md says how it measures.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	full := flag.Bool("full", false, "measure longer: more and longer rounds, three of the idle workloads; about an hour")
	run := flag.String("run", "", "measure only the workloads whose names match this `regexp`")
	servers := flag.String("servers", "", "measure only these servers, a `list` with commas; tcp is always among them")
	rounds := flag.Int("rounds", 0, "rounds; 0 means 11, and 25 with -full")
	window := flag.Duration("window", 0, "time for one server in one round; 0 means 150ms, and 500ms with -full")
	out := flag.String("o", "", "write RESULTS.md and results.svg into this `directory`; unset: here if everything is measured, else nowhere")
	list := flag.Bool("list", false, "list workloads and servers")
	serve := flag.String("serve", "", "be the server of that `name` (for the command itself)")
	flooding := flag.Bool("floods", false, "measure what a port bears: floods, silence, a full house, hostile inputs; about six minutes")
	flood := flag.String("flood", "", "flood the server on -port as that `name` says (for the command itself)")
	port := flag.Int("port", 0, "with -flood")
	crowd := flag.Int("crowd", 0, "be a listener with a cap of so many sockets, until SIGTERM (for the command itself)")
	var s setup
	flag.BoolVar(&s.pack, "pack", false, "with -serve: compress messages, without context takeover")
	flag.BoolVar(&s.broadcast, "broadcast", false, "with -serve: a message goes to everybody")
	flag.IntVar(&s.buffer, "buffer", 4*kib, "with -serve: bytes of the raw TCP server's buffer")
	cert := flag.String("cert", "", "with -serve: certificate `file`, for TLS")
	key := flag.String("key", "", "with -serve: key `file`")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	switch {
	case *flood != "":
		if err := attack(*flood, *port); err != nil {
			log.Fatal(err)
		}
		return
	case *flooding:
		if err := errors.Join(runFloods(context.Background(), os.Stdout), runCrowds(os.Stdout), runHostile(os.Stdout)); err != nil {
			log.Fatal(err)
		}
		return
	case *crowd > 0:
		if err := serveCrowd(*crowd); err != nil {
			log.Fatal(err)
		}
		return
	case *serve != "":
		if err := runServer(*serve, s, *cert, *key); err != nil {
			log.Fatal(err)
		}
		return
	case *list:
		for _, w := range workloads {
			fmt.Printf("%-12s %s\n", w.name, w.title)
		}
		fmt.Printf("%-12s the codec's micro benchmarks\n", microName)
		fmt.Println()
		for _, c := range contestants {
			fmt.Printf("%-12s %s\n", c.name, c.note)
		}
		return
	}
	o := options{rounds: 11, window: 150 * time.Millisecond, idle: 1, settle: 2 * time.Second, conns: math.MaxInt, micro: true, log: log.Default()}
	if *full {
		o.rounds, o.window, o.idle = 25, 500*time.Millisecond, 3
	}
	if *rounds > 0 {
		o.rounds = *rounds
	}
	if *window > 0 {
		o.window = *window
	}
	if *servers != "" {
		o.servers = strings.Split(*servers, ",")
	}
	var err error
	if o.run, err = regexp.Compile(*run); err != nil {
		log.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	r, err := runAll(ctx, o)
	if err != nil {
		log.Fatal(err)
	}
	r.about = append(about(r.servers), fmt.Sprintf("%s; %d rounds of %v, %v in all: `%s`", began.Format("2 January 2006"), o.rounds, o.window,
		time.Since(began).Round(time.Second), strings.Join(append([]string{"go run ."}, os.Args[1:]...), " ")))
	if *out == "" && *run == "" && *servers == "" && *rounds == 0 && *window == 0 {
		*out = "."
	}
	if *out == "" {
		r.tables(os.Stdout)
		return
	}
	var text bytes.Buffer
	r.write(&text)
	if err := errors.Join(
		os.WriteFile(filepath.Join(*out, "RESULTS.md"), text.Bytes(), 0o644),
		os.WriteFile(filepath.Join(*out, "results.svg"), r.chart(), 0o644)); err != nil {
		log.Fatal(err)
	}
	// What a README shows; the rest is in the file.
	r.summary(os.Stdout)
	fmt.Printf("%s\n%s", r.bars(), r.microTable())
}
