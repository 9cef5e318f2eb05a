package natlab

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Another host of the LAN forges all it can: answers to searches, faster than
// the gateway and in its name, and announcements and answers in PCP, NAT-PMP
// and SSDP, under its own address and under the gateway's. The port opens and
// stays open, the forger is asked nothing, and the gateway little.
func testHostile(t *testing.T, echo string) {
	const window = 13 * time.Second
	for _, c := range protocols {
		t.Run(c.via, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			evil, addr := l.AddHost(t)
			f := startForger(t, evil, addr, l.Host)

			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			outside := awaitPublic(t, p)
			if outside.via != c.via || outside.addr.Port() != 9000 {
				t.Errorf("mapped at %+v", outside)
			}
			told := len(p.Lines())
			for _, what := range []string{"udp dport { 1900, 5351 }", "tcp flags & (syn | ack) == syn"} {
				l.Gateway.Run(t, "nft", "insert", "rule", "inet", "filter", "input", fmt.Sprintf(`iifname "lan0" ip saddr %v %s counter`, l.Host, what))
			}
			for end := time.Now().Add(window); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				if got := l.Forwards(t); len(got) != 1 || got[9000] != netip.AddrPortFrom(l.Host, 9000) {
					t.Fatalf("the gateway forwards %v", got)
				}
			}
			n := 0
			for _, m := range counted.FindAllStringSubmatch(l.Gateway.Run(t, "nft", "list", "chain", "inet", "filter", "input"), -1) {
				count, _ := strconv.Atoi(m[1])
				n += count
			}
			// One look in 5 s at most, which in UPnP is two calls.
			if limit := 2 * int(window/(5*time.Second)+1); n > limit {
				t.Errorf("the gateway was asked %d times in %v, want %d at most", n, window, limit)
			}
			if lines := p.Lines()[told:]; len(lines) != 0 {
				t.Errorf("the program told of\n%s", strings.Join(lines, "\n"))
			}
			converse(t, l.WAN, outside.url)
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
			f.stop()
			t.Logf("%s: %d datagrams forged, %d searches heard; the gateway was asked %d times in %v, the forger %d times", t.Name(), f.sent.Load(), f.searches.Load(), n, window, f.asked.Load())
			if f.asked.Load() != 0 {
				t.Error("the forger was asked for something")
			}
			if f.searches.Load() == 0 || f.sent.Load() < 1000 {
				t.Error("the forger did not do its work")
			}
		})
	}
}

// With a gateway that answers nothing the forger is alone to answer: it is not
// taken for one.
func testHostileAlone(t *testing.T, echo string) {
	l := New(t, Config{Daemon: Silence})
	evil, addr := l.AddHost(t)
	f := startForger(t, evil, addr, l.Host)
	p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
	_, took := p.Await(t, listenLimit, "listening")
	line, _ := p.Await(t, listenLimit, "reachability no-gateway: ")
	stopped(t, p, syscall.SIGTERM)
	f.stop()
	t.Logf("%s: %.2f s from start to listening; %s", t.Name(), took.Seconds(), line)
	if f.searches.Load() == 0 || f.asked.Load() != 0 {
		t.Errorf("%d searches heard, the forger was asked %d times", f.searches.Load(), f.asked.Load())
	}
}

// A forger is the hostile host.
type forger struct {
	addr, victim netip.Addr
	raw          int // a socket for whole IP packets

	sent, searches, asked atomic.Int32
	cancel                context.CancelFunc
	wg                    sync.WaitGroup
	close                 []func() error
}

func (f *forger) stop() {
	f.cancel()
	for _, c := range f.close {
		_ = c()
	}
	f.close = nil
	f.wg.Wait()
}

func startForger(t *testing.T, n *Namespace, addr, victim netip.Addr) *forger {
	t.Helper()
	f := &forger{addr: addr, victim: victim}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	t.Cleanup(f.stop)

	// What looks like a gateway to whoever comes: at the port that the real
	// one has, and at another.
	for _, at := range []string{":5000", ":8888"} {
		ln, err := n.Listen(at)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.asked.Add(1)
			fmt.Fprintf(w, `<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType><controlURL>/ctl</controlURL></service></serviceList></device></root>`)
		}), ReadHeaderTimeout: time.Second}
		f.close = append(f.close, s.Close)
		f.wg.Go(func() { _ = s.Serve(ln) })
	}

	var group *net.UDPConn
	err := n.enter(func() (err error) {
		if f.raw, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_RAW); err != nil {
			return err
		}
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		group, err = net.ListenMulticastUDP("udp4", i, &net.UDPAddr{IP: net.IPv4(239, 255, 255, 250), Port: 1900})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f.close = append(f.close, group.Close)
	f.wg.Go(func() { f.answer(group) })
	f.wg.Go(func() {
		f.announce(ctx)
		syscall.Close(f.raw) // answer may still use it, and then fails
	})
	return f
}

// answer answers every search at once, under both addresses.
func (f *forger) answer(c *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if from.Addr() != f.victim || !strings.HasPrefix(string(b[:n]), "M-SEARCH ") {
			continue
		}
		f.searches.Add(1)
		for _, src := range []netip.Addr{f.addr, GatewayLAN} {
			for _, location := range []string{
				fmt.Sprintf("http://%v:5000/rootDesc.xml", f.addr),
				fmt.Sprintf("http://%v:8888/evil.xml", f.addr),
				"http://169.254.169.254/latest/meta-data",
				"http://127.0.0.1:9000/",
				fmt.Sprintf("http://%v:5000/evil%d.xml", GatewayLAN, rand.Int()),
				fmt.Sprintf("http://%v:8888/evil%d.xml", GatewayLAN, rand.Int()),
			} {
				f.send(netip.AddrPortFrom(src, 1900), from, "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:2\r\nUSN: uuid:evil\r\nLOCATION: "+location+"\r\n\r\n")
			}
		}
	}
}

// announce says all the time that the gateway was restarted, is gone, is
// elsewhere and has another address, and answers questions nobody asked.
func (f *forger) announce(ctx context.Context) {
	unhex := func(s string) string {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	pcp := netip.MustParseAddrPort("224.0.0.1:5350")
	ssdp := netip.MustParseAddrPort("239.255.255.250:1900")
	for ctx.Err() == nil {
		for _, src := range []netip.Addr{f.addr, GatewayLAN} {
			at := netip.AddrPortFrom(src, 5351)
			f.send(at, pcp, unhex("02 80 00 00 00000000 00000000 000000000000000000000000"))
			f.send(at, pcp, unhex("00 80 0000 00000001 06060606"))
			for _, nts := range []string{"byebye", "alive", "update"} {
				f.send(netip.AddrPortFrom(src, 1900), ssdp, fmt.Sprintf("NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nNT: upnp:rootdevice\r\nNTS: ssdp:%s\r\nUSN: uuid:evil\r\nBOOTID.UPNP.ORG: %d\r\nLOCATION: http://%v:8888/evil.xml\r\n\r\n", nts, rand.Int32(), f.addr))
			}
			// The ports of the victim's questions are not known: any may be hit.
			for range 20 {
				to := netip.AddrPortFrom(f.victim, uint16(32768+rand.IntN(28232)))
				f.send(at, to, unhex("00 80 0000 00000001 06060606"))
				f.send(at, to, unhex("00 82 0002 00000001 2328 0000 00000000"))
				f.send(at, to, unhex("02 80 00 00 00000000 00000000 000000000000000000000000"))
				f.send(at, to, unhex("02 81 00 02 00000708 00000000 000000000000000000000000")+strings.Repeat("\x00", 36))
				f.send(at, to, strings.Repeat("garbage ", 8))
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// send sends a UDP datagram under any address.
func (f *forger) send(from, to netip.AddrPort, payload string) {
	src, dst := from.Addr().As4(), to.Addr().As4()
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 4, syscall.IPPROTO_UDP, 0, 0} // length, identification and checksum are the system's
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0) // no checksum, as UDP over IPv4 allows
	b = append(b, payload...)
	if syscall.Sendto(f.raw, b, 0, &syscall.SockaddrInet4{Addr: dst}) == nil {
		f.sent.Add(1)
	}
}
