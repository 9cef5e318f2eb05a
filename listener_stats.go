package peerws

import (
	"cmp"
	"errors"
	"maps"
	"os"
	"slices"

	"github.com/peerws/peerws/nat"
)

// What a listener counts. Sockets count for themselves, in what they write anyway, so
// that a message costs nothing more; their counts are added up when somebody asks.

// ListenerStats counts what a listener has seen. It can be published as it is:
//
//	expvar.Publish("chat", expvar.Func(func() any { return l.Stats() }))
type ListenerStats struct {
	Open        int   // sockets now, those waiting for Accept included
	Handshaking int   // transports in their opening handshake, or waiting for a place in it
	Accepted    int64 // opening handshakes that succeeded
	Refused     int64 // transports and requests turned away, for whatever reason

	RefusedFor map[RefusalReason]int64 `json:",omitempty"` // Refused by its reason
	Closed     []CloseCount            `json:",omitempty"` // sockets that have ended, the most frequent end first

	// Of all sockets since the start. Bytes are those of frames, with their headers, as
	// the transport has them: compressed, but below TLS there are a few more.
	MessagesReceived, MessagesSent int64
	BytesReceived, BytesSent       int64

	Held    int64    // bytes held for peers now, as MaxHeldBytes counts them
	Mapping nat.Code // that of Reachability
}

// A CloseCount is how many sockets have ended in one way.
type CloseCount struct {
	Initiator Initiator
	Code      StatusCode // as in CloseEvent
	Count     int64
}

// A RefusalReason is why a transport or request was turned away: the option that
// decides it, where there is one.
type RefusalReason string

const (
	RefusedMaxConnections         RefusalReason = "MaxConnections"
	RefusedMaxConnectionsPerIP    RefusalReason = "MaxConnectionsPerIP"
	RefusedMaxConnectionRatePerIP RefusalReason = "MaxConnectionRatePerIP"
	RefusedMaxHandshakes          RefusalReason = "MaxHandshakes"    // it gave way to others
	RefusedHandshakeTimeout       RefusalReason = "HandshakeTimeout" // TLS included
	RefusedMaxHeaderBytes         RefusalReason = "MaxHeaderBytes"   // or too many lines of it
	RefusedOrigin                 RefusalReason = "AllowedOrigins"   // or AllowedHosts
	RefusedAuthorize              RefusalReason = "Authorize"
	RefusedRespond                RefusalReason = "Respond"    // an answer that cannot be sent
	RefusedProtocol               RefusalReason = "protocols"  // none of those offered is spoken
	RefusedRequireTLS             RefusalReason = "RequireTLS" // or sent to the https form of the page
	RefusedNoUpgrade              RefusalReason = "HTTP"       // a request that asks for no WebSocket, without a handler for it
	RefusedRequest                RefusalReason = "request"    // it is malformed
	RefusedTransport              RefusalReason = "transport"  // it ended or failed, TLS included
	RefusedClosing                RefusalReason = "closing"    // the listener is closed
)

// reasonOf returns why err has a transport or request turned away.
func reasonOf(err error) RefusalReason {
	switch err {
	case errFull:
		return RefusedMaxConnections
	case errCrowd:
		return RefusedMaxConnectionsPerIP
	case errRate:
		return RefusedMaxConnectionRatePerIP
	case errSilent:
		return RefusedMaxHandshakes
	case errHeadFields, errHeadTooLarge, errHeadTarget:
		return RefusedMaxHeaderBytes
	case errNoProtocol:
		return RefusedProtocol
	case errNoUpgrade, errMethod, errHTTP2:
		return RefusedNoUpgrade
	case errPlain:
		return RefusedRequireTLS
	case errClosing:
		return RefusedClosing
	}
	switch x := err.(type) {
	case *refusal:
		return RefusedRequest
	case *rejection:
		switch {
		case x.refusal == errAnswer:
			return RefusedRespond
		case x.cause == errPlain:
			return RefusedRequireTLS
		case isOriginError(x.cause):
			return RefusedOrigin
		}
		return RefusedAuthorize
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return RefusedHandshakeTimeout
	}
	return RefusedTransport
}

func isOriginError(err error) bool {
	_, ok := err.(originError)
	return ok
}

// SocketStats counts what one socket has seen. Bytes are those of frames, with their
// headers, as the transport has them: compressed, but below TLS there are a few more.
type SocketStats struct {
	MessagesReceived int64 // handed over, or begun to be
	MessagesSent     int64 // taken by Send and its like
	BytesReceived    int64
	BytesSent        int64 // taken by the kernel
	BufferedAmount   int   // as the method says
	Held             int   // bytes held for the peer, as MaxHeldBytes counts them
}

// Stats returns what has been counted so far. It may be called at any time, also
// when the socket has ended.
func (c *WebSocket) Stats() SocketStats {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	s := SocketStats{
		MessagesReceived: int64(c.reader.Load() / oneMessage),
		MessagesSent:     int64(c.writer.messages),
		BytesReceived:    int64(c.received.Load()),
		BytesSent:        int64(c.writer.sent),
		BufferedAmount:   c.writer.buffered,
	}
	if b := c.writer.backlog; b != nil {
		s.Held = b.queued
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Held += c.rareLocked().held
	return s
}

// add adds those counts of a socket that only grow.
func (s *ListenerStats) add(t SocketStats) {
	s.MessagesReceived += t.MessagesReceived
	s.MessagesSent += t.MessagesSent
	s.BytesReceived += t.BytesReceived
	s.BytesSent += t.BytesSent
}

// Stats returns what has been counted so far. It looks at every socket, which takes
// some nanoseconds each and holds up nobody.
func (l *WebSocketListener) Stats() ListenerStats {
	l.mu.Lock()
	s := l.stats
	s.Open = len(l.sockets)
	s.Handshaking = len(l.pending) + len(l.queue.waiting)
	if len(l.refusedFor) > 0 {
		s.RefusedFor = make(map[RefusalReason]int64, len(l.refusedFor))
		maps.Copy(s.RefusedFor, l.refusedFor)
	}
	for how, n := range l.closed {
		s.Closed = append(s.Closed, CloseCount{how.by, how.code, n})
	}
	sockets := slices.Clone(l.sockets) // what they count later, too, is theirs and not yet in l.stats
	l.mu.Unlock()
	for _, c := range sockets {
		s.add(c.Stats())
	}
	slices.SortFunc(s.Closed, func(a, b CloseCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.Code, b.Code))
	})
	s.Held = l.held.Load()
	l.addrs.mu.Lock()
	s.Mapping = l.addrs.reach.Code
	l.addrs.mu.Unlock()
	return s
}

// closedHow is what sockets that have ended are counted by.
type closedHow struct {
	by   Initiator
	code StatusCode
}

// countRefused counts a refusal, and tells the trace. remote may be nil.
func (l *WebSocketListener) countRefused(remote func() string, err error, reason RefusalReason) {
	l.mu.Lock()
	l.stats.Refused++
	if l.refusedFor == nil {
		l.refusedFor = make(map[RefusalReason]int64)
	}
	l.refusedFor[reason]++
	l.mu.Unlock()
	if l.trace == nil || l.trace.Refused == nil {
		return
	}
	r := Refusal{Reason: reason, Err: err}
	if remote != nil {
		r.Remote = remote()
	}
	no, cause := refusalOf(err)
	if no != nil && err != errClosing {
		r.Status = no.status
	}
	r.Err = cause
	l.trace.Refused(r)
}
