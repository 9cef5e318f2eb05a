package natlab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// descriptionURL spares upnpc the two seconds of a search.
const descriptionURL = "http://192.168.77.1:5000/rootDesc.xml"

// The witnesses: tools that know nothing of us ask the gateway, and a real TCP
// connection from outside arrives at the LAN host. If these fail, what the
// end-to-end tests say is worth nothing.
func TestLabForwards(t *testing.T) {
	Need(t, "upnpc", "natpmpc")
	t.Parallel()
	add := []string{"upnpc", "-m", "eth0", "-e", "witness", "-a", "192.168.77.10", "9000", "9000", "tcp"}
	remove := []string{"upnpc", "-u", descriptionURL, "-d", "9000", "tcp"}
	natpmpc := func(lifetime string) []string {
		return []string{"natpmpc", "-g", GatewayLAN.String(), "-a", "9000", "9000", "tcp", lifetime}
	}
	for _, c := range []struct {
		name          string
		config        Config
		open, release []string
	}{
		{"UPnP", Config{Daemon: UPnP}, add, remove},
		{"IGD1", Config{Daemon: UPnP, IGD1: true, Secure: true}, add, remove},
		{"NAT-PMP", Config{Daemon: NATPMP}, natpmpc("3600"), natpmpc("0")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			l := New(t, c.config)
			t.Logf("%s: %.2f s to build the lab", t.Name(), time.Since(began).Seconds())
			ln, err := l.LAN.Listen(":9000")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(conn, "hello %s", conn.RemoteAddr())
					conn.Close()
				}
			}()

			public := netip.AddrPortFrom(GatewayWAN, 9000).String()
			if greeting, err := greet(l.WAN, public); err == nil {
				t.Fatalf("the firewall lets a peer in before anybody asked: %q", greeting)
			}
			l.LAN.Run(t, c.open...)
			if got, want := l.Forwards(t)[9000], netip.AddrPortFrom(l.Host, 9000); got != want {
				t.Errorf("port 9000 is forwarded to %v, want %v; rules:\n%s", got, want, strings.Join(l.Rules(t), "\n"))
			}
			greeting, err := greet(l.WAN, public)
			if want := "hello " + WANHost.String() + ":"; err != nil || !strings.HasPrefix(greeting, want) {
				t.Errorf("through the gateway: %q, %v; want %q and a port", greeting, err, want)
			}
			l.LAN.Run(t, c.release...)
			if rules := l.Rules(t); len(rules) != 0 {
				t.Errorf("rules are left after the mapping was given back:\n%s", strings.Join(rules, "\n"))
			}
			if greeting, err := greet(l.WAN, public); err == nil {
				t.Errorf("a peer still gets in: %q", greeting)
			}
		})
	}
}

// greet returns what the other side says first.
func greet(n *Namespace, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := n.Dial(ctx, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(conn)
	return string(b), err
}

// A stopped daemon leaves its rules, a started one forwards again: the ground
// for tests of a gateway that restarts.
func TestLabDaemonRestarts(t *testing.T) {
	Need(t, "upnpc")
	t.Parallel()
	l := New(t, Config{})
	add := []string{"upnpc", "-u", descriptionURL, "-a", l.Host.String(), "9000", "9000", "tcp"}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		l.LAN.Run(t, add...)
		l.StopDaemon(t, s)
		if _, err := l.LAN.Command(t.Context(), add...).Output(); err == nil {
			t.Errorf("the daemon answers after %v", s)
		}
		if got := l.Forwards(t); len(got) != 1 {
			t.Errorf("forwards after %v: %v, want the one that was made", s, got)
		}
		l.StartDaemon(t)
	}
}

// A test process that was killed leaves its namespaces behind, with whatever
// runs in them. The next lab removes them.
func TestLabRemovesDeadLabs(t *testing.T) {
	Need(t)
	t.Parallel()
	var random [4]byte
	rand.Read(random[:])
	name := namespaceName(hex.EncodeToString(random[:]), "gw")
	// Under the lock, so that a lab built beside this one does not remove the
	// namespace before its process has started.
	var sleeper *exec.Cmd
	err := withRootLock(func() error {
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		sleeper = (&Namespace{Name: name}).Command(context.Background(), "sleep", "60")
		return sleeper.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	New(t, Config{Daemon: Silence})
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	select {
	case err := <-ended:
		t.Logf("the sleeper ended: %v", err)
	case <-time.After(5 * time.Second):
		sleeper.Process.Kill()
		t.Error("the dead lab's process still runs")
	}
	if list, err := exec.Command("ip", "netns", "list").Output(); err != nil || strings.Contains(string(list), name) {
		t.Errorf("%s is still there (%v):\n%s", name, err, list)
	}
}

// build builds a program of this module and returns its path.
func build(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), filepath.Base(dir))
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, dir).CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", dir, err, out)
	}
	return bin
}
