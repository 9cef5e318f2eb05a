package peerws

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// The URL that is dialled.

// parseURL applies the standard's rules for WebSocket URLs and returns the
// serialised record, the request target, and the address to dial.
func parseURL(raw string) (_ *url.URL, target, addr string, _ error) {
	wrong := func(reason string) (*url.URL, string, string, error) {
		return nil, "", "", &SyntaxError{"URL", raw, reason}
	}
	if strings.Contains(raw, "#") { // an empty fragment too, which net/url does not show
		return wrong("must not have a fragment")
	}
	text, mark := markBare(raw)
	u, err := url.Parse(text)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return wrong(err.Error())
	}
	port := ""
	switch u.Scheme {
	case "ws", "http":
		u.Scheme, port = "ws", "80"
	case "wss", "https":
		u.Scheme, port = "wss", "443"
	default:
		return wrong("scheme must be ws, wss, http or https")
	}
	host, own, ok := splitHost(u.Host)
	ip, err := netip.ParseAddr(host)
	switch {
	case !ok || u.Opaque != "" || !validHost([]byte(u.Host)), err != nil && u.Host[0] == '[':
		return wrong("must have a host, in ASCII, and a port of 1 to 65535 if any")
	case err == nil && ip.Is6():
		host = ip.String()
		u.Host = "[" + ip.WithZone("").String() + "]" // a zone means something here only (RFC 6874 §4)
	default:
		host = strings.ToLower(host)
		u.Host = host
	}
	if own = strings.TrimLeft(own, "0"); own != "" && own != port {
		u.Host += ":" + own
		port = own
	}
	u = u.ResolveReference(u) // without dots in the path
	if u.Path == "" {
		u.Path = "/"
	}
	u.RawQuery = escapeQuery(u.RawQuery)
	target = u.RequestURI()
	if mark != "" {
		target = strings.ReplaceAll(target, mark, "%")
		u.Path, u.RawPath = strings.ReplaceAll(u.Path, mark, "%"), ""
	}
	return u, target, net.JoinHostPort(host, port), nil
}

// markBare escapes the path of a URL, so that net/url keeps it, and puts a mark in the place of each % in
// it that is not an escape: the standard lets it stand, net/url does not. The mark is text that
// net/url leaves alone, that raw does not have and that cannot overlap itself;
// "" if there is no such %.
func markBare(raw string) (text, mark string) {
	start := strings.Index(raw, "://") + len("://")
	slash := strings.IndexAny(raw[min(start, len(raw)):], "/?")
	if start < len("://") || slash < 0 {
		return raw, ""
	}
	path, query := raw[start+slash:], ""
	if i := strings.IndexByte(path, '?'); i >= 0 {
		path, query = path[:i], path[i:]
	}
	mark = "~x"
	for strings.Contains(raw, mark) {
		mark += "x"
	}
	marked := replaceBare(path, mark)
	if marked == path {
		mark = ""
	}
	return raw[:start+slash] + escapeBytes(marked, " \"<>\\^`{|}") + query, mark
}

// escapeQuery writes the bytes of a query that a request line cannot have as
// the standard does. net/url leaves them.
func escapeQuery(q string) string {
	return escapeBytes(q, " \"'<>")
}

// escapeBytes escapes those bytes of s that are in set or not ASCII. Control
// characters, which no URL may have, stay.
func escapeBytes(s, set string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= 0x80 || strings.IndexByte(set, c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
