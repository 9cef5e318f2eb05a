package nat

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// A listenFunc calls heard whenever the gateway at that link announces in that
// protocol what may mean that it lost its mappings, until ctx ends.
type listenFunc func(ctx context.Context, via string, l link, heard func()) error

// Where gateways announce: RFC 6887 §14.1.2 and RFC 6886 §3.2.1, and UPnP Device
// Architecture 1.1 §1.2 and annex A. For IPv6 only the groups of the link.
var announceGroups = [...]struct {
	via   []string
	group netip.AddrPort
	six   netip.AddrPort             // its like for IPv6
	make  func() func(b []byte) bool // a fresh judge of what is heard
}{
	{[]string{"pcp", "nat-pmp"}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 1}), 5350), netip.AddrPortFrom(netip.IPv6LinkLocalAllNodes(), 5350), func() func([]byte) bool { return announcesEpoch }},
	{[]string{"upnp"}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{239, 255, 255, 250}), 1900), netip.AddrPortFrom(netip.MustParseAddr("ff02::c"), 1900), func() func([]byte) bool { return new(notices).announces }},
}

// listenAnnounced is the listenFunc of the system. The sockets are shared with
// whoever else listens on this machine. What is heard is a reason to look and
// nothing more, since anybody on the network can say it in the gateway's name.
func listenAnnounced(ctx context.Context, via string, l link, heard func()) error {
	for _, g := range announceGroups {
		if slices.Contains(g.via, via) {
			network, group, from := "udp4", g.group, interfaceOf(l.local)
			if l.local.Is6() {
				network, group = "udp6", g.six
				from, _ = net.InterfaceByName(l.gateway.Zone()) // nil = the system's choice
			}
			c, err := net.ListenMulticastUDP(network, from, net.UDPAddrFromAddrPort(group))
			if err != nil {
				return err
			}
			return hear(ctx, c, l.gateway, g.make(), heard)
		}
	}
	return nil
}

// hear reads c until ctx ends, and closes it.
func hear(ctx context.Context, c *net.UDPConn, gateway netip.Addr, announces func([]byte) bool, heard func()) error {
	var closing sync.Once
	closed := func() { closing.Do(func() { c.Close() }) }
	defer closed()
	stop := context.AfterFunc(ctx, closed)
	defer stop()
	b := make([]byte, maxDatagram)
	for failures := 0; ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if failures++; failures > maxReadFailures {
				return err
			}
			continue
		}
		if from.Addr().Unmap() == gateway && announces(b[:n]) {
			heard()
		}
	}
}

// interfaceOf is the interface that has the address a, nil if none has: the
// system then chooses.
func interfaceOf(a netip.Addr) *net.Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range all {
		if slices.ContainsFunc(interfacePrefixes(&i), func(p netip.Prefix) bool { return p.Addr() == a }) {
			return &i
		}
	}
	return nil
}

// announcesEpoch reports whether b is PCP's ANNOUNCE or NAT-PMP's notice of the
// outside address. Their epochs are not looked at: the gateway is asked.
func announcesEpoch(b []byte) bool {
	if r, ok := parsePCP(b); ok && b[0] == pcpVersion {
		return r.opcode == pcpAnnounce && r.code == pcpSuccess
	}
	return len(b) == 12 && b[0] == 0 && b[1] == 128
}

// notices is what SSDP has told of a gateway. Devices say that they are alive
// all the time, so only news count: another boot or another place for the
// description, being alive after a goodbye, and what is heard first, since what
// was before is not known. The goodbye itself is not a reason
// to look: there is nobody to ask any more, and if nobody comes back, the next
// look finds out.
type notices struct{ last string }

func (s *notices) announces(b []byte) bool {
	line, b, _ := bytes.Cut(b, []byte("\n"))
	if !bytes.HasPrefix(line, []byte("NOTIFY ")) {
		return false
	}
	var kind, boot, location string
	for len(b) > 0 {
		line, b, _ = bytes.Cut(b, []byte("\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		v := string(bytes.TrimSpace(value))
		switch strings.ToLower(string(bytes.TrimSpace(name))) {
		case "nts":
			kind = strings.ToLower(v)
		case "bootid.upnp.org":
			boot = v
		case "location":
			location = v
		}
	}
	switch kind {
	case "ssdp:byebye":
		s.last = kind
	case "ssdp:alive", "ssdp:update":
		before := s.last
		s.last = boot + " " + location
		return before != s.last
	}
	return false
}
