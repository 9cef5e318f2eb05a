// Soak is a trial of the whole library, bounded by its flags: a listener that goes away
// and comes back, peers that send it numbered messages and resume where a line broke,
// and vandals beside them that stall, drip, reset, flood, half-close or vanish.
//
//	go run ./internal/soak -time 60s
//
// Every message that the listener acknowledged was delivered exactly once and in order,
// and at the end the listener's process has the goroutines, descriptors and heap it
// began with: else the program says what is wrong and exits with 1. With -serve and
// -dial the two halves run as programs of their own, in namespaces for example.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	serve := flag.Bool("serve", false, "be the listener, until SIGTERM")
	port := flag.Int("port", 0, "of the listener; 0: any")
	dial := flag.String("dial", "", "be the peers of the listener at this `host:port`")
	length := flag.Duration("time", time.Minute, "how long the peers go on")
	peers := flag.Int("peers", 100, "number of peers that behave")
	vandals := flag.Int("vandals", 100, "number of those that do not")
	first := flag.Int("first", 0, "number of the first peer: those of several programs must differ")
	seed := flag.Uint64("seed", rand.Uint64(), "of all that is random")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &crowd{seed: *seed, length: *length, peers: *peers, vandals: *vandals, first: *first}
	var err error
	switch {
	case *serve:
		err = runServer(ctx, *port, *seed)
	case *dial != "":
		err = c.run(ctx, *dial)
	default:
		err = both(ctx, c)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n(-seed %#x)\n", err, *seed)
		os.Exit(1)
	}
}

// both runs the listener as a process of its own, and its peers here.
func both(ctx context.Context, c *crowd) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	server := exec.Command(exe, "-serve", fmt.Sprintf("-seed=%d", c.seed))
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer server.Process.Kill() // for the ways out on which it still runs
	lines := bufio.NewScanner(out)
	var addr string
	for addr == "" && lines.Scan() {
		addr, _ = strings.CutPrefix(lines.Text(), "listening at ")
	}
	crowdErr := c.run(ctx, addr)
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	var last string
	for lines.Scan() {
		last = lines.Text()
		fmt.Println(last)
	}
	io.Copy(io.Discard, out)
	if err := server.Wait(); err != nil {
		return fmt.Errorf("the listener: %w", err)
	}
	if want := fmt.Sprintf("delivered %d messages ", c.sent.Load()); crowdErr == nil && !strings.HasPrefix(last, want) {
		return fmt.Errorf("%d messages were acknowledged to their senders, and the listener's sum is another", c.sent.Load())
	}
	return crowdErr
}
