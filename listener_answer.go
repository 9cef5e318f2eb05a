package peerws

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
)

// What the program says in the answer to one request.

// An Answer is the answer to an accepted request as far as
// [ListenConfig.Respond] can change it.
type Answer struct {
	// Header is empty when Respond is called, and added to the answer. A name in
	// it takes the place of the same name in ResponseHeader, and of what handlers
	// around a mounted listener have set; a Set-Cookie is added to theirs.
	// Names that belong to the handshake are not allowed: Connection, Upgrade,
	// Content-Length, Transfer-Encoding and all that begin with Sec-WebSocket-.
	Header http.Header

	// Protocol is the subprotocol, "" for none. When Respond is called it is the
	// one that the listener has chosen from its own. Another one must be one that
	// the peer offers, but need not be one of the listener's. Browsers and our
	// Dialer take no answer without a protocol if they have offered any.
	Protocol string
}

// errAnswer is sent in the place of an answer that Respond has got wrong.
var errAnswer = &refusal{500, nil, "The program here has no valid answer to this request."}

// answer returns the header lines of the program's in the answer to an accepted
// request, and its subprotocol, which c gets too. outer are the lines of handlers
// around a mounted listener.
func (l *WebSocketListener) answer(c *WebSocket, o *opening, outer []byte) (lines []byte, protocol string, _ error) {
	lines = l.header
	if len(outer) > 0 {
		lines = append(bytes.Clone(lines), outer...)
	}
	if o.protocol > 0 {
		protocol = l.protocols[o.protocol-1]
	}
	if l.respond == nil {
		return lines, protocol, nil
	}
	a := Answer{Header: http.Header{}, Protocol: protocol}
	l.respond(l.requestOf(c), &a)
	err := checkHeader("answer's header", a.Header)
	if err == nil && a.Protocol != "" && a.Protocol != protocol && !o.head.offers(a.Protocol) {
		err = &SyntaxError{"answer's protocol", a.Protocol, "is not one of those that the peer offers"}
	}
	switch {
	case err != nil:
		l.logMistake("Respond's answer not sent", err)
		return nil, "", &rejection{errAnswer, err}
	case a.Protocol == "" && o.foreign:
		return nil, "", errNoProtocol
	case a.Protocol != protocol:
		protocol = strings.Clone(a.Protocol)
		c.read.protocol = int16(slices.Index(l.protocols, protocol) + 1)
		if c.read.protocol == 0 {
			c.mu.Lock()
			c.makeRareLocked().protocol = protocol
			c.mu.Unlock()
		}
	}
	if len(a.Header) > 0 {
		var b bytes.Buffer
		b.Write(appendOthers(nil, lines, a.Header))
		a.Header.Write(&b)
		lines = b.Bytes()
	}
	return lines, protocol, nil
}

// offers reports whether the request offers the subprotocol.
func (h *head) offers(protocol string) bool {
	for _, f := range h.fields {
		if !f.is("Sec-WebSocket-Protocol") {
			continue
		}
		for v := range bytes.SplitSeq(f.value, []byte(",")) {
			if string(bytes.Trim(v, " \t")) == protocol {
				return true
			}
		}
	}
	return false
}

// appendOthers appends those of rendered header lines that by, which goes with
// them, does not replace. Cookies do not replace each other (RFC 6265 §3).
func appendOthers(b, lines []byte, by http.Header) []byte {
	if len(by) == 0 {
		return append(b, lines...)
	}
	replaced := make(map[string]bool, len(by))
	for name := range by { // Respond may have written it in any case
		replaced[http.CanonicalHeaderKey(name)] = true
	}
	delete(replaced, "Set-Cookie")
	for line := range bytes.SplitAfterSeq(lines, []byte("\r\n")) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if !replaced[http.CanonicalHeaderKey(string(name))] {
			b = append(b, line...)
		}
	}
	return b
}
