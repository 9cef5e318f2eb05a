package peerws

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if a test has left a goroutine or a descriptor behind.
// No test goes through the proxy of whoever runs it.
func TestMain(m *testing.M) {
	for _, v := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"} {
		os.Unsetenv(v)
	}
	fds := openFiles()
	code := m.Run()
	if code == 0 {
		if left := leakedGoroutines(5 * time.Second); left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
			code = 1
		}
		if now := openFiles(); fds >= 0 && now > fds+pollerFiles {
			fmt.Fprintf(os.Stderr, "%d descriptors at the start, %d at the end\n", fds, now)
			code = 1
		}
	}
	os.Exit(code)
}

// pollerFiles is what the runtime itself opens with the first socket: epoll and
// its wake-up.
const pollerFiles = 2

// openFiles counts this process's descriptors, -1 where that is not to be seen.
func openFiles() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(list)
}

// leakedGoroutines waits for all goroutines that run code of this module to end
// and returns the stacks of those that have not.
func leakedGoroutines(patience time.Duration) string {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b := make([]byte, 1<<20)
		b = b[:runtime.Stack(b, true)]
		var left []string
		for i, g := range strings.Split(string(b), "\n\n") {
			if i > 0 && strings.Contains(g, "peerws") && !strings.Contains(g, "testing.(*F).Fuzz") {
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

// countsAllocations skips a test with the race detector, which allocates.
func countsAllocations(t testing.TB) {
	t.Helper()
	if raceMode {
		t.Skip("the race detector allocates; the test command runs this without it too")
	}
}
