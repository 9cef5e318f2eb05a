package natlab

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if a test has left a goroutine or a descriptor behind: a
// lab, or a socket whose link was cut.
func TestMain(m *testing.M) {
	before := descriptors()
	code := m.Run()
	if code == 0 {
		if left := leaked(5 * time.Second); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
			code = 1
		}
		const poller = 2 // the runtime's own, since the first socket
		if now := descriptors(); len(now) > len(before)+poller {
			fmt.Fprintf(os.Stderr, "%d descriptors at the start, %d at the end:\n%s\n", len(before), len(now), strings.Join(now, "\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// leaked waits for all goroutines that run code of this module to end and returns
// the stacks of those that have not.
func leaked(patience time.Duration) string {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b := make([]byte, 4<<20)
		b = b[:runtime.Stack(b, true)]
		var left []string
		for g := range strings.SplitSeq(string(b), "\n\n") {
			if strings.Contains(g, "peerws") && !strings.Contains(g, "TestMain") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
	}
}

// descriptors names what this process has open.
func descriptors() (names []string) {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range list {
		name, _ := os.Readlink("/proc/self/fd/" + e.Name())
		names = append(names, e.Name()+" "+name)
	}
	return names
}
