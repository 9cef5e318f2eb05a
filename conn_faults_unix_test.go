//go:build unix

package peerws

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// faulty returns system calls of which the k-th read or write fails or is short,
// and how many of that kind there were. A failed transport stays failed.
func faulty(k int64, write, short bool) (*sysOps, *atomic.Int64) {
	var calls atomic.Int64
	var broken atomic.Bool
	fault := func(err error) (now bool, _ error) {
		switch n := calls.Add(1); {
		case broken.Load():
			return true, err
		case n != k:
			return false, nil
		case short:
			return true, nil
		}
		broken.Store(true)
		return true, err
	}
	ops := &sysOps{read: sysRead, write: sysWritev}
	if write {
		ops.write = func(fd uintptr, bufs [][]byte) (int, error) {
			now, err := fault(syscall.EPIPE)
			if err != nil {
				return 0, err
			}
			if now { // the kernel had room for a byte or two only
				for _, b := range bufs {
					if len(b) > 0 {
						return sysWritev(fd, [][]byte{b[:min(len(b), 1+int(k%3))]})
					}
				}
			}
			return sysWritev(fd, bufs)
		}
		return ops, &calls
	}
	ops.read = func(fd uintptr, p []byte) (int, error) {
		now, err := fault(syscall.ECONNRESET)
		if err != nil {
			return 0, err
		}
		if now {
			p = p[:1]
		}
		return sysRead(fd, p)
	}
	return ops, &calls
}

// TestEveryFault for the system calls of the raw path, in both roles: whatever
// call fails or is short, OnClose comes exactly once and last, what came before
// is neither lost nor doubled, and what leaves is in order.
func TestEveryFault_RawPath(t *testing.T) {
	frames := []string{
		"\x81\x05Hello", "\x89\x01p", "\x02\x02ab", "\x80\x02cd",
		"\x82\x7e\x13\x88" + strings.Repeat("m", 5000), "\x81\x00",
		"\x82\x7f\x00\x00\x00\x00\x00\x02\x00\x01" + strings.Repeat("L", 131073), "\x81\x03end",
	}
	want := []string{"Hello", "abcd", strings.Repeat("m", 5000), "", strings.Repeat("L", 131073), "end"}
	for _, dialled := range []bool{false, true} {
		for _, write := range []bool{false, true} {
			for _, short := range []bool{false, true} {
				t.Run(fmt.Sprintf("dialled=%v/write=%v/short=%v", dialled, write, short), func(t *testing.T) {
					for k := int64(1); ; k++ {
						ops, calls := faulty(k, write, short)
						set := testSettings()
						set.sys = ops
						set.maxBuffered = -1
						ours, theirs := tcpPair(t)
						if !dialled {
							ours, theirs = enginePair(t)
						}
						theirs.SetDeadline(time.Now().Add(10 * time.Second))
						c := newOpenWebSocket(set, ours, dialled, nil)
						r := new(recorder)
						r.attach(c)
						var got []string
						c.OnMessage(func(c *WebSocket, m Message) {
							defer r.enter("message")()
							got = append(got, string(m.Data))
							c.Send(m)
						})
						s := side{peer: peer{t, theirs}, dialled: dialled}
						go func() {
							theirs.Write([]byte(s.encode(append(frames, "\x88\x02\x03\xe8")...)))
							theirs.(*net.TCPConn).CloseWrite()
						}()
						go c.run()
						var back []string
						part := ""
						for {
							f, err := s.next()
							if err != nil {
								break
							}
							if f[0]&0x08 != 0 {
								continue
							}
							head := map[byte]int{126: 4, 127: 10}[f[1]]
							part += f[max(head, 2):]
							if f[0]&0x80 != 0 {
								back = append(back, part)
								part = ""
							}
						}
						theirs.Close()
						ev := waitDone(t, c)
						for i, m := range got {
							if i >= len(want) || m != want[i] {
								t.Fatalf("k=%d: message %d is %.20q of %d bytes", k, i, m, len(m))
							}
						}
						for i, m := range back {
							if i >= len(got) || m != got[i] {
								t.Fatalf("k=%d: reply %d is %.20q of %d bytes", k, i, m, len(m))
							}
						}
						if (short || write) && len(got) != len(want) {
							t.Errorf("k=%d: %d messages", k, len(got))
						}
						if short && (len(back) != len(want) || !ev.WasClean || ev.Err != nil) {
							t.Errorf("k=%d: %d replies, %+v", k, len(back), ev)
						}
						last := r.list[len(r.list)-1]
						if n := strings.Count(strings.Join(r.list, "\n"), "close "); n != 1 || !strings.HasPrefix(last, "close ") || strings.Contains(last, "same time") {
							t.Fatalf("k=%d: %q", k, r.list)
						}
						if c.in != nil || c.writer.out != nil || c.core.part != nil {
							t.Errorf("k=%d: memory kept", k)
						}
						if calls.Load() < k {
							break
						}
					}
				})
			}
		}
	}
}
