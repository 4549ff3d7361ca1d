package report

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

// bars shows the first metric of every variant: median, and a line from the
// first to the third quartile.
func bars(c *campaign.Campaign) string {
	x := c.Experiment
	metric := x.Metrics[0]
	unit := experiment.Units[metric]
	top := 0.0
	for _, v := range x.Variants {
		top = max(top, c.Known(v, metric).Q3)
	}
	d := &drawing{}
	s := scale{from: 0, to: cmp.Or(top, 1), start: 0, end: width - 110}
	y := 4.0
	for _, v := range x.Variants {
		f := c.Known(v, metric)
		y += textSize + 2
		d.text(0, y, textSize, "start", black, x.Label(v))
		y += 5
		note := fmt.Sprintf("%s %s", short(f.Median), unit)
		if f.N == 0 {
			note = "no figure of a verified run"
		} else {
			d.rect(0, y, s.at(f.Median), 16, blue, fmt.Sprintf("%s: %s %s", x.Label(v), f, unit))
			if f.N > 1 {
				d.line(s.at(f.Q1), y+8, s.at(f.Q3), y+8, black, 2)
			}
			if ratio, err := c.Ratio(v, metric); err == nil {
				note += fmt.Sprintf(" (×%.3f)", ratio)
			}
		}
		d.text(max(s.at(f.Median), s.at(f.Q3))+5, y+13, small, "start", black, note)
		y += 20
	}
	d.height = y + 4
	return d.svg(fmt.Sprintf("%s by variant", metric))
}

// phases are what a run's time is divided into, in the order in which they are
// shown.
var phases = []struct{ metric, name, colour string }{
	{"boot", "booting", grey},
	{"compute", "computing", green},
	{"paused", "paused for checkpoints", yellow},
	{"redone", "work done again", orange},
	{"detect", "finding a failure", red},
	{"fence", "fencing", purple},
	{"restore", "restoring", sky},
	{"finish", "finishing", light},
}

// waterfall shows where the time of each variant's median run went. It is empty
// when nothing ran in guests.
func waterfall(c *campaign.Campaign) string {
	x := c.Experiment
	d := &drawing{}
	top := 0.0
	runs := map[experiment.Variant]campaign.Run{}
	for _, v := range x.Variants {
		if r, ok := medianRun(c.Of(v)); ok {
			runs[v] = r
			top = max(top, r.Figures["total"])
		}
	}
	if len(runs) == 0 {
		return ""
	}
	s := scale{from: 0, to: top, start: 0, end: width - 55}
	y := 4.0
	for _, v := range x.Variants {
		r, ok := runs[v]
		if !ok {
			continue
		}
		y += textSize + 2
		d.text(0, y, textSize, "start", black, x.Label(v))
		y += 5
		at := 0.0
		for _, p := range phases {
			if t := r.Figures[p.metric]; t > 0 {
				d.rect(s.at(at), y, s.at(at+t)-s.at(at), 18, p.colour, fmt.Sprintf("%s %.2f s", p.name, t))
				at += t
			}
		}
		d.text(s.at(at)+5, y+14, small, "start", black, fmt.Sprintf("%.1f s", r.Figures["total"]))
		y += 22
	}
	y = d.timeAxis(s, y)
	var entries []legendEntry
	for _, p := range phases {
		entries = append(entries, legendEntry{"", p.colour, p.name})
	}
	y += 16
	d.height = y + d.legend(y, entries)
	return d.svg("where the time went")
}

// medianRun is the verified run in guests whose total is the median one (the
// lower one of two).
func medianRun(runs []campaign.Run) (campaign.Run, bool) {
	var good []campaign.Run
	for _, r := range runs {
		if _, ok := r.Figures["compute"]; ok && r.Outcome == campaign.Verified {
			good = append(good, r)
		}
	}
	if len(good) == 0 {
		return campaign.Run{}, false
	}
	slices.SortFunc(good, func(a, b campaign.Run) int { return cmp.Compare(a.Figures["total"], b.Figures["total"]) })
	return good[(len(good)-1)/2], true
}

// timeAxis draws an axis of seconds at y and returns where it ends.
func (d *drawing) timeAxis(s scale, y float64) float64 {
	y += 4
	d.line(s.start, y, s.end, y, grey, 1)
	for _, t := range s.ticks(6) {
		d.line(s.at(t), y, s.at(t), y+4, grey, 1)
		anchor := "middle"
		if s.at(t) < 8 {
			anchor = "start"
		}
		d.text(s.at(t), y+16, small, anchor, grey, short(t)+" s")
	}
	return y + 20
}

// curve is a line of a chart.
type curve struct {
	name   string
	points [][2]float64 // by x, ascending
}

// axis of a chart of lines.
type axis struct {
	name  string
	log   bool
	names map[float64]string // of values that are not numbers
}

// lines draws curves over one another; those without points are left out. With
// nothing to draw it is empty.
func lines(title string, ax, ay axis, curves []curve) string {
	curves = slices.DeleteFunc(curves, func(c curve) bool { return len(c.points) == 0 })
	if len(curves) == 0 {
		return ""
	}
	minX, maxX, minY, maxY := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, c := range curves {
		for _, p := range c.points {
			minX, maxX, minY, maxY = min(minX, p[0]), max(maxX, p[0]), min(minY, p[1]), max(maxY, p[1])
		}
	}
	if !ay.log {
		minY = 0
	}
	const left, right, top, bottom = 52.0, width - 12, 26.0, 250.0
	sx := scale{minX, maxX, left, right, ax.log}
	sy := scale{minY, maxY, bottom, top, ay.log}
	d := &drawing{}
	d.text(0, 12, small, "start", grey, ay.name)
	for _, t := range sy.ticks(5) {
		d.line(left, sy.at(t), right, sy.at(t), light, 1)
		d.text(left-5, sy.at(t)+4, small, "end", grey, short(t))
	}
	d.line(left, bottom, right, bottom, grey, 1)
	tx := sx.ticks(6)
	if len(ax.names) > 0 {
		tx = slices.Sorted(maps.Keys(ax.names))
	}
	for _, t := range tx {
		name := cmp.Or(ax.names[t], short(t))
		anchor := "middle"
		if sx.at(t) > right-12 {
			anchor = "end"
		}
		d.text(sx.at(t), bottom+15, small, anchor, grey, name)
	}
	d.text((left+right)/2, bottom+31, small, "middle", grey, ax.name)
	var entries []legendEntry
	for i, c := range curves {
		colour := series[i%len(series)]
		var path [][2]float64
		for _, p := range c.points {
			path = append(path, [2]float64{sx.at(p[0]), sy.at(p[1])})
		}
		d.path(path, colour)
		if len(path) < 20 {
			for j, p := range path {
				d.mark("circle", p[0], p[1], colour, fmt.Sprintf("%s: %s at %s", c.name, short(c.points[j][1]), short(c.points[j][0])))
			}
		}
		entries = append(entries, legendEntry{"", colour, c.name})
	}
	const below = bottom + 50
	d.height = below + d.legend(below, entries)
	return d.svg(title)
}

// plot draws one of the charts that the experiment asks for.
func plot(c *campaign.Campaign, p experiment.Plot) string {
	x := c.Experiment
	names := map[float64]string{}
	byName := map[string]*curve{}
	var order []string
	for _, v := range x.Variants {
		fields := v.Fields()
		at, numeric := amount(fields[p.X])
		if !numeric {
			continue
		}
		y := 0.0
		if p.Relative {
			ratio, err := c.Ratio(v, p.Metric)
			if err != nil || ratio == 0 {
				continue
			}
			y = 1 / ratio
		} else {
			f := c.Known(v, p.Metric)
			if f.N == 0 {
				continue
			}
			y = f.Median
		}
		name := p.Metric
		if p.By != "" {
			name = fields[p.By]
		}
		if byName[name] == nil {
			byName[name] = &curve{name: name}
			order = append(order, name)
		}
		byName[name].points = append(byName[name].points, [2]float64{at, y})
		names[at] = fields[p.X]
	}
	var curves []curve
	for _, name := range order {
		slices.SortFunc(byName[name].points, func(a, b [2]float64) int { return cmp.Compare(a[0], b[0]) })
		curves = append(curves, *byName[name])
	}
	unit := strings.TrimSpace(p.Metric + " " + experiment.Units[p.Metric])
	if p.Relative {
		unit = "efficiency: time of the baseline ÷ time"
	}
	return lines(p.Title, axis{name: p.X, names: names}, axis{name: unit}, curves)
}

// amount reads a field as a number: 4, 256M, 10s.
func amount(s string) (float64, bool) {
	if v, err := strconv.ParseFloat(s, 64); err == nil {
		return v, true
	}
	var d experiment.Duration
	if d.UnmarshalText([]byte(s)) == nil {
		return float64(d) / 1e9, true
	}
	if s == "" {
		return 0, false
	}
	unit := map[byte]float64{'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}[s[len(s)-1]]
	v, err := strconv.ParseFloat(s[:len(s)-1], 64)
	return v * unit, err == nil && unit != 0
}

// messages draws what NetPIPE measured: the medians of each size.
func messages(c *campaign.Campaign) (bandwidth, latency string) {
	var bs, ls []curve
	for _, v := range c.Experiment.Variants {
		sizes := map[int][2][]float64{}
		for _, r := range c.Of(v) {
			if r.Outcome != campaign.Verified {
				continue
			}
			for _, p := range r.Curve {
				s := sizes[p.Bytes]
				s[0], s[1] = append(s[0], p.Bandwidth), append(s[1], p.Latency)
				sizes[p.Bytes] = s
			}
		}
		b, l := curve{name: c.Experiment.Label(v)}, curve{name: c.Experiment.Label(v)}
		for _, size := range slices.Sorted(maps.Keys(sizes)) {
			b.points = append(b.points, [2]float64{float64(size), campaign.Of(sizes[size][0]).Median})
			l.points = append(l.points, [2]float64{float64(size), campaign.Of(sizes[size][1]).Median})
		}
		bs, ls = append(bs, b), append(ls, l)
	}
	x := axis{name: "bytes per message", log: true}
	return lines("bandwidth", x, axis{name: "Mbit/s", log: true}, bs), lines("latency", x, axis{name: "µs, half a round trip", log: true}, ls)
}
