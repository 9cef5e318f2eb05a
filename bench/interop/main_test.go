package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// patience is how long a step may take before the test gives it up. No step
// comes near it on a machine that works.
const patience = 20 * time.Second

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// take waits for the next value of c.
func take[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// trust is a certificate for the loopback address, made for this run, and a
// pool that holds it.
var trust = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
})

func serverTLS() *tls.Config {
	cert, _ := trust()
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func clientTLS() *tls.Config {
	_, pool := trust()
	return &tls.Config{RootCAs: pool}
}

// listen starts a listener of ours on loopback, with TLS if secure, and returns
// its URL.
func listen(t testing.TB, secure bool, c peerws.ListenConfig, protocols ...string) (*peerws.WebSocketListener, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "ws"
	if secure {
		c.TLSConfig = serverTLS()
		scheme = "wss"
	}
	l, err := c.Serve(ln, protocols...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l.Shutdown(ctx)
	})
	return l, scheme + "://" + ln.Addr().String() + "/"
}

// serve starts net/http's server on loopback, over which the other libraries
// listen, and returns its ws URL.
func serve(t testing.TB, secure bool, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	if secure {
		s.TLS = serverTLS()
		s.TLS.NextProtos = []string{"http/1.1"}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

// pair returns two connected sockets of ours over loopback.
func pair(t testing.TB, secure bool, lc peerws.ListenConfig, d peerws.Dialer) (accepted, dialled *peerws.WebSocket) {
	t.Helper()
	l, url := listen(t, secure, lc)
	d.TLSConfig = clientTLS()
	dialled, err := d.Dial(soon(t), url)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.Accept(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Abort(); accepted.Abort() })
	return accepted, dialled
}
