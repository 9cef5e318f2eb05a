package peerws

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/netaddr"
)

// A scene is a machine by its interfaces, in the order of their numbers.
type scene struct {
	interfaces []net.Interface
	addrs      map[string][]string
	addrs6     []netaddr.Addr6
	facing     []string
}

func (s scene) system() system {
	return system{
		interfaces: func() ([]net.Interface, error) { return s.interfaces, nil },
		addrs: func(i net.Interface) (all []net.Addr, err error) {
			for _, a := range s.addrs[i.Name] {
				p := netip.MustParsePrefix(a)
				all = append(all, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
			}
			return all, nil
		},
		addrs6: func() ([]netaddr.Addr6, error) { return s.addrs6, nil },
		source: func(to netip.Addr) (netip.Addr, error) {
			for _, f := range s.facing {
				if a := netip.MustParseAddr(f); a.Is4() == to.Is4() {
					return a, nil
				}
			}
			return netip.Addr{}, errors.New("network is unreachable")
		},
	}
}

func nic(index int, name string, flags net.Flags) net.Interface {
	return net.Interface{Index: index, Name: name, Flags: flags | net.FlagUp}
}

func address6(s, iface string, temporary, unusable bool) netaddr.Addr6 {
	return netaddr.Addr6{Addr: netip.MustParseAddr(s), Bits: 64, Iface: iface, Temporary: temporary, Unusable: unusable}
}

// URL names the address that peers use.
func TestURL_OfManyInterfaces(t *testing.T) {
	lo := nic(1, "lo", net.FlagLoopback)
	docker := nic(2, "docker0", net.FlagBroadcast)
	eth := nic(3, "eth0", net.FlagBroadcast)
	tail := nic(4, "tailscale0", net.FlagPointToPoint)
	for _, c := range []struct {
		name  string
		scene scene
		bound string // "" is both families
		want  string
	}{
		{"a home", scene{
			interfaces: []net.Interface{lo, docker, eth, tail},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8", "::1/128"}, "docker0": {"172.17.0.1/16"}, "eth0": {"192.168.1.5/24", "fe80::5/64"}, "tailscale0": {"100.101.102.103/32"}},
			facing:     []string{"192.168.1.5"},
		}, "", "ws://192.168.1.5:9000/"},
		{"a home with IPv6", scene{
			interfaces: []net.Interface{lo, docker, eth},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "docker0": {"172.17.0.1/16"}, "eth0": {"192.168.1.5/24", "2600:1::5/64"}},
			facing:     []string{"192.168.1.5", "2600:1::5"},
		}, "", "ws://192.168.1.5:9000/"},
		{"no way out", scene{
			interfaces: []net.Interface{lo, eth, tail},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "eth0": {"169.254.7.7/16", "192.168.1.5/24"}, "tailscale0": {"10.8.0.2/24"}},
		}, "", "ws://192.168.1.5:9000/"},
		{"a proxy's tunnel leads out", scene{
			interfaces: []net.Interface{lo, eth, nic(5, "tun0", net.FlagPointToPoint)},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "eth0": {"192.168.1.5/24"}, "tun0": {"198.18.0.1/16"}},
			facing:     []string{"198.18.0.1"},
		}, "", "ws://192.168.1.5:9000/"},
		{"a VPN leads out", scene{
			interfaces: []net.Interface{lo, eth, nic(5, "wg0", net.FlagPointToPoint)},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "eth0": {"192.168.1.5/24"}, "wg0": {"10.2.0.2/32"}},
			facing:     []string{"10.2.0.2"},
		}, "", "ws://192.168.1.5:9000/"},
		{"IPv6 alone", scene{
			interfaces: []net.Interface{lo, eth},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8", "::1/128"}, "eth0": {"fe80::5/64", "2600:1::77/64", "2600:1::5/64", "2600:1::66/64"}},
			addrs6:     []netaddr.Addr6{address6("2600:1::77", "eth0", true, false), address6("2600:1::5", "eth0", false, false), address6("2600:1::66", "eth0", false, true)},
			facing:     []string{"2600:1::77"},
		}, "", "ws://[2600:1::5]:9000/"},
		{"a phone's translator", scene{
			interfaces: []net.Interface{lo, nic(7, "clat4", net.FlagPointToPoint), eth},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "clat4": {"192.0.0.4/32"}, "eth0": {"2600:1::5/64"}},
			facing:     []string{"192.0.0.4", "2600:1::5"},
		}, "", "ws://[2600:1::5]:9000/"},
		{"a public address", scene{
			interfaces: []net.Interface{lo, eth, docker},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "docker0": {"172.17.0.1/16"}, "eth0": {"5.6.7.8/24", "2600:1::5/64"}},
			facing:     []string{"5.6.7.8", "2600:1::5"},
		}, "", "ws://5.6.7.8:9000/"},
		{"the list is denied", scene{facing: []string{"192.168.1.5", "2600:1::5"}}, "", "ws://192.168.1.5:9000/"},
		{"the list is denied, and no way out", scene{}, "", "ws://127.0.0.1:9000/"},
		{"IPv4 alone", scene{
			interfaces: []net.Interface{lo, eth},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "eth0": {"2600:1::5/64", "192.168.1.5/24"}},
			facing:     []string{"192.168.1.5", "2600:1::5"},
		}, "0.0.0.0", "ws://192.168.1.5:9000/"},
		{"an interface that is down", scene{
			interfaces: []net.Interface{lo, {Index: 2, Name: "eth1"}, eth},
			addrs:      map[string][]string{"lo": {"127.0.0.1/8"}, "eth1": {"192.168.9.9/24"}, "eth0": {"192.168.1.5/24"}},
		}, "", "ws://192.168.1.5:9000/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bound := c.bound
			if bound == "" {
				bound = "::"
			}
			l := &WebSocketListener{machine: c.scene.system(), port: 9000, ln: addressed{netip.AddrPortFrom(netip.MustParseAddr(bound), 9000)}}
			if got := l.URL(); got != c.want {
				t.Errorf("%s of %v", got, l.Addresses())
			}
			for _, a := range l.Addresses() {
				for _, bad := range []string{"192.0.0.4", "2600:1::77", "2600:1::66", "fe80", "192.168.9.9"} {
					if a.URL == "ws://"+bad+":9000/" || a.URL == "ws://["+bad+"]:9000/" {
						t.Errorf("%v is listed", a)
					}
				}
			}
		})
	}
}

// An addressed is a net.Listener that is nothing but its address.
type addressed struct{ at netip.AddrPort }

func (a addressed) Addr() net.Addr          { return net.TCPAddrFromAddrPort(a.at) }
func (addressed) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (addressed) Close() error              { return nil }

// This machine lists its loopback address, however little it may read.
func TestOwn_ThisMachine(t *testing.T) {
	has := func(list []ownAddr, s string) bool {
		return slices.ContainsFunc(list, func(o ownAddr) bool { return o.ip == netip.MustParseAddr(s) })
	}
	if list := thisMachine().own(true); !has(list, "127.0.0.1") {
		t.Errorf("%v", list)
	}
	denied := thisMachine()
	denied.interfaces = func() ([]net.Interface, error) { return nil, errors.New("permission denied") }
	denied.addrs6 = func() ([]netaddr.Addr6, error) { return nil, errors.New("permission denied") }
	if list := denied.own(true); !has(list, "127.0.0.1") {
		t.Errorf("%v", list)
	}
}

// Who listens for changes is told of those of this machine's own addresses: soon where
// the system says so, else when it is looked.
func TestOnAddressChange_OwnAddresses(t *testing.T) {
	ln, err := net.Listen("tcp", "0.0.0.0:0") // before the bubble: it is never accepted from
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, silent := range map[string]bool{"told": false, "looked": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, err := (&ListenConfig{}).prepare(nil)
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				now := []string{"192.168.1.5/24"}
				var changed func()
				l.ln, l.port = ln, 9000
				l.machine = scene{interfaces: []net.Interface{nic(1, "eth0", net.FlagBroadcast)}}.system()
				l.machine.addrs = func(net.Interface) (all []net.Addr, _ error) {
					mu.Lock()
					defer mu.Unlock()
					for _, s := range now {
						p := netip.MustParsePrefix(s)
						all = append(all, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)})
					}
					return all, nil
				}
				l.machine.watch = func(ctx context.Context, f func()) error {
					if silent {
						return errors.ErrUnsupported
					}
					mu.Lock()
					changed = f
					mu.Unlock()
					<-ctx.Done()
					return ctx.Err()
				}
				start := time.Now()
				var told []string
				l.OnAddressChange(func(all []Address) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, time.Since(start).String()+" "+strings.Join(urls(all), " "))
				})
				synctest.Wait()
				stir := func(list ...string) {
					mu.Lock()
					now = list
					mu.Unlock()
					if changed != nil {
						for range 3 {
							changed()
						}
					}
				}
				at := func(when, ip string) string { return when + " ws://" + ip + ":9000/" }
				time.Sleep(7 * time.Second)
				stir("192.168.1.5/24") // something else changed
				time.Sleep(time.Second)
				stir("10.1.1.7/24")
				time.Sleep(10 * time.Second)
				close(l.closing)
				time.Sleep(10 * time.Second)
				stir("10.1.1.8/24")
				time.Sleep(10 * time.Second)
				want := at("8.5s", "10.1.1.7")
				if silent {
					want = at("10s", "10.1.1.7")
				}
				mu.Lock()
				defer mu.Unlock()
				if len(told) != 1 || told[0] != want {
					t.Errorf("told %q, want %q", told, want)
				}
			})
		})
	}
}

func urls(all []Address) (list []string) {
	for _, a := range all {
		list = append(list, a.URL)
	}
	return list
}
