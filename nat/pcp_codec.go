package nat

import (
	"encoding/binary"
	"net/netip"
)

// The Port Control Protocol, RFC 6887, as far as we speak it. What is here is
// pure; the sockets are in pcp.go.

const (
	pcpVersion = 2
	pcpPort    = 5351 // RFC 6887 §19: the gateway listens here, as with NAT-PMP

	pcpAnnounce = 0 // opcodes, RFC 6887 §14.1 and §11
	pcpMap      = 1
	pcpAnswer   = 0x80 // the R bit, beside the opcode in an answer

	pcpHeaderSize = 24   // RFC 6887 §7.1
	pcpMapSize    = 60   // RFC 6887 §11.1: the header and 36 bytes
	pcpMaxSize    = 1100 // RFC 6887 §7: no message is longer

	protocolTCP = 6 // IANA's number
)

// The result codes of RFC 6887 §7.4.
const (
	pcpSuccess              = 0
	pcpUnsupportedVersion   = 1
	pcpNotAuthorized        = 2
	pcpMalformedRequest     = 3
	pcpUnsupportedOpcode    = 4
	pcpUnsupportedOption    = 5
	pcpMalformedOption      = 6
	pcpNetworkFailure       = 7
	pcpNoResources          = 8
	pcpUnsupportedProtocol  = 9
	pcpQuota                = 10
	pcpCannotProvide        = 11
	pcpAddressMismatch      = 12
	pcpExcessiveRemotePeers = 13
)

// A pcpNonce shows that a mapping is asked about by who made it.
type pcpNonce [12]byte

// A pcpMapping is the part of a MAP message behind the header.
//
//	nonce 12 | protocol 1 | reserved 3 | internal port 2 | external port 2 | external address 16
type pcpMapping struct {
	nonce    pcpNonce
	protocol byte
	internal uint16
	external netip.AddrPort // suggested in a request, assigned in an answer; IPv4 as such
}

// outside is the external address that a mapping for local was granted, invalid if
// the gateway has none, or says one of the other family. Over IPv6 nothing is
// translated: there it is local itself if the gateway says nothing of use.
func (m pcpMapping) outside(local netip.Addr) netip.Addr {
	a := m.external.Addr()
	if local.Is6() {
		if !a.Is6() || a.IsUnspecified() {
			return local
		}
		return a
	}
	if x := a.As16(); a.Is6() && [12]byte(x[4:]) == [12]byte{} {
		a = netip.AddrFrom4([4]byte(x[:4])) // in the place of the first bytes, not in those of RFC 6887 §5
	}
	if !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// A pcpRequest is what a client sends.
//
//	version 1 | opcode 1 | reserved 2 | lifetime 4 | client's address 16 | MAP: 36
type pcpRequest struct {
	opcode   byte
	lifetime uint32
	client   netip.Addr
	mapping  pcpMapping // of MAP
}

func (q pcpRequest) append(b []byte) []byte {
	b = append(b, pcpVersion, q.opcode, 0, 0)
	b = binary.BigEndian.AppendUint32(b, q.lifetime)
	b = appendAddr(b, q.client)
	if q.opcode != pcpMap {
		return b
	}
	m := q.mapping
	b = append(b, m.nonce[:]...)
	b = append(b, m.protocol, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.internal)
	b = binary.BigEndian.AppendUint16(b, m.external.Port())
	outside := m.external.Addr()
	if !outside.IsValid() { // no suggestion (RFC 6887 §11.1)
		if outside = netip.IPv4Unspecified(); q.client.Is6() {
			outside = netip.IPv6Unspecified()
		}
	}
	return appendAddr(b, outside)
}

// appendAddr appends an address in the 16 bytes it always has (RFC 6887 §5).
func appendAddr(b []byte, a netip.Addr) []byte {
	x := a.As16()
	return append(b, x[:]...)
}

// A pcpResponse is what a gateway answers, or announces.
//
//	version 1 | R and opcode 1 | reserved 1 | result 1 | lifetime 4 | epoch 4 | reserved 12 | MAP: 36
type pcpResponse struct {
	opcode   byte // without the R bit
	code     byte
	lifetime uint32 // granted, or for how long an error stands
	epoch    uint32
	mapping  pcpMapping // of MAP
}

// parsePCP reads an answer. One that refuses our version, in the layout of
// whatever version it has, is reported as pcpUnsupportedVersion and nothing
// else is read of it; what is no answer at all is false (RFC 6887 §8.3).
func parsePCP(b []byte) (r pcpResponse, ok bool) {
	if len(b) < 4 || b[1]&pcpAnswer == 0 {
		return pcpResponse{}, false
	}
	r.opcode, r.code = b[1]&^pcpAnswer, b[3]
	if b[0] != pcpVersion {
		// NAT-PMP has a result of two bytes here (RFC 6886 §3.5), which for
		// this code come to the same (RFC 6887 §9 and appendix A).
		return r, r.code == pcpUnsupportedVersion && b[2] == 0
	}
	if len(b) < pcpHeaderSize || len(b) > pcpMaxSize || len(b)%4 != 0 {
		return pcpResponse{}, false
	}
	r.lifetime = binary.BigEndian.Uint32(b[4:])
	r.epoch = binary.BigEndian.Uint32(b[8:])
	if r.opcode != pcpMap {
		return r, true
	}
	if len(b) < pcpMapSize {
		return pcpResponse{}, false
	}
	m := &r.mapping
	m.nonce = pcpNonce(b[24:36])
	m.protocol = b[36]
	m.internal = binary.BigEndian.Uint16(b[40:])
	m.external = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:60])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	return r, true
}

// answers reports whether r is about q: of the same opcode, and for a mapping
// with its nonce, protocol and internal port (RFC 6887 §8.3, §11.4). Without
// the nonce anybody who can send in the gateway's name could tell us anything.
func (r pcpResponse) answers(q pcpRequest) bool {
	if r.opcode != q.opcode {
		return false
	}
	m, n := r.mapping, q.mapping
	return q.opcode != pcpMap || m.nonce == n.nonce && m.protocol == n.protocol && m.internal == n.internal
}
