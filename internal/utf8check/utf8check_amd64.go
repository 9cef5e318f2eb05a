//go:build !purego

package utf8check

import "golang.org/x/sys/cpu"

// minAVX2 is the shortest text that goes to checkAVX2. It must be 35 or more: the
// last block begins 32 bytes before the end and looks at the three bytes before it.
const minAVX2 = 35

// Valid reports whether p is UTF-8.
func Valid(p []byte) bool {
	n := len(p)
	if n < minAVX2 || !cpu.X86.HasAVX2 {
		return validPortable(p)
	}
	// checkAVX2 sees what is wrong with a byte and those before it, so a
	// character cut off at the very end is for us to see.
	cut := p[n-1] >= 0xC0 || p[n-2] >= 0xE0 || p[n-3] >= 0xF0
	return !cut && checkAVX2(&p[0], n, &utf8Tables)
}

// checkAVX2 reports whether the n bytes at p are the beginning of UTF-8 text. n is at
// least minAVX2. It reads nothing outside of them.
//
//go:noescape
func checkAVX2(p *byte, n int, tables *textTables) bool

// What can be wrong with two neighbouring bytes. The tables below have a bit
// set where a half byte does not rule the fault out; a bit that all three
// leave is a fault (all of them but twoTails, which may be right).
const (
	tooShort  = 1 << iota // the start of a character, then no continuation byte
	tooLong               // ASCII, then a continuation byte
	overlong2             // C0, C1: would fit one byte
	overlong3             // E0, then 80…9F: would fit two
	surrogate             // ED, then A0…BF: U+D800 to U+DFFF
	tooLarge              // F4…FF, then 90…BF: beyond U+10FFFF
	overlong4             // F0, then 80…8F: would fit three; or F5…FF, then 80…8F: too large
	twoTails              // two continuation bytes, right in a character of three or four only

	anyLow = tooShort | tooLong | twoTails // says nothing about the first byte's low half
	tail   = tooLong | overlong2 | twoTails
)

// textTables is what checkAVX2 loads. The method is that of John Keiser and
// Daniel Lemire, "Validating UTF-8 In Less Than One Instruction Per Byte" (2020).
type textTables struct {
	firstHigh, firstLow, secondHigh [16]byte

	lowHalf      byte // of a byte
	third        byte // x - third is 80 or more if x begins a character of three bytes or four
	fourth       byte // x - fourth is 80 or more if x begins one of four
	expectedTail byte // the fault that is right where a second continuation byte must be
}

var utf8Tables = textTables{
	firstHigh: [16]byte{
		0: tooLong, 1: tooLong, 2: tooLong, 3: tooLong, 4: tooLong, 5: tooLong, 6: tooLong, 7: tooLong,
		0x8: twoTails, 0x9: twoTails, 0xA: twoTails, 0xB: twoTails,
		0xC: tooShort | overlong2,
		0xD: tooShort,
		0xE: tooShort | overlong3 | surrogate,
		0xF: tooShort | overlong4 | tooLarge,
	},
	firstLow: [16]byte{
		0x0: anyLow | overlong2 | overlong3 | overlong4,
		0x1: anyLow | overlong2,
		0x2: anyLow,
		0x3: anyLow,
		0x4: anyLow | tooLarge,
		0x5: anyLow | tooLarge | overlong4, 0x6: anyLow | tooLarge | overlong4, 0x7: anyLow | tooLarge | overlong4,
		0x8: anyLow | tooLarge | overlong4, 0x9: anyLow | tooLarge | overlong4, 0xA: anyLow | tooLarge | overlong4,
		0xB: anyLow | tooLarge | overlong4, 0xC: anyLow | tooLarge | overlong4,
		0xD: anyLow | tooLarge | overlong4 | surrogate,
		0xE: anyLow | tooLarge | overlong4, 0xF: anyLow | tooLarge | overlong4,
	},
	secondHigh: [16]byte{
		0: tooShort, 1: tooShort, 2: tooShort, 3: tooShort, 4: tooShort, 5: tooShort, 6: tooShort, 7: tooShort,
		0x8: tail | overlong3 | overlong4,
		0x9: tail | overlong3 | tooLarge,
		0xA: tail | surrogate | tooLarge,
		0xB: tail | surrogate | tooLarge,
		0xC: tooShort, 0xD: tooShort, 0xE: tooShort, 0xF: tooShort,
	},
	lowHalf:      0x0F,
	third:        0xE0 - 0x80,
	fourth:       0xF0 - 0x80,
	expectedTail: twoTails,
}
