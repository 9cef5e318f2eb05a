package peerws

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Behind a reverse proxy every peer has the proxy's address. One that TrustedProxies
// lists is asked whom it speaks for: in the PROXY protocol before the request, versions
// 1 and 2, or in the request, in Forwarded (RFC 7239) or X-Forwarded-For. Each hop there
// was written by the one behind it, so they are read from the last to the first that
// is no proxy of ours. What others say of themselves is not looked at.

// errProxyHeader answers a trusted proxy that gets it wrong.
var errProxyHeader = &refusal{400, nil, "The PROXY header is malformed."}

// trusts reports whether an address is a proxy's.
func (l *WebSocketListener) trusts(ip netip.Addr) bool {
	for _, p := range l.proxies {
		if p.Contains(ip.Unmap().WithZone("")) {
			return true
		}
	}
	return false
}

var proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

const (
	proxyV1     = "PROXY "
	proxyV1Most = 107 // bytes of a header of version 1, its CR LF included
)

// readProxied reads what may be a PROXY header, takes it out of b, and returns the
// address in it. It is not valid if there was none, or a header that says nothing.
// b has what was read behind it, perhaps nothing.
func (l *WebSocketListener) readProxied(conn net.Conn, b *buffer) (from netip.AddrPort, err error) {
	for {
		size, from, ok := proxyHeader(b.b)
		switch {
		case !ok || size > l.maxHead:
			return from, errProxyHeader
		case size == 0: // none
			return from, nil
		case size <= b.len():
			b.b = b.b[:copy(b.b, b.b[size:])]
			return from, nil
		}
		if size > cap(b.b) {
			b.enlarge(size)
		}
		n, err := conn.Read(b.b[b.len():cap(b.b)])
		b.extend(n)
		if n == 0 && err != nil {
			return from, err
		}
	}
}

// proxyHeader looks for a PROXY header at the start of b and returns its size, 0 if there
// is none, more than b has if that cannot be told yet, and not ok if it is malformed.
func proxyHeader(b []byte) (size int, from netip.AddrPort, ok bool) {
	v1, v2 := len(proxyV1), len(proxyV2)
	switch {
	case bytes.HasPrefix(b, proxyV2):
		return proxyHeader2(b)
	case bytes.HasPrefix(b, []byte(proxyV1)):
		end := bytes.Index(b[:min(len(b), proxyV1Most)], []byte("\r\n"))
		if end < 0 {
			return len(b) + 1, from, len(b) < proxyV1Most
		}
		from, ok = proxyLine(string(b[v1:end]))
		return end + 2, from, ok
	case len(b) < v2 && bytes.HasPrefix(proxyV2, b), len(b) < v1 && strings.HasPrefix(proxyV1, string(b)):
		return len(b) + 1, from, true
	}
	return 0, from, true
}

// proxyLine is the rest of a line of version 1.
func proxyLine(s string) (from netip.AddrPort, ok bool) {
	f := strings.Split(s, " ")
	if f[0] == "UNKNOWN" {
		return from, true
	}
	if len(f) != 5 || f[0] != "TCP4" && f[0] != "TCP6" {
		return from, false
	}
	ip, err := netip.ParseAddr(f[1])
	if err != nil || ip.Is4() != (f[0] == "TCP4") || ip.Zone() != "" {
		return from, false
	}
	from, err = netip.ParseAddrPort(net.JoinHostPort(f[1], f[3]))
	return unmapped(from), err == nil
}

// proxyHeader2 is proxyHeader for version 2.
func proxyHeader2(b []byte) (size int, from netip.AddrPort, ok bool) {
	const fixed = 16
	if len(b) < fixed {
		return fixed, from, true
	}
	size = fixed + int(binary.BigEndian.Uint16(b[14:]))
	if b[12] != 0x20 && b[12] != 0x21 { // version and command
		return size, from, false
	}
	if len(b) < size || b[12] == 0x20 { // LOCAL: the proxy speaks for itself
		return size, from, true
	}
	p := b[fixed:size]
	switch b[13] {
	case 0x11: // TCP over IPv4
		if len(p) < 12 {
			return size, from, false
		}
		from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p)), binary.BigEndian.Uint16(p[8:]))
	case 0x21: // TCP over IPv6
		if len(p) < 36 {
			return size, from, false
		}
		from = netip.AddrPortFrom(netip.AddrFrom16([16]byte(p)), binary.BigEndian.Uint16(p[32:]))
	}
	return size, unmapped(from), true
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// forwarded returns whom a request from a trusted proxy is from: the last hop that is no
// proxy of ours, as far as hops can be read. The port is 0 where a hop does not say it.
func (l *WebSocketListener) forwarded(proxy netip.AddrPort, h *head) netip.AddrPort {
	hops := h.hops("Forwarded", forwardedHop)
	if hops == nil {
		hops = h.hops("X-Forwarded-For", strings.TrimSpace)
	}
	at := proxy
	for i := len(hops) - 1; i >= 0 && l.trusts(at.Addr()); i-- {
		hop, ok := parseHop(hops[i])
		if !ok {
			break
		}
		at = hop
	}
	return at
}

// hops returns the elements of a header field's list, each as one makes it.
func (h *head) hops(name string, one func(string) string) (hops []string) {
	for _, f := range h.fields {
		if !f.is(name) {
			continue
		}
		for v := range strings.SplitSeq(string(f.value), ",") {
			hops = append(hops, one(v))
		}
	}
	return hops
}

// forwardedHop returns the for= of an element of Forwarded, "" without one.
func forwardedHop(element string) string {
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if ok && strings.EqualFold(name, "for") {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}

// parseHop reads an address, perhaps with a port. Names and "unknown" are none.
func parseHop(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return unmapped(a), true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	return unmapped(netip.AddrPortFrom(ip, 0)), err == nil
}

// identify finds out whom a transport of a trusted proxy is for, by a PROXY header that
// may come first, and counts it.
func (a *arrival) identify(b *buffer) error {
	from, err := a.l.readProxied(a.conn, b)
	if err != nil || !from.IsValid() {
		return err
	}
	a.remote, a.proxied = from, a.l.trusts(from.Addr())
	if a.proxied {
		return nil
	}
	return a.count(from.Addr())
}

// identifyBy is identify by the request.
func (a *arrival) identifyBy(h *head) error {
	a.remote = a.l.forwarded(a.remote, h)
	return a.count(a.remote.Addr())
}

// count counts a transport under the address of the peer that it is for.
func (a *arrival) count(ip netip.Addr) error {
	l := a.l
	if l.trusts(ip) { // it does not say for whom
		return nil
	}
	from := keyOf(ip)
	l.mu.Lock()
	defer l.mu.Unlock()
	a.from = from
	if err := l.admitLocked(from, time.Now()); err != nil {
		return err
	}
	a.key = l.countedKey(from)
	return nil
}
