//go:build unix

package peerws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/peerws/peerws/nat"
)

// serveUnix starts a listener on a Unix socket and returns how to dial it.
func serveUnix(t *testing.T, c ListenConfig) (*WebSocketListener, func(ctx context.Context, network, addr string) (net.Conn, error)) {
	path := filepath.Join(unixDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Serve(ln)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := l.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the socket's file: %v", err)
		}
	})
	return l, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
}

// Unix sockets are served and dialled as TCP is, by the same path, TLS, pages and
// all.
func TestUnix_Echo(t *testing.T) {
	remotes := make(chan string, 10)
	l, dial := serveUnix(t, ListenConfig{
		TLSConfig: serverConfig(), HTTP: page, MaxConnectionsPerIP: 1, NAT: nat.Static(netip.MustParseAddrPort("203.0.113.1:9000")),
		Authorize: func(r *http.Request) error {
			remotes <- r.RemoteAddr
			return nil
		},
		OnConnection: func(c *WebSocket) {
			if c.raw == nil && !c.secure() {
				t.Error("not by the raw path")
			}
			if c.RemoteAddr() == nil || c.LocalAddr().Network() != "unix" {
				t.Errorf("%v, %v", c.RemoteAddr(), c.LocalAddr())
			}
			echoing(c)
		},
	})
	if err := l.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.Port() != 0 || l.URL() != "" || len(l.Addresses()) > 0 || l.Addr().Network() != "unix" || l.Reachability().Code != "off" {
		t.Errorf("port %d, URL %q, addresses %v, %v, %+v", l.Port(), l.URL(), l.Addresses(), l.Addr(), l.Reachability())
	}
	for _, url := range []string{"ws://localhost/chat", "wss://localhost/chat"} {
		d := trusting()
		d.NetDial = dial
		var all []*WebSocket // they have no address to be counted under
		for range 3 {
			c, err := d.Dial(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
			<-remotes
		}
		c := all[0]
		if url == "ws://localhost/chat" && c.raw == nil {
			t.Error("not dialled by the raw path")
		}
		for _, size := range []int{0, 1, 70_000, 1 << 20} {
			p := bytes.Repeat([]byte{'x'}, size)
			if err := c.Write(t.Context(), Message{Type: Binary, Data: p}); err != nil {
				t.Fatal(err)
			}
			m, err := c.Read(t.Context())
			if err != nil || !bytes.Equal(m.Data, p) {
				t.Fatalf("%d: %d bytes, %v", size, len(m.Data), err)
			}
		}
		for _, c := range all {
			if ev, err := c.CloseWait(t.Context(), StatusNormalClosure, "bye"); err != nil || !ev.WasClean {
				t.Errorf("%+v, %v", ev, err)
			}
		}
	}
	tr := &http.Transport{DialContext: dial}
	defer tr.CloseIdleConnections()
	r, err := (&http.Client{Transport: tr}).Get("http://localhost/page")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if want := `GET localhost /page ""`; string(body) != want {
		t.Errorf("%q, want %q", body, want)
	}
}

// However a Unix socket ends, ours does, on either side, and in time.
func TestUnix_Ends(t *testing.T) {
	const short = 50 * time.Millisecond
	ends := map[string]func(c *WebSocket, peer *net.UnixConn){
		"the peer's end":    func(_ *WebSocket, p *net.UnixConn) { p.CloseWrite() },
		"the peer's Close":  func(_ *WebSocket, p *net.UnixConn) { p.Close() },
		"a reset":           func(c *WebSocket, p *net.UnixConn) { c.SendText("unread"); p.Close() },
		"silence":           func(*WebSocket, *net.UnixConn) {},
		"nothing taken":     func(c *WebSocket, _ *net.UnixConn) { c.SendBinary(make([]byte, 1<<20)) },
		"nothing taken end": func(c *WebSocket, p *net.UnixConn) { c.SendBinary(make([]byte, 1<<20)); p.Close() },
		"Close":             func(c *WebSocket, _ *net.UnixConn) { c.Close() },
		"Abort":             func(c *WebSocket, _ *net.UnixConn) { c.Abort() },
	}
	for name, end := range ends {
		for _, portable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/portable=%v", name, portable), func(t *testing.T) {
				opened := make(chan *WebSocket, 1)
				l, dial := serveUnix(t, ListenConfig{
					PingInterval: short, PongTimeout: short, WriteTimeout: 2 * short, CloseTimeout: short, portable: portable,
					OnConnection: func(c *WebSocket) { opened <- c },
				})
				peer, err := dial(t.Context(), "", "")
				if err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
				knockOn(t, peer, upgrade).wantOpen()
				c := <-opened
				end(c, peer.(*net.UnixConn))
				if ev := waitDone(t, c); ev.WasClean {
					t.Errorf("%+v", ev)
				}
				if left := leftovers(l); left != "" {
					t.Error("the listener still holds " + left)
				}
			})
		}
	}
}

// A dial to a Unix socket on which nobody answers ends in time.
func TestUnix_DialEnds(t *testing.T) {
	path := filepath.Join(unixDir(t), "s")
	silent, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	d := Dialer{HandshakeTimeout: 50 * time.Millisecond, NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	if _, err := d.Dial(t.Context(), "ws://localhost/"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// unixDir is a directory with a short name: that of a Unix socket must be.
func unixDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "peerws")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
