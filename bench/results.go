//go:build linux

package main

import (
	"math"
	"slices"
	"time"
)

// A sample is what one server needed in one round of one workload.
type sample struct {
	messages int
	cpu      time.Duration
	wall     time.Duration
	mallocs  float64 // a message, NaN if the server does not tell
	p50, p99 time.Duration

	// Of idle: bytes a connection.
	asIs, afterGC, heap, stack float64
}

// cost is the server's CPU time a message, in nanoseconds.
func (s sample) cost() float64 { return float64(s.cpu) / float64(s.messages) }

// results is everything that was measured: samples by workload and server, one
// a round, in the same order for all servers.
type results struct {
	workloads []workload
	servers   []*contestant
	samples   map[string]map[string][]sample
	micro     map[string][]float64 // nanoseconds of the codec's benchmarks, by name
	missing   map[string]string    // server → why it did not take part
	failed    []string             // what went wrong, a sentence each
	remarks   []string             // what was not as planned
	about     []string             // machine, versions, date, command
}

// median is the middle of v, NaN if there is none.
func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile interpolates between the two values next to q.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	at := q * float64(len(v)-1)
	i := int(at)
	if i == len(v)-1 {
		return v[i]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}

// of is the samples of a server in a workload.
func (r *results) of(w, server string) []sample { return r.samples[w][server] }

// values is f of every sample of a server in a workload.
func (r *results) values(w, server string, f func(sample) float64) []float64 {
	var v []float64
	for _, s := range r.of(w, server) {
		v = append(v, f(s))
	}
	return v
}

// ratios is server over other, round by round: what disturbed the machine in a
// round disturbed both.
func (r *results) ratios(w, server, other string) []float64 {
	a, b := r.of(w, server), r.of(w, other)
	var v []float64
	for i := range min(len(a), len(b)) {
		v = append(v, a[i].cost()/b[i].cost())
	}
	return v
}

// bestPeer is the Go library that costs least in w, "" if none took part.
func (r *results) bestPeer(w string) string {
	best, least := "", math.Inf(1)
	for _, c := range r.servers {
		if m := median(r.ratios(w, c.name, baseline)); c.peer && m < least {
			best, least = c.name, m
		}
	}
	return best
}

// reached is the figure that b's limit is held against, NaN if it was not
// measured, and whom it compares with where that is not said by b.
func (r *results) reached(w workload, b bar) (float64, string) {
	switch b.what {
	case toTCP:
		return median(r.ratios(w.name, b.server, baseline)), baseline
	case toBestPeer:
		best := r.bestPeer(w.name)
		return median(r.ratios(w.name, b.server, best)), best
	case toBun:
		return median(r.ratios(w.name, b.server, "bun")), "bun"
	case toGWS:
		return median(r.ratios(w.name, b.server, "gws")), "gws"
	case allocations:
		return median(r.values(w.name, b.server, func(s sample) float64 { return s.mallocs })), ""
	case bytesAsIs:
		return median(r.values(w.name, b.server, func(s sample) float64 { return s.asIs })), ""
	default:
		return median(r.values(w.name, b.server, func(s sample) float64 { return s.afterGC })), ""
	}
}
