package peerws

import (
	"bytes"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The listening side of the opening handshake (RFC 6455 §4.2): the head is read
// and checked, strictly, and answered. Nothing here is kept or allocated for a
// request that is accepted.

// Refusals that the checks give. Their texts go to the peer.
var (
	errNoUpgrade    = &refusal{426, upgradeHeader, "This port speaks WebSocket; connect with ws://."}
	errPlain        = &refusal{426, http.Header{"Upgrade": {"TLS/1.0"}, "Connection": {"Upgrade"}}, "This port speaks TLS only; connect with wss:// or https://."}
	errMethod       = &refusal{405, http.Header{"Allow": {"GET"}}, "A WebSocket is opened with GET."}
	errHTTPVersion  = &refusal{400, nil, "A WebSocket is opened with HTTP/1.1."}
	errHost         = &refusal{400, nil, "The request needs exactly one valid Host."}
	errBody         = &refusal{400, nil, "A WebSocket request has no body."}
	errTarget       = &refusal{400, nil, "The request target must be a path."}
	errConnection   = &refusal{400, nil, "The request lacks Connection: Upgrade."}
	errVersion      = &refusal{426, upgradeHeader, "This port speaks WebSocket version 13."}
	errVersionTwice = &refusal{400, nil, "The request needs exactly one Sec-WebSocket-Version."}
	errKey          = &refusal{400, nil, "The request needs one Sec-WebSocket-Key of 16 bytes in base64."}
	errOrigins      = &refusal{400, nil, "The request has more than one Origin."}
	errOrigin       = &refusal{403, nil, "Pages of %s may not connect to %s unless AllowedOrigins lists their origin."} // see originRefused
	errOriginHost   = &refusal{403, nil, "Pages of %s may not connect to %s unless AllowedHosts lists that name."}
	errProtocols    = &refusal{400, nil, "The request's Sec-WebSocket-Protocol is malformed."}
	errNoProtocol   = &refusal{400, nil, "None of the offered subprotocols is spoken here."}
	errFull         = &refusal{503, nil, "This peer has no room for another connection (MaxConnections)."}
	errSilent       = &refusal{503, nil, "There are too many others who wait, and no request has come (MaxHandshakes)."}
	errCrowd        = &refusal{503, nil, "There are too many connections from your address (MaxConnectionsPerIP)."}
	errRate         = &refusal{503, http.Header{"Retry-After": {"8"}}, "There are too many new connections from your address (MaxConnectionRatePerIP)."}
	errClosing      = &refusal{503, nil, "This peer is going away."}
)

// upgradeHeader goes with a 426 (RFC 9110 §15.5.22, RFC 6455 §4.2.2).
var upgradeHeader = http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-WebSocket-Version": {"13"}}

// response renders a refusal. The connection ends with it.
func (r *refusal) response() []byte { return r.responseTo(http.MethodGet, nil) }

// responseTo is response to a request with a method: HEAD gets no body (RFC
// 9110 §9.3.2). outer are rendered header lines of handlers around.
func (r *refusal) responseTo(method string, outer []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nConnection: close\r\n", r.status, http.StatusText(r.status))
	if len(outer) > 0 {
		outer = appendOthers(nil, outer, http.Header{"X-Content-Type-Options": nil})
		b.Write(appendOthers(nil, outer, r.header))
	}
	r.header.Write(&b)
	if r.status == http.StatusNotModified { // it ends with its head, RFC 9112 §6.3
		b.WriteString("\r\n")
		return b.Bytes()
	}
	fmt.Fprintf(&b, "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: %d\r\n\r\n", len(r.text)+1)
	if method != http.MethodHead {
		b.WriteString(r.text)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// writeTo answers req through net/http.
func (r *refusal) writeTo(w http.ResponseWriter, req *http.Request) {
	if req.ProtoMajor > 1 { // which has no such fields, and other requests on the connection
		http.Error(w, r.text, r.status)
		return
	}
	h := w.Header()
	maps.Copy(h, r.header)
	h["Connection"] = append([]string{"close"}, r.header["Connection"]...)
	http.Error(w, r.text, r.status)
}

// readHead reads from conn into b until the blank line that ends the head, and
// returns the head's size; bytes of b behind it have come early. b grows up to
// most. It may hold the first bytes already. Deadlines are the caller's. An error
// that is a *refusal has an answer.
func readHead(conn io.Reader, b *buffer, most int) (n int, err error) {
	return readFrom(conn, b, most, false)
}

// readRequestHead is readHead for a request: one empty line before it is not
// looked at, and taken out of b (RFC 9112 §2.2).
func readRequestHead(conn io.Reader, b *buffer, most int) (n int, err error) {
	return readFrom(conn, b, most, true)
}

func readFrom(conn io.Reader, b *buffer, most int, blank bool) (n int, err error) {
	from := 0
	for {
		if blank && b.len() > 1 {
			blank = false
			if b.b[0] == '\r' && b.b[1] == '\n' {
				b.b = b.b[:copy(b.b, b.b[2:])]
			}
		}
		half := blank && b.len() == 1 && b.b[0] == '\r'
		if b.len() > from && !half {
			if n, err := headEnd(b.b, from); err != nil {
				return 0, err
			} else if n > 0 {
				return n, nil
			}
			from = b.len()
			blank = false
		}
		if err != nil {
			return 0, err
		}
		if from >= most {
			if bytes.IndexByte(b.b, '\n') < 0 {
				return 0, errHeadTarget
			}
			return 0, errHeadTooLarge
		}
		if room := min(cap(b.b), most); from == room {
			b.enlarge(min(4*room, most))
		}
		var k int
		k, err = conn.Read(b.b[b.len():min(cap(b.b), most)])
		b.extend(k)
	}
}

// wantsUpgrade reports whether a request asks for a WebSocket, rightly or not.
func (h *head) wantsUpgrade() bool { return h.hasToken("Upgrade", "websocket") }

// An opening is what an accepted request has settled.
type opening struct {
	host, target []byte // windows into the head, like key
	protocol     int    // index in the listener's and 1, or 0
	foreign      bool   // only others than the listener's are offered, of which Respond may choose
	key          []byte
	head         *head // of the request, valid as long as the windows are

	compress bool          // permessage-deflate is accepted, as
	deflate  deflateParams // says
}

// checkRequest checks a request that wants an upgrade by RFC 6455 §4.2.1, the
// policy for origins, and the listener's protocols, of which the first that is
// offered is chosen.
func checkRequest(h *head, p *policy, protocols []string) (o opening, err error) {
	host, hosts := h.get("Host")
	length, lengths := h.get("Content-Length")
	_, encodings := h.get("Transfer-Encoding")
	version, versions := h.get("Sec-WebSocket-Version")
	key, keys := h.get("Sec-WebSocket-Key")
	origin, origins := h.get("Origin")
	switch {
	case string(h.method) != http.MethodGet:
		return o, errMethod
	case !isHTTP11(h.proto):
		return o, errHTTPVersion
	case hosts != 1 || !validHost(host):
		return o, errHost
	case encodings > 0 || lengths > 1 || lengths == 1 && string(length) != "0":
		return o, errBody
	}
	host, target, err := splitTarget(h.target, host)
	switch {
	case err != nil:
		return o, err
	case !h.hasToken("Connection", "upgrade"):
		return o, errConnection
	case versions > 1:
		return o, errVersionTwice
	case string(version) != "13":
		return o, errVersion
	case keys != 1 || !validKey(key):
		return o, errKey
	case origins > 1:
		return o, errOrigins
	case origins == 1:
		if err := p.check(string(origin), h.authority(host), h.ours); err != nil {
			return o, err
		}
	}
	o.key, o.host, o.target, o.head = key, host, target, h
	o.protocol, err = chooseProtocol(h, protocols)
	return o, err
}

// authority is the Host as a browser compares it: over TLS the port that is not
// said is 443. Over plain text it may be that too, with a TLS proxy before us.
func (h *head) authority(host []byte) string {
	if h.secure {
		return withPort(string(host), "https")
	}
	return string(host)
}

// splitTarget returns the authority and the path, perhaps with a query, that a
// request target means, host being the request's Host. A target in absolute form
// has an authority of its own, which replaces that (RFC 9112 §3.2.2); its path
// may be missing. A % in the path need not be an escape: the WHATWG standard
// lets it be.
func splitTarget(t, host []byte) (authority, path []byte, _ error) {
	if bytes.IndexByte(t, '#') >= 0 {
		return nil, nil, errTarget
	}
	if t[0] == '/' { // origin form, §3.2.1
		return host, t, nil
	}
	scheme, rest, ok := bytes.Cut(t, []byte("://"))
	if !ok {
		return nil, nil, errTarget
	}
	switch strings.ToLower(string(scheme)) {
	case "http", "https", "ws", "wss":
	default:
		return nil, nil, errTarget
	}
	n := bytes.IndexAny(rest, "/?")
	if n < 0 {
		n = len(rest)
	}
	if authority = rest[:n]; !validHost(authority) {
		return nil, nil, errHost
	}
	if path = rest[n:]; len(path) == 0 || path[0] == '?' {
		path = append([]byte{'/'}, path...)
	}
	return authority, path, nil
}

// validHost reports whether v can be a Host: a name or address, and perhaps a
// port (RFC 9110 §7.2). It need not be one of ours.
func validHost(v []byte) bool {
	if len(v) == 0 {
		return false
	}
	for _, c := range v {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c):
		case strings.IndexByte("-._~%!$&'()*+,;=:[]", c) >= 0:
		default:
			return false
		}
	}
	_, _, ok := splitHost(string(v))
	return ok
}

// validKey reports whether v is base64 of 16 bytes.
func validKey(v []byte) bool {
	var nonce [18]byte
	if len(v) != base64.StdEncoding.EncodedLen(16) {
		return false
	}
	n, err := base64.StdEncoding.Decode(nonce[:], v)
	return err == nil && n == 16
}

// uniqueProtocols is among how many offers two alike are found, at no cost of memory.
const uniqueProtocols = 16

// chooseProtocol returns the number of the first of ours that is offered, counted
// from 1; 0 is none. Comparison is exact (RFC 6455 §4.2.2). A listener with
// protocols refuses a peer that offers only others, but takes one that offers none.
func chooseProtocol(h *head, ours []string) (int, error) {
	offers, lists := 0, 0
	best := len(ours)
	var seen [uniqueProtocols][]byte
	for _, f := range h.fields {
		if !f.is("Sec-WebSocket-Protocol") {
			continue
		}
		lists++
		for v := range bytes.SplitSeq(f.value, []byte(",")) {
			if v = bytes.Trim(v, " \t"); len(v) == 0 {
				continue // RFC 9110 §5.6.1.2
			}
			if !isTokens(v) {
				return 0, errProtocols
			}
			for _, s := range seen[:min(offers, len(seen))] { // §4.1: all unique
				if bytes.Equal(s, v) {
					return 0, errProtocols
				}
			}
			if offers < len(seen) {
				seen[offers] = v
			}
			offers++
			for i, p := range ours[:best] {
				if p == string(v) {
					best = i
					break
				}
			}
		}
	}
	switch {
	case best < len(ours):
		return best + 1, nil
	case lists > 0 && offers == 0: // §4.3: 1#token
		return 0, errProtocols
	case offers > 0 && len(ours) > 0:
		return 0, errNoProtocol
	}
	return 0, nil
}

// checkProtocols checks a program's protocols by the standard: tokens, no two alike.
func checkProtocols(protocols []string) error {
	for i, p := range protocols {
		if !isTokens(p) {
			return &SyntaxError{"protocol", p, "must be a token: no spaces, no separators, not empty"}
		}
		if slices.Contains(protocols[:i], p) {
			return &SyntaxError{"protocol", p, "given twice"}
		}
	}
	return nil
}

// answerSize is the size of an answer without header lines of the program's and
// with a short protocol, or more.
const answerSize = 256

// appendAnswer appends the response to an accepted request (RFC 6455 §4.2.2),
// with the subprotocol, if there is one, and the rendered header lines of the program's
// behind its own.
func (o *opening) appendAnswer(b, header []byte, protocol string) []byte {
	b = append(b, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	b = appendAccept(b, o.key)
	if protocol != "" {
		b = append(b, "\r\nSec-WebSocket-Protocol: "...)
		b = append(b, protocol...)
	}
	if o.compress {
		b = append(b, "\r\nSec-WebSocket-Extensions: "...)
		b = o.deflate.append(b)
	}
	b = append(b, "\r\n"...)
	b = append(b, header...)
	return append(b, "\r\n"...)
}

// appendAccept appends the Sec-WebSocket-Accept that answers key (§4.2.2).
func appendAccept(b, key []byte) []byte {
	const guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	var text [64]byte
	sum := sha1.Sum(append(append(text[:0], key...), guid...))
	return base64.StdEncoding.AppendEncode(b, sum[:])
}

// checkHeader refuses header lines that would break out of their line or
// contradict the handshake, to which own belong as well.
func checkHeader(what string, h http.Header, own ...string) error {
	for name, values := range h {
		if !isTokens(name) {
			return &SyntaxError{what, name, "not a token"}
		}
		key := http.CanonicalHeaderKey(name)
		switch key {
		case "Upgrade", "Connection", "Content-Length", "Transfer-Encoding":
			return &SyntaxError{what, name, "belongs to the handshake"}
		}
		if strings.HasPrefix(key, "Sec-Websocket-") || slices.Contains(own, key) {
			return &SyntaxError{what, name, "belongs to the handshake"}
		}
		for _, v := range values {
			if !isText(v) {
				return &SyntaxError{what, name, "value has a control character"}
			}
		}
	}
	return nil
}

// Every opening request says these, mostly in these words. They are left out of
// what is kept of it, as are the first line and Host, which WebSocket.url has.
const usualFields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"

// keep returns what of the accepted request, whose head has size bytes, cannot
// be told without it: its unusual fields, or, behind a space, all but Host.
func (h *head) keep(size int) string {
	upgrade, upgrades := h.get("Upgrade")
	connection, connections := h.get("Connection")
	usual := upgrades == 1 && connections == 1 && string(upgrade) == "websocket" && string(connection) == "Upgrade"
	f := newBuffer(2*size + 1)
	defer f.free()
	if !usual {
		f.b = append(f.b, ' ')
	}
	for _, l := range h.fields {
		switch {
		case l.is("Host"), usual && (l.is("Upgrade") || l.is("Connection") || l.is("Sec-WebSocket-Version")):
			continue
		}
		f.b = append(f.b, l.name...)
		f.b = append(f.b, ": "...)
		f.b = append(f.b, l.value...)
		f.b = append(f.b, "\r\n"...)
	}
	return string(f.b)
}

// readRequest returns the opening request for host and target, of which keep has
// returned kept.
func readRequest(host, target, kept, remote string, secure *tls.ConnectionState) *http.Request {
	r := bareRequest(host, target, remote, secure)
	all, ok := strings.CutPrefix(kept, " ")
	if !ok {
		all = usualFields + kept
	}
	r.Header = headerOf(all)
	return r
}

// headerOf returns the header lines of a head that was checked when it came, or
// that we have sent.
func headerOf(lines string) http.Header {
	h := http.Header{}
	for line := range strings.SplitSeq(lines, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Add(name, strings.Trim(value, " \t"))
		}
	}
	return h
}

// bareRequest returns an opening request of which the headers are gone.
func bareRequest(host, target, remote string, secure *tls.ConnectionState) *http.Request {
	return &http.Request{
		Method: http.MethodGet, Host: host, URL: targetURL(target), RequestURI: target, RemoteAddr: remote,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, TLS: secure,
	}
}

// targetURL returns a path, perhaps with a query, as a URL. A % that is not an
// escape stands for itself.
func targetURL(target string) *url.URL {
	path, query, ok := strings.Cut(target, "?")
	u, err := url.ParseRequestURI(replaceBare(path, "%25"))
	if err != nil {
		u = &url.URL{Path: path}
	}
	u.RawQuery, u.ForceQuery = query, ok && query == ""
	return u
}

// replaceBare puts by in the place of each % of path that is not an escape.
func replaceBare(path, by string) string {
	if strings.IndexByte(path, '%') < 0 {
		return path
	}
	var b strings.Builder
	for i := range len(path) {
		if path[i] == '%' && (i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2])) {
			b.WriteString(by)
		} else {
			b.WriteByte(path[i])
		}
	}
	return b.String()
}

func isHex(c byte) bool { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }

// splitHost splits a Host or authority into host, without brackets, and port,
// "" if it has none.
func splitHost(s string) (host, port string, ok bool) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false
		}
		host, s = s[1:end], s[end+1:]
		if host == "" || s != "" && s[0] != ':' {
			return "", "", false
		}
		s = strings.TrimPrefix(s, ":")
	} else {
		host, s, _ = strings.Cut(s, ":")
	}
	if s != "" {
		if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
			return "", "", false
		}
	}
	return host, s, host != "" && !strings.ContainsAny(host, "[]")
}
