package nat

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// exchange sends a packet to a port of the gateway, and again after each of
// the waits, until judge calls a datagram the answer; judge's error is then
// that of exchange. What is not an answer changes nothing, whoever sent it;
// strangers' datagrams do not get here, since the socket is connected to the
// gateway. It ends with ctx, at once.
func exchange(ctx context.Context, l link, port uint16, waits []time.Duration, packet []byte, judge func(b []byte) (answer bool, err error)) error {
	if ctx.Err() != nil {
		return ctxError(ctx)
	}
	c, err := net.DialUDP("udp",
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.local, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.gateway, port)))
	if err != nil {
		return &Error{Kind: NoNetwork, Err: err}
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	b := make([]byte, pcpMaxSize+1)
	for _, wait := range waits {
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil { // looked at after the deadline, which may have overwritten that of the context's end
			return ctxError(ctx)
		}
		if _, err = c.Write(packet); err != nil {
			return socketError(err)
		}
		for {
			n, err := c.Read(b)
			if ctx.Err() != nil {
				return ctxError(ctx)
			}
			if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
				break
			}
			if err != nil {
				return socketError(err)
			}
			if answer, err := judge(b[:n]); answer {
				return err
			}
		}
	}
	return &Error{Kind: Timeout, Err: errNoAnswer}
}

// firstOf asks at all links at once, and returns the first of the list that has
// answered well as soon as all before it have not: a second gateway that is
// silent, as one behind a VPN may be, holds up nothing. -1 is none of them.
func firstOf(ctx context.Context, links []link, ask func(ctx context.Context, i int) error) (int, []error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	errs, done := make([]error, len(links)), make([]chan struct{}, len(links))
	for i := range links {
		done[i] = make(chan struct{})
		wg.Go(func() {
			defer close(done[i])
			errs[i] = ask(ctx, i)
		})
	}
	for i := range links {
		if <-done[i]; errs[i] == nil {
			return i, nil
		}
	}
	return -1, errs
}

var errNoAnswer = errors.New("no answer")

// socketError is the *Error for an ICMP message, "port unreachable" from a
// gateway that does not speak the protocol as a rule, whatever the system calls
// it. It may speak it after its next restart.
func socketError(err error) error { return &Error{Kind: Unsupported, Err: err} }

func ctxError(ctx context.Context) error { return &Error{Kind: ctxKind(ctx), Err: ctx.Err()} }
