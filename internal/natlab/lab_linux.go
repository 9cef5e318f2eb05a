package natlab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The addresses of a lab. They exist only inside its namespaces, so every lab
// has the same ones. The WAN ones must look public to the gateway daemon,
// which refuses to map on private, shared and documentation ranges.
var (
	GatewayLAN = netip.MustParseAddr("192.168.77.1")
	GatewayWAN = netip.MustParseAddr("11.22.33.44")
	WANHost    = netip.MustParseAddr("11.22.33.1")
)

// A Daemon says what the gateway answers to.
type Daemon int

const (
	Both    Daemon = iota // UPnP IGD and NAT-PMP/PCP
	UPnP                  // UPnP alone: port 5351 is refused
	NATPMP                // NAT-PMP and PCP alone: they share one switch in the daemon
	Silence               // a router that forwards, and drops every question
)

// A Config describes the gateway of a Lab. The zero value is an ordinary home
// router that answers to every protocol.
type Config struct {
	Daemon         Daemon
	IGD1           bool     // describe itself as InternetGatewayDevice:1
	Secure         bool     // a host may only forward to itself
	Rules          []string // the daemon's permission rules in order; none allows everything
	NoDefaultRoute bool     // LAN hosts have an address, and no way out
}

// A Lab is a home network, its router and the world outside, each a network
// namespace: hosts in LAN, miniupnpd and nftables in Gateway, one peer in WAN.
type Lab struct {
	LAN, Gateway, WAN *Namespace
	Host              netip.Addr // the address of LAN

	config Config
	id     string
	dir    string // private to this lab: lock, daemon's configuration, leases and pid
	hosts  int    // namespaces on the LAN so far
}

// labRoot holds one directory for each lab on this machine. It is a fixed
// place, not TMPDIR, because every process must see every other's labs.
const labRoot = "/run/peerws-lab"

// labTools are the programs every lab runs.
var labTools = []string{"ip", "nft", "miniupnpd"}

// Need skips the test unless PEERWS_LAB=1 asks for the lab, and fails it when
// the lab is asked for and this machine cannot have one: a check that was
// wanted must never pass by not running.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	if os.Getenv("PEERWS_LAB") != "1" {
		t.Skip("needs root, network namespaces and miniupnpd: set PEERWS_LAB=1 to run it")
	}
	if os.Geteuid() != 0 {
		t.Fatal("PEERWS_LAB=1 needs root, to make network namespaces")
	}
	for _, tool := range append(tools, labTools...) {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("PEERWS_LAB=1 needs the program %s: %v", tool, err)
		}
	}
}

// New builds a lab and takes it down again when the test ends.
func New(t testing.TB, config Config) *Lab {
	t.Helper()
	Need(t)
	var random [4]byte
	rand.Read(random[:])
	l := &Lab{config: config, id: hex.EncodeToString(random[:])}
	l.dir = filepath.Join(labRoot, l.id)
	lock, err := claim(l.dir)
	if err != nil {
		t.Fatalf("natlab: %v", err)
	}
	t.Cleanup(func() {
		err := withRootLock(func() error { return demolish(l.id) })
		lock.Close()
		if err != nil {
			t.Errorf("natlab: cleaning up: %v", err)
		}
	})

	l.WAN = l.namespace(t, "wan")
	l.Gateway = l.namespace(t, "gw")
	l.Gateway.Run(t, "ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan0", "netns", l.WAN.Name)
	l.WAN.Run(t, "ip", "addr", "add", netip.PrefixFrom(WANHost, 24).String(), "dev", "wan0")
	l.WAN.Run(t, "ip", "link", "set", "wan0", "up")

	// The LAN is a bridge, so that it can have several hosts. Snooping would
	// want a querier before it lets SSDP's multicast through.
	gw := l.Gateway
	gw.Run(t, "ip", "link", "add", "lan0", "type", "bridge", "mcast_snooping", "0")
	gw.Run(t, "ip", "addr", "add", netip.PrefixFrom(GatewayLAN, 24).String(), "dev", "lan0")
	gw.Run(t, "ip", "link", "set", "lan0", "up")
	gw.Run(t, "ip", "addr", "add", netip.PrefixFrom(GatewayWAN, 24).String(), "dev", "wan0")
	gw.Run(t, "ip", "link", "set", "wan0", "up")
	gw.Run(t, "ip", "route", "add", "default", "via", WANHost.String())
	gw.Run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	rules := filepath.Join(l.dir, "rules.nft")
	if err := os.WriteFile(rules, []byte(baseRules(config.Daemon == Silence)), 0o600); err != nil {
		t.Fatalf("natlab: %v", err)
	}
	gw.Run(t, "nft", "-f", rules)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the gateway's rules at the end:\n%s", strings.Join(l.Rules(t), "\n"))
		}
	})

	l.LAN, l.Host = l.AddHost(t)
	if config.Daemon != Silence {
		l.StartDaemon(t)
	}
	return l
}

// AddHost puts another host on the LAN.
func (l *Lab) AddHost(t testing.TB) (*Namespace, netip.Addr) {
	t.Helper()
	l.hosts++
	n := l.namespace(t, fmt.Sprintf("lan%d", l.hosts))
	addr := netip.AddrFrom4([4]byte{192, 168, 77, byte(9 + l.hosts)})
	port := fmt.Sprintf("port%d", l.hosts)
	l.Gateway.Run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", n.Name)
	l.Gateway.Run(t, "ip", "link", "set", port, "master", "lan0", "up")
	n.Run(t, "ip", "addr", "add", netip.PrefixFrom(addr, 24).String(), "dev", "eth0")
	n.Run(t, "ip", "link", "set", "eth0", "up")
	if !l.config.NoDefaultRoute {
		n.Run(t, "ip", "route", "add", "default", "via", GatewayLAN.String())
	}
	return n, addr
}

// baseRules is what a home router's firewall says before anybody has asked it
// for a forward, with the three chains that miniupnpd fills. Only what the LAN
// began, and what the daemon let in, passes.
func baseRules(silent bool) string {
	drop := ""
	if silent {
		drop = `iifname "lan0" udp dport { 1900, 5351 } drop`
	}
	return `table inet filter {
	chain input {
		type filter hook input priority 0; policy accept;
		` + drop + `
		iifname "wan0" ct state established,related accept
		iifname "wan0" meta l4proto { icmp, ipv6-icmp } accept
		iifname "wan0" drop
	}
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "lan0" accept
		jump miniupnpd
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		jump prerouting_miniupnpd
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		jump postrouting_miniupnpd
		meta nfproto ipv4 oifname "wan0" masquerade
	}
	chain miniupnpd { }
	chain prerouting_miniupnpd { }
	chain postrouting_miniupnpd { }
}
`
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// StartDaemon starts miniupnpd in the gateway and waits until it can be asked.
func (l *Lab) StartDaemon(t testing.TB) {
	t.Helper()
	c := l.config
	lines := append([]string{
		"ext_ifname=wan0",
		"listening_ip=lan0",
		"http_port=5000",
		"enable_upnp=" + yesNo(c.Daemon != NATPMP),
		"enable_natpmp=" + yesNo(c.Daemon != UPnP),
		"force_igd_desc_v1=" + yesNo(c.IGD1),
		"secure_mode=" + yesNo(c.Secure),
		"system_uptime=no",
		"lease_file=" + filepath.Join(l.dir, "leases"),
		"upnp_table_name=filter",
		"upnp_nat_table_name=filter",
		"upnp_forward_chain=miniupnpd",
		"upnp_nat_chain=prerouting_miniupnpd",
		"upnp_nat_postrouting_chain=postrouting_miniupnpd",
		fmt.Sprintf("uuid=70656572-7773-4c61-8b00-0000%s", l.id),
	}, c.Rules...)
	conf := filepath.Join(l.dir, "miniupnpd.conf")
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatalf("natlab: %v", err)
	}
	if err := os.Remove(l.pidFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("natlab: %v", err)
	}
	// It goes to the background by itself. Its -d would keep it in front, and
	// make it deaf for minutes over every refusal.
	l.Gateway.Run(t, "miniupnpd", "-f", conf, "-P", l.pidFile())
	port := 1900
	if c.Daemon == NATPMP {
		port = 5351
	}
	for end := time.Now().Add(5 * time.Second); !l.daemonListens(port); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("natlab: miniupnpd does not listen on UDP port %d after 5 s", port)
		}
	}
}

func (l *Lab) pidFile() string { return filepath.Join(l.dir, "miniupnpd.pid") }

// daemonPID is 0 when no daemon has been started.
func (l *Lab) daemonPID() int {
	b, err := os.ReadFile(l.pidFile())
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// daemonListens looks into the kernel's socket table: asking the daemon would
// change what the test is about to measure.
func (l *Lab) daemonListens(port int) bool {
	pid := l.daemonPID()
	if pid == 0 {
		return false
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/udp", pid))
	return err == nil && strings.Contains(string(table), fmt.Sprintf(":%04X ", port))
}

// StopDaemon ends miniupnpd as a shutdown (SIGTERM, it says goodbye) or a
// crash (SIGKILL) would. The rules it made stay: flushing them is a reboot's
// work.
func (l *Lab) StopDaemon(t testing.TB, s syscall.Signal) {
	t.Helper()
	pid := l.daemonPID()
	if pid == 0 {
		t.Fatal("natlab: no miniupnpd to stop")
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("natlab: miniupnpd: %v", err)
	}
	for end := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("natlab: miniupnpd lives on, 5 s after %v", s)
		}
	}
}

// alive tells a running process from one that has ended and that nobody has
// waited for yet.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// Rules lists what the daemon has written into the firewall, a rule a line.
// Empty means that nothing is forwarded.
func (l *Lab) Rules(t testing.TB) []string {
	t.Helper()
	var rules []string
	for _, chain := range []string{"prerouting_miniupnpd", "miniupnpd", "postrouting_miniupnpd"} {
		for line := range strings.Lines(l.Gateway.Run(t, "nft", "list", "chain", "inet", "filter", chain)) {
			line = strings.TrimSpace(line)
			if line != "" && line != "}" && !strings.HasSuffix(line, "{") {
				rules = append(rules, line)
			}
		}
	}
	return rules
}

var dnatRule = regexp.MustCompile(` dport (\d+) .*?dnat (?:ip )?to ([0-9.]+:\d+)`)

// Forwards reads the forwards out of Rules: external port to internal address.
func (l *Lab) Forwards(t testing.TB) map[uint16]netip.AddrPort {
	t.Helper()
	forwards := map[uint16]netip.AddrPort{}
	for _, rule := range l.Rules(t) {
		m := dnatRule.FindStringSubmatch(rule)
		if m == nil {
			continue
		}
		port, err := strconv.ParseUint(m[1], 10, 16)
		if err != nil {
			t.Fatalf("natlab: rule %q: %v", rule, err)
		}
		forwards[uint16(port)] = netip.MustParseAddrPort(m[2])
	}
	return forwards
}

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
	select {
	case <-p.done:
	case <-time.After(limit):
		t.Fatalf("%s still runs %v after %v", p.name, limit, s)
	}
	return p.ended.Sub(sent), p.err
}

func namespaceName(id, role string) string { return "pw-" + id + "-" + role }

var namespacePattern = regexp.MustCompile(`(?m)^pw-([0-9a-f]{8})-\w+`)

// claim makes the lab's directory and locks it for as long as this process
// lives, however that ends. It first takes down labs whose process is gone.
func claim(dir string) (*os.File, error) {
	var lock *os.File
	err := withRootLock(func() error {
		if err := sweep(); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		var err error
		lock, err = lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		return err
	})
	return lock, err
}

// withRootLock keeps one process at a time at making and removing lab
// directories, so that a lab being made is not taken for a dead one.
func withRootLock(f func() error) error {
	if err := os.MkdirAll(labRoot, 0o700); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(labRoot, "lock"), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	return f()
}

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}

// sweep takes down what killed test processes have left behind: labs whose
// lock nobody holds.
func sweep() error {
	ids := map[string]bool{}
	entries, err := os.ReadDir(labRoot)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			ids[e.Name()] = true
		}
	}
	list, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("ip netns list: %w", err)
	}
	for _, m := range namespacePattern.FindAllSubmatch(list, -1) {
		ids[string(m[1])] = true
	}
	for id := range ids {
		lock, err := lockFile(filepath.Join(labRoot, id, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // its process lives
		}
		if err == nil {
			lock.Close()
		}
		if err := demolish(id); err != nil {
			return err
		}
	}
	return nil
}

// demolish ends every process in the lab's namespaces, and removes these and
// the lab's directory. What is gone already is no error.
func demolish(id string) error {
	list, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("ip netns list: %w", err)
	}
	var errs []error
	for _, m := range namespacePattern.FindAllSubmatch(list, -1) {
		if string(m[1]) != id {
			continue
		}
		name := string(m[0])
		pids, err := exec.Command("ip", "netns", "pids", name).Output()
		if err != nil {
			errs = append(errs, fmt.Errorf("ip netns pids %s: %w", name, err))
		}
		for field := range strings.FieldsSeq(string(pids)) {
			// The threads that enter a namespace are this process's own.
			if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("ip netns delete %s: %w: %s", name, err, out))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(labRoot, id)))...)
}
