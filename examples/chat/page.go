package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
	"strings"
	"time"
)

//go:embed page.html
var pageHTML string

// page serves the chat page: one file that needs nothing from elsewhere.
func page() http.Handler {
	policy := contentPolicy(pageHTML)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache") // another peer may be at this address tomorrow
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(pageHTML))
	})
	return mux
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
