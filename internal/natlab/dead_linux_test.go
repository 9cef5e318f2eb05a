package natlab

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// A peer that is gone without a word, because its cable was cut, is noticed within
// the times that the options name, whatever the program was doing.

// slack is for the machine, which is not quiet.
const slack = time.Second

// A deadCase is what one side does when the cable is cut, or was.
type deadCase struct {
	dials  bool // that side, else it listens
	secure bool
	act    func(t label, d *deadEnd)
}

// A deadEnd is that side, and the other one.
type deadEnd struct {
	link        *Link
	ours, other *peerws.WebSocket
	cutAt       time.Time
	answered    bool // the other one has had our Close frame, so its end is clean
}

func (d *deadEnd) cut() {
	d.link.Cut()
	d.cutAt = time.Now()
}

// within wants a socket to have ended so long after the cut, by a time-out.
func (d *deadEnd) within(t label, c *peerws.WebSocket, limit time.Duration) {
	t.Helper()
	who := "the side that acts"
	if c == d.other {
		who = "the other one"
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit+20*time.Second)
	defer cancel()
	ev, err := c.Wait(ctx)
	took := time.Since(d.cutAt)
	switch {
	case err != nil:
		t.Errorf("%s lives %v after the cut: %v", who, took, c.ReadyState())
	case took > limit+slack:
		t.Errorf("%s ended %v after the cut, want %v: %v", who, took, limit, ev)
	case c == d.other && d.answered:
		if !ev.WasClean || ev.Err != nil {
			t.Errorf("%s: %+v", who, ev)
		}
	case ev.WasClean || ev.Err == nil:
		t.Errorf("%s: %+v", who, ev)
	}
	t.Logf("%s: %.2f s (at most %.2f s): %v", who, took.Seconds(), limit.Seconds(), ev)
}

func TestDead(t *testing.T) {
	Need(t)
	t.Parallel()
	p := scaled
	large := make([]byte, 500_000)
	send := func(t label, d *deadEnd) {
		if err := d.ours.SendBinary(large); err != nil {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Second) // it is in the midst of it
	}
	acts := map[string]func(t label, d *deadEnd){
		"nothing": func(t label, d *deadEnd) {
			d.cut()
			d.within(t, d.ours, p.silent())
		},
		"large Send": func(t label, d *deadEnd) {
			send(t, d)
			d.cut()
			d.within(t, d.ours, max(p.stuck(), p.silent()))
		},
		"Flush": func(t label, d *deadEnd) {
			send(t, d)
			d.cut()
			if err := d.ours.Flush(t.Context()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
			d.within(t, d.ours, max(p.stuck(), p.silent()))
		},
		"NextWriter": func(t label, d *deadEnd) {
			w, err := d.ours.NextWriter(t.Context(), peerws.Binary)
			if err != nil {
				t.Errorf("%v", err)
				return
			}
			w.Write(large)
			time.Sleep(time.Second)
			d.cut()
			d.within(t, d.ours, max(p.stuck(), p.silent()))
			if err := w.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
		},
		"Ping": func(t label, d *deadEnd) {
			d.cut()
			if _, err := d.ours.Ping(t.Context()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
			d.within(t, d.ours, p.silent())
		},
		"Close": func(t label, d *deadEnd) {
			d.cut()
			d.ours.Close()
			d.within(t, d.ours, p.close+2*p.tick())
		},
		"NetConn.Close": func(t label, d *deadEnd) {
			d.cut()
			if err := d.ours.NetConn(peerws.Binary).Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
			d.within(t, d.ours, p.close+2*p.tick())
		},
		"Close, then the cut": func(t label, d *deadEnd) {
			d.ours.Close() // its frame arrives, the answer does not
			time.Sleep(d.link.up.config.Load().Delay * 3 / 2)
			d.cut()
			d.answered = true
			d.within(t, d.ours, p.close+2*p.tick())
		},
		"Close behind a large Send": func(t label, d *deadEnd) {
			send(t, d)
			d.ours.Close()
			d.cut()
			d.within(t, d.ours, p.stuck()+p.close)
		},
		"NetConn.Close behind a large Send": func(t label, d *deadEnd) {
			conn := d.ours.NetConn(peerws.Binary)
			conn.Write(large)
			time.Sleep(time.Second)
			d.cut()
			if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
			d.within(t, d.ours, p.stuck()+p.close)
		},
	}
	cases := map[string]deadCase{}
	for name, act := range acts {
		cases[name+", listener"] = deadCase{act: act}
		cases[name+", dialler"] = deadCase{act: act, dials: true}
	}
	for _, name := range []string{"nothing", "large Send", "Close", "Close behind a large Send"} {
		cases[name+", listener, wss"] = deadCase{act: acts[name], secure: true}
		cases[name+", dialler, wss"] = deadCase{act: acts[name], secure: true, dials: true}
	}
	line := Line{Rate: 256 * kbit, Delay: 100 * time.Millisecond, Queue: short}
	together(t, cases, func(deadCase) (up, down Line) { return line, line }, func(c deadCase, t label, s *Star, l *Link) {
		r := open(t, s, l, p.listen(), p.dialer(), c.secure, false)
		if r == nil {
			return
		}
		defer r.Close()
		ours, other, err := r.connect(t.Context())
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		if c.dials {
			ours, other = other, ours
		}
		other.OnMessage(func(*peerws.WebSocket, peerws.Message) {})
		ours.OnMessage(func(*peerws.WebSocket, peerws.Message) {})
		d := &deadEnd{link: l, ours: ours, other: other}
		c.act(t, d)
		d.within(t, other, max(p.silent(), p.stuck()))
	})
}

// Shutdown waits for nobody who is gone longer than for the closing handshake.
func TestDead_Shutdown(t *testing.T) {
	Need(t)
	t.Parallel()
	line := Line{Rate: 1000 * kbit, Delay: 50 * time.Millisecond}
	together(t, map[string]bool{"ws": false, "wss": true}, func(bool) (up, down Line) { return line, line }, func(secure bool, t label, s *Star, l *Link) {
		r := open(t, s, l, scaled.listen(), scaled.dialer(), secure, false)
		if r == nil {
			return
		}
		_, dialled, err := r.connect(t.Context())
		if err != nil {
			t.Errorf("%v", err)
			r.Close()
			return
		}
		l.Cut()
		began := time.Now()
		if err := r.Shutdown(t.Context()); err != nil {
			t.Errorf("%v", err)
		}
		if took, limit := time.Since(began), scaled.close+2*scaled.tick(); took > limit+slack {
			t.Errorf("Shutdown took %v, want %v", took, limit)
		}
		dialled.Wait(t.Context())
	})
}

// The opening handshake ends in HandshakeTimeout, wherever the cable is cut.
func TestDead_Handshake(t *testing.T) {
	Need(t)
	t.Parallel()
	const limit = 2 * time.Second
	line := Line{Rate: 1000 * kbit, Delay: 100 * time.Millisecond}
	const request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	// dial is a dial that must fail in time. before and behind are what happens around
	// the connecting of the transport.
	dial := func(before, behind func(l *Link)) func(secure bool, t label, r *room, l *Link) {
		return func(_ bool, t label, r *room, l *Link) {
			connect := r.dial.NetDial
			r.dial.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				before(l)
				conn, err := connect(ctx, network, addr)
				behind(l)
				return conn, err
			}
			began := time.Now()
			c, err := r.dial.Dial(t.Context(), r.url)
			took := time.Since(began)
			if err == nil {
				c.Abort()
				t.Errorf("connected")
			}
			if took > limit+slack {
				t.Errorf("Dial took %v, want %v: %v", took, limit, err)
			}
			if _, ok := errors.AsType[*peerws.HandshakeError](err); !ok {
				t.Errorf("%T %v", err, err)
			}
			t.Logf("%.2f s: %v", took.Seconds(), err)
		}
	}
	// knock connects, sends what there is of a request, and cuts the cable; the
	// listener must give the place free.
	knock := func(head string) func(secure bool, t label, r *room, l *Link) {
		return func(secure bool, t label, r *room, l *Link) {
			conn, err := l.Host.Dial(t.Context(), r.Addr().String())
			if err != nil {
				t.Errorf("%v", err)
				return
			}
			defer conn.Close()
			if secure && head != "" {
				conn = tls.Client(conn, r.dial.TLSConfig)
			}
			io.WriteString(conn, head)
			time.Sleep(200 * time.Millisecond) // it arrives
			l.Cut()
			began := time.Now()
			for r.Stats().Refused == 0 && time.Since(began) < limit+20*time.Second {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(began); took > limit+limit/8+slack {
				t.Errorf("the listener took %v, want %v", took, limit)
			}
		}
	}
	none := func(*Link) {}
	type handshake struct {
		secure bool
		do     func(secure bool, t label, r *room, l *Link)
	}
	cases := map[string]handshake{
		"dial, no cable":                       {false, dial((*Link).Cut, none)},
		"dial, cut behind the connecting":      {false, dial(none, (*Link).Cut)},
		"dial, cut behind the connecting, wss": {true, dial(none, (*Link).Cut)},
		"dial, cut before the answer":          {false, dial(none, func(l *Link) { time.AfterFunc(150*time.Millisecond, l.Cut) })},
		"dial, cut in the handshake of TLS":    {true, dial(none, func(l *Link) { time.AfterFunc(150*time.Millisecond, l.Cut) })},
		"listener, nothing came":               {false, knock("")},
		"listener, nothing came, wss":          {true, knock("")},
		"listener, half a request":             {false, knock(request)},
		"listener, half a request through TLS": {true, knock(request)},
		"listener, half a line":                {false, knock(request[:5])},
	}
	together(t, cases, func(handshake) (up, down Line) { return line, line }, func(c handshake, t label, s *Star, l *Link) {
		cfg, d := scaled.listen(), scaled.dialer()
		cfg.HandshakeTimeout, d.HandshakeTimeout = limit, limit
		r := open(t, s, l, cfg, d, c.secure, false)
		if r == nil {
			return
		}
		defer r.Close()
		c.do(c.secure, t, r, l)
	})
}

// A listener whose answer gets lost has a socket with nobody at the other end.
func TestDead_AnswerIsLost(t *testing.T) {
	Need(t)
	t.Parallel()
	s := NewStar(t)
	line := Line{Rate: 1000 * kbit, Delay: 200 * time.Millisecond}
	l := s.AddLink(t, 1, line, line)
	r := open(t, s, l, scaled.listen(), scaled.dialer(), false, false)
	if r == nil {
		return
	}
	defer r.Close()
	connect := r.dial.NetDial
	r.dial.HandshakeTimeout = 2 * time.Second
	r.dial.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := connect(ctx, network, addr)
		time.AfterFunc(300*time.Millisecond, l.Cut) // the request has arrived
		return conn, err
	}
	go func() {
		if c, err := r.dial.Dial(t.Context(), r.url); err == nil {
			c.Abort()
			t.Error("connected")
		}
	}()
	c, err := r.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := &deadEnd{link: l, ours: c, cutAt: time.Now()}
	d.within(label{t, "listener"}, c, scaled.silent()+100*time.Millisecond)
}

// A program that hangs while its kernel lives is given up in the same time: that the
// kernel has taken the ping is no life.
func TestDead_ProgramHangs(t *testing.T) {
	Need(t)
	t.Parallel()
	s := NewStar(t)
	line := Line{Rate: 1000 * kbit, Delay: 200 * time.Millisecond}
	l := s.AddLink(t, 1, line, line)
	r := open(t, s, l, scaled.listen(), scaled.dialer(), false, false)
	if r == nil {
		return
	}
	defer r.Close()
	ws, err := dialWS(l.Host.Dial, r.url)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.conn.Close()
	c, err := r.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := &deadEnd{link: l, ours: c, cutAt: time.Now()}
	d.within(label{t, "listener"}, c, scaled.silent())
}
