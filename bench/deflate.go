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
		packed, whole, err := joinFrames(reply, packedBit|w.opcode())
		if err != nil {
			return err
		}
		if !whole {
			continue
		}
		p, err := inflate(packed)
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

// joinFrames returns the payload of b's frames, which are one unmasked message that
// begins with the byte first but for FIN, and whether it has come to its end, and b with
// it.
func joinFrames(b []byte, first byte) (payload []byte, whole bool, err error) {
	for next := first; ; next = 0 {
		size, length := 2, 0
		switch {
		case len(b) < 2:
			return nil, false, nil
		case b[1] < 126:
			length = int(b[1])
		case b[1] == 126 && len(b) >= 4:
			size, length = 4, int(binary.BigEndian.Uint16(b[2:]))
		case b[1] == 127 && len(b) >= 10:
			size, length = 10, int(binary.BigEndian.Uint64(b[2:]))
		}
		if len(b) < size+length || size == 2 && length == 0 && b[1] != 0 {
			return nil, false, nil
		}
		if b[0]&0x7f != next {
			return nil, false, fmt.Errorf("the reply is not one compressed message: a frame begins with %x", b[:size])
		}
		payload = append(payload, b[size:size+length]...)
		fin := b[0]&0x80 != 0
		b = b[size+length:]
		if fin && len(b) > 0 {
			return nil, false, fmt.Errorf("%d bytes behind the reply", len(b))
		}
		if fin {
			return payload, true, nil
		}
	}
}
