package interop

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"
	"github.com/peerws/peerws"
)

// packers are the libraries that compress, each as a client that sends what it is told
// and gives back what comes, and as a server that echoes.
var packers = []struct {
	name   string
	dial   func(ctx context.Context, url string, takeover bool) (echo func(text bool, b []byte) ([]byte, error), err error)
	server func(takeover bool) http.Handler
}{
	{
		"gorilla",
		func(ctx context.Context, url string, _ bool) (func(bool, []byte) ([]byte, error), error) {
			c, _, err := (&gorilla.Dialer{EnableCompression: true}).DialContext(ctx, url, nil)
			if err != nil {
				return nil, err
			}
			return func(text bool, b []byte) ([]byte, error) {
				if err := c.WriteMessage(gorillaType(text), b); err != nil {
					return nil, err
				}
				_, back, err := c.ReadMessage()
				return back, err
			}, nil
		},
		func(bool) http.Handler {
			u := gorilla.Upgrader{EnableCompression: true}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := u.Upgrade(w, r, nil)
				for err == nil {
					var t int
					var b []byte
					if t, b, err = c.ReadMessage(); err == nil {
						err = c.WriteMessage(t, b)
					}
				}
			})
		},
	},
	{
		"coder",
		func(ctx context.Context, url string, takeover bool) (func(bool, []byte) ([]byte, error), error) {
			c, _, err := coder.Dial(ctx, url, &coder.DialOptions{CompressionMode: coderMode(takeover), CompressionThreshold: 1})
			if err != nil {
				return nil, err
			}
			c.SetReadLimit(-1)
			return func(text bool, b []byte) ([]byte, error) {
				if err := c.Write(ctx, coderType(text), b); err != nil {
					return nil, err
				}
				_, back, err := c.Read(ctx)
				return back, err
			}, nil
		},
		func(takeover bool) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := coder.Accept(w, r, &coder.AcceptOptions{CompressionMode: coderMode(takeover), CompressionThreshold: 1})
				if err != nil {
					return
				}
				c.SetReadLimit(-1)
				for err == nil {
					var t coder.MessageType
					var b []byte
					if t, b, err = c.Read(r.Context()); err == nil {
						err = c.Write(r.Context(), t, b)
					}
				}
			})
		},
	},
	{
		"gws",
		func(ctx context.Context, url string, takeover bool) (func(bool, []byte) ([]byte, error), error) {
			h := &gwsPacker{back: make(chan []byte, 1)}
			c, _, err := gws.NewClient(h, &gws.ClientOption{Addr: url, PermessageDeflate: gwsDeflate(takeover), ReadMaxPayloadSize: 64 << 20})
			if err != nil {
				return nil, err
			}
			go c.ReadLoop()
			return func(text bool, b []byte) ([]byte, error) {
				op := gws.OpcodeBinary
				if text {
					op = gws.OpcodeText
				}
				if err := c.WriteMessage(op, b); err != nil {
					return nil, err
				}
				select {
				case back := <-h.back:
					return back, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}, nil
		},
		func(takeover bool) http.Handler {
			u := gws.NewUpgrader(&gwsPacker{}, &gws.ServerOption{PermessageDeflate: gwsDeflate(takeover), ReadMaxPayloadSize: 64 << 20})
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c, err := u.Upgrade(w, r); err == nil {
					c.ReadLoop()
				}
			})
		},
	},
}

func coderMode(takeover bool) coder.CompressionMode {
	if takeover {
		return coder.CompressionContextTakeover
	}
	return coder.CompressionNoContextTakeover
}

func gwsDeflate(takeover bool) gws.PermessageDeflate {
	return gws.PermessageDeflate{Enabled: true, ServerContextTakeover: takeover, ClientContextTakeover: takeover, Threshold: 1}
}

// A gwsPacker passes messages on to back, or echoes them.
type gwsPacker struct {
	gws.BuiltinEventHandler
	back chan []byte
}

func (p *gwsPacker) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	if p.back != nil {
		p.back <- bytes.Clone(m.Bytes())
		return
	}
	c.WriteMessage(m.Opcode, m.Bytes())
}

// TestInteropCompressed has compressed messages go there and back, in both roles, with
// what both sides may agree on.
func TestInteropCompressed(t *testing.T) {
	json := []byte(strings.Repeat(`{"id":12345,"name":"user","tags":["a","b"]},`, 3000))
	ours := []peerws.Compression{{Mode: peerws.CompressionNoContext, Threshold: -1}, {Mode: peerws.CompressionContext}, {Mode: peerws.CompressionContext, WindowBits: 9}}
	for _, p := range packers {
		for _, takeover := range []bool{false, true} {
			for i, c := range ours {
				check := func(t *testing.T, extensions string, echo func(text bool, b []byte) ([]byte, error)) {
					t.Helper()
					if !strings.HasPrefix(extensions, "permessage-deflate") {
						t.Fatalf("extensions %q", extensions)
					}
					for n := range 3 {
						for _, size := range []int{1, 600, 1024, 5000, 70_000, len(json)} {
							back, err := echo(n%2 == 0, json[:size])
							if err != nil || !bytes.Equal(back, json[:size]) {
								t.Fatalf("%d bytes came back as %d, %v (%s)", size, len(back), err, extensions)
							}
						}
					}
				}
				name := p.name + map[bool]string{false: " alone", true: " context"}[takeover] + []string{", alone", ", context", ", window"}[i]
				t.Run("from "+name, func(t *testing.T) {
					extensions := make(chan string, 1)
					l, err := peerws.ListenConfig{Address: "127.0.0.1", Compression: c, OnConnection: func(c *peerws.WebSocket) {
						extensions <- c.Extensions()
						c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) { c.Send(m) })
					}}.Listen(t.Context(), 0)
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					echo, err := p.dial(soon(t), l.URL(), takeover)
					if err != nil {
						t.Fatal(err)
					}
					check(t, <-extensions, echo)
				})
				t.Run("to "+name, func(t *testing.T) {
					s := httptest.NewServer(p.server(takeover))
					defer s.Close()
					c, err := peerws.Dialer{Compression: c}.Dial(soon(t), "ws"+s.URL[len("http"):])
					if err != nil {
						t.Fatal(err)
					}
					defer c.Abort()
					check(t, c.Extensions(), func(text bool, b []byte) ([]byte, error) {
						m := peerws.Message{Type: peerws.Binary, Data: b}
						if text {
							m.Type = peerws.Text
						}
						if err := c.Write(soon(t), m); err != nil {
							return nil, err
						}
						back, err := c.Read(soon(t))
						return back.Data, err
					})
				})
			}
		}
	}
}
