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

// A hit is a place where a description may be fetched.
type hit struct {
	url    *url.URL
	device netip.Addr // the address in url
	link   link       // where it was found
}

// gateway reports whether the device is the default gateway itself.
func (h hit) gateway() bool { return h.device == h.link.gateway }

// maxHits bounds how many descriptions of one search are looked at, so that a
// host that answers with thousands costs nothing; half of them are kept for
// the gateway.
const maxHits = 16

// search asks at every link, by unicast to the gateway and by multicast, since
// firewalls eat the answers to one and some devices are deaf to the other.
// Every place is reported once, until the time is over or ctx ends. The error
// is that nothing could be sent at all.
func (s searcher) search(ctx context.Context, h host, links []link, found func(hit)) error {
	ctx, cancel := context.WithTimeout(ctx, s.listen)
	defer cancel()
	prefixes, err := h.prefixes()
	if err != nil {
		return err
	}

	var mu sync.Mutex
	seen := make(map[string]bool)
	foreign := 0
	report := func(x hit) {
		mu.Lock()
		defer mu.Unlock()
		key := x.url.String()
		if seen[key] || len(seen) >= maxHits {
			return
		}
		if !x.gateway() {
			if foreign++; foreign > maxHits/2 {
				return
			}
		}
		seen[key] = true
		found(x)
	}

	errs := make([]error, len(links))
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() { errs[i] = s.searchLink(ctx, h, l, prefixes, report) })
	}
	wg.Wait()
	if i := slices.Index(errs, nil); i < 0 {
		return errors.Join(errs...)
	}
	return nil
}

// searchLink is search at one link, on one socket of its own: an interface
// that cannot send spoils nothing for the others.
func (s searcher) searchLink(ctx context.Context, h host, l link, prefixes []netip.Prefix, report func(hit)) error {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.local, 0)))
	if err != nil {
		return err
	}
	defer c.Close()
	if s.group.IsValid() && s.group.Addr().IsMulticast() {
		// Best effort: without it the system chooses the interface, on Linux
		// rightly, by the address the socket is bound to.
		_ = multicastFrom(c, l.local)
	}
	if err := s.send(c, l); err != nil {
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
				_ = s.send(c, l) // the first was sent; a hiccup now is no verdict
			case <-ctx.Done():
				t.Stop()
				return
			}
		}
	})

	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 2048)
	for failures := 0; ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			// Some systems report here that an earlier datagram found nobody.
			if failures++; failures > 32 {
				return err
			}
			continue
		}
		// Any source port, since real devices do not answer from 1900, but
		// nobody from beyond the router.
		src := from.Addr().Unmap()
		if !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(src) }) {
			continue
		}
		r, ok := parseSSDP(b[:n])
		if !ok {
			continue
		}
		if u, device, err := checkLocation(r.location, src, l.gateway, h.loopback); err == nil && device != l.local {
			report(hit{url: u, device: device, link: l})
		}
	}
}

// send asks all questions once. The error is that none could be sent.
func (s searcher) send(c *net.UDPConn, l link) error {
	var failed error
	sent := false
	to := []netip.AddrPort{netip.AddrPortFrom(l.gateway, s.port)}
	if s.group.IsValid() {
		to = append(to, s.group)
	}
	for _, dst := range to {
		for _, target := range searchTargets {
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
