package natlab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"
)

// FakePCP scripts the PCP side (RFC 6887). With Serve false a request gets the
// answer of a gateway that knows only NAT-PMP, or the port is closed.
type FakePCP struct {
	Serve    bool
	External netip.Addr    // the outside address; invalid is 0.0.0.0
	Delay    time.Duration // before each answer
	MaxLife  uint32        // the longest lifetime granted, in seconds; 0 is no limit

	// Code makes a request fail with this result code; 0 lets it through.
	Code func(opcode byte) byte

	// ErrorLife is the lifetime of an error, in seconds.
	ErrorLife uint32

	// Edit sees each answer before it goes out, and may change it or, by
	// returning nil, keep it back.
	Edit func(answer []byte) []byte

	// Before is sent ahead of each answer, by the gateway itself or, with
	// Strange, by another address.
	Before  func(answer []byte) []byte
	Strange bool
}

// answerPCP answers one request.
//
//	request  2, opcode 1, reserved 2, lifetime 4, client 16
//	answer   2, 128+opcode 1, reserved 1, result 1, lifetime 4, epoch 4, reserved 12
//	both     [map: nonce 12, protocol 1, reserved 3, internal port 2, external port 2, external address 16]
func (f *Fake) answerPCP(c *net.UDPConn, q []byte, from netip.AddrPort) {
	p := f.config.PCP
	a := append([]byte(nil), q...)
	a[1] |= 128
	if len(a) >= 24 {
		clear(a[8:24])
		binary.BigEndian.PutUint32(a[8:], f.seconds())
	}
	client := netip.AddrFrom16([16]byte(append(append([]byte(nil), q[min(8, len(q)):]...), make([]byte, 16)...))).Unmap()
	code := byte(0)
	if p.Code != nil {
		code = p.Code(q[1])
	}
	switch {
	case len(q) < 24 || len(q)%4 != 0:
		code = 3
	case client != from.Addr():
		code = 12
	case code != 0:
	case q[1] == 0:
		f.counted("pcp announce")
	case q[1] == 1 && len(q) == 60:
		code = f.pcpMap(from.Addr().String(), a)
	default:
		code = 4
	}
	if a[3] = code; code != 0 && len(a) >= 8 {
		binary.BigEndian.PutUint32(a[4:], p.ErrorLife)
	}
	if p.Edit != nil {
		a = p.Edit(a)
	}
	if a == nil {
		return
	}
	time.Sleep(p.Delay)
	if p.Before != nil {
		f.sendBefore(c, p.Before(append([]byte(nil), a...)), from, p.Strange)
	}
	_, _ = c.WriteToUDPAddrPort(a, from)
}

// pcpMap does what a mapping request wants, writes the outcome over it and
// returns the result code.
func (f *Fake) pcpMap(client string, a []byte) byte {
	life := binary.BigEndian.Uint32(a[4:])
	nonce, protocol := [12]byte(a[24:36]), a[36]
	internal, external := binary.BigEndian.Uint16(a[40:]), binary.BigEndian.Uint16(a[42:])
	outside := f.external(f.config.PCP.External).As16()
	f.mu.Lock()
	defer f.mu.Unlock()
	if protocol != 6 {
		return 9
	}
	for port, m := range f.table { // the mapping this internal port has already stays where it is
		if m.Client == client && m.Port == internal {
			if m.Nonce != nonce {
				return 2
			}
			external = port
		}
	}
	if life == 0 {
		f.count["pcp delete"]++
		delete(f.table, external)
		return 0
	}
	f.count["pcp map"]++
	if m := f.config.PCP.MaxLife; m > 0 && life > m {
		life = m
	}
	for m, taken := f.table[external]; taken && (m.Client != client || m.Port != internal); m, taken = f.table[external] {
		external++
	}
	f.table[external] = FakeMapping{Client: client, Port: internal, Lease: life, Nonce: nonce}
	binary.BigEndian.PutUint32(a[4:], life)
	binary.BigEndian.PutUint16(a[42:], external)
	copy(a[44:], outside[:])
	return 0
}
