package peerws

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/peerws/peerws/internal/memnet"
)

// FuzzConnection: any bytes, cut anywhere, over a real connection of either role, read in
// each of the three ways: the program gets the messages that slowly tells, and the end.
func FuzzConnection(f *testing.F) {
	for _, frames := range [][]string{
		{"\x81\x05Hello", "\x82\x02\x00\xff", "\x89\x01p", "\x8a\x00", "\x88\x05\x0b\xb8bye"},
		{"\x01\x03Hel", "\x89\x01p", "\x00\x00", "\x80\x02lo", "\x81\x00"},
		{"\x01\x01\xf0", "\x00\x01\x9f", "\x00\x01\x98", "\x80\x01\x80", "\x81\x04\xed\xa0\x80x"},
		{"\x82\x7e\x45\x00" + pattern(0x4500), "\x81\x01x"},
		{"\x82\x7e\xff\xff" + pattern(300)},
		{"\x01\x00", "\x00\x00", "\x00\x00", "\x00\x00", "\x00\x00", "\x80\x00"},
		{"\x81\x01a", "\x88\x01\x03"}, {"\x81\x01a", "\x88\x00", "\x81\x01b"}, {"\x81\x01a", "\xc1\x01x"},
	} {
		for style := range uint64(3) {
			f.Add([]byte(strings.Join(frames, "")), style)
			f.Add([]byte(diallers(frames)), style+3)
		}
	}
	limits := coreLimits{maxMessage: 18_000, maxFragments: 4}
	l := listen(f, ListenConfig{MaxMessageSize: limits.maxMessage, MaxFragments: limits.maxFragments})
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		if len(stream) > 64<<10 {
			return
		}
		pieces := randomPieces(slices.Clone(stream), 1+len(stream)/3, rand.New(rand.NewPCG(seed, 0)))
		for _, client := range []bool{true, false} {
			c, peer := fuzzedPair(t, l, client, limits)
			go func() {
				for _, p := range pieces {
					if _, err := peer.Write(slices.Clone(p)); err != nil {
						break
					}
				}
				closeWrite(peer)
			}()
			go io.Copy(io.Discard, peer)
			got := readAllMessages(t, c, int(seed%3))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			ev, err := c.Wait(ctx)
			cancel()
			peer.Close()
			if err != nil {
				t.Fatalf("client %v: it does not end: %v", client, err)
			}
			want, end := modelled(slowly(slices.Clone(stream), client, limits))
			if !slices.Equal(got, want) {
				t.Fatalf("client %v, style %d: %q, want %q", client, seed%3, got, want)
			}
			if is := ended(ev); is != end {
				t.Fatalf("client %v, style %d: %s (%v), want %s", client, seed%3, is, ev, end)
			}
		}
	})
}

// fuzzedPair returns an open socket and its peer's transport.
func fuzzedPair(t *testing.T, l *WebSocketListener, client bool, limits coreLimits) (*WebSocket, net.Conn) {
	if client {
		a, b := memnet.Pipe(0)
		set := testSettings()
		set.core = limits
		c := newOpenWebSocket(set, a, true, nil)
		c.begin()
		return c, b
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).SetLinger(0) // ports do not run out
	upgradeRaw(t, conn)
	c, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c, conn
}

// readAllMessages reads to the end: by callbacks, by Read, or by NextReader.
func readAllMessages(t *testing.T, c *WebSocket, style int) (got []string) {
	ctx := t.Context()
	switch style {
	case 0:
		c.OnMessage(func(_ *WebSocket, m Message) { got = append(got, message(m.Type, string(m.Data))) })
		<-c.Done()
	case 1:
		for {
			m, err := c.Read(ctx)
			if err != nil {
				return got
			}
			got = append(got, message(m.Type, string(m.Data)))
		}
	default:
		for {
			kind, r, err := c.NextReader(ctx)
			if err != nil {
				return got
			}
			p, err := io.ReadAll(r)
			if err != nil {
				return got
			}
			got = append(got, message(kind, string(p)))
		}
	}
	return got
}

// modelled returns the messages of slowly's events, and how they end.
func modelled(events []string) (messages []string, end string) {
	for _, e := range events {
		switch {
		case e == "fail":
			return messages, e
		case strings.HasPrefix(e, "close "):
			return messages, e
		case !strings.HasPrefix(e, "ping ") && !strings.HasPrefix(e, "pong "):
			messages = append(messages, e)
		}
	}
	return messages, "eof"
}

// ended says the same of a real end.
func ended(ev CloseEvent) string {
	switch ev.Initiator {
	case InitiatorLimit:
		return "fail"
	case InitiatorPeer:
		return fmt.Sprintf("close %d %q", ev.Code, ev.Reason)
	case InitiatorNetwork:
		return "eof"
	}
	return ev.Error()
}
