package peerws

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// Hostile input 37: a token is compared in constant time, and told to nobody.
func TestRequireToken(t *testing.T) {
	tried(t, "37 guessed tokens")
	var logged bytes.Buffer
	c := ListenConfig{
		Authorize: RequireToken("s3cret", "other", ""),
		Logger:    slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	inBubble(t, c, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		at := func(query string) string { return strings.Replace(upgrade, "GET /chat", "GET /chat"+query, 1) }
		header := func(v string) string { return upgradeHead + "Authorization: " + v + "\r\n\r\n" }
		for _, good := range []string{at("?token=s3cret"), at("?a=b&token=other"), header("Bearer s3cret"), header("bearer  other")} {
			dial(good).wantOpen()
		}
		for _, bad := range []string{
			upgrade, at("?token="), at("?token=guessed1"), at("?token=s3cretguessed1"), at("?token=S3CRET"),
			header("Bearer "), header("Bearer guessed1"), header("Basic s3cret"), header("s3cret"),
		} {
			r, body := dial(bad).wantRefusal(401)
			if r.Header.Get("Www-Authenticate") != "Bearer" || strings.Contains(body, "guessed1") {
				t.Errorf("%v %q", r.Header, body)
			}
		}
		if strings.Contains(logged.String(), "guessed1") || !strings.Contains(logged.String(), "status=401") {
			t.Errorf("%s", logged.String())
		}
	})
}
