//go:build linux

package main

import (
	"bytes"
	"fmt"
	"strings"
)

// A kind is how a workload is driven.
type kind int

const (
	echo       kind = iota // every connection has one batch of messages in flight
	paced                  // echo at a fixed rate
	broadcast              // one message to everybody
	handshakes             // connect, upgrade, closing handshake, EOF
	idle                   // memory of connections that are silent
)

// A workload is one line of the table.
type workload struct {
	name  string
	title string
	kind  kind
	size  int    // payload bytes of a message
	text  string // "" is binary, "json" and "cyrillic" are text
	conns int
	batch int // messages that go out in one write, 0 means 1
	rate  int // messages a second, of paced
	procs int // GOMAXPROCS of the server
	tls   bool
	pack  bool // messages are compressed, without context takeover
	bars  []bar
}

// A measure is what a bar holds against its limit.
type measure int

const (
	toTCP      measure = iota // ratio to the raw Go TCP server
	toBestPeer                // ratio to the Go library that costs least
	toBun
	toGWS
	allocations // a message
	bytesAsIs   // resident bytes a connection
	bytesAfterGC
)

// A bar is a line that peerws has to reach: at most limit. stretch is what we
// would like, 0 if nothing is said.
type bar struct {
	server         string
	what           measure
	limit, stretch float64
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// forUs are the bars of an echo: the ratio, and what is allocated in both
// styles. Read allocates each message, so collections happen, and they empty the
// pools: hence a bit more than 1. extra bars go in between.
func forUs(limit, stretch float64, extra ...bar) []bar {
	bars := append([]bar{{"peerws", toTCP, limit, stretch}}, extra...)
	return append(bars, bar{"peerws", allocations, 0.01, 0}, bar{"peerws-read", allocations, 1.1, 0})
}

var workloads = []workload{
	{name: "b32", title: "32 B", kind: echo, size: 32, conns: 32,
		bars: forUs(1.00, 0.90, bar{"peerws", toBestPeer, 1.00, 0})},
	{name: "b125", title: "125 B", kind: echo, size: 125, conns: 32,
		bars: forUs(1.00, 0.90, bar{"peerws", toBestPeer, 1.00, 0})},
	{name: "b1k", title: "1 KiB", kind: echo, size: kib, conns: 32,
		bars: forUs(1.00, 0.85, bar{"peerws", toBestPeer, 0.95, 0})},
	{name: "b16k", title: "16 KiB", kind: echo, size: 16 * kib, conns: 16,
		bars: forUs(1.00, 0.85, bar{"peerws", toBestPeer, 0.95, 0})},
	{name: "t16k", title: "16 KiB text, JSON", kind: echo, size: 16 * kib, text: "json", conns: 16,
		bars: forUs(1.05, 0.95)},
	{name: "u16k", title: "16 KiB text, Cyrillic", kind: echo, size: 16 * kib, text: "cyrillic", conns: 16,
		bars: forUs(1.05, 0.95)},
	{name: "b1m", title: "1 MiB", kind: echo, size: mib, conns: 4,
		bars: forUs(1.10, 1.00)},
	{name: "pipe64", title: "64 × 125 B pipelined", kind: echo, size: 125, conns: 16, batch: 64,
		bars: forUs(1.25, 1.00, bar{"peerws", toBestPeer, 1. / 25, 0}, bar{"peerws", toBun, 0.65, 0})},
	{name: "rate", title: "125 B, 20,000 a second", kind: paced, size: 125, conns: 32, rate: 20000,
		bars: []bar{{"peerws", toTCP, 0.85, 0.72}}},
	{name: "bcast", title: "256 B to 1,000", kind: broadcast, size: 256, conns: 1000,
		bars: []bar{{"peerws", toTCP, 0.85, 0.75}, {"peerws", allocations, 0.01, 0}}},
	{name: "handshake", title: "handshake and close", kind: handshakes, conns: 16,
		bars: []bar{{"peerws", toTCP, 1.05, 0.95}, {"peerws", allocations, 12, 0}}},
	{name: "deflate1k", title: "1 KiB JSON, compressed", kind: echo, size: kib, text: "users", conns: 32, pack: true,
		bars: []bar{{"peerws", toGWS, 0.80, 0}, {"peerws", toBun, 1.00, 0}, {"peerws", allocations, 0.01, 0}}},
	{name: "deflate64k", title: "64 KiB JSON, compressed", kind: echo, size: 64 * kib, text: "users", conns: 8, pack: true},
	{name: "b125-p2", title: "125 B, GOMAXPROCS 2", kind: echo, size: 125, conns: 32, procs: 2},
	{name: "rate-p2", title: "125 B, 20,000 a second, GOMAXPROCS 2", kind: paced, size: 125, conns: 32, rate: 20000, procs: 2},
	{name: "slow-p2", title: "125 B, 5,000 a second, GOMAXPROCS 2", kind: paced, size: 125, conns: 32, rate: 5000, procs: 2},
	{name: "pipe64-p2", title: "64 × 125 B, GOMAXPROCS 2", kind: echo, size: 125, conns: 16, batch: 64, procs: 2},
	{name: "idle", title: "idle connections", kind: idle, size: 125, conns: 10000,
		bars: []bar{{"peerws", bytesAsIs, 4000, 3300}}},
	{name: "idle-deflate", title: "idle connections, compression agreed on", kind: idle, size: kib, text: "users", conns: 10000, pack: true},
	{name: "idle-tls", title: "idle connections, TLS", kind: idle, size: 125, conns: 3000, tls: true,
		bars: []bar{{"peerws", bytesAsIs, 24 * kib, 20 * kib}, {"peerws", bytesAfterGC, 18 * kib, 16 * kib}}},
}

// payload is the message of w: always the same bytes.
func (w workload) payload() []byte {
	var b []byte
	switch w.text {
	case "json":
		b = []byte("[" + strings.Repeat(`{"id":4711,"name":"Ann","tags":["a","b"],"on":true},`, w.size/50+1))
	case "users": // with numbers that do not repeat, as programs' do
		x := uint32(1)
		next := func(n uint32) uint32 {
			x = x*1664525 + 1013904223 // the constants of Numerical Recipes
			return x >> 8 % n
		}
		for b = []byte("["); len(b) < w.size; {
			b = fmt.Appendf(b, `{"id":%d,"name":"user-%d","active":%v,"score":%d.%02d},`, next(1e6), next(1e4), next(2) == 0, next(100), next(100))
		}
	case "cyrillic":
		b = []byte(strings.Repeat("Съешь же ещё этих мягких французских булок, да выпей чаю. ", w.size/50+1))
		// The cut must not split a letter of two bytes.
		b = b[:w.size:w.size]
		if last := b[len(b)-1]; last >= 0xC0 {
			b[len(b)-1] = '.'
		}
		return b
	default:
		b = make([]byte, w.size)
		for i := range b {
			b[i] = byte(i*7 + i>>8)
		}
	}
	return b[:w.size]
}

// opcode is the first byte of the frame without FIN (RFC 6455 §5.2).
func (w workload) opcode() byte {
	if w.text != "" {
		return 1
	}
	return 2
}

// request is what a client writes at once, and reply what comes back: masked
// frames and plain ones. A raw TCP server returns the request itself.
func (w workload) request(raw bool) (request, reply []byte) {
	p := w.payload()
	op := w.opcode()
	if w.pack {
		p, op = deflate(p), op|packedBit
	}
	request = frame(op, p, [4]byte{0x37, 0xFA, 0x21, 0x3D})
	reply = frame(op, p, [4]byte{}) // with compression: see learn
	if raw {
		reply = request
	}
	n := max(w.batch, 1)
	return bytes.Repeat(request, n), bytes.Repeat(reply, n)
}

// frame is one frame of RFC 6455 §5.2, masked if the key is not zero. The
// driver has its own encoder so that it trusts no library's.
func frame(opcode byte, p []byte, key [4]byte) []byte {
	masked := key != [4]byte{}
	var m byte
	if masked {
		m = 0x80
	}
	b := []byte{0x80 | opcode}
	switch n := len(p); {
	case n < 126:
		b = append(b, m|byte(n))
	case n < 1<<16:
		b = append(b, m|126, byte(n>>8), byte(n))
	default:
		b = append(b, m|127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	if !masked {
		return append(b, p...)
	}
	b = append(b, key[:]...)
	for i, c := range p {
		b = append(b, c^key[i&3])
	}
	return b
}
