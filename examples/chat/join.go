package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/peerws/peerws"
)

const (
	dialTimeout  = 15 * time.Second
	leaveTimeout = 3 * time.Second
)

// join enters the room that link leads to and stays in it until ctx ends, the
// room closes or, if there was something to say, all of that has been said.
func join(ctx context.Context, link, name string, in input, t *terminal) error {
	target, err := roomURL(link)
	if err != nil {
		return err
	}
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	ws, err := peerws.Dial(dctx, target, subprotocol)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil
	case dctx.Err() != nil:
		return fmt.Errorf("nobody answers at %s", target)
	default:
		return fmt.Errorf("no room at %s: %w", target, err)
	}

	g := &guest{t: t, progress: make(chan struct{}, 1)}
	ws.OnMessage(g.receive)
	if err := ws.SendText(encode(message{Type: typeHello, Name: name})); err != nil {
		ws.Abort()
		return err
	}

	said := make(chan int, 1)
	go func() {
		// Write, not Send: what is typed or piped in waits while the room is
		// busy, and is never dropped.
		said <- in.lines(t, func(text string) error {
			data := encode(message{Type: typeSay, Text: text})
			return ws.Write(ctx, peerws.Message{Type: peerws.Text, Data: []byte(data)})
		})
	}()

	all := -1 // how many lines there were to say, once that is known
	for all < 0 || g.heard() < all {
		select {
		case n := <-said:
			// With nothing to say from the start, we are here to listen.
			if n > 0 || in.person {
				all = n
			}
		case <-g.progress:
		case <-t.broken:
			leave(ws)
			return errOutput
		case <-ctx.Done():
			leave(ws)
			return nil
		case <-ws.Done():
			return ended(ws, t)
		}
	}
	leave(ws)
	return nil
}

// leave closes the connection and waits a little for the room to agree.
func leave(ws *peerws.WebSocket) {
	ws.Close()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if _, err := ws.Wait(ctx); err != nil {
		ws.Abort()
	}
}

// ended tells why the room ended the connection: an error unless it just closed.
func ended(ws *peerws.WebSocket, t *terminal) error {
	ev, err := ws.Wait(context.Background())
	switch {
	case err != nil:
		return err
	case ev.Code == peerws.StatusGoingAway:
		t.print("* the room has closed")
		return nil
	case ev.Initiator == peerws.InitiatorPeer && ev.Reason != "":
		return errors.New("the room ended the connection: " + cleanText(ev.Reason))
	default:
		return fmt.Errorf("the connection to the room is lost: %w", ev)
	}
}

// A guest is our side of another peer's room.
type guest struct {
	t        *terminal
	progress chan struct{} // has a value when heard may have changed

	mu   sync.Mutex
	me   string
	mine int // lines of ours that came back
}

func (g *guest) receive(_ *peerws.WebSocket, in peerws.Message) {
	m, ok := decode(in.Data)
	if !ok {
		return
	}
	g.mu.Lock()
	switch {
	case m.Type == typeWelcome:
		g.me = m.Name
	case m.Type == typeSay && m.Name == g.me:
		g.mine = m.N
	}
	me := g.me
	g.mu.Unlock()

	if s := show(m, me); s != "" {
		g.t.print(s) // may wait: then the room's lines wait too
	}
	select {
	case g.progress <- struct{}{}:
	default:
	}
}

// heard returns how many lines of ours have come back from the room.
func (g *guest) heard() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mine
}

// roomURL makes a WebSocket address of either kind of invitation link.
func roomURL(link string) (string, error) {
	u, err := url.Parse(link)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return "", badLink(link)
	}
	switch strings.ToLower(u.Scheme) {
	case "ws", "http":
		u.Scheme = "ws"
	case "wss", "https":
		u.Scheme = "wss"
	default:
		return "", badLink(link)
	}
	u.Fragment = ""
	return u.String(), nil
}

func badLink(link string) error {
	return fmt.Errorf("%q is not a link to a room, which looks like ws://192.168.1.5:9000/ or http://192.168.1.5:9000/", link)
}
