package peerws

import (
	"testing"
	"time"
)

func TestFragmentLimit(t *testing.T) {
	for _, tt := range []struct {
		fragments int
		size      int64
		want      int
	}{
		{0, 0, 1024}, {0, 10, 1024}, {0, -1, -1}, {5, -1, 5}, {-1, 0, -1}, {5, 0, 5},
	} {
		if got := fragmentLimit(tt.fragments, tt.size); got != tt.want {
			t.Errorf("MaxFragments %d with MaxMessageSize %d: %d, want %d", tt.fragments, tt.size, got, tt.want)
		}
	}
}

// Zero is the default and negative is off, for every option of both sides.
func TestOptions_ZeroAndNegative(t *testing.T) {
	l, err := (&ListenConfig{}).prepare(nil)
	if err != nil {
		t.Fatal(err)
	}
	dialled := func(d Dialer) settings {
		c, _, err := d.prepare("ws://there/", nil)
		if err != nil {
			t.Fatal(err)
		}
		return *c.set
	}
	d := dialled(Dialer{})
	defaults := settings{
		core: coreLimits{maxMessage: 1 << 20, maxFragments: 1024}, maxBuffered: 1 << 20,
		handshakeTimeout: 10 * time.Second, writeTimeout: 30 * time.Second,
		pingInterval: 25 * time.Second, pongTimeout: 20 * time.Second, closeTimeout: 5 * time.Second,
	}
	if *l.set != defaults || d != defaults {
		t.Errorf("defaults:\n%+v\n%+v, want\n%+v", *l.set, d, defaults)
	}
	if l.maxHead != 8<<10 || l.maxConns != 1024 || l.maxPerIP != 64 || l.loopback || l.maxHandshakes != 128 {
		t.Errorf("defaults of the listener: %d %d %d %v %d", l.maxHead, l.maxConns, l.maxPerIP, l.loopback, l.maxHandshakes)
	}

	off := settings{core: coreLimits{maxMessage: -1, maxFragments: -1}, maxBuffered: -1}
	if l, err = (&ListenConfig{
		MaxMessageSize: -1, MaxFragments: -1, MaxBufferedAmount: -1, HandshakeTimeout: -1, WriteTimeout: -1, PingInterval: -1, PongTimeout: -1, CloseTimeout: -1,
		MaxHeaderBytes: -1, MaxConnections: -1, MaxConnectionsPerIP: -1, MaxHandshakes: -1,
	}).prepare(nil); err != nil {
		t.Fatal(err)
	}
	d = dialled(Dialer{MaxMessageSize: -1, MaxFragments: -1, MaxBufferedAmount: -1, HandshakeTimeout: -1, WriteTimeout: -1, PingInterval: -1, PongTimeout: -1, CloseTimeout: -1})
	if *l.set != off || d != off {
		t.Errorf("off:\n%+v\n%+v, want\n%+v", *l.set, d, off)
	}
	if l.clock != nil {
		t.Error("a clock with nothing to look at")
	}
	if l.maxHead != 8<<10 || l.maxConns != -1 || l.maxPerIP != -1 || l.maxHandshakes != 0 {
		t.Errorf("off for the listener: %d %d %d %d", l.maxHead, l.maxConns, l.maxPerIP, l.maxHandshakes)
	}
}
