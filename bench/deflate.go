//go:build linux

package main

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"
)

// Compressed messages (RFC 7692), by the standard library.

const packedBit = 0x40 // RSV1, in the first byte of a frame

// deflate is p as the payload of a compressed message.
func deflate(p []byte) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	if err != nil {
		panic(err)
	}
	w.Write(p)
	w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff"))
}

// inflate is what a compressed message is.
func inflate(p []byte) ([]byte, error) {
	return io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(p), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff"))))
}

// learn takes one reply of the server, which compresses in its own way, looks whether
// it is the message, and has all others compared with it.
func (d *driver) learn(w workload) error {
	fd := d.clients[0].fd
	for b, end := d.request, time.Now().Add(patience); len(b) > 0; {
		n, errno := rawWrite(fd, b)
		if errno != 0 {
			if n = 0; time.Now().After(end) {
				return fmt.Errorf("write: %w", errno)
			}
		}
		b = b[n:]
	}
	var reply []byte
	for end := time.Now().Add(patience); ; {
		n, errno := rawRead(fd, d.buf)
		switch {
		case time.Now().After(end):
			return fmt.Errorf("no whole reply within %v", patience)
		case errno != 0:
			continue
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		reply = append(reply, d.buf[:n]...)
		size, length := 2, 0
		switch {
		case len(reply) < 10:
			continue
		case reply[1] == 126:
			size, length = 4, int(binary.BigEndian.Uint16(reply[2:]))
		case reply[1] == 127:
			size, length = 10, int(binary.BigEndian.Uint64(reply[2:]))
		default:
			length = int(reply[1])
		}
		if len(reply) < size+length {
			continue
		}
		if reply[0] != 0x80|packedBit|w.opcode() || len(reply) > size+length {
			return fmt.Errorf("the reply is not one compressed frame: it begins with %x", reply[:size])
		}
		p, err := inflate(reply[size:])
		if err == nil && !bytes.Equal(p, w.payload()) {
			err = fmt.Errorf("it is %d bytes, not the message's %d", len(p), w.size)
		}
		if err != nil {
			return fmt.Errorf("the compressed reply: %w", err)
		}
		d.reply = reply
		return nil
	}
}
