package peerws

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// Keys of peers, without a certificate authority: program to program. A peer's key
// travels in the link that invites to it, and the Dialer accepts that key and no other.

// A PeerKey is the SHA-256 of a peer's public key, as its certificate has it
// (SubjectPublicKeyInfo, RFC 5280 §4.1.2.7). The zero value is nobody's.
type PeerKey [sha256.Size]byte

// String returns the key as a link can have it: 43 letters of the URL-safe base64.
func (k PeerKey) String() string { return base64.RawURLEncoding.EncodeToString(k[:]) }

// ParsePeerKey reads what String has written. The error is a *SyntaxError.
func ParsePeerKey(s string) (k PeerKey, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) {
		return PeerKey{}, &SyntaxError{"peer key", s, "must be 43 letters of URL-safe base64"}
	}
	return PeerKey(b), nil
}

// peerKeyOf is the key in a certificate.
func peerKeyOf(c *x509.Certificate) PeerKey { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// A PeerKeyError tells that a peer has another key than Dialer.PeerKey: somebody else
// answers at that address, or on the way to it, or the peer has a new Identity.
type PeerKeyError struct{ Want, Got PeerKey }

func (e *PeerKeyError) Error() string {
	return "the peer has the key " + e.Got.String() + ", not " + e.Want.String() + ": it is somebody else, or it has a new identity (PeerKey)"
}

// An Identity is a stable key of this program's with a certificate that it has signed
// itself. It never changes and may be used by several listeners and dialers.
type Identity struct {
	cert tls.Certificate
	key  PeerKey
}

// Key is what others know the identity by.
func (id *Identity) Key() PeerKey { return id.key }

// identityType is the PEM type of the file that LoadIdentity reads and makes: PKCS #8.
const identityType = "PRIVATE KEY"

// LoadIdentity reads the identity in a file, or makes one, ECDSA on P-256, if there is no
// such file: readable by its owner only, and whole or not at all. Of several programs
// that do so at a time one makes it. The certificate is made anew each time; the key,
// by which others know it, stays. It is an error if others can read the file.
func LoadIdentity(file string) (*Identity, error) {
	id, err := readIdentity(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeIdentity(file); err == nil {
			id, err = readIdentity(file)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("peerws: identity: %w", err)
	}
	return id, nil
}

func readIdentity(file string) (*Identity, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): it must be 0600", file, info.Mode().Perm())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != identityType {
		return nil, fmt.Errorf("%s has no key (PEM, %s)", file, identityType)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not a key of ECDSA", file)
	}
	return newIdentity(private)
}

// newIdentity makes the certificate of a key. It does not end (RFC 5280 §4.1.2.5): whoever
// pins the key does not look at its time, and nobody else trusts it.
func newIdentity(key *ecdsa.PrivateKey) (*Identity, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "peerws"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), // clocks may be wrong
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, peerKeyOf(leaf)}, nil
}

// makeIdentity writes a new key to a file that does not exist, unless somebody else does.
func makeIdentity(file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".identity-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: identityType, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err = os.Link(f.Name(), file); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return os.Rename(f.Name(), file) // a file system without links
}

// protoIdentity is offered beside HTTP/1.1 (ALPN, RFC 7301) by a Dialer that wants to see a
// listener's Identity, or to show its own. It is never agreed on.
const protoIdentity = "peerws-identity"

// identityTLS has a listener show its Identity to those that ask for it, and to
// all if it has no other certificate. Browsers are not asked for one of theirs.
func identityTLS(c *tls.Config, id *Identity) *tls.Config {
	own := &tls.Config{Certificates: []tls.Certificate{id.cert}}
	if c != nil {
		own.MinVersion, own.SessionTicketsDisabled = c.MinVersion, c.SessionTicketsDisabled
	} else {
		c = own
	}
	asked := own.Clone()
	asked.ClientAuth = tls.RequestClientCert
	c = c.Clone()
	other := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Contains(hello.SupportedProtos, protoIdentity):
			return asked, nil
		case other != nil:
			return other(hello)
		}
		return nil, nil
	}
	return c
}

// pinTLS has a dialled connection of TLS accept PeerKey and no other, and show Identity.
func (d *Dialer) pinTLS(cfg *tls.Config) {
	if d.PeerKey == (PeerKey{}) && d.Identity == nil {
		return
	}
	cfg.NextProtos = []string{protoIdentity, protoHTTP}
	if d.Identity != nil {
		cfg.Certificates, cfg.GetClientCertificate = []tls.Certificate{d.Identity.cert}, nil
	}
	want := d.PeerKey
	if want == (PeerKey{}) {
		return
	}
	cfg.InsecureSkipVerify = true // no name and no time: the key says it all
	also := cfg.VerifyConnection
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if got := peerKeyOf(s.PeerCertificates[0]); got != want {
			return &PeerKeyError{want, got}
		}
		if also != nil {
			return also(s)
		}
		return nil
	}
}

// PeerKey returns the key that the other end has proved to have, and whether it has
// proved any: a listener always over wss, a program that dials if its Dialer has an
// Identity and the listener has one. Whose key it is, the program must know.
func (c *WebSocket) PeerKey() (PeerKey, bool) {
	if c.ReadyState() == Connecting || c.conn == nil {
		return PeerKey{}, false
	}
	s := tlsState(c.conn)
	if s == nil || len(s.PeerCertificates) == 0 {
		return PeerKey{}, false
	}
	return peerKeyOf(s.PeerCertificates[0]), true
}
