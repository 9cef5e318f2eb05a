package natlab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"
)

// FakePMP scripts the NAT-PMP side (RFC 6886). With Serve false the port is
// closed, unless PCP is served there.
type FakePMP struct {
	Serve    bool
	External netip.Addr    // the outside address; invalid is 0.0.0.0
	Delay    time.Duration // before each answer

	// Edit sees each answer before it goes out, and may change it or, by
	// returning nil, keep it back.
	Edit func(answer []byte) []byte

	// Before is sent ahead of each answer, by the gateway itself or, with
	// Strange, by another address.
	Before  func(answer []byte) []byte
	Strange bool
}

// serve5351 answers in NAT-PMP and PCP, which share a port, until its socket
// is closed.
func (f *Fake) serve5351(c *net.UDPConn) {
	b := make([]byte, 1101)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if n < 2 {
			continue
		}
		if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); b[0] == 2 && f.config.PCP.Serve {
			f.answerPCP(c, b[:n], from)
		} else if f.config.PMP.Serve {
			f.answerPMP(c, b[:n], from)
		} else {
			// RFC 6887 §9: the version it would rather have, and the refusal of this one.
			a := make([]byte, 24)
			a[0], a[1], a[3] = 2, 128|b[1], 1
			_, _ = c.WriteToUDPAddrPort(a, from)
		}
	}
}

// answerPMP answers one request.
//
//	request  version 1, opcode 1, [map: reserved 2, internal port 2, external port 2, lifetime 4]
//	answer   version 1, 128+opcode 1, result 2, epoch 4, [address 4 | internal port 2, external port 2, lifetime 4]
func (f *Fake) answerPMP(c *net.UDPConn, q []byte, from netip.AddrPort) {
	p := f.config.PMP
	a := []byte{0, 128 + q[1], 0, 0}
	a = binary.BigEndian.AppendUint32(a, f.seconds())
	switch {
	case q[0] != 0:
		binary.BigEndian.PutUint16(a[2:], 1) // unsupported version
	case q[1] == 0 && len(q) == 2:
		f.counted("pmp external")
		ip := f.external(p.External).As4()
		a = append(a, ip[:]...)
	case q[1] == 2 && len(q) == 12:
		a = append(a, f.pmpMap(from.Addr().String(), q)...)
	default:
		binary.BigEndian.PutUint16(a[2:], 5) // unsupported opcode
	}
	if p.Edit != nil && q[0] == 0 { // it is written for answers to NAT-PMP
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

// sendBefore sends b to a client, from another address if it is to be strange.
func (f *Fake) sendBefore(c *net.UDPConn, b []byte, to netip.AddrPort, strange bool) {
	if strange {
		s, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.Addr.Next(), pmpPort)))
		if err != nil {
			return
		}
		defer s.Close()
		c = s
	}
	_, _ = c.WriteToUDPAddrPort(b, to)
}

// pmpMap does what a mapping request wants and returns the end of its answer.
func (f *Fake) pmpMap(client string, q []byte) []byte {
	internal, external := binary.BigEndian.Uint16(q[4:]), binary.BigEndian.Uint16(q[6:])
	life := binary.BigEndian.Uint32(q[8:])
	f.mu.Lock()
	defer f.mu.Unlock()
	for port, m := range f.table { // the mapping this internal port has already stays where it is
		if m.Client == client && m.Port == internal {
			external = port
		}
	}
	if life == 0 {
		f.count["pmp delete"]++
		delete(f.table, external)
		external = 0
	} else {
		f.count["pmp map"]++
		for m, taken := f.table[external]; taken && (m.Client != client || m.Port != internal); m, taken = f.table[external] {
			external++
		}
		f.table[external] = FakeMapping{Client: client, Port: internal, Lease: life}
	}
	a := binary.BigEndian.AppendUint16(nil, internal)
	a = binary.BigEndian.AppendUint16(a, external)
	return binary.BigEndian.AppendUint32(a, life)
}
