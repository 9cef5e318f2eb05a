package main

import (
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The protocol between a room and those in it. Each WebSocket message is text:
// one JSON object, whose "type" says what it is.
//
// To the room:
//
//	hello   first of all, once   name; to come back after a lost connection also session, after
//	say     a line               text
//
// From the room:
//
//	welcome answers hello        name, members, seq, said; resumed, missed if the session was known
//	join    somebody came        seq, name
//	leave   somebody went        seq, name, why
//	say     a line               seq, name, text, n
//
// What happens in a room is numbered by seq, and everybody is sent all of it in
// that order: their own lines too, which is how they learn that a line was
// taken. (Nobody is sent their own join; the welcome stands for it.)
//
// A lost connection must neither lose lines nor double them. So a page makes up
// a secret session and sends it with every hello. When it comes back, after is
// the last seq it has seen, and the room sends what followed. Of the lines it
// had sent without seeing them come back, the room has taken the first ones:
// said says how many of this session in all. It sends the others again.
type message struct {
	Type string `json:"type"`

	Name string `json:"name,omitempty"` // hello: the one wished for; else whose act it is, as the room calls them
	Text string `json:"text,omitempty"`
	Seq  int    `json:"seq,omitempty"` // welcome: that of the newest event
	N    int    `json:"n,omitempty"`   // say: it is the n-th line of its author's session
	Why  string `json:"why,omitempty"` // leave: empty if they just left

	Session string `json:"session,omitempty"` // hello: known to nobody else
	After   int    `json:"after,omitempty"`   // hello: the newest seq seen

	Members []string `json:"members,omitempty"` // welcome: everybody here, the new one too
	Said    int      `json:"said,omitempty"`    // welcome: lines the room has taken in this session
	Resumed bool     `json:"resumed,omitempty"` // welcome: the session was known; events after After follow
	Missed  int      `json:"missed,omitempty"`  // welcome: how many of those the room no longer has
}

const (
	typeHello   = "hello"
	typeWelcome = "welcome"
	typeJoin    = "join"
	typeLeave   = "leave"
	typeSay     = "say"
)

// subprotocol is the WebSocket subprotocol that stands for all this.
const subprotocol = "chat"

const (
	maxName    = 24       // runes
	maxText    = 8000     // bytes
	maxSession = 64       // bytes
	maxMessage = 64 << 10 // bytes: a text of maxText, each byte escaped by JSON
)

// encode returns m as it is sent.
func encode(m message) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings, numbers and a bool: there is nothing to fail
	}
	return string(b)
}

// decode is the reverse; false if data is no message.
func decode(data []byte) (message, bool) {
	var m message
	if err := json.Unmarshal(data, &m); err != nil || m.Type == "" {
		return message{}, false
	}
	return m, true
}

// cleanText makes a line of what a peer wrote: no control characters, which
// would command a terminal and forge lines in it, and none that turn the
// direction of what follows. It is done by the room, for everybody, and again
// before printing, for the room may be somebody else's program.
func cleanText(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\u2028' || r == '\u2029':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r):
			return -1
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}

// cleanName makes a name of what a peer wished for: letters, digits, pictures
// and a few signs. A colon and an asterisk are not among them, so that no name
// looks like another's line or like an announcement.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError:
			return -1
		case unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.So) || strings.ContainsRune("-_.'@+", r):
			return r
		}
		return -1
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > maxName {
		s = strings.TrimSpace(string(runes[:maxName]))
	}
	if s == "" {
		return "guest"
	}
	return s
}
