package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What a program that has the port already is, and who comes to it: Linux tells
// everybody, other systems would have to be asked at length.

// States of a socket in /proc/net/tcp.
const (
	tcpEstablished = "01"
	tcpTimeWait    = "06"
	tcpListen      = "0A"
)

// A tcpLine is a line of /proc/net/tcp.
type tcpLine struct {
	local, remote netip.AddrPort
	state, inode  string
}

// tcpTable is all of them, none where there is no such file.
func tcpTable() (all []tcpLine) {
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(name)
		if err == nil {
			all = append(all, parseTCP(string(b))...)
		}
	}
	return all
}

// parseTCP reads /proc/net/tcp or tcp6: a number, the local address and port, the
// remote ones, the state, and, after four more fields, the inode.
func parseTCP(s string) (all []tcpLine) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		local, ok := parseHexAddr(f[1])
		remote, ok2 := parseHexAddr(f[2])
		if ok && ok2 {
			all = append(all, tcpLine{local, remote, f[3], f[9]})
		}
	}
	return all
}

// parseHexAddr reads an address as the kernel writes it: words of 32 bits in the
// machine's own order.
func parseHexAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// holder is the program that listens on the port, in words.
func holder(port uint16) string {
	for _, l := range tcpTable() {
		if l.state != tcpListen || l.local.Port() != port {
			continue
		}
		// Only the processes of one's own can be looked into, as a rule.
		fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err != nil || to != "socket:["+l.inode+"]" {
				continue
			}
			pid := strings.Split(fd, "/")[2]
			name, err := os.ReadFile("/proc/" + pid + "/comm")
			if err == nil {
				return fmt.Sprintf("%q (process %s)", strings.TrimSpace(string(name)), pid)
			}
		}
	}
	return "another program"
}

// visitorsOf lists who is connected to the port of a program, or was in the last
// minute.
func visitorsOf(port uint16) (all []netip.Addr) {
	for _, l := range tcpTable() {
		if a := l.remote.Addr(); l.local.Port() == port && (l.state == tcpEstablished || l.state == tcpTimeWait) && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}
