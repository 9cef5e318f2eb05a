package peerws

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/peerws/peerws/nat"
)

// Proof that an address leads here: a connection that has come through it.
//
// A gateway that says "mapped" may be wrong, or stand behind another one. So
// an address is Verified only when a peer from outside has opened a socket
// through it, when a peer that was asked (ListenConfig.Verify) says so, or when
// a connection of our own to it came back to us: some gateways let hosts
// inside use the outside address (hairpinning). That one fails proves nothing.

// Our own connection through the outside address is given this long, and this
// many bytes of an answer.
const (
	loopTimeout = 3 * time.Second
	maxLoopRead = 512
)

func (e evidence) String() string {
	return [...]string{"nothing", "our own connection", "a peer that was asked", "a peer"}[e]
}

// maxDirect is how many addresses of this machine are remembered as verified.
const maxDirect = 16

// evidence is how an address was verified, the stronger the greater.
type evidence uint8

const (
	unproved evidence = iota
	byLoop            // our own connection came back
	byAsked           // ListenConfig.Verify returned nil
	byPeer            // a socket was opened from outside
)

// A proof is what is known of one mapped public address. It is for one mapping:
// another gateway, or another address of ours behind it, needs a new one.
type proof struct {
	url                string
	external, internal netip.AddrPort
	gateway            netip.Addr
	via                string

	by      evidence
	failure string             // why a peer that was asked could not connect, "" if none was
	stop    context.CancelFunc // ends what tries to verify it; nil if nothing does
}

// same reports whether p and q are about the same mapping.
func (p *proof) same(q *proof) bool {
	return p.url == q.url && p.external == q.external && p.internal == q.internal && p.gateway == q.gateway && p.via == q.via
}

// A dialFunc connects to address, from local if that is valid.
type dialFunc func(ctx context.Context, local netip.Addr, address netip.AddrPort) (net.Conn, error)

func dialOutside(ctx context.Context, local netip.Addr, address netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if local.IsValid() && !local.IsUnspecified() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(ctx, "tcp", address.String())
}

// reviseProofsLocked makes proofs match the mappings of now, keeping those of
// mappings that have not changed, and sets the states in now. The proofs that
// are new are returned, for tryProofsLocked. mu is held.
func (a *addressBook) reviseProofsLocked(now []Address, leases []nat.Lease) (begun []*proof) {
	var next []*proof
	for i := range now {
		l := leases[i]
		if now[i].Scope != Public {
			continue
		}
		p := &proof{url: now[i].URL, external: l.External, internal: l.Internal, gateway: l.Gateway, via: l.Via}
		kept := false
		for _, old := range a.proofs {
			if old.same(p) {
				p, kept = old, true
			}
		}
		if !kept {
			begun = append(begun, p)
		}
		if p.by != unproved {
			now[i].State = Verified
		}
		next = append(next, p)
	}
	for _, old := range a.proofs {
		gone := true
		for _, p := range next {
			gone = gone && p != old
		}
		if gone && old.stop != nil {
			old.stop()
		}
	}
	a.proofs = next
	return begun
}

// tryProofsLocked starts to verify addresses that are new. mu is held, and the
// listener is not closed.
func (l *WebSocketListener) tryProofsLocked(begun []*proof) {
	for _, p := range begun {
		try := l.loopBack
		if l.verify != nil {
			try = l.askPeer
		} else if l.loopDial == nil || p.external.Addr() == p.internal.Addr() {
			continue
		}
		ctx, stop := context.WithCancel(context.Background())
		p.stop = stop
		l.addrs.trying.Go(func() {
			defer stop()
			try(ctx, p)
		})
	}
}

// askPeer lets the program ask a peer of its own.
func (l *WebSocketListener) askPeer(ctx context.Context, p *proof) {
	err := l.verify(ctx, p.url)
	if ctx.Err() != nil {
		return // of a mapping that is no more
	}
	if err == nil {
		l.prove(p, byAsked)
		return
	}
	l.log.Info("address not verified", "url", p.url, "err", err)
	a := &l.addrs
	a.mu.Lock()
	p.failure = err.Error()
	changed := a.assessLocked()
	a.mu.Unlock()
	if changed {
		l.tellAddresses()
	}
}

// loopBack connects to the outside address once and says a word that only we
// know. If our own listener hears it (heard), the gateway forwards. Silence,
// a refusal, or somebody else's answer mean nothing.
func (l *WebSocketListener) loopBack(ctx context.Context, p *proof) {
	ctx, cancel := context.WithTimeout(ctx, loopTimeout)
	defer cancel()
	conn, err := l.loopDial(ctx, p.internal.Addr(), p.external)
	if err != nil {
		l.log.Debug("outside address cannot be used from inside", "url", p.url, "err", err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if addrPortOf(conn.LocalAddr()).Addr() == p.external.Addr() {
		return // an address of this machine: it has not left it
	}
	word := rand.Text()
	a := &l.addrs
	a.mu.Lock()
	if a.words == nil {
		a.words = make(map[string]*proof)
	}
	a.words[word] = p
	a.mu.Unlock()
	if _, err = fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", word, p.external); err == nil {
		io.Copy(io.Discard, io.LimitReader(conn, maxLoopRead))
	}
	a.mu.Lock()
	delete(a.words, word)
	a.mu.Unlock()
}

// loopAnswer is what our own connection gets. Nobody reads it.
const loopAnswer = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"

// heard reports whether a request's target is the word of our own connection
// through the outside address, which is thereby verified.
func (l *WebSocketListener) heard(target []byte) bool {
	if len(target) < 2 || l.manager == nil {
		return false
	}
	a := &l.addrs
	a.mu.Lock()
	p := a.words[string(target[1:])]
	delete(a.words, string(target[1:])) // once
	a.mu.Unlock()
	if p != nil {
		l.prove(p, byLoop)
	}
	return p != nil
}

// prove notes that p's address leads here.
func (l *WebSocketListener) prove(p *proof, by evidence) {
	a := &l.addrs
	a.mu.Lock()
	changed := a.proveLocked(p, by)
	a.mu.Unlock()
	if changed {
		l.log.Info("address verified", "url", p.url, "by", by)
		l.tellAddresses()
	}
}

func (a *addressBook) proveLocked(p *proof, by evidence) bool {
	current := false
	for _, q := range a.proofs {
		current = current || q == p
	}
	if !current || p.by >= by {
		return false
	}
	p.by = by
	for i := range a.mapped {
		if a.mapped[i].URL == p.url && a.mapped[i].State == Mapped {
			a.mapped[i].State = Verified
		}
	}
	a.assessLocked()
	return true
}

// arrivedFrom sees every socket that a peer has opened: one from outside verifies
// the address through which it came. host is the request's.
func (l *WebSocketListener) arrivedFrom(conn net.Conn, host string) {
	from := remoteOf(conn).Addr()
	if l.ln == nil || !from.IsValid() || scopeOf(from) != Public {
		return
	}
	at := addrPortOf(conn.LocalAddr())
	a := &l.addrs
	a.mu.Lock()
	p, direct := a.provedByLocked(at, from, host)
	news := p != nil || direct || a.byHandLocked(at, from, host, false)
	a.mu.Unlock()
	if !news || isNeighbour(from) {
		return
	}
	a.mu.Lock()
	p, direct = a.provedByLocked(at, from, host) // the system was asked meanwhile
	changed := p != nil && a.proveLocked(p, byPeer)
	if p == nil && a.byHandLocked(at, from, host, true) {
		changed = a.assessLocked() || changed
	}
	if direct && len(a.direct) < maxDirect {
		a.direct = append(a.direct, at.Addr())
		a.assessLocked()
		changed = true
	}
	a.mu.Unlock()
	if changed {
		l.log.Info("address verified", "remote", from, "by", byPeer)
		l.tellAddresses()
	}
}

// provedByLocked says what a connection that has come to our address at would
// prove, if that is not known already: a mapping, or that the address itself
// can be reached. mu is held.
//
// To a public address of our own it came directly. To another one it came
// through a gateway, and so through the mapping that leads there, unless its
// Host names another address or port: a forward made by hand may lead here too.
// A gateway that lets hosts inside use the outside address gives them that very
// address.
func (a *addressBook) provedByLocked(at netip.AddrPort, from netip.Addr, host string) (p *proof, direct bool) {
	if from == at.Addr() {
		return nil, false
	}
	own := scopeOf(at.Addr()) == Public
	through := false // a firewall that lets peers in for as long as the mapping lives
	for _, q := range a.proofs {
		through = through || at == q.external
		if from == q.external.Addr() {
			return nil, false
		}
		inside := q.internal.Addr()
		if !inside.IsValid() || inside.IsUnspecified() {
			inside = at.Addr()
		}
		if q.by < byPeer && at.Addr().Is4() == q.external.Addr().Is4() && at.Addr() == inside &&
			(own && at == q.external || !own && names(host, q.external)) {
			p = q
		}
	}
	if own && !through {
		direct = true
		for _, d := range a.direct {
			direct = direct && d != at.Addr()
		}
	}
	return p, direct
}

// A handMade is a forward that somebody has made in the gateway's own pages, as
// peers show it: they come from outside to an address of ours that is not a public
// one, and say whom they have dialled.
type handMade struct {
	external netip.AddrPort // invalid if they say a name
	local    netip.Addr     // where they arrive
	peers    []netip.Addr   // who has come through it
}

// What one peer says may be a lie: so the address that most have named counts. It
// is enough to remember a few of either.
const (
	maxByHand      = 8
	maxByHandPeers = 4
)

// byHandLocked reports whether a connection to our address at shows something new
// of a forward made by hand, and with note takes it down. mu is held.
func (a *addressBook) byHandLocked(at netip.AddrPort, from netip.Addr, host string, note bool) bool {
	if scopeOf(at.Addr()) != LAN || !at.Addr().Is4() {
		return false
	}
	var external netip.AddrPort
	name, port, ok := splitHost(host)
	if !ok || strings.Contains(name, ":") {
		return false
	}
	if strings.Trim(name, ".0123456789") == "" {
		ip, err := netip.ParseAddr(name)
		if err != nil {
			return false
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if ip = ip.Unmap(); err != nil || ip == from || !ip.Is4() || scopeOf(ip) != Public {
			return false // a host inside, by way of the gateway, or nothing that could be said to others
		}
		external = netip.AddrPortFrom(ip, uint16(n))
	}
	for _, q := range a.proofs {
		if q.external.Addr().Is4() {
			return false // the gateway itself says by which address peers come
		}
	}
	for i := range a.byHand {
		h := &a.byHand[i]
		if h.external != external || h.local != at.Addr() {
			continue
		}
		if len(h.peers) == maxByHandPeers || slices.Contains(h.peers, from) {
			return false
		}
		if note {
			h.peers = append(h.peers, from)
		}
		return true
	}
	if len(a.byHand) == maxByHand {
		return false
	}
	if note {
		a.byHand = append(a.byHand, handMade{external, at.Addr(), []netip.Addr{from}})
	}
	return true
}

// bestByHandLocked is the forward made by hand that most peers have shown, the
// first of them, nil if there is none; one with an address before one without. mu
// is held.
func (a *addressBook) bestByHandLocked() (best *handMade) {
	for i := range a.byHand {
		h := &a.byHand[i]
		if best == nil || h.external.IsValid() && (!best.external.IsValid() || len(h.peers) > len(best.peers)) {
			best = h
		}
	}
	return best
}

// names reports whether a request's Host can mean external: its port, and its
// address unless it is a name.
func names(host string, external netip.AddrPort) bool {
	name, port, ok := splitHost(host)
	if !ok {
		return false
	}
	if ip, err := netip.ParseAddr(name); err == nil && ip.Unmap() != external.Addr() {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if port == "" {
		return external.Port() == 80 || external.Port() == 443
	}
	return err == nil && uint16(n) == external.Port()
}

// isNeighbour reports whether ip is of this machine or of a network it is
// directly connected to.
func isNeighbour(ip netip.Addr) bool {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return true // unknown: no proof
	}
	for _, n := range nets {
		if n, ok := n.(*net.IPNet); ok && n.Contains(ip.AsSlice()) {
			return true
		}
	}
	return false
}

// keepDirectLocked marks those of list, the addresses of this machine, to which
// a peer has come, and forgets those, and the forwards to those, that are not of
// this machine any more. mu is held.
func (l *WebSocketListener) keepDirectLocked(list []Address) {
	a := &l.addrs
	a.direct = slices.DeleteFunc(a.direct, func(d netip.Addr) bool {
		for i := range list {
			if list[i].URL == l.urlOf(netip.AddrPortFrom(d, uint16(l.port))) {
				list[i].State = Verified
				return false
			}
		}
		return true
	})
	a.byHand = slices.DeleteFunc(a.byHand, func(h handMade) bool {
		own := l.urlOf(netip.AddrPortFrom(h.local, uint16(l.port)))
		return !slices.ContainsFunc(list, func(b Address) bool { return b.URL == own })
	})
	a.assessLocked()
}

// assessLocked works out the Reachability from what the gateway said and what
// has been proved since, and reports whether it changed. mu is held.
func (a *addressBook) assessLocked() bool {
	r := a.told
	var best *proof
	failure := ""
	for _, p := range a.proofs {
		if best == nil || p.by > best.by {
			best = p
		}
		if p.by == unproved && p.failure != "" {
			failure = p.url + ": " + p.failure
		}
	}
	switch {
	case a.closed:
	case best != nil && best.by == byPeer:
		r = a.verified(fmt.Sprintf("Peers outside can connect: one has, through %s.", best.external))
	case len(a.direct) > 0:
		r = a.verified(fmt.Sprintf("Peers outside can connect: one has, directly to %s.", a.direct[len(a.direct)-1]))
	case len(a.byHand) > 0:
		through := "a forward made by hand"
		if h := a.bestByHandLocked(); h.external.IsValid() {
			through = fmt.Sprintf("%s, which was forwarded by hand", h.external)
		}
		// Not with what the gateway has said: it does not know of that forward.
		r = Reachability{Code: nat.CodeVerified, Summary: fmt.Sprintf("Peers outside can connect: one has, through %s.", through)}
	case best != nil && best.by == byAsked:
		r = a.verified(fmt.Sprintf("Peers outside can connect: one that was asked has reached %s.", best.external))
	case best != nil && best.by == byLoop:
		r = a.verified(fmt.Sprintf("The router forwards %s to us: a connection of our own has come through it. Whether the provider lets in what comes from outside, only a peer there can show.", best.external))
	case failure != "" && r.Code == nat.CodeMapped:
		r = Reachability{
			Code:    nat.CodeUnverified,
			Summary: "The router says that it forwards the port, but a peer that was asked could not connect.",
			Advice:  strings.TrimSpace(r.Advice + " If that does not help, the provider may block connections from outside: ask it, or take another port."),
			Detail:  failure,
		}
	}
	changed := r.Code != a.reach.Code || r.Summary != a.reach.Summary || r.Advice != a.reach.Advice
	a.reach = r
	return changed
}

// verified is the Reachability when something has been proved. What else the
// gateway has to say stays part of it: that of the other family, perhaps.
func (a *addressBook) verified(summary string) Reachability {
	r := Reachability{Code: nat.CodeVerified, Summary: summary}
	switch a.told.Code {
	case nat.CodeMapped, nat.CodePublic, nat.CodeOff, "":
	default:
		r.Summary += " " + a.told.Summary
		r.Advice, r.Detail = a.told.Advice, a.told.Detail
	}
	return r
}
