//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// cores lists the CPUs this process may run on.
func cores() ([]int, error) {
	var set [128]uint64 // 8192 CPUs
	n, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
	if errno != 0 {
		return nil, fmt.Errorf("sched_getaffinity: %w", errno)
	}
	var list []int
	for i := range int(n) * 8 {
		if set[i/64]&(1<<(i%64)) != 0 {
			list = append(list, i)
		}
	}
	return list, nil
}

// pin binds the thread tid, 0 for the calling one, to the CPUs.
func pin(tid int, cpus []int) error {
	var set [128]uint64
	for _, c := range cpus {
		set[c/64] |= 1 << (c % 64)
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, uintptr(tid), unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
	if errno != 0 {
		return fmt.Errorf("sched_setaffinity: %w", errno)
	}
	return nil
}

// pinSelf binds every thread of this process. Threads made later inherit it.
func pinSelf(cpus []int) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := pin(tid, cpus); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// cpuTime is the CPU time that a process has used, user and system, in
// nanoseconds, up to when its threads last stopped running. It is the process's own CPU clock (clock_getcpuclockid): exact
// where the ticks of /proc/PID/stat are 10 ms, and with the threads that have
// ended, which a sum over /proc/PID/task would lose.
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED, of the whole thread group
	var ts syscall.Timespec
	_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, uintptr(^pid<<3|sched), uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("the CPU clock of process %d: %w", pid, errno)
	}
	return time.Duration(ts.Nano()), nil
}

// resident is the memory of a process that is in RAM, exactly: the counters of
// /proc/PID/status may lag behind.
func resident(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Rss:" {
			n, err := strconv.Atoi(f[1])
			return n * kib, err
		}
	}
	return 0, errors.New("smaps_rollup without Rss")
}

// A process is a server that runs.
type process struct {
	*contestant
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	err  strings.Builder
	port int
	dead bool // it failed and takes no further part
}

// start starts the server of c for w on the given CPUs. args is its command
// line, to which what it must know of w is added.
func start(c *contestant, args []string, w workload, cpus []int, scratch string) (p *process, err error) {
	args = append(slices.Clone(args), serverFlags(w, scratch)...)
	p = &process{contestant: c, cmd: exec.Command(args[0], args[1:]...)}
	p.cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", max(w.procs, 1)))
	p.cmd.Stderr = &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.launch(cpus); err != nil {
		return nil, err
	}
	line, err := p.line()
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("%s does not start: %w %s", c.name, err, strings.TrimSpace(p.err.String()))
	}
	if p.port, err = strconv.Atoi(line); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s prints %q instead of its port", c.name, line)
	}
	return p, nil
}

// launch starts the process from a thread that is bound to the CPUs, because a
// child inherits that. The caller's own CPUs come back.
func (p *process) launch(cpus []int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mine, err := cores()
	if err != nil {
		return err
	}
	if err := pin(0, cpus); err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return errors.Join(err, pin(0, mine))
	}
	return pin(0, mine)
}

func (p *process) line() (string, error) {
	s, err := p.out.ReadString('\n')
	return strings.TrimSpace(s), err
}

// ask sends a command, "stats" or "gc", and returns what the server tells.
func (p *process) ask(command string) (report, error) {
	var r report
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		return r, err
	}
	s, err := p.line()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(s), &r)
}

// cpu is the CPU time that the server has used once it sleeps: the kernel books
// a thread's time when it stops running, or at a tick.
func (p *process) cpu() (time.Duration, error) {
	time.Sleep(2 * time.Millisecond)
	return cpuTime(p.cmd.Process.Pid)
}

func (p *process) memory() (int, error) { return resident(p.cmd.Process.Pid) }

func (p *process) stop() {
	p.in.Close()
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// serverFlags tells a server about the workload. The names are those of this
// program's flags; the servers in JavaScript understand them too.
func serverFlags(w workload, scratch string) []string {
	buffer := 4 * kib
	if n := max(w.batch, 1) * (w.size + 14); n > buffer {
		buffer = 64 * kib
	}
	args := []string{"-buffer", strconv.Itoa(buffer)}
	if w.kind == broadcast {
		args = append(args, "-broadcast")
	}
	if w.pack {
		args = append(args, "-pack")
	}
	if w.tls {
		args = append(args, "-cert", filepath.Join(scratch, "cert.pem"), "-key", filepath.Join(scratch, "key.pem"))
	}
	return args
}
