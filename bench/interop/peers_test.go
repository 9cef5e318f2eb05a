package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	coder "github.com/coder/websocket"
	gobwas "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"
	xnet "golang.org/x/net/websocket"
)

// A peer is one connection of another library, seen through what all of them
// can do. read and close may not be called at the same time.
type peer interface {
	protocol() string

	// read waits for the next message, and answers pings meanwhile. After a
	// Close frame it returns a closed.
	read() (text bool, data []byte, err error)
	write(text bool, data []byte) error

	// writeFragments writes one message, in a frame for each part where the
	// program can choose that.
	writeFragments(text bool, parts [][]byte) error

	// ping sends a ping, and pongs has the payloads of the pongs that came.
	ping(payload string) error
	pongs() <-chan string

	// close sends a Close frame, without a code if that is 0, and returns what
	// the library tells of the answer.
	close(code int, reason string) closed
	abort()
}

// closed is what a library tells of a Close frame it received. code is 1005 if
// the frame had none, 0 if the library does not tell.
type closed struct {
	code   int
	reason string
}

func (e closed) Error() string { return fmt.Sprintf("closed with %d %q", e.code, e.reason) }

var errCannot = errors.New("the library cannot do that")

// options are what a test wants of a connection.
type options struct {
	protocols []string
	limit     int // of a message, on both sides
}

// A library is one that peerws talks to.
type library struct {
	name string

	// dial connects to a listener of ours.
	dial func(ctx context.Context, url string, o options) (peer, error)

	// handler is a server of the library. It calls accept for every connection;
	// when that returns the connection is no longer needed.
	handler func(o options, accept func(peer)) http.Handler

	// sends is what goes out when a program closes with a code and a reason, and
	// answers what the library replies when they come in. nil: just that, and
	// the code alone.
	sends, answers func(code int, reason string) (int, string)

	tellsAnswer bool // close reports the answer to it
	codeOnly    bool // and of that only the code
	tellsClose  bool // read reports what came
	assembles   bool // a fragmented message is read as one
	fragments   bool // writeFragments works
	tellsPong   bool
	needsOffer  bool // a server with protocols refuses a client that offers none
}

var libraries = []library{
	{
		name: "gorilla",
		dial: func(ctx context.Context, url string, o options) (peer, error) {
			d := gorilla.Dialer{TLSClientConfig: clientTLS(), Subprotocols: o.protocols}
			// Its client cuts every message into fragments of this size, 4 KiB if
			// none is set: 16 MiB would be more than our MaxFragments allows.
			d.WriteBufferSize = o.limit >> 8
			c, _, err := d.DialContext(ctx, url, nil)
			if err != nil {
				return nil, err
			}
			return newGorilla(c, o), nil
		},
		handler: func(o options, accept func(peer)) http.Handler {
			u := gorilla.Upgrader{Subprotocols: o.protocols}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c, err := u.Upgrade(w, r, nil); err == nil {
					accept(newGorilla(c, o))
				}
			})
		},
		tellsAnswer: true, tellsClose: true, assembles: true, fragments: true, tellsPong: true,
	},
	{
		name: "coder",
		dial: func(ctx context.Context, url string, o options) (peer, error) {
			p := &coderPeer{pong: make(chan string, 8)}
			c, _, err := coder.Dial(ctx, url, &coder.DialOptions{
				HTTPClient:     &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS()}},
				Subprotocols:   o.protocols,
				OnPongReceived: p.onPong,
			})
			if err != nil {
				return nil, err
			}
			return p.on(c, o), nil
		},
		handler: func(o options, accept func(peer)) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				p := &coderPeer{pong: make(chan string, 8)}
				c, err := coder.Accept(w, r, &coder.AcceptOptions{Subprotocols: o.protocols, OnPongReceived: p.onPong})
				if err == nil {
					accept(p.on(c, o))
				}
			})
		},
		answers:     func(code int, reason string) (int, string) { return code, reason },
		tellsAnswer: true, codeOnly: true, tellsClose: true, assembles: true, fragments: true, tellsPong: true,
	},
	{
		name: "gws",
		dial: func(ctx context.Context, url string, o options) (peer, error) {
			p := newGWS()
			h := http.Header{}
			if len(o.protocols) > 0 { // it looks at the first line only
				h.Set("Sec-WebSocket-Protocol", strings.Join(o.protocols, ", "))
			}
			c, _, err := gws.NewClient(p, &gws.ClientOption{Addr: url, TlsConfig: clientTLS(), RequestHeader: h, ReadMaxPayloadSize: o.limit, CheckUtf8Enabled: true})
			if err != nil {
				return nil, err
			}
			p.c = c
			go c.ReadLoop()
			return p, nil
		},
		handler: func(o options, accept func(peer)) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				p := newGWS()
				u := gws.NewUpgrader(p, &gws.ServerOption{SubProtocols: o.protocols, ReadMaxPayloadSize: o.limit, CheckUtf8Enabled: true})
				c, err := u.Upgrade(w, r)
				if err != nil {
					return
				}
				p.c = c
				go c.ReadLoop()
				accept(p)
			})
		},
		// It has no Close frame without a code.
		sends:      func(code int, reason string) (int, string) { return max(code, 1000), reason },
		tellsClose: true, assembles: true, fragments: true, tellsPong: true, needsOffer: true,
	},
	{
		name: "gobwas",
		dial: func(ctx context.Context, url string, o options) (peer, error) {
			d := gobwas.Dialer{TLSConfig: clientTLS(), Protocols: o.protocols}
			c, br, hs, err := d.Dial(ctx, url)
			if err != nil {
				return nil, err
			}
			var r io.Reader = c
			if br != nil {
				r = br
			}
			return newGobwas(c, r, gobwas.StateClientSide, hs, o), nil
		},
		handler: func(o options, accept func(peer)) http.Handler {
			var u gobwas.HTTPUpgrader
			u.Protocol = func(offered string) bool {
				return slices.Contains(o.protocols, offered)
			}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c, rw, hs, err := u.Upgrade(r, w); err == nil {
					accept(newGobwas(c, rw, gobwas.StateServerSide, hs, o))
				}
			})
		},
		tellsAnswer: true, tellsClose: true, assembles: true, fragments: true, tellsPong: true,
	},
	{
		name: "x/net",
		dial: func(ctx context.Context, url string, o options) (peer, error) {
			// The origin is the listener's own, which is what its pages would send.
			config, err := xnet.NewConfig(url, "http"+url[len("ws"):len(url)-1])
			if err != nil {
				return nil, err
			}
			config.TlsConfig, config.Protocol = clientTLS(), o.protocols
			c, err := config.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			chosen := ""
			if len(o.protocols) > 0 {
				chosen = config.Protocol[0]
			}
			return newXNet(c, chosen, o), nil
		},
		handler: func(o options, accept func(peer)) http.Handler {
			return xnet.Server{
				Handshake: func(config *xnet.Config, r *http.Request) error {
					offered := config.Protocol
					config.Protocol = nil
					for _, protocol := range o.protocols {
						for _, p := range offered {
							if p == protocol && config.Protocol == nil {
								config.Protocol = []string{p}
							}
						}
					}
					return nil
				},
				Handler: func(c *xnet.Conn) {
					chosen := ""
					if p := c.Config().Protocol; len(p) > 0 {
						chosen = p[0]
					}
					accept(newXNet(c, chosen, o))
				},
			}
		},
		// It closes with 1000 and no reason, whatever came or is wanted.
		sends:   func(int, string) (int, string) { return 1000, "" },
		answers: func(int, string) (int, string) { return 1000, "" },
	},
}

type gorillaPeer struct {
	c    *gorilla.Conn
	pong chan string
}

func newGorilla(c *gorilla.Conn, o options) peer {
	p := &gorillaPeer{c, make(chan string, 8)}
	c.SetReadLimit(int64(o.limit))
	c.SetPongHandler(func(s string) error { p.pong <- s; return nil })
	return p
}

func gorillaType(text bool) int {
	if text {
		return gorilla.TextMessage
	}
	return gorilla.BinaryMessage
}

func (p *gorillaPeer) protocol() string { return p.c.Subprotocol() }

func (p *gorillaPeer) read() (bool, []byte, error) {
	t, b, err := p.c.ReadMessage()
	if e, ok := errors.AsType[*gorilla.CloseError](err); ok {
		err = closed{e.Code, e.Text}
	}
	return t == gorilla.TextMessage, b, err
}

func (p *gorillaPeer) write(text bool, b []byte) error {
	return p.c.WriteMessage(gorillaType(text), b)
}

// writeFragments relies on the write buffer: a frame ends when its 4 KiB are full.
func (p *gorillaPeer) writeFragments(text bool, parts [][]byte) error {
	w, err := p.c.NextWriter(gorillaType(text))
	if err != nil {
		return err
	}
	for _, b := range parts {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Close()
}

func (p *gorillaPeer) ping(payload string) error {
	return p.c.WriteControl(gorilla.PingMessage, []byte(payload), time.Now().Add(patience))
}

func (p *gorillaPeer) pongs() <-chan string { return p.pong }

func (p *gorillaPeer) close(code int, reason string) closed {
	var b []byte
	if code != 0 {
		b = gorilla.FormatCloseMessage(code, reason)
	}
	p.c.WriteControl(gorilla.CloseMessage, b, time.Now().Add(patience))
	_, _, err := p.read()
	e, _ := errors.AsType[closed](err)
	return e
}

func (p *gorillaPeer) abort() { p.c.Close() }

type coderPeer struct {
	c    *coder.Conn
	pong chan string
}

func (p *coderPeer) on(c *coder.Conn, o options) peer {
	p.c = c
	c.SetReadLimit(int64(o.limit))
	return p
}

func (p *coderPeer) onPong(_ context.Context, b []byte) { p.pong <- string(b) }

func coderType(text bool) coder.MessageType {
	if text {
		return coder.MessageText
	}
	return coder.MessageBinary
}

func (p *coderPeer) protocol() string { return p.c.Subprotocol() }

func (p *coderPeer) read() (bool, []byte, error) {
	t, b, err := p.c.Read(context.Background())
	if e, ok := errors.AsType[coder.CloseError](err); ok {
		err = closed{int(e.Code), e.Reason}
	}
	return t == coder.MessageText, b, err
}

func (p *coderPeer) write(text bool, b []byte) error {
	return p.c.Write(context.Background(), coderType(text), b)
}

func (p *coderPeer) writeFragments(text bool, parts [][]byte) error {
	w, err := p.c.Writer(context.Background(), coderType(text))
	if err != nil {
		return err
	}
	for _, b := range parts {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Close()
}

// ping waits for the pong, whose payload is a number of the library's own
// choice.
func (p *coderPeer) ping(string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.c.Ping(ctx)
}

func (p *coderPeer) pongs() <-chan string { return p.pong }

// close succeeds only if the answer has the same code.
func (p *coderPeer) close(code int, reason string) closed {
	if code == 0 {
		code = int(coder.StatusNoStatusRcvd)
	}
	if p.c.Close(coder.StatusCode(code), reason) != nil {
		return closed{}
	}
	return closed{code, ""}
}

func (p *coderPeer) abort() { p.c.CloseNow() }

type gwsMessage struct {
	text bool
	data []byte
}

type gwsPeer struct {
	gws.BuiltinEventHandler
	c        *gws.Conn
	messages chan gwsMessage
	ended    chan error
	pong     chan string
}

func newGWS() *gwsPeer {
	return &gwsPeer{messages: make(chan gwsMessage, 8), ended: make(chan error, 1), pong: make(chan string, 8)}
}

func (p *gwsPeer) OnPing(c *gws.Conn, b []byte) { c.WritePong(b) }
func (p *gwsPeer) OnPong(_ *gws.Conn, b []byte) { p.pong <- string(b) }
func (p *gwsPeer) OnClose(_ *gws.Conn, err error) {
	if e, ok := errors.AsType[*gws.CloseError](err); ok {
		code := int(e.Code)
		if code == 0 {
			code = 1005
		}
		err = closed{code, string(e.Reason)}
	}
	p.ended <- err
}

func (p *gwsPeer) OnMessage(_ *gws.Conn, m *gws.Message) {
	defer m.Close()
	p.messages <- gwsMessage{m.Opcode == gws.OpcodeText, bytes.Clone(m.Bytes())}
}

func gwsType(text bool) gws.Opcode {
	if text {
		return gws.OpcodeText
	}
	return gws.OpcodeBinary
}

func (p *gwsPeer) protocol() string { return p.c.SubProtocol() }

func (p *gwsPeer) read() (bool, []byte, error) {
	select {
	case m := <-p.messages:
		return m.text, m.data, nil
	case err := <-p.ended:
		return false, nil, err
	}
}

func (p *gwsPeer) write(text bool, b []byte) error { return p.c.WriteMessage(gwsType(text), b) }

// writeFragments gives a frame 128 KiB, whatever the parts are.
func (p *gwsPeer) writeFragments(text bool, parts [][]byte) error {
	return p.c.WriteFile(gwsType(text), bytes.NewReader(bytes.Join(parts, nil)))
}

func (p *gwsPeer) ping(payload string) error { return p.c.WritePing([]byte(payload)) }
func (p *gwsPeer) pongs() <-chan string      { return p.pong }

// close ends the transport too, without waiting for an answer.
func (p *gwsPeer) close(code int, reason string) closed {
	p.c.WriteClose(uint16(code), []byte(reason))
	return closed{}
}

func (p *gwsPeer) abort() { p.c.NetConn().Close() }

type gobwasPeer struct {
	c     net.Conn
	r     *wsutil.Reader
	state gobwas.State
	hs    gobwas.Handshake
	reply wsutil.FrameHandlerFunc
	pong  chan string
}

func newGobwas(c net.Conn, r io.Reader, s gobwas.State, hs gobwas.Handshake, o options) peer {
	p := &gobwasPeer{c: c, state: s, hs: hs, reply: wsutil.ControlFrameHandler(c, s), pong: make(chan string, 8)}
	p.r = &wsutil.Reader{Source: r, State: s, CheckUTF8: true, MaxMessageSize: int64(o.limit), OnIntermediate: p.control}
	return p
}

func (p *gobwasPeer) control(h gobwas.Header, r io.Reader) error {
	if h.OpCode != gobwas.OpPong {
		return p.reply(h, r)
	}
	b, err := io.ReadAll(r)
	p.pong <- string(b)
	return err
}

func gobwasType(text bool) gobwas.OpCode {
	if text {
		return gobwas.OpText
	}
	return gobwas.OpBinary
}

func (p *gobwasPeer) protocol() string { return p.hs.Protocol }

func (p *gobwasPeer) read() (bool, []byte, error) {
	for {
		h, err := p.r.NextFrame()
		if err != nil {
			return false, nil, err
		}
		if h.OpCode.IsControl() {
			if err := p.control(h, p.r); err != nil {
				if e, ok := errors.AsType[wsutil.ClosedError](err); ok {
					err = closed{int(e.Code), e.Reason}
				}
				return false, nil, err
			}
			continue
		}
		b, err := io.ReadAll(p.r)
		return h.OpCode == gobwas.OpText, b, err
	}
}

func (p *gobwasPeer) write(text bool, b []byte) error {
	return wsutil.WriteMessage(p.c, p.state, gobwasType(text), bytes.Clone(b))
}

func (p *gobwasPeer) writeFragments(text bool, parts [][]byte) error {
	w := wsutil.NewWriter(p.c, p.state, gobwasType(text))
	for _, b := range parts {
		if _, err := w.Write(b); err != nil {
			return err
		}
		if err := w.FlushFragment(); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (p *gobwasPeer) frame(f gobwas.Frame) error {
	if p.state.ClientSide() {
		f = gobwas.MaskFrame(f)
	}
	return gobwas.WriteFrame(p.c, f)
}

func (p *gobwasPeer) ping(payload string) error { return p.frame(gobwas.NewPingFrame([]byte(payload))) }
func (p *gobwasPeer) pongs() <-chan string      { return p.pong }

func (p *gobwasPeer) close(code int, reason string) closed {
	var b []byte
	if code != 0 {
		b = gobwas.NewCloseFrameBody(gobwas.StatusCode(code), reason)
	}
	p.frame(gobwas.NewCloseFrame(b))
	_, _, err := p.read()
	e, _ := errors.AsType[closed](err)
	return e
}

func (p *gobwasPeer) abort() { p.c.Close() }

type xnetPeer struct {
	c      *xnet.Conn
	chosen string
}

func newXNet(c *xnet.Conn, chosen string, o options) peer {
	c.MaxPayloadBytes = o.limit
	return &xnetPeer{c, chosen}
}

// xnetCodec keeps what kind of frame it was.
var xnetCodec = xnet.Codec{
	Unmarshal: func(data []byte, payloadType byte, v any) error {
		*v.(*gwsMessage) = gwsMessage{payloadType == xnet.TextFrame, data}
		return nil
	},
}

func (p *xnetPeer) protocol() string { return p.chosen }

// read closes after a Close frame, because the library does not answer it.
func (p *xnetPeer) read() (bool, []byte, error) {
	var m gwsMessage
	err := xnetCodec.Receive(p.c, &m)
	if err == io.EOF {
		p.c.Close()
		err = closed{}
	}
	return m.text, m.data, err
}

func (p *xnetPeer) write(text bool, b []byte) error {
	if text {
		return xnet.Message.Send(p.c, string(b))
	}
	return xnet.Message.Send(p.c, b)
}

func (p *xnetPeer) writeFragments(bool, [][]byte) error { return errCannot }

func (p *xnetPeer) ping(payload string) error {
	p.c.PayloadType = xnet.PingFrame // of Write's frames
	_, err := p.c.Write([]byte(payload))
	return err
}

func (p *xnetPeer) pongs() <-chan string { return nil }

func (p *xnetPeer) close(int, string) closed {
	p.c.Close()
	return closed{}
}

func (p *xnetPeer) abort() { p.c.SetDeadline(time.Unix(1, 0)); p.c.Close() }
