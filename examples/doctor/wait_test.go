package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

func testHome() home {
	return home{
		own:      []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24"), netip.MustParsePrefix("2001:db8:1:2::5/64")},
		gateways: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("fe80::1%eth0")},
	}
}

func TestWhere(t *testing.T) {
	for a, want := range map[string]origin{
		"127.0.0.1": fromHere, "::1": fromHere, "192.168.1.5": fromHere, "::ffff:192.168.1.5": fromHere, "2001:db8:1:2::5": fromHere,
		"192.168.1.9": fromHome, "2001:db8:1:2::9": fromHome, "2001:db8:1:77::9": fromHome,
		"192.168.1.1": fromRouter, "203.0.113.7": fromRouter, "fe80::1": fromRouter,
		"10.0.0.1": fromPrivate, "192.168.3.1": fromPrivate, "100.64.1.1": fromPrivate, "fd00::1": fromPrivate, "fe80::2": fromPrivate,
		"198.51.100.7": fromOutside, "203.0.113.8": fromOutside, "2001:db8:1:100::9": fromOutside, "2a00::1": fromOutside,
	} {
		if got := testHome().where(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}

// Only who comes from outside proves that others can.
func TestTold(t *testing.T) {
	outside := []string{"203.0.113.7:9000"}
	for _, c := range []struct {
		from    origin
		dialled string
		want    string
	}{
		{fromOutside, "203.0.113.7:9000", "Peers outside can reach this machine."},
		{fromOutside, "", "Peers outside can reach this machine."},
		{fromHere, "127.0.0.1:9000", "proves only that the page"},
		{fromHere, "203.0.113.7:9000", "The router forwards the port"},
		{fromHome, "192.168.1.5:9000", "nothing about the way from outside: is Wi-Fi off"},
		{fromHome, "203.0.113.7:9000", "only somebody there can show"},
		{fromHome, "203.0.113.7:9001", "nothing about the way from outside"},
		{fromRouter, "203.0.113.7:9000", "only somebody there can show"},
		{fromRouter, "", "only an address outside proves more"},
		{fromPrivate, "203.0.113.7:9000", "nothing about the rest of the Internet"},
	} {
		s := visitor{Address: netip.MustParseAddr("198.51.100.7"), From: c.from, Dialled: c.dialled}.told(outside)
		if !strings.Contains(s, c.want) || !strings.Contains(s, "198.51.100.7") || strings.Contains(s, "Peers outside can") != (c.from == fromOutside) {
			t.Errorf("%s, %s: %s", c.from, c.dialled, s)
		}
	}
}

// The link is one that somebody outside can open, and it is drawn; where there is
// none, it says which one there would be.
func TestOffer(t *testing.T) {
	lan := peerws.Address{URL: "ws://192.168.1.5:9000/", Scope: peerws.LAN, Via: "direct"}
	six := peerws.Address{URL: "ws://[2001:db8::5]:9000/", Scope: peerws.Public, Via: "direct"}
	hole := peerws.Address{URL: "ws://[2001:db8::5]:9000/", Scope: peerws.Public, Via: "pcp", State: peerws.Mapped}
	four := peerws.Address{URL: "ws://203.0.113.7:9001/", Scope: peerws.Public, Via: "upnp", State: peerws.Mapped}
	lost := four
	lost.State = peerws.Lost
	private := peerws.Address{URL: "ws://192.168.3.4:9000/", Scope: peerws.LAN, Via: "upnp", State: peerws.Mapped}
	outside := []protocol{{Name: "upnp", External: "203.0.113.7"}}
	for _, c := range []struct {
		name      string
		list      []peerws.Address
		protocols []protocol
		want, not []string
	}{
		{"IPv4", []peerws.Address{lan, six, four, hole}, nil, []string{"Wi-Fi off", "    http://203.0.113.7:9001/\n", "█"}, []string{"IPv6"}},
		{"IPv6 opened", []peerws.Address{lan, hole}, nil, []string{"    http://[2001:db8::5]:9000/\n", "must have IPv6"}, []string{"No firewall was opened"}},
		{"IPv6 as it is", []peerws.Address{lan, six}, nil, []string{"    http://[2001:db8::5]:9000/\n", "No firewall was opened"}, nil},
		{"lost", []peerws.Address{lan, lost}, nil, []string{"no link yet", "    http://ADDRESS:9000/\n", "ADDRESS is"}, []string{"█"}},
		{"none", []peerws.Address{lan}, outside, []string{"no link yet", "    http://203.0.113.7:9000/\n", "█"}, []string{"ADDRESS"}},
		{"behind a router", []peerws.Address{lan, private}, []protocol{{Name: "upnp", External: "192.168.3.4"}}, []string{"no link yet", "ADDRESS"}, []string{"192.168.3.4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b strings.Builder
			w := &watch{d: doctor{port: 9000, talk: &b, how: drawBlocks}, f: &finding{Protocols: c.protocols}, home: testHome()}
			w.offer(c.list)
			once := b.Len()
			if w.offer(c.list); b.Len() != once {
				t.Error("printed again")
			}
			for _, want := range c.want {
				if !strings.Contains(b.String(), want) {
					t.Errorf("no %q in\n%s", want, b.String())
				}
			}
			for _, not := range c.not {
				if strings.Contains(b.String(), not) {
					t.Errorf("%q in\n%s", not, b.String())
				}
			}
		})
	}
}

// Of the same visitor it is told once in a while, and of no more than are noted.
func TestVisits(t *testing.T) {
	var b strings.Builder
	w := &watch{d: doctor{talk: &b}, f: &finding{}, home: testHome()}
	now := time.Now()
	visit := func(after time.Duration, a string) {
		w.visit(visitor{At: now.Add(after), Address: netip.MustParseAddr(a)})
	}
	visit(0, "192.168.1.9")
	visit(time.Second, "192.168.1.9")
	if len(w.f.Visitors) != 1 || w.f.Proved {
		t.Errorf("%+v", w.f)
	}
	visit(sayAgain, "192.168.1.9")
	visit(sayAgain, "198.51.100.7")
	if len(w.f.Visitors) != 3 || !w.f.Proved || strings.Count(b.String(), "somebody came") != 3 {
		t.Errorf("%+v\n%s", w.f, &b)
	}
	w.end()
	if !w.f.Reachable || w.f.Code != nat.CodeVerified || !strings.Contains(w.f.Summary, "198.51.100.7") {
		t.Errorf("%+v", w.f)
	}
	for i := range 2 * maxVisitors {
		visit(0, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
	}
	if len(w.f.Visitors) != maxVisitors {
		t.Error(len(w.f.Visitors))
	}
}

// A buffer is a strings.Builder for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until the buffer has the text.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	for range 500 {
		if strings.Contains(b.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %q in\n%s", text, b.String())
}

func freePort(t *testing.T) uint16 {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// The page is served while the doctor waits, whoever opens it is told of at once,
// and it ends when it is told to.
func TestWait(t *testing.T) {
	port := freePort(t)
	var out buffer
	d := doctor{port: port, address: "127.0.0.1", mapper: nat.None(), limit: time.Minute, talk: &out, probe: func(context.Context, uint16) (nat.Report, error) {
		return nat.Report{Diagnosis: nat.Diagnosis{Code: nat.CodeNoGateway, Summary: "Nobody answered."}}, nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		f   finding
		err error
	}
	done := make(chan result, 1)
	go func() {
		f, err := d.examine(ctx, false, true)
		done <- result{f, err}
	}()
	out.await(t, "Waiting for 1m0s")
	at := fmt.Sprintf("http://127.0.0.1:%d", port)
	for _, c := range []struct {
		path   string
		status int
	}{{"/favicon.ico", 404}, {"/", 200}} {
		res, err := http.Get(at + c.path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status || c.status == 200 && (!strings.Contains(string(body), "came from 127.0.0.1") || !strings.Contains(res.Header.Get("Content-Security-Policy"), "sha256-")) {
			t.Errorf("%s: %s\n%s", c.path, res.Status, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	out.await(t, "somebody came from this machine itself: 127.0.0.1.")
	c, err := peerws.Dial(ctx, strings.Replace(at, "http", "ws", 1)+"/")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-c.Done()
	cancel()
	r := <-done
	if r.err != nil || len(r.f.Visitors) != 1 || r.f.Visitors[0].Dialled != fmt.Sprintf("127.0.0.1:%d", port) || r.f.Proved || r.f.Reachable {
		t.Errorf("%+v", r)
	}
	if n := strings.Count(out.String(), "somebody came"); n != 1 {
		t.Errorf("told %d times:\n%s", n, out.String())
	}
}
