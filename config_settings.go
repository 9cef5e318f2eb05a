package peerws

import (
	"cmp"
	"time"
)

// settings are the limits and times of a listener or dialer with the defaults
// filled in. They never change, so all of its sockets share one.
type settings struct {
	core             coreLimits
	maxBuffered      int           // payload bytes queued on one socket; negative: no limit
	handshakeTimeout time.Duration // of the whole opening handshake; 0: none
	writeTimeout     time.Duration // without progress; 0: none
	pingInterval     time.Duration // of silence before a ping; 0: none
	pongTimeout      time.Duration // of silence after a ping; 0: none
	closeTimeout     time.Duration // from our Close frame leaving to the end; 0: none

	// Seams of our tests.
	portable bool    // never take the raw path
	sys      *sysOps // system calls of the raw path, nil for the real ones
}

// Defaults of the fields that ListenConfig and Dialer share.
const (
	defaultMaxMessageSize    = 1 << 20
	defaultMaxFragments      = 1024
	defaultMaxBufferedAmount = 1 << 20
	defaultHandshakeTimeout  = 10 * time.Second
	defaultWriteTimeout      = 30 * time.Second
	defaultCloseTimeout      = 5 * time.Second
	defaultPingInterval      = 25 * time.Second
	defaultPongTimeout       = 20 * time.Second
	defaultMaxHeaderBytes    = 8 << 10
)

// orDefault resolves a field by the rule of every option: zero is the default,
// negative is off.
func orDefault[T cmp.Ordered](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// orOff is orDefault for times, where 0 then stands for off.
func orOff(d, def time.Duration) time.Duration { return max(orDefault(d, def), 0) }
