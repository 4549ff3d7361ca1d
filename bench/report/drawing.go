package report

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// drawing is an SVG picture that looks the same alone and in a page: nothing in
// it refers to anything outside. Widths are chosen so that its text can be read
// on a phone.
type drawing struct {
	body   strings.Builder
	height float64
}

// width of every drawing, in its own units; text is textSize high.
const (
	width    = 480.0
	textSize = 13.0
	small    = 11.0
)

// Colours that people who see colours differently can tell apart (Okabe and
// Ito, 2008), and greys.
const (
	blue   = "#0072b2"
	orange = "#e69f00"
	green  = "#009e73"
	red    = "#d55e00"
	sky    = "#56b4e9"
	purple = "#cc79a7"
	yellow = "#f0e442"
	black  = "#222222"
	grey   = "#767676"
	light  = "#dddddd"
)

var series = []string{blue, orange, green, red, purple, sky, black, grey}

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(&d.body, format+"\n", args...) }

func (d *drawing) rect(x, y, w, h float64, fill, title string) {
	d.add(`<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s"><title>%s</title></rect>`, x, y, max(0, w), h, fill, html.EscapeString(title))
}

func (d *drawing) line(x1, y1, x2, y2 float64, stroke string, thick float64) {
	d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`, x1, y1, x2, y2, stroke, thick)
}

// text writes a line; anchor is start, middle or end.
func (d *drawing) text(x, y, size float64, anchor, fill, s string) {
	d.add(`<text x="%.1f" y="%.1f" font-size="%.0f" text-anchor="%s" fill="%s">%s</text>`, x, y, size, anchor, fill, html.EscapeString(s))
}

func (d *drawing) path(points [][2]float64, stroke string) {
	if len(points) == 0 {
		return
	}
	var b strings.Builder
	for i, p := range points {
		fmt.Fprintf(&b, "%c%.1f %.1f", "ML"[min(i, 1)], p[0], p[1])
	}
	d.add(`<path d="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`, b.String(), stroke)
}

// mark draws a small sign with a title: circle, triangle or diamond.
func (d *drawing) mark(sign string, x, y float64, fill, title string) {
	const r = 4.5
	shape := fmt.Sprintf(`<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s">`, x, y, r, fill)
	end := "</circle>"
	switch sign {
	case "triangle":
		shape, end = fmt.Sprintf(`<path d="M%.1f %.1fL%.1f %.1fL%.1f %.1fZ" fill="%s">`, x, y-r, x+r, y+r, x-r, y+r, fill), "</path>"
	case "diamond":
		shape, end = fmt.Sprintf(`<path d="M%.1f %.1fL%.1f %.1fL%.1f %.1fL%.1f %.1fZ" fill="%s">`, x, y-r, x+r, y, x, y+r, x-r, y, fill), "</path>"
	case "cross":
		shape, end = fmt.Sprintf(`<path d="M%.1f %.1fL%.1f %.1fM%.1f %.1fL%.1f %.1f" stroke="%s" stroke-width="2.5">`, x-r, y-r, x+r, y+r, x-r, y+r, x+r, y-r, fill), "</path>"
	}
	d.add("%s<title>%s</title>%s", shape, html.EscapeString(title), end)
}

// legend writes signs and names in as many lines as it takes and returns the
// height below y.
func (d *drawing) legend(y float64, entries []legendEntry) float64 {
	x, at := 0.0, y
	for _, e := range entries {
		// Letters are a little more than half as wide as high.
		w := 18 + float64(len([]rune(e.name)))*small*0.56
		if x > 0 && x+w > width {
			x, at = 0, at+18
		}
		if e.sign == "" {
			d.rect(x+1, at-9, 10, 10, e.colour, e.name)
		} else {
			d.mark(e.sign, x+6, at-4, e.colour, e.name)
		}
		d.text(x+15, at, small, "start", black, e.name)
		x += w + 8
	}
	return at + 10 - y
}

type legendEntry struct{ sign, colour, name string }

// svg is the whole picture.
func (d *drawing) svg(title string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="Liberation Sans, Helvetica, Arial, sans-serif" role="img" aria-label="%s">
<rect width="100%%" height="100%%" fill="#ffffff"/>
%s</svg>
`, width, d.height, width, d.height, html.EscapeString(title), d.body.String())
}

// scale maps values to places.
type scale struct {
	from, to   float64 // values
	start, end float64 // places
	log        bool
}

func (s scale) at(v float64) float64 {
	f, t := s.from, s.to
	if s.log {
		v, f, t = math.Log10(max(v, math.SmallestNonzeroFloat64)), math.Log10(f), math.Log10(t)
	}
	if t == f {
		return (s.start + s.end) / 2
	}
	return s.start + (v-f)/(t-f)*(s.end-s.start)
}

// ticks are round values on the scale, about n of them.
func (s scale) ticks(n int) []float64 {
	var out []float64
	if s.log {
		low, high := int(math.Ceil(math.Log10(s.from)-1e-9)), int(math.Floor(math.Log10(s.to)+1e-9))
		for e := low; e <= high; e += max(1, (high-low)/max(n, 1)) {
			out = append(out, math.Pow10(e))
		}
		return out
	}
	span := s.to - s.from
	if span <= 0 || math.IsInf(span, 0) || math.IsNaN(span) {
		return []float64{s.from}
	}
	step := math.Pow10(int(math.Floor(math.Log10(span / float64(n)))))
	for _, m := range []float64{1, 2, 5, 10} {
		if span/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	// Adding 0 makes 0 of -0.
	for i := math.Ceil(s.from/step-1e-9) + 0; i*step <= s.to+step*1e-9; i++ {
		out = append(out, i*step)
	}
	return out
}

// short writes a number in few letters.
func short(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	case a >= 999.5:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
