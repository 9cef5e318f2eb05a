package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/natlab"
	"github.com/peerws/peerws/internal/netaddr"
)

// TestMain fails when a test has left a goroutine behind: a Mapper holds
// nothing open between calls, and a closed Manager nothing at all.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leaked(2 * time.Second); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked waits for the goroutines of this package and those it started to end.
func leaked(patience time.Duration) string {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b := make([]byte, 1<<20)
		b = b[:runtime.Stack(b, true)]
		var left []string
		for g := range strings.SplitSeq(string(b), "\n\n") {
			if !strings.Contains(g, "TestMain") && (strings.Contains(g, "peerws/nat") || strings.Contains(g, "net/http.")) {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
	}
}

// loopbackHost is a machine whose default gateways are fakes.
func loopbackHost(gateways ...netip.Addr) host {
	return host{
		routes: func() ([]route, error) {
			var routes []route
			for i, g := range gateways {
				routes = append(routes, route{gateway: g, metric: i})
			}
			return routes, nil
		},
		source: func(dst netip.Addr) (netip.Addr, error) {
			if !dst.IsLoopback() {
				return netip.Addr{}, errors.New("network is unreachable")
			}
			return netaddr.SourceFor(dst)
		},
		prefixes: func() ([]netip.Prefix, error) { return []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}, nil },
		loopback: true,
	}
}

// testPMP is a NAT-PMP mapper that knows only the fake and has less patience.
func testPMP(f *natlab.Fake) *natPMP {
	n := newNATPMP(loopbackHost(f.Addr))
	n.probe, n.call = []time.Duration{300 * time.Millisecond}, []time.Duration{300 * time.Millisecond}
	return n
}

// testUPnP is a UPnP mapper that knows only the fake and has less patience.
func testUPnP(f *natlab.Fake) *upnp {
	u := newUPnP(loopbackHost(f.Addr), searcher{
		port:   max(f.SSDPPort, 9), // 9 discards, without UPnP
		resend: []time.Duration{50 * time.Millisecond, 150 * time.Millisecond},
		listen: 400 * time.Millisecond,
	})
	u.patience, u.grace, u.settle = 200*time.Millisecond, 50*time.Millisecond, 10*time.Millisecond
	return u
}

var (
	publicIP = netip.MustParseAddr("203.0.113.7")
	anyIP    = netip.IPv4Unspecified()
	localIP  = netip.MustParseAddr("127.0.0.1")
)

func request(port uint16) Request {
	return Request{Internal: netip.AddrPortFrom(anyIP, port), Description: "peerws"}
}

// wantKind fails unless err is an *Error of the kind and code.
func wantKind(t *testing.T, err error, kind Kind, code int) {
	t.Helper()
	if got := kindOf(err); got != kind || codeOf(err) != code {
		t.Fatalf("got %q (kind %v, code %d), want kind %v, code %d", err, got, codeOf(err), kind, code)
	}
}
