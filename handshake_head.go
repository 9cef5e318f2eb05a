package peerws

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
)

// This file takes an HTTP/1.1 message head apart (RFC 9112), strictly and
// without copying: pure functions over the bytes as they came. Both opening
// handshakes use it.

const maxFields = 64

// A field is one header line.
type field struct{ name, value []byte }

// is reports whether the field is called name.
func (f *field) is(name string) bool {
	return len(f.name) == len(name) && strings.EqualFold(string(f.name), name)
}

// A head is a request's or response's start line and fields, as windows into
// the bytes they came in.
type head struct {
	method, target, proto []byte // of a request
	secure                bool   // the request came over TLS
	ours                  string // a host name that is ours, as TLS or the program's mux shows
	fields                []field
	store                 [maxFields]field
}

// Heads are 3 KiB each, and needed for a moment.
var headPool = sync.Pool{New: func() any { return new(head) }}

func newHead() *head { return headPool.Get().(*head) }

// free gives h back, with no window left in it.
func (h *head) free() {
	*h = head{}
	headPool.Put(h)
}

// A refusal is why a request is not accepted and what its sender is told.
type refusal struct {
	status int
	header http.Header // added to the answer
	text   string      // one plain sentence
}

func (r *refusal) Error() string { return r.text }

// The texts fit requests and answers.
var (
	errHeadLine     = &refusal{400, nil, "The first line is not HTTP/1.1."}
	errHeadEnd      = &refusal{400, nil, "Header lines must end in CR LF."}
	errHeadFold     = &refusal{400, nil, "Folded header lines are not accepted."}
	errHeadName     = &refusal{400, nil, "A header name has a character it must not have."}
	errHeadValue    = &refusal{400, nil, "A header value has a character it must not have."}
	errHeadFields   = &refusal{431, nil, "There are too many header lines."}
	errHeadTooLarge = &refusal{431, nil, "The header lines are too large."}
	errHeadTarget   = &refusal{414, nil, "The first line is too long."}
)

// headEnd returns the size of the head at the start of b, its blank line
// included, or 0 if it is not complete. from is how much of b an earlier call
// has seen without finding the end, so that a slow peer costs linear time. What
// cannot become a head is refused before its end is seen: clients of other
// protocols say a line, or a byte, and wait.
func headEnd(b []byte, from int) (n int, err error) {
	if from == 0 && len(b) > 0 && !isToken(b[0]) {
		return 0, errHeadLine
	}
	for i := max(from-3, 0); ; {
		k := bytes.IndexByte(b[i:], '\n')
		if k < 0 {
			return 0, nil
		}
		i += k
		if i == 0 || b[i-1] != '\r' {
			return 0, errHeadEnd
		}
		if bytes.IndexByte(b, '\n') == i && !bytes.Contains(b[:i], []byte("HTTP/")) {
			return 0, errHeadLine
		}
		if i >= 3 && b[i-2] == '\n' {
			return i + 1, nil
		}
		i++
	}
}

// parseRequest takes a whole request head apart.
func (h *head) parseRequest(b []byte) error {
	line, rest, _ := bytes.Cut(b, []byte("\r\n"))
	var ok bool
	if h.method, line, ok = bytes.Cut(line, []byte(" ")); !ok || !isTokens(h.method) {
		return errHeadLine
	}
	if h.target, h.proto, ok = bytes.Cut(line, []byte(" ")); !ok || len(h.target) == 0 {
		return errHeadLine
	}
	for _, c := range h.target {
		if c <= ' ' || c >= 0x7F {
			return errHeadLine
		}
	}
	if !isProto(h.proto) {
		return errHeadLine
	}
	return h.parseFields(rest)
}

// parseResponse takes a whole response head apart.
func (h *head) parseResponse(b []byte) (status int, _ error) {
	line, rest, _ := bytes.Cut(b, []byte("\r\n"))
	proto, line, _ := bytes.Cut(line, []byte(" "))
	code, reason, _ := bytes.Cut(line, []byte(" "))
	if !isProto(proto) || proto[5] != '1' || len(code) != 3 || !isText(reason) {
		return 0, errHeadLine
	}
	for _, c := range code {
		if !isDigit(c) {
			return 0, errHeadLine
		}
		status = status*10 + int(c-'0')
	}
	return status, h.parseFields(rest)
}

// isProto reports whether p is an HTTP version as RFC 9112 §2.3 writes it.
func isProto(p []byte) bool {
	return len(p) == 8 && string(p[:5]) == "HTTP/" && isDigit(p[5]) && p[6] == '.' && isDigit(p[7])
}

// isHTTP11 reports whether p is HTTP/1.1 or a later minor version, which is
// taken for that (RFC 9110 §2.5).
func isHTTP11(p []byte) bool { return isProto(p) && p[5] == '1' && p[7] >= '1' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseFields takes the lines behind the start line apart, up to the blank one.
func (h *head) parseFields(b []byte) error {
	h.fields = h.store[:0]
	for {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\r\n"))
		if len(line) == 0 {
			return nil
		}
		if line[0] == ' ' || line[0] == '\t' {
			return errHeadFold // obs-fold, RFC 9112 §5.2
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isTokens(name) { // "Name :" too, §5.1
			return errHeadName
		}
		if !isText(value) {
			return errHeadValue
		}
		if len(h.fields) == maxFields {
			return errHeadFields
		}
		h.fields = append(h.fields, field{name, bytes.Trim(value, " \t")})
	}
}

// get returns the value of the first field called name and how many there are.
func (h *head) get(name string) (value []byte, n int) {
	for _, f := range h.fields {
		if f.is(name) {
			if n == 0 {
				value = f.value
			}
			n++
		}
	}
	return value, n
}

// hasToken reports whether one of the fields called name lists token, in any case.
func (h *head) hasToken(name, token string) bool {
	for _, f := range h.fields {
		if !f.is(name) {
			continue
		}
		for v := range bytes.SplitSeq(f.value, []byte(",")) {
			if v = bytes.Trim(v, " \t"); len(v) == len(token) && strings.EqualFold(string(v), token) {
				return true
			}
		}
	}
	return false
}

// isToken reports whether c may stand in a token (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c):
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// isText reports whether s may stand in a field value (RFC 9110 §5.5): control
// characters may not.
func isText[T string | []byte](s T) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7F {
			return false
		}
	}
	return true
}

// isTokens reports whether s is a token.
func isTokens[T string | []byte](s T) bool {
	for i := range len(s) {
		if !isToken(s[i]) {
			return false
		}
	}
	return len(s) > 0
}
