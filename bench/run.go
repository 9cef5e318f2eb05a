//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// This file goes through workloads, rounds and servers.

// options are how much is measured.
type options struct {
	run     *regexp.Regexp // of workload names
	servers []string       // nil means all
	rounds  int
	window  time.Duration // of one server in one round
	idle    int           // rounds of the idle workloads
	settle  time.Duration // silence before memory is read
	conns   int           // at most, of the idle workloads
	micro   bool          // the codec's benchmarks too
	log     *log.Logger
}

// runAll runs the workloads that o chooses. It fails only if nothing can be
// measured or ctx ends; a server that fails is left out and named.
func runAll(ctx context.Context, o options) (*results, error) {
	r := &results{samples: make(map[string]map[string][]sample), missing: make(map[string]string)}
	for _, w := range workloads {
		if o.run == nil || o.run.MatchString(w.name) {
			r.workloads = append(r.workloads, w)
		}
	}
	micro := o.micro && (o.run == nil || o.run.MatchString(microName))
	if len(r.workloads) == 0 && !micro {
		return nil, errors.New("no workload has such a name; -list shows them")
	}
	scratch, err := os.MkdirTemp("", "peerws-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	if err := writeCertificate(scratch); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, name := range o.servers {
		if find(name) == nil {
			return nil, fmt.Errorf("no server is called %q; -list shows them", name)
		}
	}
	b := &bench{options: o, results: r, scratch: scratch, args: make(map[string][]string)}
	for i := range contestants {
		c := &contestants[i]
		if o.servers != nil && c.name != baseline && !slices.Contains(o.servers, c.name) {
			continue
		}
		args := []string{self, "-serve", c.name}
		if c.command != nil {
			var missing error
			if args, c.version, missing = c.command(scratch); missing != nil {
				r.missing[c.name] = missing.Error()
				o.log.Printf("%s does not take part: %v", c.name, missing)
				continue
			}
		}
		b.args[c.name] = args
		r.servers = append(r.servers, c)
	}
	if err := b.claim(); err != nil {
		return nil, err
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		if one, err := strconv.ParseFloat(strings.Fields(string(load))[0], 64); err == nil && one > 0.5 {
			b.remark("The machine was not idle at the start (load %.1f); do not trust the third digit.", one)
		}
	}
	for _, w := range r.workloads {
		began := time.Now()
		r.samples[w.name] = make(map[string][]sample)
		if w.kind == idle {
			b.measureIdle(ctx, w)
		} else {
			b.measureTimed(ctx, w)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		o.log.Printf("%-10s %v", w.name, time.Since(began).Round(100*time.Millisecond))
	}
	if micro {
		out, err := measureMicro()
		if err != nil {
			b.remark("The codec was not measured: %v.", err)
		}
		r.micro = parseMicro(out)
	}
	return r, nil
}

// A bench is one run of the command.
type bench struct {
	options
	*results
	scratch string
	args    map[string][]string // command line of each server
	cpus    []int
	own     int // the driver's CPU
	files   int // descriptors a process may have
}

// claim pins this process to the last CPU and raises its limit of open files,
// which the servers inherit.
func (b *bench) claim() error {
	var err error
	if b.cpus, err = cores(); err != nil {
		return err
	}
	b.own = b.cpus[len(b.cpus)-1]
	if err := pinSelf([]int{b.own}); err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	b.files = int(min(limit.Max, math.MaxInt32))
	// A collection in the middle of a window would be the driver's, not the
	// server's, but it would change what the server sees.
	debug.SetGCPercent(400)
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// place chooses CPUs for a server with that many processors, and says whether
// the driver has its CPU to itself.
func (b *bench) place(procs int) (cpus []int, spin bool) {
	n := max(procs, 1)
	if n < len(b.cpus) {
		return b.cpus[:n], true
	}
	return b.cpus, false
}

func (b *bench) remark(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(b.remarks, s) {
		b.remarks = append(b.remarks, s)
		b.log.Print(s)
	}
}

func (b *bench) fail(w workload, c *contestant, err error) {
	s := fmt.Sprintf("%s, %s: %v.", w.name, c.name, err)
	b.failed = append(b.failed, s)
	b.log.Print(s)
	// Half a row would be compared with other rounds.
	delete(b.samples[w.name], c.name)
}

// measureTimed runs the rounds of w. A server that fails takes no further part
// in it.
func (b *bench) measureTimed(ctx context.Context, w workload) {
	cpus, spin := b.place(w.procs)
	if !spin {
		b.remark("%s: there are only %d CPUs, so server and driver share them, and the driver sleeps instead of spinning.", w.name, len(b.cpus))
	}
	var running []*process
	for _, c := range b.results.servers {
		if !c.can(w) {
			continue
		}
		p, err := start(c, b.args[c.name], w, cpus, b.scratch)
		if err != nil {
			b.fail(w, c, err)
			continue
		}
		running = append(running, p)
	}
	defer func() {
		for _, p := range running {
			p.stop()
		}
	}()
	for round := range b.rounds {
		for k := range running {
			p := running[(k+round)%len(running)]
			if p.dead {
				continue
			}
			s, err := b.once(p, w, spin)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				p.dead = true
				b.fail(w, p.contestant, err)
				continue
			}
			b.samples[w.name][p.name] = append(b.samples[w.name][p.name], s)
		}
	}
}

// once measures one server once.
func (b *bench) once(p *process, w workload, spin bool) (s sample, err error) {
	var load func(time.Duration) (int, error)
	var d *driver
	if w.kind == handshakes {
		load = func(t time.Duration) (int, error) { return greet(p.port, w.conns, spin, t) }
	} else {
		if d, err = open(p.port, w.conns, w.pack); err != nil {
			return s, err
		}
		defer func() {
			d.close()
			// What the server does about the closed connections must not fall
			// into the next one's window.
			time.Sleep(time.Duration(2+w.conns/50) * time.Millisecond)
		}()
		d.request, d.reply = w.request(p.raw)
		d.payload, d.messages, d.spin = w.payload(), max(w.batch, 1), spin
		if w.pack && !p.raw {
			if err := d.learn(w); err != nil {
				return s, err
			}
		}
		switch w.kind {
		case echo:
			load = d.echo
		case paced:
			d.sent = make([]queue, w.conns)
			d.latencies = make([]time.Duration, 0, 2*int(float64(w.rate)*b.window.Seconds()))
			load = func(t time.Duration) (int, error) { return d.pace(t, w.rate) }
		case broadcast:
			// A server joins a connection to the group when it has sent the
			// answer to the handshake.
			time.Sleep(50 * time.Millisecond)
			load = d.broadcast
		}
	}
	if _, err := load(b.window / 4); err != nil { // warm
		return s, err
	}
	// The first two questions are only asked to know what a question costs.
	if _, err := p.ask("stats"); err != nil {
		return s, err
	}
	first, err := p.ask("stats")
	if err != nil {
		return s, err
	}
	before, err := p.ask("stats")
	if err != nil {
		return s, err
	}
	cpu, err := p.cpu()
	if err != nil {
		return s, err
	}
	began := time.Now()
	if s.messages, err = load(b.window); err != nil {
		return s, err
	}
	s.wall = time.Since(began)
	used, err := p.cpu()
	if err != nil {
		return s, err
	}
	s.cpu = used - cpu
	after, err := p.ask("stats")
	if err != nil {
		return s, err
	}
	if s.messages == 0 {
		return s, errors.New("no message came back in the window")
	}
	s.mallocs = math.NaN()
	if !after.Unsupported {
		question := before.Mallocs - first.Mallocs
		s.mallocs = max(0, float64(int64(after.Mallocs-before.Mallocs-question))) / float64(s.messages)
	}
	if w.kind == paced {
		slices.Sort(d.latencies)
		n := len(d.latencies)
		s.p50, s.p99 = d.latencies[n/2], d.latencies[n*99/100]
	}
	return s, nil
}

// measureIdle measures the memory of silent connections, each server in a
// fresh process.
func (b *bench) measureIdle(ctx context.Context, w workload) {
	w.conns = min(w.conns, b.conns)
	// Both ends of a connection are a descriptor in a process; some are needed
	// for other things.
	if most := b.files - 200; w.conns > most {
		b.remark("%s: a process may have %d open files, so there are %d connections instead of %d.", w.name, b.files, most, w.conns)
		w.conns = most
	}
	cpus, _ := b.place(1)
	for _, c := range b.results.servers {
		if !c.can(w) {
			continue
		}
		for range b.idle {
			s, err := b.idleOnce(c, w, cpus)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				b.fail(w, c, err)
				break
			}
			b.samples[w.name][c.name] = append(b.samples[w.name][c.name], s)
		}
	}
}

func (b *bench) idleOnce(c *contestant, w workload, cpus []int) (s sample, err error) {
	p, err := start(c, b.args[c.name], w, cpus, b.scratch)
	if err != nil {
		return s, err
	}
	defer p.stop()
	request, reply := w.request(c.raw)
	connect := func(n int) (closeAll func(), err error) {
		if w.tls {
			return openTLS(p.port, n, request, reply)
		}
		d, err := open(p.port, n, w.pack)
		if err != nil {
			return nil, err
		}
		d.request, d.reply, d.messages = request, reply, 1
		if w.pack && !c.raw {
			if err := d.learn(w); err != nil {
				d.close()
				return nil, err
			}
		}
		if _, err := d.echo(0); err != nil {
			d.close()
			return nil, err
		}
		return d.close, nil
	}
	// Code that runs for the first time, tables and pools are no connection's.
	closeAll, err := connect(min(10, w.conns))
	if err != nil {
		return s, err
	}
	closeAll()
	time.Sleep(b.settle / 10)
	empty, err := p.ask("stats")
	if err != nil {
		return s, err
	}
	base, err := p.memory()
	if err != nil {
		return s, err
	}
	if closeAll, err = connect(w.conns); err != nil {
		return s, err
	}
	defer closeAll()
	time.Sleep(b.settle)
	each := func(n, less uint64) float64 { return (float64(n) - float64(less)) / float64(w.conns) }
	now, err := p.memory()
	if err != nil {
		return s, err
	}
	s.asIs = each(uint64(now), uint64(base))
	full, err := p.ask("gc")
	if err != nil {
		return s, err
	}
	if now, err = p.memory(); err != nil {
		return s, err
	}
	s.messages, s.mallocs = w.conns, math.NaN()
	s.afterGC = each(uint64(now), uint64(base))
	s.heap, s.stack = each(full.HeapInuse, empty.HeapInuse), each(full.StackInuse, empty.StackInuse)
	if full.Unsupported {
		s.afterGC, s.heap, s.stack = math.NaN(), math.NaN(), math.NaN()
	}
	return s, nil
}
