package nat

import (
	"fmt"
	"strings"
	"testing"
)

// Whatever the system, the advice names the port, and a command where one is known.
func TestFirewalls(t *testing.T) {
	if s := adviceFirewall(9000); !strings.Contains(s, "9000") || !strings.Contains(s, "firewall") {
		t.Error(s)
	}
	for goos, want := range map[string]int{"linux": 2, "windows": 1, "darwin": 0, "plan9": 0} {
		all := firewalls(goos)
		if len(all) != want {
			t.Errorf("%s: %d", goos, len(all))
		}
		for _, f := range all {
			if s := fmt.Sprintf(f.command, 9000); !strings.Contains(s, "9000") || strings.Contains(s, "%!") {
				t.Errorf("%s: %s", f.name, s)
			}
			f.active() // does not panic where there is nothing
		}
	}
}
