// Package natlab holds gateways for tests: scripted ones on loopback, which
// answer exactly as told, and a real one, miniupnpd with nftables in network
// namespaces, which answers as home routers do.
package natlab
