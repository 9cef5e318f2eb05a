package peerws

import (
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// Streams in this file are written by hand from RFC 6455, frame by frame.

// A feeder shows a byte stream to a core as a connection would, keeps what next
// left over, and notes the events in words.
type feeder struct {
	t      testing.TB
	core   core
	direct bool   // read into space when the core offers it
	block  []byte // what is shown
	tail   []byte // shown and not used
	fed    int    // bytes so far
	events []string
	failed bool
}

func newFeeder(t testing.TB, client bool, limits coreLimits) *feeder {
	return &feeder{t: t, core: core{client: client, limits: &limits}}
}

// feed shows the core p, the next bytes of the stream.
func (f *feeder) feed(p []byte) {
	f.fed += len(p)
	for f.direct && len(p) > 0 && !f.failed {
		room := f.core.space()
		if room == nil {
			break
		}
		if len(f.tail) > 0 || f.core.atHeader() {
			f.t.Fatalf("space offered at a header, %d bytes kept", len(f.tail))
		}
		n := copy(room, p)
		p = p[n:]
		f.note(f.core.filled(n))
	}
	if f.failed || len(p) == 0 {
		return
	}
	f.block = append(append(f.block[:0], f.tail...), p...)
	rest := f.block
	for !f.failed {
		ev, n := f.core.next(rest)
		rest = rest[n:]
		f.note(ev)
		if ev.kind == evNone && n == 0 {
			break
		}
	}
	f.tail = append(f.tail[:0], rest...)
	if len(f.tail) > 14+125 && !f.failed {
		f.t.Fatalf("%d bytes left over", len(f.tail))
	}
	clear(f.block) // nothing of it may be needed any more
}

func (f *feeder) note(ev event) {
	if p := f.core.part; p != nil && p.buf != nil {
		if have := len(p.buf.b); cap(p.buf.b) > 8*have+8<<10 {
			f.t.Fatalf("a buffer of %d for %d bytes that arrived", cap(p.buf.b), have)
		}
	}
	switch ev.kind {
	case evNone:
		return
	case evMessage:
		f.events = append(f.events, message(MessageType(ev.op), string(ev.data)))
		f.core.release()
		if f.core.part != nil {
			f.t.Fatal("memory held after release")
		}
	case evPing:
		f.events = append(f.events, fmt.Sprintf("ping %q", ev.data))
	case evPong:
		f.events = append(f.events, fmt.Sprintf("pong %q", ev.data))
	case evClose:
		f.events = append(f.events, fmt.Sprintf("close %d %q", ev.code, ev.data))
	case evFail:
		f.failed = true
		f.events = append(f.events, failure(f.core.fault()))
	}
}

// end adds in what state the stream ends.
func (f *feeder) end() []string {
	switch {
	case f.failed:
	case len(f.tail) > 0:
		f.events = append(f.events, fmt.Sprintf("…%d bytes kept", len(f.tail)))
	case !f.core.atHeader():
		f.events = append(f.events, "…inside a frame")
	case f.core.part != nil:
		f.events = append(f.events, "…between fragments")
	}
	f.core.release()
	return f.events
}

// message is how a message is noted.
func message(t MessageType, data string) string {
	if len(data) > 100 {
		return fmt.Sprintf("%v of %d bytes, CRC %08x", t, len(data), crc32.ChecksumIEEE([]byte(data)))
	}
	return fmt.Sprintf("%v %q", t, data)
}

func failure(err error) string {
	if e, ok := errors.AsType[*ProtocolError](err); ok {
		return fmt.Sprintf("fail %d %s", e.Code, e.Reason)
	}
	if e, ok := errors.AsType[*LimitError](err); ok {
		return fmt.Sprintf("fail %d %s %d: %d", e.Code, e.Option, e.Limit, e.Size)
	}
	return fmt.Sprintf("%T %v", err, err)
}

// cuts yields stream in pieces: whole, byte by byte, in two at every place (at
// some if it is long), and at random.
func cuts(stream []byte, rng *rand.Rand) iter.Seq2[string, [][]byte] {
	return func(yield func(string, [][]byte) bool) {
		if !yield("whole", [][]byte{stream}) ||
			!yield("byte by byte", slices.Collect(slices.Chunk(stream, 1))) {
			return
		}
		step := 1
		if len(stream) > 1000 {
			step = len(stream) / 19
		}
		for i := 1; i < len(stream); i += step {
			if !yield("cut at "+strconv.Itoa(i), [][]byte{stream[:i], stream[i:]}) {
				return
			}
		}
		for i := range 10 {
			if !yield("cut at random", randomPieces(stream, 1+len(stream)/(i+1), rng)) {
				return
			}
		}
	}
}

// randomPieces cuts stream into pieces of 1 to most bytes.
func randomPieces(stream []byte, most int, rng *rand.Rand) (pieces [][]byte) {
	for len(stream) > 0 {
		n := min(1+rng.IntN(most), len(stream))
		pieces = append(pieces, stream[:n])
		stream = stream[n:]
	}
	return pieces
}

// receiveCut returns the events of a stream that arrives in pieces.
func receiveCut(t testing.TB, client bool, limits coreLimits, direct bool, pieces [][]byte) []string {
	f := newFeeder(t, client, limits)
	f.direct = direct
	for _, p := range pieces {
		f.feed(p)
	}
	return f.end()
}

// receive checks that a core makes the events want of stream, however it is cut.
func receive(t *testing.T, client bool, limits coreLimits, stream string, want ...string) {
	t.Helper()
	for cut, pieces := range cuts([]byte(stream), rand.New(rand.NewPCG(6455, 0))) {
		for _, direct := range []bool{false, true} {
			if got := receiveCut(t, client, limits, direct, pieces); !slices.Equal(got, want) {
				t.Fatalf("client %v, % .40x, %s, direct %v:\ngot  %q\nwant %q", client, stream, cut, direct, got, want)
			}
		}
	}
}

// dialler returns an unmasked frame as the dialling side sends it: MASK set, a
// key in front of the payload, the payload masked (§5.3).
func dialler(frame string) string {
	head := 2
	switch frame[1] {
	case 126:
		head = 4
	case 127:
		head = 10
	}
	b := []byte(frame[:head])
	b[1] |= 0x80
	return string(b) + string(rfcKey[:]) + xor(frame[head:], rfcKey, 0)
}

func diallers(frames []string) (stream string) {
	for _, frame := range frames {
		stream += dialler(frame)
	}
	return stream
}

// receiveBoth gives unmasked frames to a dialling core, and the same, masked, to
// a listening one.
func receiveBoth(t *testing.T, limits coreLimits, frames []string, want ...string) {
	t.Helper()
	receive(t, true, limits, strings.Join(frames, ""), want...)
	receive(t, false, limits, diallers(frames), want...)
}

// failConnection checks that the frames make both roles fail with the last
// event of want, and do so as soon as the last byte is there. Nothing behind it
// may be looked at.
func failConnection(t *testing.T, limits coreLimits, frames []string, want ...string) {
	t.Helper()
	for _, client := range []bool{true, false} {
		stream := strings.Join(frames, "")
		if !client {
			stream = diallers(frames)
		}
		failAt(t, client, limits, stream, len(stream), want...)
	}
}

// failAt checks that the failure comes with the byte at, not earlier or later.
func failAt(t *testing.T, client bool, limits coreLimits, stream string, at int, want ...string) {
	t.Helper()
	receive(t, client, limits, stream[:at]+strings.Repeat("\x81\x00", 10), want...)
	f := newFeeder(t, client, limits)
	for i := range at {
		if f.failed {
			t.Fatalf("client %v, % .40x: failed at byte %d, want %d", client, stream, f.fed, at)
		}
		f.feed([]byte{stream[i]})
	}
	if !f.failed {
		t.Fatalf("client %v, % .40x: not failed at byte %d", client, stream, at)
	}
	f.core.release()
}

var (
	usual     = coreLimits{maxMessage: 1 << 20, maxFragments: 1024}
	unlimited = coreLimits{maxMessage: -1, maxFragments: -1}
)

func TestSection5_7_Messages(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client bool // who receives it
		stream string
		want   string
	}{
		{"single-frame unmasked text", true, "\x81\x05\x48\x65\x6c\x6c\x6f", `text "Hello"`},
		{"single-frame masked text", false, "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", `text "Hello"`},
		{"fragmented unmasked text", true, "\x01\x03\x48\x65\x6c\x80\x02\x6c\x6f", `text "Hello"`},
		{"unmasked Ping", true, "\x89\x05\x48\x65\x6c\x6c\x6f", `ping "Hello"`},
		{"masked Pong", false, "\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", `pong "Hello"`},
		{"256 bytes", true, "\x82\x7e\x01\x00" + pattern(256), message(Binary, pattern(256))},
		{"64KiB", true, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + pattern(65536), message(Binary, pattern(65536))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			receive(t, tt.client, usual, tt.stream, tt.want)
			receive(t, tt.client, usual, tt.stream+tt.stream, tt.want, tt.want)
		})
	}
}

// What a truncation leaves: nothing is reported, and what is missing completes it.
func TestSection5_7_Truncations(t *testing.T) {
	const hello = "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
	for i := 1; i < len(hello); i++ {
		want := "…inside a frame"
		if i < 6 {
			want = fmt.Sprintf("…%d bytes kept", i)
		}
		receive(t, false, usual, hello[:i], want)
	}
	const pong = "\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
	for i := 1; i < len(pong); i++ {
		receive(t, false, usual, pong[:i], fmt.Sprintf("…%d bytes kept", i))
	}
	const fragments = "\x01\x03\x48\x65\x6c\x80\x02\x6c\x6f"
	for i, want := range []string{"…1 bytes kept", "…inside a frame", "…inside a frame", "…inside a frame",
		"…between fragments", "…1 bytes kept", "…inside a frame", "…inside a frame"} {
		receive(t, true, usual, fragments[:i+1], want)
	}
}

// Section 5.4.
func TestSection5_4_Fragmentation(t *testing.T) {
	for _, tt := range []struct {
		name   string
		frames []string
		want   []string
	}{
		{"unfragmented", []string{"\x81\x02Hi", "\x82\x02\x00\xff"}, []string{`text "Hi"`, `binary "\x00\xff"`}},
		{"two fragments", []string{"\x02\x01\x00", "\x80\x01\xff"}, []string{`binary "\x00\xff"`}},
		{"three fragments", []string{"\x01\x01a", "\x00\x01b", "\x80\x01c"}, []string{`text "abc"`}},
		{"empty messages", []string{"\x81\x00", "\x82\x00"}, []string{`text ""`, `binary ""`}},
		{"empty fragments only", []string{"\x01\x00", "\x00\x00", "\x80\x00"}, []string{`text ""`}},
		{"empty fragments around", []string{"\x02\x00", "\x00\x02ab", "\x00\x00", "\x80\x00"}, []string{`binary "ab"`}},
		{"empty last fragment", []string{"\x01\x03abc", "\x80\x00"}, []string{`text "abc"`}},
		{
			"fragmented messages in a row",
			[]string{"\x01\x01a", "\x80\x01b", "\x02\x01c", "\x80\x01d", "\x81\x01e"},
			[]string{`text "ab"`, `binary "cd"`, `text "e"`},
		},
		{
			"control frames between fragments",
			[]string{"\x01\x03Hel", "\x89\x01p", "\x8a\x00", "\x00\x00", "\x89\x00", "\x80\x02lo"},
			[]string{`ping "p"`, `pong ""`, `ping ""`, `text "Hello"`},
		},
		{
			"a character around a control frame",
			[]string{"\x01\x02\xf0\x9f", "\x89\x01\xff", "\x80\x02\x98\x80"},
			[]string{`ping "\xff"`, `text "😀"`},
		},
		{
			"close between fragments",
			[]string{"\x01\x03Hel", "\x88\x02\x03\xe8"},
			[]string{`close 1000 ""`, "…between fragments"},
		},
		{
			"fragments of all length forms",
			[]string{
				"\x02\x7d" + pattern(125), "\x00\x7e\x00\x7e" + pattern(126),
				"\x80\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + pattern(65536),
			},
			[]string{message(Binary, pattern(125)+pattern(126)+pattern(65536))},
		},
	} {
		t.Run(tt.name, func(t *testing.T) { receiveBoth(t, usual, tt.frames, tt.want...) })
	}
}

// Section 5.5.2: the Pong has the Ping's data, whatever it is.
func TestSection5_5_2_Ping(t *testing.T) {
	for _, data := range []string{"", "Hello", "\x00\xff\xfe", pattern(124), pattern(125)} {
		ping := "\x89" + string([]byte{byte(len(data))}) + data
		receiveBoth(t, usual, []string{ping}, fmt.Sprintf("ping %q", data))

		c := core{client: true, limits: &usual}
		ev, n := c.next([]byte(ping))
		if ev.kind != evPing || n != len(ping) {
			t.Fatalf("%q: %v, %d", data, ev.kind, n)
		}
		if got, want := appendFrame(nil, opPong, ev.data, false), "\x8a"+ping[1:]; string(got) != want {
			t.Errorf("pong: % x, want % x", got, want)
		}
	}
}

// Section 5.5.1.
func TestSection5_5_1_Close(t *testing.T) {
	for _, tt := range []struct {
		frame, want string
	}{
		{"\x88\x00", `close 1005 ""`}, // no code
		{"\x88\x02\x03\xe8", `close 1000 ""`},
		{"\x88\x05\x03\xe9bye", `close 1001 "bye"`},
		{"\x88\x06\x0b\xb8\xf0\x9f\x98\x80", `close 3000 "😀"`},
		{"\x88\x7d\x03\xe8" + strings.Repeat("x", 123), `close 1000 "` + strings.Repeat("x", 123) + `"`},
	} {
		receiveBoth(t, usual, []string{tt.frame}, tt.want)
	}
}

func TestFailConnection_CloseFrame(t *testing.T) {
	for _, tt := range []struct {
		frame, want string
	}{
		{"\x88\x01\x03", "fail 1002 close frame of one byte"},
		{"\x88\x02\x00\x00", "fail 1002 close code that must not be sent"},
		{"\x88\x03\x03\xe8\xff", "fail 1007 close reason is not UTF-8"},
		{"\x88\x04\x03\xe8\xe2\x82", "fail 1007 close reason is not UTF-8"},     // the beginning of a €
		{"\x88\x05\x03\xe8\xed\xa0\x80", "fail 1007 close reason is not UTF-8"}, // a surrogate
		{"\x88\x03\x03\xed\xff", "fail 1002 close code that must not be sent"},  // 1005 and a bad reason
		{"\x88\x7d\x03\xe8" + strings.Repeat("x", 122) + "\xc3", "fail 1007 close reason is not UTF-8"},
	} {
		failConnection(t, usual, []string{tt.frame}, tt.want)
	}
	// 124 bytes of reason: seen in the header.
	failAt(t, true, usual, "\x88\x7e\x00\x7e\x03\xe8", 2, "fail 1002 control frame over 125 bytes")
}

// Sections 7.4.1 and 7.4.2, the registry: 1000–1003 and 1007–1014 are defined,
// 3000–4999 free, nothing else may travel. All 65536.
func TestSection7_4_CloseCodes(t *testing.T) {
	may := func(code int) bool {
		return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
	}
	for code := range 65536 {
		f := newFeeder(t, true, usual)
		f.feed([]byte{0x88, 0x03, byte(code >> 8), byte(code), 'x'})
		want := fmt.Sprintf(`close %d "x"`, code)
		if !may(code) {
			want = "fail 1002 close code that must not be sent"
		}
		if len(f.events) != 1 || f.events[0] != want {
			t.Errorf("code %d: %q, want %q", code, f.events, want)
		}
	}
	// The ones that have been let through elsewhere, by name and in every cut.
	for code, frame := range map[int]string{
		0:     "\x88\x02\x00\x00",
		999:   "\x88\x02\x03\xe7",
		1004:  "\x88\x02\x03\xec",
		1005:  "\x88\x02\x03\xed",
		1006:  "\x88\x02\x03\xee",
		1015:  "\x88\x02\x03\xf7",
		1016:  "\x88\x02\x03\xf8",
		2999:  "\x88\x02\x0b\xb7",
		5000:  "\x88\x02\x13\x88",
		65535: "\x88\x02\xff\xff",
	} {
		if may(code) {
			t.Errorf("%d should not be allowed", code)
		}
		failConnection(t, usual, []string{frame}, "fail 1002 close code that must not be sent")
	}
}

// Section 5.1: the dialling side masks every frame, the listening side none.
func TestFailConnection_Masking(t *testing.T) {
	for _, frame := range []string{
		"\x81\x00", "\x81\x05Hello", "\x82\x7e\x00\x80", "\x01\x01a", "\x89\x01p", "\x8a\x00", "\x88\x02\x03\xe8",
	} {
		size := 2
		if frame[1] == 126 {
			size = 4
		}
		failAt(t, false, usual, frame, size, "fail 1002 frame from the dialling side is not masked")
		failAt(t, true, usual, dialler(frame), size+4, "fail 1002 frame from the listening side is masked")
	}
	// Also in the middle of a message that began well.
	failAt(t, false, usual, dialler("\x01\x01a")+"\x80\x01b", 7+2, `fail 1002 frame from the dialling side is not masked`)
	failAt(t, true, usual, "\x01\x01a"+dialler("\x80\x01b"), 3+6, `fail 1002 frame from the listening side is masked`)
}

// A key of zeros is a key: the payload then looks unmasked.
func TestSection5_3_ZeroKey(t *testing.T) {
	receive(t, false, usual, "\x81\x85\x00\x00\x00\x00Hello", `text "Hello"`)
}

// Section 5.2: RSV1–3 are 0 unless an extension means something else.
func TestFailConnection_ReservedBits(t *testing.T) {
	for _, rsv := range []byte{0x40, 0x20, 0x10, 0x70} {
		for _, op := range []byte{0x1, 0x2, 0x8, 0x9, 0xA} {
			failConnection(t, usual, []string{string([]byte{0x80 | rsv | op, 0x00})}, "fail 1002 reserved bit set without an extension")
		}
		failConnection(t, usual, []string{"\x01\x01a", string([]byte{0x80 | rsv, 0x00})}, "fail 1002 reserved bit set without an extension")
	}
	// Before the payload.
	failAt(t, true, usual, "\xc1\x05Hello", 2, "fail 1002 reserved bit set without an extension")
}

// Sections 5.2 and 5.5: what the header codec finds ends the connection as well.
func TestFailConnection_FrameLayout(t *testing.T) {
	for _, op := range []byte{0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF} {
		failAt(t, true, usual, string([]byte{0x80 | op}), 1, "fail 1002 reserved opcode")
		failAt(t, false, usual, string([]byte{op}), 1, "fail 1002 reserved opcode")
	}
	for _, op := range []byte{0x8, 0x9, 0xA} {
		failAt(t, true, usual, string([]byte{op}), 1, "fail 1002 fragmented control frame")
		failAt(t, true, usual, string([]byte{0x80 | op, 126}), 2, "fail 1002 control frame over 125 bytes")
	}
	failAt(t, true, usual, "\x82\x7e\x00\x05", 4, "fail 1002 length not minimally encoded")
	failAt(t, false, unlimited, "\x82\xff\x80", 3, "fail 1002 length has its top bit set")
	// In the middle of a message, after an event: what came before it counts.
	failAt(t, true, usual, "\x89\x00\x01\x01a\x83", 6, `ping ""`, "fail 1002 reserved opcode")
}

// Section 5.4.
func TestFailConnection_UnexpectedContinuation(t *testing.T) {
	const want = "fail 1002 continuation frame without a message"
	failConnection(t, usual, []string{"\x80\x00"}, want)
	failConnection(t, usual, []string{"\x00\x00"}, want)
	failAt(t, true, usual, "\x80\x05Hello", 2, want)
	failConnection(t, usual, []string{"\x81\x01a", "\x80\x00"}, `text "a"`, want)
	failConnection(t, usual, []string{"\x01\x01a", "\x80\x01b", "\x80\x00"}, `text "ab"`, want)
	failConnection(t, usual, []string{"\x89\x00", "\x80\x00"}, `ping ""`, want)
}

// Section 5.4.
func TestFailConnection_MessageInsideMessage(t *testing.T) {
	const want = "fail 1002 new message inside a fragmented one"
	for _, first := range []string{"\x01\x01a", "\x02\x01a", "\x01\x00", "\x02\x00"} {
		for _, second := range []string{"\x81\x00", "\x82\x00", "\x01\x00", "\x02\x00"} {
			failConnection(t, usual, []string{first, second}, want)
			failConnection(t, usual, []string{first, "\x00\x01b", "\x89\x00", second}, `ping ""`, want)
		}
	}
}

// Section 10.4: the limit counts all fragments, and is held against what a
// header announces.
func TestFailConnection_MaxMessageSize(t *testing.T) {
	ten := coreLimits{maxMessage: 10, maxFragments: 100}
	for _, frames := range [][]string{
		{"\x81\x0a0123456789"},
		{"\x01\x0a0123456789", "\x80\x00"},
		{"\x01\x0501234", "\x00\x00", "\x80\x0556789"},
		{"\x01\x00", "\x80\x0a0123456789"},
	} {
		const want = `text "0123456789"`
		receiveBoth(t, ten, frames, want)
		receiveBoth(t, ten, append(frames, frames...), want, want) // each message anew
	}
	for _, tt := range []struct {
		frames []string // the last one is only a header
		size   int64
	}{
		{[]string{"\x82\x0b"}, 11},
		{[]string{"\x02\x0b"}, 11},
		{[]string{"\x82\x7e\x00\x7e"}, 126},
		{[]string{"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"}, 65536},
		{[]string{"\x82\x7f\x00\x00\x00\x00\x40\x00\x00\x00"}, 1 << 30},
		{[]string{"\x82\x7f\x00\x00\x00\x00\x80\x00\x00\x00"}, 1 << 31},
		{[]string{"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"}, math.MaxInt64},
		{[]string{"\x02\x0a0123456789", "\x80\x01"}, 11},
		{[]string{"\x02\x0a0123456789", "\x00\x00", "\x00\x01"}, 11},
		{[]string{"\x02\x0501234", "\x80\x06"}, 11},
		{[]string{"\x02\x0501234", "\x80\x7e\xff\xff"}, 65540},
		{[]string{"\x02\x0501234", "\x80\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"}, 0}, // the sum is no int64
	} {
		failConnection(t, ten, tt.frames, fmt.Sprintf("fail 1009 MaxMessageSize 10: %d", tt.size))
	}
	// Control frames are no part of it.
	receiveBoth(t, ten, []string{"\x01\x0501234", "\x89\x0b01234567890", "\x80\x0556789"}, `ping "01234567890"`, `text "0123456789"`)
}

// The limit 0 is one too: only empty messages.
func TestFailConnection_MaxMessageSizeZero(t *testing.T) {
	none := coreLimits{maxMessage: 0, maxFragments: -1}
	receiveBoth(t, none, []string{"\x81\x00", "\x02\x00", "\x80\x00"}, `text ""`, `binary ""`)
	failConnection(t, none, []string{"\x81\x01"}, "fail 1009 MaxMessageSize 0: 1")
}

// Fragments cost work without adding bytes, so their number is limited as well.
func TestFailConnection_MaxFragments(t *testing.T) {
	three := coreLimits{maxMessage: 100, maxFragments: 3}
	receiveBoth(t, three, []string{"\x01\x01a", "\x00\x01b", "\x80\x01c"}, `text "abc"`)
	receiveBoth(t, three, []string{"\x01\x01a", "\x89\x00", "\x00\x01b", "\x89\x00", "\x80\x01c"}, `ping ""`, `ping ""`, `text "abc"`)
	receiveBoth(t, three, []string{"\x01\x00", "\x80\x00", "\x01\x00", "\x80\x00"}, `text ""`, `text ""`) // each message anew
	receiveBoth(t, three, []string{"\x81\x00", "\x81\x00", "\x81\x00", "\x81\x00"}, `text ""`, `text ""`, `text ""`, `text ""`)

	const want = "fail 1008 MaxFragments 3: 4"
	failConnection(t, three, []string{"\x01\x01a", "\x00\x01b", "\x00\x01c", "\x80\x01"}, want)
	failConnection(t, three, []string{"\x01\x01a", "\x00\x01b", "\x00\x01c", "\x80\x00"}, want)
	failConnection(t, three, []string{"\x01\x00", "\x00\x00", "\x00\x00", "\x00\x00"}, want)

	// The usual limit, with empty fragments and with fragments of one byte.
	for fragment, most := range map[string]int{"\x00\x00": 1024, "\x00\x01": 1026} {
		frames := slices.Repeat([]string{fragment + strings.Repeat("x", int(fragment[1]))}, most)
		frames[0] = "\x02" + frames[0][1:]
		failConnection(t, usual, append(frames, fragment), fmt.Sprintf("fail 1008 MaxFragments 1024: %d", most+1))
	}
}

// The number allowed grows with the bytes that have come, by one for each 512, so
// that it meets small fragments only.
func TestMaxFragmentsFollowsTheSize(t *testing.T) {
	one := coreLimits{maxMessage: 1 << 20, maxFragments: 1}
	const want = "fail 1008 MaxFragments 1: 2"
	failConnection(t, one, []string{"\x02\x7e\x01\xff" + pattern(511), "\x80\x01"}, want)
	receiveBoth(t, one, []string{"\x02\x7e\x02\x00" + pattern(512), "\x80\x01x"}, message(Binary, pattern(512)+"x"))
	failConnection(t, one, []string{"\x02\x7e\x02\x00" + pattern(512), "\x00\x00", "\x80\x00"}, "fail 1008 MaxFragments 1: 3")

	for _, size := range []int{512, 1 << 10, 4 << 10} {
		limits := coreLimits{maxMessage: 2 << 20, maxFragments: 1}
		n := 2 << 20 / size
		p := pattern(size)
		frame := string([]byte{0x7e, byte(size >> 8), byte(size)}) + p
		frames := slices.Repeat([]string{"\x00" + frame}, n)
		frames[0], frames[n-1] = "\x02"+frame, "\x80"+frame
		got := receiveCut(t, true, limits, false, [][]byte{[]byte(strings.Join(frames, ""))})
		if want := message(Binary, strings.Repeat(p, n)); len(got) != 1 || got[0] != want {
			t.Errorf("fragments of %d bytes failed", size)
		}
	}
}

func TestNegativeLimitsAreNone(t *testing.T) {
	frames := slices.Repeat([]string{"\x00\x01x"}, 2000)
	frames[0], frames[len(frames)-1] = "\x02\x01x", "\x80\x01x"
	receiveBoth(t, unlimited, frames, message(Binary, strings.Repeat("x", 2000)))
}

// Lengths that no memory holds, with no limit to catch them: no overflow when
// the header's size is added, no allocation for what is only claimed.
func TestHugeLengthsWithoutLimit(t *testing.T) {
	const huge = "\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"
	const tooBig = "fail 1009 MaxMessageSize -1: "
	if math.MaxInt == math.MaxInt32 {
		failConnection(t, unlimited, []string{huge}, tooBig+"9223372036854775807")
		return
	}
	receiveBoth(t, unlimited, []string{huge}, "…inside a frame")
	receiveBoth(t, unlimited, []string{huge + pattern(70_000)}, "…inside a frame") // the feeder watches the buffer
	failConnection(t, unlimited, []string{"\x02\x01a", "\x80" + huge[1:]}, tooBig+"0")
	receiveBoth(t, unlimited, []string{"\x02\x00", "\x80" + huge[1:] + "a"}, "…inside a frame")
}

// Section 8.1, strict: the first byte that cannot be right fails the
// connection, though the message, the frame or even the character is not there yet.
func TestFailConnection_UTF8(t *testing.T) {
	const want = "fail 1007 text is not UTF-8"
	for _, tt := range []struct {
		name   string
		frames []string // failing with the last byte
	}{
		{"first byte of a large message", []string{"\x81\x7f\x00\x00\x00\x00\x00\x0f\xff\xff\xff"}},
		{"in a frame", []string{"\x81\x0ahello\xff"}},
		{"at the end of a frame", []string{"\x81\x06hello\xff"}},
		{"at the end of a first frame", []string{"\x01\x06hello\xff"}},
		{"second byte of a character", []string{"\x81\x0ahello\xe0\x80"}},
		{"third byte of a character", []string{"\x81\x0ahello\xf4\x8f\x00"}},
		{"surrogate", []string{"\x81\x0ahello\xed\xa0"}},
		{"beyond U+10FFFF", []string{"\x81\x0ahello\xf4\x90"}},
		{"overlong", []string{"\x81\x0ahello\xc0"}},
		{"second fragment", []string{"\x01\x05hello", "\x80\x05\xff"}},
		{"character over two fragments", []string{"\x01\x06hello\xe2", "\x00\x05\x28"}},
		{"character over three fragments", []string{"\x01\x01\xf0", "\x00\x01\x9f", "\x00\x01\x98", "\x80\x01\x28"}},
		{"character around empty fragments", []string{"\x01\x01\xe2", "\x00\x00", "\x89\x00", "\x80\x01\x28"}},
		{"incomplete at the end of a frame", []string{"\x81\x07hello\xe2\x82"}},
		{"incomplete at the end of a message", []string{"\x01\x06hello\xe2", "\x80\x01\x82"}},
		{"incomplete, then an empty last fragment", []string{"\x01\x06hello\xe2", "\x80\x00"}},
		{"a continuation byte alone", []string{"\x81\x01\x80"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := []string{want}
			if slices.Contains(tt.frames, "\x89\x00") {
				want = []string{`ping ""`, want[0]}
			}
			failConnection(t, usual, tt.frames, want...)
		})
	}
	// Far behind, in a frame that goes through space.
	text := strings.Repeat("é", 10_000)
	failConnection(t, usual, []string{"\x81\x7f\x00\x00\x00\x00\x00\x02\x00\x00" + text + "\xff"}, want)
	failConnection(t, usual, []string{"\x81\x7f\x00\x00\x00\x00\x00\x02\x00\x00" + text + "\xc3\xc3"}, want)
}

// Section 5.6: binary data is anything; text is every character, cut anywhere.
func TestSection8_1_UTF8_RightText(t *testing.T) {
	receiveBoth(t, usual, []string{"\x82\x03\xff\xfe\xc3", "\x02\x01\xe2", "\x80\x01\x28"}, `binary "\xff\xfe\xc3"`, `binary "\xe2("`)
	receiveBoth(t, usual, []string{"\x81\x0a\x00é€😀"}, message(Text, "\x00é€😀"))
	receiveBoth(t, usual, []string{"\x81\x03\xef\xbf\xbd", "\x81\x04\xf4\x8f\xbf\xbf"}, message(Text, "\ufffd"), message(Text, "\U0010ffff"))
	receiveBoth(t, usual, []string{"\x01\x01\xf0", "\x00\x01\x9f", "\x00\x00", "\x00\x01\x98", "\x80\x01\x80"}, message(Text, "😀"))
	// The check begins anew with each message.
	receiveBoth(t, usual, []string{"\x01\x01\xc3", "\x80\x01\xa9", "\x01\x01a", "\x80\x01b"}, `text "é"`, `text "ab"`)
	text := strings.Repeat("😀é€x", 2500)
	receiveBoth(t, usual, []string{"\x81\x7e\x61\xa8" + text}, message(Text, text))
}

// A message that lies in the block is handed out where it lies, and what the
// program appends to it does not run into the next frame.
func TestMessageInPlace(t *testing.T) {
	block := []byte("\x82\x02ab\x81\x01c")
	c := core{client: true, limits: &usual}
	ev, n := c.next(block)
	if ev.kind != evMessage || n != 4 || unsafe.SliceData(ev.data) != &block[2] || c.part != nil {
		t.Fatalf("%v, %d: not in place", ev.kind, n)
	}
	_ = append(ev.data, 'X')
	if ev, _ = c.next(block[n:]); string(ev.data) != "c" {
		t.Errorf("next message: %q", ev.data)
	}
	// An empty one too is data, not nil.
	if ev, _ = c.next([]byte("\x82\x00")); ev.data == nil || len(ev.data) != 0 {
		t.Errorf("empty message: %#v", ev.data)
	}
}

// The peer announces 1 GB and sends next to nothing.
func TestSpaceIsBoundedByArrival(t *testing.T) {
	for _, client := range []bool{true, false} {
		stream := "\x82\x7f\x00\x00\x00\x00\x40\x00\x00\x00a"
		if !client {
			stream = dialler(stream)
		}
		f := newFeeder(t, client, unlimited)
		f.feed([]byte(stream))
		if c := cap(f.core.part.buf.b); c > 512 {
			t.Errorf("1 byte arrived, a buffer of %d", c)
		}
		if room := f.core.space(); len(room) < 4<<10 || cap(f.core.part.buf.b) > 8<<10 {
			t.Errorf("1 byte arrived, room for %d offered in a buffer of %d", len(room), cap(f.core.part.buf.b))
		}
		f.core.filled(1)
		buffers, last := 0, f.core.part.buf
		for have := 2; have < 3<<20; {
			room := f.core.space()
			if b := f.core.part.buf; b != last {
				buffers, last = buffers+1, b
			}
			if c := cap(f.core.part.buf.b); c > max(8<<10, 8*have) {
				t.Fatalf("%d bytes arrived, a buffer of %d", have, c)
			}
			// As little as a read may bring, or all there is room for.
			n := len(room)
			if have%2 == 0 {
				n = min(n, 1461)
			}
			f.core.filled(n)
			have += n
		}
		if buffers > 6 { // each at least four times the last one's bytes: copying stays linear
			t.Errorf("%d buffers for 3 MiB", buffers)
		}
		f.core.release()
	}
}

// Only what is worth a read of its own goes around the block, never more than
// the frame still needs, and nothing at a header.
func TestSpaceEndsWithFrame(t *testing.T) {
	c := core{client: true, limits: &usual}
	if c.space() != nil {
		t.Error("space before any frame")
	}
	c.next([]byte("\x02\x02a")) // a small frame, incomplete
	if c.space() != nil {
		t.Error("space for one byte")
	}
	c.next([]byte("b"))
	if c.space() != nil {
		t.Error("space between two frames")
	}
	header := []byte("\x80\x7e\xff\xff")
	c.next(header)
	left := 65535
	for {
		room := c.space()
		if room == nil {
			break
		}
		if len(room) > left {
			t.Fatalf("room for %d, %d missing", len(room), left)
		}
		n := min(len(room), 5000)
		clear(room[:n])
		left -= n
		if ev := c.filled(n); ev.kind != evNone && left > 0 {
			t.Fatalf("event %v with %d missing", ev.kind, left)
		}
	}
	if left == 0 || left >= directMin {
		t.Errorf("%d missing without space", left)
	}
	ev, n := c.next(make([]byte, left+3))
	if ev.kind != evMessage || n != left || len(ev.data) != 2+65535 {
		t.Errorf("end: %v, %d used of %d, %d bytes", ev.kind, n, left, len(ev.data))
	}
	c.release()
}

// Sections 5.2 and 5.4: large messages, in one frame and in many, arriving as
// packets or as large reads, come out whole.
func TestLargeMessages(t *testing.T) {
	const mib = 1 << 20
	data := pattern(3 * mib)
	var fragments []string // of 64 KiB
	for i := range 48 {
		head := "\x00\x7f\x00\x00\x00\x00\x00\x01\x00\x00"
		switch i {
		case 0:
			head = "\x02" + head[1:]
		case 47:
			head = "\x80" + head[1:]
		}
		fragments = append(fragments, head+data[i<<16:(i+1)<<16])
	}
	for _, tt := range []struct {
		name   string
		frames []string
		size   int
	}{
		{"1 MiB", []string{"\x82\x7f\x00\x00\x00\x00\x00\x10\x00\x00" + data[:mib]}, mib},
		{"3 MiB", []string{"\x82\x7f\x00\x00\x00\x00\x00\x30\x00\x00" + data}, 3 * mib},
		{"3 MiB in fragments", fragments, 3 * mib},
	} {
		want := []string{message(Binary, data[:tt.size]), `ping ""`}
		for _, client := range []bool{true, false} {
			frames := append(tt.frames[:len(tt.frames):len(tt.frames)], "\x89\x00")
			stream := []byte(strings.Join(frames, ""))
			if !client {
				stream = []byte(diallers(frames))
			}
			for _, piece := range []int{1460, 64 << 10} {
				pieces := slices.Collect(slices.Chunk(stream, piece))
				if got := receiveCut(t, client, unlimited, piece == 64<<10, pieces); !slices.Equal(got, want) {
					t.Errorf("%s, client %v, pieces of %d: %q, want %q", tt.name, client, piece, got, want)
				}
			}
		}
	}
}

// A connection may end anywhere: release takes everything back, also after a
// failure, also twice, and the core begins anew.
func TestRelease(t *testing.T) {
	for _, stream := range []string{
		"", "\x01", "\x01\x05", "\x01\x05He", "\x01\x02He", "\x01\x02He\x00\x00",
		"\x82\x7f\x00\x00\x00\x00\x40\x00\x00\x00abc", "\x01\x02He\x83", "\x01\x02\xff",
	} {
		f := newFeeder(t, true, unlimited)
		f.feed([]byte(stream))
		f.core.space()
		f.core.release()
		f.core.release()
		if f.core.part != nil || !f.core.atHeader() || f.core.space() != nil {
			t.Errorf("% x: not released", stream)
		}
		f.tail, f.events, f.failed = nil, nil, false
		f.feed([]byte("\x01\x01a\x80\x01b"))
		if !slices.Equal(f.events, []string{`text "ab"`}) {
			t.Errorf("% x: afterwards %q", stream, f.events)
		}
	}
}

// sent takes a frame of the dialling side apart by hand: the unmasked rest of
// the bytes, and the key.
func sent(frame []byte) (string, [4]byte) {
	head := 2
	switch frame[1] &^ 0x80 {
	case 126:
		head = 4
	case 127:
		head = 10
	}
	key := [4]byte(frame[head:])
	b := append([]byte(nil), frame[:head]...)
	b[1] &^= 0x80
	return string(b) + xor(string(frame[head+4:]), key, 0), key
}

func TestAppendFrame(t *testing.T) {
	for _, tt := range []struct {
		op      opcode
		payload string
		want    string
	}{
		{opText, "", "\x81\x00"},
		{opText, "Hello", "\x81\x05Hello"},
		{opBinary, pattern(125), "\x82\x7d" + pattern(125)},
		{opBinary, pattern(126), "\x82\x7e\x00\x7e" + pattern(126)},
		{opBinary, pattern(65535), "\x82\x7e\xff\xff" + pattern(65535)},
		{opBinary, pattern(65536), "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + pattern(65536)},
		{opPing, "p", "\x89\x01p"},
		{opPong, pattern(125), "\x8a\x7d" + pattern(125)},
	} {
		p := []byte(tt.payload)
		if got := appendFrame([]byte("before"), tt.op, p, false); string(got) != "before"+tt.want {
			t.Errorf("listening side: % .40x, want % .40x", got[6:], tt.want)
		}
		got := appendFrame([]byte("before"), tt.op, p, true)
		if string(got[:6]) != "before" || got[7]&0x80 == 0 {
			t.Fatalf("dialling side: % .40x is not masked", got)
		}
		if frame, _ := sent(got[6:]); frame != tt.want {
			t.Errorf("dialling side: % .40x, want % .40x", frame, tt.want)
		}
		if string(p) != tt.payload {
			t.Error("the program's bytes were changed")
		}
	}
}

// Section 5.3: "a fresh masking key from the set of allowed 32-bit values" for every frame.
func TestSection5_3_FreshKeys(t *testing.T) {
	seen := map[[4]byte]bool{}
	for range 100 {
		_, key := sent(appendFrame(nil, opText, []byte("Hello"), true))
		seen[key] = true
	}
	if len(seen) < 95 {
		t.Errorf("%d different keys in 100 frames", len(seen))
	}
}

// Section 5.5.1.
func TestAppendClose(t *testing.T) {
	long := strings.Repeat("x", 123)
	for _, tt := range []struct {
		code         StatusCode
		reason, want string
	}{
		{0, "", "\x88\x00"},
		{1000, "", "\x88\x02\x03\xe8"},
		{1001, "bye", "\x88\x05\x03\xe9bye"},
		{4999, "😀", "\x88\x06\x13\x87\xf0\x9f\x98\x80"},
		{1002, long, "\x88\x7d\x03\xea" + long},
	} {
		if got := appendClose([]byte("before"), tt.code, tt.reason, false); string(got) != "before"+tt.want {
			t.Errorf("listening side: %q, want %q", got[6:], tt.want)
		}
		if got, _ := sent(appendClose(nil, tt.code, tt.reason, true)); got != tt.want {
			t.Errorf("dialling side: %q, want %q", got, tt.want)
		}
	}
}

func TestMessageTypeString(t *testing.T) {
	for mt, want := range map[MessageType]string{Text: "text", Binary: "binary", 0: "MessageType(0)", 9: "MessageType(9)"} {
		if mt.String() != want {
			t.Errorf("%q, want %q", mt, want)
		}
	}
}

func TestMessageAllocations(t *testing.T) {
	var (
		inPlace   = []byte(dialler("\x81\x05Hello") + dialler("\x89\x01p") + dialler("\x82\x7e\x03\xe8"+pattern(1000)))
		fragments = []byte(dialler("\x01\x03Hel") + dialler("\x89\x01p") + dialler("\x00\x01l") + dialler("\x80\x01o"))
		large     = []byte(dialler("\x82\x7f\x00\x00\x00\x00\x00\x01\x90\x00" + pattern(100<<10)))
	)
	block := make([]byte, len(large))
	for _, tt := range []struct {
		name     string
		stream   []byte
		piece    int
		messages int
	}{
		{"in place", inPlace, len(inPlace), 2},
		{"in fragments", fragments, len(fragments), 1},
		{"in pieces", inPlace, 800, 2},
		{"100 KiB in blocks", large, 10_000, 1},
		{"100 KiB through space", large, 10_000, 1},
	} {
		direct := strings.HasSuffix(tt.name, "space")
		c := core{limits: &usual}
		wantNoAllocs(t, tt.name, func() {
			messages, have := 0, 0
			handle := func(ev event) {
				switch ev.kind {
				case evMessage:
					messages++
					c.release()
				case evFail:
					t.Fatalf("%s: %v", tt.name, c.fault())
				}
			}
			for rest := tt.stream; len(rest) > 0; {
				if room := c.space(); direct && room != nil {
					n := copy(room, rest)
					rest = rest[n:]
					handle(c.filled(n))
					continue
				}
				k := copy(block[have:have+min(tt.piece, len(rest))], rest)
				rest = rest[k:]
				b := block[:have+k]
				for {
					ev, n := c.next(b)
					handle(ev)
					b = b[n:]
					if ev.kind == evNone && n == 0 {
						break
					}
				}
				have = copy(block, b)
			}
			if messages != tt.messages {
				t.Fatalf("%s: %d messages, want %d", tt.name, messages, tt.messages)
			}
		})
	}
	out := make([]byte, 0, 200)
	p := []byte("Hello")
	wantNoAllocs(t, "appendFrame", func() {
		appendFrame(out, opText, p, false)
		appendFrame(out, opText, p, true)
	})
	wantNoAllocs(t, "appendClose", func() { appendClose(out, 1001, "bye", true) })
}
