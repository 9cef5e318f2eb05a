package main

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

const (
	helloTimeout    = 10 * time.Second
	shutdownTimeout = 4 * time.Second
)

// host opens a room on a port of this machine, which others call by names too, and
// stays in it until ctx ends.
func host(ctx context.Context, port int, m nat.Mapper, names []string, name string, in input, t *terminal) error {
	r := newRoom()
	names = append(hostNames(), names...)
	cfg := peerws.ListenConfig{
		HTTP:           page(names, strangers(t)),
		AllowedHosts:   names,
		NAT:            m,
		MaxMessageSize: maxMessage,
		OnConnection:   func(ws *peerws.WebSocket) { admit(r, ws) },
	}
	l, err := cfg.Listen(ctx, port, subprotocol)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()

	t.print("* the room is open; to invite others, send them a link for where they are:")
	inv := &invitations{t: t, shown: map[string]string{}}
	inv.update(l.Addresses())
	l.OnAddressChange(func(a []peerws.Address) {
		inv.update(a)
		inv.reachability(l.Reachability())
	})
	go func() {
		if l.Ready(ctx) == nil {
			inv.update(l.Addresses())
			inv.reachability(l.Reachability())
		}
	}()

	me := &terminalLine{t: t}
	r.receive(me, message{Type: typeHello, Name: name})
	go func() {
		var p pace
		in.lines(t, func(text string) error {
			r.receive(me, message{Type: typeSay, Text: text})
			time.Sleep(p.next(time.Now()))
			return nil
		})
		// A peer whose input is a file, a pipe or nothing is there for the
		// others, and goes on when it has nothing more to say itself.
		if in.person {
			stop()
		}
	}()

	select {
	case <-ctx.Done():
	case <-t.broken:
		err = errOutput
	case <-l.Done():
		err = l.Err()
	}
	t.offer("* the room closes")
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if serr := l.Shutdown(sctx); err == nil && serr != nil && !errors.Is(serr, context.DeadlineExceeded) {
		err = serr
	}
	return err
}

// strangers returns a function that tells, once a name and not without end, that
// somebody wanted the page by a name that the room does not know to be its own.
func strangers(t *terminal) func(name string) {
	const most = 8 // names
	var mu sync.Mutex
	told := map[string]bool{}
	return func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if told[name] || len(told) == most || !plainName.MatchString(name) || len(name) > 253 {
			return
		}
		told[name] = true
		t.offer("* a browser called this room " + name + ", which it does not know as its own name; if it is, start it with -host " + name)
	}
}

// hostNames returns what this machine is called in its own network, so that the
// page may be opened by that name too: laptop, and laptop.local by mDNS.
func hostNames() []string {
	name, err := os.Hostname()
	if err != nil || !plainName.MatchString(name) {
		return nil
	}
	first, _, _ := strings.Cut(name, ".")
	return []string{name, first + ".local"}
}

var plainName = regexp.MustCompile(`^[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*$`)

var errOutput = errors.New("nobody reads the output any more")

// admit brings a connection into the room.
func admit(r *room, ws *peerws.WebSocket) {
	l := &socketLine{ws: ws}
	silent := time.AfterFunc(helloTimeout, func() { l.cut(reasonSilent, cutMisuse) })
	ws.OnClose(func(*peerws.WebSocket, peerws.CloseEvent) {
		silent.Stop()
		r.leave(l)
	})
	var p pace
	ws.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) {
		silent.Stop()
		msg, ok := decode(m.Data)
		if m.Type != peerws.Text || !ok {
			l.cut(reasonGarbage, cutMisuse)
			return
		}
		r.receive(l, msg)
		time.Sleep(p.next(time.Now()))
	})
}

// A socketLine is the line to a peer.
type socketLine struct{ ws *peerws.WebSocket }

func (l *socketLine) send(data string) error {
	err := l.ws.SendText(data)
	if errors.Is(err, peerws.ErrBufferFull) {
		return errFull
	}
	return err
}

// codeReplaced is a close code of this chat's own: the page does not come back.
const codeReplaced = 4001

func (l *socketLine) cut(reason string, c cutCode) {
	code := peerws.StatusPolicyViolation
	switch c {
	case cutSlow:
		code = peerws.StatusTryAgainLater
	case cutReplaced:
		code = codeReplaced
	}
	l.ws.CloseWith(code, reason)
}

// A terminalLine is the line to the person whose peer this is.
type terminalLine struct {
	t  *terminal
	me string
}

func (l *terminalLine) send(data string) error {
	m, _ := decode([]byte(data))
	if m.Type == typeWelcome {
		l.me = m.Name
	}
	l.t.offer(show(m, l.me))
	return nil
}

func (l *terminalLine) cut(reason string, _ cutCode) {
	l.t.offer("* you are out of the room: " + reason)
}

// invitations tell the person which links lead here, and when that changes.
type invitations struct {
	t *terminal

	mu    sync.Mutex
	shown map[string]string // URL to the line that was printed, while it is valid
	said  string
}

func (v *invitations) update(addrs []peerws.Address) {
	v.mu.Lock()
	defer v.mu.Unlock()
	valid := map[string]bool{}
	local := false
	for _, a := range addrs {
		// One link is enough for this machine, though it has two addresses.
		if a.State == peerws.Lost || a.Scope == peerws.Loopback && local {
			continue
		}
		local = local || a.Scope == peerws.Loopback
		valid[a.URL] = true
		if line := invitation(a); v.shown[a.URL] != line {
			v.shown[a.URL] = line
			v.t.offer(line)
		}
	}
	for url := range v.shown {
		if !valid[url] {
			delete(v.shown, url)
			v.t.offer("* no longer valid: " + pageURL(url))
		}
	}
}

func invitation(a peerws.Address) string {
	where := "this machine"
	switch a.Scope {
	case peerws.LAN:
		where = "the same network"
	case peerws.Public:
		where = "anywhere"
		if a.State == peerws.Bound && strings.Contains(a.URL, "[") {
			where = "the same network, and anywhere if no firewall is in front,"
		}
	}
	proof := ""
	if a.State == peerws.Verified {
		proof = " (verified)"
	}
	return "* from " + where + ": " + pageURL(a.URL) + " in a browser, or chat " + a.URL + proof
}

// pageURL is the address of the page beside a WebSocket address.
func pageURL(url string) string {
	if rest, ok := strings.CutPrefix(url, "ws"); ok {
		return "http" + rest
	}
	return url
}

func (v *invitations) reachability(r peerws.Reachability) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := strings.TrimSpace(r.Summary + " " + r.Advice)
	if s == "" || s == v.said {
		return
	}
	v.said = s
	v.t.offer("* " + s)
	if r.Detail != "" {
		v.t.offer("* what was said: " + r.Detail)
	}
}
