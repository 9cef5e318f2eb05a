package peerws

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/nat"
)

// A program's doors are tested as over the net, with a fake clock.
func TestPipeListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := NewPipeListener()
		l, err := ListenConfig{
			AllowedHosts: []string{"chat.example"},
			Authorize: func(r *http.Request) error {
				if user, err := r.Cookie("user"); err != nil || user.Value == "" {
					return &RejectError{Status: 401, Body: "Who is there."}
				}
				return nil
			},
			OnConnection: func(c *WebSocket) {
				r := c.Request()
				c.SendText(r.Host + r.URL.Path + " " + c.Protocol() + " " + r.Header.Get("Cookie"))
			},
			TLSConfig: serverConfig(),
			NAT:       nat.Static(netip.MustParseAddrPort("203.0.113.7:9000")),
		}.Serve(ln, "v2", "v1")
		if err != nil {
			t.Fatal(err)
		}
		if r := l.Reachability(); r.Code != "off" || l.ReadyState() != ListenerListening {
			t.Errorf("%+v, %v", r, l.ReadyState())
		}
		d := ln.Dialer()
		d.TLSConfig = clientConfig()
		d.Header = http.Header{"Cookie": {"user=ann"}}
		for _, scheme := range []string{"ws", "wss"} {
			c, err := d.Dial(t.Context(), scheme+"://chat.example/rooms/7", "v0", "v1")
			if err != nil {
				t.Fatal(err)
			}
			if m, err := c.Read(t.Context()); err != nil || string(m.Data) != "chat.example/rooms/7 v1 user=ann" {
				t.Errorf("%s: %q, %v", scheme, m.Data, err)
			}
			time.Sleep(time.Hour) // pings
			if c.ReadyState() != Open {
				t.Errorf("%s: %v", scheme, c.ReadyState())
			}
			if c.RemoteAddr().String() != l.Addr().String() {
				t.Errorf("%v, %v", c.RemoteAddr(), l.Addr())
			}
		}
		for _, x := range []struct {
			url, protocol string
			header        http.Header
			status        int
		}{
			{"ws://chat.example/", "v1", nil, 401},
			{"ws://chat.example/", "v3", d.Header, 400},
			{"ws://chat.example/", "v1", http.Header{"Cookie": {"user=ann"}, "Origin": {"http://evil.example"}}, 403},
			{"ws://evil.example/", "v1", http.Header{"Cookie": {"user=ann"}, "Origin": {"http://evil.example"}}, 403},
		} {
			d := d
			d.Header = x.header
			_, err := d.Dial(t.Context(), x.url, x.protocol)
			if h, ok := errors.AsType[*HandshakeError](err); !ok || h.Status != x.status {
				t.Errorf("%s: %v", x.url, err)
			}
		}
		d.Header = http.Header{"Cookie": {"user=bob"}, "Origin": {"http://chat.example"}}
		c, err := d.Dial(t.Context(), "ws://chat.example/")
		if err != nil {
			t.Fatal(err)
		}
		if m, err := c.Read(t.Context()); err != nil || string(m.Data) != "chat.example/  user=bob" {
			t.Errorf("%q, %v", m.Data, err)
		}
		if err := l.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := d.Dial(t.Context(), "ws://chat.example/"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Shutdown: %v", err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
	})
}

// The same in a server of net/http, whose mux chooses.
func TestPipeListener_Handler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, h, err := ListenConfig{OnConnection: func(c *WebSocket) { c.SendText(c.Request().PathValue("room")) }}.Handler()
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.Handle("/rooms/{room}", h)
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page") })
		ln := NewPipeListener()
		s := http.Server{Handler: mux}
		go s.Serve(ln)
		c, err := ln.Dialer().Dial(t.Context(), "ws://chat.example/rooms/7")
		if err != nil {
			t.Fatal(err)
		}
		if m, err := c.Read(t.Context()); err != nil || string(m.Data) != "7" {
			t.Errorf("%q, %v", m.Data, err)
		}
		web := http.Client{Transport: &http.Transport{DialContext: ln.DialContext, DisableKeepAlives: true}}
		r, err := web.Get("http://chat.example/")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != "page" {
			t.Errorf("%q, %v", b, err)
		}
		r.Body.Close()
		if err := l.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-c.Done()
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// Whoever runs the test may have a proxy.
func TestPipeListener_NoProxy(t *testing.T) {
	d := NewPipeListener().Dialer()
	r, _ := http.NewRequest("GET", "http://chat.example/", strings.NewReader(""))
	if u, err := d.Proxy(r); u != nil || err != nil {
		t.Errorf("%v, %v", u, err)
	}
}

func TestPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, d := Pipe(ListenConfig{OnConnection: echoing, MaxMessageSize: 100}, Dialer{})
		d.SendText("hi")
		wantRead(t, d, Text, "hi")
		d.SendBinary(make([]byte, 101))
		if _, err := d.Read(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if ev := waitDone2(d); ev.Code != 1009 {
			t.Errorf("%+v", ev)
		}
		<-a.Done()
		if r := a.Request(); r.Method != "GET" || r.URL.Path != "/" {
			t.Errorf("%+v", r)
		}
	})
}
