package nat

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	pmp "github.com/jackpal/go-nat-pmp"
)

// NATPMP is the Mapper for NAT-PMP (RFC 6886), spoken by Apple's and many
// open routers: UDP port 5351 of the gateway. Its default lifetime is 7200 s
// (RFC 6886 §3.3).
func NATPMP() Mapper { return newNATPMP(systemHost()) }

func newNATPMP(h host) *natPMP {
	return &natPMP{
		host:  h,
		probe: []time.Duration{time.Second},
		call:  []time.Duration{time.Second, time.Second},
	}
}

type natPMP struct {
	host host

	// How long a gateway that has never answered (probe), and one that has
	// (call), is waited for: in pieces, since the library cannot be
	// interrupted within one. It repeats the request 250 and 750 ms into a piece.
	probe, call []time.Duration

	mu    sync.Mutex
	known netip.Addr // the gateway that answered last, invalid if none
}

const pmpLifetime = 7200 * time.Second

func (n *natPMP) Name() string { return "nat-pmp" }

func (n *natPMP) Map(ctx context.Context, r Request) (Lease, error) {
	if err := checkInternal(r.Internal); err != nil {
		return Lease{}, n.fail("map", link{}, err)
	}
	links, err := n.host.links(r.Internal.Addr())
	if err != nil {
		return Lease{}, n.fail("map", link{}, err)
	}
	// Straight to the gateway that has the mapping, or has answered before.
	n.mu.Lock()
	known := n.known
	n.mu.Unlock()
	if l, ok := rememberedLink(links, known, r.Previous); ok {
		lease, err := n.mapAt(ctx, l, r)
		if err == nil || !transport(err) || ctx.Err() != nil {
			return lease, err
		}
		n.forget()
	}
	l, _, err := n.find(ctx, "map", links)
	if err != nil {
		return Lease{}, err
	}
	return n.mapAt(ctx, l, r)
}

// find asks all gateways at once for their external address, which changes
// nothing, and takes the first of the list that has one.
func (n *natPMP) find(ctx context.Context, op string, links []link) (link, netip.Addr, error) {
	addrs, errs := make([]netip.Addr, len(links)), make([]error, len(links))
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() { addrs[i], _, errs[i] = n.external(ctx, op, l, n.probe) })
	}
	wg.Wait()
	for i, l := range links {
		if errs[i] == nil {
			n.mu.Lock()
			n.known = l.gateway
			n.mu.Unlock()
			return l, addrs[i], nil
		}
	}
	return link{}, netip.Addr{}, telling(n.Name(), op, errs)
}

// mapAt makes or renews the mapping at one gateway (RFC 6886 §3.3), then asks
// for the external address, which the answer does not have.
func (n *natPMP) mapAt(ctx context.Context, l link, r Request) (Lease, error) {
	life := r.Lifetime
	if life <= 0 {
		life = pmpLifetime
	}
	life = max(life.Truncate(time.Second), time.Second) // 0 would delete

	var res *pmp.AddPortMappingResult
	asked, told := time.Now(), epoch{}
	err := n.do(ctx, l, n.call, func(c *pmp.Client) (err error) {
		asked = time.Now()
		res, err = c.AddPortMapping("tcp", int(r.Internal.Port()), int(r.external()), int(life/time.Second))
		return err
	})
	if err != nil {
		return Lease{}, n.fail("map", l, err)
	}
	switch {
	case res.InternalPort != r.Internal.Port():
		return Lease{}, n.fail("map", l, malformed("the answer is about internal port %d", res.InternalPort))
	case res.MappedExternalPort == 0 || res.PortMappingLifetimeInSeconds == 0:
		return Lease{}, n.fail("map", l, malformed("granted port %d for %d s", res.MappedExternalPort, res.PortMappingLifetimeInSeconds))
	}

	told = epoch{res.SecondsSinceStartOfEpoc, time.Now()}

	// A mapping without an address is still a mapping: no error from here on.
	addr, _, _ := n.external(ctx, "map", l, n.call)
	n.mu.Lock()
	n.known = l.gateway
	n.mu.Unlock()
	return Lease{
		Internal: netip.AddrPortFrom(l.local, r.Internal.Port()),
		External: netip.AddrPortFrom(addr, res.MappedExternalPort),
		Lifetime: time.Duration(res.PortMappingLifetimeInSeconds) * time.Second,
		Via:      n.Name(),
		Gateway:  l.gateway,
		Obtained: asked,
		recheck:  heartbeat,
		epoch:    told,
	}, nil
}

// check asks the gateway for its epoch and its external address.
func (n *natPMP) check(ctx context.Context, l Lease) (Lease, error) {
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	addr, now, err := n.external(ctx, "check", at, n.call)
	if err != nil {
		return l, err
	}
	if epochRule(pmpEpoch).lost(l.epoch, now) {
		return l, n.fail("check", at, errStateLost)
	}
	l.epoch, l.External = now, netip.AddrPortFrom(addr, l.External.Port())
	return l, nil
}

// Unmap asks for a lifetime of 0 (RFC 6886 §3.4). The gateway answers success
// also for what it does not have.
func (n *natPMP) Unmap(ctx context.Context, l Lease) error {
	if l.Via != n.Name() || l.Internal.Port() == 0 { // port 0 would delete everything we have there
		return n.fail("unmap", link{}, &Error{Kind: Unsupported, Err: errForeign})
	}
	at := link{gateway: l.Gateway, local: l.Internal.Addr()}
	err := n.do(ctx, at, n.call, func(c *pmp.Client) error {
		_, err := c.AddPortMapping("tcp", int(l.Internal.Port()), 0, 0)
		return err
	})
	if err != nil {
		return n.fail("unmap", at, err)
	}
	return nil
}

// external asks for the gateway's external address (RFC 6886 §3.2); an
// unspecified one is none. The answer has its epoch too.
func (n *natPMP) external(ctx context.Context, op string, l link, pieces []time.Duration) (netip.Addr, epoch, error) {
	var res *pmp.GetExternalAddressResult
	err := n.do(ctx, l, pieces, func(c *pmp.Client) (err error) {
		res, err = c.GetExternalAddress()
		return err
	})
	if err != nil {
		return netip.Addr{}, epoch{}, n.fail(op, l, err)
	}
	addr := netip.AddrFrom4(res.ExternalIPAddress)
	if addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	return addr, epoch{res.SecondsSinceStartOfEpoc, time.Now()}, nil
}

// probeExternal is the read-only question of the race in Any.
func (n *natPMP) probeExternal(ctx context.Context, r Request) (netip.Addr, error) {
	links, err := n.host.links(r.Internal.Addr())
	if err != nil {
		return netip.Addr{}, n.fail("probe", link{}, err)
	}
	_, addr, err := n.find(ctx, "probe", links)
	return addr, err
}

// forget drops what was discovered.
func (n *natPMP) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = netip.Addr{}
}

func (n *natPMP) ownAddr(bound netip.Addr) netip.Addr { return n.host.ownAddr(bound) }

// do runs one request of the library, piece by piece until it is answered.
// The library knows no context, so the end of ctx is noticed only between
// pieces; in return nothing of it outlives the call.
func (n *natPMP) do(ctx context.Context, l link, pieces []time.Duration, f func(*pmp.Client) error) error {
	var err error
	for _, d := range pieces {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		end, last := ctx.Deadline()
		if last = last && time.Until(end) < d; last {
			d = time.Until(end)
		}
		if d <= 0 { // the library would take 0 for "two minutes"
			return context.DeadlineExceeded
		}
		err = f(pmp.NewClientWithLocalAndTimeout(l.gateway.AsSlice(), net.IP(l.local.AsSlice()), d))
		if kind, _ := pmpKind(err); kind != Timeout {
			break
		}
		if last { // a moment before ctx knows it
			return context.DeadlineExceeded
		}
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// fail makes an *Error of what went wrong.
func (n *natPMP) fail(op string, l link, err error) *Error {
	kind, code := pmpKind(err)
	return fill(n.Name(), op, l.gateway, kind, code, err)
}

// The library's errors are texts; these are the ones it has.
const (
	pmpTextCode    = "Non-zero result code "
	pmpTextTimeout = "Timed out"
	pmpTextVersion = "unknown protocol version"
)

// pmpKind tells what an error of the library, or of ours around it, means,
// and the result code in it (RFC 6886 §3.5).
func pmpKind(err error) (Kind, int) {
	var op *net.OpError
	switch {
	case err == nil:
		return 0, 0
	case errors.Is(err, context.Canceled):
		return Canceled, 0
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout, 0
	case errors.As(err, &op):
		switch {
		case op.Timeout():
			return Timeout, 0
		case op.Op == "dial":
			return NoNetwork, 0
		}
		// An ICMP message, "port unreachable" from a gateway that does not
		// speak it as a rule, whatever the system calls it. It may speak it
		// after its next restart.
		return Unsupported, 0
	}
	text := err.Error()
	if rest, ok := strings.CutPrefix(text, pmpTextCode); ok {
		digits, _, _ := strings.Cut(rest, " ")
		code, _ := strconv.Atoi(digits)
		switch code {
		case 1, 5:
			return Unsupported, code
		case 3:
			return WANDown, code
		case 4:
			return NoResources, code
		}
		return Refused, code
	}
	switch {
	case strings.HasPrefix(text, pmpTextTimeout):
		return Timeout, 0
	case strings.HasPrefix(text, pmpTextVersion):
		return Unsupported, 0
	}
	return Malformed, 0
}
