package nat

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"
)

// A searcher asks the network for devices.
type searcher struct {
	port   uint16          // where a gateway listens
	group  netip.AddrPort  // the multicast group; invalid to ask nobody but the gateway
	resend []time.Duration // when, after the start, the questions are repeated
	listen time.Duration   // how long answers are waited for
}

func systemSearcher() searcher {
	return searcher{
		port:   1900,
		group:  netip.MustParseAddrPort("239.255.255.250:1900"),
		resend: []time.Duration{250 * time.Millisecond, 750 * time.Millisecond},
		listen: 3 * time.Second,
	}
}

// systemSearcher6 is that for IPv6: the group is the link-local one, where the
// gateway is (UPnP Device Architecture 1.1 annex A.2).
func systemSearcher6() searcher {
	s := systemSearcher()
	s.group = netip.AddrPortFrom(netip.MustParseAddr("ff02::c"), s.group.Port())
	return s
}

// A hit is a place where a description may be fetched, always at the gateway.
type hit struct {
	url      *url.URL
	device   netip.Addr // the address in url: link's gateway
	link     link       // where it was found
	stranger bool       // somebody else than the gateway said so
}

// maxHits bounds how many descriptions of one search are looked at of each
// sort: those the gateway told when it alone was asked, those it told, or
// somebody in its name, when everybody was, and those of strangers. So a host
// that answers with thousands costs little, and does not drown the gateway:
// it does not hear what the gateway alone is asked, nor from which port.
const maxHits = 5

const (
	maxDatagram     = 2048 // bytes of an answer or announcement that are read
	maxReadFailures = 32   // errors of a socket in the way to the end, each of which may be about one datagram
)

// The sorts of hits.
const (
	hitDirect = iota
	hitGroup
	hitStranger
	hitSorts
)

// search asks at every link, by unicast to the gateway and by multicast, since
// firewalls eat the answers to one and some devices are deaf to the other.
// Every place of a sort is reported once, until the time is over or ctx ends.
// The error is that nothing could be sent at all.
func (s searcher) search(ctx context.Context, h host, links []link, found func(hit)) error {
	ctx, cancel := context.WithTimeout(ctx, s.listen)
	defer cancel()
	prefixes, err := h.subnets()
	if err != nil {
		return err
	}

	var mu sync.Mutex
	var seen [hitSorts][]string
	report := func(sort int, x hit) {
		if x.stranger {
			sort = hitStranger
		}
		mu.Lock()
		defer mu.Unlock()
		key := x.url.String()
		if len(seen[sort]) >= maxHits || slices.Contains(seen[sort], key) {
			return
		}
		seen[sort] = append(seen[sort], key)
		found(x)
	}

	var errs []error
	var wg sync.WaitGroup
	sockets := 0
	ask := func(l link, sort int, to ...netip.AddrPort) {
		sockets++
		wg.Go(func() {
			if err := s.searchLink(ctx, h, l, prefixes, to, func(x hit) { report(sort, x) }); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	for _, l := range links {
		gateway := netip.AddrPortFrom(l.gateway, s.port)
		ask(l, hitDirect, gateway)
		if s.group.IsValid() {
			// The gateway is asked from here too: a firewall of this machine
			// then lets its answer to the multicast in.
			group := s.group
			if h.six {
				group = netip.AddrPortFrom(group.Addr().WithZone(l.gateway.Zone()), group.Port())
			}
			ask(l, hitGroup, gateway, group)
		}
	}
	wg.Wait()
	if len(errs) == sockets {
		return errors.Join(errs...)
	}
	return nil
}

// searchLink is search at one link, on one socket of its own: an interface
// that cannot send spoils nothing for the others.
func (s searcher) searchLink(ctx context.Context, h host, l link, prefixes []netip.Prefix, to []netip.AddrPort, report func(hit)) error {
	network, from := "udp4", l.local
	if h.six {
		// From whatever address the system takes for the gateway's: to a
		// link-local question it answers from the address we know it by.
		network, from = "udp6", netip.IPv6Unspecified()
	}
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err != nil {
		return err
	}
	defer c.Close()
	if !h.six && slices.ContainsFunc(to, func(a netip.AddrPort) bool { return a.Addr().IsMulticast() }) {
		// Best effort: without it the system chooses the interface, on Linux
		// rightly, by the address the socket is bound to.
		_ = multicastFrom(c, l.local)
	}
	if err := s.send(c, to); err != nil {
		return err
	}

	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		start := time.Now()
		for _, at := range s.resend {
			t := time.NewTimer(at - time.Since(start))
			select {
			case <-t.C:
				_ = s.send(c, to) // the first was sent; a hiccup now is no verdict
			case <-ctx.Done():
				t.Stop()
				return
			}
		}
	})

	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, maxDatagram)
	for failures := 0; ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			// Some systems report here that an earlier datagram found nobody.
			if failures++; failures > maxReadFailures {
				return err
			}
			continue
		}
		// Any source port, since real devices do not answer from 1900, but
		// nobody from beyond the router.
		src := from.Addr().Unmap()
		if !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(src.WithZone("")) }) &&
			(src != l.gateway || !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Addr() == l.local && p.IsSingleIP() })) { // a gateway on the link, outside of our network of one
			continue
		}
		r, ok := parseSSDP(b[:n])
		if !ok {
			continue
		}
		if u, err := checkLocation(r.location, src, l.gateway, h.loopback); err == nil && (l.gateway != l.local || h.six && h.loopback) {
			report(hit{url: u, device: l.gateway, link: l, stranger: src != l.gateway})
		}
	}
}

// send asks all questions once: of the last in to all of them, of those before
// it the last question, which every device answers. The error is that none
// could be sent.
func (s searcher) send(c *net.UDPConn, to []netip.AddrPort) error {
	var failed error
	sent := false
	for i, dst := range to {
		targets := searchTargets[:]
		if i < len(to)-1 {
			targets = targets[len(targets)-1:]
		}
		for _, target := range targets {
			if _, err := c.WriteToUDPAddrPort(appendSearch(nil, target), dst); err != nil {
				failed = err
			} else {
				sent = true
			}
		}
	}
	if !sent {
		return failed
	}
	return nil
}
