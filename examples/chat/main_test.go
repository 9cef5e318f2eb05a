package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// A running is a chat program with a pipe for a keyboard.
type running struct {
	t      *testing.T
	in     *io.PipeWriter
	stop   context.CancelFunc
	code   chan int
	stderr lockedBuffer
	stdout lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSuffix(b.b.String(), "\n"), "\n")
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	r, w := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	p := &running{t: t, in: w, stop: stop, code: make(chan int, 1)}
	go func() { p.code <- run(ctx, args, input{r: r}, &p.stdout, &p.stderr) }()
	t.Cleanup(func() { stop(); w.Close() })
	return p
}

func startHost(t *testing.T) (p *running, url string) {
	t.Helper()
	p = start(t, "-port", "0", "-nat=false", "-name", "ann")
	p.wait(`^\* you are ann`) // said after the address: then it is in the room itself
	return p, p.wait(`^\* from this machine: http://127.*chat (ws://127\.0\.0\.1:\d+/)$`)[1]
}

// wait returns the first line that matches, once there is one.
func (p *running) wait(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, s := range p.stdout.lines() {
			if m := re.FindStringSubmatch(s); m != nil {
				return m
			}
		}
	}
	p.t.Fatalf("no line %s in\n%s\n%s", pattern, strings.Join(p.stdout.lines(), "\n"), strings.Join(p.stderr.lines(), "\n"))
	return nil
}

func (p *running) say(format string, args ...any) { fmt.Fprintf(p.in, format+"\n", args...) }

func (p *running) wantExit(code int, limit time.Duration) {
	p.t.Helper()
	select {
	case got := <-p.code:
		if got != code {
			p.t.Errorf("exit code %d, want %d; stderr %q", got, code, p.stderr.lines())
		}
	case <-time.After(limit):
		p.t.Fatalf("still running after %v", limit)
	}
}

func TestTalk(t *testing.T) {
	ann, url := startHost(t)
	bob := start(t, "-name", "bob", url)
	bob.wait(`^\* you are bob, here with you: ann$`)
	cat := start(t, strings.Replace(url, "ws", "http", 1), "-name", "bob")
	cat.wait(`^\* you are bob-2, here with you: ann, bob$`)
	all := []*running{ann, bob, cat}
	names := []string{"ann", "bob", "bob-2"}
	ann.wait(`^\* bob joined$`)
	for _, p := range all[:2] {
		p.wait(`^\* bob-2 joined$`)
	}

	const n = 300
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() {
			for k := range n {
				p.say("%s line %d", names[i], k)
			}
		})
	}
	wg.Wait()
	spoken := func(p *running) []string {
		return slices.DeleteFunc(p.stdout.lines(), func(s string) bool { return strings.HasPrefix(s, "* ") })
	}
	for _, p := range all {
		for _, name := range names {
			p.wait(fmt.Sprintf("^%s: %s line %d$", name, name, n-1))
		}
		lines := spoken(p)
		if len(lines) != 3*n || !slices.Equal(lines, spoken(ann)) {
			t.Errorf("somebody saw %d lines, want %d in the host's order", len(lines), 3*n)
		}
		next := map[string]int{}
		for _, s := range lines {
			name, _, _ := strings.Cut(s, ":")
			if want := fmt.Sprintf("%s: %s line %d", name, name, next[name]); s != want {
				t.Fatalf("%q, want %q", s, want)
			}
			next[name]++
		}
	}

	bob.stop()
	bob.wantExit(0, 5*time.Second)
	ann.wait(`^\* bob left$`)
	cat.wait(`^\* bob left$`)
	ann.stop()
	ann.wantExit(0, 5*time.Second)
	cat.wait(`^\* the room has closed$`)
	cat.wantExit(0, 5*time.Second)
}

// What a program pipes in is all said before it leaves, and the host goes on
// without an input.
func TestPipedInput(t *testing.T) {
	ann, url := startHost(t)
	ann.in.Close()
	const n = 3000 // more than paceBurst
	bob := start(t, "-name", "bob", url)
	for i := range n {
		bob.say("line %d", i)
	}
	bob.in.Close()
	bob.wantExit(0, 20*time.Second)
	ann.wait(`^\* bob left$`)
	i := 0
	for _, s := range ann.stdout.lines() {
		if !strings.HasPrefix(s, "* ") {
			if s != fmt.Sprintf("bob: line %d", i) {
				t.Fatalf("line %d is %q", i, s)
			}
			i++
		}
	}
	if i != n {
		t.Errorf("the host saw %d lines, want %d", i, n)
	}

	quiet := start(t, url) // nothing to say from the start: here to listen
	quiet.in.Close()
	quiet.wait(`^\* you are `)
	start(t, "-name", "cat", url).say("hello")
	quiet.wait(`^cat: hello$`)
}

func TestBadInput(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := fmt.Sprint(busy.Addr().(*net.TCPAddr).Port)
	web := &http.Server{Handler: http.NotFoundHandler()}
	defer web.Close()
	go web.Serve(busy)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()

	for _, c := range []struct {
		args  []string
		code  int
		names string // what the error must name
	}{
		{[]string{"-nat=false", "-port", "70000"}, 1, "70000"},
		{[]string{"-nat=false", "-port", "-1"}, 1, "-1"},
		{[]string{"-nat=false", "-port", port}, 1, "in use"},
		{[]string{"-port", "ninety"}, 2, "ninety"},
		{[]string{"-colour"}, 2, "-colour"},
		{[]string{"ws://a/", "ws://b/"}, 2, "one URL"},
		{[]string{"10.0.0.1:9000"}, 1, "10.0.0.1:9000"},
		{[]string{"ftp://127.0.0.1/"}, 1, "ftp://127.0.0.1/"},
		{[]string{"ws://" + closed.Addr().String()}, 1, "refused"},
		{[]string{"ws://127.0.0.1:" + port + "/"}, 1, "404"},
		{[]string{"-h"}, 0, "usage"},
	} {
		p := start(t, c.args...)
		p.wantExit(c.code, 5*time.Second)
		lines := p.stderr.lines()
		if !strings.Contains(strings.Join(lines, "\n"), c.names) || c.code == 1 && (len(lines) != 1 || !strings.HasPrefix(lines[0], "chat: ")) {
			t.Errorf("%q: stderr %q", c.args, lines)
		}
		if out := p.stdout.lines(); out[0] != "" {
			t.Errorf("%q: stdout %q", c.args, out)
		}
	}
}

// dialRaw is a peer that follows the protocol only as far as the test does.
func dialRaw(t *testing.T, url string) *peerws.WebSocket {
	t.Helper()
	ws, err := peerws.Dial(t.Context(), url, subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Abort() })
	return ws
}

func wantClosed(t *testing.T, ws *peerws.WebSocket, code peerws.StatusCode, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ev, err := ws.Wait(ctx)
	if err != nil || ev.Code != code || ev.Reason != reason {
		t.Errorf("closed with %+v, %v; want %d %q", ev, err, code, reason)
	}
}

func TestMisbehavingPeers(t *testing.T) {
	ann, url := startHost(t)
	hello := encode(message{Type: typeHello, Name: "eve"})
	for _, c := range []struct {
		msgs   []peerws.Message
		reason string
	}{
		{[]peerws.Message{{Type: peerws.Binary, Data: []byte(hello)}}, reasonGarbage},
		{[]peerws.Message{{Type: peerws.Text, Data: []byte("hello")}}, reasonGarbage},
		{[]peerws.Message{{Type: peerws.Text, Data: []byte(encode(message{Type: typeSay}))}, {Type: peerws.Text, Data: []byte(hello)}}, reasonHello},
	} {
		ws := dialRaw(t, url)
		ws.OnMessage(func(*peerws.WebSocket, peerws.Message) {})
		for _, m := range c.msgs {
			if err := ws.Send(m); err != nil && !errors.Is(err, net.ErrClosed) { // the room may have had enough already
				t.Fatal(err)
			}
		}
		wantClosed(t, ws, peerws.StatusPolicyViolation, c.reason)
	}
	ann.say("done")
	ann.wait("^ann: done$")
	for _, s := range ann.stdout.lines() {
		if strings.Contains(s, "eve") {
			t.Errorf("the room let somebody in: %s", s)
		}
	}
}

// A peer that takes nothing is cut off; nobody waits for it and nobody loses a
// line.
func TestSlowPeer(t *testing.T) {
	ann, url := startHost(t)
	bob := start(t, "-name", "bob", url)
	bob.wait(`^\* you are bob`)
	slow := dialRaw(t, url)
	release := make(chan bool)
	slow.OnMessage(func(*peerws.WebSocket, peerws.Message) { <-release })
	if err := slow.SendText(encode(message{Type: typeHello, Name: "slow"})); err != nil {
		t.Fatal(err)
	}
	bob.wait(`^\* slow joined$`)

	long := strings.Repeat("x", maxText-10)
	lines := 0
	for ; !slices.Contains(bob.stdout.lines(), "* slow left (too slow)"); lines++ {
		if lines == 5000 {
			t.Fatalf("after %d MB nobody was cut off", lines*len(long)/1e6)
		}
		ann.say("%d%s", lines, long)
		if lines%100 == 0 {
			bob.wait(fmt.Sprintf("^ann: %dx", max(0, lines-200)))
		}
	}
	bob.wait(fmt.Sprintf("^ann: %dx", lines-1))
	next := 0
	for _, s := range bob.stdout.lines() {
		if strings.HasPrefix(s, "ann: ") {
			if !strings.HasPrefix(s, fmt.Sprintf("ann: %dx", next)) {
				t.Fatalf("bob saw %.20q, want line %d", s, next)
			}
			next++
		}
	}
	close(release)
	wantClosed(t, slow, peerws.StatusTryAgainLater, reasonSlow)
}

// A link that somebody has come through says so.
func TestInvitation(t *testing.T) {
	a := peerws.Address{URL: "ws://203.0.113.7:9000/", Scope: peerws.Public, Via: "pcp", State: peerws.Mapped}
	const want = "* from anywhere: http://203.0.113.7:9000/ in a browser, or chat ws://203.0.113.7:9000/"
	if got := invitation(a); got != want {
		t.Errorf("%q", got)
	}
	a.State = peerws.Verified
	if got := invitation(a); got != want+" (verified)" {
		t.Errorf("%q", got)
	}
}

// The page and the terminal say why a browser is not let in, and -host helps.
func TestHostFlag(t *testing.T) {
	p := start(t, "-port", "0", "-nat=false", "-name", "ann", "-host", "room.example", "-host", "other.example.")
	url := p.wait(`^\* from this machine: (http://127\S+)`)[1]
	get := func(host string) int {
		r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		return a.StatusCode
	}
	for host, want := range map[string]int{"room.example": 200, "Other.example:9000": 200, "tunnel.example": 421} {
		if got := get(host); got != want {
			t.Errorf("%s: %d", host, got)
		}
	}
	p.wait(`^\* a browser called this room tunnel\.example, .* -host tunnel\.example$`)
	http.DefaultClient.CloseIdleConnections()
	p.stop()
	p.wantExit(0, 5*time.Second)

	bad := start(t, "-host", "room.example:9000")
	bad.wantExit(2, 5*time.Second)
}

// What the router said is told with the sentence that it explains, once.
func TestDetailIsTold(t *testing.T) {
	var b strings.Builder
	tt := newTerminal(&b)
	v := &invitations{t: tt, shown: map[string]string{}}
	r := peerws.Reachability{Code: "refused", Summary: "It refuses.", Advice: "Ask it.", Detail: "UPnP error 606"}
	v.reachability(r)
	v.reachability(r)
	tt.close()
	if got := b.String(); strings.Count(got, "* It refuses. Ask it.\n") != 1 || strings.Count(got, "* what was said: UPnP error 606\n") != 1 {
		t.Error(got)
	}
}
