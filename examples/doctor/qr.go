package main

import (
	"strings"

	"rsc.io/qr"
)

// A drawing is what a terminal can show.
type drawing int

const (
	drawNothing drawing = iota // it is a file, or a pipe
	drawBlocks                 // block characters, light ones on a dark ground as most terminals have it
	drawColours                // also black and white, whatever its own colours are
)

// quiet is how many light modules have to be around a QR code (ISO/IEC 18004 §6.3.8).
const quiet = 4

// drawQR is a QR code of text, "" if it cannot be drawn. A character is one module
// wide and two high.
func drawQR(text string, how drawing) string {
	if how == drawNothing {
		return ""
	}
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "" // too long, which no link of ours is
	}
	full, upper, lower, empty := "█", "▀", "▄", " "
	begin, end := "\x1b[30;107m", "\x1b[0m\n"
	if how == drawBlocks {
		full, upper, lower, empty = empty, lower, upper, full
		begin, end = "", "\n"
	}
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b.WriteString(begin)
		for x := -quiet; x < code.Size+quiet; x++ {
			switch up, down := code.Black(x, y), code.Black(x, y+1); {
			case up && down:
				b.WriteString(full)
			case up:
				b.WriteString(upper)
			case down:
				b.WriteString(lower)
			default:
				b.WriteString(empty)
			}
		}
		b.WriteString(end)
	}
	return b.String()
}
