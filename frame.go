package peerws

import "encoding/binary"

// This file is the frame codec of RFC 6455 §5: pure functions over []byte. It
// knows no connection, role, limit or extension; message.go does.

// An opcode is the four bits of RFC 6455 §5.2.
type opcode uint8

const (
	opContinuation opcode = 0x0
	opText         opcode = 0x1
	opBinary       opcode = 0x2
	opClose        opcode = 0x8
	opPing         opcode = 0x9
	opPong         opcode = 0xA
)

// isControl reports whether o is a control opcode, defined or reserved (§5.5).
func (o opcode) isControl() bool { return o&0x8 != 0 }

const (
	finBit  = 0x80
	rsvBits = 0x70

	packedBit = 0x40 // RSV1: the message is compressed (RFC 7692 §6)
	maskBit   = 0x80

	maxHeaderSize  = 14  // 2 + 8 of extended length + 4 of masking key
	maxControlSize = 125 // §5.5
)

// A header is a frame's header. The payload that follows is length bytes long,
// XORed with key if masked is set.
type header struct {
	fin    bool
	rsv    uint8 // RSV1–3 where they stand in the first byte, 0x40, 0x20, 0x10
	op     opcode
	masked bool
	length int64
	key    [4]byte
}

// Violations of the frame layout. Their texts go to the peer.
var (
	errOpcode        = &ProtocolError{StatusProtocolError, "reserved opcode"}
	errControlFin    = &ProtocolError{StatusProtocolError, "fragmented control frame"}
	errControlLength = &ProtocolError{StatusProtocolError, "control frame over 125 bytes"}
	errLengthMinimal = &ProtocolError{StatusProtocolError, "length not minimally encoded"}
	errLengthTopBit  = &ProtocolError{StatusProtocolError, "length has its top bit set"}
)

// parseHeader reads the frame header at the start of b and returns it with its
// size n. n = 0 and no error means that b ends within the header. A violation
// is reported as soon as the byte that commits it is there, even if the header
// is not complete; then n = 0.
func parseHeader(b []byte) (h header, n int, err *ProtocolError) {
	if len(b) == 0 {
		return h, 0, nil
	}
	h.fin = b[0]&finBit != 0   //         FIN         1 bit
	h.rsv = b[0] & rsvBits     //         RSV1–3      3 bits
	h.op = opcode(b[0] & 0x0F) //         opcode      4 bits
	if h.op&7 > 2 {            // 3–7 and 11–15
		return h, 0, errOpcode
	}
	if h.op.isControl() && !h.fin {
		return h, 0, errControlFin
	}
	if len(b) < 2 {
		return h, 0, nil
	}
	h.masked = b[1]&maskBit != 0      //        MASK        1 bit
	h.length = int64(b[1] &^ maskBit) //   Payload len 7 bits, 7+16 or 7+64
	n = 2
	if h.op.isControl() && h.length > maxControlSize {
		return h, 0, errControlLength
	}
	switch h.length {
	case 126:
		if len(b) < 4 {
			return h, 0, nil
		}
		h.length = int64(binary.BigEndian.Uint16(b[2:]))
		n = 4
		if h.length < 126 {
			return h, 0, errLengthMinimal
		}
	case 127:
		if len(b) > 2 && b[2]&0x80 != 0 {
			return h, 0, errLengthTopBit
		}
		if len(b) >= 8 && string(b[2:8]) == "\x00\x00\x00\x00\x00\x00" { // below 1<<16
			return h, 0, errLengthMinimal
		}
		if len(b) < 10 {
			return h, 0, nil
		}
		h.length = int64(binary.BigEndian.Uint64(b[2:]))
		n = 10
	}
	if h.masked { //                       Masking-key 0 or 32 bits
		if len(b) < n+4 {
			return h, 0, nil
		}
		h.key = [4]byte(b[n:])
		n += 4
	}
	return h, n, nil
}

// headerSize is the size of the header that appendHeader makes.
func headerSize(length int, masked bool) int {
	n := 2
	switch {
	case length >= 1<<16:
		n = 10
	case length >= 126:
		n = 4
	}
	if masked {
		n += 4
	}
	return n
}

// appendHeader appends h to dst, its length in the shortest form.
func appendHeader(dst []byte, h header) []byte {
	b0 := byte(h.op) | h.rsv
	if h.fin {
		b0 |= finBit
	}
	var b1 byte
	if h.masked {
		b1 = maskBit
	}
	switch {
	case h.length < 126:
		dst = append(dst, b0, b1|byte(h.length))
	case h.length < 1<<16:
		dst = append(dst, b0, b1|126, byte(h.length>>8), byte(h.length))
	default:
		dst = append(dst, b0, b1|127)
		dst = binary.BigEndian.AppendUint64(dst, uint64(h.length))
	}
	if h.masked {
		dst = append(dst, h.key[:]...)
	}
	return dst
}
