package natlab

import (
	"context"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Homes where the router forwards and the answers leave by another way: no peer
// gets one, and the program says so, while and only while it is so.
func testOtherWay(t *testing.T, echo string) {
	gateway := GatewayLAN.String()
	vpn := [][]string{
		{"ip", "link", "add", "vpn0", "type", "veth", "peer", "name", "vpn1"},
		{"ip", "link", "set", "vpn1", "up"},
		{"ip", "addr", "add", "10.8.0.2/24", "dev", "vpn0"},
		{"ip", "link", "set", "vpn0", "up"},
	}
	for _, c := range []struct {
		name   string
		on     [][]string
		off    []string // brings the good way back; nil if that is not tried
		code   string
		mapped bool // the router was asked, and forwards
	}{
		{"a tunnel's default route", append(vpn[:len(vpn):len(vpn)], []string{"ip", "route", "replace", "default", "dev", "vpn0"}),
			[]string{"ip", "route", "replace", "default", "via", gateway}, "vpn", true},
		{"beside the router's", append(vpn[:len(vpn):len(vpn)], []string{"ip", "route", "del", "default"}, []string{"ip", "route", "add", "default", "dev", "vpn0", "metric", "50"}, []string{"ip", "route", "add", "default", "via", gateway, "metric", "500"}),
			[]string{"ip", "link", "del", "vpn0"}, "vpn", true},
		{"two halves", append(vpn[:len(vpn):len(vpn)], []string{"ip", "route", "add", "0.0.0.0/1", "dev", "vpn0"}, []string{"ip", "route", "add", "128.0.0.0/1", "dev", "vpn0"}),
			[]string{"ip", "link", "del", "vpn0"}, "vpn", true},
		{"a table of its own", append(vpn[:len(vpn):len(vpn)], []string{"ip", "route", "add", "default", "dev", "vpn0", "table", "77"}, []string{"ip", "rule", "add", "priority", "90", "table", "main", "suppress_prefixlength", "0"}, []string{"ip", "rule", "add", "priority", "100", "table", "77"}),
			[]string{"ip", "rule", "del", "priority", "100"}, "vpn", true},
		{"two routers", append(vpn[:len(vpn):len(vpn)], []string{"ip", "route", "add", "default", "via", "10.8.0.1", "dev", "vpn0", "onlink", "metric", "1"}, []string{"ip", "route", "del", "default", "via", gateway}, []string{"ip", "route", "add", "default", "via", gateway, "metric", "500"}),
			nil, "vpn", true},
		{"cut off", [][]string{{"ip", "route", "del", "default"}}, nil, "no-network", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, Config{})
			for _, command := range c.on {
				l.LAN.Run(t, command...)
			}
			p := l.LAN.Start(t, echo, "-port", "9000", "-nat")
			line, took := p.Await(t, mapLimit, "reachability "+c.code+": ")
			t.Logf("%.2f s: %s", took.Seconds(), line)
			if got := l.Forwards(t); c.mapped != (len(got) == 1) {
				t.Errorf("the gateway forwards %v", got)
			}
			if c.mapped {
				for external := range l.Forwards(t) {
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					conn, err := l.WAN.Dial(ctx, netip.AddrPortFrom(GatewayWAN, external).String())
					cancel()
					if err == nil {
						conn.Close()
						t.Error("a peer outside gets in")
					}
				}
			}
			for _, line := range p.Lines() {
				if strings.HasPrefix(line, "public ") {
					t.Errorf("offered: %s", line)
				}
			}
			if c.off != nil {
				l.LAN.Run(t, c.off...)
				p.Await(t, mapLimit, "reachability mapped: ")
			}
			stopped(t, p, syscall.SIGTERM)
			noRules(t, l)
		})
	}
}
