package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

//go:embed page.html
var pageHTML string

// page serves the chat page: one file that needs nothing from elsewhere. Asked by
// a name that is not among names, under which the page could not connect, it says
// so, and calls strange with the name.
func page(names []string, strange func(name string)) http.Handler {
	policy := contentPolicy(pageHTML)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if name := hostOf(r.Host); !isOurs(name, names) {
			strange(name)
			http.Error(w, fmt.Sprintf("This room does not know itself by the name %q, so the page could not connect to it.\n"+
				"Whoever runs the room can start it with the flag -host and that name.", name), http.StatusMisdirectedRequest)
			return
		}
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache") // another peer may be at this address tomorrow
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(pageHTML))
	})
	return mux
}

// hostOf returns the name in a Host header, which may have a port, in lower case.
func hostOf(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// isOurs reports whether the listener lets pages of that host connect.
func isOurs(name string, names []string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil || name == "localhost" || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

// contentPolicy allows the page exactly its own script and style, told by their
// hashes, and a connection back to where it came from. A line of chat that found
// its way into the page as markup could still do nothing.
func contentPolicy(html string) string {
	return "default-src 'none'; " +
		"script-src " + hashOf(html, "<script>", "</script>") + "; " +
		"style-src " + hashOf(html, "<style>", "</style>") + "; " +
		"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
		"require-trusted-types-for 'script'; trusted-types 'none'"
}

// hashOf returns the CSP source for what stands between open and end in html.
func hashOf(html, open, end string) string {
	_, rest, _ := strings.Cut(html, open)
	body, _, ok := strings.Cut(rest, end)
	if !ok {
		panic("page.html has no " + open)
	}
	sum := sha256.Sum256([]byte(body))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
