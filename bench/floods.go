//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Floods: many connections send without end, and an honest peer wants an echo every few
// milliseconds, while newcomers come. Beside it the same bytes are sent to the plain TCP
// echo. The attackers have a process of their own, with a lower priority; everything
// shares all CPUs.

const (
	floodConns     = 200
	floodTime      = 5 * time.Second
	floodPause     = 5 * time.Millisecond // between two echoes of the honest peer
	floodNewcomers = 40
	knocks         = 1000 // connections of those who say too little, from knockAddresses
	knockAddresses = 100
	knockNewcomers = 100
	dripPause      = 200 * time.Millisecond // between two bytes
	floodPatience  = time.Second            // what a newcomer has until its first echo is back
	floodNice      = 10
)

// A flood is what each attacking connection sends: once, and then again and again. Those
// that knock send first in place of the opening handshake, and behind it then, a byte at
// a time.
type flood struct {
	name, title string
	first, then []byte
	knocks      bool
}

// newcomers is how many come meanwhile.
func (f flood) newcomers() int {
	if f.knocks {
		return knockNewcomers
	}
	return floodNewcomers
}

var attackKey = [4]byte{1, 2, 3, 4}

var floods = []flood{
	{name: "nothing", title: "nothing"},
	{name: "one", title: "1-byte messages", then: frame(2, []byte("x"), attackKey)},
	{name: "empty", title: "empty messages", then: frame(2, nil, attackKey)},
	{name: "ping", title: "pings", then: frame(9, nil, attackKey)},
	{name: "ping125", title: "pings of 125 B", then: frame(9, make([]byte, 125), attackKey)},
	{name: "pong", title: "pongs", then: frame(10, nil, attackKey)},
	{name: "fragments", title: "empty fragments", first: notFinal(frame(2, []byte("x"), attackKey)), then: notFinal(frame(0, nil, attackKey))},
	{name: "16k", title: "16 KiB messages", then: frame(2, make([]byte, 16*kib), attackKey)},
	{name: "silent", title: "1,000 connections from 100 addresses that say nothing", knocks: true},
	{name: "half", title: "as many that send half a head", first: []byte(opening[:len(opening)/2]), knocks: true},
	{name: "drip", title: "as many that send it a byte at a time", then: []byte(opening), knocks: true},
}

// notFinal takes the FIN bit off a frame.
func notFinal(f []byte) []byte {
	f[0] &^= 0x80
	return f
}

// attack is the attackers' process. It prints a line when all are connected.
func attack(name string, port int) error {
	i := slices.IndexFunc(floods, func(f flood) bool { return f.name == name })
	if i < 0 {
		return fmt.Errorf("there is no flood %q", name)
	}
	f := floods[i]
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, floodNice); err != nil {
		return err
	}
	if f.knocks {
		knock(f, port)
	} else if err := send(f, port); err != nil {
		return err
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the other side is gone
	return nil
}

// send has connections that are open send as f says.
func send(f flood, port int) error {
	batch := bytes.Repeat(f.then, 64*kib/max(len(f.then), 1)+1)
	var conns []net.Conn
	for range floodConns {
		c, _, err := enter(port, time.Minute)
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		go io.Copy(io.Discard, c)
		if len(f.then) == 0 {
			continue
		}
		go func() {
			c.Write(f.first)
			for {
				if _, err := c.Write(batch); err != nil { // the server has had enough
					return
				}
			}
		}()
	}
	return nil
}

// knock opens connections as f says, each again when it has been shut. It returns when
// each has been tried once.
func knock(f flood, port int) {
	var once sync.WaitGroup
	for i := range knocks {
		once.Add(1)
		go func() {
			d := net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 0, byte(1+i%knockAddresses))}}
			for n := 0; ; n++ {
				c, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if n == 0 {
					once.Done()
				}
				if err == nil {
					if _, err = c.Write(f.first); err == nil {
						go func() {
							for _, b := range f.then {
								if _, err := c.Write([]byte{b}); err != nil {
									break
								}
								time.Sleep(dripPause)
							}
						}()
						io.Copy(io.Discard, c) // until it is shut
					}
					c.Close()
				}
				time.Sleep(dripPause)
			}
		}()
	}
	once.Wait()
}

// enter connects and does the opening handshake.
func enter(port int, patience time.Duration) (net.Conn, *bufio.Reader, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), patience)
	if err != nil {
		return nil, nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, opening)
	r := bufio.NewReader(c)
	for line := ""; line != "\r\n"; {
		if line, err = r.ReadString('\n'); err != nil || strings.HasPrefix(line, "HTTP/1.1 ") && !strings.HasPrefix(line, "HTTP/1.1 101 ") {
			c.Close()
			return nil, nil, errors.Join(fmt.Errorf("answer %q", line), err)
		}
	}
	c.SetDeadline(time.Time{})
	return c, r, nil
}

// A floodResult is what the honest have seen.
type floodResult struct {
	p50, p99  time.Duration
	newcomers int
	came      int // newcomers that got in
	peak      int // resident bytes
}

func (r floodResult) String() string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.2f / %.2f | %d of %d | %d MB", ms(r.p50), ms(r.p99), r.came, r.newcomers, r.peak/1e6)
}

// runFloods prints a line for each flood: peerws, and the plain TCP echo.
func runFloods(ctx context.Context, out io.Writer) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "| %d connections send | peerws: p50 / p99, ms | newcomers | peak | tcp: p50 / p99, ms | newcomers | peak |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n", floodConns)
	for _, f := range floods {
		fmt.Fprintf(out, "| %s |", f.title)
		for _, name := range []string{"peerws", baseline} {
			i := slices.IndexFunc(contestants, func(c contestant) bool { return c.name == name })
			r, err := runFlood(ctx, exe, f, &contestants[i])
			if err != nil {
				return fmt.Errorf("%s, %s: %w", f.title, name, err)
			}
			fmt.Fprintf(out, " %v |", r)
		}
		fmt.Fprintln(out)
	}
	return nil
}

func runFlood(ctx context.Context, exe string, f flood, c *contestant) (res floodResult, err error) {
	cpus, err := cores()
	if err != nil {
		return res, err
	}
	w := workload{size: 125, procs: len(cpus)}
	p, err := start(c, []string{exe, "-serve", c.name}, w, cpus, "")
	if err != nil {
		return res, err
	}
	defer p.stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	attackers := exec.CommandContext(ctx, exe, "-flood", f.name, "-port", fmt.Sprint(p.port))
	attackers.Stderr = os.Stderr
	stdin, err := attackers.StdinPipe()
	if err != nil {
		return res, err
	}
	stdout, err := attackers.StdoutPipe()
	if err != nil {
		return res, err
	}
	if err := attackers.Start(); err != nil {
		return res, err
	}
	defer attackers.Wait()
	defer stdin.Close()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return res, fmt.Errorf("the attackers do not get in: %w", err)
	}
	time.Sleep(floodTime / 10)
	request, reply := workload{size: 125}.request(c.raw)
	conn, r, err := enter(p.port, time.Minute)
	if err != nil {
		return res, err
	}
	defer conn.Close()
	var in atomic.Int32
	arrived := make(chan struct{})
	go func() {
		defer close(arrived)
		for range f.newcomers() {
			end := time.Now().Add(floodPatience)
			if conn, r, err := enter(p.port, floodPatience); err == nil {
				conn.SetDeadline(end)
				if echoOnce(conn, r, request, reply) == nil {
					in.Add(1)
				}
				conn.Close()
			}
			time.Sleep(floodTime / time.Duration(f.newcomers()) / 2)
		}
	}()
	var times []time.Duration
	for end := time.Now().Add(floodTime); time.Now().Before(end); time.Sleep(floodPause) {
		start := time.Now()
		conn.SetDeadline(start.Add(time.Minute))
		if err := echoOnce(conn, r, request, reply); err != nil {
			return res, err
		}
		times = append(times, time.Since(start))
		if n, err := p.memory(); err == nil {
			res.peak = max(res.peak, n)
		}
	}
	<-arrived
	slices.Sort(times)
	res.p50, res.p99 = times[len(times)/2], times[len(times)*99/100]
	res.newcomers, res.came = f.newcomers(), int(in.Load())
	return res, nil
}

// echoOnce sends a request and compares the reply.
func echoOnce(w io.Writer, r io.Reader, request, reply []byte) error {
	if _, err := w.Write(request); err != nil {
		return err
	}
	got := make([]byte, len(reply))
	if _, err := io.ReadFull(r, got); err != nil {
		return err
	}
	if !bytes.Equal(got, reply) {
		return errors.New("the reply is not what was sent")
	}
	return nil
}
