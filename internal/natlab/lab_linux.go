package natlab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
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

// The same for IPv6, with Config.IPv6. Hosts know the gateway by its link-local
// address, as those that it tells itself do.
var (
	WANHost6    = netip.MustParseAddr("2001:db8:11::1")
	gatewayWAN6 = netip.MustParseAddr("2001:db8:11::2")
	gatewayLAN6 = netip.MustParseAddr("2001:db8:77::1")
	linkLocal6  = netip.MustParseAddr("fe80::1")
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
	NoPCP          bool     // NAT-PMP without PCP: requests of version 2 are dropped
	Secure         bool     // a host may only forward to itself
	Swallow        string   // a match of nftables: what of the LAN's questions the router drops
	MaxLifetime    int      // the longest lifetime PCP grants, in seconds; 0 for the daemon's own
	Rules          []string // the daemon's permission rules in order; none allows everything
	WAN            string   // the router's address outside, "" for GatewayWAN; WANHost does not reach another one
	NoDefaultRoute bool     // LAN hosts have an address, and no way out

	IPv6   bool // a network of global addresses too, behind a firewall that lets nobody in
	Deaf6  bool // with IPv6: the daemon is asked nothing over IPv6
	NoPCP6 bool // with IPv6: PCP is refused over it
}

// A Lab is a home network, its router and the world outside, each a network
// namespace: hosts in LAN, miniupnpd and nftables in Gateway, one peer in WAN.
type Lab struct {
	LAN, Gateway, WAN *Namespace
	Host              netip.Addr // the address of LAN
	Host6             netip.Addr // its global IPv6 address, with Config.IPv6

	config Config
	id     string
	dir    string // private to this lab: lock, daemon's configuration, leases and pid
	hosts  int    // namespaces on the LAN so far
	http   int    // the daemon's HTTP port
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

// newLab claims a lab without any host, to be taken down again when the test ends.
func newLab(t testing.TB, config Config) *Lab {
	t.Helper()
	Need(t)
	var random [4]byte
	rand.Read(random[:])
	l := &Lab{config: config, id: hex.EncodeToString(random[:]), http: 5000}
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
	return l
}

// New builds a lab and takes it down again when the test ends.
func New(t testing.TB, config Config) *Lab {
	t.Helper()
	l := newLab(t, config)
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
	if config.IPv6 { // one link-local address is enough, and it is linkLocal6
		gw.Run(t, "ip", "link", "set", "lan0", "addrgenmode", "none")
	}
	gw.Run(t, "ip", "link", "set", "lan0", "up")
	if config.WAN == "" {
		config.WAN = GatewayWAN.String()
	}
	gw.Run(t, "ip", "addr", "add", config.WAN+"/24", "dev", "wan0")
	gw.Run(t, "ip", "link", "set", "wan0", "up")
	gw.Run(t, "ip", "route", "add", "default", "via", WANHost.String(), "dev", "wan0", "onlink")
	gw.Run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	if config.IPv6 {
		l.WAN.Run(t, "ip", "addr", "add", netip.PrefixFrom(WANHost6, 64).String(), "dev", "wan0", "nodad")
		l.WAN.Run(t, "ip", "route", "add", netip.PrefixFrom(gatewayLAN6, 64).Masked().String(), "via", gatewayWAN6.String())
		gw.Run(t, "ip", "addr", "add", netip.PrefixFrom(gatewayWAN6, 64).String(), "dev", "wan0", "nodad")
		gw.Run(t, "ip", "route", "add", "default", "via", WANHost6.String())
		for _, a := range []netip.Addr{gatewayLAN6, linkLocal6} {
			gw.Run(t, "ip", "addr", "add", netip.PrefixFrom(a, 64).String(), "dev", "lan0", "nodad")
		}
		gw.Run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	}
	rules := filepath.Join(l.dir, "rules.nft")
	if err := os.WriteFile(rules, []byte(baseRules(config)), 0o600); err != nil {
		t.Fatalf("natlab: %v", err)
	}
	gw.Run(t, "nft", "-f", rules)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the gateway's rules at the end:\n%s", strings.Join(l.Rules(t), "\n"))
		}
	})

	l.LAN, l.Host = l.AddHost(t)
	if config.IPv6 {
		l.Host6 = l.host6(1)
		l.AddAddr6(t, l.Host6)
		l.LAN.Run(t, "ip", "route", "add", "default", "via", linkLocal6.String(), "dev", "eth0")
	}
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

// host6 is the n-th IPv6 address for hosts.
func (l *Lab) host6(n byte) netip.Addr {
	a := gatewayLAN6.As16()
	a[15] = 9 + n
	return netip.AddrFrom16(a)
}

// AddAddr6 gives LAN another IPv6 address.
func (l *Lab) AddAddr6(t testing.TB, a netip.Addr, more ...string) {
	t.Helper()
	l.LAN.Run(t, append([]string{"ip", "addr", "add", netip.PrefixFrom(a, 64).String(), "dev", "eth0", "nodad"}, more...)...)
}

// baseRules is what a home router's firewall says before anybody has asked it
// for a forward, with the three chains that miniupnpd fills. Only what the LAN
// began, and what the daemon let in, passes.
func baseRules(c Config) string {
	drop := ""
	switch {
	case c.Daemon == Silence:
		drop = `iifname "lan0" udp dport { 1900, 5351 } drop`
	case c.NoPCP: // the daemon has one switch for both; the version is the first byte behind the UDP header
		drop = `iifname "lan0" udp dport 5351 @th,64,8 2 drop`
	}
	if c.Swallow != "" {
		drop += "\n\t\t" + swallow(c.Swallow)
	}
	switch {
	case c.Deaf6:
		drop += "\n\t\t" + `iifname "lan0" meta nfproto ipv6 udp dport { 1900, 5351 } drop`
	case c.NoPCP6: // the daemon's switch is for IPv4 only
		drop += "\n\t\t" + `iifname "lan0" meta nfproto ipv6 udp dport 5351 reject`
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

func swallow(match string) string { return `iifname "lan0" ` + match + ` drop` }

// Swallow makes the gateway drop what of the LAN's questions fits the match.
func (l *Lab) Swallow(t testing.TB, match string) {
	t.Helper()
	l.Gateway.Run(t, "nft", "insert rule inet filter input "+swallow(match))
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
		fmt.Sprintf("http_port=%d", l.http),
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
	if c.MaxLifetime > 0 {
		lines = append(lines, "min_lifetime=1", fmt.Sprintf("max_lifetime=%d", c.MaxLifetime))
	}
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

// Reboot is what a power cut does: the daemon dies without a goodbye, its rules
// and leases are gone, and it starts again, with its HTTP server at another
// port. Its start announces itself, unless Mute was called.
func (l *Lab) Reboot(t testing.TB) {
	t.Helper()
	l.StopDaemon(t, syscall.SIGKILL)
	l.Flush(t)
	if err := os.Remove(filepath.Join(l.dir, "leases")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("natlab: %v", err)
	}
	l.http++
	l.StartDaemon(t)
}

// Flush removes all that the daemon has written into the firewall.
func (l *Lab) Flush(t testing.TB) {
	t.Helper()
	for _, chain := range []string{"prerouting_miniupnpd", "miniupnpd", "postrouting_miniupnpd"} {
		l.Gateway.Run(t, "nft", "flush", "chain", "inet", "filter", chain)
	}
}

// Mute keeps back all that the gateway says to everybody.
func (l *Lab) Mute(t testing.TB) {
	t.Helper()
	l.Gateway.Run(t, "nft", `add chain inet filter output { type filter hook output priority 0; policy accept; }; add rule inet filter output oifname "lan0" ip daddr 224.0.0.0/4 drop; add rule inet filter output oifname "lan0" ip6 daddr { ff02::1, ff02::c, ff05::c } drop`)
}

// LoseWAN takes the gateway's address on the outside away, as a lost line does.
func (l *Lab) LoseWAN(t testing.TB) {
	t.Helper()
	l.Gateway.Run(t, "ip", "addr", "flush", "dev", "wan0")
}

// SetWAN changes the gateway's address on the outside.
func (l *Lab) SetWAN(t testing.TB, a netip.Addr) {
	t.Helper()
	l.LoseWAN(t)
	l.Gateway.Run(t, "ip", "addr", "add", netip.PrefixFrom(a, 24).String(), "dev", "wan0")
	l.Gateway.Run(t, "ip", "route", "replace", "default", "via", WANHost.String())
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
