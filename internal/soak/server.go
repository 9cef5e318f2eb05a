package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/peerws/peerws"
)

// message is the n-th of a peer, the same whenever it is asked for. The listener's
// acknowledgements are the messages of ^peer.
func message(seed uint64, peer, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, uint64(uint32(peer))<<32|uint64(uint32(n))))
	size := int(rng.ExpFloat64() * 500)
	switch {
	case rng.IntN(20) == 0:
		size = rng.IntN(40 << 10)
	case peer < 0:
		size /= 8
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b
}

// A server is the listener's side.
type server struct {
	seed uint64

	mu       sync.Mutex
	sessions map[int]*session
	open     map[*peerws.WebSocket]struct{}
	faults   []error
}

// A session is what the listener knows of a peer, whatever becomes of its connections.
type session struct {
	mu    sync.Mutex
	owner *peerws.WebSocket // the newest of its connections; others are not heard
	got   int               // messages
}

// A footprint is what the process has.
type footprint struct {
	goroutines, descriptors int
	heap                    uint64
}

func (f footprint) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB of heap", f.goroutines, f.descriptors, f.heap>>10)
}

func look() footprint {
	for range 3 { // pools are empty after two
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		fds = nil // no Linux
	}
	return footprint{runtime.NumGoroutine(), len(fds), m.HeapAlloc}
}

const (
	heapMore = 2 << 20          // of the heap: the sessions, and of each goroutine there was the runtime keeps half a KiB
	settle   = 10 * time.Second // until all must be gone
)

// runServer listens until ctx ends, with pauses, and then accounts for everything.
func runServer(ctx context.Context, port int, seed uint64) error {
	s := &server{seed: seed, sessions: map[int]*session{}, open: map[*peerws.WebSocket]struct{}{}}
	cfg := peerws.ListenConfig{
		HandshakeTimeout: 2 * time.Second, PingInterval: 500 * time.Millisecond, PongTimeout: 2 * time.Second,
		WriteTimeout: 2 * time.Second, CloseTimeout: time.Second, OnConnection: s.connection,
		MaxConnectionsPerIP: -1, MaxConnectionRatePerIP: -1,
	}
	// Once for what the runtime opens and keeps.
	l, err := cfg.Listen(ctx, port)
	if err != nil {
		return err
	}
	port = l.Port()
	c, err := peerws.Dial(ctx, fmt.Sprintf("ws://127.0.0.1:%d/vandal", port))
	if err != nil {
		return err
	}
	c.Abort()
	if err := l.Shutdown(ctx); err != nil {
		return err
	}
	s.drop()
	base := look()

	rng := rand.New(rand.NewPCG(seed, 0))
	rounds, told := 0, false
	for ; ctx.Err() == nil; rounds++ {
		l, err := cfg.Listen(ctx, port)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return err
		}
		if !told {
			fmt.Printf("listening at 127.0.0.1:%d\n", port)
			told = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second + time.Duration(rng.Int64N(int64(3*time.Second)))):
		}
		if rounds%2 == 0 {
			err = l.Close() // its sockets live on
		} else {
			patience, cancel := context.WithTimeout(context.Background(), time.Second)
			err = l.Shutdown(patience)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				err = nil // a vandal has not answered
			}
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
	}
	s.drop()
	end := look()
	for limit := time.Now().Add(settle); time.Now().Before(limit); end = look() {
		if end.goroutines <= base.goroutines && end.descriptors <= base.descriptors && end.heap <= base.heap+heapMore {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if end.goroutines > base.goroutines || end.descriptors > base.descriptors || end.heap > base.heap+heapMore {
		b := make([]byte, 1<<20)
		s.fault("something is left: %v at the start, %v at the end\n%s", base, end, b[:runtime.Stack(b, true)])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delivered := 0
	for _, p := range s.sessions {
		delivered += p.got
	}
	fmt.Printf("at the start %v\nat the end   %v\n", base, end)
	fmt.Printf("delivered %d messages of %d peers; the listener came back %d times\n", delivered, len(s.sessions), rounds-1)
	return errors.Join(s.faults...)
}

func (s *server) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Errorf(format, args...))
}

// drop ends every socket and waits for it.
func (s *server) drop() {
	s.mu.Lock()
	var open []*peerws.WebSocket
	for c := range s.open {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		c.Abort()
		c.Wait(context.Background())
		s.closed(c)
	}
}

func (s *server) closed(c *peerws.WebSocket) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
}

// connection begins with a socket: a peer's has its number in the path.
func (s *server) connection(c *peerws.WebSocket) {
	s.mu.Lock()
	s.open[c] = struct{}{}
	s.mu.Unlock()
	hear := func(m peerws.Message) { // of a vandal
		if c.Send(m) != nil {
			c.Abort()
		}
	}
	style := rand.IntN(3)
	if number, ok := strings.CutPrefix(c.Request().URL.Path, "/peer/"); ok {
		id, err := strconv.Atoi(number)
		if err != nil {
			s.fault("%v", err)
			return
		}
		s.mu.Lock()
		p := s.sessions[id]
		if p == nil {
			p = &session{}
			s.sessions[id] = p
		}
		s.mu.Unlock()
		p.mu.Lock()
		old := p.owner
		p.owner = c
		c.Send(peerws.Message{Type: peerws.Text, Data: strconv.AppendInt(nil, int64(p.got), 10)})
		p.mu.Unlock()
		if old != nil {
			old.Abort()
		}
		hear = func(m peerws.Message) { s.deliver(p, id, c, m) }
		style = id % 3
	}
	switch style {
	case 0:
		c.OnClose(func(c *peerws.WebSocket, _ peerws.CloseEvent) { s.closed(c) })
		c.OnMessage(func(_ *peerws.WebSocket, m peerws.Message) { hear(m) })
	default:
		go func() {
			defer s.closed(c)
			receive(c, style, hear)
		}()
	}
}

// receive reads by calls, whole messages or streams, until the end.
func receive(c *peerws.WebSocket, style int, hear func(peerws.Message)) {
	ctx := context.Background()
	for {
		var m peerws.Message
		var err error
		if style == 1 {
			m, err = c.Read(ctx)
		} else {
			var r io.Reader
			if m.Type, r, err = c.NextReader(ctx); err == nil {
				m.Data, err = io.ReadAll(r)
			}
		}
		if err != nil {
			return
		}
		hear(m)
	}
}

// deliver compares a message with the next that must come, and acknowledges it.
func (s *server) deliver(p *session, id int, c *peerws.WebSocket, m peerws.Message) {
	p.mu.Lock()
	if p.owner != c {
		p.mu.Unlock()
		return
	}
	n := p.got + 1
	if want := message(s.seed, id, n); !bytes.Equal(m.Data, want) {
		s.fault("peer %d: %d bytes %q came, not message %d of %d bytes", id, len(m.Data), m.Data[:min(len(m.Data), 8)], n, len(want))
		p.mu.Unlock()
		c.Abort()
		return
	}
	p.got = n
	p.mu.Unlock()
	if c.Send(peerws.Message{Type: peerws.Binary, Data: message(s.seed, ^id, n)}) != nil {
		c.Abort()
	}
}
