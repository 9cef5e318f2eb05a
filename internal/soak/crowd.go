package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/peerws/peerws"
)

// A crowd is the other side: peers and vandals.
type crowd struct {
	seed           uint64
	length         time.Duration
	peers, vandals int
	first          int // the number of the first peer

	sent, connections atomic.Int64
	refused           atomic.Int64 // dials in vain
	deeds             [len(deeds)]atomic.Int64
}

// finish is what the peers have after their time for what is not acknowledged yet.
const finish = 30 * time.Second

// run lets the crowd at the listener.
func (c *crowd) run(ctx context.Context, addr string) error {
	end := time.Now().Add(c.length)
	limit, cancel := context.WithDeadline(ctx, end.Add(finish))
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, c.peers)
	for i := range c.peers {
		wg.Go(func() {
			p := peer{crowd: c, id: c.first + i, addr: addr, end: end, rng: rand.New(rand.NewPCG(c.seed, 1<<40+uint64(c.first+i)))}
			errs[i] = p.run(limit)
		})
	}
	for i := range c.vandals {
		rng := rand.New(rand.NewPCG(c.seed, 2<<40+uint64(c.first+i)))
		wg.Go(func() { c.vandal(ctx, addr, end, rng) })
	}
	wg.Wait()
	fmt.Printf("sent %d messages that were acknowledged, over %d connections of %d peers; %d dials were in vain\n", c.sent.Load(), c.connections.Load(), c.peers, c.refused.Load())
	for i, d := range deeds {
		fmt.Printf("%s: %d times\n", d.name, c.deeds[i].Load())
	}
	return errors.Join(errs...)
}

// A peer sends numbered messages over one connection after the other.
type peer struct {
	*crowd
	id   int
	addr string
	end  time.Time // when it begins no more
	rng  *rand.Rand

	mu    sync.Mutex
	sent  int // the last message that was ever sent
	acked int // and that is known to have come
	fault error
}

// narrow connects with small buffers in the kernel, so that both ends have to queue.
func narrow(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := conn.(*net.TCPConn)
	return c, errors.Join(c.SetReadBuffer(4<<10), c.SetWriteBuffer(4<<10))
}

// window is how many messages of a peer may be without an acknowledgement.
const window = 32

func (p *peer) run(ctx context.Context) error {
	d := peerws.Dialer{
		HandshakeTimeout: 3 * time.Second, PingInterval: 500 * time.Millisecond, PongTimeout: 2 * time.Second,
		WriteTimeout: 2 * time.Second, CloseTimeout: time.Second,
	}
	if p.id%2 == 0 {
		d.NetDial = narrow
	}
	for ctx.Err() == nil && p.fault == nil && (time.Now().Before(p.end) || p.acked < p.sent) {
		c, err := d.Dial(ctx, fmt.Sprintf("ws://%s/peer/%d", p.addr, p.id))
		if err != nil {
			p.refused.Add(1)
			time.Sleep(50*time.Millisecond + time.Duration(p.rng.Int64N(int64(200*time.Millisecond))))
			continue
		}
		p.connections.Add(1)
		p.talk(ctx, c)
	}
	switch {
	case p.fault != nil:
		return fmt.Errorf("peer %d: %w", p.id, p.fault)
	case p.acked < p.sent:
		return fmt.Errorf("peer %d: %d of %d messages are acknowledged %v after the end", p.id, p.acked, p.sent, finish)
	}
	p.crowd.sent.Add(int64(p.sent))
	return nil
}

// talk sends over one connection until it ends, or leaves after a while: properly, or
// without a word.
func (p *peer) talk(ctx context.Context, c *peerws.WebSocket) {
	begin := make(chan int, 1) // the listener's count
	free := make(chan struct{}, window)
	for range window {
		free <- struct{}{}
	}
	known := false
	hear := func(m peerws.Message) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !known {
			known = true
			n, err := strconv.Atoi(string(m.Data))
			if err != nil || n < p.acked || n > p.sent {
				p.fail(c, fmt.Errorf("the listener has %q messages; %d are sent, %d acknowledged", m.Data, p.sent, p.acked))
				return
			}
			p.acked = n
			begin <- n
			return
		}
		if want := message(p.seed, ^p.id, p.acked+1); !bytes.Equal(m.Data, want) {
			p.fail(c, fmt.Errorf("%d bytes %q came, not acknowledgement %d of %d bytes", len(m.Data), m.Data[:min(len(m.Data), 8)], p.acked+1, len(want)))
			return
		}
		p.acked++
		free <- struct{}{}
	}
	var wg sync.WaitGroup
	if style := p.rng.IntN(3); style == 0 {
		c.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) { hear(m) })
	} else {
		wg.Go(func() { receive(c, style, hear) })
	}
	p.send(ctx, c, begin, free)
	c.Wait(context.Background())
	wg.Wait()
}

// fail notes what must not be. p.mu is held.
func (p *peer) fail(c *peerws.WebSocket, err error) {
	p.fault = errors.Join(p.fault, err)
	c.Abort()
}

// send sends from where the listener is.
func (p *peer) send(ctx context.Context, c *peerws.WebSocket, begin <-chan int, free <-chan struct{}) {
	n := 0
	select {
	case n = <-begin:
	case <-c.Done():
		return
	}
	for stay := p.rng.IntN(2000); stay > 0; stay-- {
		p.mu.Lock()
		old := n < p.sent // was under way when the line broke
		p.mu.Unlock()
		if !old && !time.Now().Before(p.end) {
			break
		}
		select {
		case <-free:
		case <-c.Done():
			return
		case <-ctx.Done():
			c.Abort()
			return
		}
		n++
		p.mu.Lock()
		p.sent = max(p.sent, n)
		p.mu.Unlock()
		if p.write(ctx, c, message(p.seed, p.id, n)) != nil {
			c.Abort()
			return
		}
		time.Sleep(time.Duration(p.rng.Int64N(int64(20 * time.Millisecond))))
	}
	if p.rng.IntN(4) == 0 {
		c.Abort()
		return
	}
	for range window { // what is under way
		select {
		case <-free:
		case <-c.Done():
			return
		}
	}
	c.CloseWith(peerws.StatusNormalClosure, "")
}

// write sends a message in one of the ways that there are.
func (p *peer) write(ctx context.Context, c *peerws.WebSocket, b []byte) error {
	m := peerws.Message{Type: peerws.Binary, Data: b}
	switch p.rng.IntN(3) {
	case 0:
		return c.Send(m)
	case 1:
		return c.Write(ctx, m)
	}
	w, err := c.NextWriter(ctx, m.Type)
	if err != nil {
		return err
	}
	for len(b) > 0 {
		k := 1 + p.rng.IntN(len(b))
		if _, err := w.Write(b[:k]); err != nil {
			return err
		}
		b = b[k:]
	}
	return w.Close()
}
