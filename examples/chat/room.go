package main

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A line is a way to somebody in the room. Neither method may block: a slow
// peer must not hold the others up.
type line interface {
	send(data string) error // errFull: the peer takes less than it is sent
	cut(reason string, c cutCode)
}

var errFull = errors.New("chat: peer is too slow")

// A cutCode says how a line is cut.
type cutCode int

const (
	cutMisuse   cutCode = iota // the peer does not keep to the protocol
	cutSlow                    // it may come back
	cutReplaced                // it came back on another line
)

// The reasons a peer is told when its line is cut.
const (
	reasonSlow     = "too slow: lines were waiting for you and the room did not"
	reasonReplaced = "you are here on another connection now"
	reasonHello    = "the first message must be hello, and only the first"
	reasonLong     = "line too long"
	reasonGarbage  = "not a message of this chat"
	reasonSilent   = "no hello"
)

// whySlow is what the others are told of somebody cut off with reasonSlow.
const whySlow = "too slow"

const (
	maxLog    = 256 << 10 // bytes of events remembered for those who come back
	maxAbsent = 256       // sessions remembered that nobody is in
)

// A room is what everybody in it agrees on: who is there and what was said, in
// which order. It knows no sockets and no clock. Its methods may be called from
// any goroutine; each is one step, seen by everybody at the same place.
type room struct {
	mu      sync.Mutex
	seq     int
	members []*member // in the order they came
	byLine  map[line]*member

	log      []event
	logBytes int

	sessions map[string]*member
	absent   []*member // those of sessions who have left, longest ago first
}

// A member is somebody who is in the room, or has a session and may come back.
type member struct {
	name    string
	session string
	said    int
	line    line // nil while absent
}

// An event is what everybody is sent.
type event struct {
	seq  int
	data string
}

func newRoom() *room {
	return &room{byLine: map[line]*member{}, sessions: map[string]*member{}}
}

// receive takes a message from the peer at l.
func (r *room) receive(l line, m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	who := r.byLine[l]
	switch {
	case (m.Type == typeHello) != (who == nil):
		r.cutLocked(l, reasonHello, cutMisuse)
	case m.Type == typeHello:
		r.joinLocked(l, m)
	case m.Type != typeSay:
		r.cutLocked(l, reasonGarbage, cutMisuse)
	case len(m.Text) > maxText:
		r.cutLocked(l, reasonLong, cutMisuse)
	default:
		who.said++
		r.tellLocked(message{Type: typeSay, Name: who.name, Text: cleanText(m.Text), N: who.said})
	}
}

// leave says that the line l has ended. Nothing happens if the room knew that.
func (r *room) leave(l line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveLocked(l, "")
}

func (r *room) joinLocked(l line, m message) {
	if len(m.Session) > maxSession {
		r.cutLocked(l, reasonGarbage, cutMisuse)
		return
	}
	who := r.sessions[m.Session]
	resumed := who != nil
	if resumed && who.line != nil {
		// We have not noticed yet that the old line is dead. To the others
		// nothing has happened.
		delete(r.byLine, who.line)
		who.line.cut(reasonReplaced, cutReplaced)
	} else {
		if resumed {
			r.absent = slices.DeleteFunc(r.absent, func(o *member) bool { return o == who })
			who.name = r.freeNameLocked(who.name)
		} else {
			who = &member{name: r.freeNameLocked(cleanName(m.Name)), session: m.Session}
			if m.Session != "" {
				r.sessions[m.Session] = who
			}
		}
		r.tellLocked(message{Type: typeJoin, Name: who.name})
		r.members = append(r.members, who)
	}
	who.line = l
	r.byLine[l] = who

	welcome := message{Type: typeWelcome, Name: who.name, Seq: r.seq, Said: who.said, Resumed: resumed}
	for _, o := range r.members {
		welcome.Members = append(welcome.Members, o.name)
	}
	var missed []event
	if resumed {
		after := min(max(m.After, 0), r.seq)
		i, _ := slices.BinarySearchFunc(r.log, after+1, func(e event, seq int) int { return e.seq - seq })
		missed = r.log[i:]
		welcome.Missed = r.seq - after - len(missed)
	}
	err := l.send(encode(welcome))
	for i := 0; i < len(missed) && err == nil; i++ {
		err = l.send(missed[i].data)
	}
	if errors.Is(err, errFull) {
		r.cutLocked(l, reasonSlow, cutSlow)
	}
}

// cutLocked ends l, and tells the others if it was somebody's.
func (r *room) cutLocked(l line, reason string, c cutCode) {
	l.cut(reason, c)
	why := ""
	if c == cutSlow {
		why = whySlow
	}
	r.leaveLocked(l, why)
}

func (r *room) leaveLocked(l line, why string) {
	if who := r.byLine[l]; who != nil {
		r.detachLocked(who)
		r.tellLocked(message{Type: typeLeave, Name: who.name, Why: why})
	}
}

// tellLocked makes m the next event and sends it to everybody. Those who cannot
// take it are cut off, which is an event in its turn; none of these reaches
// them, for they would not know what they missed.
func (r *room) tellLocked(m message) {
	for queue := []message{m}; len(queue) > 0; queue = queue[1:] {
		m := queue[0]
		r.seq++
		m.Seq = r.seq
		e := event{r.seq, encode(m)}
		r.log = append(r.log, e)
		for r.logBytes += len(e.data); r.logBytes > maxLog; r.log = r.log[1:] {
			r.logBytes -= len(r.log[0].data)
		}

		for _, who := range slices.Clone(r.members) {
			// Any other error means that the line has ended; leave will be called.
			if errors.Is(who.line.send(e.data), errFull) {
				who.line.cut(reasonSlow, cutSlow)
				r.detachLocked(who)
				queue = append(queue, message{Type: typeLeave, Name: who.name, Why: whySlow})
			}
		}
	}
}

// detachLocked takes who out of the room. If they have a session they may come
// back.
func (r *room) detachLocked(who *member) {
	delete(r.byLine, who.line)
	who.line = nil
	r.members = slices.DeleteFunc(r.members, func(o *member) bool { return o == who })
	if who.session == "" {
		return
	}
	if r.absent = append(r.absent, who); len(r.absent) > maxAbsent {
		delete(r.sessions, r.absent[0].session)
		r.absent = r.absent[1:]
	}
}

// freeNameLocked returns name, or with the first number that makes it nobody
// else's: ann, ann-2, ann-3. Ann is ann: people are not told apart by case.
func (r *room) freeNameLocked(name string) string {
	taken := func(name string) bool {
		return slices.ContainsFunc(r.members, func(o *member) bool { return strings.EqualFold(o.name, name) })
	}
	free := name
	for i := 2; taken(free); i++ {
		free = name + "-" + strconv.Itoa(i)
	}
	return free
}
