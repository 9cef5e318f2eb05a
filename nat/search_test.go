package nat

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/natlab"
)

// A victim is a server on another address of this machine that must never
// hear from us.
func victim(t *testing.T) (url string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }), ReadHeaderTimeout: time.Second}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return "http://" + ln.Addr().String(), asked
}

// A gateway, or somebody who speaks in its place, that wants us elsewhere or
// drowns us gets nowhere.
func TestUPnPHostile(t *testing.T) {
	t.Parallel()
	evil, asked := victim(t)
	reply := func(location string) string { return "HTTP/1.1 200 OK\r\nLOCATION: " + location + "\r\n\r\n" }
	for _, c := range []struct {
		name string
		upnp natlab.FakeUPnP
		kind Kind
	}{
		{"garbage datagrams", natlab.FakeUPnP{Replies: func(string) []string { return []string{"", "x", "HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("A", 9000)} }}, NoGateway},
		{"location by name", natlab.FakeUPnP{Replies: func(string) []string { return []string{reply(strings.Replace(evil, "127.0.0.1", "localhost", 1))} }}, NoGateway},
		{"location with https", natlab.FakeUPnP{Replies: func(l string) []string { return []string{reply(strings.Replace(l, "http:", "https:", 1))} }}, NoGateway},
		{"location at a stranger, said by another", natlab.FakeUPnP{Witness: netip.MustParseAddr("127.66.66.66"), Replies: func(string) []string { return []string{reply(evil + "/d.xml")} }}, NoGateway},
		{"a flood of locations", natlab.FakeUPnP{Replies: func(l string) []string {
			var all []string
			for i := range 100 {
				all = append(all, reply(fmt.Sprintf("%s?%d", strings.Replace(l, "desc", "nothing", 1), i)))
			}
			return all
		}}, NoGateway},
		{"redirect", natlab.FakeUPnP{HTTP: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, evil+"/d.xml", http.StatusFound)
			return true
		}}, NoGateway},
		{"redirected control", natlab.FakeUPnP{HTTP: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				http.Redirect(w, r, evil+"/ctl", http.StatusTemporaryRedirect)
			}
			return r.Method == http.MethodPost
		}}, NoGateway},
		{"control URL elsewhere", natlab.FakeUPnP{Services: []natlab.FakeService{{URN: "WANIPConnection:1", Control: evil + "/ctl"}}}, NoGateway},
		{"URLBase elsewhere", natlab.FakeUPnP{Description: describeXML("<URLBase>"+evil+"</URLBase>", urnIP1, "/nowhere")}, NoGateway},
		{"huge description", natlab.FakeUPnP{HTTP: func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.WriteString(w, "<root><device>")
			for range 1000 { // 100 MB, if it were read
				if _, err := io.WriteString(w, strings.Repeat("<a>", 100<<10/3)); err != nil {
					break
				}
			}
			return true
		}}, Malformed},
		{"huge header", natlab.FakeUPnP{HTTP: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("X", strings.Repeat("x", 100<<10))
			return false
		}}, NoGateway},
		{"web page for a description", natlab.FakeUPnP{Description: "<html><body>Welcome</body></html>"}, Malformed},
		{"no WAN service", natlab.FakeUPnP{Services: []natlab.FakeService{{URN: "Layer3Forwarding:1"}}}, Unsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, u := startUPnP(t, c.upnp)
			_, err := u.Map(t.Context(), request(9000))
			if kindOf(err) != c.kind {
				t.Errorf("got %v (kind %v), want kind %v", err, kindOf(err), c.kind)
			}
			if n := f.Count("http " + strings.Replace(natlab.DescriptionPath, "desc", "nothing", 1)); n > maxHits {
				t.Errorf("%d descriptions were fetched", n)
			}
			if n := asked.Load(); n != 0 {
				t.Errorf("the victim was asked %d times", n)
			}
		})
	}
}

// Strangers who answer first and better do not keep the gateway from being found.
func TestUPnPForged(t *testing.T) {
	t.Parallel()
	evil, asked := victim(t)
	f, u := startUPnP(t, natlab.FakeUPnP{Replies: func(l string) []string {
		return []string{
			"HTTP/1.1 200 OK\r\nLOCATION: " + evil + "/d.xml\r\n\r\n",
			"HTTP/1.1 200 OK\r\nLOCATION: " + strings.Replace(l, "desc", "nothing", 1) + "\r\n\r\n",
			"HTTP/1.1 200 OK\r\nLOCATION: " + l + "\r\n\r\n",
		}
	}})
	l, err := u.Map(t.Context(), request(9000))
	if err != nil || l.Gateway != f.Addr || asked.Load() != 0 {
		t.Errorf("%+v, %v, victim asked %d times", l, err, asked.Load())
	}
}

// An answer from beyond our networks is none, were it the gateway's own.
func TestUPnPForeignNetwork(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{})
	u.host.prefixes = func() ([]netip.Prefix, error) { return []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}, nil }
	_, err := u.Map(t.Context(), request(9000))
	wantKind(t, err, NoGateway, 0)
	if f.Count("ssdp") == 0 || f.Count("http "+natlab.DescriptionPath) != 0 {
		t.Errorf("%d searches, %d fetches", f.Count("ssdp"), f.Count("http "+natlab.DescriptionPath))
	}
}

// A device that is not the default gateway is asked nothing, whatever it says
// and however deaf the gateway is; but what it says is looked for at the
// gateway, which may be the same router under an address that several share.
func TestUPnPOtherDevice(t *testing.T) {
	t.Parallel()
	evil, u := startUPnP(t, natlab.FakeUPnP{})
	deaf := natlab.StartFake(t, natlab.FakeConfig{})
	u.host = loopbackHost(deaf.Addr)
	u.searcher.group = netip.AddrPortFrom(evil.Addr, evil.SSDPPort) // stands for the multicast that reaches it
	_, err := u.Map(t.Context(), request(9000))
	wantKind(t, err, NoGateway, 0)
	if n := evil.Count("http " + natlab.DescriptionPath); evil.Count("ssdp") == 0 || n != 0 || evil.Mappings() != 0 {
		t.Errorf("%d searches heard, description read %d times", evil.Count("ssdp"), n)
	}

	// One router, whose own address answers in place of the shared one.
	own := netip.AddrFrom4([4]byte{127, 77, 66, byte(55 + os.Getpid()%100)})
	f, u := startUPnP(t, natlab.FakeUPnP{Witness: own, Replies: func(l string) []string {
		place, _ := url.Parse(l)
		return []string{"HTTP/1.1 200 OK\r\nLOCATION: http://" + own.String() + ":" + place.Port() + place.Path + "\r\n\r\n"}
	}})
	start := time.Now()
	l, err := u.Map(t.Context(), request(9000))
	if err != nil || l.Gateway != f.Addr || time.Since(start) < u.patience {
		t.Errorf("%+v, %v after %v", l, err, time.Since(start))
	}
}

// A slow device, or one that goes on answering for ever, costs at most the
// caller's time, and a search at most its own.
func TestUPnPSlow(t *testing.T) {
	t.Parallel()
	for _, path := range []string{natlab.DescriptionPath, "/ctl/0"} {
		for _, endless := range []bool{false, true} {
			for _, limit := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, endless %v, limit %v", path, endless, limit), func(t *testing.T) {
					t.Parallel()
					stop := make(chan struct{})
					_, u := startUPnP(t, natlab.FakeUPnP{HTTP: func(w http.ResponseWriter, r *http.Request) bool {
						for r.URL.Path == path {
							if endless {
								_, _ = io.WriteString(w, "<a>")
								_ = http.NewResponseController(w).Flush()
							}
							select {
							case <-time.After(10 * time.Millisecond):
							case <-stop:
								return true
							case <-r.Context().Done():
								return true
							}
						}
						return false
					}})
					defer close(stop)
					ctx := t.Context()
					if limit {
						u.limit = 500 * time.Millisecond
					} else {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, 150*time.Millisecond)
						defer cancel()
					}
					start := time.Now()
					_, err := u.Map(ctx, request(9000))
					if kindOf(err) != Timeout || time.Since(start) > 1500*time.Millisecond {
						t.Errorf("%v after %v", err, time.Since(start))
					}
				})
			}
		}
	}
}

// A device with several services that takes its time for each answer is found
// all the same when the search is over.
func TestUPnPVerySlow(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{
		Services: []natlab.FakeService{{URN: "WANPPPConnection:1", External: "10.1.2.3"}, {URN: "WANIPConnection:1", External: "10.1.2.4"}, {URN: "WANIPConnection:2", External: "10.1.2.5", Control: "/last"}},
		HTTP: func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				time.Sleep(200 * time.Millisecond)
			}
			return false
		},
	})
	u.limit = 500 * time.Millisecond
	start := time.Now()
	s, err := u.discover(t.Context(), "probe", []link{{gateway: f.Addr, local: localIP}})
	if err != nil || s.urn != urnIP2 || time.Since(start) > 900*time.Millisecond {
		t.Errorf("%+v, %v after %v", s, err, time.Since(start))
	}
}

// A device answers only to some questions, or only to those sent in one of the
// ways, or from another port; and each is found.
func TestUPnPSearches(t *testing.T) {
	t.Parallel()
	elsewhere := netip.MustParseAddrPort("127.255.255.254:9") // discards
	for _, target := range searchTargets {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			_, u := startUPnP(t, natlab.FakeUPnP{Targets: []string{target}})
			if l, err := u.Map(t.Context(), request(9000)); err != nil {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
	t.Run("multicast only", func(t *testing.T) {
		t.Parallel()
		f, u := startUPnP(t, natlab.FakeUPnP{})
		u.searcher.port, u.searcher.group = 9, netip.AddrPortFrom(f.Addr, f.SSDPPort)
		if l, err := u.Map(t.Context(), request(9000)); err != nil {
			t.Errorf("%+v, %v", l, err)
		}
	})
	t.Run("unicast only", func(t *testing.T) {
		t.Parallel()
		_, u := startUPnP(t, natlab.FakeUPnP{})
		u.searcher.group = elsewhere
		if l, err := u.Map(t.Context(), request(9000)); err != nil {
			t.Errorf("%+v, %v", l, err)
		}
	})
	t.Run("from another port", func(t *testing.T) {
		t.Parallel()
		// The fake's second socket is at another port of its own address.
		f, u := startUPnP(t, natlab.FakeUPnP{OtherPort: true})
		if l, err := u.Map(t.Context(), request(9000)); err != nil || l.Gateway != f.Addr {
			t.Errorf("%+v, %v", l, err)
		}
	})
}

// Everything the gateway sees of us comes from the address we are bound to.
func TestBoundAddress(t *testing.T) {
	t.Parallel()
	bound := netip.MustParseAddrPort("127.0.0.55:9000")
	f := natlab.StartFake(t, natlab.FakeConfig{PCP: goodPCP(), PMP: natlab.FakePMP{Serve: true, External: publicIP}, UPnP: natlab.FakeUPnP{Serve: true, HTTP: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.RemoteAddr, bound.Addr().String()+":") {
			t.Errorf("HTTP from %s", r.RemoteAddr)
		}
		if !r.Close || r.Host == "" || !strings.Contains(r.Host, ":") || r.Header.Get("Cookie") != "" {
			t.Errorf("Host %q, close %v", r.Host, r.Close)
		}
		return false
	}}})
	for _, m := range []Mapper{testPCP(f), testPMP(f), testUPnP(f)} {
		l, err := m.Map(t.Context(), Request{Internal: bound})
		if got, _ := f.Mapping(9000); err != nil || l.Internal != bound || got.Client != bound.Addr().String() {
			t.Errorf("%s: %+v, %v, the gateway has %+v", m.Name(), l, err, got)
		}
		if err := m.Unmap(t.Context(), l); err != nil || f.Mappings() != 0 {
			t.Errorf("%s: %v, %d left", m.Name(), err, f.Mappings())
		}
	}
}

// A device is asked one thing at a time.
func TestUPnPOneCallAtATime(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int32
	_, u := startUPnP(t, natlab.FakeUPnP{HTTP: func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			n := now.Add(1)
			defer now.Add(-1)
			if n > most.Load() {
				most.Store(n)
			}
			time.Sleep(5 * time.Millisecond)
		}
		return false
	}})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if _, err := u.Map(t.Context(), request(9000+uint16(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d calls at a time", most.Load())
	}
}

// Who hears the multicast and answers in the gateway's name, with more places
// than are looked at, does not keep the gateway's own answer out: that comes to
// a socket nobody else knows of.
func TestSearchCrowded(t *testing.T) {
	t.Parallel()
	f, u := startUPnP(t, natlab.FakeUPnP{})
	forger, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.Addr, 0))) // its address, so in its name
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		b := make([]byte, 2048)
		for {
			_, from, err := forger.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			for i := range 50 {
				_, _ = fmt.Fprintf(writerTo{forger, from}, "HTTP/1.1 200 OK\r\nLOCATION: http://%v:9/%d.xml\r\n\r\n", f.Addr, i)
			}
		}
	}()
	defer func() {
		forger.Close()
		<-heard
	}()
	u.searcher.group = forger.LocalAddr().(*net.UDPAddr).AddrPort()
	var got []hit
	links, err := u.host.links(localIP)
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan hit, hitSorts*maxHits)
	if err := u.searcher.search(t.Context(), u.host, links, func(h hit) { found <- h }); err != nil {
		t.Fatal(err)
	}
	close(found)
	for h := range found {
		got = append(got, h)
	}
	if len(got) != maxHits+1 {
		t.Errorf("%d hits", len(got))
	}
	if l, err := u.Map(t.Context(), request(9000)); err != nil || l.Gateway != f.Addr {
		t.Errorf("%+v, %v", l, err)
	}
}

// A writerTo sends datagrams to one address.
type writerTo struct {
	c  *net.UDPConn
	to netip.AddrPort
}

func (w writerTo) Write(b []byte) (int, error) { return w.c.WriteToUDPAddrPort(b, w.to) }
