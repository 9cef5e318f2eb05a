package peerws

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestClock_Before(t *testing.T) {
	for _, c := range []struct {
		a, b uint32
		want bool
	}{
		{1, 2, true}, {2, 1, false}, {5, 5, false},
		{math.MaxUint32, 3, true}, {3, math.MaxUint32, false}, // it wraps around
	} {
		if before(c.a, c.b) != c.want {
			t.Errorf("before(%d, %d)", c.a, c.b)
		}
	}
	for d, want := range map[time.Duration]uint32{0: 1, time.Microsecond: 1, time.Second: 1000, math.MaxInt64: 1 << 30} {
		if got := millis(d); got != want {
			t.Errorf("%v is %d ms, want %d", d, got, want)
		}
	}
}

// It ticks often enough for the shortest of its times, and not without need.
func TestClock_Tick(t *testing.T) {
	for _, c := range []struct {
		set  settings
		want time.Duration
	}{
		{settings{pingInterval: 25 * time.Second, pongTimeout: 20 * time.Second, closeTimeout: 5 * time.Second, handshakeTimeout: 10 * time.Second}, time.Second},
		{settings{closeTimeout: 2 * time.Second}, 500 * time.Millisecond},
		{settings{pongTimeout: 80 * time.Millisecond, closeTimeout: time.Hour}, 10 * time.Millisecond},
		{settings{pingInterval: 1}, time.Millisecond},
		{settings{writeTimeout: 4 * time.Second}, 500 * time.Millisecond},
	} {
		if k := newClock(&c.set, nil); k.tick != c.want {
			t.Errorf("%+v: every %v, want %v", c.set, k.tick, c.want)
		}
	}
	k := newClock(&settings{}, nil)
	if k != nil {
		t.Error("a clock for nothing")
	}
	k.wind()
	k.stop()
	if k.now() != 0 {
		t.Error("no clock has a time")
	}
}

// It runs while there is something to look at, and again when it is wound.
func TestClock_RunsWhileNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var rounds []time.Duration
		var k *clock
		left := 3
		k = newClock(&settings{closeTimeout: 4 * time.Second}, func(now uint32) bool {
			if d := time.Since(start); time.Duration(now)*time.Millisecond != d {
				t.Errorf("it is %d ms, after %v", now, d)
			}
			rounds = append(rounds, time.Since(start))
			left--
			if left == 1 {
				k.wind() // while a round is at work: there is one more
			}
			return left > 1
		})
		k.wind()
		k.wind()
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []time.Duration{1 * time.Second, 2 * time.Second, 3 * time.Second}; !slices.Equal(rounds, want) {
			t.Errorf("rounds at %v, want %v", rounds, want)
		}

		left, rounds = 100, nil
		k.wind()
		time.Sleep(2500 * time.Millisecond)
		k.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(rounds) != 2 {
			t.Errorf("%d rounds, of them %d after stop", len(rounds), len(rounds)-2)
		}
	})
}
