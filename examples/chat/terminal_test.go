package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestInputLines(t *testing.T) {
	long := strings.Repeat("x", maxText)
	for _, c := range []struct {
		in    string
		said  []string
		shown int // lines printed: complaints
	}{
		{"", nil, 0},
		{"\n \n\r\n", nil, 0},
		{"one\ntwo\r\n\nthree", []string{"one", "two", "three"}, 0},
		{"a\x1b[1mb\n", []string{"a[1mb"}, 0},
		{long + "\nnext\n", []string{long, "next"}, 0},
		{long + "y\nnext\n", []string{"next"}, 1},
		{strings.Repeat("z", 5*maxText) + "\nnext\n", []string{"next"}, 1},
		{strings.Repeat("\xff", maxText) + "\nnext\n", []string{strings.Repeat("\uFFFD", 1), "next"}, 0},
		{strings.Repeat("\xffx", maxText/2) + "\nnext\n", []string{"next"}, 1},
		{long + "y", nil, 1},
	} {
		out := &strings.Builder{}
		term := newTerminal(out)
		var said []string
		n := input{r: strings.NewReader(c.in)}.lines(term, func(s string) error { said = append(said, s); return nil })
		term.close()
		if n != len(said) || !slices.Equal(said, c.said) {
			t.Errorf("%.20q: said %d lines %.40q, want %.40q", c.in, n, said, c.said)
		}
		if got := strings.Count(out.String(), "\n"); got != c.shown {
			t.Errorf("%.20q: shows %q", c.in, out)
		}
	}

	term := newTerminal(io.Discard)
	defer term.close()
	n := input{r: strings.NewReader("a\nb\nc\n")}.lines(term, func(s string) error {
		if s == "b" {
			return errors.New("the room is gone")
		}
		return nil
	})
	if n != 1 {
		t.Errorf("%d lines said, want 1", n)
	}
}

// A room's terminal never waits for a reader that has stopped, and says what
// was left out once the reader goes on.
func TestTerminalSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		term := newTerminal(w)
		const all = terminalQueue + 500
		for i := range all {
			term.offer(fmt.Sprint("line ", i))
			synctest.Wait()
		}
		got := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			got <- string(b)
		}()
		synctest.Wait()
		term.close()
		w.Close()
		lines := strings.Split(strings.TrimSpace(<-got), "\n")
		shown, note := 0, 0
		for _, s := range lines {
			if strings.HasPrefix(s, "* ") {
				note++
				continue
			}
			if s != fmt.Sprint("line ", shown) {
				t.Fatalf("line %d is %q", shown, s)
			}
			shown++
		}
		if note != 1 || !slices.Contains(lines, fmt.Sprintf("* %d lines were not shown: the output was read too slowly", all-shown)) {
			t.Errorf("%d of %d lines shown, %d notes", shown, all, note)
		}
	})
	// One that never goes on does not hold up the end.
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		term := newTerminal(w)
		term.offer("x")
		start := time.Now()
		term.close()
		if d := time.Since(start); d > time.Second {
			t.Errorf("close took %v", d)
		}
		r.Close()
		<-term.broken
	})
}

func TestIsTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []*os.File{null, r, w} {
		if isTerminal(f) {
			t.Errorf("%s is taken for a terminal", f.Name())
		}
	}
}

func TestPace(t *testing.T) {
	var p pace
	now := time.Now()
	for i := range paceBurst {
		if d := p.next(now); d != 0 {
			t.Fatalf("line %d waits %v", i, d)
		}
	}
	for range 100 { // a flood goes at one every paceStep
		d := p.next(now)
		if d != paceStep {
			t.Fatalf("waits %v", d)
		}
		now = now.Add(d)
	}
	now = now.Add(time.Hour)
	for range paceBurst {
		if p.next(now) != 0 {
			t.Fatal("the burst did not come back")
		}
	}
}

func TestRoomURL(t *testing.T) {
	for in, want := range map[string]string{
		"ws://10.0.0.1:9000/":     "ws://10.0.0.1:9000/",
		"http://10.0.0.1:9000/":   "ws://10.0.0.1:9000/",
		"HTTP://Example.test":     "ws://Example.test",
		"https://example.test/#x": "wss://example.test/",
		"wss://[::1]:1/a?b":       "wss://[::1]:1/a?b",
		"":                        "",
		"9000":                    "",
		"10.0.0.1:9000":           "",
		"example.test:9000":       "",
		"ftp://x/":                "",
		"ws://":                   "",
		"ws://:9000/":             "",
		"ws://[::1/":              "",
	} {
		got, err := roomURL(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("roomURL(%q) = %q, %v; want %q", in, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error has more than one line", in)
		}
	}
}
