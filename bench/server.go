//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// A setup is what a server is told of the workload.
type setup struct {
	broadcast bool // a message goes to everybody, not back
	pack      bool // compress, without context takeover, if the client offers it
	buffer    int  // bytes of the raw TCP server's buffer per connection
	tls       *tls.Config
}

// A contestant is one server of the table.
type contestant struct {
	name string
	note string // how it is written
	peer bool   // a WebSocket library for Go that is not ours
	raw  bool   // no WebSocket at all
	bare bool   // compression would be the program's

	// serve answers the connections of ln until the process ends.
	serve func(ln net.Listener, s setup) error

	// command is how a server that is not this program is started, with files
	// put into scratch, and why it cannot be.
	command func(scratch string) (args []string, version string, missing error)
	version string // once command has told it
}

// can reports whether the server takes part in w.
func (c *contestant) can(w workload) bool { return !w.pack || !c.bare }

var contestants = []contestant{
	{name: baseline, raw: true, serve: serveTCP,
		note: "A goroutine per connection that reads and writes the same bytes back. Its buffer holds one batch of messages: 4 KiB, 64 KiB for what is larger."},
	{name: "peerws", serve: servePeerws,
		note: "OnMessage and Send. Keepalive, limits, timeouts and UTF-8 checks as they are by default; only MaxConnections is off."},
	{name: "peerws-next", serve: servePeerwsNext,
		note: "NextReader into a reused buffer, as gorilla and coder here, and Write, one goroutine of the program per connection."},
	{name: "peerws-read", serve: servePeerwsRead,
		note: "Read and Write, one goroutine of the program per connection."},
	{name: "gorilla", peer: true, serve: serveGorilla,
		note: "net/http, NextReader into a reused buffer, WriteMessage, WriteBufferPool. It does not check UTF-8, so the program does. Broadcast: PreparedMessage."},
	{name: "coder", peer: true, serve: serveCoder,
		note: "net/http, Reader into a reused buffer, Write. It does not check UTF-8, so the program does. Broadcast: Write to each."},
	{name: "gws", peer: true, serve: serveGWS,
		note: "Its own Server, OnMessage, WriteMessage. CheckUtf8Enabled, off by default, is on. Broadcast: Broadcaster."},
	{name: "gobwas", peer: true, bare: true, serve: serveGobwas,
		note: "Zero-copy Upgrader, bufio.Reader of 4 KiB, ReadHeader, Cipher, a reused buffer, header and payload in one write a frame. The program checks UTF-8. Broadcast: CompileFrame once."},
	{name: "gobwas-util", peer: true, bare: true, serve: serveGobwasUtil,
		note: "Zero-copy Upgrader, wsutil.ReadClientData and WriteServerMessage on the bare connection, as in its README; UTF-8 is checked. Broadcast: CompileFrame once."},
	{name: "bun", command: bunCommand,
		note: "Bun.serve, its WebSocket server in C++ (uWebSockets)."},
	{name: "node-ws", command: nodeCommand,
		note: "node and the package ws."},
}

// baseline is the server that all others are divided by.
const baseline = "tcp"

// A report is what a server tells of itself.
type report struct {
	Mallocs     uint64 // since the start
	HeapInuse   uint64
	StackInuse  uint64
	Unsupported bool // not a Go program
}

// runServer is the program in a server's process. It prints its port and then
// answers the lines of its input until that ends.
func runServer(name string, s setup, cert, key string) error {
	c := find(name)
	if c == nil || c.serve == nil {
		return fmt.Errorf("no server is called %q", name)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return err
		}
		s.tls = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { log.Fatal(c.serve(ln, s)) }()
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "gc" {
			runtime.GC()
			debug.FreeOSMemory()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		line, err := json.Marshal(report{Mallocs: m.Mallocs, HeapInuse: m.HeapInuse, StackInuse: m.StackInuse})
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", line)
	}
	return nil
}

// find is the contestant of that name, nil if there is none.
func find(name string) *contestant {
	for i := range contestants {
		if contestants[i].name == name {
			return &contestants[i]
		}
	}
	return nil
}

// secured is ln, with TLS if s says so.
func (s setup) secured(ln net.Listener) net.Listener {
	if s.tls != nil {
		return tls.NewListener(ln, s.tls)
	}
	return ln
}

// each runs f for every connection of ln, on a goroutine of its own.
func each(ln net.Listener, f func(net.Conn)) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go f(c)
	}
}

// A group is everybody who gets a broadcast. Reading it takes no lock, so that
// no server pays for the harness.
type group[C comparable] struct {
	mu  sync.Mutex
	all atomic.Pointer[[]C]
}

func (g *group[C]) join(c C) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := append(append([]C(nil), g.members()...), c)
	g.all.Store(&next)
}

func (g *group[C]) leave(c C) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var next []C
	for _, m := range g.members() {
		if m != c {
			next = append(next, m)
		}
	}
	g.all.Store(&next)
}

func (g *group[C]) members() []C {
	if p := g.all.Load(); p != nil {
		return *p
	}
	return nil
}

// serveTCP is the plain Go program that all others are compared with. It answers
// a request's head with what a WebSocket server would say, and the close frame of
// the handshake workload with one.
func serveTCP(ln net.Listener, s setup) error {
	var g group[net.Conn]
	return each(s.secured(ln), func(c net.Conn) {
		defer c.Close()
		if s.broadcast {
			g.join(c)
			defer g.leave(c)
		}
		b := make([]byte, s.buffer)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			p := b[:n]
			switch {
			case string(p[:min(n, 4)]) == "GET ":
				p = []byte(answer)
			case s.broadcast:
				for _, to := range g.members() {
					to.Write(p)
				}
				continue
			case len(p) == len(closeFrame) && string(p) == closeFrame:
				c.Write([]byte(closeReply))
				return
			}
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	})
}

// readAll reads r to its end into b, which is reused and grows only when the
// message is larger than any before.
func readAll(r io.Reader, b []byte) ([]byte, error) {
	b = b[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}
