package peerws_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/peerws/peerws"
	"github.com/peerws/peerws/nat"
)

// A peer that sends everything back. Listen asks the router to forward the
// port; ListenConfig alone does not.
func ExampleListen() {
	l, err := peerws.Listen(9000, "echo")
	if err != nil {
		log.Fatal(err)
	}
	l.OnConnection(func(c *peerws.WebSocket) {
		c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) { c.Send(m) })
	})
	l.OnAddressChange(func([]peerws.Address) {
		fmt.Println(l.URL(), l.Reachability().Summary)
	})
	<-l.Done()
}

func ExampleListenConfig() {
	l, err := peerws.ListenConfig{
		Address: "127.0.0.1",
		HTTP:    http.FileServer(http.Dir("page")), // the page that connects, on the same port
		OnConnection: func(c *peerws.WebSocket) {
			c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) {
				c.SendText("you said " + string(m.Data))
			})
		},
	}.Listen(context.Background(), 0)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	c, err := peerws.Dial(context.Background(), l.URL())
	if err != nil {
		log.Fatal(err)
	}
	answer := make(chan string)
	c.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) { answer <- string(m.Data) })
	c.SendText("hello")
	fmt.Println(<-answer)
	c.Close()
	<-c.Done()
	// Output: you said hello
}

// A router whose port was forwarded by hand needs no asking.
func ExampleListenConfig_staticForward() {
	_, err := peerws.ListenConfig{
		NAT: nat.Static(netip.MustParseAddrPort("203.0.113.7:9000")),
	}.Listen(context.Background(), 9000, "chat")
	if err != nil {
		log.Fatal(err)
	}
}

// A chat asks a friend whether the address that the router forwards can be
// reached: it sends the URL over the socket they have, the friend dials it and
// sends back how that went.
func ExampleListenConfig_verify() {
	friend, err := peerws.Dial(context.Background(), "ws://friend.example:9000/", "chat")
	if err != nil {
		log.Fatal(err)
	}
	config := peerws.ListenConfig{
		NAT: nat.Any(),
		Verify: func(ctx context.Context, url string) error {
			if err := friend.SendText("can you reach " + url); err != nil {
				return err
			}
			m, err := friend.Read(ctx) // a real one sorts this answer out from the rest
			if err == nil && string(m.Data) != "yes" {
				err = errors.New(string(m.Data))
			}
			return err
		},
	}
	l, err := config.Listen(context.Background(), 9000, "chat")
	if err != nil {
		log.Fatal(err)
	}
	l.OnAddressChange(func(addresses []peerws.Address) {
		for _, a := range addresses {
			if a.State == peerws.Verified {
				fmt.Println("tell everybody:", a.URL)
			}
		}
	})
}

func ExampleWebSocketListener_Connections() {
	l, err := peerws.ListenConfig{Address: "127.0.0.1"}.Listen(context.Background(), 0)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		c, err := peerws.Dial(context.Background(), l.URL())
		if err != nil {
			log.Fatal(err)
		}
		<-c.Done()
		l.Close()
	}()
	for c, err := range l.Connections(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("somebody came")
		c.CloseWith(1000, "bye")
	}
	<-l.Done()
	// Output: somebody came
}

// Errors say who ended the connection, and why.
func ExampleCloseEvent() {
	l, err := peerws.ListenConfig{
		Address:        "127.0.0.1",
		MaxMessageSize: 10,
		OnConnection:   func(c *peerws.WebSocket) { c.OnMessage(func(*peerws.WebSocket, peerws.Message) {}) },
	}.Listen(context.Background(), 0)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	c, err := peerws.Dial(context.Background(), l.URL())
	if err != nil {
		log.Fatal(err)
	}
	c.SendText("more than ten bytes")
	ev, _ := c.Wait(context.Background())
	fmt.Println(ev.Code, ev.Initiator)

	err = c.SendText("too late")
	fmt.Println(errors.Is(err, net.ErrClosed))
	if ev, ok := errors.AsType[peerws.CloseEvent](err); ok {
		fmt.Println(ev.Reason)
	}
	// Output:
	// 1009 peer
	// true
	// over the limit
}

// A listener in a server that the program runs already: the server has the port,
// TLS and the other pages.
func ExampleListenConfig_Handler() {
	l, h, err := peerws.ListenConfig{OnConnection: func(c *peerws.WebSocket) {
		c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) { c.Send(m) })
	}}.Handler("chat")
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/chat", h)
	s := http.Server{Addr: "localhost:8080", Handler: mux}
	s.RegisterOnShutdown(func() { l.Shutdown(context.Background()) })
	log.Fatal(s.ListenAndServe())
}

// Reading by calls: one goroutine a connection, as with any net.Conn.
func ExampleWebSocket_Messages() {
	accepted, dialled := peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
	go func() {
		for m, err := range accepted.Messages(context.Background()) {
			if err != nil {
				log.Print(err)
				return
			}
			accepted.Write(context.Background(), m)
		}
	}()
	dialled.SendText("over and back")
	m, err := dialled.Read(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Type, string(m.Data))
	dialled.Close()
	<-dialled.Done()
	// Output: text over and back
}

// The cause of an end is in the error, typed.
func ExampleLimitError() {
	accepted, dialled := peerws.Pipe(peerws.ListenConfig{MaxMessageSize: 10}, peerws.Dialer{})
	dialled.SendText("more than ten bytes")
	_, err := accepted.Read(context.Background())
	if limit, ok := errors.AsType[*peerws.LimitError](err); ok {
		fmt.Println(limit.Option, limit.Limit, limit.Size)
	}
	<-dialled.Done()
	// Output: MaxMessageSize 10 19
}

// What the answer says can depend on who asks: here a cookie, and a subprotocol
// that has the room in its name. Authorize and OnConnection share what the first
// has found out.
func ExampleListenConfig_respond() {
	type user struct{}
	ln := peerws.NewPipeListener()
	l, err := peerws.ListenConfig{
		Authorize: func(r *http.Request) error {
			name, _, ok := r.BasicAuth()
			if !ok {
				return &peerws.RejectError{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {"Basic"}}}
			}
			*r = *r.WithContext(context.WithValue(r.Context(), user{}, name))
			return nil
		},
		Respond: func(r *http.Request, a *peerws.Answer) {
			a.Header.Add("Set-Cookie", fmt.Sprint("user=", r.Context().Value(user{}), "; HttpOnly"))
			if room, ok := strings.CutPrefix(r.URL.Path, "/rooms/"); ok {
				a.Protocol = "room-" + room
			}
		},
		OnConnection: func(c *peerws.WebSocket) {
			c.SendText(fmt.Sprint("hello ", c.Request().Context().Value(user{})))
		},
	}.Serve(ln)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	d := ln.Dialer()
	d.Header = http.Header{}
	d.Header.Set("Authorization", "Basic YW5uOg==") // ann, without a password
	c, err := d.Dial(context.Background(), "ws://chat.example/rooms/7", "room-6", "room-7")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Protocol(), c.Request().Response.Header.Get("Set-Cookie"))
	m, err := c.Read(context.Background())
	fmt.Println(string(m.Data), err)
	c.Close()
	<-c.Done()
	// Output:
	// room-7 user=ann; HttpOnly
	// hello ann <nil>
}

// A program's doors, tested without a network: who may come in, and what a path
// leads to.
func ExamplePipeListener() {
	ln := peerws.NewPipeListener()
	l, err := peerws.ListenConfig{
		OnConnection: func(c *peerws.WebSocket) {
			c.SendText(c.Request().URL.Path + " in " + c.Protocol())
		},
	}.Serve(ln, "chat.v2", "chat.v1")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	d := ln.Dialer()
	c, err := d.Dial(context.Background(), "ws://chat.example/rooms/7", "chat.v1")
	if err != nil {
		log.Fatal(err)
	}
	m, err := c.Read(context.Background())
	fmt.Println(string(m.Data), err)
	c.Close()
	<-c.Done()

	d.Header = http.Header{"Origin": {"https://evil.example"}}
	_, err = d.Dial(context.Background(), "ws://chat.example/rooms/7", "chat.v1")
	if refused, ok := errors.AsType[*peerws.HandshakeError](err); ok {
		fmt.Println(refused.Status)
	}
	// Output:
	// /rooms/7 in chat.v1 <nil>
	// 403
}

// Who does not keep up is let go.
func ExampleBroadcastFunc() {
	a, peerA := peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
	b, _ := peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
	b.Abort()
	<-b.Done()
	room := map[*peerws.WebSocket]string{a: "ann", b: "bob"}
	peerws.BroadcastFunc(maps.Keys(room), peerws.Message{Type: peerws.Text, Data: []byte("hello")}, func(c *peerws.WebSocket, err error) {
		if errors.Is(err, peerws.ErrBufferFull) {
			c.CloseWith(peerws.StatusTryAgainLater, "too slow")
		}
		fmt.Println(room[c], "missed it:", errors.Is(err, net.ErrClosed))
		delete(room, c)
	})
	m, err := peerA.Read(context.Background())
	fmt.Println(string(m.Data), err)
	peerA.Close()
	<-peerA.Done()
	// Output:
	// bob missed it: true
	// hello <nil>
}

// To many sockets at once: framed once, and nobody waits for anybody.
func ExampleBroadcast() {
	a, peerA := peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
	b, peerB := peerws.Pipe(peerws.ListenConfig{}, peerws.Dialer{})
	n := peerws.Broadcast(slices.Values([]*peerws.WebSocket{a, b}), peerws.Message{Type: peerws.Text, Data: []byte("hello")})
	fmt.Println(n)
	for _, c := range []*peerws.WebSocket{peerA, peerB} {
		m, err := c.Read(context.Background())
		fmt.Println(string(m.Data), err)
		c.Close()
		<-c.Done()
	}
	// Output:
	// 2
	// hello <nil>
	// hello <nil>
}

// Two programs that trust a key, and no certificate authority: it travels in the link.
func ExampleLoadIdentity() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	id, err := peerws.LoadIdentity(filepath.Join(dir, "key.pem")) // made on first use
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := peerws.ListenConfig{Address: "127.0.0.1", Identity: id, OnConnection: func(c *peerws.WebSocket) { c.SendText("hello") }}.Listen(context.Background(), 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	link := "wss://" + l.Addr().String() + "/#" + id.Key().String()

	url, text, _ := strings.Cut(link, "#")
	key, err := peerws.ParsePeerKey(text)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := peerws.Dialer{PeerKey: key}.Dial(context.Background(), url)
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := c.Read(context.Background())
	fmt.Println(string(m.Data), err)
	c.CloseWait(context.Background(), peerws.StatusNormalClosure, "")
	l.Shutdown(context.Background())
	// Output: hello <nil>
}
