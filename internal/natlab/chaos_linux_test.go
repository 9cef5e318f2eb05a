package natlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// Chaos over links: peers of one listener, each over a line of its own that is slow,
// far, loses packets or is cut for a while, send numbered messages both ways. None
// may be lost, doubled or out of order, no peer given up that lives, and every one
// whose cable is cut for good noticed in time.

// chaosTimes outlast a cut of chaosCut: TCP then waits for twice as long, or four
// times where it loses the first packet afterwards too.
var chaosTimes = patience{ping: time.Second, pong: 10 * time.Second, write: 10 * time.Second, close: 10 * time.Second}

const chaosCut = 1500 * time.Millisecond

// chaosSeed is PEERWS_SEED, so that a failure's plan can be made again, or a new one.
func chaosSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("PEERWS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 0, 64); err != nil {
			t.Fatalf("PEERWS_SEED: %v", err)
		}
	}
	t.Logf("PEERWS_SEED=%#x makes the same plan", seed)
	return seed
}

func TestChaosLinks(t *testing.T) {
	Need(t)
	t.Parallel()
	chaosRound(t, chaosSeed(t), 12)
}

func TestChaosLinks_Long(t *testing.T) {
	Need(t)
	if os.Getenv("PEERWS_LONG") == "" {
		t.Skip("takes long; the test command runs it with -long")
	}
	t.Parallel()
	rng := rand.New(rand.NewPCG(chaosSeed(t), 0))
	for range 10 {
		chaosRound(t, rng.Uint64(), 24)
		if t.Failed() {
			return
		}
	}
}

// A chaosPlan is what happens to one peer.
type chaosPlan struct {
	seed     uint64
	up, down Line
	secure   bool
	count    int           // of messages each way
	mean     int           // size of a message
	pause    time.Duration // between two, on average
	cuts     [][2]time.Duration
	dies     time.Duration // when the cable is cut for good; 0: never
	dialler  chaosStyle
	listener chaosStyle
	closes   bool // the dialler, at the end
}

// A chaosStyle is how one side's program reads.
type chaosStyle int

const (
	callbacks chaosStyle = iota
	reads
	readers
	chaosStyles
)

func (p chaosPlan) String() string {
	return fmt.Sprintf("up %+v; down %+v; wss %v; %d messages of %d bytes or so; cuts %v; dies %v; styles %d, %d", p.up, p.down, p.secure, p.count, p.mean, p.cuts, p.dies, p.dialler, p.listener)
}

func newChaosPlan(rng *rand.Rand) chaosPlan {
	between := func(a, b time.Duration) time.Duration { return a + time.Duration(rng.Int64N(int64(b-a))) }
	p := chaosPlan{
		seed: rng.Uint64(), secure: rng.IntN(3) == 0, closes: rng.IntN(2) == 0,
		dialler: chaosStyle(rng.IntN(int(chaosStyles))), listener: chaosStyle(rng.IntN(int(chaosStyles))),
	}
	fate := rng.IntN(3) // the line is only bad, is cut for a while, or for good
	line := func() Line {
		l := Line{
			Rate:   200*kbit + rng.IntN(4000*kbit),
			Delay:  between(20*time.Millisecond, 300*time.Millisecond),
			Jitter: between(0, 20*time.Millisecond),
			Loss:   0.05 * rng.Float64(),
			Queue:  8<<10 + rng.IntN(64<<10),
		}
		if fate == 1 {
			l.Loss /= 5
		}
		return l
	}
	p.up, p.down = line(), line()
	// What such a line can carry in some seconds (Mathis et al., 1997).
	way := (p.up.Delay + p.down.Delay).Seconds()
	speed := float64(min(p.up.Rate, p.down.Rate)) / 8
	if loss := max(p.up.Loss, p.down.Loss); loss > 0 {
		speed = min(speed, linkMTU/way/math.Sqrt(loss))
	}
	p.count = 10 + rng.IntN(60)
	p.mean = int(min(speed, 100_000)*4) / p.count
	p.pause = 8 * time.Second / time.Duration(p.count)
	switch fate {
	case 1:
		for at := between(0, 2*time.Second); at < 8*time.Second; at += between(4*time.Second, 6*time.Second) {
			p.cuts = append(p.cuts, [2]time.Duration{at, between(100*time.Millisecond, chaosCut)})
		}
	case 2:
		p.dies = between(time.Second, 6*time.Second)
	}
	return p
}

// A chaosSide is one end of a connection.
type chaosSide struct {
	label
	c     *peerws.WebSocket
	plan  chaosPlan
	style chaosStyle
	from  byte // which side's messages it sends; it gets the other's

	stop chan struct{} // closed when it shall send no more

	mu  sync.Mutex
	got int           // messages
	all chan struct{} // closed when it has all
}

func chaosRound(t *testing.T, seed uint64, peers int) {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := NewStar(t)
	var plans []chaosPlan
	var links []*Link
	var addrs []netip.Addr
	for range peers {
		p := newChaosPlan(rng)
		l := s.AddLink(t, p.seed, p.up, p.down)
		plans, links, addrs = append(plans, p), append(links, l), append(addrs, l.Hub)
	}
	ln, err := s.Hub.Listen("0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg, d := chaosTimes.listen(), chaosTimes.dialer()
	cfg.TLSConfig, d.TLSConfig = trust(t, addrs...)
	cfg.HandshakeTimeout, d.HandshakeTimeout = time.Minute, time.Minute
	accepted := make([]chan *peerws.WebSocket, peers)
	for i := range accepted {
		accepted[i] = make(chan *peerws.WebSocket, 1)
	}
	cfg.OnConnection = func(c *peerws.WebSocket) {
		i, err := strconv.Atoi(strings.TrimPrefix(c.Request().URL.Path, "/"))
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		accepted[i] <- c
	}
	listener, err := cfg.Serve(ln)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := uint16(listener.Port())
	var wg sync.WaitGroup
	for i, p := range plans {
		wg.Go(func() {
			t := label{t, fmt.Sprintf("peer %d", i)}
			d := d
			d.NetDial = func(ctx context.Context, _, addr string) (net.Conn, error) { return links[i].Host.Dial(ctx, addr) }
			scheme := "ws"
			if p.secure {
				scheme = "wss"
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			c, err := d.Dial(ctx, fmt.Sprintf("%s://%v/%d", scheme, netip.AddrPortFrom(links[i].Hub, port), i))
			if err != nil {
				t.Errorf("%v: %v", p, err)
				return
			}
			if !chaosPeer(ctx, t, p, links[i], c, <-accepted[i]) {
				t.Errorf("its plan was %v", p)
			}
		})
	}
	wg.Wait()
	if n := listener.Stats().Open; n != 0 {
		t.Errorf("%d sockets are open at the end", n)
	}
}

// chaosPeer goes through a plan and reports whether all was well.
func chaosPeer(ctx context.Context, t label, p chaosPlan, l *Link, dialled, accepted *peerws.WebSocket) (ok bool) {
	stop := make(chan struct{})
	dialler := &chaosSide{label: label{t.TB, t.name + ", dialler"}, c: dialled, plan: p, style: p.dialler, from: 'd', stop: stop, all: make(chan struct{})}
	listener := &chaosSide{label: label{t.TB, t.name + ", listener"}, c: accepted, plan: p, style: p.listener, from: 'l', stop: stop, all: make(chan struct{})}
	sides := []*chaosSide{dialler, listener}
	began := time.Now()
	var wg sync.WaitGroup
	for _, s := range sides {
		wg.Go(func() { s.receive(ctx) })
		wg.Go(func() { s.send(ctx) })
	}
	defer wg.Wait()
	if p.dies > 0 {
		time.Sleep(p.dies)
		close(stop)
		l.Cut()
		cut := time.Now()
		limit := max(chaosTimes.silent(), chaosTimes.stuck())
		ok = true
		for _, s := range sides {
			ev, err := s.c.Wait(ctx)
			if took := time.Since(cut); err != nil || took > limit+slack || ev.Initiator != peerws.InitiatorTimeout {
				s.Errorf("%v after the cut, %v at most: %v, %v", took, limit, ev, err)
				ok = false
			}
		}
		return ok
	}
	for _, cut := range p.cuts {
		time.Sleep(time.Until(began.Add(cut[0])))
		l.Cut()
		time.Sleep(cut[1])
		l.Mend()
	}
	ok = true
	for _, s := range sides {
		select {
		case <-s.all:
		case <-s.c.Done():
			ev, _ := s.c.Wait(ctx)
			s.Errorf("given up after %v, with %d of %d messages: %v", time.Since(began), s.have(), p.count, ev)
			return false
		case <-ctx.Done():
			s.Errorf("%d of %d messages in %v", s.have(), p.count, time.Since(began))
			dialled.Abort()
			accepted.Abort()
			return false
		}
	}
	t.Logf("all is there after %.1f s", time.Since(began).Seconds())
	if p.closes {
		dialled.CloseWith(peerws.StatusNormalClosure, "")
	} else {
		accepted.CloseWith(peerws.StatusNormalClosure, "")
	}
	for _, s := range sides {
		if ev, err := s.c.Wait(ctx); err != nil || !ev.WasClean || ev.Err != nil {
			s.Errorf("its end: %+v, %v", ev, err)
			ok = false
		}
	}
	return ok
}

// message is the n-th of a side, the same whenever it is asked for.
func (p chaosPlan) message(from byte, n int) []byte {
	rng := rand.New(rand.NewPCG(p.seed, uint64(from)<<32|uint64(n)))
	b := binary.BigEndian.AppendUint32([]byte{from}, uint32(n))
	for size := int(rng.ExpFloat64() * float64(p.mean)); len(b) < size; {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b
}

// send sends what the plan says, in every way that there is.
func (s *chaosSide) send(ctx context.Context) {
	rng := rand.New(rand.NewPCG(s.plan.seed, uint64(s.from)))
	for n := range s.plan.count {
		select {
		case <-s.stop:
			return
		case <-time.After(time.Duration(rng.Int64N(2 * int64(s.plan.pause)))):
		}
		m := peerws.Message{Type: peerws.Binary, Data: s.plan.message(s.from, n)}
		var err error
		switch rng.IntN(4) {
		case 0:
			err = s.c.Send(m)
		case 1:
			err = s.c.Write(ctx, m)
		case 2:
			_, err = s.c.NetConn(peerws.Binary).Write(m.Data)
		case 3:
			var w io.WriteCloser
			if w, err = s.c.NextWriter(ctx, peerws.Binary); err == nil {
				at := rng.IntN(len(m.Data))
				_, err1 := w.Write(m.Data[:at])
				_, err2 := w.Write(m.Data[at:])
				err = errors.Join(err1, err2, w.Close())
			}
		}
		if err != nil {
			if s.plan.dies == 0 {
				s.Errorf("message %d: %v", n, err)
			}
			return
		}
	}
}

// receive reads in the side's style until the end.
func (s *chaosSide) receive(ctx context.Context) {
	switch s.style {
	case callbacks:
		s.c.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) { s.note(m.Data) })
		<-s.c.Done()
	case reads:
		for {
			m, err := s.c.Read(ctx)
			if err != nil {
				return
			}
			s.note(m.Data)
		}
	case readers:
		for {
			_, r, err := s.c.NextReader(ctx)
			if err != nil {
				return
			}
			b, err := io.ReadAll(r)
			if err != nil {
				return
			}
			s.note(b)
		}
	}
}

// note compares a message with the next one that must come.
func (s *chaosSide) note(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	other := byte('d' + 'l' - s.from)
	if want := s.plan.message(other, s.got); !bytes.Equal(b, want) {
		s.Errorf("%d bytes %q came, not message %d of %d bytes", len(b), b[:min(len(b), 5)], s.got, len(want))
	}
	if s.got++; s.got == s.plan.count {
		close(s.all)
	}
}

func (s *chaosSide) have() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}
