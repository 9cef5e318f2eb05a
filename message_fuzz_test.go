package peerws

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/peerws/peerws/internal/mask"
)

// FuzzFrame: what parseHeader takes, appendHeader makes again; what it does not
// take, no further byte makes right.
func FuzzFrame(f *testing.F) {
	for _, tt := range section5_7 {
		f.Add([]byte(tt.wire[:min(len(tt.wire), 300)]))
	}
	for _, seed := range []string{
		"",
		"\x88\x02\x03\xe8",
		"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x37\xfa\x21\x3d",
		"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff",
		"\x82\xfe\x00\x7d\x37\xfa\x21\x3d",
		"\x09\x00",
		"\x8a\x7e\x00\x7e",
		"\xf1\x80\x00\x00\x00\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := parseHeader(b)
		if n < 0 || n > len(b) || n > maxHeaderSize || err != nil && n != 0 {
			t.Fatalf("n = %d of %d, %v", n, len(b), err)
		}
		for i := range b {
			hi, ni, erri := parseHeader(b[:i])
			switch {
			case n > 0 && i >= n:
				if hi != h || ni != n || erri != nil {
					t.Fatalf("with %d bytes %+v, %d, %v; with all %+v, %d", i, hi, ni, erri, h, n)
				}
			case ni != 0:
				t.Fatalf("complete with %d bytes, n = %d, not with all: %d", i, ni, n)
			case erri != nil && erri != err:
				t.Fatalf("with %d bytes %v, with all %v", i, erri, err)
			}
		}
		if n == 0 {
			return
		}
		if h.length < 0 || h.op.isControl() && (!h.fin || h.length > 125) {
			t.Fatalf("%+v taken", h)
		}
		if wire := appendHeader(nil, h); string(wire) != string(b[:n]) {
			t.Fatalf("parsed % x, made % x", b[:n], wire)
		}
		if h.length <= math.MaxInt && headerSize(int(h.length), h.masked) != n {
			t.Fatalf("headerSize is not %d", n)
		}
		p := slices.Clone(b[n:])
		mask.Bytes(p, h.key, h.length)
		if string(p) != xor(string(b[n:]), h.key, int(h.length%4)) {
			t.Fatal("wrongly masked")
		}
	})
}

// slowly is RFC 6455 §5 over a stream, written for the eye: one frame after the
// other, copying everything. It tells events as a feeder does, failures without reasons.
func slowly(s []byte, client bool, limits coreLimits) (events []string) {
	var (
		inside    MessageType // of the fragmented message, or 0
		fragments int
		data      string // of the message so far
	)
	fail := func() []string { return append(events, "fail") }
	for len(s) > 0 {
		fin, rsv, op := s[0] >= 0x80, s[0]/0x10%8, s[0]%0x10
		control := op >= 0x8
		if !strings.ContainsRune("\x00\x01\x02\x08\x09\x0a", rune(op)) || control && !fin {
			return fail()
		}
		if len(s) < 2 {
			return events
		}
		masked, length := s[1] >= 0x80, uint64(s[1]%0x80)
		s = s[2:]
		if control && length > 125 {
			return fail()
		}
		if size := map[uint64]int{126: 2, 127: 8}[length]; size > 0 {
			field := s[:min(size, len(s))]
			if size == 8 && len(field) > 0 && field[0] >= 0x80 ||
				size == 8 && strings.HasPrefix(string(field), strings.Repeat("\x00", 6)) {
				return fail()
			}
			if len(field) < size {
				return events
			}
			length = 0
			for _, b := range field {
				length = length*256 + uint64(b)
			}
			if length <= 125 {
				return fail()
			}
			s = s[size:]
		}
		var key [4]byte
		if masked {
			if len(s) < 4 {
				return events
			}
			s = s[copy(key[:], s):]
		}
		if rsv != 0 || masked == client {
			return fail()
		}
		if !control {
			if (op == 0) != (inside != 0) || inside != 0 && limits.maxFragments >= 0 && fragments >= limits.maxFragments+len(data)/512 {
				return fail()
			}
			most := uint64(math.MaxInt)
			if limits.maxMessage >= 0 {
				most = uint64(limits.maxMessage)
			}
			if uint64(len(data))+length > most {
				return fail()
			}
		}
		payload := xor(string(s[:min(length, uint64(len(s)))]), key, 0)
		s = s[len(payload):]
		whole := uint64(len(payload)) == length
		switch {
		case control && !whole:
			return events
		case op == 0x8 && payload == "":
			events = append(events, `close 1005 ""`)
		case op == 0x8:
			if len(payload) == 1 || !utf8.ValidString(payload[2:]) {
				return fail()
			}
			code := int(payload[0])*256 + int(payload[1])
			if code < 1000 || code > 1014 && code < 3000 || code > 4999 || code == 1004 || code == 1005 || code == 1006 {
				return fail()
			}
			events = append(events, fmt.Sprintf("close %d %q", code, payload[2:]))
		case op == 0x9:
			events = append(events, fmt.Sprintf("ping %q", payload))
		case op == 0xA:
			events = append(events, fmt.Sprintf("pong %q", payload))
		default:
			if inside == 0 {
				inside = MessageType(op)
			}
			fragments++
			data += payload
			if inside == Text && (!beginsUTF8(data) || whole && fin && !utf8.ValidString(data)) {
				return fail()
			}
			if !whole {
				return events
			}
			if fin {
				events = append(events, message(inside, data))
				inside, fragments, data = 0, 0, ""
			}
		}
	}
	return events
}

// beginsUTF8 reports whether s is the beginning of UTF-8 text.
func beginsUTF8(s string) bool {
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 {
			return !utf8.FullRuneInString(s)
		}
		s = s[size:]
	}
	return true
}

// FuzzMessage: any bytes, to both roles, make the events that slowly tells,
// however they are cut. The feeder watches that memory stays bounded by what arrived.
func FuzzMessage(f *testing.F) {
	for _, frames := range [][]string{
		{"\x81\x05Hello", "\x82\x02\x00\xff", "\x89\x01p", "\x8a\x00", "\x88\x05\x03\xe8bye"},
		{"\x01\x03Hel", "\x89\x01p", "\x00\x00", "\x80\x02lo", "\x81\x00"},
		{"\x01\x01\xf0", "\x00\x01\x9f", "\x00\x01\x98", "\x80\x01\x80", "\x81\x04\xed\xa0\x80x"},
		{"\x02\x7d" + pattern(125), "\x00\x7e\x00\x7e" + pattern(126), "\x80\x01x"},
		{"\x82\x7e\xff\xff" + pattern(300)},
		{"\x82\x7f\x00\x00\x00\x00\x40\x00\x00\x00" + pattern(300)},
		{"\x02\x02ab", "\x80\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"},
		{"\x82\x7e\x45\x00" + pattern(0x4500), "\x81\x01x"}, // through space
		{"\x01\x00", "\x00\x00", "\x00\x00", "\x00\x00", "\x00\x00", "\x80\x00"},
		{"\x02\x7e\x02\x00" + pattern(512), "\x00\x00", "\x00\x00", "\x00\x00", "\x00\x00", "\x80\x00"},
		{"\x88\x02\x03\xed"}, {"\x88\x01\x03"}, {"\x88\x03\x03\xe8\xff"}, {"\x88\x00"},
		{"\xc1\x01x"}, {"\x83\x00"}, {"\x80\x00"}, {"\x01\x00", "\x81\x00"}, {"\x09\x00"},
	} {
		f.Add([]byte(strings.Join(frames, "")), uint64(1))
		f.Add([]byte(diallers(frames)), uint64(2))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, limits := range []coreLimits{{maxMessage: 18_000, maxFragments: 4}, unlimited} {
			for _, client := range []bool{true, false} {
				whole := receiveCut(t, client, limits, false, [][]byte{stream})
				for _, pieces := range [][][]byte{
					slices.Collect(slices.Chunk(stream, 1)),
					randomPieces(stream, 1+len(stream), rng),
					randomPieces(stream, 20, rng),
				} {
					for _, direct := range []bool{false, true} {
						if got := receiveCut(t, client, limits, direct, pieces); !slices.Equal(got, whole) {
							t.Fatalf("client %v, %d pieces, direct %v: %q, whole %q", client, len(pieces), direct, got, whole)
						}
					}
				}
				if n := len(whole) - 1; n >= 0 && strings.HasPrefix(whole[n], "fail") {
					whole[n] = "fail"
				} else if n >= 0 && strings.HasPrefix(whole[n], "…") {
					whole = whole[:n]
				}
				if want := slowly(stream, client, limits); !slices.Equal(whole, want) {
					t.Fatalf("client %v: %q, want %q", client, whole, want)
				}
			}
		}
	})
}
