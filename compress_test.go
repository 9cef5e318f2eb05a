package peerws

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// deflated returns limits for a core that takes compressed messages.
func deflated(most int64, takeover bool) coreLimits {
	d := &deflate{outBits: maxWindowBits, level: 1}
	if takeover {
		d.received = &history{size: 1 << maxWindowBits}
	}
	return coreLimits{maxMessage: most, maxFragments: -1, deflate: d}
}

// receivePacked gives both roles the frames, cut in every way, with nothing remembered
// from one time to the next.
func receivePacked(t *testing.T, most int64, takeover bool, frames []string, want ...string) {
	t.Helper()
	for _, client := range []bool{true, false} {
		stream := strings.Join(frames, "")
		if !client {
			stream = diallers(frames)
		}
		for cut, pieces := range cuts([]byte(stream), rand.New(rand.NewPCG(7692, 0))) {
			for _, direct := range []bool{false, true} {
				if got := receiveCut(t, client, deflated(most, takeover), direct, pieces); !slices.Equal(got, want) {
					t.Fatalf("client %v, % .40x, %s, direct %v:\ngot  %q\nwant %q", client, stream, cut, direct, got, want)
				}
			}
		}
	}
}

// RFC 7692 §7.2.3: the examples, byte for byte.
func TestRFC7692_Section7_2_3_Examples(t *testing.T) {
	hello := message(Text, "Hello")
	for _, c := range []struct {
		name   string
		frames []string
		want   []string
	}{
		{"7.2.3.1 one block", []string{"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"}, []string{hello}},
		{"7.2.3.1 fragmented", []string{"\x41\x03\xf2\x48\xcd", "\x80\x04\xc9\xc9\x07\x00"}, []string{hello}},
		{"a ping between fragments", []string{"\x41\x03\xf2\x48\xcd", "\x89\x01p", "\x80\x04\xc9\xc9\x07\x00"}, []string{`ping "p"`, hello}},
		{"empty fragments", []string{"\x41\x00", "\x00\x03\xf2\x48\xcd", "\x00\x00", "\x00\x04\xc9\xc9\x07\x00", "\x80\x00"}, []string{hello}},
		{"7.2.3.3 stored", []string{"\xc1\x0b\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"}, []string{hello}},
		{"7.2.3.4 final block", []string{"\xc1\x08\xf3\x48\xcd\xc9\xc9\x07\x00\x00"}, []string{hello}},
		{"7.2.3.5 two blocks", []string{"\xc1\x0d\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"}, []string{hello}},
		{"7.2.3.6 empty", []string{"\xc1\x01\x00"}, []string{message(Text, "")}},
		{"empty, binary", []string{"\xc2\x01\x00"}, []string{message(Binary, "")}},
		{"final blocks in a row", []string{"\xc2\x0f\xf3\x48\xcd\xc9\xc9\x07\x00\xf3\x48\xcd\xc9\xc9\x07\x00\x00"}, []string{message(Binary, "HelloHello")}},
		{"plain between", []string{"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00", "\x81\x05Hello", "\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"}, []string{hello, hello, hello}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, takeover := range []bool{false, true} {
				receivePacked(t, -1, takeover, c.frames, c.want...)
			}
		})
	}
	// 7.2.3.2: the second refers to the first.
	second := []string{"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00", "\xc1\x05\xf2\x00\x11\x00\x00"}
	receivePacked(t, -1, true, second, hello, hello)
	receivePacked(t, -1, false, second, hello, "fail 1007 compressed message is corrupt")
	// What was not compressed is not referred to.
	receivePacked(t, -1, true, []string{second[0], "\x81\x05World", second[1]}, hello, message(Text, "World"), hello)
}

// §6, §7.2: RSV1 is for the first frame of a message, RSV2 and RSV3 for nothing.
func TestRFC7692_Section6_ReservedBits(t *testing.T) {
	const wrong = "fail 1002 reserved bit set without an extension"
	for name, frames := range map[string][]string{
		"continuation": {"\x41\x03\xf2\x48\xcd", "\xc0\x04\xc9\xc9\x07\x00"},
		"ping":         {"\xc9\x00"},
		"close":        {"\xc8\x00"},
		"RSV2":         {"\xa1\x00"},
		"RSV3":         {"\x91\x00"},
		"RSV1 and 2":   {"\xe1\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, client := range []bool{true, false} {
				stream := strings.Join(frames, "")
				if !client {
					stream = diallers(frames)
				}
				if got := receiveCut(t, client, deflated(-1, false), false, [][]byte{[]byte(stream)}); !slices.Equal(got, []string{wrong}) {
					t.Errorf("%q", got)
				}
			}
		})
	}
}

// pack compresses with the standard library.
func pack(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(p)
	w.Flush()
	return b.Bytes()[:b.Len()-len(flushed)]
}

// packedFrame is a message of one frame.
func packedFrame(b0 byte, payload []byte) string { return string(serverFrame(b0, payload)) }

// Corrupt data, text that is not UTF-8 when it is decompressed, and what becomes too
// large end the connection, in one frame and in many.
func TestCompressed_Failures(t *testing.T) {
	const most = 100_000
	corrupt := "fail 1007 compressed message is corrupt"
	tooBig := fmt.Sprintf("fail 1009 MaxMessageSize %d: 0", most)
	zeros := pack(t, make([]byte, most+1))
	for name, c := range map[string]struct {
		op      byte
		payload []byte
		want    string
	}{
		"garbage":             {0xc2, []byte("garbage\xff\xff\xff"), corrupt},
		"reserved block":      {0xc2, []byte{0x06}, corrupt},
		"nothing":             {0xc2, nil, corrupt}, // the empty message has a byte
		"cut off":             {0xc2, pack(t, []byte(strings.Repeat("Hello World ", 9)))[:20], corrupt},
		"distance too far":    {0xc1, []byte("\xf2\x00\x11\x00\x00"), corrupt},
		"not UTF-8":           {0xc1, pack(t, []byte("Hello \xff")), "fail 1007 text is not UTF-8"},
		"cut in a character":  {0xc1, pack(t, []byte("Hello \xc3")), "fail 1007 text is not UTF-8"},
		"a byte too much":     {0xc2, zeros, tooBig},
		"bomb":                {0xc2, pack(t, make([]byte, 5_000_000)), tooBig},
		"ten thousand finals": {0xc2, bytes.Repeat([]byte("\x03\x00"), 10_000), corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			stream := packedFrame(c.op, c.payload)
			if got := receiveCut(t, true, deflated(most, false), false, [][]byte{[]byte(stream)}); !slices.Equal(got, []string{c.want}) {
				t.Errorf("in one frame: %q, want %q", got, c.want)
			}
			if len(c.payload) > 2 {
				stream = packedFrame(c.op&^0x80, c.payload[:2]) + packedFrame(0x80, c.payload[2:])
				if got := receiveCut(t, true, deflated(most, true), false, randomPieces([]byte(stream), 9, rand.New(rand.NewPCG(1, 1)))); !slices.Equal(got, []string{c.want}) {
					t.Errorf("in two: %q, want %q", got, c.want)
				}
			}
		})
	}
	receivePacked(t, most, false, []string{packedFrame(0xc2, pack(t, make([]byte, most)))}, message(Binary, strings.Repeat("\x00", most)))
	// Stored, it is larger than the limit, and what it becomes is not.
	noise := make([]byte, most)
	rand.NewChaCha8([32]byte{}).Read(noise)
	stored := pack(t, noise)
	if len(stored) <= most {
		t.Fatal("noise was compressed")
	}
	receivePacked(t, most, false, []string{packedFrame(0xc2, stored)}, message(Binary, string(noise)))
}

// A bomb costs no more memory than the limit, and some.
func TestCompressed_BombIsBounded(t *testing.T) {
	const most = 1 << 20
	stream := []byte(packedFrame(0xc2, pack(t, make([]byte, 64<<20))))
	limits := deflated(most, false)
	run := func() {
		core := core{client: true, limits: &limits}
		if ev, _ := core.next(bytes.Clone(stream)); ev.kind != evFail {
			t.Fatal("it passes")
		}
		core.release()
	}
	run()
	const runs = 10
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		run()
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / runs; n > 3*most+uint64(len(stream)) {
		t.Errorf("%d bytes for a message of %d that may have %d", n, len(stream), most)
	}
}

// jsonText is like what programs send.
func jsonText(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, `{"id":%d,"name":"user-%d","active":%v,"score":%.3f},`, r.IntN(1e6), r.IntN(1e4), r.IntN(2) == 0, r.Float64()*100)
	}
	return b.Bytes()[:n]
}

// Both roles, every mode and window on either side, all ways to read and to write.
func TestCompression_EndToEnd(t *testing.T) {
	noise := make([]byte, 200_000)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	messages := []Message{
		{Type: Text}, {Type: Text, Data: []byte("short")}, {Type: Text, Data: jsonText(1 << 10)}, {Type: Text, Data: jsonText(1 << 10)},
		{Type: Binary, Data: noise[:3000]}, {Type: Text, Data: jsonText(300_000)}, {Type: Binary, Data: make([]byte, 1<<20)},
		{Type: Text, Data: jsonText(1 << 10), Plain: true}, {Type: Binary, Data: noise}, {Type: Text, Data: jsonText(100)}, {Type: Text, Data: jsonText(40_000)},
	}
	for _, c := range []struct{ ours, theirs Compression }{
		{Compression{Mode: CompressionNoContext}, Compression{Mode: CompressionNoContext}},
		{Compression{Mode: CompressionContext}, Compression{Mode: CompressionContext, Threshold: -1}},
		{Compression{Mode: CompressionContext, WindowBits: 9}, Compression{Mode: CompressionContext}},
		{Compression{Mode: CompressionNoContext, WindowBits: 8}, Compression{Mode: CompressionContext}},
		{Compression{Mode: CompressionContext}, Compression{Mode: CompressionNoContext, WindowBits: 8, Threshold: -1}},
		{Compression{Mode: CompressionContext, WindowBits: 11}, Compression{Mode: CompressionContext, WindowBits: 12, Level: 9}},
		{Compression{Mode: CompressionNoContext, Level: 6}, Compression{}},
		{Compression{}, Compression{Mode: CompressionContext}},
	} {
		t.Run(fmt.Sprintf("%d %d, %d %d", c.ours.Mode, c.ours.WindowBits, c.theirs.Mode, c.theirs.WindowBits), func(t *testing.T) {
			var other atomic.Pointer[WebSocket]
			l := listen(t, ListenConfig{Compression: c.theirs, MaxBufferedAmount: -1, OnConnection: func(o *WebSocket) {
				other.Store(o)
				n := 0
				o.OnMessage(func(o *WebSocket, m Message) { // back in another way each time
					switch n++; n % 3 {
					case 0:
						if err := o.Send(m); err != nil {
							t.Error(err)
						}
					case 1:
						p, err := NewPreparedMessage(m)
						if err == nil {
							err = o.SendPrepared(p)
						}
						if err != nil {
							t.Error(err)
						}
					case 2:
						w, err := o.NextWriter(context.Background(), m.Type)
						if err != nil {
							t.Error(err)
							return
						}
						for len(m.Data) > 70_000 {
							w.Write(m.Data[:7000])
							m.Data = m.Data[7000:]
						}
						w.Write(m.Data)
						o.SendText("behind it")
						if err := w.Close(); err != nil {
							t.Error(err)
						}
					}
				})
			}})
			d, err := Dialer{Compression: c.ours, MaxBufferedAmount: -1}.Dial(t.Context(), l.URL())
			if err != nil {
				t.Fatal(err)
			}
			both := c.ours.Mode != CompressionOff && c.theirs.Mode != CompressionOff
			n := 0
			for range 3 {
				for i, m := range messages {
					if i%2 == 0 {
						err = d.Send(m)
					} else {
						w, e := d.NextWriter(t.Context(), m.Type)
						if e != nil {
							t.Fatal(e)
						}
						w.Write(m.Data[:len(m.Data)/2])
						w.Write(m.Data[len(m.Data)/2:])
						err = w.Close()
					}
					if err != nil {
						t.Fatal(err)
					}
					n++
					var (
						typ MessageType
						got []byte
					)
					if i%3 == 0 {
						typ, got = readAll(t, d)
					} else {
						back, err := d.Read(t.Context())
						if err != nil {
							t.Fatalf("message %d: %v", i, err)
						}
						typ, got = back.Type, back.Data
					}
					if typ != m.Type || !bytes.Equal(got, m.Data) {
						t.Fatalf("message %d of %d bytes came back as %d bytes", i, len(m.Data), len(got))
					}
					if n%3 == 2 {
						if typ, got := readAll(t, d); typ != Text || string(got) != "behind it" {
							t.Fatalf("behind message %d: %q", i, got)
						}
					}
				}
			}
			if on := strings.HasPrefix(d.Extensions(), "permessage-deflate"); on != both || d.Extensions() != other.Load().Extensions() {
				t.Errorf("extensions %q, there %q", d.Extensions(), other.Load().Extensions())
			}
			d.Close()
			if ev := waitDone(t, d); !ev.WasClean {
				t.Error(ev)
			}
		})
	}
}

// readAll reads a message in pieces.
func readAll(t *testing.T, c *WebSocket) (MessageType, []byte) {
	t.Helper()
	typ, r, err := c.NextReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.MultiReader(io.LimitReader(r, 3), r))
	if err != nil {
		t.Fatal(err)
	}
	return typ, b
}

// packedPair is a socket that has agreed on compression, and its bare peer.
func packedPair(t *testing.T, mode CompressionMode, change func(*settings)) (c *WebSocket, p peer) {
	t.Helper()
	ours, theirs := enginePair(t)
	set := testSettings()
	if change != nil {
		change(set)
	}
	limits := set.core
	comp, err := Compression{Mode: mode}.prepare(limits)
	if err != nil {
		t.Fatal(err)
	}
	c = &WebSocket{set: set}
	c.core.limits = comp.agreed(comp.answer(deflateParams{}), false)
	c.open(ours, false, nil)
	t.Cleanup(func() {
		c.Abort()
		theirs.Close()
	})
	return c, peer{t, theirs}
}

// readPackedFrame reads one unmasked frame and returns its first byte and what its
// payload is when it is decompressed, if it is.
func readPackedFrame(t *testing.T, r io.Reader) (b0 byte, payload []byte) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	n := int(head[1])
	if n == 126 {
		more := make([]byte, 2)
		io.ReadFull(r, more)
		n = int(more[0])<<8 | int(more[1])
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	if head[0]&packedBit != 0 {
		var err error
		if payload, err = io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader(endOfMessage)))); err != nil {
			t.Fatal(err)
		}
	}
	return head[0], payload
}

// What is compressed and what is not.
func TestCompression_Choice(t *testing.T) {
	c, p := packedPair(t, CompressionNoContext, nil)
	c.OnMessage(ignore)
	go c.run()
	noise := make([]byte, 1000)
	rand.NewChaCha8([32]byte{2}).Read(noise)
	text := jsonText(1000)
	for _, s := range []struct {
		m    Message
		want byte
	}{
		{Message{Type: Text, Data: text}, 0xc1},
		{Message{Type: Binary, Data: text}, 0xc2},
		{Message{Type: Text, Data: text[:defaultThreshold]}, 0xc1},
		{Message{Type: Text, Data: text[:defaultThreshold-1]}, 0x81},
		{Message{Type: Text, Data: text, Plain: true}, 0x81},
		{Message{Type: Binary, Data: noise}, 0x82}, // it would not be smaller
		{Message{Type: Text}, 0x81},
	} {
		if err := c.Send(s.m); err != nil {
			t.Fatal(err)
		}
		if b0, payload := readPackedFrame(t, p.conn); b0 != s.want || !bytes.Equal(payload, s.m.Data) {
			t.Errorf("%d bytes, plain %v: %#x, %d bytes; want %#x", len(s.m.Data), s.m.Plain, b0, len(payload), s.want)
		}
	}
	p.send(string(clientFrame(0x89, bytes.Repeat([]byte("p"), 125)))) // control frames never
	if b0, payload := readPackedFrame(t, p.conn); b0 != 0x8a || len(payload) != 125 {
		t.Errorf("%#x, %d bytes", b0, len(payload))
	}
	if w, err := c.NextWriter(t.Context(), Text); err != nil {
		t.Error(err)
	} else {
		w.Write(text[:100])
		w.Close()
		if b0, _ := readPackedFrame(t, p.conn); b0 != 0x81 {
			t.Errorf("a short message of a NextWriter: %#x", b0)
		}
		w, _ = c.NextWriter(t.Context(), Text)
		w.Write(text)
		w.Close()
		if b0, payload := readPackedFrame(t, p.conn); b0 != 0xc1 || !bytes.Equal(payload, text) {
			t.Errorf("a long message of a NextWriter: %#x, %d bytes", b0, len(payload))
		}
	}
}

// With context takeover a message that is like the one before is much smaller, plain
// ones in between are not referred to, and nothing is lost when the queue is full.
func TestCompression_Context(t *testing.T) {
	c, p := packedPair(t, CompressionContext, func(s *settings) { s.maxBuffered = 4000 })
	c.OnMessage(ignore)
	go c.run()
	var received history
	received.size = 1 << maxWindowBits
	next := func() (size int, payload []byte) {
		t.Helper()
		fin, b, b0 := readWire(t, p.conn)
		if !fin {
			t.Fatal("fragmented")
		}
		if b0&packedBit == 0 {
			return len(b), b
		}
		out, err := io.ReadAll(flate.NewReaderDict(io.MultiReader(bytes.NewReader(b), strings.NewReader(endOfMessage)), received.b))
		if err != nil {
			t.Fatal(err)
		}
		received.add(out)
		return len(b), out
	}
	text := jsonText(2000)
	sizes := []int{}
	for _, m := range []Message{{Type: Text, Data: text}, {Type: Text, Data: text}, {Type: Text, Data: jsonText(600), Plain: true}, {Type: Text, Data: text}} {
		if err := c.Send(m); err != nil {
			t.Fatal(err)
		}
		size, got := next()
		if !bytes.Equal(got, m.Data) {
			t.Fatalf("%d bytes came as %d", len(m.Data), len(got))
		}
		sizes = append(sizes, size)
	}
	if sizes[1] > sizes[0]/10 || sizes[3] > sizes[0]/10 {
		t.Errorf("sizes %d", sizes)
	}

	// The peer takes nothing for a while.
	full, sent := 0, [][]byte{}
	r := rand.New(rand.NewPCG(3, 4))
	for range 60_000 {
		m := bytes.Clone(text[:1000])
		for i := 600; i < len(m); i++ {
			m[i] = 'a' + byte(r.IntN(26))
		}
		switch err := c.Send(Message{Type: Text, Data: m}); {
		case err == nil:
			sent = append(sent, m)
		case errors.Is(err, ErrBufferFull):
			full++
		default:
			t.Fatal(err)
		}
		if full > 20 {
			break
		}
	}
	if full == 0 {
		t.Error("the queue was never full")
	}
	for i, m := range sent {
		if _, got := next(); !bytes.Equal(got, m) {
			t.Fatalf("message %d of %d came wrong", i, len(sent))
		}
	}
}

// readWire reads one unmasked frame.
func readWire(t *testing.T, r io.Reader) (fin bool, payload []byte, b0 byte) {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		t.Fatal(err)
	}
	n := int(head[1])
	switch n {
	case 126:
		io.ReadFull(r, head[2:])
		n = int(head[2])<<8 | int(head[3])
	case 127:
		t.Fatal("a frame of 64 KiB")
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	return head[0]&0x80 != 0, payload, head[0]
}

// Many goroutines send on one socket with context takeover; what comes is what was
// sent, each one's in its order.
func TestCompression_ContextRaces(t *testing.T) {
	const senders, each = 4, 200
	var mu sync.Mutex
	next := map[int]int{}
	total := 0
	done := make(chan struct{})
	l := listen(t, ListenConfig{Compression: Compression{Mode: CompressionContext}, OnConnection: func(o *WebSocket) {
		o.OnMessage(func(_ *WebSocket, m Message) {
			var who, n int
			fmt.Sscanf(string(m.Data), "%d %d", &who, &n)
			mu.Lock()
			defer mu.Unlock()
			if n != next[who] {
				t.Errorf("%d: message %d, want %d", who, n, next[who])
			}
			next[who] = n + 1
			if total++; total == senders*each {
				close(done)
			}
		})
	}})
	d, err := Dialer{Compression: Compression{Mode: CompressionContext, Threshold: -1}}.Dial(t.Context(), l.URL())
	if err != nil {
		t.Fatal(err)
	}
	for who := range senders {
		go func() {
			for n := range each {
				text := fmt.Sprintf("%d %d %s", who, n, jsonText(20+n*7))
				var err error
				if n%10 == 9 {
					var w io.WriteCloser
					if w, err = d.NextWriter(context.Background(), Text); err == nil {
						w.Write([]byte(text[:10]))
						w.Write([]byte(text[10:]))
						err = w.Close()
					}
				} else {
					err = d.Write(context.Background(), Message{Type: Text, Data: []byte(text)})
				}
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	<-done
	d.Close()
	waitDone(t, d)
}

// A stream of any size needs no more memory than a small one; what becomes too large,
// or is corrupt, ends it.
func TestCompression_NextReader(t *testing.T) {
	const size = 4 << 20
	payload := pack(t, make([]byte, size))
	for name, c := range map[string]struct {
		most    int64
		payload []byte
		n       int64
		code    StatusCode
	}{
		"no limit":            {-1, payload, size, 0},
		"limit":               {1 << 20, payload, 1 << 20, StatusMessageTooBig},
		"corrupt":             {-1, append(bytes.Clone(payload[:1000]), 0xFF, 0xFF, 0xFF, 0xFF), -1, StatusInvalidPayload},
		"not to its end":      {-1, payload[:1000], -1, StatusInvalidPayload},
		"a final block, more": {-1, []byte("\xf3\x48\xcd\xc9\xc9\x07\x00\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := packedPair(t, CompressionNoContext, func(set *settings) { set.core.maxMessage = c.most })
			go s.run()
			go func() {
				for b0, rest := byte(0x42), c.payload; ; b0, rest = 0, rest[min(len(rest), 777):] {
					if len(rest) <= 777 {
						b0 |= 0x80
					}
					if _, err := p.conn.Write(clientFrame(b0, rest[:min(len(rest), 777)])); err != nil || b0&0x80 != 0 {
						break
					}
				}
				p.conn.Write(clientFrame(0x82, []byte("next")))
			}()
			_, r, err := s.NextReader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, r)
			if c.code == 0 {
				if err != nil || n != c.n {
					t.Fatalf("%d bytes, %v; want %d", n, err, c.n)
				}
				wantRead(t, s, Binary, "next")
				return
			}
			ev, ok := errors.AsType[CloseEvent](err)
			if !ok || c.n >= 0 && n > c.n {
				t.Fatalf("%d bytes, %v", n, err)
			}
			if perr, ok := errors.AsType[*ProtocolError](ev.Err); ok && perr.Code != c.code {
				t.Error(perr)
			} else if lerr, ok := errors.AsType[*LimitError](ev.Err); ok && lerr.Code != c.code {
				t.Error(lerr)
			} else if ev.Err == nil {
				t.Error(ev)
			}
		})
	}
}

// A stream that is left, or whose wait ends, harms nothing behind it.
func TestCompression_NextReaderLeft(t *testing.T) {
	for _, mode := range []CompressionMode{CompressionNoContext, CompressionContext} {
		s, p := packedPair(t, mode, nil)
		go s.run()
		payload := pack(t, jsonText(100_000))
		ctx, cancel := context.WithCancel(t.Context())
		p.send(string(clientFrame(0x41, payload[:500])))
		if mode == CompressionNoContext {
			_, r, err := s.NextReader(ctx)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(20*time.Millisecond, cancel)
			if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want the wait's end", err)
			}
		}
		cancel()
		p.send(string(clientFrame(0x80, payload[500:])), string(clientFrame(0xc1, pack(t, []byte("behind it")))))
		if mode == CompressionContext {
			_, r, err := s.NextReader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(r, make([]byte, 100))
		}
		wantRead(t, s, Text, "behind it")
	}
}

// A broadcast is compressed once for those who have agreed on the same, and plain for
// those who have not.
func TestCompression_Broadcast(t *testing.T) {
	text := jsonText(5000)
	p, err := NewPreparedMessage(Message{Type: Text, Data: text})
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	var sockets []*WebSocket
	for range 3 {
		c, peer := packedPair(t, CompressionNoContext, nil)
		c.OnMessage(ignore)
		go c.run()
		sockets, conns = append(sockets, c), append(conns, peer.conn)
	}
	if n := Broadcast(slices.Values(sockets), Message{Type: Text, Data: text}); n != 3 {
		t.Errorf("%d took it", n)
	}
	for i, c := range sockets {
		if b0, got := readPackedFrame(t, conns[i]); b0 != 0xc1 || !bytes.Equal(got, text) {
			t.Errorf("%#x, %d bytes", b0, len(got))
		}
		if err := c.SendPrepared(p); err != nil {
			t.Fatal(err)
		}
		readPackedFrame(t, conns[i])
	}
	if len(p.packed) != 1 {
		t.Errorf("compressed %d times", len(p.packed))
	}
}

// An echo of compressed messages allocates nothing.
func TestNoAllocations_Compressed(t *testing.T) {
	countsAllocations(t)
	for _, size := range []int{1 << 10, 16 << 10} {
		c, p := packedPair(t, CompressionNoContext, func(s *settings) { s.maxBuffered = -1 })
		c.OnMessage(func(c *WebSocket, m Message) {
			if err := c.Send(m); err != nil {
				t.Error(err)
			}
		})
		go c.run()
		frame := clientFrame(0xc1, pack(t, jsonText(size)))
		p.conn.Write(frame)
		_, reply, b0 := readWire(t, p.conn)
		if b0 != 0xc1 {
			t.Fatalf("%#x", b0)
		}
		back := make([]byte, headerSize(len(reply), false)+len(reply))
		echo := func() {
			p.conn.Write(frame)
			if _, err := io.ReadFull(p.conn, back); err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			echo()
		}
		if n := testing.AllocsPerRun(300, echo); n > 0 {
			t.Errorf("%v allocations for an echo of %d bytes", n, size)
		}
	}
}

// An idle connection costs the same with compression.
func TestCompression_SharesItsLimits(t *testing.T) {
	set := compressionOf(t, Compression{Mode: CompressionNoContext})
	a := set.agreed(set.answer(deflateParams{clientAny: true}), false)
	if b := set.agreed(set.answer(deflateParams{}), false); a != b {
		t.Error("two connections that agree on the same have each its own")
	}
	set = compressionOf(t, Compression{Mode: CompressionContext})
	if a, b := set.agreed(deflateParams{}, false), set.agreed(deflateParams{}, false); a == b || a.deflate.sent == b.deflate.sent {
		t.Error("two connections share what they remember")
	}
}

// decompress agrees with the standard library about every input, whatever it is.
func FuzzDecompress(f *testing.F) {
	f.Add([]byte("\xf2\x48\xcd\xc9\xc9\x07\x00"), []byte(nil))
	f.Add([]byte("\xf2\x00\x11\x00\x00"), []byte("Hello"))
	f.Add([]byte("\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), []byte(nil))
	f.Add([]byte("\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"), []byte(nil))
	f.Add([]byte(nil), []byte("x"))
	f.Fuzz(func(t *testing.T, p, past []byte) {
		const most = 1 << 16
		d := &deflate{}
		if len(past) > 0 {
			d.received = &history{size: 1 << maxWindowBits}
			d.received.add(past)
			past = d.received.b
		}
		want, wantErr := inflate(p, bytes.Clone(past), most)
		got, err := d.decompress(bytes.Clone(p), most)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, want %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got.b, want) {
			t.Fatalf("%d bytes, want %d", len(got.b), len(want))
		}
		got.free()
	})
}

// inflate decompresses a message in the simplest way.
func inflate(p, past []byte, most int) (out []byte, err error) {
	r := bytes.NewReader(append(bytes.Clone(p), endOfMessage...))
	for finals := 0; ; finals++ {
		window := append(bytes.Clone(past), out...)
		z := flate.NewReaderDict(r, window[max(len(window)-1<<maxWindowBits, 0):])
		part, err := io.ReadAll(io.LimitReader(z, int64(most-len(out))+1))
		if out = append(out, part...); len(out) > most {
			return nil, errors.New("too long")
		}
		if err != nil {
			return nil, err
		}
		if r.Len() <= len(endOfMessage) {
			return out, nil
		}
		if finals >= maxFinals+len(p)/finalShare {
			return nil, errors.New("too many final blocks")
		}
	}
}
