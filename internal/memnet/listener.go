package memnet

import (
	"context"
	"net"
	"sync"
	"syscall"
)

// A Listener is a net.Listener whose connections are made by its Dial.
type Listener struct {
	// Address is what Addr returns and the accepted end's LocalAddr is,
	// 127.0.0.1:9000 from [Listen]. Set it before the first Dial.
	Address net.Addr

	// OnDial is called with both ends before either is handed over: the place
	// to set faults or addresses. Set it before the first Dial. It may be nil.
	OnDial func(accepted, dialled *Conn)

	bufSize int

	mu       sync.Mutex
	arrived  sync.Cond
	backlog  []*Conn
	dials    int
	isClosed bool
}

// Listen returns a listener whose connections have buffers of bufSize bytes (0
// = [DefaultBufferSize]).
func Listen(bufSize int) *Listener {
	l := &Listener{Address: defaultAddr(listenPort), bufSize: bufSize}
	l.arrived.L = &l.mu
	return l
}

// Accept waits for a Dial and returns its other end.
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.backlog) == 0 && !l.isClosed {
		l.arrived.Wait()
	}
	if l.isClosed {
		return nil, l.opError("accept", net.ErrClosed)
	}
	c := l.backlog[0]
	l.backlog = append(l.backlog[:0], l.backlog[1:]...)
	return c, nil
}

// Dial opens a connection. Like a kernel's, it does not wait for Accept; and
// the queue of those not accepted yet has no bound, so it never waits at all. A
// closed listener refuses with ECONNREFUSED. The n-th dialled end is port
// 50000+n-1 of 127.0.0.1.
func (l *Listener) Dial(ctx context.Context) (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, l.opError("dial", err)
	}
	if l.isClosed {
		return nil, l.opError("dial", syscall.ECONNREFUSED)
	}
	accepted, dialled := pipe(l.bufSize, l.Address, defaultAddr(firstDialPort+l.dials%10000))
	l.dials++
	if l.OnDial != nil {
		l.OnDial(accepted, dialled)
	}
	l.backlog = append(l.backlog, accepted)
	l.arrived.Signal()
	return dialled, nil
}

// DialContext is Dial with the signature that dialers take a function of;
// network and address are not looked at.
func (l *Listener) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := l.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close makes Accept return net.ErrClosed and resets the connections that were
// not accepted. Accepted ones live on.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isClosed {
		return l.opError("close", net.ErrClosed)
	}
	l.isClosed = true
	for _, c := range l.backlog {
		c.Abort()
	}
	l.backlog = nil
	l.arrived.Broadcast()
	return nil
}

// Addr returns l.Address.
func (l *Listener) Addr() net.Addr { return l.Address }

func (l *Listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: l.Address.Network(), Addr: l.Address, Err: err}
}
