package main

import (
	"strings"
	"testing"
)

// The drawing is square but for half lines, has its quiet zone, and a finder
// pattern in three corners; that a camera reads it is the encoder's matter.
func TestDrawQR(t *testing.T) {
	const link = "http://203.0.113.7:9000/" // 24 bytes: version 2, 25 modules
	if drawQR(link, drawNothing) != "" {
		t.Error("drawn where nothing can be")
	}
	const side = 25 + 2*quiet
	for how, light := range map[drawing]string{drawBlocks: "█", drawColours: " "} {
		s := strings.NewReplacer("\x1b[30;107m", "", "\x1b[0m", "").Replace(drawQR(link, how))
		if how == drawBlocks && strings.Contains(s, "\x1b") {
			t.Error("colours where there are none")
		}
		lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
		if len(lines) != (side+1)/2 {
			t.Fatalf("%d lines", len(lines))
		}
		dark := func(x, y int) bool {
			c := string([]rune(lines[(y+quiet)/2])[x+quiet])
			upper := (y+quiet)%2 == 0
			if how == drawBlocks {
				return c == " " || c == "▀" && !upper || c == "▄" && upper
			}
			return c == "█" || c == "▀" && upper || c == "▄" && !upper
		}
		for i, line := range lines {
			if r := []rune(line); len(r) != side {
				t.Errorf("line %d has %d characters", i, len(r))
			} else if i < quiet/2 && line != strings.Repeat(light, side) || string(r[:quiet]) != strings.Repeat(light, quiet) {
				t.Errorf("line %d: %q", i, line)
			}
		}
		for _, corner := range [][2]int{{0, 0}, {18, 0}, {0, 18}} {
			for y := range 7 {
				for x := range 7 {
					ring := max(max(x-3, 3-x), max(y-3, 3-y)) // from the middle
					if dark(corner[0]+x, corner[1]+y) != (ring != 2) {
						t.Errorf("corner %v: module %d, %d", corner, x, y)
					}
				}
			}
		}
	}
}
