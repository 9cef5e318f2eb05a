module github.com/peerws/peerws

go 1.26.0

require (
	github.com/gobwas/ws v1.5.0
	github.com/huin/goupnp v1.3.1
	github.com/jackpal/go-nat-pmp v1.1.0
	github.com/klauspost/compress v1.20.4
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
	rsc.io/qr v0.2.0
)

require github.com/gobwas/httphead v0.1.0 // indirect
