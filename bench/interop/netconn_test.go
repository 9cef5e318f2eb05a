package interop

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/peerws/peerws"
)

// TestNetConn holds NetConn against what golang.org/x/net/nettest expects of
// every net.Conn, over each transport that the engine treats in a way of its
// own, and with either side as the one under test.
func TestNetConn(t *testing.T) {
	transports := []struct {
		name string
		pair func(t *testing.T) (accepted, dialled *peerws.WebSocket)
	}{
		{"loopback", func(t *testing.T) (*peerws.WebSocket, *peerws.WebSocket) {
			return pair(t, false, peerws.ListenConfig{}, peerws.Dialer{})
		}},
		{"TLS", func(t *testing.T) (*peerws.WebSocket, *peerws.WebSocket) {
			return pair(t, true, peerws.ListenConfig{}, peerws.Dialer{})
		}},
		{"Pipe", func(t *testing.T) (*peerws.WebSocket, *peerws.WebSocket) {
			return peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
		}},
	}
	for _, transport := range transports {
		for _, side := range []string{"accepted", "dialled"} {
			t.Run(transport.name+"/"+side, func(t *testing.T) {
				t.Parallel()
				nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
					a, d := transport.pair(t)
					stop := func() {
						for _, c := range []*peerws.WebSocket{a, d} {
							if c.ReadyState() == peerws.Closing { // a Close waits for the peer's answer
								ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
								c.Wait(ctx)
								cancel()
							}
							c.Abort()
							<-c.Done()
						}
					}
					if side == "dialled" {
						a, d = d, a
					}
					return a.NetConn(peerws.Binary), d.NetConn(peerws.Binary), stop, nil
				})
			})
		}
	}
}
