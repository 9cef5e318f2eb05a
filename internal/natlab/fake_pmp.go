package natlab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"
)

// FakePMP scripts the NAT-PMP side (RFC 6886). With Serve false the port is
// closed.
type FakePMP struct {
	Serve    bool
	External netip.Addr    // the outside address; invalid is 0.0.0.0
	Delay    time.Duration // before each answer

	// Edit sees each answer before it goes out, and may change it or, by
	// returning nil, keep it back.
	Edit func(answer []byte) []byte
}

// servePMP answers until its socket is closed.
//
//	request  version 1, opcode 1, [map: reserved 2, internal port 2, external port 2, lifetime 4]
//	answer   version 1, 128+opcode 1, result 2, epoch 4, [address 4 | internal port 2, external port 2, lifetime 4]
func (f *Fake) servePMP(c *net.UDPConn) {
	p := f.config.PMP
	start := time.Now()
	b := make([]byte, 1100)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if n < 2 {
			continue
		}
		q := b[:n]
		a := []byte{0, 128 + q[1], 0, 0}
		a = binary.BigEndian.AppendUint32(a, uint32(time.Since(start)/time.Second)+1)
		switch {
		case q[0] != 0:
			binary.BigEndian.PutUint16(a[2:], 1) // unsupported version
		case q[1] == 0 && n == 2:
			f.counted("pmp external")
			ip := [4]byte{}
			if p.External.IsValid() {
				ip = p.External.As4()
			}
			a = append(a, ip[:]...)
		case q[1] == 2 && n == 12:
			a = append(a, f.pmpMap(from.Addr().Unmap().String(), q)...)
		default:
			binary.BigEndian.PutUint16(a[2:], 5) // unsupported opcode
		}
		if p.Edit != nil {
			a = p.Edit(a)
		}
		if a == nil {
			continue
		}
		time.Sleep(p.Delay)
		_, _ = c.WriteToUDPAddrPort(a, from)
	}
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
