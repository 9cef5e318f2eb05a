package nat_test

import (
	"fmt"
	"net/netip"

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
