package peerws

import (
	"fmt"

	"github.com/peerws/peerws/internal/memnet"
)

// Pipe returns two sockets that are connected in memory, both OPEN: one as a
// listener with l's options has accepted it, one as d has dialled it. It is for
// tests of programs. There is no handshake and no subprotocol; l.OnConnection
// runs first, if it is set. Both work inside testing/synctest. It panics if the
// options are wrong.
func Pipe(l ListenConfig, d Dialer) (accepted, dialled *WebSocket) {
	listener, err := l.prepare(nil)
	if err != nil {
		panic(fmt.Sprintf("peerws: Pipe: %v", err))
	}
	dialled, _, err = d.prepare("ws://pipe/", nil)
	if err != nil {
		panic(fmt.Sprintf("peerws: Pipe: %v", err))
	}
	a, b := memnet.Pipe(0)
	accepted = newOpenWebSocket(listener.set, a, false, nil)
	accepted.where = "pipe/"
	dialled.wr.shut = false
	dialled.open(b, true, nil)
	dialled.begin()
	if l.OnConnection != nil {
		accepted.offer(l.OnConnection)
	} else {
		accepted.begin()
	}
	return accepted, dialled
}
