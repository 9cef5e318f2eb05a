//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// microPattern chooses the micro benchmarks of the library that a bar is about.
const microPattern = `^(BenchmarkMask|BenchmarkCore)$/^(ours|copy|binary)$/^size=(125|1024|16384|65536|1048576)$`

// microName is what -run calls them.
const microName = "codec"

// measureMicro runs them, in this process's place and on its CPU, and returns
// their output. They need the source and the go command.
func measureMicro() (string, error) {
	out, err := exec.Command("go", "test", "-C", "..", "-run", "^$", "-bench", microPattern, "-benchtime", "50ms", "-count", "5", ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %.300s", err, out)
	}
	return string(out), nil
}

// parseMicro takes the output of go test -bench apart: nanoseconds by benchmark,
// each time it ran.
func parseMicro(out string) map[string][]float64 {
	m := make(map[string][]float64)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") || f[3] != "ns/op" {
			continue
		}
		ns, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			continue
		}
		name := f[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 { // GOMAXPROCS
			name = name[:i]
		}
		m[name] = append(m[name], ns)
	}
	return m
}

// A microBar is a bar of the codec.
type microBar struct {
	title          string
	name, other    string // benchmarks; with other the figure is their ratio
	limit, stretch float64
}

// microBars are the codec's. Masking has to reach 0.9 of copy's speed, so it
// may take 1/0.9 of its time.
func microBars() []microBar {
	bars := []microBar{{"parse, unmask and answer 125 B, ns", "BenchmarkCore/binary/size=125", "", 25, 18}}
	for _, size := range []int{kib, 16 * kib, 64 * kib, mib} {
		bars = append(bars, microBar{fmt.Sprintf("mask %d KiB, times a copy of it", size/kib),
			fmt.Sprintf("BenchmarkMask/ours/size=%d", size), fmt.Sprintf("BenchmarkMask/copy/size=%d", size), 1 / 0.9, 0})
	}
	return bars
}

// reached is the figure for b in m, NaN if it was not measured.
func (b microBar) reached(m map[string][]float64) float64 {
	if b.other == "" {
		return median(m[b.name])
	}
	return median(m[b.name]) / median(m[b.other])
}

// microTable is the table of the codec's bars, "" if they were not measured.
func (r *results) microTable() string {
	if len(r.micro) == 0 {
		return ""
	}
	var t table
	t.head("in memory", "bar", "stretch", "reached", "")
	for _, b := range microBars() {
		v, stretch := b.reached(r.micro), "–"
		if b.stretch > 0 {
			stretch = number(b.stretch)
		}
		t.row(b.title, "≤ "+number(b.limit), stretch, number(v), bar{limit: b.limit, stretch: b.stretch}.verdict(v))
	}
	return t.String()
}
