package natlab

import (
	"encoding/json"
	"strings"
	"testing"
)

// examples/doctor at real gateways: what it says, and that it leaves nothing.
func TestDoctor(t *testing.T) {
	Need(t)
	t.Parallel()
	bin := build(t, "../../examples/doctor")
	for _, c := range []struct {
		name     string
		config   Config
		args     string
		code     string
		versions string // of pcp, nat-pmp and upnp
	}{
		{"all", Config{}, "", "ready", "2 0 WANIPConnection:2"},
		{"all, tried", Config{}, "-try", "mapped", "2 0 WANIPConnection:2"},
		{"IPv6", Config{IPv6: true}, "-try", "mapped", "2 0 WANIPConnection:2 2 WANIPv6FirewallControl:1"},
		{"NAT-PMP", Config{Daemon: NATPMP, NoPCP: true}, "-try", "mapped", " 0 "},
		{"UPnP", Config{Daemon: UPnP, IGD1: true}, "-try", "mapped", "  WANIPConnection:1"},
		{"silent", Config{Daemon: Silence}, "", "no-gateway", "  "},
		{"no route", Config{NoDefaultRoute: true}, "", "no-network", ""},
		{"refused", Config{Rules: []string{"deny 0-65535 0.0.0.0/0 0-65535"}}, "-try", "refused", "2 0 WANIPConnection:2"},
		{"carrier-grade NAT", Config{WAN: "100.64.7.8"}, "-try", "cgnat", "2 0 WANIPConnection:2"},
		{"behind a router", Config{WAN: "192.168.3.4"}, "-try", "double-nat", "2 0 WANIPConnection:2"},
		{"behind a router, asked", Config{WAN: "192.168.3.4"}, "", "double-nat", "2 0 WANIPConnection:2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := New(t, c.config)
			out, err := l.LAN.Command(t.Context(), append([]string{bin, "-json"}, strings.Fields(c.args)...)...).Output()
			var got struct {
				Code, Summary string
				Reachable     bool
				Protocols     []struct{ Version, Error string }
			}
			if e := json.Unmarshal(out, &got); e != nil {
				t.Fatalf("%v, %v:\n%s", err, e, out)
			}
			var versions []string
			for _, p := range got.Protocols {
				versions = append(versions, p.Version)
			}
			if got.Code != c.code || strings.Join(versions, " ") != c.versions {
				t.Errorf("code %s, versions %q, want %s, %q:\n%s", got.Code, versions, c.code, c.versions, out)
			}
			if ok := c.code == "ready" || c.code == "mapped"; got.Reachable != ok || (err == nil) != ok {
				t.Errorf("reachable %v, %v", got.Reachable, err)
			}
			t.Logf("%s: %s", got.Code, got.Summary)
			noRules(t, l)
		})
	}
}
