module github.com/peerws/peerws/bench

go 1.26.0

require (
	github.com/peerws/peerws v0.0.0
	golang.org/x/net v0.62.0
)

require (
	github.com/gobwas/httphead v0.1.0 // indirect
	github.com/gobwas/ws v1.5.0 // indirect
	github.com/huin/goupnp v1.3.1 // indirect
	github.com/jackpal/go-nat-pmp v1.1.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace github.com/peerws/peerws => ../
