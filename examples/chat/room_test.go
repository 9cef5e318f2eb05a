package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A fakeLine is a peer that keeps what it is sent.
type fakeLine struct {
	got    []message
	room   int // how many more it takes; negative = any number
	isCut  bool
	reason string
	code   cutCode
}

func (l *fakeLine) send(data string) error {
	if l.isCut {
		panic("sent to a line that was cut")
	}
	if l.room == 0 {
		return errFull
	}
	l.room--
	m, ok := decode([]byte(data))
	if !ok {
		panic("the room sent " + data)
	}
	l.got = append(l.got, m)
	return nil
}

func (l *fakeLine) cut(reason string, c cutCode) {
	if l.isCut {
		panic("cut twice")
	}
	l.isCut, l.reason, l.code = true, reason, c
}

// lines shows what a person at l would see, and forgets it.
func (l *fakeLine) lines() string {
	var s []string
	for _, m := range l.got {
		switch m.Type {
		case typeWelcome:
			s = append(s, "you="+m.Name+" here="+strings.Join(m.Members, ","))
		case typeSay:
			s = append(s, m.Name+": "+m.Text)
		default:
			s = append(s, m.Type+" "+m.Name)
		}
	}
	l.got = nil
	return strings.Join(s, "; ")
}

func (l *fakeLine) last(t *testing.T) message {
	t.Helper()
	if len(l.got) == 0 {
		t.Fatal("nothing was sent")
	}
	return l.got[len(l.got)-1]
}

func newLine() *fakeLine { return &fakeLine{room: -1} }

func enter(r *room, name string) *fakeLine {
	l := newLine()
	r.receive(l, message{Type: typeHello, Name: name})
	return l
}

func say(r *room, l line, text string) { r.receive(l, message{Type: typeSay, Text: text}) }

func want(t *testing.T, l *fakeLine, lines string) {
	t.Helper()
	if got := l.lines(); got != lines {
		t.Errorf("got  %s\nwant %s", got, lines)
	}
}

func TestRoomTalk(t *testing.T) {
	r := newRoom()
	ann := enter(r, "ann")
	want(t, ann, "you=ann here=ann")
	bob := enter(r, "bob")
	want(t, bob, "you=bob here=ann,bob")
	say(r, ann, "hello")
	say(r, bob, "hi\x1b[2J ann\n")
	want(t, ann, "join bob; ann: hello; bob: hi[2J ann")
	want(t, bob, "ann: hello; bob: hi[2J ann")
	r.leave(bob)
	r.leave(bob)
	say(r, ann, "alone")
	want(t, ann, "leave bob; ann: alone")
	want(t, bob, "")
}

func TestRoomNames(t *testing.T) {
	r := newRoom()
	first := enter(r, "ann")
	for i, c := range []struct{ wish, name string }{
		{"ann", "ann-2"}, {"Ann", "Ann-3"}, {"ann-2", "ann-2-2"}, {"", "guest"}, {" \x00\n", "guest-2"},
	} {
		if got := enter(r, c.wish).last(t).Name; got != c.name {
			t.Errorf("%d: wished for %q, called %q, want %q", i, c.wish, got, c.name)
		}
	}
	r.leave(first)
	if got := enter(r, "ann").last(t).Name; got != "ann" {
		t.Errorf("called %q, want the name that is free again", got)
	}
}

// Everybody sees the same events in the same order, each once: the numbers have
// no gap.
func TestRoomOrder(t *testing.T) {
	r := newRoom()
	var lines []*fakeLine
	for i := range 8 {
		lines = append(lines, enter(r, fmt.Sprint("peer", i)))
	}
	start := r.seq
	for _, l := range lines {
		l.lines()
	}
	var wg sync.WaitGroup
	for _, l := range lines {
		wg.Go(func() {
			for i := range 100 {
				say(r, l, fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	for _, l := range lines {
		said := map[string]int{}
		for i, m := range l.got {
			said[m.Name]++
			if m.Seq != start+1+i || m.N != said[m.Name] || m.Text != fmt.Sprint(m.N-1) {
				t.Fatalf("event %d is %+v", i, m)
			}
		}
		if !slices.EqualFunc(l.got, lines[0].got, func(a, b message) bool { return encode(a) == encode(b) }) || len(l.got) != 800 {
			t.Fatal("two peers saw different things")
		}
	}
}

func TestRoomCutsSlow(t *testing.T) {
	r := newRoom()
	ann, bob, eve, cat := enter(r, "ann"), enter(r, "bob"), enter(r, "eve"), enter(r, "cat")
	for _, l := range []*fakeLine{ann, bob, eve, cat} {
		l.lines()
	}
	bob.room, eve.room = 1, 1
	say(r, ann, "one")
	say(r, ann, "two") // too much for bob and eve
	say(r, ann, "three")
	everything := "ann: one; ann: two; leave bob; leave eve; ann: three"
	want(t, cat, everything)
	if m := ann.got[2]; m.Why != whySlow {
		t.Errorf("the others are told %q", m.Why)
	}
	want(t, ann, everything)
	for _, l := range []*fakeLine{bob, eve} {
		want(t, l, "ann: one")
		if !l.isCut || l.reason != reasonSlow || l.code != cutSlow {
			t.Errorf("cut %v %q %v", l.isCut, l.reason, l.code)
		}
		r.leave(l) // comes later, from the connection's end
	}
	want(t, ann, "")

	narrow := &fakeLine{room: 0}
	r.receive(narrow, message{Type: typeHello, Name: "dan"})
	want(t, ann, "join dan; leave dan")
	if narrow.reason != reasonSlow {
		t.Errorf("cut with %q", narrow.reason)
	}
}

func TestRoomMisuse(t *testing.T) {
	for name, c := range map[string]struct {
		msgs   []message
		reason string
	}{
		"say first":    {[]message{{Type: typeSay, Text: "x"}}, reasonHello},
		"unknown":      {[]message{{Type: typeHello}, {Type: "shout"}}, reasonGarbage},
		"hello again":  {[]message{{Type: typeHello}, {Type: typeHello}}, reasonHello},
		"long line":    {[]message{{Type: typeHello}, {Type: typeSay, Text: strings.Repeat("x", maxText+1)}}, reasonLong},
		"long session": {[]message{{Type: typeHello, Session: strings.Repeat("x", maxSession+1)}}, reasonGarbage},
	} {
		r := newRoom()
		ann, l := enter(r, "ann"), newLine()
		for _, m := range c.msgs {
			r.receive(l, m)
		}
		if !l.isCut || l.reason != c.reason || l.code != cutMisuse {
			t.Errorf("%s: cut %v with %q, want %q", name, l.isCut, l.reason, c.reason)
		}
		if len(r.members) != 1 || r.byLine[line(ann)] == nil {
			t.Errorf("%s: the room has %d members", name, len(r.members))
		}
	}
}

// Somebody whose connection was lost comes back: what they missed is there,
// and the room says which of their lines it has.
func TestRoomResume(t *testing.T) {
	r := newRoom()
	ann := enter(r, "ann")
	bob := newLine()
	r.receive(bob, message{Type: typeHello, Name: "bob", Session: "s3cret"})
	say(r, bob, "one")
	say(r, bob, "two")
	after := ann.last(t).Seq - 1 // bob did not see "two" come back
	r.leave(bob)
	say(r, ann, "where is bob?")

	again := newLine()
	r.receive(again, message{Type: typeHello, Name: "ignored", Session: "s3cret", After: after})
	if w := again.got[0]; !w.Resumed || w.Said != 2 || w.Missed != 0 || w.Seq != r.seq {
		t.Errorf("welcome %+v", w)
	}
	want(t, again, "you=bob here=ann,bob; bob: two; leave bob; ann: where is bob?; join bob")
	say(r, again, "three")
	if m := again.last(t); m.N != 3 {
		t.Errorf("%+v, want the session's third line", m)
	}
	want(t, ann, "you=ann here=ann; join bob; bob: one; bob: two; leave bob; ann: where is bob?; join bob; bob: three")

	// The room has not noticed yet that the connection was lost.
	third := newLine()
	r.receive(third, message{Type: typeHello, Session: "s3cret", After: r.seq})
	if !again.isCut || again.code != cutReplaced {
		t.Error("the old line was not cut")
	}
	r.leave(again)
	again.isCut = false // so that a send to it would show
	want(t, third, "you=bob here=ann,bob")
	say(r, third, "four")
	want(t, third, "bob: four")
	want(t, ann, "bob: four")
}

func TestRoomResumeLimits(t *testing.T) {
	r := newRoom()
	enter(r, "ann")
	hello := message{Type: typeHello, Name: "bob", Session: "s"}
	bob := newLine()
	r.receive(bob, hello)
	r.leave(bob)

	// Somebody took the name; what the room forgot is counted; a number that
	// was never given is no harm.
	cat := enter(r, "bob")
	for range 1000 {
		say(r, cat, strings.Repeat("x", 1000))
	}
	if r.logBytes > maxLog {
		t.Errorf("%d bytes remembered", r.logBytes)
	}
	for _, after := range []int{-5, 0, 1, r.seq, r.seq + 100} {
		l := newLine()
		hello.After = after
		r.receive(l, hello)
		w := l.got[0]
		if w.Name != "bob-2" || !w.Resumed {
			t.Errorf("after %d: welcome %+v", after, w)
		}
		if got, all := len(l.got)-1+w.Missed, r.seq-min(max(after, 0), r.seq-1); w.Missed < 0 || after <= w.Seq-2 && got != all {
			t.Errorf("after %d: %d events sent and %d missed, want %d together", after, len(l.got)-1, w.Missed, all)
		}
		r.leave(l)
	}

	// Sessions of those who left are not remembered for ever.
	for i := range maxAbsent {
		l := newLine()
		r.receive(l, message{Type: typeHello, Session: fmt.Sprint("other", i)})
		r.leave(l)
	}
	l := newLine()
	r.receive(l, hello)
	if l.got[0].Resumed || len(r.sessions) != maxAbsent+1 {
		t.Errorf("resumed %v, %d sessions", l.got[0].Resumed, len(r.sessions))
	}
}
