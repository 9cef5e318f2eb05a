package peerws

import (
	"math"
	"strings"
	"testing"

	"github.com/peerws/peerws/internal/mask"
)

// The wire bytes in this file are written by hand from RFC 6455.

// pattern returns n bytes that do not repeat in step with a masking key.
func pattern(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return string(b)
}

// xor is §5.3 to the letter: octet i of the data is XORed with octet i MOD 4 of
// the key.
func xor(data string, key [4]byte, offset int) string {
	b := []byte(data)
	for i := range b {
		b[i] ^= key[(offset+i)%4]
	}
	return string(b)
}

var rfcKey = [4]byte{0x37, 0xfa, 0x21, 0x3d} // of the examples in §5.7

var section5_7 = []struct {
	name    string
	wire    string
	header  header
	payload string
}{
	{
		"single-frame unmasked text message",
		"\x81\x05\x48\x65\x6c\x6c\x6f",
		header{fin: true, op: opText, length: 5}, "Hello",
	},
	{
		"single-frame masked text message",
		"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
		header{fin: true, op: opText, masked: true, length: 5, key: rfcKey}, "Hello",
	},
	{
		"fragmented unmasked text message, first frame",
		"\x01\x03\x48\x65\x6c",
		header{op: opText, length: 3}, "Hel",
	},
	{
		"fragmented unmasked text message, last frame",
		"\x80\x02\x6c\x6f",
		header{fin: true, op: opContinuation, length: 2}, "lo",
	},
	{
		"unmasked Ping request",
		"\x89\x05\x48\x65\x6c\x6c\x6f",
		header{fin: true, op: opPing, length: 5}, "Hello",
	},
	{
		"masked Ping response",
		"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
		header{fin: true, op: opPong, masked: true, length: 5, key: rfcKey}, "Hello",
	},
	{
		"256 bytes binary message",
		"\x82\x7E\x01\x00" + pattern(256),
		header{fin: true, op: opBinary, length: 256}, pattern(256),
	},
	{
		"64KiB binary message",
		"\x82\x7F\x00\x00\x00\x00\x00\x01\x00\x00" + pattern(65536),
		header{fin: true, op: opBinary, length: 65536}, pattern(65536),
	},
}

// wantHeader checks that wire, the header of a frame, is parsed as h and made
// from h, and that no truncation of it yields a header or an error.
func wantHeader(t *testing.T, wire string, h header) {
	t.Helper()
	for _, behind := range []string{"", "\x00", "\xff\xff\xff"} {
		got, n, err := parseHeader([]byte(wire + behind))
		if got != h || n != len(wire) || err != nil {
			t.Errorf("parseHeader(% x) = %+v, %d, %v; want %+v, %d", wire+behind, got, n, err, h, len(wire))
		}
	}
	for i := range len(wire) {
		if _, n, err := parseHeader([]byte(wire[:i])); n != 0 || err != nil {
			t.Errorf("parseHeader(% x), cut at %d: n = %d, %v; want 0 and no error", wire[:i], i, n, err)
		}
	}
	if got := appendHeader([]byte("before"), h); string(got) != "before"+wire {
		t.Errorf("appendHeader(%+v) = % x, want % x", h, got[len("before"):], wire)
	}
	if h.length <= math.MaxInt {
		if got := headerSize(int(h.length), h.masked); got != len(wire) {
			t.Errorf("headerSize(%d, %v) = %d, want %d", h.length, h.masked, got, len(wire))
		}
	}
}

// wantViolation checks that want is reported once the first at bytes of wire
// are there, not earlier, and the same however much follows.
func wantViolation(t *testing.T, wire string, at int, want *ProtocolError) {
	t.Helper()
	wire += "\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00"
	for i := range len(wire) {
		_, n, err := parseHeader([]byte(wire[:i]))
		if i < at && (n != 0 || err != nil) {
			t.Errorf("parseHeader(% x) = %d, %v; want 0 and no error before byte %d", wire[:i], n, err, at)
		}
		if i >= at && (n != 0 || err != want) {
			t.Errorf("parseHeader(% x) = %d, %v; want %v from byte %d on", wire[:i], n, err, want, at)
		}
	}
}

func TestSection5_7_Examples(t *testing.T) {
	for _, tt := range section5_7 {
		t.Run(tt.name, func(t *testing.T) {
			size := len(tt.wire) - len(tt.payload)
			wantHeader(t, tt.wire[:size], tt.header)

			p := []byte(tt.wire[size:])
			if tt.header.masked {
				mask.Bytes(p, tt.header.key, 0)
			}
			if string(p) != tt.payload {
				t.Errorf("payload received: %.40q, want %.40q", p, tt.payload)
			}

			frame := append(appendHeader(nil, tt.header), tt.payload...)
			if tt.header.masked {
				mask.Bytes(frame[size:], tt.header.key, 0)
			}
			if string(frame) != tt.wire {
				t.Errorf("frame sent: % .40x, want % .40x", frame, tt.wire)
			}
		})
	}
}

// Section 5.2: the three length forms where one ends and the next begins.
func TestSection5_2_PayloadLength(t *testing.T) {
	for _, tt := range []struct {
		length             int64
		unmasked, withMask string
	}{
		{0, "\x82\x00", "\x82\x80"},
		{1, "\x82\x01", "\x82\x81"},
		{125, "\x82\x7d", "\x82\xfd"},
		{126, "\x82\x7e\x00\x7e", "\x82\xfe\x00\x7e"},
		{127, "\x82\x7e\x00\x7f", "\x82\xfe\x00\x7f"},
		{255, "\x82\x7e\x00\xff", "\x82\xfe\x00\xff"},
		{256, "\x82\x7e\x01\x00", "\x82\xfe\x01\x00"},
		{65535, "\x82\x7e\xff\xff", "\x82\xfe\xff\xff"},
		{65536, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00", "\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00"},
		{1<<31 - 1, "\x82\x7f\x00\x00\x00\x00\x7f\xff\xff\xff", "\x82\xff\x00\x00\x00\x00\x7f\xff\xff\xff"},
		{1 << 31, "\x82\x7f\x00\x00\x00\x00\x80\x00\x00\x00", "\x82\xff\x00\x00\x00\x00\x80\x00\x00\x00"},
		{1 << 32, "\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00", "\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00"},
		{1<<63 - 1, "\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", "\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff"},
	} {
		h := header{fin: true, op: opBinary, length: tt.length}
		wantHeader(t, tt.unmasked, h)
		h.masked, h.key = true, rfcKey
		wantHeader(t, tt.withMask+"\x37\xfa\x21\x3d", h)
	}
}

// Section 5.2: "the minimal number of bytes MUST be used to encode the length".
func TestSection5_2_MinimalLength(t *testing.T) {
	for _, tt := range []struct {
		wire string
		at   int
	}{
		{"\x82\x7e\x00\x00", 4},
		{"\x82\x7e\x00\x05", 4},
		{"\x82\x7e\x00\x7d", 4},
		{"\x82\xfe\x00\x7d", 4}, // and a key that need not be waited for
		// Six zero bytes leave no length that needs this form.
		{"\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x00", 8},
		{"\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x7e", 8},
		{"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", 8},
		{"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", 8},
	} {
		wantViolation(t, tt.wire, tt.at, errLengthMinimal)
	}
}

// Section 5.2: "the most significant bit MUST be 0". Its byte is enough to know.
func TestSection5_2_LengthTopBit(t *testing.T) {
	for _, wire := range []string{
		"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00",
		"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x01",
		"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
		"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		wantViolation(t, wire, 3, errLengthTopBit)
	}
}

// Section 5.2: all 256 first bytes.
func TestSection5_2_OpcodesAndReservedBits(t *testing.T) {
	const (
		reserved = iota
		data
		control
	)
	class := [16]int{
		0x0: data, 0x1: data, 0x2: data,
		0x8: control, 0x9: control, 0xA: control,
	}
	for first := range 256 {
		wire := string([]byte{byte(first), 0x00})
		fin := first >= 0x80
		switch class[first%16] {
		case reserved:
			wantViolation(t, wire, 1, errOpcode)
		case control:
			if !fin {
				wantViolation(t, wire, 1, errControlFin)
				continue
			}
			fallthrough
		case data:
			// RSV1–3 mean nothing here: who knows the extensions judges them.
			wantHeader(t, wire, header{fin: fin, rsv: uint8(first & 0x70), op: opcode(first % 16)})
		}
	}
}

// Section 5.5: a payload of 125 bytes or less, not fragmented.
func TestSection5_5_ControlFrames(t *testing.T) {
	for _, op := range []byte{0x8, 0x9, 0xA} {
		fin, open := string([]byte{0x80 | op}), string([]byte{op})

		h := header{fin: true, op: opcode(op)}
		for length := range 126 {
			h.length = int64(length)
			wantHeader(t, fin+string([]byte{byte(length)}), h)
		}
		wantHeader(t, fin+"\xfd\x37\xfa\x21\x3d", header{fin: true, op: opcode(op), masked: true, length: 125, key: rfcKey})

		wantViolation(t, fin+"\x7e\x00\x7e", 2, errControlLength)
		wantViolation(t, fin+"\xfe\x00\x7e", 2, errControlLength)
		wantViolation(t, fin+"\x7f\x00\x00\x00\x00\x00\x01\x00\x00", 2, errControlLength)
		wantViolation(t, fin+"\xff\x80\x00\x00\x00\x00\x00\x00\x00", 2, errControlLength) // not the top bit
		wantViolation(t, fin+"\x7e\x00\x05", 2, errControlLength)                         // not the form
		wantViolation(t, open+"\x00", 1, errControlFin)
		wantViolation(t, open+"\x7e\x00\x7e", 1, errControlFin)
	}
}

func TestHeaderSizeIsSizeOfHeader(t *testing.T) {
	check := func(length int, masked bool) {
		h := header{fin: true, op: opBinary, masked: masked, length: int64(length)}
		wire := appendHeader(make([]byte, 0, maxHeaderSize), h)
		if size := headerSize(length, masked); size != len(wire) || size > maxHeaderSize {
			t.Fatalf("headerSize(%d, %v) = %d, the header has %d", length, masked, size, len(wire))
		}
	}
	for length := range 66_000 {
		check(length, false)
		check(length, true)
	}
	check(math.MaxInt32, true)
	check(math.MaxInt, false)
	check(math.MaxInt, true)
}

// wantNoAllocs checks that f allocates nothing. The race detector's pools lose
// on purpose what they are given, so there f is only run.
func wantNoAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	if raceMode {
		f()
		return
	}
	if n := testing.AllocsPerRun(100, f); n != 0 {
		t.Errorf("%s: %v allocations a run, want 0", what, n)
	}
}

func TestFrameAllocations(t *testing.T) {
	wires := [][]byte{
		[]byte("\x81\x05Hello"),
		[]byte("\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00\x37\xfa\x21\x3d"),
		[]byte("\x82\x7e\x01"), // cut
		[]byte("\x83"),         // a violation
		[]byte("\x82\x7f\x00\x00\x00\x00\x00\x00"),
	}
	wantNoAllocs(t, "parseHeader", func() {
		for _, b := range wires {
			parseHeader(b)
		}
	})
	dst := make([]byte, 0, maxHeaderSize)
	wantNoAllocs(t, "appendHeader", func() {
		appendHeader(dst, header{fin: true, op: opBinary, masked: true, length: 1 << 20, key: rfcKey})
	})
}

// The texts of violations are Close reasons: they have to fit (§5.5.1).
func TestSection5_5_1_ReasonsOfViolationsFit(t *testing.T) {
	for _, err := range []*ProtocolError{
		errOpcode, errControlFin, errControlLength, errLengthMinimal, errLengthTopBit,
		errMasked, errUnmasked, errRSV, errContinuation, errInterleaved,
		errUTF8, errCloseLength, errCloseCode, errCloseUTF8,
	} {
		if len(err.Reason) > 123 || strings.ToValidUTF8(err.Reason, "") != err.Reason {
			t.Errorf("%q cannot be a close reason", err.Reason)
		}
		if err.Code != 1002 && err.Code != 1007 {
			t.Errorf("%q has code %d", err.Reason, err.Code)
		}
	}
}
