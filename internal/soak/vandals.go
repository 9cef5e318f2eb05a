package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// Vandals speak by hand: none of this is our own code.

const vandalRequest = "GET /vandal HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// vandalFrame is a frame with the masking key 0.
func vandalFrame(first byte, payload []byte) []byte {
	b := []byte{first}
	if n := len(payload); n < 126 {
		b = append(b, 0x80|byte(n))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

// deeds are what vandals do. The connection's deadline has been set; who calls closes it.
var deeds = [...]struct {
	name string
	do   func(c *net.TCPConn, rng *rand.Rand)
}{
	{"wants much and reads nothing", func(c *net.TCPConn, rng *rand.Rand) {
		c.Write([]byte(vandalRequest))
		c.Write(bytes.Repeat(vandalFrame(0x82, make([]byte, 4096)), 200))
		time.Sleep(time.Duration(rng.Int64N(int64(4 * time.Second))))
	}},
	{"drips", func(c *net.TCPConn, rng *rand.Rand) {
		stream := vandalRequest + strings.Repeat(string(vandalFrame(0x81, []byte("drip"))), 20)
		for at := 0; at < len(stream); at++ {
			if _, err := c.Write([]byte{stream[at]}); err != nil {
				return
			}
			time.Sleep(time.Duration(rng.Int64N(int64(10 * time.Millisecond))))
		}
	}},
	{"resets", func(c *net.TCPConn, rng *rand.Rand) {
		stream := vandalRequest + strings.Repeat(string(vandalFrame(0x82, make([]byte, 300))), 20)
		c.Write([]byte(stream[:rng.IntN(len(stream))]))
		time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
		c.SetLinger(0)
	}},
	{"floods", func(c *net.TCPConn, rng *rand.Rand) {
		c.Write([]byte(vandalRequest))
		go io.Copy(io.Discard, c)
		first := [...]byte{0x82, 0x89, 0x8a, 0x02}[rng.IntN(4)]
		batch := bytes.Repeat(vandalFrame(first, make([]byte, rng.IntN(3))), 500)
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			if _, err := c.Write(batch); err != nil {
				return
			}
		}
	}},
	{"half-closes", func(c *net.TCPConn, rng *rand.Rand) {
		stream := vandalRequest + strings.Repeat(string(vandalFrame(0x82, make([]byte, 300))), 20)
		c.Write([]byte(stream[:rng.IntN(len(stream))]))
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}},
	{"says nothing any more", func(c *net.TCPConn, rng *rand.Rand) {
		c.Write([]byte(vandalRequest[:rng.IntN(len(vandalRequest))]))
		if rng.IntN(2) == 0 {
			c.Write([]byte(vandalRequest))
		}
		io.Copy(io.Discard, c) // and answers no ping
	}},
	{"speaks something else", func(c *net.TCPConn, rng *rand.Rand) {
		if rng.IntN(2) == 0 {
			c.Write([]byte(vandalRequest))
		}
		b := make([]byte, 1000)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		c.Write(b)
		io.Copy(io.Discard, c)
	}},
	{"opens and goes", func(*net.TCPConn, *rand.Rand) {}},
}

// vandal does one deed after the other.
func (c *crowd) vandal(ctx context.Context, addr string, end time.Time, rng *rand.Rand) {
	var d net.Dialer
	for ctx.Err() == nil && time.Now().Before(end) {
		limit, cancel := context.WithTimeout(ctx, 3*time.Second)
		conn, err := d.DialContext(limit, "tcp", addr)
		cancel()
		if err == nil {
			i := rng.IntN(len(deeds))
			conn.SetDeadline(time.Now().Add(6 * time.Second))
			deeds[i].do(conn.(*net.TCPConn), rng)
			conn.Close()
			c.deeds[i].Add(1)
		}
		time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
	}
}
