package peerws

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
)

// A NetDial that does not heed its context is left behind, and what it returns
// later is closed.
func TestForeign_NetDialHeedsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go_ := make(chan struct{})
		d := Dialer{HandshakeTimeout: oddTime, NetDial: func(context.Context, string, string) (net.Conn, error) {
			<-go_
			return a, nil
		}}
		within(t, oddTime, func() {
			if _, err := d.Dial(t.Context(), "ws://there/"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		close(go_)
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the connection that came too late: %v", err)
		}
	})
	if _, err := (Dialer{NetDial: func(context.Context, string, string) (net.Conn, error) { return nil, nil }}).Dial(t.Context(), "ws://there/"); !errors.Is(err, errNoTransport) {
		t.Error(err)
	}
}
