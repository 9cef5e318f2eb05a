package nat

import (
	"testing"
	"time"
)

func TestEpochRules(t *testing.T) {
	for _, c := range []struct {
		name     string
		prev     uint32
		elapsed  time.Duration
		cur      uint32
		pcp, pmp bool // valid by that rule
	}{
		{"as it should be", 1000, time.Minute, 1060, true, true},
		{"at once", 1000, 0, 1000, true, true},
		{"a second back", 1000, 0, 999, true, true},
		{"two seconds back", 1000, 0, 998, false, true},
		{"three seconds back", 1000, 0, 997, false, false},
		{"rebooted", 100000, time.Minute, 3, false, false},
		{"rebooted, young", 10, time.Minute, 3, false, false},
		{"rebooted, and has caught up", 10, time.Minute, 40, false, false},
		{"stands still", 1000, time.Minute, 1000, false, false},
		{"slow by two seconds", 1000, time.Minute, 1058, true, true},
		{"slow by 1/16 and two seconds", 1000, 160 * time.Second, 1148, true, true},
		{"slow by 1/16 and three seconds", 1000, 160 * time.Second, 1147, false, true},
		{"slow by 1/8 and two seconds", 1000, 160 * time.Second, 1138, false, true},
		{"slow by 1/8 and three seconds", 1000, 160 * time.Second, 1137, false, false},
		{"fast by 1/16 and two seconds", 1000, 150 * time.Second, 1162, true, true},
		{"fast by 1/16 and three seconds", 1000, 150 * time.Second, 1163, false, true},
		{"far ahead", 1000, time.Minute, 900000, false, true},
		{"after a day", 1000, 24 * time.Hour, 87400, true, true},
		{"near its end", 1<<32 - 1, 0, 1<<32 - 1, true, true},
		{"around its end", 1<<32 - 1, time.Minute, 59, false, false},
		{"from nothing", 0, time.Hour, 3600, true, true},
	} {
		now := time.Now()
		prev, cur := epoch{c.prev, now}, epoch{c.cur, now.Add(c.elapsed)}
		if got := pcpEpoch(prev, cur); got != c.pcp {
			t.Errorf("%s: PCP: valid is %v", c.name, got)
		}
		if got := pmpEpoch(prev, cur); got != c.pmp {
			t.Errorf("%s: NAT-PMP: valid is %v", c.name, got)
		}
		if epochRule(pcpEpoch).lost(epoch{}, cur) || epochRule(pcpEpoch).lost(prev, cur) == c.pcp {
			t.Errorf("%s: lost", c.name)
		}
	}
}
