package nat

import (
	"encoding/binary"
	"net/netip"
)

// NAT-PMP (RFC 6886 §3), as bytes. What is here is pure; the socket is in
// natpmp.go.
//
//	request  version 1, opcode 1, [map: reserved 2, internal port 2, external port 2, lifetime 4]
//	answer   version 1, 128+opcode 1, result 2, epoch 4, [address 4 | internal port 2, external port 2, lifetime 4]

const (
	pmpVersion  = 0
	pmpExternal = 0 // opcode: which is the outside address
	pmpMapTCP   = 2 // opcode: map a TCP port
	pmpAnswer   = 128
)

// Result codes (RFC 6886 §3.5).
const (
	pmpUnsupportedVersion = 1
	pmpNotAuthorized      = 2
	pmpNetworkFailure     = 3
	pmpOutOfResources     = 4
	pmpUnsupportedOpcode  = 5
)

// A pmpRequest asks for the outside address or for a mapping.
type pmpRequest struct {
	opcode             byte
	internal, external uint16
	lifetime           uint32 // seconds; 0 deletes
}

func (q pmpRequest) append(b []byte) []byte {
	b = append(b, pmpVersion, q.opcode)
	if q.opcode == pmpMapTCP {
		b = append(b, 0, 0)
		b = binary.BigEndian.AppendUint16(b, q.internal)
		b = binary.BigEndian.AppendUint16(b, q.external)
		b = binary.BigEndian.AppendUint32(b, q.lifetime)
	}
	return b
}

// A pmpResponse is an answer. With a code that is not 0 the rest has no meaning.
type pmpResponse struct {
	version            byte
	opcode             byte // of the request
	code               uint16
	epoch              uint32
	address            netip.Addr // to pmpExternal
	internal, external uint16     // to pmpMapTCP
	lifetime           uint32
}

// parsePMP reads a datagram; false if it is no answer of a known version's
// form. One in another version is what a gateway that speaks only PCP sends:
// of it only the version is read.
func parsePMP(b []byte) (pmpResponse, bool) {
	if len(b) < 4 || b[1] < pmpAnswer {
		return pmpResponse{}, false
	}
	r := pmpResponse{version: b[0], opcode: b[1] - pmpAnswer}
	if r.version != pmpVersion {
		return r, true
	}
	if r.code = binary.BigEndian.Uint16(b[2:]); r.code != 0 { // what follows is not always there
		return r, true
	}
	switch {
	case r.opcode == pmpExternal && len(b) == 12:
		r.address = netip.AddrFrom4([4]byte(b[8:]))
	case r.opcode == pmpMapTCP && len(b) == 16:
		r.internal, r.external = binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
		r.lifetime = binary.BigEndian.Uint32(b[12:])
	default:
		return pmpResponse{}, false
	}
	r.epoch = binary.BigEndian.Uint32(b[4:])
	return r, true
}

// answers reports whether r is about q. There is no nonce, so the internal
// port is all that ties a mapping to its request; a gateway that answers
// nothing but errors leaves it out.
func (r pmpResponse) answers(q pmpRequest) bool {
	return r.version != pmpVersion || r.opcode == q.opcode && (r.code != 0 || q.opcode != pmpMapTCP || r.internal == q.internal)
}
