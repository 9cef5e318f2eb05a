package natlab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The soak over bad lines: its listener in the hub, its peers and vandals in the hosts,
// behind links that lose packets and are cut, some of them for so long that both sides
// give their connections up.

const (
	soakPort  = 9000
	soakLinks = 8
	soakPeers = 12 // and as many vandals, on each link
)

func TestSoak(t *testing.T) {
	Need(t)
	t.Parallel()
	soak(t, time.Minute)
}

func TestSoak_Long(t *testing.T) {
	Need(t)
	if os.Getenv("PEERWS_LONG") == "" {
		t.Skip("takes long; the test command runs it with -long")
	}
	t.Parallel()
	soak(t, 10*time.Minute)
}

func soak(t *testing.T, length time.Duration) {
	seed := chaosSeed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	program := build(t, "../soak")
	s := NewStar(t)
	line := func() Line {
		return Line{
			Rate:   1000*kbit + rng.IntN(2000*kbit),
			Delay:  time.Duration(rng.Int64N(int64(40 * time.Millisecond))),
			Jitter: time.Duration(rng.Int64N(int64(10 * time.Millisecond))),
			Loss:   0.03 * rng.Float64(),
		}
	}
	for range soakLinks {
		s.AddLink(t, rng.Uint64(), line(), line())
	}
	server := s.Hub.Start(t, program, "-serve", fmt.Sprintf("-port=%d", soakPort), fmt.Sprintf("-seed=%d", seed))
	server.Await(t, 10*time.Second, "listening at ")
	end := time.Now().Add(length)
	sent := 0
	var crowds []*Program
	var wg sync.WaitGroup
	for i, l := range s.Links {
		crowds = append(crowds, l.Host.Start(t, program, "-dial", netip.AddrPortFrom(l.Hub, soakPort).String(),
			"-time="+length.String(), fmt.Sprintf("-peers=%d", soakPeers), fmt.Sprintf("-vandals=%d", soakPeers),
			fmt.Sprintf("-first=%d", i*soakPeers), fmt.Sprintf("-seed=%d", seed)))
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1))
		wg.Go(func() {
			for {
				time.Sleep(time.Duration(rng.Int64N(int64(10 * time.Second))))
				cut := time.Duration(rng.Int64N(int64(6 * time.Second)))
				if time.Now().Add(cut).After(end) {
					return
				}
				l.Cut()
				time.Sleep(cut)
				l.Mend()
			}
		})
	}
	for _, p := range crowds {
		report, _ := p.Await(t, length+time.Minute, "sent ")
		var n int
		if _, err := fmt.Sscanf(report, "sent %d ", &n); err != nil {
			t.Errorf("%q: %v", report, err)
		}
		sent += n
		t.Log(report)
		if err := p.Wait(t, 10*time.Second); err != nil {
			t.Errorf("%v: %s", err, strings.Join(p.Lines(), "\n"))
		}
	}
	wg.Wait()
	took, err := server.Stop(t, syscall.SIGTERM, 30*time.Second)
	report := strings.Join(server.Lines(), "\n")
	t.Logf("the listener ended %.1f s after its SIGTERM:\n%s", took.Seconds(), report)
	if err != nil {
		t.Errorf("the listener: %v", err)
	}
	if want := fmt.Sprintf("\ndelivered %d messages of %d peers;", sent, soakLinks*soakPeers); !strings.Contains(report, want) {
		t.Errorf("the listener does not say %q", want)
	}
}
