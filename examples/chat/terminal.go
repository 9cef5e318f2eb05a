package main

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// A terminal shows what happens, one line for each event.
//
// A goroutine of its own does the writing, for whoever reads our output may be
// slow or stopped, and the room must not wait for that.
type terminal struct {
	queue   chan string
	skipped atomic.Int64  // lines that found the queue full
	broken  chan struct{} // closed when nobody takes the output any more
	closing chan struct{} // closed by close: what comes later is not shown
	done    chan struct{} // closed when the goroutine has ended
}

const terminalQueue = 10_000 // lines

func newTerminal(w io.Writer) *terminal {
	t := &terminal{
		queue:   make(chan string, terminalQueue),
		broken:  make(chan struct{}),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	go t.write(bufio.NewWriter(w))
	return t
}

func (t *terminal) write(out *bufio.Writer) {
	defer close(t.done)
	for broken := false; ; {
		var s string
		select {
		case s = <-t.queue:
		default:
			if out.Flush() != nil && !broken {
				broken = true
				close(t.broken)
			}
			select {
			case s = <-t.queue:
			case <-t.closing:
				// Both may have been ready.
				if len(t.queue) == 0 {
					return
				}
			}
		}
		if n := t.skipped.Swap(0); n > 0 {
			s += "* " + strconv.FormatInt(n, 10) + " lines were not shown: the output was read too slowly\n"
		}
		out.WriteString(s)
	}
}

// print shows a line, and waits while the terminal has more to show than it can.
func (t *terminal) print(s string) {
	select {
	case t.queue <- s + "\n":
	case <-t.done:
	}
}

// offer shows a line without ever waiting: if the terminal is too far behind,
// the line is only counted.
func (t *terminal) offer(s string) {
	select {
	case t.queue <- s + "\n":
	default:
		t.skipped.Add(1)
	}
}

// wipe takes back the line a person has just typed: it comes again when the
// room has taken it.
func (t *terminal) wipe() {
	select {
	case t.queue <- "\x1b[1A\x1b[2K\r":
	default:
	}
}

// close shows what is left, but does not wait for a reader that has stopped.
func (t *terminal) close() {
	close(t.closing)
	select {
	case <-t.done:
	case <-time.After(500 * time.Millisecond):
	}
}

// show is what a person is told of an event; me is what the room calls them.
func show(m message, me string) string {
	name := cleanName(m.Name)
	switch m.Type {
	case typeSay:
		return name + ": " + cleanText(m.Text)
	case typeJoin:
		return "* " + name + " joined"
	case typeLeave:
		if why := cleanText(m.Why); why != "" {
			return "* " + name + " left (" + why + ")"
		}
		return "* " + name + " left"
	case typeWelcome:
		var others []string
		for _, o := range m.Members {
			if o != me {
				others = append(others, cleanName(o))
			}
		}
		here := "nobody else is here yet"
		if len(others) > 0 {
			here = "here with you: " + strings.Join(others, ", ")
		}
		return "* you are " + name + ", " + here
	}
	return ""
}

// An input is what a person types, or another program does.
type input struct {
	r io.Reader

	// person: r is a terminal. Its end means that the person is done, while
	// that of a file or pipe only means that nothing more is to be said.
	person bool

	// echo: what is typed stands in the terminal that we write to.
	echo bool
}

// lines calls say with each line that says something, and returns how many
// those were when the input ends. It ends early when say returns an error.
func (in input) lines(t *terminal, say func(text string) error) int {
	const tooLong = "* that line was not sent: it is longer than 8000 bytes"
	br := bufio.NewReaderSize(in.r, maxText+2)
	said, skipping := 0, false
	for {
		b, err := br.ReadSlice('\n')
		switch full := errors.Is(err, bufio.ErrBufferFull); {
		case skipping:
			skipping = full
		case full:
			t.print(tooLong)
			skipping = true
		default:
			text := cleanText(string(b))
			if len(text) > maxText { // bytes that are no UTF-8 have grown
				t.print(tooLong)
				break
			}
			if in.echo && err == nil {
				t.wipe()
			}
			if text == "" {
				break
			}
			if say(text) != nil {
				return said
			}
			said++
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return said
		}
	}
}
