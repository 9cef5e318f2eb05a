package peerws

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A renegotiator is the server side of TLS 1.2, with one cipher suite, as far as
// RFC 5246 and 5746 need it to begin another handshake on a connection: crypto/tls
// does that for no server.
type renegotiator struct {
	conn net.Conn

	in, out            sealer
	nextIn, nextOut    sealer // from ChangeCipherSpec on
	transcript         []byte
	flight             []byte // handshake bytes read and not looked at
	data               []byte // application data read and not taken
	clientEnd, servEnd []byte // verify_data of the last handshake (RFC 5746 §3.1)

	pause func() // called in the middle of each handshake but the first
}

// A sealer protects the records of one direction (RFC 5288).
type sealer struct {
	aead cipher.AEAD // nil: not at all
	iv   []byte
	seq  uint64
}

func newSealer(key, iv []byte) sealer {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return sealer{aead: aead, iv: iv}
}

func (s *sealer) additional(kind byte, n int) []byte {
	b := binary.BigEndian.AppendUint64(nil, s.seq)
	s.seq++
	return append(b, kind, 3, 3, byte(n>>8), byte(n))
}

const (
	recordCCS         = 20
	recordData        = 23
	suiteAES128       = 0xc02b // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
	helloRequest      = 0
	clientHello       = 1
	serverHello       = 2
	certificate       = 11
	serverKeyExchange = 12
	serverHelloDone   = 14
	clientKeyExchange = 16
	finished          = 20
)

func (r *renegotiator) writeRecord(kind byte, p []byte) error {
	if s := &r.out; s.aead != nil {
		explicit := binary.BigEndian.AppendUint64(nil, s.seq)
		p = s.aead.Seal(explicit, append(bytes.Clone(s.iv), explicit...), p, s.additional(kind, len(p)))
	}
	_, err := r.conn.Write(append([]byte{kind, 3, 3, byte(len(p) >> 8), byte(len(p))}, p...))
	return err
}

// readRecord reads one record and files it.
func (r *renegotiator) readRecord() error {
	var head [5]byte
	if _, err := io.ReadFull(r.conn, head[:]); err != nil {
		return err
	}
	p := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(r.conn, p); err != nil {
		return err
	}
	if s := &r.in; s.aead != nil {
		nonce := append(bytes.Clone(s.iv), p[:8]...)
		plain, err := s.aead.Open(nil, nonce, p[8:], s.additional(head[0], len(p)-8-s.aead.Overhead()))
		if err != nil {
			return err
		}
		p = plain
	}
	switch head[0] {
	case recordCCS:
		r.in = r.nextIn
	case recordHandshake:
		r.flight = append(r.flight, p...)
	case recordData:
		r.data = append(r.data, p...)
	default:
		return fmt.Errorf("record %d: %x", head[0], p)
	}
	return nil
}

func (r *renegotiator) writeMessage(kind byte, p []byte) error {
	m := append([]byte{kind, 0, byte(len(p) >> 8), byte(len(p))}, p...)
	if kind != helloRequest {
		r.transcript = append(r.transcript, m...)
	}
	return r.writeRecord(recordHandshake, m)
}

func (r *renegotiator) readMessage(kind byte) ([]byte, error) {
	for {
		if len(r.flight) >= 4 {
			if n := 4 + int(r.flight[2])<<8 + int(r.flight[3]); len(r.flight) >= n {
				m := r.flight[:n]
				r.flight = r.flight[n:]
				if m[0] != kind {
					return nil, fmt.Errorf("message %d instead of %d", m[0], kind)
				}
				r.transcript = append(r.transcript, m...)
				return m[4:], nil
			}
		}
		if err := r.readRecord(); err != nil {
			return nil, err
		}
	}
}

// prf is TLS 1.2's (RFC 5246 §5).
func prf(secret []byte, label string, seed []byte, n int) []byte {
	mac := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write(bytes.Join(parts, nil))
		return h.Sum(nil)
	}
	seed = append([]byte(label), seed...)
	var out []byte
	for a := mac(seed); len(out) < n; a = mac(a) {
		out = append(out, mac(a, seed)...)
	}
	return out[:n]
}

func (r *renegotiator) handshake() error {
	r.transcript = nil
	hello, err := r.readMessage(clientHello)
	if err != nil {
		return err
	}
	clientRandom := bytes.Clone(hello[2:34])
	if r.in.aead != nil && r.pause != nil {
		r.pause()
	}
	random := make([]byte, 32)
	rand.Read(random)
	info := append(bytes.Clone(r.clientEnd), r.servEnd...)
	b := append([]byte{3, 3}, random...)
	b = append(b, 0, suiteAES128>>8, suiteAES128&0xff, 0)
	b = append(b, 0, byte(5+len(info)), 0xff, 0x01, 0, byte(1+len(info)), byte(len(info)))
	if err := r.writeMessage(serverHello, append(b, info...)); err != nil {
		return err
	}
	cert, _ := testTrust()
	der := cert.Certificate[0]
	n := len(der)
	b = []byte{0, byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)}
	if err := r.writeMessage(certificate, append(b, der...)); err != nil {
		return err
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	params := append([]byte{3, 0, 29, 32}, key.PublicKey().Bytes()...)
	digest := sha256.Sum256(bytes.Join([][]byte{clientRandom, random, params}, nil))
	sig, err := ecdsa.SignASN1(rand.Reader, cert.PrivateKey.(*ecdsa.PrivateKey), digest[:])
	if err != nil {
		return err
	}
	b = append(params, 4, 3, byte(len(sig)>>8), byte(len(sig)))
	if err := r.writeMessage(serverKeyExchange, append(b, sig...)); err != nil {
		return err
	}
	if err := r.writeMessage(serverHelloDone, nil); err != nil {
		return err
	}

	exchange, err := r.readMessage(clientKeyExchange)
	if err != nil {
		return err
	}
	public, err := ecdh.X25519().NewPublicKey(exchange[1:])
	if err != nil {
		return err
	}
	secret, err := key.ECDH(public)
	if err != nil {
		return err
	}
	master := prf(secret, "master secret", append(bytes.Clone(clientRandom), random...), 48)
	keys := prf(master, "key expansion", append(bytes.Clone(random), clientRandom...), 2*16+2*4)
	r.nextIn = newSealer(keys[:16], keys[32:36])
	r.nextOut = newSealer(keys[16:32], keys[36:40])
	verify := func(label string) []byte {
		sum := sha256.Sum256(r.transcript)
		return prf(master, label, sum[:], 12)
	}
	want := verify("client finished")
	got, err := r.readMessage(finished)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("client finished %x, want %x", got, want)
	}
	if err := r.writeRecord(recordCCS, []byte{1}); err != nil {
		return err
	}
	r.out = r.nextOut
	r.clientEnd, r.servEnd = want, verify("server finished")
	return r.writeMessage(finished, r.servEnd)
}

// renegotiate asks for another handshake and does it.
func (r *renegotiator) renegotiate() error {
	if err := r.writeMessage(helloRequest, nil); err != nil {
		return err
	}
	return r.handshake()
}

func (r *renegotiator) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		if err := r.readRecord(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

func (r *renegotiator) Write(p []byte) (int, error) { return len(p), r.writeRecord(recordData, p) }

// renegotiating dials a server that has answered the opening request, and then
// does what serve says.
func renegotiating(t *testing.T, d Dialer, how tls.RenegotiationSupport, serve func(r *renegotiator) error) *WebSocket {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		r := &renegotiator{conn: conn}
		if err := r.handshake(); err != nil {
			served <- err
			return
		}
		q, err := http.ReadRequest(bufio.NewReader(r))
		if err == nil {
			io.WriteString(r, accepts(q, "", ""))
			err = serve(r)
		}
		served <- err
		io.Copy(io.Discard, conn) // until the client ends it
	}()
	t.Cleanup(func() {
		ln.Close()
		if err := <-served; err != nil {
			t.Error("server:", err)
		}
	})
	d.TLSConfig = clientConfig()
	d.TLSConfig.Renegotiation = how
	d.TLSConfig.MaxVersion = tls.VersionTLS12
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, "wss://"+ln.Addr().String()+"/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Abort()
		<-c.Done()
	})
	return c
}

// netDialTLS dials TLS as a program does it that has its own way.
func netDialTLS(cfg *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := tls.Dialer{Config: cfg}
		return d.DialContext(ctx, network, addr)
	}
}

func text(s string) []byte { return append([]byte{0x81, byte(len(s))}, s...) }

// A server may ask for another TLS handshake at any time (RFC 5246 §7.4.1.1), and
// a client that allows it goes on.
func TestRenegotiation(t *testing.T) {
	for _, how := range []tls.RenegotiationSupport{tls.RenegotiateOnceAsClient, tls.RenegotiateFreelyAsClient} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			rounds := 1
			if how == tls.RenegotiateFreelyAsClient {
				rounds = 3
			}
			c := renegotiating(t, Dialer{}, how, func(r *renegotiator) error {
				for range rounds {
					if err := r.renegotiate(); err != nil {
						return err
					}
					r.Write(text("hello"))
					b := make([]byte, 2+4+5) // masked
					if _, err := io.ReadFull(r, b); err != nil {
						return err
					}
					r.Write(text("thanks"))
				}
				return nil
			})
			for range rounds {
				wantRead(t, c, Text, "hello")
				c.SendText("reply")
				wantRead(t, c, Text, "thanks")
			}
		})
	}
}

// The reader is woken while a handshake goes on: that is not the handshake's end.
func TestRenegotiation_Wake(t *testing.T) {
	paused, goOn := make(chan bool), make(chan bool)
	c := renegotiating(t, Dialer{PingInterval: 40 * time.Millisecond, PongTimeout: 10 * time.Second}, tls.RenegotiateFreelyAsClient, func(r *renegotiator) error {
		r.pause = func() {
			paused <- true
			<-goOn
		}
		for range 3 {
			if err := r.renegotiate(); err != nil {
				return err
			}
			r.Write(text("hello"))
		}
		return nil
	})
	ran := make(chan bool)
	for range 3 {
		<-paused
		for range 3 {
			c.OnOpen(func(*WebSocket) { ran <- true })
			<-ran
		}
		c.SendText(strings.Repeat("x", 100)) // waits for the handshake
		goOn <- true
		wantRead(t, c, Text, "hello")
	}
}

// A server that begins a handshake and falls silent is as silent as any other.
func TestRenegotiation_Silence(t *testing.T) {
	short := 40 * time.Millisecond
	for name, do := range map[string]func(c *WebSocket){
		"PongTimeout":  func(*WebSocket) {},
		"WriteTimeout": func(c *WebSocket) { c.SendText("waits for the handshake") },
		"Close":        func(c *WebSocket) { c.Close() },
		"Abort":        func(c *WebSocket) { c.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			over, paused := make(chan bool), make(chan bool)
			d := Dialer{WriteTimeout: short, CloseTimeout: short, PingInterval: short, PongTimeout: short}
			c := renegotiating(t, d, tls.RenegotiateFreelyAsClient, func(r *renegotiator) error {
				r.pause = func() {
					close(paused)
					<-over
				}
				r.renegotiate() // fails: the client is gone
				return nil
			})
			defer close(over)
			<-paused
			do(c)
			ev := waitDone(t, c)
			if ev.WasClean || ev.Err == nil {
				t.Errorf("%+v", ev)
			}
		})
	}
}

// What a client does not allow is the end of the connection, with a reason.
func TestRenegotiation_NotAllowed(t *testing.T) {
	for how, allowed := range map[tls.RenegotiationSupport]int{tls.RenegotiateNever: 0, tls.RenegotiateOnceAsClient: 1} {
		c := renegotiating(t, Dialer{}, how, func(r *renegotiator) error {
			for range allowed {
				if err := r.renegotiate(); err != nil {
					return err
				}
			}
			if r.renegotiate() == nil {
				return fmt.Errorf("handshake %d was allowed", allowed)
			}
			return nil
		})
		ev := waitDone(t, c)
		if ev.Initiator != InitiatorNetwork || ev.Err == nil || !strings.Contains(ev.Err.Error(), "tls") {
			t.Errorf("%v: %+v", how, ev)
		}
	}
}

// The same over TLS that the program brings along, of whose configuration nothing
// is known.
func TestRenegotiation_NetDial(t *testing.T) {
	cfg := clientConfig()
	cfg.Renegotiation, cfg.MaxVersion = tls.RenegotiateFreelyAsClient, tls.VersionTLS12
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ran := make(chan bool)
	var c *WebSocket
	opened := make(chan bool)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := &renegotiator{conn: conn}
		if err := r.handshake(); err != nil {
			t.Error(err)
			return
		}
		q, err := http.ReadRequest(bufio.NewReader(r))
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(r, accepts(q, "", ""))
		<-opened
		r.pause = func() {
			c.OnOpen(func(*WebSocket) { ran <- true })
			<-ran
		}
		if err := r.renegotiate(); err != nil {
			t.Error(err)
		}
		r.Write(text("hello"))
		io.Copy(io.Discard, conn)
	}()
	if c, err = (Dialer{NetDial: netDialTLS(cfg)}).Dial(t.Context(), "ws://"+ln.Addr().String()+"/"); err != nil {
		t.Fatal(err)
	}
	close(opened)
	wantRead(t, c, Text, "hello")
	if c.Request().TLS == nil {
		t.Error("Request does not know of TLS")
	}
	c.Abort()
	waitDone(t, c)
}
