package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/peerws/peerws"
)

// A cell is one way of putting peerws and another library together.
type cell struct {
	library
	role   string // ours: "listener" or "dialler"
	scheme string // "ws" or "wss"
	style  string // of our reading: "OnMessage", "Read" or "NextReader"
}

// forEach runs a test in every cell, in those of the first style only if the
// style makes no difference.
func forEach(t *testing.T, styles bool, test func(t *testing.T, x cell)) {
	for _, l := range libraries {
		for _, role := range []string{"listener", "dialler"} {
			for _, scheme := range []string{"ws", "wss"} {
				for _, style := range []string{"OnMessage", "Read", "NextReader"} {
					if !styles && style != "OnMessage" {
						continue
					}
					name := fmt.Sprintf("%s/%s/%s", l.name, role, scheme)
					if styles {
						name += "/" + style
					}
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						test(t, cell{l, role, scheme, style})
					})
				}
			}
		}
	}
}

// ours is our side of a connection, read in the cell's style.
type ours struct {
	*peerws.WebSocket
	style    string
	messages chan peerws.Message
}

func (o ours) next(t testing.TB) (text bool, data []byte) {
	t.Helper()
	var m peerws.Message
	var err error
	switch o.style {
	case "OnMessage":
		select {
		case m = <-o.messages:
		case <-o.Done():
			ev, _ := o.Wait(t.Context())
			t.Fatal(ev)
		case <-soon(t).Done():
			t.Fatal("nothing came")
		}
	case "Read":
		m, err = o.Read(soon(t))
	default:
		var r io.Reader
		if m.Type, r, err = o.NextReader(soon(t)); err == nil {
			m.Data, err = io.ReadAll(r)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.Type == peerws.Text, m.Data
}

// large is the size for which limits are raised.
const large = 16 << 20

// connect brings both together. theirs, ourOwn are the subprotocols of either.
func (x cell) connect(t testing.TB, limit int, ourOwn, theirs []string) (ours, peer, error) {
	t.Helper()
	o := options{theirs, limit}
	var lc peerws.ListenConfig
	d := peerws.Dialer{TLSConfig: clientTLS()}
	if limit == large {
		lc.MaxMessageSize, d.MaxMessageSize = large, large
	}
	var c *peerws.WebSocket
	var p peer
	if x.role == "listener" {
		l, url := listen(t, x.scheme == "wss", lc, ourOwn...)
		var err error
		if p, err = x.dial(soon(t), url, o); err != nil {
			return ours{}, nil, err
		}
		if c, err = l.Accept(soon(t)); err != nil {
			t.Fatal(err)
		}
	} else {
		accepted := make(chan peer, 1)
		url := serve(t, x.scheme == "wss", x.handler(o, func(p peer) {
			accepted <- p
			<-t.Context().Done()
		}))
		var err error
		c, err = d.Dial(soon(t), url, ourOwn...)
		if err != nil {
			return ours{}, nil, err
		}
		p = take(t, accepted)
	}
	t.Cleanup(func() { c.Abort(); p.abort() })
	our := ours{c, x.style, make(chan peerws.Message, 1)}
	if x.style == "OnMessage" {
		c.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) {
			our.messages <- peerws.Message{Type: m.Type, Data: bytes.Clone(m.Data)}
		})
	}
	return our, p, nil
}

func (x cell) mustConnect(t testing.TB, limit int) (ours, peer) {
	t.Helper()
	o, p, err := x.connect(t, limit, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o, p
}

// echo sends back what comes, in fragments when fragmented is set.
func echo(p peer, fragmented *atomic.Bool) {
	for {
		text, b, err := p.read()
		if err != nil {
			return
		}
		if fragmented.Load() {
			third := len(b) / 3
			err = p.writeFragments(text, [][]byte{b[:third], b[third : 2*third], b[2*third:]})
		} else {
			err = p.write(text, b)
		}
		if err != nil {
			return
		}
	}
}

// payload makes n bytes that differ from place to place. As text they are of
// characters of every length, but for a library that hands over frames and not
// messages: a frame may end inside a character.
func (x cell) payload(text bool, n int) []byte {
	b := make([]byte, 0, n)
	for i := 0; len(b) < n; i++ {
		switch {
		case !text:
			b = append(b, byte(i^i>>8^i>>16))
		case x.assembles && n-len(b) >= 12:
			b = append(b, "aé漢😀"...)
			b = append(b, '0'+byte(i%10), '\n')
		default:
			b = append(b, 'a'+byte(i%23))
		}
	}
	return b
}

func kind(text bool) (string, peerws.MessageType) {
	if text {
		return "text", peerws.Text
	}
	return "binary", peerws.Binary
}

// compare reads the reply to what was sent. A library that hands over frames
// and not messages replies with several.
func compare(t testing.TB, o ours, text bool, want []byte, whole bool) {
	t.Helper()
	gotText, got := o.next(t)
	for !whole && len(got) < len(want) {
		_, b := o.next(t)
		got = append(got, b...)
	}
	if gotText != text || !bytes.Equal(got, want) {
		t.Errorf("sent %d bytes, text %v; came back %d, text %v, equal %v", len(want), text, len(got), gotText, bytes.Equal(got, want))
	}
}

// TestInteropMessages has messages of the sizes where headers change go there and
// come back, then messages in fragments, then pings.
func TestInteropMessages(t *testing.T) {
	forEach(t, true, func(t *testing.T, x cell) {
		o, p := x.mustConnect(t, 1<<20)
		var fragmented atomic.Bool
		go echo(p, &fragmented)

		for _, size := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
			for _, text := range []bool{true, false} {
				name, typ := kind(text)
				t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) {
					b := x.payload(text, size)
					if err := o.Write(soon(t), peerws.Message{Type: typ, Data: b}); err != nil {
						t.Fatal(err)
					}
					compare(t, o, text, b, x.assembles || size <= 65536) // we send larger ones in fragments
				})
			}
		}

		for _, text := range []bool{true, false} {
			name, typ := kind(text)
			b := x.payload(text, 600_000)
			t.Run(name+" in our fragments", func(t *testing.T) {
				w, err := o.NextWriter(soon(t), typ)
				if err != nil {
					t.Fatal(err)
				}
				for piece := range slices.Chunk(b, 99_999) {
					if _, err := w.Write(piece); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				compare(t, o, text, b, x.assembles)
			})
			if x.fragments {
				t.Run(name+" in their fragments", func(t *testing.T) {
					fragmented.Store(true)
					defer fragmented.Store(false)
					if err := o.Write(soon(t), peerws.Message{Type: typ, Data: b}); err != nil {
						t.Fatal(err)
					}
					compare(t, o, text, b, true)
				})
			}
		}

		t.Run("our ping", func(t *testing.T) {
			if rtt, err := o.Ping(soon(t)); err != nil || rtt <= 0 {
				t.Errorf("%v, %v", rtt, err)
			}
		})
		t.Run("their ping", func(t *testing.T) {
			const payload = "are you there?"
			if err := p.ping(payload); err != nil {
				t.Fatal(err)
			}
			if x.tellsPong {
				if got := take(t, p.pongs()); got != payload && x.name != "coder" {
					t.Errorf("the pong has %q", got)
				}
			}
			if err := o.SendText("after it"); err != nil {
				t.Fatal(err)
			}
			compare(t, o, true, []byte("after it"), true)
		})
	})
}

// TestInteropLarge sends 16 MiB there and back, with both sides' limits raised
// to just that.
func TestInteropLarge(t *testing.T) {
	forEach(t, false, func(t *testing.T, x cell) {
		o, p := x.mustConnect(t, large)
		var fragmented atomic.Bool
		go echo(p, &fragmented)
		b := x.payload(false, large)
		if err := o.Write(soon(t), peerws.Message{Type: peerws.Binary, Data: b}); err != nil {
			t.Fatal(err)
		}
		compare(t, o, false, b, x.assembles)
	})
}

// TestInteropClose closes from either side and looks at what each is told.
func TestInteropClose(t *testing.T) {
	closes := []struct {
		name   string
		code   int
		reason string
	}{
		{"1000", 1000, "bye, für heute"},
		{"3000", 3000, "a library's code"},
		{"4999", 4999, ""},
		{"no code", 0, ""},
	}
	forEach(t, true, func(t *testing.T, x cell) {
		for _, c := range closes {
			seen := func(code int) int { // what is seen of a frame with that code
				if code == 0 {
					return 1005
				}
				return code
			}
			t.Run("ours "+c.name, func(t *testing.T) {
				o, p := x.mustConnect(t, 1<<20)
				var err error
				if c.code == 0 {
					err = o.Close()
				} else {
					err = o.CloseWith(peerws.StatusCode(c.code), c.reason)
				}
				if err != nil {
					t.Fatal(err)
				}
				_, _, err = p.read()
				p.abort() // as a program does then; not every library does it by itself
				got, ok := errors.AsType[closed](err)
				if want := (closed{seen(c.code), c.reason}); !ok || x.tellsClose && got != want {
					t.Errorf("they are told %v, want %v", err, want)
				}
				code, reason := c.code, ""
				if x.answers != nil {
					code, reason = x.answers(c.code, c.reason)
				}
				want := peerws.CloseEvent{Code: peerws.StatusCode(seen(code)), Reason: reason, WasClean: true, Initiator: peerws.InitiatorLocal}
				if ev, err := o.Wait(soon(t)); err != nil || ev != want {
					t.Errorf("we are told %+v, %v, want %+v", ev, err, want)
				}
			})
			t.Run("theirs "+c.name, func(t *testing.T) {
				o, p := x.mustConnect(t, 1<<20)
				got := p.close(c.code, c.reason)
				p.abort()
				answer := closed{seen(c.code), c.reason} // echoed
				if x.codeOnly {
					answer.reason = ""
				}
				if x.tellsAnswer && got != answer {
					t.Errorf("they are told %v of our answer", got)
				}
				code, reason := c.code, c.reason
				if x.sends != nil {
					code, reason = x.sends(c.code, c.reason)
				}
				want := peerws.CloseEvent{Code: peerws.StatusCode(seen(code)), Reason: reason, WasClean: true, Initiator: peerws.InitiatorPeer}
				if ev, err := o.Wait(soon(t)); err != nil || ev != want {
					t.Errorf("we are told %+v, %v, want %+v", ev, err, want)
				}
			})
		}
	})
}

// TestInteropProtocols agrees on subprotocols, or does not.
func TestInteropProtocols(t *testing.T) {
	cases := []struct {
		name         string
		ours, theirs []string
		want         string
		fails        bool
	}{
		{"chosen", []string{"chat", "super"}, []string{"other", "chat"}, "chat", false},
		{"none", nil, nil, "", false},
		{"mismatch", []string{"chat"}, []string{"other"}, "", true},
		{"nothing offered", []string{"chat"}, []string{"chat"}, "", false},
	}
	forEach(t, false, func(t *testing.T, x cell) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				fails := c.fails
				if c.name == "nothing offered" {
					if x.role == "listener" {
						c.theirs = nil
					} else {
						c.ours, fails = nil, x.needsOffer
					}
				}
				o, p, err := x.connect(t, 1<<20, c.ours, c.theirs)
				if fails {
					if err == nil {
						t.Errorf("connected, with %q on our side and %q on theirs", o.Protocol(), p.protocol())
					}
					if _, ok := errors.AsType[*peerws.HandshakeError](err); x.role == "dialler" && !ok {
						t.Errorf("%T: %v", err, err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if o.Protocol() != c.want || p.protocol() != c.want {
					t.Errorf("%q on our side, %q on theirs, want %q", o.Protocol(), p.protocol(), c.want)
				}
				if err := o.Write(context.Background(), peerws.Message{Type: peerws.Text, Data: []byte("hi")}); err != nil {
					t.Fatal(err)
				}
				if text, b, err := p.read(); !text || string(b) != "hi" || err != nil {
					t.Errorf("they read %v %q, %v", text, b, err)
				}
			})
		}
	})
}
