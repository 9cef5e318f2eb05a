package peerws

import (
	"net/netip"
	"slices"
	"strings"
)

// A policy decides which web pages may connect (RFC 6455 §10.2). Programs send
// no Origin and are not its matter.
//
// Origin == Host alone proves nothing: a page of evil.example whose name was
// made to point at this machine (DNS rebinding) sends both with its own name.
// So the name must also be one we know to be ours.
type policy struct {
	origins []string // serialised, lower case; or "*", "null"
	hosts   []string // names of ours, as hostName makes them
}

// newPolicy checks and normalises the options AllowedOrigins and AllowedHosts.
func newPolicy(origins, hosts []string) (*policy, error) {
	p := &policy{}
	for _, o := range origins {
		if o == "*" || o == "null" {
			p.origins = append(p.origins, o)
			continue
		}
		n, ok := normalOrigin(o)
		if !ok || strings.Contains(n, "*") { // a pattern would match nothing
			return nil, &SyntaxError{"allowed origin", o, `must be scheme://host[:port], "null" or "*"`}
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

// allows reports whether a page of origin may connect to host, both as they
// stand in the request.
func (p *policy) allows(origin, host string) bool {
	if slices.Contains(p.origins, "*") || origin == "null" && slices.Contains(p.origins, "null") {
		return true
	}
	o, ok := normalOrigin(origin)
	if !ok {
		return false
	}
	if slices.Contains(p.origins, o) {
		return true
	}
	scheme, authority, _ := strings.Cut(o, "://")
	if scheme != "http" && scheme != "https" {
		return false
	}
	// The page's own host, port included, with the default ports written out.
	if withPort(authority, scheme) != withPort(strings.ToLower(host), scheme) {
		return false
	}
	name, _, ok := splitHost(strings.ToLower(host))
	return ok && p.knows(name)
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
		if scheme == "https" {
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
	if scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		authority = strings.TrimSuffix(authority, ":"+port)
	}
	return scheme + "://" + authority, true
}
