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
// An idle connection has no buffer, and on Linux, if a listener has accepted it, no
// goroutine. What it receives is taken apart and unmasked where it lies; a message that
// arrived in one piece is never copied.
//
// # The contract
//
// Every method may be called from any goroutine. The callbacks of one socket
// run one at a time and in order; while one runs, nothing more is read from that
// peer. Message.Data is loaned in OnMessage: it is valid until the callback
// returns. Builds with the race detector overwrite it then.
//
// To use calls instead of callbacks there are Read, Messages, NextReader and NetConn;
// the first use of either style fixes it. Control frames are answered in both. In
// Read's style the Data is the caller's.
//
// A handler may stay in OnConnection and read there in a loop, as handlers
// written for other libraries do. The socket's other callbacks wait until it
// returns.
//
// Send never blocks: what the kernel does not take is queued up to
// MaxBufferedAmount, then Send says ErrBufferFull; Write waits instead.
//
// Peers that fall silent are pinged, and given up if they stay so. Their own pings are
// answered also while the program is busy, behind up to 16 KiB of messages. A context
// that ends ends only the wait, never the connection.
//
// In every option zero stands for the default and negative for off.
//
// # Errors
//
//   - [CloseEvent]: how a connection ended, by whom and why. OnClose gets it, and once
//     the socket is closing every error wraps it, and [net.ErrClosed].
//   - [ProtocolError] and [LimitError], in a CloseEvent: what the peer did wrong, and
//     which of our limits it went over.
//   - [SyntaxError]: an argument that cannot be. Nothing was sent or opened.
//   - [HandshakeError]: why a dial did not succeed, with the other side's answer.
//   - [RejectError]: what Authorize returns to choose the answer.
//   - [ErrBufferFull], [ErrReading], [ErrNotOpen]: the call was not possible now; the
//     connection lives on.
//
// A context that ends is returned as its cause.
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
// # Compression
//
// Messages are compressed if [Compression] turns it on, in ListenConfig or Dialer, and the
// peer supports permessage-deflate (RFC 7692). It is off by default: it costs more than
// the rest of a message does, and a secret beside text that an attacker chooses can be
// guessed by its size (Message.Plain leaves a message out). Limits apply to what a
// message becomes.
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
//   - WebSocket over HTTP/2 and HTTP/3 (RFC 8441, RFC 9220) is not spoken.
package peerws
