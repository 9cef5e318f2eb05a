// Package peerws makes any program a WebSocket peer: it listens on a port, asks
// the home router to forward it, does the opening handshake, and hands over
// WebSocket objects. Browsers and programs connect to it; there is no relay.
//
//	l, err := peerws.Listen(9000, "chat")
//	l.OnConnection(func(c *peerws.WebSocket) {
//		c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) { c.Send(m) })
//	})
//
// The names are those of a proposal of 2009, which put a WebSocketListener
// beside the browser's WebSocket, and of the WHATWG WebSockets standard.
//
// # The data's way
//
//	in:   bytes → frame.go → message.go → conn_read.go → OnMessage, or conn_reader.go → Read
//	out:  Send → conn_send.go, conn_write.go, conn_outbox.go → frame.go → bytes
//	port: listener.go, listener_addresses.go → nat.Manager → nat.Mapper → the router
//
// An idle connection is one parked goroutine without a buffer. What it receives
// is taken apart and unmasked where it lies; a message that arrived in one piece
// is never copied.
//
// # The contract
//
// Every method may be called from any goroutine. The callbacks of one socket
// run one at a time and in order; while one runs, nothing more is read from that
// peer. Message.Data is loaned in OnMessage: it is valid until the callback
// returns. Builds with the race detector overwrite it then.
//
// Who prefers calls to callbacks uses Read, Messages, NextReader or NetConn; the
// first use of either style fixes it. Control frames are answered in both. In
// Read's style the Data is the caller's.
//
// A handler may stay in OnConnection and read there in a loop, as handlers
// written for other libraries do. The socket's other callbacks wait until it
// returns.
//
// Send never blocks: what the kernel does not take is queued up to
// MaxBufferedAmount, then Send says ErrBufferFull; Write waits instead. Once a
// socket is closing, errors wrap net.ErrClosed and the [CloseEvent], which says
// who ended it and why: what the peer did wrong is a [ProtocolError] or a
// [LimitError] in it, what the program did wrong a [SyntaxError] at the call.
//
// Peers that fall silent are pinged, and given up if they stay so. Their own pings are
// answered also while the program is busy, behind up to 16 KiB of messages. A context
// that ends ends only the wait, never the connection.
//
// In every option zero stands for the default and negative for off.
//
// # Who may connect
//
// Programs always may. A web page may if its origin is in AllowedOrigins, or if
// it comes from the very host it connects to and that is an IP address,
// localhost, one of AllowedHosts, or a name that TLS shows to be ours. ListenConfig.Authorize can ask for more, and
// ListenConfig.Respond gives the answer a cookie, or another subprotocol.
//
// # Whether peers can reach it
//
// Addresses lists where peers can connect, and Reachability says in one
// sentence whether peers outside can, and if not, what to change. What the
// router says is Mapped. An address is Verified when it has been seen to work: a
// peer from outside has come in through it, or a connection of our own to it
// came back, which some routers let through, or a peer that ListenConfig.Verify
// asked has reached it. OnAddressChange tells of all of it.
//
// # One port, or a server's
//
// The one port speaks ws, HTTP (ListenConfig.HTTP) and, with
// ListenConfig.TLSConfig, wss and https: the first byte tells them apart. A
// program that runs an http.Server already mounts a listener in it with
// [ListenConfig.Handler].
//
// # Limitations
//
//   - Browsers let a page that was loaded over https open ws:// only to this
//     machine itself; pages loaded over http, and programs, may open it anywhere.
//   - A router that is itself behind another one, or behind the provider's
//     carrier-grade NAT, cannot make a port reachable; Reachability says so.
//   - The certificate for wss is the program's to get (ListenConfig.TLSConfig).
//     Over TLS a waiting connection holds some 15 KB more, and crypto/tls
//     allocates for every message.
//   - There is no compression yet.
//   - WebSocket over HTTP/2 and HTTP/3 (RFC 8441, RFC 9220) is not spoken.
package peerws
