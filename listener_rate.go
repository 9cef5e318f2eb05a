package peerws

import "time"

// A rateLimit is how many transports an address may open: so many a second on average,
// and rateBurst seconds' worth at once. What it keeps for an address is the time at which
// that would have come to the present if it had kept to the rate (GCRA, a leaky bucket
// as a meter).
type rateLimit struct {
	every time.Duration // between two transports on average; 0: no limit
	due   map[ipKey]time.Time
	swept int // entries that were left by the last sweep
}

const (
	rateBurst = 8    // seconds
	rateSweep = 1024 // entries that may be added before those that say nothing any more are dropped
)

// allow counts a transport from an address and reports whether it is within the limit.
func (r *rateLimit) allow(key ipKey, now time.Time) bool {
	if r.every == 0 || key == 0 {
		return true
	}
	due := r.due[key]
	if due.Before(now) {
		due = now
	}
	if due.Sub(now) > rateBurst*time.Second-r.every {
		return false
	}
	if r.due == nil {
		r.due = make(map[ipKey]time.Time)
	}
	r.due[key] = due.Add(r.every)
	if len(r.due) > r.swept+rateSweep {
		for key, due := range r.due {
			if due.Before(now) {
				delete(r.due, key)
			}
		}
		r.swept = len(r.due)
	}
	return true
}
