package peerws

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The engine under stress: connections come, talk and end in every way, many at a time.
// Every byte that comes back is compared. A wait that is over after stressPatience is a
// wake-up that was lost.

const stressPatience = 20 * time.Second

func TestEngine_Stress(t *testing.T) {
	width := 200
	if raceMode {
		width = 30
	}
	stress(t, width, 4*time.Second)
}

func TestEngine_StressLong(t *testing.T) {
	if os.Getenv("PEERWS_LONG") == "" {
		t.Skip("takes long; the test command runs it with -long")
	}
	stress(t, 2000, 2*time.Minute)
}

// What a message's first byte asks the server for, before it is echoed.
const (
	askNothing   = iota
	askSleep     // the callback blocks
	askSpin      // or computes
	askCloseSoon // another goroutine closes
	askClose     // the callback closes
	askAbort     // or aborts
	askMeeting   // the callback waits for another connection's askMeet with the same key
	askMeet
)

// A stressServer echoes, and counts what it sees of its sockets.
type stressServer struct {
	meetings       sync.Map // key to channel
	opened, closed atomic.Int64
}

func (s *stressServer) meeting(key string) chan struct{} {
	ch, _ := s.meetings.LoadOrStore(key, make(chan struct{}, 1))
	return ch.(chan struct{})
}

func (s *stressServer) serve(c *WebSocket) {
	s.opened.Add(1)
	c.OnClose(func(*WebSocket, CloseEvent) { s.closed.Add(1) })
	switch c.Request().URL.Path {
	case "/callback":
		c.OnMessage(s.answer)
	case "/calls":
		go s.read(c)
	case "/connection": // in OnConnection
		s.read(c)
	}
}

// read is answer for messages read by calls.
func (s *stressServer) read(c *WebSocket) {
	for m, err := range c.Messages(context.Background()) {
		if err != nil {
			return
		}
		s.answer(c, m)
		if rand.IntN(4) > 0 {
			continue
		}
		typ, r, err := c.NextReader(context.Background())
		if err != nil {
			return
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return
		}
		s.answer(c, Message{Type: typ, Data: data})
	}
}

func (s *stressServer) answer(c *WebSocket, m Message) {
	if len(m.Data) >= 9 {
		key := string(m.Data[1:9])
		switch m.Data[0] {
		case askSleep:
			time.Sleep(time.Duration(key[0]) * 8 * time.Microsecond)
		case askSpin:
			for end := time.Now().Add(200 * time.Microsecond); time.Now().Before(end); {
			}
		case askCloseSoon:
			time.AfterFunc(time.Duration(key[0])*time.Microsecond, func() { c.Close() })
		case askClose:
			c.Close()
		case askAbort:
			c.Abort()
		case askMeeting:
			<-s.meeting(key)
			s.meetings.Delete(key)
		case askMeet:
			s.meeting(key) <- struct{}{}
		}
	}
	c.Send(m)
}

// A stressPeer is a client that compares.
type stressPeer struct {
	*net.TCPConn
	br   *bufio.Reader
	rnd  *rand.Rand
	path string // how the server reads
	id   uint64
	sent uint64
}

func newStressPeer(l *WebSocketListener, id uint64) (*stressPeer, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", l.Port()), stressPatience)
	if err != nil {
		return nil, err
	}
	p := &stressPeer{TCPConn: c.(*net.TCPConn), br: bufio.NewReader(c), rnd: rand.New(rand.NewPCG(id, 1)), id: id}
	p.SetDeadline(time.Now().Add(stressPatience))
	p.path = []string{"/callback", "/callback", "/calls", "/connection"}[p.rnd.IntN(4)]
	request := "GET " + p.path + " HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
	at := len(request)
	if p.rnd.IntN(4) == 0 { // in two pieces, late
		at = p.rnd.IntN(len(request))
		time.Sleep(time.Duration(p.rnd.IntN(2000)) * time.Microsecond)
	}
	io.WriteString(p, request[:at])
	if at < len(request) {
		time.Sleep(time.Duration(p.rnd.IntN(2000)) * time.Microsecond)
		io.WriteString(p, request[at:])
	}
	for i := 0; ; i++ {
		line, err := p.br.ReadString('\n')
		if err != nil || i == 0 && !strings.HasPrefix(line, "HTTP/1.1 101 ") {
			p.Close()
			return nil, fmt.Errorf("answer %q, %v", line, err)
		}
		if line == "\r\n" {
			return p, nil
		}
	}
}

// message makes a payload that no other has.
func (p *stressPeer) message(ask byte, key uint64, size int) []byte {
	m := make([]byte, max(size, 24))
	m[0] = ask
	p.sent++
	binary.LittleEndian.PutUint64(m[1:], key)
	binary.LittleEndian.PutUint64(m[9:], p.id)
	binary.LittleEndian.PutUint32(m[17:], uint32(p.sent))
	for i := 24; i < len(m); i++ {
		m[i] = byte(p.id) + byte(p.sent)*3 + byte(i) + byte(i>>8)
	}
	return m
}

func (p *stressPeer) send(messages ...[]byte) error {
	var b []byte
	for _, m := range messages {
		b = append(b, clientFrame(0x82, m)...)
	}
	p.SetWriteDeadline(time.Now().Add(stressPatience))
	_, err := p.Write(b)
	return err
}

var errStress = errors.New("not what was sent")

func (p *stressPeer) expect(messages ...[]byte) error {
	p.SetReadDeadline(time.Now().Add(stressPatience))
	for _, m := range messages {
		want := serverMessage(m)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(p.br, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errStress
		}
	}
	return nil
}

// talk is one life of a connection.
func (p *stressPeer) talk(l *WebSocketListener) error {
	defer p.Close()
	for range p.rnd.IntN(20) {
		size := p.rnd.IntN(300)
		switch p.rnd.IntN(20) {
		case 0:
			size = p.rnd.IntN(200_000)
		case 1:
			size = 70_000 + p.rnd.IntN(10)
		}
		var batch [][]byte
		for range 1 + p.rnd.IntN(8)/4*p.rnd.IntN(30) {
			ask := byte(askNothing)
			switch p.rnd.IntN(40) {
			case 0:
				ask = askSleep
			case 1:
				ask = askSpin
			}
			batch = append(batch, p.message(ask, p.rnd.Uint64(), size))
		}
		if err := p.send(batch...); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if err := p.expect(batch...); err != nil {
			return fmt.Errorf("%d messages of %d bytes: %w", len(batch), size, err)
		}
		if p.rnd.IntN(6) == 0 {
			time.Sleep(time.Duration(p.rnd.IntN(3000)) * time.Microsecond)
		}
	}
	switch p.rnd.IntN(9) {
	case 0: // a reset, perhaps with messages under way
		if p.rnd.IntN(2) == 0 {
			p.send(p.message(askNothing, 0, 5000))
		}
		p.SetLinger(0)
	case 1: // data, and the end with it
		m := p.message(askNothing, 0, p.rnd.IntN(100_000))
		if err := p.send(m); err != nil {
			return err
		}
		p.CloseWrite()
		err := p.expect(m)
		if p.path != "/callback" && err == io.EOF {
			err = nil // the socket may have ended before the program sends
		}
		return err
	case 2:
		p.send(p.message(askClose, 0, 0))
		return p.expectEnd(true)
	case 3:
		p.send(p.message(askCloseSoon, p.rnd.Uint64(), 0))
		return p.expectEnd(true)
	case 4:
		p.send(p.message(askAbort, 0, 0))
		return p.expectEnd(false)
	case 5: // the closing handshake
		io.WriteString(p, maskedClose)
		return p.expectEnd(true)
	case 6: // writes that block, and go on
		var batch [][]byte
		for range 30 {
			batch = append(batch, p.message(askNothing, 0, 100_000))
		}
		sent := make(chan error, 1)
		go func() { sent <- p.send(batch...) }()
		time.Sleep(time.Duration(p.rnd.IntN(30)) * time.Millisecond)
		if err := p.expect(batch...); err != nil {
			return fmt.Errorf("blocked: %w", err)
		}
		return <-sent
	case 7: // two that wait for each other
		q, err := newStressPeer(l, p.id+1<<40)
		if err != nil {
			return err
		}
		defer q.Close()
		key := p.rnd.Uint64()
		wait, meet := p.message(askMeeting, key, 0), q.message(askMeet, key, 0)
		if err := p.send(wait); err != nil {
			return err
		}
		time.Sleep(time.Duration(p.rnd.IntN(2000)) * time.Microsecond)
		if err := q.send(meet); err != nil {
			return err
		}
		if err := q.expect(meet); err != nil {
			return fmt.Errorf("meet: %w", err)
		}
		if err := p.expect(wait); err != nil {
			return fmt.Errorf("meeting: %w", err)
		}
	}
	return nil
}

// expectEnd reads to the end, which is a Close frame or, where that does not matter, a
// cut.
func (p *stressPeer) expectEnd(frame bool) error {
	p.SetReadDeadline(time.Now().Add(stressPatience))
	var all []byte
	for {
		b := make([]byte, 4096)
		n, err := p.br.Read(b)
		all = append(all, b[:n]...)
		switch {
		case err == nil:
			if frame && bytes.Contains(all, []byte{0x88}) {
				io.WriteString(p, maskedClose)
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("no end: %w", err)
		case frame && !bytes.Contains(all, []byte{0x88}):
			return fmt.Errorf("no Close frame in % x: %w", all, err)
		default:
			return nil
		}
	}
}

func stress(t *testing.T, width int, d time.Duration) {
	s := new(stressServer)
	l := listen(t, ListenConfig{OnConnection: s.serve, MaxConnections: -1, MaxConnectionsPerIP: -1, MaxHandshakes: -1, MaxBufferedAmount: -1})
	if l.engine == nil {
		t.Fatal("there is no engine")
	}
	end := time.Now().Add(d)
	var lives, messages atomic.Uint64
	var wg sync.WaitGroup
	for range width {
		wg.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				id := lives.Add(1)
				p, err := newStressPeer(l, id)
				if err == nil {
					err = p.talk(l)
					messages.Add(p.sent)
				}
				if err != nil {
					t.Errorf("connection %d: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(stressPatience); (l.Stats().Open > 0 || s.closed.Load() < s.opened.Load()) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := l.Stats().Open; n > 0 || s.opened.Load() != s.closed.Load() {
		t.Errorf("%d sockets are left; %d were opened, %d closed", n, s.opened.Load(), s.closed.Load())
	}
	e := l.engine
	l.Close()
	for end := time.Now().Add(5 * time.Second); e.refs.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := e.refs.Load(); n != 0 {
		t.Errorf("the engine is still held %d times", n)
	}
	t.Logf("%d connections, %d messages", lives.Load(), messages.Load())
}

// inlineEngine is a listener whose loop runs turns itself, since callbacks have all been
// quick, with two connections to it.
func inlineEngine(t *testing.T, f func(c *WebSocket, m Message)) (l *WebSocketListener, a, b *knocker) {
	l = openPort(t, ListenConfig{OnConnection: func(c *WebSocket) { c.OnMessage(f) }})
	a, b = knock(t, l, upgrade), knock(t, l, upgrade)
	a.wantOpen()
	b.wantOpen()
	e := l.engine
	for i := 0; i < 100*quickLeast && (e.quick.Load() < e.need.Load() || e.looper.Load().turns.Load() == 0); i++ {
		a.send(maskedHello)
		a.wantBytes("echo", hello)
	}
	if e.looper.Load().turns.Load() == 0 {
		t.Fatal("the loop runs no turns")
	}
	return l, a, b
}

// A callback that the loop runs may wait for another connection's: the loop is taken
// over.
func TestEngine_InlineMayWait(t *testing.T) {
	release := make(chan struct{})
	l, a, b := inlineEngine(t, func(c *WebSocket, m Message) {
		switch string(m.Data) {
		case "wait":
			<-release
		case "go":
			close(release)
		}
		c.Send(m)
	})
	before := l.engine.looper.Load()
	a.send(string(clientFrame(0x82, []byte("wait"))))
	b.send(string(clientFrame(0x82, []byte("go"))))
	b.wantBytes("go", string(serverMessage([]byte("go"))))
	a.wantBytes("wait", string(serverMessage([]byte("wait"))))
	if l.engine.looper.Load() == before {
		t.Error("the loop was not taken over")
	}
	for range 3 {
		a.send(maskedHello)
		a.wantBytes("echo", hello)
		b.send(maskedHello)
		b.wantBytes("echo", hello)
	}
}

// One that ends its goroutine, as t.FailNow does, ends its own connection's only.
func TestEngine_InlineGoexit(t *testing.T) {
	l, a, b := inlineEngine(t, func(c *WebSocket, m Message) {
		if string(m.Data) == "exit" {
			runtime.Goexit()
		}
		c.Send(m)
	})
	before := l.engine.looper.Load()
	a.send(string(clientFrame(0x82, []byte("exit"))))
	if _, err := a.br.ReadByte(); err == nil {
		t.Error("the connection lives")
	}
	for range 3 {
		b.send(maskedHello)
		b.wantBytes("echo", hello)
	}
	if l.engine.looper.Load() == before {
		t.Error("the loop was not taken over")
	}
}

// What is set on the listening socket holds for its connections.
func TestEngine_NoDelay(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing})
	knock(t, l, upgrade).wantOpen()
	on := 0
	rawConn(l.openSockets()[0].conn).Control(func(fd uintptr) {
		on, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
	})
	if on == 0 {
		t.Error("TCP_NODELAY is off")
	}
}

// A peer that reads nothing costs what is queued for it, and no goroutine; what it reads
// later is whole.
func TestEngine_BlockedWrites(t *testing.T) {
	l := openPort(t, ListenConfig{OnConnection: echoing, MaxBufferedAmount: -1, MaxMessageSize: -1})
	k := knock(t, l, upgrade)
	k.wantOpen()
	before := readers()
	payload := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
	k.send(string(clientFrame(0x82, payload)))
	c := l.openSockets()[0]
	for end := time.Now().Add(10 * time.Second); c.BufferedAmount() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if sockOf(c.raw).state.Load()&sockBlocked == 0 {
		t.Error("nothing is blocked")
	}
	for end := time.Now().Add(5 * time.Second); readers() > before+2 && time.Now().Before(end); { // a worker or two that wait
		time.Sleep(time.Millisecond)
	}
	if n := readers() - before; n > 2 {
		t.Errorf("%d goroutines", n)
	}
	want := serverMessage(payload)
	got := make([]byte, len(want))
	k.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := io.ReadFull(k.br, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", n, len(want), err)
	}
	k.conn.Close()
}

// A listener whose transport listener the program closes ends.
func TestEngine_ListenerClosedBehind(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenConfig{OnConnection: echoing}.Serve(ln)
	if err != nil {
		t.Fatal(err)
	}
	knock(t, l, upgrade).wantOpen()
	ln.Close()
	select {
	case <-l.Done():
	case <-time.After(5 * listenerLook):
		t.Fatal("it goes on")
	}
	if !errors.Is(l.Err(), net.ErrClosed) {
		t.Errorf("%v", l.Err())
	}
}
