package natlab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Slow and bad links. The kernel's own emulation (netem) is missing from many, so
// this one is ours: a TUN device at each end, and between them a line with a rate,
// a delay, losses and a queue in front of it, as a modem has one.

// A Line is one direction of a Link.
type Line struct {
	Rate   int           // bits a second
	Delay  time.Duration // one way
	Jitter time.Duration // up to so much more; packets keep their order
	Loss   float64       // the share of packets that get lost on the way, 0 to 1
	Queue  int           // bytes that wait for the line at most; what comes then is dropped. 0: 64 KiB
}

const (
	linkMTU      = 1500
	defaultQueue = 64 << 10
)

// A Star is a host with a Link to each of several others. All are namespaces that
// have nothing else.
type Star struct {
	Hub   *Namespace
	Links []*Link

	lab *Lab
}

// A Link connects the hub of a Star with a host of its own.
type Link struct {
	Host *Namespace
	Hub  netip.Addr // of the hub, on this link
	Addr netip.Addr // of the host

	up, down *line // from the host, to the host
	cut      atomic.Bool
}

// NewStar makes a star with no link yet. It goes away with the test.
func NewStar(t testing.TB) *Star {
	t.Helper()
	l := newLab(t, Config{})
	return &Star{Hub: l.host(t, "hub"), lab: l}
}

// host is a namespace whose TCP behaves as that of most hosts does, whatever this
// machine is set to.
func (l *Lab) host(t testing.TB, role string) *Namespace {
	n := l.namespace(t, role)
	n.Run(t, "sh", "-c", "echo cubic > /proc/sys/net/ipv4/tcp_congestion_control || echo reno > /proc/sys/net/ipv4/tcp_congestion_control")
	return n
}

// AddLink puts another host at the star. up is the direction from that host to the
// hub. The same seed loses the same packets of each direction's count.
func (s *Star) AddLink(t testing.TB, seed uint64, up, down Line) *Link {
	t.Helper()
	i := len(s.Links) + 1
	l := &Link{
		Host: s.lab.host(t, fmt.Sprintf("end%d", i)),
		Hub:  netip.AddrFrom4([4]byte{10, 77, byte(i), 1}),
		Addr: netip.AddrFrom4([4]byte{10, 77, byte(i), 2}),
	}
	name := fmt.Sprintf("link%d", i)
	hub := openTUN(t, s.Hub, name, l.Hub, l.Addr)
	host := openTUN(t, l.Host, name, l.Addr, l.Hub)
	l.up = newLine(seed, 1, host, hub, &l.cut, up)
	l.down = newLine(seed, 2, hub, host, &l.cut, down)
	for _, line := range []*line{l.up, l.down} {
		go line.carry()
	}
	t.Cleanup(func() {
		// This ends both: neither can read any more.
		errs := []error{hub.Close(), host.Close()}
		for _, line := range []*line{l.up, l.down} {
			<-line.done
			errs = append(errs, line.err)
		}
		if err := errors.Join(errs...); err != nil {
			t.Errorf("natlab: %s of %s: %v", name, s.Hub.Name, err)
		}
		if t.Failed() {
			t.Logf("%s: up %v; down %v", name, l.up, l.down)
		}
	})
	s.Links = append(s.Links, l)
	return l
}

// Cut takes the cable out: what is under way is lost, and nobody is told.
func (l *Link) Cut() { l.cut.Store(true) }

// Mend puts it in again.
func (l *Link) Mend() { l.cut.Store(false) }

// Set changes both directions, from the next packet on.
func (l *Link) Set(up, down Line) {
	l.up.config.Store(&up)
	l.down.config.Store(&down)
}

// tunPath is where the kernel hands out TUN devices.
const tunPath = "/dev/net/tun"

// openTUN makes a TUN device in the namespace and opens it.
func openTUN(t testing.TB, n *Namespace, name string, own, peer netip.Addr) *os.File {
	t.Helper()
	if _, err := os.Stat(tunPath); errors.Is(err, os.ErrNotExist) {
		err := errors.Join(os.MkdirAll("/dev/net", 0o755), unix.Mknod(tunPath, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))))
		if err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatalf("natlab: %s is missing and cannot be made: %v", tunPath, err)
		}
	}
	var f *os.File
	err := n.enter(func() error {
		// Set up before the runtime's poller sees it: one that is not has only errors
		// to tell.
		fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w (is the kernel's tun there?)", tunPath, err)
		}
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			// Without a header of its own (IFF_VNET_HDR) the device is given whole packets
			// with their checksums, none larger than its MTU.
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("making the TUN device: %w", err)
		}
		f = os.NewFile(uintptr(fd), tunPath)
		return nil
	})
	if err != nil {
		t.Fatalf("natlab: in %s: %v", n.Name, err)
	}
	t.Cleanup(func() { f.Close() }) // for a test that ends before the link is whole
	n.Run(t, "ip", "link", "set", name, "addrgenmode", "none", "mtu", fmt.Sprint(linkMTU), "txqueuelen", "1000")
	n.Run(t, "ip", "addr", "add", own.String(), "peer", peer.String(), "dev", name)
	n.Run(t, "ip", "link", "set", name, "up")
	return f
}

// A line carries packets from one device to the other. Its goroutine owns all but
// config and cut.
type line struct {
	from, to *os.File
	config   atomic.Pointer[Line]
	cut      *atomic.Bool // of the link
	rng      *rand.Rand

	free    time.Time // when the line has sent what it was given
	last    time.Time // when the last packet arrives
	packets []packet  // under way, in order

	carried, lost, dropped int // packets

	done chan struct{} // closed at the end
	err  error         // why, if it was not the end of the test
}

// A packet is under way until due.
type packet struct {
	due   time.Time
	bytes []byte
}

func newLine(seed, stream uint64, from, to *os.File, cut *atomic.Bool, config Line) *line {
	l := &line{from: from, to: to, cut: cut, rng: rand.New(rand.NewPCG(seed, stream)), done: make(chan struct{})}
	l.config.Store(&config)
	return l
}

func (l *line) String() string {
	return fmt.Sprintf("%+v: %d packets carried, %d lost, %d dropped", *l.config.Load(), l.carried, l.lost, l.dropped)
}

// carry runs until a device is closed.
func (l *line) carry() {
	defer close(l.done)
	b := make([]byte, 1<<16)
	for {
		due := time.Time{}
		if len(l.packets) > 0 {
			due = l.packets[0].due
		}
		l.from.SetReadDeadline(due)
		n, err := l.from.Read(b)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			n = 0
		case errors.Is(err, os.ErrClosed):
			return
		default:
			l.err = err
			return
		}
		now := time.Now()
		switch {
		case n > linkMTU:
			l.err = fmt.Errorf("a packet of %d bytes", n)
			return
		case n > 0:
			l.accept(now, b[:n])
		}
		for len(l.packets) > 0 && !l.packets[0].due.After(now) {
			if err := l.deliver(l.packets[0].bytes); err != nil {
				l.err = err
				return
			}
			l.packets[0] = packet{}
			l.packets = l.packets[1:]
		}
	}
}

// accept puts a packet on its way, or does not.
func (l *line) accept(now time.Time, b []byte) {
	c := *l.config.Load()
	lost := l.rng.Float64() < c.Loss
	if l.cut.Load() {
		l.lost++
		return
	}
	if l.free.Before(now) {
		l.free = now
	}
	limit := c.Queue
	if limit == 0 {
		limit = defaultQueue
	}
	waiting := int(l.free.Sub(now).Seconds() * float64(c.Rate) / 8)
	if waiting > 0 && waiting+len(b) > limit {
		l.dropped++
		return
	}
	l.free = l.free.Add(time.Duration(float64(len(b)*8) / float64(c.Rate) * float64(time.Second)))
	if lost {
		l.lost++
		return
	}
	due := l.free.Add(c.Delay)
	if c.Jitter > 0 {
		due = due.Add(time.Duration(l.rng.Int64N(int64(c.Jitter))))
	}
	if due.Before(l.last) {
		due = l.last
	}
	l.last = due
	l.packets = append(l.packets, packet{due, append([]byte(nil), b...)})
}

// deliver hands a packet over at the other end.
func (l *line) deliver(b []byte) error {
	if l.cut.Load() {
		l.lost++
		return nil
	}
	_, err := l.to.Write(b)
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	l.carried++
	return err
}
