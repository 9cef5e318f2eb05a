package peerws

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// The pings that lie ahead, by hand.
func TestCore_PingsIn(t *testing.T) {
	key := []byte{1, 2, 3, 4}
	masked := func(head ...byte) []byte { return append(head, key...) }
	ping := append(masked(0x89, 0x82), 'a'^1, 'b'^2)
	ping2 := append(masked(0x89, 0x81), 'c'^1)
	text := append(masked(0x81, 0x83), 0, 0, 0)
	long := append(masked(0x82, 0xFE, 1, 0), make([]byte, 256)...)
	pong := masked(0x8A, 0x80)
	all := bytes.Join([][]byte{text, ping, pong, long, ping2, ping[:5]}, nil)
	for cut := range len(all) + 1 {
		c := &core{limits: &coreLimits{}}
		before := bytes.Clone(all)
		n, newest := c.pingsIn(all[:cut], all[cut:])
		if n != 2 || string(newest) != "c" || !bytes.Equal(all, before) {
			t.Fatalf("cut at %d: %d pings, the newest %q", cut, n, newest)
		}
	}
	for cut, want := range map[int]int{0: 0, len(text) - 1: 0, len(text) + 7: 0, len(text) + 8: 1, len(all) - 6: 1} {
		c := &core{limits: &coreLimits{}}
		if n, _ := c.pingsIn(nil, all[:cut]); n != want {
			t.Errorf("%d bytes: %d pings, want %d", cut, n, want)
		}
	}
	// In the middle of a frame's payload.
	c := &core{limits: &coreLimits{}, part: &partial{left: 3}}
	if n, newest := c.pingsIn([]byte{0x89, 0}, append([]byte{0}, ping...)); n != 1 || string(newest) != "ab" {
		t.Errorf("%d, %q", n, newest)
	}
	c.part.left = 1 << 40
	if n, _ := c.pingsIn(all, all); n != 0 {
		t.Errorf("%d pings within a payload", n)
	}
	// Nonsense ends it.
	c.part = nil
	if n, _ := c.pingsIn(ping, []byte{0x83, 0x80}); n != 1 {
		t.Errorf("%d", n)
	}
}

// A busy is a way for a program to be away for long while its peer pings.
type busy struct {
	name string
	// start makes the program of the listening side; over is closed when it is back.
	start func(c *WebSocket, pause func(), over func())
	first int // messages that the peer sends first
}

var busies = []busy{
	{"callback", func(c *WebSocket, pause, over func()) {
		c.OnMessage(func(*WebSocket, Message) { pause(); over() })
	}, 1},
	{"callbacks, one after the other", func(c *WebSocket, pause, over func()) {
		n := 0
		c.OnMessage(func(*WebSocket, Message) {
			pause()
			if n++; n == 3 {
				over()
			}
		})
	}, 3},
	{"callback that has sent something", func(c *WebSocket, pause, over func()) {
		n := 0
		c.OnMessage(func(*WebSocket, Message) {
			c.SendText("yes")
			if n++; n == 1 {
				pause()
				over()
			}
		})
	}, 2},
	{"Read", func(c *WebSocket, pause, over func()) {
		go func() {
			c.Read(context.Background())
			pause()
			for range 2 {
				if _, err := c.Read(context.Background()); err != nil {
					return
				}
			}
			over()
		}()
	}, 3},
	{"NextReader", func(c *WebSocket, pause, over func()) {
		go func() {
			_, r, err := c.NextReader(context.Background())
			if err != nil {
				return
			}
			r.Read(make([]byte, 1))
			pause()
			if _, err := io.Copy(io.Discard, r); err == nil {
				over()
			}
		}()
	}, 2},
	{"nobody reads", func(c *WebSocket, pause, over func()) {
		go func() {
			pause()
			c.OnMessage(func(*WebSocket, Message) { over() })
		}()
	}, 1},
	{"NetConn", func(c *WebSocket, pause, over func()) {
		go func() {
			n := c.NetConn(Text)
			n.Read(make([]byte, 2))
			pause()
			if _, err := n.Read(make([]byte, 2)); err == nil {
				over()
			}
		}()
	}, 2},
	{"OnConnection", nil, 1},
}

// A peer that pings a program which is away for long is answered: it does not give
// the connection up, loses nothing, and every ping is answered once.
func TestAhead_PingsAreAnswered(t *testing.T) {
	for _, b := range busies {
		for network, seal := range map[string]bool{"memory": false, "TLS": true} {
			t.Run(b.name+"/"+network, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const away = 3 * time.Minute
					over := make(chan struct{}, 10)
					pause := func() { time.Sleep(away) }
					config := ListenConfig{OnConnection: func(c *WebSocket) {
						if b.start == nil {
							pause()
							c.OnMessage(func(*WebSocket, Message) { over <- struct{}{} })
							return
						}
						b.start(c, pause, func() { over <- struct{}{} })
					}}
					d := Dialer{}
					scheme := "ws"
					if seal {
						config.TLSConfig, d.TLSConfig, scheme = serverConfig(), clientConfig(), "wss"
					}
					ln := memnet.Listen(0)
					l, err := config.Serve(ln)
					if err != nil {
						t.Fatal(err)
					}
					defer l.Shutdown(t.Context())
					d.NetDial = func(ctx context.Context, _, _ string) (net.Conn, error) { return ln.Dial(ctx) }
					c, err := d.Dial(t.Context(), scheme+"://localhost/")
					if err != nil {
						t.Fatal(err)
					}
					c.OnMessage(func(*WebSocket, Message) {})
					for range b.first {
						c.SendText("hello")
					}
					time.Sleep(time.Second)
					for i := range 20 { // of the program's, beside those of the keepalive
						if _, err := c.Ping(t.Context()); err != nil {
							t.Fatalf("ping %d: %v", i, err)
						}
						time.Sleep(away / 40)
					}
					select {
					case <-over:
					case <-time.After(10 * time.Minute):
						t.Fatalf("not back: %v", c.ReadyState())
					}
					if c.ReadyState() != Open {
						t.Errorf("%v", c.ReadyState())
					}
					if _, err := c.Ping(t.Context()); err != nil {
						t.Errorf("afterwards: %v", err)
					}
					c.Abort()
				})
			})
		}
	}
}

// The same over sockets, with times that are short.
func TestAhead_OverTCP(t *testing.T) {
	set := ListenConfig{PingInterval: 100 * time.Millisecond, PongTimeout: 400 * time.Millisecond}
	for _, b := range busies {
		for network, seal := range map[string]bool{"TCP": false, "TLS": true} {
			t.Run(b.name+"/"+network, func(t *testing.T) {
				t.Parallel()
				over := make(chan struct{}, 10)
				pause := func() { time.Sleep(time.Second) }
				config := set
				config.OnConnection = func(c *WebSocket) {
					if b.start == nil {
						pause()
						c.OnMessage(func(*WebSocket, Message) { over <- struct{}{} })
						return
					}
					b.start(c, pause, func() { over <- struct{}{} })
				}
				d := Dialer{PingInterval: set.PingInterval, PongTimeout: set.PongTimeout}
				if seal {
					config.TLSConfig, d.TLSConfig = serverConfig(), clientConfig()
				}
				l := listen(t, config)
				c, err := d.Dial(t.Context(), l.URL())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Abort()
				c.OnMessage(func(*WebSocket, Message) {})
				for range b.first {
					c.SendText("hello")
				}
				select {
				case <-over:
				case <-time.After(20 * time.Second):
					t.Fatal("not back")
				}
				if c.ReadyState() != Open {
					t.Errorf("%v", waitDone(t, c))
				}
			})
		}
	}
}
