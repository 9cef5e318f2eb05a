package nat_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/peerws/peerws/nat"
)

// A forward made by hand in the router's pages; with nat.Any() in place of
// nat.Static the router is asked.
func ExampleNewManager() {
	changes := make(chan nat.Status, 1)
	m := nat.NewManager(nat.ManagerConfig{
		Mapper:   nat.Static(netip.MustParseAddrPort("203.0.113.7:4000")),
		Internal: netip.MustParseAddrPort("0.0.0.0:9000"),
		OnChange: func(s nat.Status) { changes <- s },
	})
	defer m.Close()
	s := <-changes
	fmt.Println(s.Leases[0].External, s.Diagnosis.Code)
	// Output: 203.0.113.7:4000 mapped
}

// A vpn is a Mapper of a program's own: a provider that forwards ports to its
// customers when asked. Here the provider is a function; it could be a command
// or an HTTP call, which should end when ctx does.
type vpn struct {
	lease func(ctx context.Context, port uint16, give bool) (netip.AddrPort, error)
}

func (v vpn) Name() string { return "vpn" }

// Map also renews: r.Previous is the lease it made before, nil at first. What
// is granted may differ from what was asked for.
func (v vpn) Map(ctx context.Context, r nat.Request) (nat.Lease, error) {
	outside, err := v.lease(ctx, r.Internal.Port(), true)
	if err != nil {
		// The kind decides what Reachability tells the person.
		return nat.Lease{}, &nat.Error{Mapper: v.Name(), Op: "map", Kind: nat.Refused, Err: err}
	}
	return nat.Lease{
		Internal: r.Internal,
		External: outside,
		Lifetime: 10 * time.Minute, // renewed after five to six
		Via:      v.Name(),
		Obtained: time.Now(),
	}, nil
}

func (v vpn) Unmap(ctx context.Context, l nat.Lease) error {
	_, err := v.lease(ctx, l.Internal.Port(), false)
	return err
}

// A program opens ports in a way of its own. In ListenConfig.NAT the same
// value makes a listener use it.
func ExampleMapper() {
	provider := func(_ context.Context, port uint16, give bool) (netip.AddrPort, error) {
		fmt.Println("port", port, "wanted:", give)
		return netip.MustParseAddrPort("203.0.113.7:41000"), nil
	}
	changes := make(chan nat.Status, 1)
	m := nat.NewManager(nat.ManagerConfig{
		Mapper:   vpn{provider},
		Internal: netip.MustParseAddrPort("0.0.0.0:9000"),
		OnChange: func(s nat.Status) { changes <- s },
	})
	fmt.Println((<-changes).Leases[0].External)
	m.Close()
	// Output:
	// port 9000 wanted: true
	// 203.0.113.7:41000
	// port 9000 wanted: false
}

// What happens to a mapping, as it happens.
func ExampleManagerConfig_onEvent() {
	done := make(chan struct{})
	m := nat.NewManager(nat.ManagerConfig{
		Mapper:   nat.Static(netip.MustParseAddrPort("203.0.113.7:9000")),
		Internal: netip.MustParseAddrPort("0.0.0.0:9000"),
		OnEvent: func(e nat.Event) {
			switch e := e.(type) {
			case nat.Mapped:
				fmt.Println("peers connect to", e.Lease.External)
			case nat.ExternalChanged:
				fmt.Println("peers connect to", e.New, "from now on")
			case nat.Lost:
				fmt.Println("peers cannot connect:", e.Err)
			case nat.Diagnosed:
				close(done)
			}
		},
	})
	<-done
	m.Close()
	// Output: peers connect to 203.0.113.7:9000
}
