package utf8check

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// Nothing outside a text is read: it begins at the start of a page and ends at
// the end of one, and its neighbours cannot be read.
func TestUTF8StaysInside(t *testing.T) {
	page := os.Getpagesize()
	m, err := syscall.Mmap(-1, 0, 3*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(m)
	for _, forbidden := range [][]byte{m[:page], m[2*page:]} {
		if err := syscall.Mprotect(forbidden, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	p := m[page : 2*page]
	for _, s := range surroundings {
		copy(p, strings.Repeat(s, 1+page/len(s)))
		for n := range 300 {
			wantValid(t, p[:n], strings.ToValidUTF8(string(p[:n]), "") == string(p[:n]))
			end := p[page-n:]
			wantValid(t, end, strings.ToValidUTF8(string(end), "") == string(end))
		}
		wantValid(t, p, strings.ToValidUTF8(string(p), "") == string(p))
	}
}
