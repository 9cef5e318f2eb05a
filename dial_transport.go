package peerws

import (
	"context"
	"errors"
	"net"
	"time"
)

var errNoTransport = errors.New("NetDial returned neither a connection nor an error")

// transport makes the connection to addr. A NetDial that does not heed ctx is
// left behind; what it returns later is closed.
func (d *Dialer) transport(ctx context.Context, addr string) (net.Conn, error) {
	if d.NetDial == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	type made struct {
		conn net.Conn
		err  error
	}
	ch := make(chan made)
	go func() {
		conn, err := d.NetDial(ctx, "tcp", addr)
		switch {
		case err != nil:
			conn = nil
		case conn == nil:
			err = errNoTransport
		case !isSocket(conn):
			conn.SetDeadline(time.Time{}) // the program's for its dialling, if it left one
			conn = newForeign(conn)
		}
		select {
		case ch <- made{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				conn.Close()
			}
		}
	}()
	select {
	case m := <-ch:
		return m.conn, m.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
