//go:build linux

package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// A bar of the ratios begins at 1, the raw Go TCP server's cost: to the left is
// cheaper, to the right dearer. The scale is logarithmic, because
// a ratio of 2 and one of 1/2 are equally far from 1.
const (
	chartWidth  = 960
	chartLeft   = 205. // where the scale begins
	chartRight  = 900.
	chartLeast  = 0.5 // ratios at its ends; what lies beyond is cut
	chartMost   = 64.
	barHeight   = 11
	barGap      = 2
	groupGap    = 16
	chartTop    = 92
	memoryLeast = 1024. // bytes, of the second scale
	memoryMost  = 65536.
)

// Colours that can be told apart on white and on black. Text and lines are
// grey enough for both.
var chartColours = map[string]string{
	baseline: "#8a8f98", "peerws": "#e4572e", "peerws-read": "#f2a07f", "peerws-next": "#f7c5ad", "gorilla": "#3f88c5", "coder": "#7b68c8",
	"gws": "#2a9d6f", "gobwas": "#c9a227", "gobwas-util": "#a07d3b", "bun": "#d66ba0", "node-ws": "#5b9aa0",
}

// A drawing is an SVG that is being written.
type drawing struct{ strings.Builder }

func (d *drawing) text(x, y float64, class, s string) {
	fmt.Fprintf(d, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, class, html.EscapeString(s))
}

// A scale maps values to places, logarithmically.
type scale struct{ least, most float64 }

func (s scale) x(v float64) float64 {
	v = min(max(v, s.least), s.most)
	return chartLeft + (chartRight-chartLeft)*math.Log(v/s.least)/math.Log(s.most/s.least)
}

// chart draws the ratios, and below them the memory of idle connections.
func (r *results) chart() []byte {
	var d drawing
	y := float64(chartTop)
	y = r.panel(&d, y, panel{
		title: "CPU time per message, times that of a plain Go TCP echo (logarithmic; left is better)",
		scale: scale{chartLeast, chartMost}, origin: 1, ticks: []float64{0.5, 1, 2, 4, 8, 16, 32, 64},
		label: func(v float64) string { return number(v) },
		tick:  func(v float64) string { return fmt.Sprintf("%g×", v) },
		value: func(w workload, c *contestant) float64 { return median(r.ratios(w.name, c.name, baseline)) },
		shows: func(w workload, c *contestant) bool { return w.kind != idle && c.name != baseline },
		mark:  1,
	})
	y = r.panel(&d, y, panel{
		title: "Resident bytes per idle connection (logarithmic; shorter is better)",
		scale: scale{memoryLeast, memoryMost}, origin: memoryLeast, ticks: []float64{1024, 2048, 4096, 8192, 16384, 32768, 65536},
		label: number,
		tick:  func(v float64) string { return fmt.Sprintf("%g KiB", v/kib) },
		value: func(w workload, c *contestant) float64 {
			return median(r.values(w.name, c.name, func(s sample) float64 { return s.asIs }))
		},
		shows: func(w workload, _ *contestant) bool { return w.kind == idle },
	})
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img">
<title>peerws beside other WebSocket servers</title>
<style>
text { font: 12px system-ui, sans-serif; fill: #7d828c }
.title { font-size: 14px; font-weight: 600 }
.name { text-anchor: end; font-size: 13px }
.value { font-size: 11px }
.tick { text-anchor: middle; font-size: 11px }
line { stroke: #7d828c; stroke-opacity: .3 }
.one { stroke-opacity: .9; stroke-dasharray: 4 3 }
</style>
`, chartWidth, y, chartWidth, y)
	r.legend(&out)
	out.WriteString(d.String())
	out.WriteString("</svg>\n")
	return []byte(out.String())
}

// legend names the colours, in the order of the bars.
func (r *results) legend(out *strings.Builder) {
	x, y := 20., 24.
	for _, c := range r.servers {
		name := c.name
		if name == baseline {
			name = "raw Go TCP"
		}
		width := 30 + 7.2*float64(len(name))
		if x+width > chartWidth-20 {
			x, y = 20, y+22
		}
		fmt.Fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\" fill=\"%s\"/>\n", x, y-10, chartColours[c.name])
		fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x+17, y, html.EscapeString(name))
		x += width
	}
}

// A panel is one scale with the bars on it.
type panel struct {
	title  string
	scale  scale
	origin float64 // where bars begin
	ticks  []float64
	mark   float64 // a value with a line of its own, 0 for none
	label  func(float64) string
	tick   func(float64) string
	value  func(workload, *contestant) float64
	shows  func(workload, *contestant) bool
}

// panel draws p from y down and returns where it ends: y itself if there is
// nothing to draw.
func (r *results) panel(d *drawing, y float64, p panel) float64 {
	var bars drawing
	top := y + 34
	at := top
	for _, w := range r.workloads {
		first := at
		for _, c := range r.servers {
			v := math.NaN()
			if p.shows(w, c) {
				v = p.value(w, c)
			}
			if math.IsNaN(v) {
				continue
			}
			from, to := p.scale.x(p.origin), p.scale.x(v)
			fmt.Fprintf(&bars, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"2\" fill=\"%s\"/>\n",
				min(from, to), at, max(math.Abs(to-from), 1), barHeight, chartColours[c.name])
			bars.text(max(to, from)+4, at+barHeight-2, "value", p.label(v))
			at += barHeight + barGap
		}
		if at > first {
			bars.text(chartLeft-10, (first+at)/2+4, "name", w.title)
			at += groupGap
		}
	}
	if at == top {
		return y
	}
	d.text(20, y, "title", p.title)
	for _, v := range p.ticks {
		class := ""
		if v == p.mark {
			class = ` class="one"`
		}
		fmt.Fprintf(d, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"%s/>\n", p.scale.x(v), top-6, p.scale.x(v), at-groupGap+6, class)
		d.text(p.scale.x(v), top-11, "tick", p.tick(v))
	}
	d.WriteString(bars.String())
	return at + 24
}
