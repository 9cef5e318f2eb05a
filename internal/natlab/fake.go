package natlab

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// A FakeConfig scripts a fake gateway. Its zero value speaks nothing: every
// port is closed.
type FakeConfig struct {
	PCP  FakePCP
	PMP  FakePMP
	UPnP FakeUPnP

	// IPv6 puts it on ::1, of which there is one alone: so PCP is at Port5351
	// there, and there is no NAT-PMP.
	IPv6 bool
}

// A Fake is a gateway that exists in this process only, on a loopback address
// of its own, and answers as its script says. It speaks with encoders of its
// own, so that a mistake in those under test finds no accomplice, and counts
// what it is asked.
type Fake struct {
	Addr     netip.Addr // where it listens, 127.x.y.z
	SSDPPort uint16     // UDP, in place of 1900; 0 without UPnP
	Port5351 uint16     // UDP, in place of 5351 over IPv6

	config FakeConfig
	wg     sync.WaitGroup
	close  []func() error

	mu       sync.Mutex
	server   *http.Server // the HTTP server of now
	httpPort uint16
	count    map[string]int
	args     map[string][]map[string]string // arguments of SOAP calls, by action
	table    map[uint16]FakeMapping         // by external port, for all protocols
	epoch    time.Time                      // when it started, or says so
	outside  netip.Addr                     // its outside address, when SetExternal was called
}

// A FakeMapping is a line of the fake's table.
type FakeMapping struct {
	Client      string // internal address; of NAT-PMP the sender's
	Port        uint16 // internal port
	Lease       uint32 // seconds, as asked
	Description string
	Nonce       [12]byte // of PCP: who may renew or delete it
}

// StartFake starts a fake gateway that stops with the test.
func StartFake(t testing.TB, c FakeConfig) *Fake {
	t.Helper()
	f := &Fake{config: c, count: make(map[string]int), args: make(map[string][]map[string]string), table: make(map[uint16]FakeMapping), epoch: time.Now()}
	pmp, err := f.listen()
	if err != nil {
		t.Skipf("no loopback address but 127.0.0.1 on this system, or no IPv6: %v", err)
	}
	t.Cleanup(f.Stop)
	if !c.PMP.Serve && !c.PCP.Serve {
		// The address stays ours by its number alone; the closed port
		// answers with ICMP, as that of a gateway without either does.
		pmp.Close()
	} else {
		f.close = append(f.close, pmp.Close)
		f.wg.Go(func() { f.serve5351(pmp) })
	}
	if c.UPnP.Serve {
		f.startUPnP(t)
	}
	return f
}

// pmpPort is fixed, since the library under test knows no other; hence the
// address is chosen at random, so that tests of several packages at once do
// not meet.
const pmpPort = 5351

func (f *Fake) listen() (*net.UDPConn, error) {
	var errs []error
	if f.config.IPv6 {
		c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
		if err == nil {
			f.Addr, f.Port5351 = netip.IPv6Loopback(), c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		}
		return c, err
	}
	for range 8 {
		a := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, pmpPort)))
		if err == nil {
			f.Addr = a
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Stop closes everything and waits. It is called at the end of the test, and
// may be called before.
func (f *Fake) Stop() {
	f.mu.Lock()
	todo := f.close
	f.close = nil
	f.mu.Unlock()
	for _, c := range todo {
		_ = c()
	}
	f.wg.Wait()
}

// Count is how often something was asked: "pcp announce", "pcp map", "pcp
// delete", "pmp external", "pmp map", "pmp delete", "ssdp", "http PATH", "soap ACTION".
func (f *Fake) Count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[what]
}

// Args are the arguments of every call of a SOAP action so far.
func (f *Fake) Args(action string) []map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]map[string]string(nil), f.args[action]...)
}

// Mapping is who has an external port.
func (f *Fake) Mapping(external uint16) (FakeMapping, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.table[external]
	return m, ok
}

// Mappings is how many there are.
func (f *Fake) Mappings() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.table)
}

// SetMapping puts a line in the table, as if another program had.
func (f *Fake) SetMapping(external uint16, m FakeMapping) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.table[external] = m
}

// SetEpoch makes the gateway say that it has been running for so long.
func (f *Fake) SetEpoch(since time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch = time.Now().Add(-since)
}

// SetExternal changes the outside address, in every protocol.
func (f *Fake) SetExternal(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outside = a
}

// external is the outside address in force, IPv4 and maybe unspecified.
func (f *Fake) external(scripted netip.Addr) netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outside.IsValid() {
		scripted = f.outside
	}
	if !scripted.IsValid() {
		return netip.IPv4Unspecified()
	}
	return scripted
}

// seconds is the epoch as PCP and NAT-PMP tell it.
func (f *Fake) seconds() uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint32(time.Since(f.epoch)/time.Second) + 1
}

// Reboot empties the table and begins a new epoch. With UPnP, the HTTP server comes back at another
// port, as many routers do it.
func (f *Fake) Reboot(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	clear(f.table)
	f.epoch = time.Now()
	f.mu.Unlock()
	if f.config.UPnP.Serve {
		f.startHTTP(t)
	}
}

func (f *Fake) counted(what string) {
	f.mu.Lock()
	f.count[what]++
	f.mu.Unlock()
}

// serveHTTP runs an HTTP server until the fake stops, or until the next one.
func (f *Fake) serveHTTP(t testing.TB, h http.Handler) *http.Server {
	t.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(f.Addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	f.mu.Lock()
	f.httpPort = port
	f.close = append(f.close, s.Close)
	f.mu.Unlock()
	f.wg.Go(func() { _ = s.Serve(ln) })
	return s
}
