package peerws

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A thousand connections of a hundred addresses that never finish their request, and
// come again whenever they are thrown out: newcomers get in all the same.
func TestQueue_DoorStaysOpen(t *testing.T) {
	for _, c := range []struct {
		name        string
		first, drip string
	}{
		{"silence", "", ""},
		{"half a head", upgradeHead, ""},
		{"a byte at a time", "GET", " "},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := listen(t, ListenConfig{Address: "127.0.0.1", OnConnection: echoing})
			addr := l.Addr().String()
			var stop atomic.Bool
			var wg sync.WaitGroup
			defer func() {
				stop.Store(true)
				l.Close() // ends their reads
				wg.Wait()
			}()
			for i := range 1000 {
				wg.Go(func() {
					d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i%100+1))}}
					for !stop.Load() {
						conn, err := d.Dial("tcp", addr)
						if err != nil { // no such address on this system: all come from one
							if conn, err = net.Dial("tcp", addr); err != nil {
								time.Sleep(50 * time.Millisecond)
								continue
							}
						}
						io.WriteString(conn, c.first)
						for b := make([]byte, 512); ; {
							if c.drip != "" {
								conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
								io.WriteString(conn, c.drip)
							}
							if _, err := conn.Read(b); err != nil && !isTimeout(err) || stop.Load() {
								break
							}
						}
						conn.Close()
						time.Sleep(10 * time.Millisecond)
					}
				})
			}
			for {
				l.mu.Lock()
				n := len(l.pending) + len(l.queue.waiting)
				l.mu.Unlock()
				if n > 500 {
					break
				}
				time.Sleep(time.Millisecond)
			}

			const newcomers = 100
			took := make([]time.Duration, newcomers)
			var honest sync.WaitGroup
			for i := range newcomers {
				time.Sleep(20 * time.Millisecond)
				honest.Go(func() {
					start := time.Now()
					for {
						conn, err := net.Dial("tcp", addr)
						if err == nil {
							knockOn(t, conn, upgrade, maskedHello).wantOpen()
							conn.Close()
							break
						}
					}
					took[i] = time.Since(start)
				})
			}
			honest.Wait()
			slices.Sort(took)
			t.Logf("median %v, most %v", took[newcomers/2], took[newcomers-1])
			if late := took[newcomers*99/100-1]; late > time.Second {
				t.Errorf("one in a hundred and more took over %v", late)
			}
		})
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// While others wait, the address with the most handshakes gives way first and early.
func TestQueue_BusiestAddressFirst(t *testing.T) {
	from(t, ListenConfig{MaxHandshakes: 4}, func(t *testing.T, l *WebSocketListener, dial func(string, ...string) *knocker) {
		start := time.Now()
		slow := dial("9.9.9.9")
		time.Sleep(time.Millisecond)
		var many []*knocker
		for range 3 {
			many = append(many, dial("8.8.8.8"))
		}
		for range 3 {
			dial("8.8.8.8")
		}
		l.mu.Lock()
		for _, a := range l.queue.waiting { // a transport that is not the system's has no address yet
			a.from = keyOf(netip.AddrFrom4([4]byte{8, 8, 8, 8}))
		}
		l.mu.Unlock()
		honest := dial("7.7.7.7", upgrade)
		l.mu.Lock()
		l.queue.waiting[len(l.queue.waiting)-1].from = keyOf(netip.AddrFrom4([4]byte{7, 7, 7, 7}))
		l.mu.Unlock()
		honest.wantOpen()
		if at := time.Since(start); at > crowdGrace+10*time.Millisecond {
			t.Errorf("one of another address waited %v", at)
		}
		slow.send(upgrade)
		slow.wantOpen()
		many[0].wantEnd(start)
	})
}

// Who waits is served in the order of having sent something, of the address's
// handshakes, of coming; and the last of that order is turned away when too many wait.
func TestQueue_Order(t *testing.T) {
	l, err := (&ListenConfig{MaxHandshakes: 2}).prepare(nil)
	if err != nil {
		t.Fatal(err)
	}
	l.queue.timer = time.AfterFunc(time.Hour, func() {})
	defer l.queue.timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = []*arrival{{from: 1}, {from: 1}}
	l.queue.silent = map[ipKey]int{2: 1}
	l.queue.busy = map[ipKey]int{}
	arrivals := []*arrival{{from: 1}, {from: 2}, {from: 3}, {from: 3}, {from: 1, sent: true}, {}}
	for _, a := range arrivals {
		if away := l.queueLocked(a); away != nil {
			t.Fatal("somebody is turned away too early")
		}
	}
	l.countBusyLocked()
	sorted := slices.Clone(l.queue.waiting)
	slices.SortStableFunc(sorted, l.queue.compare)
	var got []int
	for _, a := range sorted {
		got = append(got, slices.Index(arrivals, a))
	}
	if want := []int{4, 2, 3, 5, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	for len(l.queue.waiting) < queueShare*2 {
		l.queueLocked(&arrival{from: 4})
	}
	if away := l.queueLocked(&arrival{from: 4}); away != arrivals[0] {
		t.Errorf("turned away: %v", fmt.Sprint(away))
	}
}

// Those that wait without a place are told when the listener closes, and nothing
// of them stays.
func TestQueue_Close(t *testing.T) {
	inBubble(t, ListenConfig{MaxHandshakes: 1}, func(t *testing.T, l *WebSocketListener, dial func(...string) *knocker) {
		for range 15 {
			dial()
		}
		synctest.Wait()
		start := time.Now()
		l.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}
