//go:build linux

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"log"
	"math"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The servers are this very binary, started with -serve.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-serve" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Every kind of workload, from end to end, against every server that is
// written in Go; short, so the numbers say nothing.
func TestSmoke(t *testing.T) {
	all, err := cores()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pinSelf(all) })
	o := options{
		rounds: 1, window: 2 * time.Millisecond, idle: 1, settle: time.Millisecond, conns: 20, log: log.New(io.Discard, "", 0),
		servers: []string{"peerws", "peerws-read"},
	}
	run := func(o options, names string) *results {
		t.Helper()
		o.run = regexp.MustCompile(names)
		r, err := runAll(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.failed {
			t.Error(f)
		}
		return r
	}
	r := run(o, "")
	for _, w := range workloads {
		for _, c := range []string{baseline, "peerws", "peerws-read"} {
			s := r.of(w.name, c)
			if len(s) != 1 || s[0].messages == 0 {
				t.Errorf("%s, %s: %+v", w.name, c, s)
			} else if w.kind != idle && (s[0].cpu <= 0 || s[0].wall <= 0) {
				t.Errorf("%s, %s: %+v", w.name, c, s)
			} else if w.kind == idle && s[0].asIs <= 0 {
				t.Errorf("%s, %s: %v bytes", w.name, c, s[0].asIs)
			}
		}
	}
	o.servers = nil
	for i := range contestants {
		if contestants[i].serve != nil {
			o.servers = append(o.servers, contestants[i].name)
		}
	}
	run(o, "^(b125|u16k|b1m|bcast|handshake|idle-tls)$")
}

func TestUnknownNames(t *testing.T) {
	if _, err := runAll(t.Context(), options{run: regexp.MustCompile("^nothing$")}); err == nil {
		t.Error("no workload, and no error")
	}
	if _, err := runAll(t.Context(), options{servers: []string{"nobody"}}); err == nil {
		t.Error("no such server, and no error")
	}
}

// The examples of RFC 6455 §5.7.
func TestFrame(t *testing.T) {
	for _, c := range []struct {
		opcode byte
		p      string
		key    [4]byte
		want   string
	}{
		{1, "Hello", [4]byte{}, "\x81\x05Hello"},
		{1, "Hello", [4]byte{0x37, 0xFA, 0x21, 0x3D}, "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"},
		{2, strings.Repeat("x", 256), [4]byte{}, "\x82\x7E\x01\x00" + strings.Repeat("x", 256)},
		{2, strings.Repeat("x", 65536), [4]byte{}, "\x82\x7F\x00\x00\x00\x00\x00\x01\x00\x00" + strings.Repeat("x", 65536)},
	} {
		if got := string(frame(c.opcode, []byte(c.p), c.key)); got != c.want {
			t.Errorf("%d bytes: %.20x", len(c.p), got)
		}
	}
}

func TestPayload(t *testing.T) {
	for _, w := range workloads {
		p := w.payload()
		if len(p) != w.size || w.text != "" && !utf8.Valid(p) {
			t.Errorf("%s: %d bytes, UTF-8: %v", w.name, len(p), utf8.Valid(p))
		}
	}
}

// A reply in fragments is taken at every split, and only if it is right.
func TestFragments(t *testing.T) {
	const whole = "\x02\x03abc" + "\x00\x00" + "\x00\x7E\x00\x02de" + "\x80\x7F\x00\x00\x00\x00\x00\x00\x00\x01f"
	take := func(f *fragments, b string) (bool, error) {
		for len(b) > 0 {
			n, done, err := f.take([]byte(b), 2, []byte("abcdef"))
			if err != nil {
				return false, err
			}
			if b = b[n:]; done {
				return b == "", nil
			}
		}
		return false, nil
	}
	for i := range len(whole) {
		var f fragments
		if done, err := take(&f, whole[:i]); done || err != nil {
			t.Fatalf("after %d bytes: %v, %v", i, done, err)
		}
		if done, err := take(&f, whole[i:]); !done || err != nil {
			t.Fatalf("split at %d: %v, %v", i, done, err)
		}
		if f != (fragments{}) {
			t.Fatalf("split at %d leaves %+v", i, f)
		}
	}
	for _, bad := range []string{
		"\x01\x03abc",                     // another type
		"\x02\x03abx",                     // another content
		"\x02\x83abc",                     // masked
		"\x02\x03abc\x02\x03def",          // no continuation
		"\x02\x03abc\x80\x01d",            // too short
		"\x02\x03abc\x80\x04defg",         // too long
		"\x02\x03abc\x00\x03def\x80\x01g", // too long in a later one
	} {
		var f fragments
		if _, err := take(&f, bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// A server that returns something else, or nothing, is found out.
func TestDriverDistrusts(t *testing.T) {
	w := workload{size: 125, conns: 2}
	for name, spoil := range map[string]func([]byte) []byte{
		"a changed byte":  func(b []byte) []byte { b[len(b)-1]++; return b },
		"a missing byte":  func(b []byte) []byte { return b[1:] },
		"a byte too much": func(b []byte) []byte { return append(b, 0) },
		"the end":         func(b []byte) []byte { return nil },
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		request, reply := w.request(false)
		go each(ln, func(c net.Conn) {
			defer c.Close()
			b := make([]byte, 4096)
			if _, err := c.Read(b); err != nil {
				return
			}
			io.WriteString(c, answer)
			for {
				if _, err := io.ReadFull(c, b[:len(request)]); err != nil {
					return
				}
				p := spoil(slices.Clone(reply))
				if p == nil {
					return
				}
				c.Write(p)
			}
		})
		d, err := open(ln.Addr().(*net.TCPAddr).Port, w.conns, w.pack)
		if err != nil {
			t.Fatal(err)
		}
		d.request, d.reply, d.messages = request, reply, 1
		if n, err := d.echo(20 * time.Millisecond); err == nil {
			t.Errorf("%s: %d messages and no error", name, n)
		}
		d.close()
	}
}

func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Only the work of this very process counts, and all of it: the clock is
	// watched until 5 ms are there.
	for began := time.Now(); ; {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-before >= 5*time.Millisecond {
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("%v of CPU time in %v", now-before, patience)
		}
	}
	if _, err := cpuTime(1 << 28); err == nil {
		t.Error("a process that is not there has a CPU clock")
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		q    float64
		want float64
	}{
		{[]float64{3}, 0.5, 3},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{5, 1, 4, 2, 3}, 0.25, 2},
		{[]float64{5, 1, 4, 2, 3}, 1, 5},
	} {
		if got := quantile(c.v, c.q); got != c.want {
			t.Errorf("quantile %v of %v is %v, not %v", c.q, c.v, got, c.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("nothing has a median")
	}
}

// canned is a run of three rounds in which the machine was twice as slow in the
// second. 1,000 messages a round, so a cost of n ns is n µs of CPU time.
func canned() *results {
	row := func(mallocs float64, costs ...float64) (s []sample) {
		for _, c := range costs {
			s = append(s, sample{messages: 1000, cpu: time.Duration(c * 1000), wall: time.Second, mallocs: mallocs})
		}
		return s
	}
	r := &results{missing: map[string]string{"bun": "bun is not installed"}, about: []string{"a machine"}}
	for _, name := range []string{baseline, "peerws", "peerws-read", "gws", "gobwas"} {
		r.servers = append(r.servers, find(name))
	}
	for _, w := range workloads {
		if w.name == "b125" || w.name == "pipe64" || w.name == "idle" {
			r.workloads = append(r.workloads, w)
		}
	}
	r.samples = map[string]map[string][]sample{
		"b125": {
			baseline:      row(0, 1000, 2000, 1000),
			"peerws":      row(0, 900, 1900, 910),     // 0.90 0.95 0.91
			"peerws-read": row(1.5, 1300, 2200, 1200), // 1.30 1.10 1.20
			"gws":         row(2, 1100, 2100, 1070),   // 1.10 1.05 1.07
			"gobwas":      row(0, 1000, 1980, 1020),   // 1.00 0.99 1.02
		},
		"pipe64": {
			baseline: row(0, 200, 400, 200),
			"peerws": row(0, 260, 520, 260), // 1.30
			"gws":    row(0, 8000, 16000, 8000),
		},
		"idle": {
			baseline: {{messages: 10, asIs: 7720, afterGC: 7000}},
			"peerws": {{messages: 10, asIs: 3845, afterGC: 3700}},
		},
	}
	return r
}

// Ratios are taken round by round, so that a slow round changes nothing.
func TestRatios(t *testing.T) {
	r := canned()
	if got := r.ratios("b125", "peerws", baseline); !slices.Equal(got, []float64{0.90, 0.95, 0.91}) {
		t.Errorf("ratios %v", got)
	}
	if got := r.bestPeer("b125"); got != "gobwas" {
		t.Errorf("the best peer is %q", got)
	}
	if got := r.bestPeer("nothing"); got != "" {
		t.Errorf("the best peer of nothing is %q", got)
	}
}

func TestReport(t *testing.T) {
	r := canned()
	r.failed = []string{"b1m, gws: it fell over."}
	var b bytes.Buffer
	r.write(&b)
	for _, want := range []string{
		"\n| 125 B | 1.00 | 0.91 | 1.20 | 1.07 | 1.00 |\n",
		"\n| 64 × 125 B pipelined | 1.00 | 1.30 | – | 40.0 | – |\n",
		"\n| idle connections | 7720 | 3845 | – | – | – |\n",
		"| 125 B | peerws | ≤ 1.00 of tcp | 0.90 | 0.91 | pass |\n",
		"| 125 B | peerws | ≤ 1.00 of the best Go library, gobwas | – | 0.90 | pass |\n",
		"| 125 B | peerws | ≤ 0.01 allocations | – | 0.000 | pass |\n",
		"| 125 B | peerws-read | ≤ 1.10 allocations | – | 1.500 | **short** |\n",
		"| 64 × 125 B pipelined | peerws | ≤ 1.25 of tcp | 1.00 | 1.30 | **short** |\n",
		"| 64 × 125 B pipelined | peerws | ≤ 1/25 of the best Go library, gws | – | 1/30.8 | pass |\n",
		"| 64 × 125 B pipelined | peerws | ≤ 0.65 of bun | – | – | not measured |\n",
		"| idle connections | peerws | ≤ 4000 bytes resident | 3300 | 3845 | pass |\n",
		"- a machine\n",
		"- **bun** did not take part: bun is not installed.\n",
		"- b1m, gws: it fell over.\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(b.String())
	}
}

func TestMicro(t *testing.T) {
	m := parseMicro(`goos: linux
BenchmarkMask/ours/size=1024-2         	  149982	        24.0 ns/op	63181.31 MB/s	       0 B/op	       0 allocs/op
BenchmarkMask/copy/size=1024-2         	  149982	        12.0 ns/op
BenchmarkCore/binary/size=125-16       	   38679	        18.5 ns/op
BenchmarkCore/binary/size=125-16       	   38679	        62.3 ns/op
BenchmarkCore/binary/size=125-16       	   38679	        17.5 ns/op
PASS
`)
	table := (&results{micro: m}).microTable()
	for _, want := range []string{
		"answer 125 B, ns | ≤ 25.0 | 18.0 | 18.5 | pass |\n",
		"mask 1 KiB, times a copy of it | ≤ 1.11 | – | 2.00 | **short** |\n",
		"mask 16 KiB, times a copy of it | ≤ 1.11 | – | – | not measured |\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 0.914: "0.91", 9.994: "9.99", 9.996: "10.0", 99.96: "100", 4711: "4711", 24576: "24,576", 1234567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("%v is printed as %q, not %q", v, got, want)
		}
	}
	if got := number(math.NaN()); got != "–" {
		t.Errorf("nothing is printed as %q", got)
	}
}

// The chart is XML, has a bar for every figure, and no bar leaves it.
func TestChart(t *testing.T) {
	r := canned()
	r.samples["b125"]["gws"][1].cpu = time.Second // far outside the scale
	d, bars := xml.NewDecoder(bytes.NewReader(r.chart())), 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if ok && e.Name.Local == "rect" {
			bars++
		}
		for _, a := range e.Attr {
			if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || strings.HasPrefix(a.Value, "-") {
				t.Errorf("%s has %s=%q", e.Name.Local, a.Name.Local, a.Value)
			}
		}
	}
	// 5 in the legend; 4, 2 and 2 of the workloads, and the raw server's memory
	// is among the last.
	if bars != 5+4+2+2 {
		t.Errorf("%d rectangles", bars)
	}
}

func TestScale(t *testing.T) {
	s := scale{0.5, 8}
	for v, want := range map[float64]float64{0.1: chartLeft, 0.5: chartLeft, 2: (chartLeft + chartRight) / 2, 8: chartRight, 100: chartRight} {
		if got := s.x(v); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v is at %v, not %v", v, got, want)
		}
	}
}

func TestJoinFrames(t *testing.T) {
	for _, c := range []struct {
		frames, payload string
		whole, wrong    bool
	}{
		{"\xc1\x02ab", "ab", true, false},
		{"\x41\x01a\x00\x00\x80\x7e\x00\x01b", "ab", true, false},
		{"\x41\x01a\x80\x7f\x00\x00\x00\x00\x00\x00\x00\x01b", "ab", true, false},
		{"\x41\x01a", "", false, false},
		{"\xc1\x7e\x00", "", false, false},
		{"\xc1\x02a", "", false, false},
		{"\x81\x02ab", "", false, true},
		{"\x41\x01a\xc0\x01b", "", false, true},
		{"\xc1\x02ab\x80", "", false, true},
	} {
		payload, whole, err := joinFrames([]byte(c.frames), 0x41)
		if whole && string(payload) != c.payload || whole != c.whole || (err != nil) != c.wrong {
			t.Errorf("%x: %q, %v, %v", c.frames, payload, whole, err)
		}
	}
}
