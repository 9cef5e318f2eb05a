package peerws

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func testIdentity(t testing.TB) *Identity {
	t.Helper()
	id, err := LoadIdentity(filepath.Join(t.TempDir(), "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLoadIdentity(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	keys := make(map[PeerKey]bool)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 20 { // at the same time: one of them makes it
		wg.Go(func() {
			id, err := LoadIdentity(file)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			keys[id.Key()] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(keys) != 1 {
		t.Fatalf("%d keys", len(keys))
	}
	info, err := os.Stat(file)
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if list, _ := os.ReadDir(filepath.Dir(file)); len(list) != 1 {
		t.Errorf("%v is left", list)
	}
	for name, spoil := range map[string]func() error{
		"others can read it": func() error { return os.Chmod(file, 0o644) },
		"empty":              func() error { return os.WriteFile(file, nil, 0o600) },
		"no key in it": func() error {
			return os.WriteFile(file, []byte("-----BEGIN PRIVATE KEY-----\nYQ==\n-----END PRIVATE KEY-----\n"), 0o600)
		},
	} {
		if runtime.GOOS == "windows" && name == "others can read it" {
			continue
		}
		os.Chmod(file, 0o600)
		before, _ := os.ReadFile(file)
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		spoilt, _ := os.ReadFile(file)
		if _, err := LoadIdentity(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := os.ReadFile(file); string(after) != string(spoilt) {
			t.Errorf("%s: the file was changed", name)
		}
		os.Chmod(file, 0o600)
		os.WriteFile(file, before, 0o600)
	}
	if _, err := LoadIdentity(filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("made in no directory")
	}
}

func TestPeerKey_Text(t *testing.T) {
	k := testIdentity(t).Key()
	if got, err := ParsePeerKey(k.String()); err != nil || got != k || len(k.String()) != 43 {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "x", k.String() + "A", k.String()[:42], k.String()[:42] + "+", strings.Repeat("A", 42) + "B"} {
		if _, err := ParsePeerKey(s); err == nil {
			t.Errorf("%q is a key", s)
		}
	}
}

// Both sides see whom they talk to, and nobody else gets in.
func TestPeerKey(t *testing.T) {
	mine, theirs := testIdentity(t), testIdentity(t)
	for name, c := range map[string]ListenConfig{
		"identity alone":        {Identity: theirs},
		"beside a certificate":  {Identity: theirs, TLSConfig: serverConfig()},
		"on the portable path":  {Identity: theirs, portable: true},
		"a certificate, pinned": {TLSConfig: &tls.Config{Certificates: []tls.Certificate{theirs.cert}}},
		"an expired one":        {TLSConfig: &tls.Config{Certificates: []tls.Certificate{expired(t, theirs)}}},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan PeerKey, 1)
			c.OnConnection = func(c *WebSocket) {
				k, _ := c.PeerKey()
				seen <- k
				echoing(c)
			}
			l := listen(t, c)
			url := "wss://" + l.Addr().String() + "/"
			for _, d := range []Dialer{{PeerKey: theirs.Key(), Identity: mine}, {PeerKey: theirs.Key()}} {
				s, err := d.Dial(t.Context(), url)
				if err != nil {
					t.Fatal(err)
				}
				var want PeerKey
				if d.Identity != nil && c.Identity != nil {
					want = mine.Key()
				}
				if k := <-seen; k != want {
					t.Errorf("the listener sees %v, want %v", k, want)
				}
				if k, ok := s.PeerKey(); k != theirs.Key() || !ok {
					t.Errorf("the dialler sees %v, %v", k, ok)
				}
				s.SendText("hello")
				if m, err := s.Read(t.Context()); err != nil || string(m.Data) != "hello" {
					t.Errorf("%q, %v", m.Data, err)
				}
				s.CloseWait(t.Context(), 1000, "")
			}
			wrong := Dialer{PeerKey: mine.Key()}
			_, err := wrong.Dial(t.Context(), url)
			if e, ok := errors.AsType[*PeerKeyError](err); !ok || e.Want != mine.Key() || e.Got != theirs.Key() {
				t.Errorf("the wrong key: %v", err)
			}
			if name == "beside a certificate" { // everybody else gets that one
				s, err := (Dialer{TLSConfig: clientConfig()}).Dial(t.Context(), url)
				if err != nil {
					t.Fatal(err)
				}
				if k := <-seen; k != (PeerKey{}) {
					t.Errorf("%v", k)
				}
				if k, ok := s.PeerKey(); !ok || k == theirs.Key() {
					t.Errorf("%v, %v", k, ok)
				}
				s.CloseWait(t.Context(), 1000, "")
			} else if _, err := Dial(t.Context(), url); err == nil {
				t.Error("a stranger's certificate was accepted without a pin")
			}
		})
	}
}

// expired is another certificate of the key, which has ended.
func expired(t testing.TB, id *Identity) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	key := id.cert.PrivateKey.(crypto.Signer)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A man in the middle has another key, and nothing goes in clear.
func TestPeerKey_ManInTheMiddle(t *testing.T) {
	theirs := testIdentity(t)
	l := listen(t, ListenConfig{Identity: theirs, OnConnection: echoing})
	middle := listen(t, ListenConfig{Identity: testIdentity(t), OnConnection: func(c *WebSocket) { t.Error("somebody came") }})
	d := Dialer{PeerKey: theirs.Key(), NetDial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var n net.Dialer
		return n.DialContext(ctx, network, middle.Addr().String())
	}}
	_, err := d.Dial(t.Context(), "wss://"+l.Addr().String())
	if _, ok := errors.AsType[*PeerKeyError](err); !ok {
		t.Errorf("%v", err)
	}
	if _, err := d.Dial(t.Context(), "ws://"+l.Addr().String()); err == nil || !strings.Contains(err.Error(), "PeerKey") {
		t.Errorf("ws: %v", err)
	}
	if _, ok := errors.AsType[*SyntaxError](func() error { _, err := d.NewWebSocket("http://a/"); return err }()); !ok {
		t.Error("http")
	}
}

// One that flips a byte on the way is noticed.
func TestPeerKey_Altered(t *testing.T) {
	theirs := testIdentity(t)
	l := listen(t, ListenConfig{Identity: theirs, OnConnection: echoing})
	var flip func()
	d := Dialer{PeerKey: theirs.Key(), NetDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var n net.Dialer
		conn, err := n.DialContext(ctx, network, addr)
		f := &flipping{Conn: conn}
		flip = f.flip
		return f, err
	}}
	c, err := d.Dial(t.Context(), "wss://"+l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	flip()
	c.SendText("hello")
	if m, err := c.Read(t.Context()); err == nil {
		t.Errorf("%q", m.Data)
	}
	c.Abort()
	waitDone(t, c)
}

type flipping struct {
	net.Conn
	mu sync.Mutex
	on bool
}

func (f *flipping) flip() {
	f.mu.Lock()
	f.on = true
	f.mu.Unlock()
}

func (f *flipping) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.on && len(p) > 8 {
		p = append([]byte(nil), p...)
		p[len(p)-3] ^= 1
	}
	return f.Conn.Write(p)
}

// A peer whose client speaks plain ws to a port with an Identity is served as before.
func TestIdentity_Plain(t *testing.T) {
	l := listen(t, ListenConfig{Identity: testIdentity(t), OnConnection: echoing})
	k := knock(t, l, upgrade, maskedHello)
	k.wantOpen()
	k.wantBytes("echo", hello)
	if _, _, err := (ListenConfig{Identity: testIdentity(t)}).Handler(); err == nil {
		t.Error("mounted")
	}
	if _, err := (ListenConfig{Identity: testIdentity(t), TLSConfig: &tls.Config{}}).Serve(nil); !errors.Is(err, errTLSConfig) {
		t.Errorf("%v", err)
	}
	if !strings.HasPrefix(l.URL(), "ws") {
		t.Error(l.URL())
	}
}
