package peerws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/peerws/peerws/internal/netaddr"
	"github.com/peerws/peerws/nat"
)

// Scope is from where an address can be reached.
type Scope uint8

const (
	Loopback Scope = iota // this machine
	LAN                   // the local network
	Public                // anywhere
)

func (s Scope) String() string {
	switch s {
	case Loopback:
		return "loopback"
	case LAN:
		return "lan"
	case Public:
		return "public"
	}
	return "Scope(" + strconv.Itoa(int(s)) + ")"
}

// AddressState is what is known about an address.
type AddressState uint8

const (
	Bound    AddressState = iota // of this machine, and listened on
	Mapped                       // the gateway says that it forwards it
	Verified                     // a connection from outside, or one of ours to the outside address, has come through it
	Lost                         // it was mapped and is no more
)

func (s AddressState) String() string {
	switch s {
	case Bound:
		return "bound"
	case Mapped:
		return "mapped"
	case Verified:
		return "verified"
	case Lost:
		return "lost"
	}
	return "AddressState(" + strconv.Itoa(int(s)) + ")"
}

// An Address is one at which peers can reach a listener.
type Address struct {
	// URL is such as "ws://192.168.1.5:9000/". With ListenConfig.TLSConfig it is
	// the wss form, the one that pages loaded over https need; the ws form works
	// as well.
	URL   string
	Scope Scope
	Via   string // "direct", or who forwards it: "pcp", "nat-pmp", "upnp", "static"
	State AddressState
}

// Reachability says in one sentence whether peers outside can reach a listener.
type Reachability struct {
	// Code is for programs: "" while the gateway is still being asked; CodeOff if
	// nobody is asked, and when the listener is closed.
	Code nat.Code

	Summary string // one sentence a person understands
	Advice  string // what to do about it, "" if nothing
	Detail  string // for the curious: what the gateway said, "" if nothing
}

// maxLost is how many lost addresses are remembered.
const maxLost = 4

// An addressBook is what a listener knows of its addresses.
type addressBook struct {
	trying sync.WaitGroup // goroutines that try to verify an address

	mu       sync.Mutex        // alone: neither under another lock nor before one
	closed   bool              // nothing is tried any more
	mapped   []Address         // by the gateway, then lost ones
	proofs   []*proof          // of those mapped now that are public
	direct   []netip.Addr      // public addresses of this machine to which a peer has come
	byHand   []handMade        // forwards that nobody has told us of, through which a peer has come
	words    map[string]*proof // said by our own connections through the gateway
	told     Reachability      // by the gateway
	reach    Reachability      // with what has been proved since
	onChange func([]Address)
	watching bool // watchAddresses runs
	dirty    bool // onChange is to be called
	telling  bool // a goroutine does so
}

// startMapping asks the gateway, if there is one to ask.
func (l *WebSocketListener) startMapping(c *ListenConfig) {
	bound := addrPortOf(l.ln.Addr())
	switch {
	case c.NAT == nil:
		l.setReach(Reachability{Code: nat.CodeOff, Summary: "The gateway was not asked to forward the port."})
	case !bound.IsValid() || bound.Addr().IsLoopback():
		l.setReach(Reachability{Code: nat.CodeOff, Summary: "Only this machine can connect: the listener is bound to " + l.ln.Addr().String() + "."})
	default:
		l.setReach(Reachability{Summary: "The gateway is being asked to forward the port."})
		if _, ok := l.ln.(*net.TCPListener); ok && l.loopDial == nil {
			l.loopDial = dialOutside
		}
		l.manager = nat.NewManager(nat.ManagerConfig{
			Mapper:      c.NAT,
			Internal:    bound,
			Description: "peerws " + strconv.Itoa(l.port),
			OnChange:    l.mappingChanged,
			Logger:      c.Logger,
		})
		return
	}
	l.setState(ListenerListening)
}

var errMapperStuck = errors.New("peerws: close: the port mapper or Verify does not end")

// stopMapping gives the port back. A Mapper of the program's own that heeds no
// context is waited for no longer than it should have taken.
//
// The error is that the gateway has not taken the port back.
func (l *WebSocketListener) stopMapping() error {
	if l.manager == nil {
		return nil
	}
	a := &l.addrs
	a.mu.Lock()
	a.closed = true
	for _, p := range a.proofs {
		if p.stop != nil {
			p.stop()
		}
	}
	a.mu.Unlock()
	closed := make(chan error, 1)
	go func() {
		err := l.manager.Close()
		a.trying.Wait()
		closed <- err
	}()
	t := time.NewTimer(closeGrace + closeGrace/4) // the manager's own limit, and some
	defer t.Stop()
	var err error
	select {
	case err = <-closed:
		if err != nil {
			err = fmt.Errorf("peerws: close: the port was not given back: %w", err)
		}
	case <-t.C:
		l.log.Warn("port mapper or Verify does not end")
		err = errMapperStuck
	}
	a.mu.Lock()
	changed := a.setMappedLocked(nil)
	a.proofs, a.byHand, a.told = nil, nil, Reachability{Code: nat.CodeOff, Summary: "The listener is closed."}
	a.assessLocked()
	a.mu.Unlock()
	if changed {
		l.tellAddresses()
	}
	return err
}

// mappingChanged takes what the manager has reached, on its goroutine.
func (l *WebSocketListener) mappingChanged(s nat.Status) {
	var now []Address
	var leases []nat.Lease // of now
	for _, lease := range s.Leases {
		if s.Diagnosis.Code == nat.CodeVPN && lease.External.Addr().Is4() {
			continue // peers who come through it get no answer
		}
		if e := lease.External; e.IsValid() && !e.Addr().IsUnspecified() {
			now = append(now, Address{URL: l.urlOf(e), Scope: scopeOf(e.Addr()), Via: lease.Via, State: Mapped})
			leases = append(leases, lease)
		}
	}
	a := &l.addrs
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	begun := a.reviseProofsLocked(now, leases)
	changed := a.setMappedLocked(now)
	if s.Diagnosis.Code != "" {
		a.told = Reachability(s.Diagnosis)
	}
	if a.assessLocked() {
		changed = true
	}
	l.tryProofsLocked(begun)
	a.mu.Unlock()
	if s.Settled {
		l.setState(ListenerListening)
	}
	if changed {
		l.tellAddresses()
	}
}

// setReach is for the time before anybody could see it.
func (l *WebSocketListener) setReach(r Reachability) { l.addrs.told, l.addrs.reach = r, r }

// setMappedLocked replaces the mapped addresses and reports whether that is a change.
// Those that are gone stay in the list as lost. mu is held.
func (a *addressBook) setMappedLocked(now []Address) bool {
	next := slices.Clone(now)
	for _, old := range a.mapped {
		if !slices.ContainsFunc(next, func(n Address) bool { return n.URL == old.URL }) && len(next) < len(now)+maxLost {
			old.State = Lost
			next = append(next, old)
		}
	}
	changed := !slices.Equal(next, a.mapped)
	a.mapped = next
	return changed
}

// OnAddressChange sets what runs, on a goroutine of the library, one call at a
// time, when Addresses or Reachability have changed, those of this machine's own
// interfaces included. It is not called for what is known already: set it, then
// look at Addresses.
func (l *WebSocketListener) OnAddressChange(f func([]Address)) {
	a := &l.addrs
	a.mu.Lock()
	defer a.mu.Unlock()
	a.onChange = f
	if _, system := l.ln.(*net.TCPListener); system && f != nil && !a.watching {
		a.watching = true
		go l.watchAddresses()
	}
}

const (
	// How often this machine's addresses are looked at where the system does not
	// say that they have changed.
	addressLook = 5 * time.Second

	// The system says several things about one change, and the new address comes
	// a moment after the old one has gone.
	addressWait = 500 * time.Millisecond
)

// watchAddresses tells when this machine's own addresses have changed, until the
// listener is closed.
func (l *WebSocketListener) watchAddresses() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	stirred, silent := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(silent)
		l.machine.watch(ctx, func() {
			select {
			case stirred <- struct{}{}:
			default:
			}
		})
	}()
	known := l.boundAddresses(l.ownAddrs())
	t := time.NewTimer(addressLook)
	defer t.Stop()
	for {
		select {
		case <-l.closing:
			return
		case <-stirred:
			t.Reset(addressWait)
			continue
		case <-t.C:
		}
		now := l.boundAddresses(l.ownAddrs())
		if !slices.Equal(now, known) {
			known = now
			l.tellAddresses()
		}
		select {
		case <-silent:
			t.Reset(addressLook)
		default:
		}
	}
}

// tellAddresses has OnAddressChange called. It has a goroutine of its own,
// because the callback may close the listener, which waits for the manager.
func (l *WebSocketListener) tellAddresses() {
	a := &l.addrs
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.onChange == nil {
		return
	}
	a.dirty = true
	if a.telling {
		return
	}
	a.telling = true
	go func() {
		for {
			a.mu.Lock()
			f := a.onChange
			if !a.dirty || f == nil {
				a.dirty, a.telling = false, false
				a.mu.Unlock()
				return
			}
			a.dirty = false
			a.mu.Unlock()
			f(l.Addresses())
		}
	}()
}

// Reachability tells whether peers outside can connect, and what to do if not.
func (l *WebSocketListener) Reachability() Reachability {
	a := &l.addrs
	a.mu.Lock()
	direct := len(a.direct)+len(a.byHand) > 0
	a.mu.Unlock()
	var list []Address
	if direct { // they may have been another network's
		list = l.boundAddresses(l.ownAddrs())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if direct {
		l.keepDirectLocked(list)
	}
	return a.reach
}

// Addresses returns every address at which peers can connect, the widest scope
// last, and those that were mapped and are lost. It asks the system for its
// interfaces each time.
func (l *WebSocketListener) Addresses() []Address { return l.addresses(l.ownAddrs()) }

func (l *WebSocketListener) addresses(own []ownAddr) []Address {
	list := l.boundAddresses(own)
	a := &l.addrs
	a.mu.Lock()
	defer a.mu.Unlock()
	l.keepDirectLocked(list)
	// A mapped IPv6 address is one of our own. It is listed once: as mapped
	// while it is, then as what it was before.
	var mapped []Address
	for _, m := range a.mapped {
		i := slices.IndexFunc(list, func(b Address) bool { return b.URL == m.URL })
		switch {
		case i < 0:
		case m.State == Lost:
			continue
		default:
			m.State = max(m.State, list[i].State)
			list = slices.Delete(list, i, i+1)
		}
		mapped = append(mapped, m)
	}
	if h := a.bestByHandLocked(); h != nil && h.external.IsValid() {
		m := Address{URL: l.urlOf(h.external), Scope: Public, Via: "static", State: Verified}
		if !slices.ContainsFunc(mapped, func(o Address) bool { return o.URL == m.URL && o.State != Lost }) {
			mapped = append(mapped, m)
		}
	}
	return append(list, mapped...)
}

// remoteOf is the value of a transport's RemoteAddr.
func remoteOf(conn net.Conn) netip.AddrPort {
	if s, ok := conn.(*sock); ok {
		return s.remote()
	}
	return addrPortOf(conn.RemoteAddr())
}

// addrPortOf returns a TCP address's value, the IPv4 form where there is one.
func addrPortOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// scopeOf is the scope an address has by its kind.
func scopeOf(ip netip.Addr) Scope {
	switch {
	case ip.IsLoopback():
		return Loopback
	case netaddr.IsGlobal(ip):
		return Public
	}
	return LAN
}

func (l *WebSocketListener) urlOf(a netip.AddrPort) string {
	if l.tls != nil {
		return "wss://" + a.String() + "/"
	}
	return "ws://" + a.String() + "/"
}
