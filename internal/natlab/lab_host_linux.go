package natlab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Namespace is one host of the lab.
type Namespace struct{ Name string }

func (l *Lab) namespace(t testing.TB, role string) *Namespace {
	t.Helper()
	n := &Namespace{Name: namespaceName(l.id, role)}
	if out, err := exec.Command("ip", "netns", "add", n.Name).CombinedOutput(); err != nil {
		t.Fatalf("natlab: ip netns add %s: %v: %s", n.Name, err, out)
	}
	n.Run(t, "ip", "link", "set", "lo", "up")
	return n
}

// Command prepares a program that runs in the namespace. ip replaces itself by
// the program, so signals reach it.
func (n *Namespace) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.Name}, args...)...)
}

// Run runs a program to its end and returns what it printed; a failure fails
// the test.
func (n *Namespace) Run(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.Command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("natlab: in %s: %s: %v\n%s%s", n.Name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// Dial connects from inside the namespace. addr must hold an IP address, and
// the connection may be used anywhere.
func (n *Namespace) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var c net.Conn
	err := n.enter(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// Listen accepts TCP connections inside the namespace.
func (n *Namespace) Listen(addr string) (net.Listener, error) {
	var ln net.Listener
	err := n.enter(func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	return ln, err
}

// enter runs f with a thread that is inside the namespace. What f opens stays
// there, because a socket belongs to the namespace of the thread that made it;
// f must not leave that to other goroutines.
func (n *Namespace) enter(f func() error) error {
	ns, err := os.Open(filepath.Join("/run/netns", n.Name))
	if err != nil {
		return err
	}
	defer ns.Close()
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and nothing else
		// ever runs in the wrong namespace.
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(sysSetns, ns.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			result <- fmt.Errorf("entering the namespace %s: %w", n.Name, errno)
			return
		}
		result <- f()
	}()
	return <-result
}

// sysSetns is setns(2), which package syscall has no name for everywhere.
var sysSetns = map[string]uintptr{"amd64": 308, "386": 346, "arm": 375, "arm64": 268, "riscv64": 268}[runtime.GOARCH]

// Start starts a program in the namespace and follows what it prints. The
// program is killed at the end of the test if it still runs.
func (n *Namespace) Start(t testing.TB, args ...string) *Program {
	t.Helper()
	p := &Program{cmd: n.Command(context.Background(), args...), name: filepath.Base(args[0]), change: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	p.cmd.Stdout = lineWriter{p}
	p.began = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("natlab: starting %s: %v", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		p.ended = time.Now()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s printed:\n%s\nand logged:\n%s", p.name, strings.Join(p.Lines(), "\n"), p.stderr.Bytes())
		}
	})
	return p
}

// A Program runs in a namespace. Its methods may be used from the test's
// goroutine.
type Program struct {
	cmd    *exec.Cmd
	name   string
	stderr bytes.Buffer // the program's until done
	began  time.Time

	mu      sync.Mutex
	partial []byte        // a line that has not ended yet
	lines   []string      // whole lines of standard output
	change  chan struct{} // closed and replaced at every new line

	done  chan struct{} // closed when the program has ended
	err   error         // why, after done
	ended time.Time     // when, after done
}

// lineWriter cuts standard output into lines.
type lineWriter struct{ p *Program }

func (w lineWriter) Write(b []byte) (int, error) {
	p := w.p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.partial = append(p.partial, b...)
	for {
		line, rest, found := bytes.Cut(p.partial, []byte("\n"))
		if !found {
			return len(b), nil
		}
		p.lines = append(p.lines, string(line))
		p.partial = rest
		close(p.change)
		p.change = make(chan struct{})
	}
}

// Lines returns the lines printed so far.
func (p *Program) Lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines[:len(p.lines):len(p.lines)]
}

// Await waits for a line of standard output that begins with prefix, one
// printed before the call included, and returns it with the time since the
// program's start.
func (p *Program) Await(t testing.TB, limit time.Duration, prefix string) (string, time.Duration) {
	t.Helper()
	timeout := time.After(limit)
	seen := 0
	for {
		p.mu.Lock()
		lines, change := p.lines, p.change
		p.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if strings.HasPrefix(lines[seen], prefix) {
				return lines[seen], time.Since(p.began)
			}
		}
		select {
		case <-change:
		case <-p.done:
			if len(p.Lines()) == seen {
				t.Fatalf("%s ended (%v) before it printed %q", p.name, p.err, prefix)
			}
		case <-timeout:
			t.Fatalf("%s did not print %q within %v", p.name, prefix, limit)
		}
	}
}

// Stop sends the signal, waits for the end and returns how long that took and
// how the program ended.
func (p *Program) Stop(t testing.TB, s os.Signal, limit time.Duration) (time.Duration, error) {
	t.Helper()
	sent := time.Now()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%s: sending %v: %v", p.name, s, err)
	}
	err := p.Wait(t, limit)
	return p.ended.Sub(sent), err
}

// Wait waits for the program to end by itself and returns how it did.
func (p *Program) Wait(t testing.TB, limit time.Duration) error {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		t.Fatalf("%s still runs after %v", p.name, limit)
	}
	return p.err
}
