// Package utf8check checks that text is UTF-8 (RFC 3629): whole, by a vector kernel
// where there is one, or as it arrives in pieces, failing at the first wrong byte.
package utf8check

import (
	"encoding/binary"
	"unicode/utf8"
)

// validPortable reports whether p is UTF-8. Short ASCII, which most messages are,
// would cost utf8.Valid three times as much.
func validPortable(p []byte) bool {
	if n := len(p); 8 <= n && n < 64 {
		all := binary.LittleEndian.Uint64(p[n-8:]) // overlaps the last whole word
		for rest := p; len(rest) > 8; rest = rest[8:] {
			all |= binary.LittleEndian.Uint64(rest)
		}
		if all&0x8080808080808080 == 0 {
			return true
		}
	}
	return utf8.Valid(p)
}

// A Checker checks text that arrives in pieces and says no at the first
// byte that cannot be right (RFC 6455 §8.1), also when the character is still
// incomplete. Its zero value is ready.
type Checker struct {
	carry [utf8.UTFMax]byte // the beginning of a character cut off at the end of the last piece
	n     uint8
}

// Write takes the next piece.
func (u *Checker) Write(p []byte) bool {
	for u.n > 0 && len(p) > 0 {
		u.carry[u.n] = p[0]
		u.n++
		p = p[1:]
		// FullRune calls a sequence full as soon as it is complete or wrong.
		if c := u.carry[:u.n]; utf8.FullRune(c) {
			if r, size := utf8.DecodeRune(c); r == utf8.RuneError && size == 1 {
				return false
			}
			u.n = 0
		}
	}
	// Look for a character cut off at the end: its first byte is one of the last three.
	for i := len(p) - 1; i >= 0 && i >= len(p)-(utf8.UTFMax-1); i-- {
		if !utf8.RuneStart(p[i]) {
			continue
		}
		if !utf8.FullRune(p[i:]) {
			u.n = uint8(copy(u.carry[:], p[i:]))
			p = p[:i]
		}
		break
	}
	return Valid(p)
}

// Complete reports whether the text may end here.
func (u *Checker) Complete() bool { return u.n == 0 }
