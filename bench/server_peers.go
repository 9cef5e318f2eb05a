//go:build linux

package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"unicode/utf8"

	coder "github.com/coder/websocket"
	gobwas "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"
)

// This file has the other Go libraries, each written as its documentation
// recommends and as fast as its interface allows: buffers reused,
// UTF-8 checked.

func serveGorilla(ln net.Listener, s setup) error {
	var g group[*gorilla.Conn]
	u := gorilla.Upgrader{WriteBufferPool: new(sync.Pool), EnableCompression: s.pack}
	return http.Serve(s.secured(ln), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := u.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		if s.broadcast {
			g.join(c)
			defer g.leave(c)
		}
		var b []byte
		for {
			t, r, err := c.NextReader()
			if err != nil {
				return
			}
			if b, err = readAll(r, b); err != nil || t == gorilla.TextMessage && !utf8.Valid(b) {
				return
			}
			if !s.broadcast {
				if c.WriteMessage(t, b) != nil {
					return
				}
				continue
			}
			p, err := gorilla.NewPreparedMessage(t, b)
			if err != nil {
				return
			}
			for _, to := range g.members() {
				to.WritePreparedMessage(p)
			}
		}
	}))
}

func serveCoder(ln net.Listener, s setup) error {
	var g group[*coder.Conn]
	ctx := context.Background()
	return http.Serve(s.secured(ln), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var o coder.AcceptOptions
		if s.pack {
			o.CompressionMode = coder.CompressionNoContextTakeover
		}
		c, err := coder.Accept(w, r, &o)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(2 * mib) // 32 KiB by default
		if s.broadcast {
			g.join(c)
			defer g.leave(c)
		}
		var b []byte
		for {
			t, r, err := c.Reader(ctx)
			if err != nil {
				return
			}
			if b, err = readAll(r, b); err != nil || t == coder.MessageText && !utf8.Valid(b) {
				return
			}
			if !s.broadcast {
				if c.Write(ctx, t, b) != nil {
					return
				}
				continue
			}
			for _, to := range g.members() {
				to.Write(ctx, t, b)
			}
		}
	}))
}

type gwsHandler struct {
	gws.BuiltinEventHandler
	s setup
	g group[*gws.Conn]
}

func (h *gwsHandler) OnOpen(c *gws.Conn) {
	if h.s.broadcast {
		h.g.join(c)
	}
}

func (h *gwsHandler) OnClose(c *gws.Conn, _ error) {
	if h.s.broadcast {
		h.g.leave(c)
	}
}

func (h *gwsHandler) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	if !h.s.broadcast {
		c.WriteMessage(m.Opcode, m.Bytes())
		return
	}
	b := gws.NewBroadcaster(m.Opcode, m.Bytes())
	defer b.Close()
	for _, to := range h.g.members() {
		b.Broadcast(to)
	}
}

func serveGWS(ln net.Listener, s setup) error {
	server := gws.NewServer(&gwsHandler{s: s}, &gws.ServerOption{CheckUtf8Enabled: true, PermessageDeflate: gws.PermessageDeflate{Enabled: s.pack}})
	server.OnError = func(net.Conn, error) {}
	return server.RunListener(s.secured(ln))
}

func serveGobwas(ln net.Listener, s setup) error {
	var g group[net.Conn]
	return each(s.secured(ln), func(c net.Conn) {
		defer c.Close()
		if _, err := gobwas.Upgrade(c); err != nil {
			return
		}
		if s.broadcast {
			g.join(c)
			defer g.leave(c)
		}
		br := bufio.NewReader(c)
		// The payload lies behind the room for the longest header that a server
		// sends, so that both leave in one write.
		const room = 10
		var (
			buf    = make([]byte, room+512)
			header = make([]byte, gobwas.MaxHeaderSize)
			w      place
		)
		for {
			h, err := gobwas.ReadHeaderBuffer(br, header)
			if err != nil || gobwas.CheckHeader(h, gobwas.StateServerSide) != nil || h.Length > 2*mib {
				return
			}
			if need := room + int(h.Length); cap(buf) < need {
				buf = make([]byte, need)
			}
			p := buf[room : room+int(h.Length)]
			if _, err := io.ReadFull(br, p); err != nil {
				return
			}
			gobwas.Cipher(p, h.Mask, 0)
			h.Masked = false
			switch {
			case h.OpCode == gobwas.OpClose:
				gobwas.WriteFrame(c, gobwas.NewCloseFrame(p))
				return
			case h.OpCode == gobwas.OpText && !utf8.Valid(p):
				return
			case s.broadcast:
				frame, err := gobwas.CompileFrame(gobwas.NewFrame(h.OpCode, true, p))
				if err != nil {
					return
				}
				for _, to := range g.members() {
					to.Write(frame)
				}
				continue
			}
			at := room - gobwas.HeaderSize(h)
			w.b = buf[at:at]
			if gobwas.WriteHeaderBuffer(&w, h, header) != nil {
				return
			}
			if _, err := c.Write(buf[at : room+len(p)]); err != nil {
				return
			}
		}
	})
}

// A place is a writer over a slice that has room.
type place struct{ b []byte }

func (p *place) Write(b []byte) (int, error) {
	p.b = append(p.b, b...)
	return len(b), nil
}

func serveGobwasUtil(ln net.Listener, s setup) error {
	var g group[net.Conn]
	return each(s.secured(ln), func(c net.Conn) {
		defer c.Close()
		if _, err := gobwas.Upgrade(c); err != nil {
			return
		}
		if s.broadcast {
			g.join(c)
			defer g.leave(c)
		}
		for {
			p, op, err := wsutil.ReadClientData(c)
			if err != nil {
				return
			}
			if !s.broadcast {
				if wsutil.WriteServerMessage(c, op, p) != nil {
					return
				}
				continue
			}
			frame, err := gobwas.CompileFrame(gobwas.NewFrame(op, true, p))
			if err != nil {
				return
			}
			for _, to := range g.members() {
				to.Write(frame)
			}
		}
	})
}
