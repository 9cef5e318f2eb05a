// Package interop talks to WebSockets that others have written: node's ws and
// undici, Python's websockets, Chromium and Firefox connect to our listener; our
// dialler connects to ws and websockets.
//
// The tests run only with PEERWS_BROWSER=1; then all of these must be there, or
// they fail.
package interop

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// A message is written down as a recipe, so that large ones fit into a command.
// Of a binary one, Unit and Tail are in hexadecimal.
type message struct {
	Text  bool   `json:"text"`
	Unit  string `json:"unit"`
	Times int    `json:"times"`
	Tail  string `json:"tail"`
}

func text(s string) message { return message{Text: true, Tail: s} }

// sized returns a message of so many bytes. Its parts are of a length that has
// nothing to do with that of masks, buffers and frames.
func sized(isText bool, size int) message {
	if isText {
		const unit = "Grüße, 你好 🙂. "
		return message{Text: true, Unit: unit, Times: size / len(unit), Tail: strings.Repeat("x", size%len(unit))}
	}
	unit := make([]byte, 251)
	for i := range unit {
		unit[i] = byte(255 - i*7)
	}
	return message{Unit: hex.EncodeToString(unit), Times: size / len(unit), Tail: hex.EncodeToString(unit[:size%len(unit)])}
}

func (m message) message() peerws.Message {
	if m.Text {
		return peerws.Message{Type: peerws.Text, Data: []byte(strings.Repeat(m.Unit, m.Times) + m.Tail)}
	}
	unit, _ := hex.DecodeString(m.Unit)
	tail, _ := hex.DecodeString(m.Tail)
	return peerws.Message{Type: peerws.Binary, Data: append(bytes.Repeat(unit, m.Times), tail...)}
}

// seen is what a peer tells of a message it has received.
type seen struct {
	Text  bool
	Bytes int
	CRC   uint32
}

func (m message) seen() seen {
	data := m.message().Data
	return seen{m.Text, len(data), crc32.ChecksumIEEE(data)}
}

// A step is what the other side does next. After the last it waits for the end.
type step struct {
	Op      string  `json:"op"`
	Message message `json:"message"`
	Count   int     `json:"count"`
	Size    int     `json:"size"`
	Code    int     `json:"code"`
	Reason  string  `json:"reason"`
	Payload string  `json:"payload"`
}

func send(m message) step { return step{Op: "send", Message: m} }

// receive waits until the other side has received n messages in all.
func receive(n int) step { return step{Op: "receive", Count: n} }

// fragments sends a message in frames of size bytes (characters in Python).
func fragments(m message, size int) step { return step{Op: "fragments", Message: m, Size: size} }

// ping sends a ping and waits for its pong.
func ping(payload string) step { return step{Op: "ping", Payload: payload} }

// end closes; code 0 is none.
func end(code int, reason string) step { return step{Op: "close", Code: code, Reason: reason} }

// A report is what the other side saw.
type report struct {
	Opened     bool
	Order      []string // of the standard's events, repetitions left out
	Messages   []seen
	Pongs      []string
	Close      *closing
	Late       bool
	Protocol   string
	Extensions string
}

type closing struct {
	Code   int
	Reason string
	Clean  bool
}

// What not every WebSocket offers a program.
const (
	canPing      = 1 << iota
	canFragment  // send a message in frames of its choice
	canCloseBare // close without a code
	canBeStrict  // fail if none of the offered subprotocols was chosen (Firefox and Python open)
	canKeepBOM   // leave U+FEFF at the start of a text (undici 6 drops it)
	canTellEnd   // fire the standard's two events if the handshake was refused (undici 6 leaves out close)
)

// An exchange is one conversation and what both sides must make of it.
type exchange struct {
	name  string
	needs int // what the other side must be able to do

	// Who listens: us only, them only; both unless one is set.
	onlyListener, onlyDialler bool

	offer, speak []string // subprotocols of the dialling and the accepting side
	max          int64    // our MaxMessageSize, 0: enough for everything

	theirs []step
	ours   func(ctx context.Context, s *session) error // nil: echo

	refused  bool // the opening handshake must fail
	protocol string
	messages []message // what they must receive
	pongs    []string
	closing  closing // what they must report
	event    peerws.CloseEvent
	limit    bool // event.Err must be a *LimitError
	packed   bool // both sides agree on compression
}

// A session is our side of an exchange.
type session struct {
	*peerws.WebSocket
	listener *peerws.WebSocketListener // nil if we have dialled
}

func echo(_ context.Context, s *session) error {
	s.OnMessage(func(c *peerws.WebSocket, m peerws.Message) {
		c.Write(context.Background(), m) // an error means that the peer is gone: the event tells
	})
	return nil
}

// exchanges is the table that every side goes through.
func exchanges() (all []exchange) {
	byThem := func(code peerws.StatusCode, reason string) peerws.CloseEvent {
		return peerws.CloseEvent{Code: code, Reason: reason, WasClean: true, Initiator: peerws.InitiatorPeer}
	}
	byUs := func(code peerws.StatusCode) peerws.CloseEvent {
		return peerws.CloseEvent{Code: code, WasClean: true, Initiator: peerws.InitiatorLocal}
	}
	done := end(1000, "")
	add := func(x exchange) {
		if x.event == (peerws.CloseEvent{}) {
			x.event = byThem(1000, "")
		}
		if x.closing == (closing{}) {
			x.closing = closing{Code: 1000, Clean: true}
		}
		all = append(all, x)
	}

	// Messages of them, and back.
	for _, isText := range []bool{true, false} {
		for _, size := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20, 16 << 20} {
			m := sized(isText, size)
			add(exchange{
				name:     fmt.Sprintf("echo/%s/%d", m.message().Type, size),
				theirs:   []step{send(m), receive(1), done},
				messages: []message{m},
			})
		}
		m := sized(isText, 3_000_001)
		add(exchange{
			name:     "echo/streamed/" + m.message().Type.String(),
			theirs:   []step{send(m), receive(1), send(m), receive(2), done},
			ours:     streams,
			messages: []message{m, m},
		})
		add(exchange{
			name:     "fragments of them/" + m.message().Type.String(),
			needs:    canFragment,
			theirs:   []step{fragments(sized(isText, 1000), 7), fragments(m, 65536), receive(2), done},
			messages: []message{sized(isText, 1000), m},
		})
		// The pieces end inside characters.
		add(exchange{
			name:     "fragments of us/" + m.message().Type.String(),
			theirs:   []step{receive(1), done},
			ours:     func(ctx context.Context, s *session) error { return inPieces(ctx, s, m, 1009) },
			messages: []message{m},
		})
	}
	strange := []message{
		text("\x00 and \x7f and \u0080"),
		text("\u07ff\u0800\ud7ff\ue000\ufffd\uffff"),
		text("\U00010000\U0010ffff"),
		text("e\u0301 \u202eright to left\u2028\r\n"),
	}
	x := exchange{name: "strange text", messages: strange}
	for _, m := range strange {
		x.theirs = append(x.theirs, send(m))
	}
	x.theirs = append(x.theirs, receive(len(strange)), done)
	add(x)
	mark := text("\ufeffwith a byte order mark")
	add(exchange{
		name:     "byte order mark",
		needs:    canKeepBOM,
		theirs:   []step{send(mark), receive(1), done},
		messages: []message{mark},
	})

	// Order.
	const many = 1000
	var line []message
	x = exchange{name: "many of them"}
	for i := range many {
		m := text(fmt.Sprint("message ", i))
		if i%10 == 9 {
			m = sized(i%20 == 9, i*7)
		}
		line = append(line, m)
		x.theirs = append(x.theirs, send(m))
	}
	x.theirs = append(x.theirs, receive(many), done)
	x.messages = line
	add(x)
	add(exchange{
		name:     "many of us",
		theirs:   []step{receive(many), done},
		messages: line,
		ours: func(ctx context.Context, s *session) error {
			for _, m := range line {
				if err := s.Write(ctx, m.message()); err != nil {
					return err
				}
			}
			return echo(ctx, s)
		},
	})

	// Pings.
	add(exchange{
		name: "pings of us",
		ours: func(ctx context.Context, s *session) error {
			echo(ctx, s)
			for range 3 {
				if rtt, err := s.Ping(ctx); err != nil || rtt <= 0 {
					return fmt.Errorf("ping: %v, %w", rtt, err)
				}
			}
			return s.CloseWith(1000, "")
		},
		event: byUs(1000),
	})
	pings := []string{"", "hällo", strings.Repeat("p", 125)}
	add(exchange{
		name:     "pings of them",
		needs:    canPing,
		theirs:   []step{ping(pings[0]), send(text("between")), ping(pings[1]), ping(pings[2]), receive(1), done},
		messages: []message{text("between")},
		pongs:    pings,
	})

	// Closing.
	longest := strings.Repeat("ü", 61) + "x"
	for _, c := range []struct {
		code   int
		reason string
	}{{1000, ""}, {1000, "done"}, {3000, "lunch"}, {4999, longest}, {0, ""}, {1001, "bye"}, {1008, ""}, {1011, ""}, {1012, ""}, {1013, longest}} {
		seen := closing{c.code, c.reason, true}
		if c.code == 0 {
			seen.Code = 1005
		}
		private := c.code >= 1001 && c.code < 3000
		name := fmt.Sprintf("%d/%d bytes", seen.Code, len(c.reason))
		add(exchange{
			name:         "close of us/" + name,
			onlyListener: private,
			ours: func(ctx context.Context, s *session) error {
				return s.CloseWith(peerws.StatusCode(c.code), c.reason)
			},
			closing: seen,
			event:   byUs(peerws.StatusCode(seen.Code)),
		})
		x := exchange{
			name:        "close of them/" + name,
			onlyDialler: private,
			theirs:      []step{end(c.code, c.reason)},
			closing:     closing{seen.Code, c.reason, true},
			event:       byThem(peerws.StatusCode(seen.Code), c.reason),
		}
		if c.code == 0 {
			x.needs = canCloseBare
		}
		add(x)
	}
	last := sized(true, 200_000)
	add(exchange{
		name:     "close of us/behind a message",
		ours:     func(ctx context.Context, s *session) error { s.Send(last.message()); return s.CloseWith(3001, "") },
		messages: []message{last},
		closing:  closing{3001, "", true},
		event:    byUs(3001),
	})
	add(exchange{
		name:   "close of them/behind a message",
		theirs: []step{send(last), send(text("last")), end(3002, "")},
		ours: func(ctx context.Context, s *session) error {
			var got []seen
			for m, err := range s.Messages(ctx) {
				if err != nil {
					// Only 1000, 1001 and no code end the iterator without one.
					if e, ok := errors.AsType[peerws.CloseEvent](err); !ok || e.Code != 3002 {
						return err
					}
					break
				}
				got = append(got, seen{m.Type == peerws.Text, len(m.Data), crc32.ChecksumIEEE(m.Data)})
			}
			if len(got) != 2 || got[0] != last.seen() || got[1] != text("last").seen() {
				return fmt.Errorf("received %v", got)
			}
			return nil
		},
		closing: closing{3002, "", true},
		event:   byThem(3002, ""),
	})
	add(exchange{
		name:         "shutdown",
		onlyListener: true,
		ours:         func(ctx context.Context, s *session) error { return s.listener.Shutdown(ctx) },
		closing:      closing{1001, "", true},
		event:        byUs(1001),
	})
	add(exchange{
		name:    "too large",
		max:     1 << 16,
		theirs:  []step{send(sized(false, 1<<16+1))},
		closing: closing{1009, "over the limit", true},
		// Whom we have failed, his answer is not waited for.
		event: peerws.CloseEvent{Code: 1006, Initiator: peerws.InitiatorLimit},
		limit: true,
	})

	// Subprotocols.
	add(exchange{
		name:     "subprotocol/one of two",
		offer:    []string{"chat.v2", "chat.v1"},
		speak:    []string{"chat.v1"},
		theirs:   []step{done},
		protocol: "chat.v1",
	})
	add(exchange{
		name:         "subprotocol/listener prefers",
		onlyListener: true, // the others' preference is theirs
		offer:        []string{"chat.v1", "chat.v2"},
		speak:        []string{"chat.v2", "chat.v1"},
		theirs:       []step{done},
		protocol:     "chat.v2",
	})
	add(exchange{
		name:         "subprotocol/none offered",
		onlyListener: true, // some listeners refuse that
		speak:        []string{"chat"},
		theirs:       []step{done},
	})
	add(exchange{name: "subprotocol/no common one", offer: []string{"chat"}, speak: []string{"game"}, refused: true})
	add(exchange{name: "subprotocol/none spoken", onlyDialler: true, offer: []string{"chat"}, refused: true})
	add(exchange{name: "subprotocol/none spoken by us", onlyListener: true, needs: canBeStrict, offer: []string{"chat"}, refused: true})
	return all
}

// streams echoes by NextReader and NextWriter.
func streams(ctx context.Context, s *session) error {
	for {
		typ, r, err := s.NextReader(ctx)
		if e, ok := errors.AsType[peerws.CloseEvent](err); ok && e.Code == 1000 {
			return nil
		}
		if err != nil {
			return err
		}
		w, err := s.NextWriter(ctx, typ)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
	}
}

// inPieces sends a message by Writes of n bytes.
func inPieces(ctx context.Context, s *session, m message, n int) error {
	msg := m.message()
	w, err := s.NextWriter(ctx, msg.Type)
	if err != nil {
		return err
	}
	for data := msg.Data; len(data) > 0; data = data[min(n, len(data)):] {
		if _, err := w.Write(data[:min(n, len(data))]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return echo(ctx, s)
}

// largest is more than any exchange sends.
const largest = 32 << 20

// most is how long one exchange may take.
const most = 30 * time.Second

// A peer is somebody else's WebSocket.
type peer interface {
	can() int
	dial(url string, offer []string, steps []step) (report, error)
}

// A server is one that listens too. Each listen is for one connection, accepted
// waits for its end.
type server interface {
	peer
	listen(speak []string, steps []step, tls bool) (port int, err error)
	accepted() (report, error)
}

// connects has p dial our listener, for each exchange.
func connects(t *testing.T, p peer, scheme string, config peerws.ListenConfig) {
	for _, x := range exchanges() {
		if x.onlyDialler || x.needs&^p.can() != 0 {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), most)
			defer cancel()
			config := config
			x.packed = config.Compression.Mode != peerws.CompressionOff
			config.Address = "127.0.0.1"
			config.MaxMessageSize = largest
			if x.max != 0 {
				config.MaxMessageSize = x.max
			}
			l, err := config.Listen(ctx, 0, x.speak...)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Shutdown(ctx)

			ours := make(chan error, 1)
			go func() {
				c, err := l.Accept(ctx)
				if err != nil {
					ours <- err
					return
				}
				ours <- x.play(ctx, &session{c, l})
			}()
			r, err := p.dial(fmt.Sprintf("%s://127.0.0.1:%d/chat?x=1", scheme, l.Port()), x.offer, x.theirs)
			if err != nil {
				t.Fatal(err)
			}
			if x.refused {
				if r.Opened {
					t.Error("it opened")
				}
				if p.can()&canTellEnd != 0 {
					if got := strings.Join(r.Order, " "); got != "error close" || *r.Close != (closing{1006, "", false}) {
						t.Errorf("events %s, %+v", got, r.Close)
					}
				}
				return
			}
			x.check(t, r)
			if err := <-ours; err != nil {
				t.Error(err)
			}
		})
	}
}

// listens has our dialler connect to s, for each exchange.
func listens(t *testing.T, s server, scheme string, d peerws.Dialer) {
	for _, x := range exchanges() {
		if x.onlyListener || x.needs&^s.can() != 0 {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), most)
			defer cancel()
			d := d
			x.packed = d.Compression.Mode != peerws.CompressionOff
			d.MaxMessageSize = largest
			if x.max != 0 {
				d.MaxMessageSize = x.max
			}
			port, err := s.listen(x.speak, x.theirs, scheme == "wss")
			if err != nil {
				t.Fatal(err)
			}
			c, err := d.Dial(ctx, fmt.Sprintf("%s://127.0.0.1:%d/chat?x=1", scheme, port), x.offer...)
			if x.refused {
				if e, ok := errors.AsType[*peerws.HandshakeError](err); !ok {
					t.Fatalf("Dial: %v, want a *HandshakeError", err)
				} else {
					t.Log(e)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Abort()
			ours := x.play(ctx, &session{c, nil})
			r, err := s.accepted()
			if err != nil {
				t.Fatal(err)
			}
			x.check(t, r)
			if ours != nil {
				t.Error(ours)
			}
		})
	}
}

// play does our part and says what was wrong with it.
func (x *exchange) play(ctx context.Context, s *session) error {
	var failed error
	s.OnError(func(_ *peerws.WebSocket, err error) { failed = err }) // before Done is closed
	ours := x.ours
	if ours == nil {
		ours = echo
	}
	err := ours(ctx, s)
	if err != nil {
		s.Abort()
	}
	got, werr := s.Wait(ctx)
	if err = errors.Join(err, werr); err != nil {
		return fmt.Errorf("our side: %w (%+v)", err, got)
	}
	<-s.Done()
	want := x.event
	if want.Initiator == peerws.InitiatorLocal && got.Reason == x.closing.Reason {
		// §7.1.1 leaves open whether the echo of a Close frame has its reason.
		want.Reason = got.Reason
	}
	switch _, over := errors.AsType[*peerws.LimitError](got.Err); {
	case got.Code != want.Code || got.Reason != want.Reason || got.WasClean != want.WasClean || got.Initiator != want.Initiator:
		return fmt.Errorf("our event: %+v, want %+v", got, want)
	case over != x.limit || (failed != nil) != x.limit:
		return fmt.Errorf("our error: %v, OnError %v", got.Err, failed)
	case s.Protocol() != x.protocol || !x.extended(s.Extensions()):
		return fmt.Errorf("agreed on subprotocol %q, extensions %q", s.Protocol(), s.Extensions())
	}
	return nil
}

// extended reports whether a side has agreed on what it should.
func (x *exchange) extended(extensions string) bool {
	return strings.HasPrefix(extensions, "permessage-deflate") == x.packed
}

// compressions are the ways to compress that each library and browser is tried with.
var compressions = map[string]peerws.Compression{
	"deflate":         {Mode: peerws.CompressionNoContext, Threshold: -1},
	"deflate context": {Mode: peerws.CompressionContext},
	"deflate window":  {Mode: peerws.CompressionContext, WindowBits: 9},
}

// check compares the other side's report with what must be.
func (x *exchange) check(t *testing.T, r report) {
	t.Helper()
	if !r.Opened || r.Late || r.Close == nil {
		t.Fatalf("their side did not come to an end: opened %v, closed %v, late %v, %d messages", r.Opened, r.Close, r.Late, len(r.Messages))
	}
	if r.Protocol != x.protocol || !x.extended(r.Extensions) {
		t.Errorf("their side agreed on subprotocol %q, extensions %q, want %q", r.Protocol, r.Extensions, x.protocol)
	}
	if len(r.Messages) != len(x.messages) {
		t.Errorf("they received %d messages, want %d", len(r.Messages), len(x.messages))
	}
	for i, m := range x.messages[:min(len(x.messages), len(r.Messages))] {
		if got, want := r.Messages[i], m.seen(); got != want {
			t.Fatalf("they received as message %d %+v, want %+v", i, got, want)
		}
	}
	if fmt.Sprintf("%q", r.Pongs) != fmt.Sprintf("%q", x.pongs) {
		t.Errorf("they received pongs %q, want %q", r.Pongs, x.pongs)
	}
	got := *r.Close
	if x.limit {
		// §7.1.7: whom we fail we do not wait for. Whether our end of the transport
		// is ahead of his answer, which Firefox calls unclean, is chance.
		got.Clean = x.closing.Clean
	}
	if got != x.closing {
		t.Errorf("their event: %+v, want %+v", got, x.closing)
	}
}
