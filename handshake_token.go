package peerws

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// RequireToken returns an Authorize that lets in who knows one of the tokens, and refuses
// others with 401. A program sends its token in the header, as
// "Authorization: Bearer TOKEN"; a page, whose WebSocket can set no header, in the URL,
// as "?token=TOKEN". An empty token is nobody's.
//
// How long the comparison takes says nothing of the tokens (in the manner of
// crypto/subtle), and neither the answer nor the log has what was sent. A URL may be
// kept by proxies and by the browser: a token in it should be good for one visit only.
func RequireToken(tokens ...string) func(*http.Request) error {
	var known [][sha256.Size]byte
	for _, t := range tokens {
		if t != "" {
			known = append(known, sha256.Sum256([]byte(t)))
		}
	}
	return func(r *http.Request) error {
		token, ok := bearer(r.Header.Get("Authorization"))
		if !ok {
			token = r.URL.Query().Get("token")
		}
		sum := sha256.Sum256([]byte(token))
		found := 0
		for i := range known { // all of them, whichever it is
			found |= subtle.ConstantTimeCompare(known[i][:], sum[:])
		}
		if found == 1 {
			return nil
		}
		return &RejectError{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {"Bearer"}}, Body: "A token is needed to connect here."}
	}
}

// bearer returns the token in a value of Authorization (RFC 6750 §2.1).
func bearer(v string) (string, bool) {
	scheme, token, ok := strings.Cut(v, " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}
