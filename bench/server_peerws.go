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
	return servePeerwsCalls(ln, s, func(ctx context.Context, c *peerws.WebSocket, _ []byte) (peerws.Message, error) {
		return c.Read(ctx)
	})
}

func servePeerwsNext(ln net.Listener, s setup) error {
	return servePeerwsCalls(ln, s, func(ctx context.Context, c *peerws.WebSocket, b []byte) (m peerws.Message, err error) {
		typ, r, err := c.NextReader(ctx)
		if err != nil {
			return m, err
		}
		b, err = readAll(r, b)
		return peerws.Message{Type: typ, Data: b}, err
	})
}

// servePeerwsCalls serves with a goroutine of the program's for each connection. read
// may use the memory of the message before.
func servePeerwsCalls(ln net.Listener, s setup, read func(context.Context, *peerws.WebSocket, []byte) (peerws.Message, error)) error {
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
			var b []byte
			for {
				m, err := read(ctx, c, b)
				if err != nil {
					return
				}
				b = m.Data
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
