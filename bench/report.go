//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// A table is Markdown.
type table struct{ strings.Builder }

func (t *table) row(cells ...string) { fmt.Fprintf(t, "| %s |\n", strings.Join(cells, " | ")) }

func (t *table) head(cells ...string) {
	t.row(cells...)
	for i := range cells {
		if cells[i] = "---:"; i == 0 {
			cells[i] = "---"
		}
	}
	t.row(cells...)
}

// number prints v with three digits that say something.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v >= 9999.5:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case v >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// summary prints what a README shows: every server's ratio and memory.
func (r *results) summary(out io.Writer) {
	if t := r.perServer(false, func(w workload, c *contestant) string {
		return number(median(r.ratios(w.name, c.name, baseline)))
	}); t != "" {
		fmt.Fprintf(out, "Server CPU time per message, as a ratio to a plain Go TCP echo of the same bytes (%s; less is better):\n\n%s\n", baseline, t)
	}
	if t := r.perServer(true, func(w workload, c *contestant) string {
		return number(median(r.values(w.name, c.name, func(s sample) float64 { return s.asIs })))
	}); t != "" {
		fmt.Fprintf(out, "Resident bytes per idle connection:\n\n%s\n", t)
	}
}

// perServer is a table with a line for each workload and a column for each
// server that took part, "" if no workload is of that kind.
func (r *results) perServer(memory bool, cell func(workload, *contestant) string) string {
	var t table
	for _, w := range r.workloads {
		if (w.kind == idle) != memory || len(r.samples[w.name]) == 0 {
			continue
		}
		if t.Len() == 0 {
			cells := []string{""}
			for _, c := range r.servers {
				cells = append(cells, c.name)
			}
			t.head(cells...)
		}
		cells := []string{w.title}
		for _, c := range r.servers {
			s := "–"
			if len(r.of(w.name, c.name)) > 0 {
				s = cell(w, c)
			}
			cells = append(cells, s)
		}
		t.row(cells...)
	}
	return t.String()
}

func (b bar) limitText(other string) string {
	switch b.what {
	case toBestPeer:
		limit := number(b.limit)
		if b.limit < 0.1 {
			limit = fmt.Sprintf("1/%.0f", 1/b.limit)
		}
		if other != "" {
			other = ", " + other
		}
		return fmt.Sprintf("≤ %s of the best Go library%s", limit, other)
	case toTCP, toBun, toGWS:
		return fmt.Sprintf("≤ %s of %s", number(b.limit), other)
	case allocations:
		return fmt.Sprintf("≤ %s allocations", number(b.limit))
	case bytesAsIs:
		return fmt.Sprintf("≤ %s bytes resident", number(b.limit))
	}
	return fmt.Sprintf("≤ %s bytes after a collection", number(b.limit))
}

// verdict is what the report says of a figure.
func (b bar) verdict(v float64) string {
	switch {
	case math.IsNaN(v):
		return "not measured"
	case v > b.limit:
		return "**short**"
	case b.stretch > 0 && v <= b.stretch:
		return "pass, stretch"
	}
	return "pass"
}

// bars prints each line that peerws has to reach, and where it stands.
func (r *results) bars() string {
	var t table
	for _, w := range r.workloads {
		for _, b := range w.bars {
			if !r.chose(b.server) {
				continue
			}
			if t.Len() == 0 {
				t.head("workload", "server", "bar", "stretch", "reached", "")
			}
			v, other := r.reached(w, b)
			got, stretch := number(v), "–"
			if b.what == toBestPeer && v < 0.1 {
				got = fmt.Sprintf("1/%.1f", 1/v)
			} else if b.what == allocations && !math.IsNaN(v) {
				got = fmt.Sprintf("%.3f", v)
			}
			if b.stretch > 0 {
				stretch = number(b.stretch)
			}
			t.row(w.title, b.server, b.limitText(other), stretch, got, b.verdict(v))
		}
	}
	return t.String()
}

func (r *results) chose(server string) bool {
	for _, c := range r.servers {
		if c.name == server {
			return true
		}
	}
	return false
}

// write prints the whole report.
func (r *results) write(out io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(out, format, args...) }
	p("# Side by side\n\nMade by the command below; do not edit. The ratios are the result, absolute numbers belong to this machine.\n\n")
	for _, line := range r.about {
		p("- %s\n", line)
	}
	p("\n![ratios as a chart](results.svg)\n\n")
	r.tables(out)
	p("## How it is measured\n\n")
	for _, s := range method {
		p("- %s\n", s)
	}
	p("\n## The servers\n\n")
	for _, c := range r.servers {
		p("- **%s**: %s\n", c.name, c.note)
	}
	for _, c := range contestants {
		if why, ok := r.missing[c.name]; ok {
			p("- **%s** did not take part: %s.\n", c.name, why)
		}
	}
}

// tables prints what was measured, and what was not.
func (r *results) tables(out io.Writer) {
	section := func(title, text, table string) {
		if table != "" {
			fmt.Fprintf(out, "## %s\n\n%s\n\n%s\n", title, text, table)
		}
	}
	fmt.Fprintf(out, "## Summary\n\n")
	r.summary(out)
	section("Where peerws stands", "The figure is the median of the rounds' ratios, or of the rounds. Short is short, even by a hair; ratios of small messages resolve about 0.1 on a shared machine.", r.bars())
	section("The codec", "Micro benchmarks of the library, without sockets: the median of five runs, and what a copy of as many bytes takes beside it.", r.microTable())
	section("Spread of the ratios", "The middle half of the rounds (first to third quartile).", r.perServer(false, func(w workload, c *contestant) string {
		v := r.ratios(w.name, c.name, baseline)
		if len(v) == 0 {
			return "–"
		}
		return number(quantile(v, 0.25)) + "–" + number(quantile(v, 0.75))
	}))
	section("Server CPU time, µs a message", "User and system time from the process's CPU clock; per delivery for the broadcast, per connection for the handshake. Median of the rounds.", r.perServer(false, func(w workload, c *contestant) string {
		return number(median(r.values(w.name, c.name, sample.cost)) / 1000)
	}))
	section("Thousand messages a second", "With the server on one core, as the driver saw it.", r.perServer(false, func(w workload, c *contestant) string {
		return number(median(r.values(w.name, c.name, func(s sample) float64 { return float64(s.messages) / s.wall.Seconds() / 1000 })))
	}))
	section("Allocations a message", "Of the Go servers (runtime.MemStats.Mallocs).", r.perServer(false, func(w workload, c *contestant) string {
		return number(median(r.values(w.name, c.name, func(s sample) float64 { return s.mallocs })))
	}))
	section("Idle connections, bytes each", "Resident as it is / after a forced collection (heap, stack in use then). The kernel's share comes on top, the same for all.", r.perServer(true, func(w workload, c *contestant) string {
		get := func(f func(sample) float64) string { return number(median(r.values(w.name, c.name, f))) }
		return fmt.Sprintf("%s / %s (%s, %s)", get(func(s sample) float64 { return s.asIs }), get(func(s sample) float64 { return s.afterGC }),
			get(func(s sample) float64 { return s.heap }), get(func(s sample) float64 { return s.stack }))
	}))
	r.latency(section)
	if len(r.remarks)+len(r.failed) > 0 {
		fmt.Fprintf(out, "## Not as planned\n\n")
		for _, s := range append(r.remarks, r.failed...) {
			fmt.Fprintf(out, "- %s\n", s)
		}
		fmt.Fprintln(out)
	}
}

// latency is the section on the paced workload.
func (r *results) latency(section func(title, text, table string)) {
	for _, w := range r.workloads {
		if w.kind != paced || len(r.samples[w.name]) == 0 {
			continue
		}
		var t table
		t.head("server", "p50 µs", "p99 µs")
		for _, c := range r.servers {
			us := func(f func(sample) time.Duration) string {
				return number(median(r.values(w.name, c.name, func(s sample) float64 { return float64(f(s)) / 1000 })))
			}
			t.row(c.name, us(func(s sample) time.Duration { return s.p50 }), us(func(s sample) time.Duration { return s.p99 }))
		}
		section("Latency, "+w.title, "From when the message was due to when the driver had the reply. The tail is the machine's more than the server's.", t.String())
	}
}

// method is how it is measured.
var method = []string{
	"One server process and one driver process run at a time, each pinned to a CPU of its own; the other servers are there and wait. A server has GOMAXPROCS=1 where nothing else is said.",
	"The driver spins on non-blocking sockets with frames made beforehand, and compares what comes back: messages up to 4 KiB entirely, of larger ones the frame header always and the content of every sixteenth.",
	"CPU time is the difference of the server process's CPU clock (clock_getcpuclockid) before and after, with nothing in flight at both ends and the server asleep, so that all of its time is booked. It resolves nanoseconds and keeps the time of threads that ended; the ticks of /proc/PID/stat are 10 ms.",
	"In a round every server gets one window, in an order that rotates. A round's ratio is the server's CPU time per message over that of the raw TCP server in the same round; the result is the median of the rounds' ratios. This was fixed before anything was measured.",
	"The raw TCP server gets the very bytes of the masked frame and returns them, so its reply is the 4 bytes of the masking key longer than a WebSocket server's.",
	"Bun and node are programs of one thread; GOMAXPROCS says nothing to them.",
	"Where messages are compressed, they refer to nothing before them (no context takeover), at the level that the library takes by itself; elsewhere compression is off. The raw TCP server returns the compressed bytes. Text is checked to be UTF-8, by the library or, where it does not, by the program.",
	"Connections with a message in flight: 32 (up to 1 KiB and at the fixed rate), 16 (16 KiB, pipelined, handshakes), 4 (1 MiB).",
	"Idle: a fresh process in which ten connections have come and gone, so that code and tables are there; then one message of 125 B on every connection, two seconds of silence, then what the process has in RAM (smaps_rollup) less what it had before, by connections. After a collection: runtime.GC and debug.FreeOSMemory were called.",
}
