package peerws

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/bits"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Hostile inputs, numbered: what a scanner, a page or a peer may send, over real sockets
// to a real listener, plain and in TLS, and what each must get. (34, old TLS, is in
// TestTLS_Hostile; 37, tokens, is TestRequireToken.)

// tried logs inputs, each with its number first, for who counts them.
func tried(t testing.TB, inputs ...string) {
	t.Helper()
	for _, in := range inputs {
		t.Logf("hostile input %s", in)
	}
}

// plainAndTLS runs f for a listener with both transports.
func plainAndTLS(t *testing.T, c ListenConfig, f func(t *testing.T, l *WebSocketListener, dial func(parts ...string) *knocker)) {
	t.Run("plain", func(t *testing.T) {
		l := listen(t, c)
		f(t, l, func(parts ...string) *knocker { return knock(t, l, parts...) })
	})
	t.Run("TLS", func(t *testing.T) {
		c.TLSConfig = serverConfig()
		l := listen(t, c)
		f(t, l, func(parts ...string) *knocker { return knockTLS(t, l, clientConfig(), parts...) })
	})
}

// wantClose reads frames up to a Close and its code, and the end.
func (k *knocker) wantClose(want StatusCode) {
	k.t.Helper()
	for {
		var h [2]byte
		if _, err := io.ReadFull(k.br, h[:]); err != nil {
			k.t.Errorf("no Close frame with %d: %v", want, err)
			return
		}
		n := int64(h[1])
		switch n {
		case 126:
			var x [2]byte
			io.ReadFull(k.br, x[:])
			n = int64(binary.BigEndian.Uint16(x[:]))
		case 127:
			var x [8]byte
			io.ReadFull(k.br, x[:])
			n = int64(binary.BigEndian.Uint64(x[:]))
		}
		p := make([]byte, n)
		io.ReadFull(k.br, p)
		if h[0] != 0x88 {
			continue
		}
		if len(p) < 2 || StatusCode(binary.BigEndian.Uint16(p)) != want {
			k.t.Errorf("Close % x, want %d", p, want)
		}
		k.conn.Close()
		return
	}
}

// masked is a frame by its first byte and its payload.
func masked(b0 byte, p string) string { return string(clientFrame(b0, []byte(p))) }

func TestHostile_Requests(t *testing.T) {
	with := func(lines string) string { return upgradeHead + lines + "\r\n" }
	without := func(line string) string { return strings.Replace(upgrade, line, "", 1) }
	instead := func(a, b string) string { return strings.Replace(upgrade, a, b, 1) }
	plainAndTLS(t, ListenConfig{MaxHeaderBytes: 32 << 10}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for _, c := range []struct {
			name   string
			bytes  string
			status int
		}{
			{"1 a foreign page", with("Origin: https://evil.example\r\n"), 403},
			{"1 a page whose origin only begins like ours", with("Origin: http://127.0.0.1:9000.evil.example\r\n"), 403},
			{"2 a program", upgrade, 101},
			{"3 null", with("Origin: null\r\n"), 403},
			{"3 two origins", with("Origin: http://a.example\r\nOrigin: http://127.0.0.1:9000\r\n"), 400},
			{"3 an origin with a path", with("Origin: http://127.0.0.1:9000/chat\r\n"), 403},
			{"4 DNS rebinding", instead(hostLine, "Host: evil.example:9000\r\nOrigin: http://evil.example:9000\r\n"), 403},
			{"7 a large header", with("A: " + strings.Repeat("x", 64<<10) + "\r\n"), 431},
			{"7 a large first line", "GET /" + strings.Repeat("x", 64<<10), 414},
			{"8 many headers", with(strings.Repeat("A: b\r\n", 2000)), 431},
			{"8 two keys", with(keyLine), 400},
			{"8 two versions", with(versionLine), 400},
			{"9 a list of nothing", with("Sec-WebSocket-Protocol: " + strings.Repeat(" ,", 8000) + "\r\n"), 400},
			{"9 bytes that are no token", with("Sec-WebSocket-Protocol: caf\xc3\xa9\r\n"), 400},
			{"10 a short key", instead(keyLine, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"), 400},
			{"10 no key", without(keyLine), 400},
			{"10 version 8", instead(versionLine, "Sec-WebSocket-Version: 8\r\n"), 426},
			{"10 POST", instead("GET ", "POST "), 405},
			{"10 HTTP/1.0", instead("HTTP/1.1", "HTTP/1.0"), 400},
			{"10 a body", with("Content-Length: 5\r\n") + "hello", 400},
			{"24 window bits out of range", with("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=16\r\n"), 101},
			{"24 a hundred offers", with("Sec-WebSocket-Extensions: " + strings.Repeat("permessage-deflate; a=\"b\",", 100) + "x\r\n"), 101},
			{"36 a scanner", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426},
			{"36 HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405},
			{"36 SSH", "SSH-2.0-OpenSSH_9.7\r\n", 400},
			{"36 SOCKS", "\x05\x01\x00\r\n\r\n", 400},
		} {
			start := time.Now()
			k := dial()
			go io.WriteString(k.conn, c.bytes) // more than is read may be in it
			r, body := k.answer("GET")
			if r.StatusCode != c.status || len(body) > 200 {
				t.Errorf("%s: %d %q, want %d", c.name, r.StatusCode, body, c.status)
			}
			if v := r.Header.Get("Sec-WebSocket-Version"); c.status == 426 && v != "13" {
				t.Errorf("%s: version %q", c.name, v)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("%s: it took %v", c.name, d)
			}
			tried(t, c.name)
			k.conn.Close()
		}
	})
}

func TestHostile_Frames(t *testing.T) {
	long := func(n uint64) string { return "\x82\xff" + string(binary.BigEndian.AppendUint64(nil, n)) + "abcd" }
	none := "\x00\x00\x00\x00"
	type input struct {
		name  string
		bytes string
		code  StatusCode
	}
	list := []input{
		{"13 top bit", long(1 << 63), 1002},
		{"13 2^63-1", long(1<<63 - 1), 1009},
		{"13 2^31", long(1 << 31), 1009},
		{"15 126 for 5", "\x82\xfe\x00\x05" + none + "hello", 1002},
		{"15 127 for 5", "\x82\xff\x00\x00\x00\x00\x00\x00\x00\x05" + none + "hello", 1002},
		{"16 no mask", "\x82\x05hello", 1002},
		{"17 RSV1", masked(0xc2, "x"), 1002},
		{"17 RSV2", masked(0xa2, "x"), 1002},
		{"17 RSV3", masked(0x92, "x"), 1002},
		{"17 RSV1 on a continuation", masked(0x02, "x") + masked(0xc0, "x"), 1002},
		{"17 RSV1 on a ping", masked(0xc9, ""), 1002},
		{"18 fragmented ping", masked(0x09, ""), 1002},
		{"18 ping of 126 bytes", "\x89\xfe\x00\x7e" + none + strings.Repeat("x", 126), 1002},
		{"19 fragments without end", masked(0x02, "x") + strings.Repeat(masked(0x00, strings.Repeat("x", 1000)), 200), 1009},
		{"20 fragments of one byte", masked(0x02, "x") + strings.Repeat(masked(0x00, "x"), 2000), 1008},
		{"21 empty fragments", masked(0x02, "x") + strings.Repeat(masked(0x00, ""), 2000), 1008},
		{"31 text that is none, at once", "\x81\xfe\xf0\x00" + none + "\xff", 1007},
		{"31 across fragments", masked(0x01, "\xe2\x82") + masked(0x00, "a"), 1007},
		{"30 close of one byte", masked(0x88, "x"), 1002},
		{"30 reason that is no text", masked(0x88, "\x03\xe8\xff"), 1007},
		{"30 long reason", "\x88\xfe\x00\x7e" + none + "\x03\xe8" + strings.Repeat("x", 124), 1002},
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		list = append(list, input{"18 reserved opcode", masked(0x80|op, ""), 1002})
	}
	for _, code := range []StatusCode{0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000} {
		list = append(list, input{"30 close code", masked(0x88, string([]byte{byte(code >> 8), byte(code)})), 1002})
	}
	for _, code := range []StatusCode{3000, 4999} {
		list = append(list, input{"30 close code", masked(0x88, string([]byte{byte(code >> 8), byte(code)})), code})
	}
	var mu sync.Mutex
	delivered := 0
	conf := ListenConfig{MaxMessageSize: 64 << 10, CloseTimeout: time.Second, OnConnection: func(c *WebSocket) {
		c.OnMessage(func(*WebSocket, Message) {
			mu.Lock()
			delivered++
			mu.Unlock()
		})
	}}
	plainAndTLS(t, conf, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for _, c := range list {
			k := dial(upgrade)
			k.wantOpen()
			go io.WriteString(k.conn, c.bytes)
			before := t.Failed()
			k.wantClose(c.code)
			if t.Failed() && !before {
				t.Errorf("that was %s", c.name)
			}
			tried(t, c.name)
		}
		mu.Lock()
		defer mu.Unlock()
		if delivered > 0 {
			t.Errorf("%d messages were handed over", delivered)
		}
	})
}

func TestHostile_Compressed(t *testing.T) {
	zeros := bytes.Repeat([]byte{0}, 8<<20)
	packed := string(pack(t, zeros))
	conf := ListenConfig{Compression: Compression{Mode: CompressionNoContext}, CloseTimeout: time.Second, OnConnection: func(c *WebSocket) { c.OnMessage(ignore) }}
	plainAndTLS(t, conf, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for _, c := range []struct {
			name  string
			bytes string
			code  StatusCode
		}{
			{"22 a bomb", masked(0xc2, packed), 1009},
			{"22 a bomb in fragments", masked(0x42, packed[:100]) + masked(0x00, packed[100:2000]) + masked(0x80, packed[2000:]), 1009},
			{"25 corrupt", masked(0xc2, "\xff\xff\xff\xff"), 1007},
			{"17 RSV1 on a continuation", masked(0x42, packed[:10]) + masked(0xc0, packed[10:]), 1002},
		} {
			k := dial(upgradeHead, "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
			if r := k.wantOpen(); !strings.HasPrefix(r.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
				t.Fatal(r.Header)
			}
			go io.WriteString(k.conn, c.bytes)
			before := t.Failed()
			k.wantClose(c.code)
			if t.Failed() && !before {
				t.Errorf("that was %s", c.name)
			}
			tried(t, c.name)
		}
	})
}

// 5, 6 and 35: silence, drops, half a hello of TLS, and resets anywhere.
func TestHostile_Silence(t *testing.T) {
	tried(t, "5 silence and half a head", "6 half a hello of TLS", "35 resets")
	l := listen(t, ListenConfig{HandshakeTimeout: 400 * time.Millisecond, TLSConfig: serverConfig(), OnConnection: echoing})
	var wg sync.WaitGroup
	for _, s := range []string{"", "G", upgradeHead, "\x16\x03\x01\x02\x00\x01"} {
		wg.Go(func() {
			k := knock(t, l, s)
			start := time.Now()
			go func() {
				for k.conn != nil {
					if _, err := k.conn.Write([]byte("x")); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}()
			io.Copy(io.Discard, k.br)
			if d := time.Since(start); d > 5*time.Second || d < 300*time.Millisecond && s != "\x16\x03\x01\x02\x00\x01" {
				t.Errorf("%q: it ended after %v", s, d)
			}
		})
	}
	wg.Wait()
	for _, s := range []string{"GET", upgradeHead, upgrade + maskedHello[:4], upgrade + maskedHello + "\x88\x80", "\x16\x03\x01"} {
		for _, reset := range []bool{false, true} {
			k := knock(t, l, s)
			if reset {
				k.conn.(*net.TCPConn).SetLinger(0)
			} else {
				k.conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, k.br)
			}
			k.conn.Close()
		}
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if s := l.Stats(); s.Open == 0 && s.Handshaking == 0 {
			break
		} else if time.Since(start) > 10*time.Second {
			t.Fatalf("%+v", s)
		}
	}
}

// 12: what the program says cannot break out of its line.
func TestHostile_ProgramsValues(t *testing.T) {
	tried(t, "12 values of the program")
	bad := http.Header{"X": {"a\r\nSet-Cookie: b"}}
	if _, err := (ListenConfig{ResponseHeader: bad}).Serve(nil); err == nil {
		t.Error("ResponseHeader")
	}
	if _, err := (ListenConfig{}).Serve(nil, "a\r\nb"); err == nil {
		t.Error("protocol")
	}
	if _, err := (&Dialer{Header: bad}).NewWebSocket("ws://127.0.0.1/"); err == nil {
		t.Error("Dialer.Header")
	}
	if _, err := NewWebSocket("ws://127.0.0.1/", "a\r\nb"); err == nil {
		t.Error("NewWebSocket's protocol")
	}
	plainAndTLS(t, ListenConfig{Respond: func(_ *http.Request, a *Answer) { a.Header = bad }}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		if r, _ := dial(upgrade).wantRefusal(500); r.Header.Get("Set-Cookie") != "" {
			t.Error(r.Header)
		}
	})
	plainAndTLS(t, ListenConfig{Authorize: func(*http.Request) error { return &RejectError{Header: bad} }}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		if r, _ := dial(upgrade).wantRefusal(403); r.Header.Get("Set-Cookie") != "" {
			t.Error(r.Header)
		}
	})
}

// 11 and 33: frames beside the request, and very many small messages: all of them, in
// order, without a goroutine for each.
func TestHostile_TinyMessages(t *testing.T) {
	tried(t, "11 frames beside the request", "33 tiny messages")
	const n = 50_000
	got := make(chan int, 1)
	plainAndTLS(t, ListenConfig{OnConnection: func(c *WebSocket) {
		next := 0
		c.OnMessage(func(c *WebSocket, m Message) {
			if len(m.Data) != 2 || int(binary.BigEndian.Uint16(m.Data)) != next%65536 {
				t.Errorf("message %d is % x", next, m.Data)
			}
			if next++; next == n {
				got <- runtime.NumGoroutine()
			}
		})
	}}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		before := runtime.NumGoroutine()
		var b strings.Builder
		b.WriteString(upgrade)
		for i := range n {
			b.WriteString("\x82\x82\x00\x00\x00\x00")
			b.Write([]byte{byte(i >> 8), byte(i)})
		}
		dial(b.String()).wantOpen()
		if now := <-got; now > before+50 {
			t.Errorf("%d goroutines, %d before", now, before)
		}
	})
}

// 14: memory grows with what has come, not with what was announced.
func TestHostile_Announced(t *testing.T) {
	tried(t, "14 an announced length")
	plainAndTLS(t, ListenConfig{MaxMessageSize: -1, OnConnection: func(c *WebSocket) { c.OnMessage(ignore) }}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		k := dial(upgrade)
		k.wantOpen()
		k.send("\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00abcd", strings.Repeat("x", 20<<10))
		for l.Stats().BytesReceived < 20<<10 {
			time.Sleep(time.Millisecond)
		}
		k.send("x")
		time.Sleep(10 * time.Millisecond)
		if n := l.Stats().Held; n > 256<<10 {
			t.Errorf("%d bytes are held", n)
		}
	})
}

// 26, 27 and 28: pings, pongs, and peers that read nothing.
func TestHostile_NeverReads(t *testing.T) {
	tried(t, "26 pings", "27 pongs", "28 a peer that reads nothing")
	plainAndTLS(t, ListenConfig{OnConnection: echoing, MaxBufferedAmount: 100 << 10}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		deaf := dial(upgrade)
		deaf.wantOpen()
		go io.WriteString(deaf.conn, strings.Repeat(masked(0x89, strings.Repeat("p", 125)), 40_000)+strings.Repeat(masked(0x8a, ""), 10_000))
		mute := dial(upgrade)
		mute.wantOpen()
		var muted *WebSocket
		for muted == nil {
			for _, c := range l.openSockets() {
				if c.RemoteAddr().String() == mute.conn.LocalAddr().String() {
					muted = c
				}
			}
		}
		var err error
		for err == nil {
			err = muted.SendBinary(make([]byte, 10<<10))
		}
		if !errors.Is(err, ErrBufferFull) {
			t.Errorf("%v", err)
		}
		other := dial(upgrade, maskedHello)
		other.wantOpen()
		other.wantBytes("echo", hello)
		if n := l.Stats().Held; n > 1<<20 {
			t.Errorf("%d bytes are held", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		start := time.Now()
		l.Shutdown(ctx)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("shutdown took %v", d)
		}
	})
}

// 29: data behind a Close, and a Close that is never answered.
func TestHostile_Close(t *testing.T) {
	tried(t, "29 data behind a Close", "29 a Close without an answer")
	plainAndTLS(t, ListenConfig{CloseTimeout: 300 * time.Millisecond, OnConnection: func(c *WebSocket) {
		c.OnMessage(func(c *WebSocket, m Message) {
			if string(m.Data) != "Hello" {
				t.Errorf("%q was handed over", m.Data)
			}
			c.Close()
		})
	}}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		a := dial(upgrade, masked(0x88, "\x03\xe8"), masked(0x82, "late"), masked(0x82, "later"))
		a.wantOpen()
		a.wantBytes("close", "\x88\x02\x03\xe8")
		b := dial(upgrade, maskedHello, masked(0x82, "late"))
		b.wantOpen()
		b.wantBytes("close", "\x88\x00")
		for start := time.Now(); l.Stats().Open > 0; time.Sleep(time.Millisecond) {
			if time.Since(start) > 8*time.Second {
				t.Fatalf("%+v", l.Stats())
			}
		}
	})
}

// 32 and 36: the caps of an address hold before TLS, are given back, and scanners fill
// no log.
func TestHostile_Many(t *testing.T) {
	tried(t, "32 many of one address", "36 scanners and the log")
	var mu sync.Mutex
	var logged bytes.Buffer
	l := listen(t, ListenConfig{
		MaxConnectionsPerIP: 4, TLSConfig: serverConfig(), OnConnection: echoing,
		Logger: slog.New(slog.NewTextHandler(&lockedWriter{&mu, &logged}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	for range 2 {
		a, b := knock(t, l, upgrade), knockTLS(t, l, clientConfig(), upgrade)
		a.wantOpen()
		b.wantOpen()
		c, d := knock(t, l, "GET"), knock(t, l, "\x16\x03\x01")
		for l.Stats().Handshaking < 2 {
			time.Sleep(time.Millisecond)
		}
		knock(t, l).wantRefusal(503)
		for _, k := range []*knocker{a, b, c, d} {
			k.conn.Close()
		}
		for s := l.Stats(); s.Open+s.Handshaking > 0; s = l.Stats() {
			time.Sleep(time.Millisecond)
		}
	}
	mu.Lock()
	logged.Reset()
	mu.Unlock()
	for range 300 {
		k := knock(t, l, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		k.answer("GET")
		k.conn.Close()
		knock(t, l, "\x16\x03\x01\x00\x01x").conn.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(logged.String(), "\n"); n > 40 {
		t.Errorf("%d records for 600 scans", n)
	}
}

// 38: the dialling side's masking keys are new for each frame, and tell nothing of the
// next.
func TestHostile_MaskKeys(t *testing.T) {
	tried(t, "38 masking keys")
	const n = 4096
	ours, theirs := tcpPair(t)
	defer theirs.Close()
	c := newOpenWebSocket(testSettings(), ours, true, nil)
	c.begin()
	defer waitDone(t, c)
	defer c.Abort()
	go func() {
		for range n {
			c.Write(context.Background(), Message{Type: Binary, Data: []byte("x")})
		}
	}()
	seen := make(map[[4]byte]bool)
	var ones int
	for range n {
		var f [7]byte
		if _, err := io.ReadFull(theirs, f[:]); err != nil {
			t.Fatal(err)
		}
		if f[0] != 0x82 || f[1] != 0x81 || f[6]^f[2] != 'x' {
			t.Fatalf("frame % x", f)
		}
		seen[[4]byte(f[2:])] = true
		for _, b := range f[2:6] {
			ones += bits.OnesCount8(b)
		}
	}
	if len(seen) < n-3 {
		t.Errorf("%d different keys of %d", len(seen), n)
	}
	if ones < n*32*48/100 || ones > n*32*52/100 {
		t.Errorf("%d of %d bits are set", ones, n*32)
	}
}

// 23: a connection that has compressed and decompressed, and is idle, holds neither
// compressor nor decompressor, nor memory of either.
func TestHostile_IdleCompressed(t *testing.T) {
	tried(t, "23 idle connections with compression")
	const n, most = 200, 4 << 10
	l := listen(t, ListenConfig{Compression: Compression{Mode: CompressionNoContext}, OnConnection: echoing})
	text := strings.Repeat("all the same ", 100)
	hello := masked(0xc1, string(pack(t, []byte(text))))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // pools are empty after two
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := heap()
	for range n {
		k := knock(t, l, upgradeHead, "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
		defer k.conn.Close()
		k.wantOpen()
		k.send(hello)
		var h [2]byte
		if _, err := io.ReadFull(k.br, h[:]); err != nil || h[0] != 0xc1 || h[1] > 125 {
			t.Fatalf("% x, %v", h, err)
		}
		io.CopyN(io.Discard, k.br, int64(h[1]))
	}
	if each := (heap() - before) / n; each > most { // both ends, and the tests' own buffers
		t.Errorf("%d bytes a connection", each)
	} else {
		t.Logf("%d bytes a connection, both ends", each)
	}
}
