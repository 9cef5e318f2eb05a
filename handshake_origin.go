package peerws

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A policy decides which web pages may connect (RFC 6455 §10.2). Programs send
// no Origin and are not its matter.
//
// Origin == Host alone proves nothing: a page of evil.example whose name was
// made to point at this machine (DNS rebinding) sends both with its own name.
// So the name must also be one we know to be ours. Over TLS it is: a browser has
// compared the name with our certificate before it sent a request.
type policy struct {
	origins []string // serialised, lower case; or "*", "null", "file://"
	hosts   []string // names of ours, as hostName makes them
}

// newPolicy checks and normalises the options AllowedOrigins and AllowedHosts.
func newPolicy(origins, hosts []string) (*policy, error) {
	p := &policy{}
	for _, o := range origins {
		if o == "*" || opaqueOrigin(o) {
			p.origins = append(p.origins, o)
			continue
		}
		n, ok := normalOrigin(o)
		if !ok || strings.Contains(n, "*") { // a pattern would match nothing
			return nil, &SyntaxError{"allowed origin", o, `must be scheme://host[:port], "null", "file://" or "*"`}
		}
		p.origins = append(p.origins, n)
	}
	for _, h := range hosts {
		name, ok := hostName(h)
		if !ok {
			return nil, &SyntaxError{"allowed host", h, "must be a host name without a port"}
		}
		p.hosts = append(p.hosts, name)
	}
	return p, nil
}

// hostName returns a host without a port in lower case, without the dot that
// may end a name.
func hostName(s string) (string, bool) {
	name, port, ok := splitHost(s)
	if !ok || port != "" || strings.Contains(s, "*") || !validHost([]byte(s)) {
		return "", false
	}
	return strings.TrimSuffix(strings.ToLower(name), "."), true
}

// opaqueOrigin reports whether o is an origin without a host: of a sandboxed page
// or a file, and "file://" of a file in some app's web view.
func opaqueOrigin(o string) bool { return o == "null" || o == "file://" }

// check returns nil if a page of origin may connect to host, both as they stand in
// the request, or else why not. ours is a name that this request proves to be
// ours, or "".
func (p *policy) check(origin, host, ours string) error {
	if slices.Contains(p.origins, "*") || opaqueOrigin(origin) && slices.Contains(p.origins, origin) {
		return nil
	}
	o, ok := normalOrigin(origin)
	if !ok {
		return errOrigin
	}
	if slices.Contains(p.origins, o) {
		return nil
	}
	scheme, authority, _ := strings.Cut(o, "://")
	switch scheme {
	case "http", "https":
	case "ws", "wss": // a program's that sends the address it dials
	default:
		return errOrigin
	}
	// The page's own host, port included, with the default ports written out.
	if withPort(authority, scheme) != withPort(strings.ToLower(host), scheme) {
		return errOrigin
	}
	name, _, ok := splitHost(strings.ToLower(host))
	if !ok || !p.knows(name) && (ours == "" || !sameName(name, ours)) {
		return errOriginHost
	}
	return nil
}

// sameName compares host names, with or without the dot that may end them.
func sameName(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// An originError is why a page was refused, as the peer is told it.
type originError string

func (e originError) Error() string { return string(e) }

// originRefused makes err, if check said it, one that names the request's origin and
// host. Both are the peer's words: they are quoted, and cut.
func originRefused(err error, h *head) error {
	r, ok := err.(*refusal)
	if !ok || r != errOrigin && r != errOriginHost {
		return err
	}
	const most = 100 // bytes
	origin, _ := h.get("Origin")
	host, _ := h.get("Host")
	if a, _, no := splitTarget(h.target, host); no == nil {
		host = a
	}
	if r == errOriginHost {
		if name, _, ok := splitHost(string(host)); ok {
			host = []byte(name)
		}
	}
	quote := func(b []byte) string {
		if len(b) > most {
			b = append(b[:most:most], "..."...)
		}
		return strconv.QuoteToASCII(string(b))
	}
	text := fmt.Sprintf(r.text, quote(origin), quote(host))
	return &rejection{&refusal{r.status, r.header, text}, originError(text)}
}

// knows reports whether name is ours whatever a name server says: nobody else
// can make an address literal or localhost point here.
func (p *policy) knows(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || slices.Contains(p.hosts, strings.TrimSuffix(name, "."))
}

// withPort adds the scheme's default port to an authority that has none.
func withPort(authority, scheme string) string {
	if _, port, ok := splitHost(authority); ok && port == "" {
		if scheme == "https" || scheme == "wss" {
			return authority + ":443"
		}
		return authority + ":80"
	}
	return authority
}

// normalOrigin returns a serialised origin in lower case, without a default
// port. Anything with a path, query, user or no host is none.
func normalOrigin(s string) (string, bool) {
	scheme, authority, ok := strings.Cut(strings.ToLower(s), "://")
	if !ok || scheme == "" || strings.ContainsAny(authority, "/?#@\\ ") {
		return "", false
	}
	_, port, ok := splitHost(authority)
	if !ok || !validHost([]byte(authority)) {
		return "", false
	}
	switch {
	case port == "80" && (scheme == "http" || scheme == "ws"), port == "443" && (scheme == "https" || scheme == "wss"):
		authority = strings.TrimSuffix(authority, ":"+port)
	}
	return scheme + "://" + authority, true
}
