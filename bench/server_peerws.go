//go:build linux

package main

import (
	"context"
	"net"
	"slices"

	"github.com/peerws/peerws"
)

func config(s setup) peerws.ListenConfig {
	c := peerws.ListenConfig{TLSConfig: s.tls, MaxConnections: -1}
	if s.pack {
		c.Compression.Mode = peerws.CompressionNoContext
	}
	return c
}

func servePeerws(ln net.Listener, s setup) error {
	var g group[*peerws.WebSocket]
	c := config(s)
	c.OnConnection = func(c *peerws.WebSocket) {
		if !s.broadcast {
			c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) {
				if c.Send(m) != nil {
					c.Abort()
				}
			})
			return
		}
		g.join(c)
		c.OnClose(func(c *peerws.WebSocket, _ peerws.CloseEvent) { g.leave(c) })
		c.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) {
			peerws.Broadcast(slices.Values(g.members()), m)
		})
	}
	l, err := c.Serve(ln)
	if err != nil {
		return err
	}
	<-l.Done()
	return l.Err()
}

func servePeerwsRead(ln net.Listener, s setup) error {
	var g group[*peerws.WebSocket]
	l, err := config(s).Serve(ln)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for c, err := range l.Connections(ctx) {
		if err != nil {
			return err
		}
		go func() {
			if s.broadcast {
				g.join(c)
				defer g.leave(c)
			}
			for {
				m, err := c.Read(ctx)
				if err != nil {
					return
				}
				if s.broadcast {
					peerws.Broadcast(slices.Values(g.members()), m)
					continue
				}
				if c.Write(ctx, m) != nil {
					return
				}
			}
		}()
	}
	return nil
}
