package peerws

import (
	"context"

	"net/http"
	"net/http/httptest"

	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// everyDoor runs f with a listener that has a port of its own, with an upgrade that
// comes on a kept-alive connection of it, and with a mounted one.
func everyDoor(t *testing.T, c ListenConfig, f func(t *testing.T, knock func(parts ...string) *knocker), protocols ...string) {
	t.Helper()
	t.Run("Listen", func(t *testing.T) {
		l := openPort(t, c, protocols...)
		f(t, func(parts ...string) *knocker { return knock(t, l, parts...) })
	})
	t.Run("HTTP", func(t *testing.T) {
		c := c
		c.HTTP = page
		l := openPort(t, c, protocols...)
		f(t, func(parts ...string) *knocker {
			k := knock(t, l, getPage)
			k.answer("GET")
			k.send(parts...)
			return k
		})
	})
	t.Run("Handler", func(t *testing.T) {
		l, h, err := c.Handler(protocols...)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(h)
		t.Cleanup(func() {
			closePort(t, l)
			s.Close()
		})
		f(t, func(parts ...string) *knocker { return knockAt(t, s, parts...) })
	})
}

// What Authorize puts into the request's context stays with the socket, also
// when the headers have gone.
func TestAuthorize_Context(t *testing.T) {
	type user struct{}
	type seen struct {
		when string
		user any
	}
	got := make(chan seen, 2)
	everyDoor(t, ListenConfig{
		Authorize: func(r *http.Request) error {
			*r = *r.WithContext(context.WithValue(r.Context(), user{}, r.Header.Get("X-Who")))
			return nil
		},
		OnConnection: func(c *WebSocket) {
			if !strings.HasSuffix(c.URL(), "later") {
				got <- seen{"OnConnection", c.Request().Context().Value(user{})}
			}
			c.OnMessage(func(c *WebSocket, m Message) { got <- seen{"OnMessage", c.Request().Context().Value(user{})} })
		},
	}, func(t *testing.T, knock func(parts ...string) *knocker) {
		k := knock(add("X-Who: ann\r\n"), maskedHello)
		k.wantOpen()
		if x := <-got; x != (seen{"OnConnection", "ann"}) {
			t.Error(x)
		}
		if x := <-got; x != (seen{"OnMessage", "ann"}) {
			t.Error(x)
		}
		k = knock(strings.Replace(add("X-Who: bob\r\n"), "/chat", "/later", 1), maskedHello, maskedHello)
		k.wantOpen()
		for range 2 {
			if x := <-got; x != (seen{"OnMessage", "bob"}) {
				t.Error(x)
			}
		}
	})
}

// Those who wait for Accept, and those whose opening handshake ends just then, are
// told what ShutdownWith was given.
func TestShutdownWith_NotHandedOver(t *testing.T) {
	const restart = "\x88\x06\x03\xf4soon"
	for range 20 { // it was a race
		inBubble(t, ListenConfig{}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
			k := dial(upgrade)
			k.wantOpen()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			go l.ShutdownWith(ctx, StatusServiceRestart, "soon")
			k.wantBytes("Close", restart)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l, err := ListenConfig{}.Serve(memnet.Listen(0))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.ShutdownWith(t.Context(), StatusServiceRestart, "soon"); err != nil {
			t.Error(err)
		}
		ours, theirs := memnet.Pipe(0)
		c := newOpenWebSocket(l.set, ours, false, nil)
		l.handOver(c)
		knockOn(t, theirs).wantBytes("Close", restart)
		theirs.Close()
		<-c.Done()
	})
}
