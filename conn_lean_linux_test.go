package peerws

import (
	"bytes"
	"crypto/tls"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// What an idle connection of a listener costs is mostly these two.
func TestWebSocketIsSmall(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		return
	}
	if size := unsafe.Sizeof(WebSocket{}); size > 320 {
		t.Errorf("a WebSocket has %d bytes, the next size class of the allocator begins at 321", size)
	}
	if size := unsafe.Sizeof(sock{}); size > 96 {
		t.Errorf("a sock has %d bytes, the next size class of the allocator begins at 97", size)
	}
}

// A client that allocates nothing, so that what is counted is the listener's.
type bareClient struct {
	addr    syscall.SockaddrInet4
	request []byte
	buf     [4096]byte
}

// connect goes through the whole life of a connection: handshake, Close, the end
// of the transport.
func (b *bareClient) connect(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Connect(fd, &b.addr); err != nil {
		t.Fatal(err)
	}
	b.exchange(t, fd, b.request, []byte("\r\n\r\n"))
	b.exchange(t, fd, []byte(maskedClose), []byte(close1000))
	if n, err := syscall.Read(fd, b.buf[:]); n != 0 || err != nil {
		t.Fatalf("%d bytes behind the Close frame, %v", n, err)
	}
}

// exchange sends and reads until what it has read ends in end.
func (b *bareClient) exchange(t *testing.T, fd int, send, end []byte) {
	if _, err := syscall.Write(fd, send); err != nil {
		t.Fatal(err)
	}
	for n := 0; !bytes.HasSuffix(b.buf[:n], end); {
		k, err := syscall.Read(fd, b.buf[n:])
		if k <= 0 || err != nil {
			t.Fatalf("%q and then %v", b.buf[:n], err)
		}
		n += k
	}
}

func TestAllocations_Handshake(t *testing.T) {
	countsAllocations(t)
	l := listen(t, ListenConfig{OnConnection: func(c *WebSocket) { c.OnMessage(ignore) }})
	b := &bareClient{addr: syscall.SockaddrInet4{Port: l.Port(), Addr: [4]byte{127, 0, 0, 1}}, request: []byte(bareHead)}
	for range 100 {
		b.connect(t)
	}
	const rounds = 1000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		b.connect(t)
	}
	runtime.ReadMemStats(&after)
	if per := float64(after.Mallocs-before.Mallocs) / rounds; per > 12 { // 6 where nobody has to wait
		t.Errorf("%.1f allocations for a connection, most are 12", per)
	} else {
		t.Logf("%.2f allocations for a connection", per)
	}
}

// A TLS connection that waits holds no buffer, and has not to be woken to find
// out that there is nothing.
func TestTLS_IdleHoldsNothing(t *testing.T) {
	accepted := make(chan *WebSocket, 1)
	l := listen(t, ListenConfig{TLSConfig: serverConfig(), OnConnection: func(c *WebSocket) {
		c.OnMessage(func(c *WebSocket, m Message) { c.Send(m) })
		accepted <- c
	}})
	conn, err := tls.Dial("tcp", l.Addr().String(), clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	upgradeRaw(t, conn)
	c := <-accepted
	if readWaitOf(c.conn) == nil {
		t.Fatal("it waits in a Read")
	}
	p := peer{t, conn}
	for _, size := range []int{5, 125, 5000, 200 << 10} { // within a record, and over many
		frame := clientFrame(0x82, bytes.Repeat([]byte{7}, size))
		for at := 0; at < len(frame); at += 20_000 { // not more than the peer's buffers hold
			if _, err := conn.Write(frame[at:min(at+20_000, len(frame))]); err != nil {
				t.Fatal(err)
			}
		}
		p.want("echo", string(serverMessage(bytes.Repeat([]byte{7}, size))))
	}
	// The reader holds its block until it has seen that nothing more is there.
	for range 500 {
		if c.activity.Load()&1 == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if in := c.in; in != nil { // ordered by phase before, and by Abort behind
		t.Errorf("it holds %d bytes", cap(in.b))
	}
	c.Abort()
	waitDone(t, c)
}
