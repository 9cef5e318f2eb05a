package peerws

import (
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestStats_Counts(t *testing.T) {
	for _, portable := range []bool{false, true} {
		l := listen(t, ListenConfig{OnConnection: echoing, portable: portable})
		k := knock(t, l, upgrade, maskedHello, maskedHello)
		k.wantOpen()
		k.wantBytes("echo", hello+hello)
		k.send(maskedHello)
		k.wantBytes("echo", hello)
		k.send("\x89\x80abcd")
		k.wantBytes("pong", "\x8a\x00")
		c := l.openSockets()[0]
		want := SocketStats{MessagesReceived: 3, MessagesSent: 3, BytesReceived: 3*11 + 6, BytesSent: 3*7 + 2}
		for start := time.Now(); c.Stats() != want; time.Sleep(time.Millisecond) { // a writer counts what the peer may have already
			if time.Since(start) > 5*time.Second {
				t.Fatalf("portable %v: %+v, want %+v", portable, c.Stats(), want)
			}
		}
		if s := l.Stats(); s.Open != 1 || s.MessagesReceived != 3 || s.MessagesSent != 3 || s.BytesReceived != 39 || s.BytesSent != 23 {
			t.Errorf("portable %v: %+v", portable, s)
		}
		k.send("\x88\x82\x00\x00\x00\x00\x03\xe8") // 1000
		k.wantBytes("close", "\x88\x02\x03\xe8")
		k.conn.Close()
		<-c.Done()
		s := l.Stats()
		if want := []CloseCount{{InitiatorPeer, 1000, 1}}; !reflect.DeepEqual(s.Closed, want) || s.MessagesReceived != 3 || s.BytesReceived != 39+8 || s.BytesSent != 23+4 || s.Open != 0 {
			t.Errorf("portable %v: after the end %+v", portable, s)
		}
		text, err := json.Marshal(s)
		if err != nil || !strings.Contains(string(text), `"Closed":[{"Initiator":"peer","Code":1000,"Count":1}]`) {
			t.Errorf("%s, %v", text, err)
		}
	}
}

// Every way to read and to send counts once.
func TestStats_EveryStyle(t *testing.T) {
	a, d := Pipe(ListenConfig{}, Dialer{})
	ctx := t.Context()
	big := make([]byte, 300<<10)
	p, _ := NewPreparedMessage(Message{Type: Binary, Data: []byte("x")})
	for _, err := range []error{d.SendText("1"), d.SendBinary(big), d.Write(ctx, Message{Type: Binary, Data: big}), d.SendPrepared(p)} {
		if err != nil {
			t.Error(err)
		}
	}
	w, err := d.NextWriter(ctx, Binary)
	if err != nil {
		t.Fatal(err)
	}
	d.SendText("behind it")
	w.Write(big)
	w.Close()
	for range 3 {
		if _, err := a.Read(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, _, err := a.NextReader(ctx); err != nil { // the rest is thrown away
			t.Fatal(err)
		}
	}
	if s := d.Stats(); s.MessagesSent != 6 || s.MessagesReceived != 0 {
		t.Errorf("dialled %+v", s)
	}
	if s := a.Stats(); s.MessagesReceived != 6 || s.MessagesSent != 0 {
		t.Errorf("accepted %+v", s)
	}
	d.Abort()
	a.Abort()
}

// Each refusal is counted by its reason, and Trace is told the same.
func TestStats_RefusedFor(t *testing.T) {
	var mu sync.Mutex
	var told []Refusal
	c := ListenConfig{
		MaxConnections: 1, MaxConnectionsPerIP: 10,
		Authorize: func(r *http.Request) error {
			if strings.HasPrefix(r.URL.Path, "/no") {
				return errors.New("no")
			}
			return nil
		},
		Respond: func(r *http.Request, a *Answer) {
			if strings.HasPrefix(r.URL.Path, "/odd") {
				a.Header.Set("Upgrade", "odd")
			}
		},
		Trace: &Trace{Refused: func(r Refusal) {
			mu.Lock()
			told = append(told, r)
			mu.Unlock()
		}},
	}
	inBubble(t, c, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		at := func(path string) string { return strings.Replace(upgrade, "GET /", "GET "+path, 1) }
		for _, r := range []struct {
			reason RefusalReason
			status int
			parts  []string
		}{
			{RefusedNoUpgrade, 426, []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}},
			{RefusedRequest, 400, []string{"GET / HTTP/1.1\r\nHost : a\r\n\r\n"}},
			{RefusedMaxHeaderBytes, 414, []string{"GET /" + strings.Repeat("a", 9000)}},
			{RefusedOrigin, 403, []string{upgradeHead, "Origin: https://evil.example\r\n\r\n"}},
			{RefusedAuthorize, 403, []string{at("/no")}},
			{RefusedRespond, 500, []string{at("/odd")}},
			{RefusedHandshakeTimeout, 0, []string{"GET"}},
		} {
			k := dial(r.parts...)
			if r.status != 0 {
				k.wantRefusal(r.status)
			} else {
				time.Sleep(12 * time.Second)
			}
			synctest.Wait()
			s := l.Stats()
			mu.Lock()
			if n := len(told); s.RefusedFor[r.reason] != 1 || n == 0 || told[n-1].Reason != r.reason || told[n-1].Status != r.status || told[n-1].Err == nil || s.Refused != int64(n) {
				t.Errorf("%s: %+v, told %+v", r.reason, s, told)
			}
			mu.Unlock()
		}
		dial(upgrade).wantOpen()
		dial(upgrade).wantRefusal(503)
		dial("GET").conn.Close()
		time.Sleep(2 * time.Second) // the refused one has read why
		if s := l.Stats(); s.RefusedFor[RefusedMaxConnections] != 1 || s.RefusedFor[RefusedTransport] != 1 || s.Handshaking != 0 {
			t.Errorf("%+v", s)
		}
		dial()
		synctest.Wait()
		if s := l.Stats(); s.Handshaking != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTrace(t *testing.T) {
	var mu sync.Mutex
	var told []string
	tell := func(s string) {
		mu.Lock()
		told = append(told, s)
		mu.Unlock()
	}
	c := ListenConfig{
		Trace: &Trace{
			Opened: func(*WebSocket) { tell("opened") },
			Closed: func(_ *WebSocket, ev CloseEvent) { tell("closed " + ev.Initiator.String()) },
			Slow:   func(_ *WebSocket, d time.Duration) { tell("slow " + d.Round(time.Second).String()) },
		},
		OnConnection: func(c *WebSocket) {
			tell("connection")
			c.OnMessage(func(c *WebSocket, m Message) {
				time.Sleep(time.Duration(len(m.Data)) * time.Second)
				tell("message")
			})
			c.OnClose(func(*WebSocket, CloseEvent) { tell("OnClose") })
		},
	}
	inBubble(t, c, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		k := dial(upgrade)
		k.wantOpen()
		k.send("\x82\x80abcd", maskedHello, "\x82\x80abcd")
		time.Sleep(10 * time.Second)
		k.conn.Close()
		synctest.Wait()
		want := []string{"opened", "connection", "message", "slow 1s", "message", "message", "closed network", "OnClose"}
		mu.Lock()
		defer mu.Unlock()
		if len(told) > 3 && strings.HasPrefix(told[3], "slow ") { // the clock's rounds are as coarse as that
			told[3] = want[3]
		}
		if !reflect.DeepEqual(told, want) {
			t.Errorf("%q, want %q", told, want)
		}
	})
}

func TestFirstMessageTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		first string
		ends  bool
	}{
		"silence":       {"", true},
		"pings only":    {"\x89\x80abcd", true},
		"half of one":   {maskedHello[:8], true},
		"a message":     {maskedHello, false},
		"an empty one":  {"\x82\x80abcd", false},
		"two fragments": {"\x01\x81\x00\x00\x00\x00a\x80\x81\x00\x00\x00\x00b", false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, ListenConfig{FirstMessageTimeout: 8 * time.Second, PingInterval: -1, OnConnection: func(c *WebSocket) { c.OnMessage(ignore) }}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
				k := dial(upgrade, c.first)
				k.wantOpen()
				start := time.Now()
				time.Sleep(7 * time.Second)
				if n := l.Stats().Open; n != 1 {
					t.Fatalf("%d are open", n)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				got := l.openSockets()
				if !c.ends {
					if len(got) != 1 || got[0].ReadyState() != Open {
						t.Errorf("it was ended after %v", time.Since(start))
					}
					return
				}
				if len(got) == 1 && got[0].ReadyState() == Open {
					t.Fatal("it lives")
				}
				k.send("\x88\x82\x00\x00\x00\x00\x03\xf0")
				k.conn.Close()
				synctest.Wait()
				if s := l.Stats(); len(s.Closed) != 1 || s.Closed[0].Initiator != InitiatorTimeout {
					t.Errorf("%+v", s.Closed)
				}
			})
		})
	}
}

// A message that waits for the program has come.
func TestFirstMessageTimeout_Unread(t *testing.T) {
	inBubble(t, ListenConfig{FirstMessageTimeout: time.Second}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		dial(upgrade, maskedHello).wantOpen()
		c, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if m, err := c.Read(t.Context()); err != nil || string(m.Data) != "Hello" {
			t.Errorf("%q, %v", m.Data, err)
		}
	})
}

func TestMaxConnectionRatePerIP(t *testing.T) {
	from(t, ListenConfig{MaxConnectionRatePerIP: 2, OnConnection: echoing}, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		closeAll := func(ip string, n int) {
			t.Helper()
			for i := range n {
				k := dial(ip, upgrade)
				k.wantOpen()
				k.conn.Close()
				synctest.Wait()
				if t.Failed() {
					t.Fatalf("number %d of %s", i, ip)
				}
			}
		}
		closeAll("203.0.113.7", 16)
		dial("203.0.113.7", upgrade).wantRefusal(503)
		closeAll("203.0.113.8", 16)
		closeAll("::ffff:203.0.113.9", 10)
		closeAll("203.0.113.9", 6)
		_, body := dial("203.0.113.9", upgrade).wantRefusal(503)
		if body != errRate.text+"\n" {
			t.Errorf("%q", body)
		}
		time.Sleep(time.Second)
		closeAll("203.0.113.7", 2)
		dial("203.0.113.7", upgrade).wantRefusal(503)
		time.Sleep(time.Minute)
		closeAll("203.0.113.7", 16)
		if n := l.Stats().RefusedFor[RefusedMaxConnectionRatePerIP]; n != 3 {
			t.Errorf("%d refused", n)
		}
	})
}

// What the limit of the rate remembers does not grow with the addresses that have come.
func TestMaxConnectionRatePerIP_Forgets(t *testing.T) {
	r := rateLimit{every: time.Second / 32}
	now := time.Unix(1, 0)
	for i := range 100_000 {
		if !r.allow(ipKey(i+1), now) {
			t.Fatal("refused")
		}
		now = now.Add(time.Millisecond)
	}
	if n := len(r.due); n > 2*rateSweep {
		t.Errorf("%d addresses", n)
	}
}
