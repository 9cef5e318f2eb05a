package main

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func TestPage(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/", 200}, {"HEAD", "/", 200}, {"GET", "/favicon.ico", 404}, {"GET", "/../", 307}, {"POST", "/", 405},
	} {
		w := httptest.NewRecorder()
		page([]string{"example.com"}, func(string) { t.Error("example.com is a stranger") }).ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.status {
			t.Errorf("%s %s: status %d, want %d", c.method, c.path, w.Code, c.status)
		}
		if w.Code == 200 {
			checkPageHeader(t, w.Header())
		}
		if c.method == "GET" && w.Code == 200 && w.Body.String() != pageHTML {
			t.Error("another page was served")
		}
	}
}

// A page that could not connect says so at once, and so does the terminal.
func TestPageByAnotherName(t *testing.T) {
	for host, want := range map[string]string{
		"room.example": "", "ROOM.example:9000": "", "room.example.": "", "127.0.0.1:9000": "", "[::1]:9000": "", "[::1]": "", "localhost": "",
		"evil.example":           "evil.example",
		"Tunnel.example:9000":    "tunnel.example",
		"room.example.evil:9000": "room.example.evil",
		"<b>":                    "<b>",
	} {
		strange := ""
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		page([]string{"room.example"}, func(name string) { strange = name }).ServeHTTP(w, r)
		switch {
		case strange != want:
			t.Errorf("%s: %q", host, strange)
		case want == "" && w.Code != 200:
			t.Errorf("%s: %d", host, w.Code)
		case want != "" && (w.Code != 421 || !strings.Contains(w.Body.String(), `"`+want+`"`) || !strings.Contains(w.Body.String(), "-host") || w.Header().Get("Content-Type") != "text/plain; charset=utf-8"):
			t.Errorf("%s: %d %v %s", host, w.Code, w.Header(), w.Body)
		}
	}
}

func checkPageHeader(t *testing.T, h http.Header) {
	t.Helper()
	csp := h.Get("Content-Security-Policy")
	if strings.Contains(csp, "unsafe") || !strings.HasPrefix(csp, "default-src 'none'; script-src 'sha256-") {
		t.Errorf("policy %s", csp)
	}
	if h.Get("Content-Type") != "text/html; charset=utf-8" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("header %v", h)
	}
}

// The page needs nothing from elsewhere, and has no way to make markup of what
// people write.
func TestPageIsClosed(t *testing.T) {
	for _, bad := range []string{
		`https?://`, `innerHTML`, `outerHTML`, `insertAdjacentHTML`, `document\.write`, `\beval\b`, `DOMParser`,
		`\bsrc=`, `\bstyle=`, `\bon[a-z]+="`, `@import`, `url\(`,
	} {
		html := strings.ReplaceAll(pageHTML, "http://www.w3.org/2000/svg", "") // a name, not an address
		if m := regexp.MustCompile(bad).FindString(html); m != "" {
			t.Errorf("the page has %s", m)
		}
	}
	for _, tag := range []string{"<script", "<style", "<link"} {
		if n := strings.Count(pageHTML, tag); n != 1 {
			t.Errorf("the page has %d of %s", n, tag)
		}
	}
}
