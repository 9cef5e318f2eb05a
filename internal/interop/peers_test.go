package interop

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/peerws/peerws"
)

// need skips the test, or makes sure that what is asked for is there.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("PEERWS_BROWSER") == "" {
		t.Skip("needs node, Python's websockets, chromium and firefox-esr; PEERWS_BROWSER=1 runs it")
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatal(name + " is not installed")
		}
		if name == "node" {
			if _, err := os.Stat("node_modules/ws/package.json"); err != nil {
				t.Fatal("ws is not installed: run npm ci in internal/interop")
			}
		}
	}
}

// lifetime ends with the test, and before go test gives up: its panic would leave
// processes behind.
func lifetime(t *testing.T) context.Context {
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-5*time.Second))
		t.Cleanup(cancel)
	}
	return ctx
}

// A program is a peer that runs as a process beside the test and takes commands,
// one at a time.
type program struct {
	id    string
	skill int

	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

func startNode(t *testing.T, id *identity, dials string) *program {
	need(t, "node")
	skill := canCloseBare | canBeStrict
	if dials == "ws" {
		skill |= canPing | canFragment | canKeepBOM | canTellEnd
	}
	return start(t, id, dials, skill, "node", "node.mjs", dials)
}

// python is Debian's: it has Debian's packages.
const python = "/usr/bin/python3"

func startPython(t *testing.T, id *identity) *program {
	need(t, python)
	if out, err := exec.Command(python, "-c", "import websockets").CombinedOutput(); err != nil {
		t.Fatalf("python3-websockets is not installed: %s", out)
	}
	return start(t, id, "python", canPing|canFragment|canKeepBOM, python, "peer.py")
}

func start(t *testing.T, id *identity, name string, skill int, command ...string) *program {
	t.Helper()
	cmd := exec.CommandContext(lifetime(t), command[0], command[1:]...)
	// node and OpenSSL are told here whom to trust, beside or instead of the system's.
	cmd.Env = append(os.Environ(),
		"NODE_EXTRA_CA_CERTS="+id.ca, "SSL_CERT_FILE="+id.ca, "PEERWS_CERT="+id.cert, "PEERWS_KEY="+id.key)
	cmd.Stderr = t.Output()
	cmd.WaitDelay = 5 * time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// t.Context has ended by then, so that the process is being killed already.
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return &program{id: name, skill: skill, in: in, out: bufio.NewReader(out), cmd: cmd}
}

func (p *program) can() int { return p.skill }

type command struct {
	Op        string   `json:"op"`
	URL       string   `json:"url,omitempty"`
	Protocols []string `json:"protocols"`
	Steps     []step   `json:"steps"`
	TLS       bool     `json:"tls"`
}

func newCommand(op string, protocols []string, steps []step) command {
	// Neither may be null.
	return command{Op: op, Protocols: append([]string{}, protocols...), Steps: append([]step{}, steps...)}
}

// do sends a command and takes the answer.
func (p *program) do(c command, result any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One that does not answer is of no use any more.
	kill := time.AfterFunc(most, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := p.in.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("%s: %s: %w", p.id, c.Op, err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: %s: no answer: %w", p.id, c.Op, err)
	}
	var answer struct {
		Value json.RawMessage
		Error string
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("%s: %s: %s: %w", p.id, c.Op, line, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: %s: %s", p.id, c.Op, answer.Error)
	}
	return json.Unmarshal(answer.Value, result)
}

func (p *program) dial(url string, offer []string, steps []step) (r report, err error) {
	c := newCommand("dial", offer, steps)
	c.URL = url
	return r, p.do(c, &r)
}

func (p *program) listen(speak []string, steps []step, tls bool) (port int, err error) {
	c := newCommand("listen", speak, steps)
	c.TLS = tls
	return port, p.do(c, &port)
}

func (p *program) accepted() (r report, err error) {
	return r, p.do(newCommand("accepted", nil, nil), &r)
}

// An identity is a certificate for 127.0.0.1 and the authority it is from.
type identity struct {
	ca, cert, key string // files
	certificate   tls.Certificate
	roots         *x509.CertPool
}

func newIdentity(t *testing.T) *identity {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	make := func(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		if parent == nil {
			parent, parentKey = template, key
		}
		template.NotBefore = time.Now().Add(-time.Hour)
		template.NotAfter = time.Now().Add(24 * time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		must(err)
		cert, err := x509.ParseCertificate(der)
		must(err)
		return cert, key
	}
	ca, caKey := make(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peerws test CA"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	leaf, key := make(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "peerws test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)

	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	id := &identity{
		ca:          write("ca.pem", "CERTIFICATE", ca.Raw),
		cert:        write("cert.pem", "CERTIFICATE", leaf.Raw),
		key:         write("key.pem", "PRIVATE KEY", keyDER),
		certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		roots:       x509.NewCertPool(),
	}
	id.roots.AddCert(ca)
	return id
}

func (id *identity) listener() peerws.ListenConfig {
	return peerws.ListenConfig{TLSConfig: &tls.Config{Certificates: []tls.Certificate{id.certificate}}}
}

func (id *identity) dialler() peerws.Dialer {
	return peerws.Dialer{TLSConfig: &tls.Config{RootCAs: id.roots}}
}

// Libraries of others connect to our listener.
func TestLibrariesToListener(t *testing.T) {
	need(t)
	id := newIdentity(t)
	for name, begin := range map[string]func(*testing.T) *program{
		"ws":     func(t *testing.T) *program { return startNode(t, id, "ws") },
		"undici": func(t *testing.T) *program { return startNode(t, id, "undici") },
		"python": func(t *testing.T) *program { return startPython(t, id) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := begin(t)
			for _, scheme := range []string{"ws", "wss"} {
				t.Run(scheme, func(t *testing.T) { connects(t, p, scheme, id.listener()) })
			}
			for way, c := range compressions {
				t.Run(way, func(t *testing.T) { connects(t, p, "ws", peerws.ListenConfig{Compression: c}) })
			}
		})
	}
}

// Our dialler connects to others' listeners.
func TestDiallerToLibraries(t *testing.T) {
	need(t)
	id := newIdentity(t)
	for name, begin := range map[string]func(*testing.T) *program{
		"ws":     func(t *testing.T) *program { return startNode(t, id, "ws") },
		"python": func(t *testing.T) *program { return startPython(t, id) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := begin(t)
			for _, scheme := range []string{"ws", "wss"} {
				t.Run(scheme, func(t *testing.T) { listens(t, p, scheme, id.dialler()) })
			}
			for way, c := range compressions {
				t.Run(way, func(t *testing.T) { listens(t, p, "ws", peerws.Dialer{Compression: c}) })
			}
		})
	}
}
