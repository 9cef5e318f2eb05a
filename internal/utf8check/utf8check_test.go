package utf8check

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// rfc3629 is the ABNF of RFC 3629 §4, a row for each alternative.
var rfc3629 = [][][2]byte{
	{{0x00, 0x7F}},
	{{0xC2, 0xDF}, {0x80, 0xBF}},
	{{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}},
	{{0xE1, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}},
	{{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}},
	{{0xEE, 0xEF}, {0x80, 0xBF}, {0x80, 0xBF}},
	{{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
	{{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
	{{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}},
}

// firstWrong returns the index of the first byte of s with which it is no
// longer the beginning of any UTF-8 text, -1 if there is none, and whether s is
// a whole text.
func firstWrong(s string) (at int, whole bool) {
	var rest [][2]byte // what the current character still needs
	for i := range len(s) {
		if len(rest) == 0 {
			for _, row := range rfc3629 {
				if row[0][0] <= s[i] && s[i] <= row[0][1] {
					rest = row
					break
				}
			}
			if rest == nil {
				return i, false
			}
		}
		if s[i] < rest[0][0] || rest[0][1] < s[i] {
			return i, false
		}
		rest = rest[1:]
		if len(rest) == 0 {
			rest = nil
		}
	}
	return -1, rest == nil
}

// wantUTF8 checks a Checker's verdict on s: at once, cut in two at every
// place, and byte by byte.
func wantUTF8(t *testing.T, s string) {
	t.Helper()
	wrong, whole := firstWrong(s)
	if whole != utf8.ValidString(s) {
		t.Fatalf("the reference is wrong about % x", s)
	}
	var u Checker
	for i := range len(s) {
		if ok := u.Write([]byte(s[i : i+1])); ok != (i != wrong) {
			t.Fatalf("% x byte by byte: byte %d is %v, first wrong byte is %d", s, i, ok, wrong)
		} else if !ok {
			break
		}
	}
	if wrong < 0 && u.Complete() != whole {
		t.Fatalf("% x byte by byte: complete is %v", s, !whole)
	}
	for cut := range len(s) + 1 {
		var u Checker
		first := u.Write([]byte(s[:cut]))
		if first != (wrong < 0 || wrong >= cut) {
			t.Fatalf("% x | % x: the first piece is %v, first wrong byte is %d", s[:cut], s[cut:], first, wrong)
		}
		if !first {
			continue
		}
		if ok := u.Write([]byte(s[cut:])); ok != (wrong < 0) {
			t.Fatalf("% x | % x: the second piece is %v, first wrong byte is %d", s[:cut], s[cut:], ok, wrong)
		} else if ok && u.Complete() != whole {
			t.Fatalf("% x | % x: complete is %v", s[:cut], s[cut:], !whole)
		}
	}
}

// Section 8.1: every string of one and of two bytes.
func TestSection8_1_UTF8_AllShortStrings(t *testing.T) {
	wantUTF8(t, "")
	for a := range 256 {
		wantUTF8(t, string([]byte{byte(a)}))
		for b := range 256 {
			wantUTF8(t, string([]byte{byte(a), byte(b)}))
		}
	}
}

// The bytes at the borders of the ranges of RFC 3629.
const borderBytes = "\x00A\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff"

func TestSection8_1_UTF8_BorderStrings(t *testing.T) {
	var s [4]byte
	for i := range len(borderBytes) {
		for j := range len(borderBytes) {
			for k := range len(borderBytes) {
				s[0], s[1], s[2] = borderBytes[i], borderBytes[j], borderBytes[k]
				wantUTF8(t, string(s[:3]))
				if s[0] < 0xED { // four bytes: where a character of three or four begins
					continue
				}
				for l := range len(borderBytes) {
					s[3] = borderBytes[l]
					wantUTF8(t, string(s[:4]))
				}
			}
		}
	}
}

// Characters of all sizes, and what looks like one, inside longer text.
func TestSection8_1_UTF8_Text(t *testing.T) {
	for _, s := range []string{
		"κόσμε",
		"aé€😀aé€😀" + strings.Repeat("x", 40) + "😀",
		"\ufffd",                       // the replacement character itself is right
		"\ufeff\ufffe\uffff\U0010ffff", // so are a byte order mark and noncharacters
		"κόσμε\xed\xa0\x80edited",      // a surrogate
		"κόσμε\xf4\x90\x80\x80edited",  // beyond U+10FFFF
		"a\xc0\xaf",                    // overlong, in two, three and four bytes
		"a\xe0\x80\xaf",
		"a\xf0\x80\x80\xaf",
		"😀\x80",
		"😀\xf0\x9f\x98",
		"\xf8\x88\x80\x80\x80",
		"\xfc\x84\x80\x80\x80\x80",
	} {
		wantUTF8(t, s)
	}
}

// A character in as many pieces as it has bytes, with empty pieces between.
func TestSection8_1_UTF8_EmptyPieces(t *testing.T) {
	var u Checker
	for i, b := range []byte("😀") {
		if u.Complete() != (i == 0) {
			t.Errorf("complete before byte %d", i)
		}
		if !u.Write(nil) || !u.Write([]byte{b}) || !u.Write([]byte{}) {
			t.Errorf("byte %d refused", i)
		}
	}
	if !u.Complete() {
		t.Error("not complete at the end")
	}
}

// Whole texts may be checked in blocks (utf8check_amd64.s): what is right or wrong must be so
// at every place in them.

// wantValid checks Valid's verdict on p.
func wantValid(t *testing.T, p []byte, want bool) {
	t.Helper()
	if Valid(p) != want {
		t.Fatalf("%d bytes, % x: valid is %v", len(p), p, !want)
	}
}

// surroundings are texts that put ASCII or characters of two, three and four
// bytes around what is tested.
var surroundings = []string{
	strings.Repeat("a", 360),
	strings.Repeat("я", 180),
	strings.Repeat("€", 120),
	strings.Repeat("😀", 90),
}

// Section 8.1: every pair of bytes at every offset in two blocks, and more text
// behind it.
func TestSection8_1_UTF8_AllPairsAtAllOffsets(t *testing.T) {
	for _, s := range surroundings {
		around := []byte(s)
		size := len(string([]rune(s)[:1]))
		for at := size * (64 / size); at >= 0; at -= size {
			p := slices.Concat(around[:at], []byte("??"), around[:size*(150/size)])
			for pair := range 1 << 16 {
				a, b := byte(pair>>8), byte(pair)
				p[at], p[at+1] = a, b
				want := utf8.Valid(p[at : at+2])
				if Valid(p) != want {
					t.Fatalf("% x at %d among %q: valid is %v", p[at:at+2], at, s[:size], !want)
				}
			}
		}
	}
}

// Every three bytes, each time at another offset, and every two with two border
// bytes behind them.
func TestSection8_1_UTF8_AllTriplesInsideBlocks(t *testing.T) {
	p := []byte(strings.Repeat("a", 160))
	at := 0
	check := func(s ...byte) {
		at = (at + 1) % 64
		copy(p[at:], s)
		if want := utf8.Valid(s); Valid(p) != want {
			t.Fatalf("% x at %d: valid is %v", s, at, !want)
		}
		for i := range s {
			p[at+i] = 'a'
		}
	}
	for i := range 1 << 16 {
		a, b := byte(i>>8), byte(i)
		for c := range 256 {
			check(a, b, byte(c))
		}
		for _, c := range []byte("\x00\x7f\x80\xbf\xc0\xff") {
			for _, d := range []byte("\x00\x7f\x80\xbf\xc0\xff") {
				check(a, b, c, d)
			}
		}
	}
}

// Faults of every class, and the characters next to them, at every offset of eleven
// blocks, among ASCII and among characters of each size, at the end of the text and
// before more of it.
func TestSection8_1_UTF8_FaultsAtAllOffsets(t *testing.T) {
	for _, tt := range []struct {
		s     string
		valid bool
	}{
		{"\x7f", true}, {"\u0080", true}, {"\u07ff", true}, {"\u0800", true}, {"\ud7ff", true},
		{"\ue000", true}, {"\uffff", true}, {"\U00010000", true}, {"\U0010ffff", true},
		{"\x80", false}, {"\xbf", false}, {"я\x80", false}, {"€\x80", false}, {"😀\x80", false}, // stray
		{"\xc0\x80", false}, {"\xc1\xbf", false}, // overlong
		{"\xe0\x80\x80", false}, {"\xe0\x9f\xbf", false},
		{"\xf0\x80\x80\x80", false}, {"\xf0\x8f\xbf\xbf", false},
		{"\xed\xa0\x80", false}, {"\xed\xbf\xbf", false}, // surrogates
		{"\xf4\x90\x80\x80", false}, {"\xf5\x80\x80\x80", false}, {"\xf7\xbf\xbf\xbf", false}, // too large
		{"\xf8\x88\x80\x80\x80", false}, {"\xfc\x84\x80\x80\x80\x80", false}, {"\xfe", false}, {"\xff", false},
		{"\xd1", false}, {"\xe2", false}, {"\xe2\x82", false}, // cut off
		{"\xf0", false}, {"\xf0\x9f", false}, {"\xf0\x9f\x98", false},
	} {
		for _, s := range surroundings {
			size := len(string([]rune(s)[:1]))
			for at := 0; at < 352; at += size {
				for _, behind := range []int{0, 1, 3, 31, 32, 64, 130, 200} {
					behind -= behind % size
					wantValid(t, slices.Concat([]byte(s[:at]), []byte(tt.s), []byte(s[:behind])), tt.valid)
				}
			}
		}
	}
}

// Every part of a text, which cuts it everywhere on both sides.
func TestSection8_1_UTF8_AllCuts(t *testing.T) {
	text := []byte(strings.Repeat("x€aя😀", 12) + strings.Repeat("a", 140) + strings.Repeat("я€😀", 16))
	for from := range text {
		for to := from; to <= len(text); to++ {
			wantValid(t, text[from:to], utf8.Valid(text[from:to]))
		}
	}
}

func TestUTF8Allocations(t *testing.T) {
	text := []byte("aé€😀aé€😀")
	wantNoAllocs := func(what string, f func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations a run, want 0", what, n)
		}
	}
	wantNoAllocs("Checker", func() {
		var u Checker
		u.Write(text[:9])
		u.Write(text[9:])
	})
	long := []byte(surroundings[1])
	wantNoAllocs("Valid", func() { Valid(long) })
}

// FuzzUTF8: Valid and Checker agree with the standard library, wherever the
// bytes lie in a text, and wherever it is cut in two.
func FuzzUTF8(f *testing.F) {
	for _, seed := range []string{
		"", "a", "я", "€", "😀", "\xff", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80",
		"\xf0\x9f\x98", strings.Repeat("a", 130) + "\x80", strings.Repeat("я", 70), strings.Repeat("€😀", 30), strings.Repeat("Zwölf Boxkämpfer ", 20),
	} {
		f.Add([]byte(seed), uint8(0), uint8(0), uint16(1))
		f.Add([]byte(seed), uint8(31), uint8(33), uint16(40))
	}
	around := []byte(strings.Repeat("a", 256))
	f.Fuzz(func(t *testing.T, b []byte, before, behind uint8, cut uint16) {
		p := slices.Concat(around[:before], b, around[:behind])
		want := utf8.Valid(p)
		if Valid(p) != want {
			t.Fatalf("% x: valid is %v", p, !want)
		}
		var u Checker
		n := min(int(cut), len(p))
		if got := u.Write(p[:n]) && u.Write(p[n:]) && u.Complete(); got != want {
			t.Fatalf("% x | % x: valid is %v", p[:n], p[n:], got)
		}
	})
}

// benchmarkTexts are 16 KiB each.
var benchmarkTexts = []struct{ name, text string }{
	{"ascii", repeated(`{"id":4711,"name":"Ann","tags":["a","b"]},`)},
	{"german", repeated("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ")},
	{"cyrillic", repeated("Съешь же ещё этих мягких французских булок, да выпей чаю. ")},
	{"chinese", repeated("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。")},
}

// repeated is s again and again, in 16 KiB that end with a whole character.
func repeated(s string) string {
	const size = 16 << 10
	n := size / len(s)
	return strings.Repeat(s, n) + strings.Repeat(".", size-n*len(s))
}

// A whole frame, beside the standard library, and the same text in pieces of 1,000
// bytes, which is how a fragmented message comes.
func BenchmarkUTF8(b *testing.B) {
	for _, t := range benchmarkTexts {
		for _, way := range []struct {
			name  string
			valid func([]byte) bool
		}{{"ours", Valid}, {"std", utf8.Valid}} {
			for _, size := range []int{32, 125, 1 << 10, 16 << 10} {
				text := t.text
				if size < len(text) {
					text = strings.ToValidUTF8(text[:size], "")
					text += strings.Repeat(".", size-len(text))
				}
				p := []byte(text)
				b.Run(fmt.Sprintf("%s/%s/size=%d", t.name, way.name, size), func(b *testing.B) {
					b.SetBytes(int64(len(p)))
					b.ReportAllocs()
					for b.Loop() {
						if !way.valid(p) {
							b.Fatal("not valid")
						}
					}
				})
			}
		}
		p := []byte(t.text)
		b.Run(t.name+"/pieces", func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				var u Checker
				for rest := p; len(rest) > 0; {
					n := min(1000, len(rest))
					if !u.Write(rest[:n]) {
						b.Fatal("not valid")
					}
					rest = rest[n:]
				}
				if !u.Complete() {
					b.Fatal("not complete")
				}
			}
		})
	}
}
