package report

import (
	"fmt"
	"strings"

	"github.com/mpirun-vft/vft/bench/campaign"
)

// state of a job over time.
type span struct {
	from, to float64
	colour   string
	name     string
}

// spans divides a run's time by what its events tell.
func spans(r campaign.Run) []span {
	end := r.Figures["total"]
	var out []span
	at, colour, name := 0.0, grey, "booting"
	turn := func(t float64, c, n string) {
		out = append(out, span{at, t, colour, name})
		at, colour, name = t, c, n
	}
	for _, e := range r.Events {
		switch e.Kind {
		case "started":
			turn(e.At, green, "running")
		case "node-lost", "guest-lost", "restarting":
			if name != "down" {
				turn(e.At, red, "down")
			}
		case "restarted":
			turn(e.At, green, "running")
		case "ended":
			turn(e.At, light, "finishing")
		}
	}
	return append(out, span{at, max(at, end), colour, name})
}

// timeline shows a run: what state the job was in, how far the program was,
// when checkpoints were committed, what went wrong, what was moved.
func timeline(r campaign.Run, until float64) string {
	d := &drawing{}
	s := scale{from: 0, to: max(until, 1e-9), start: 0, end: width - 8}
	const top, bar, bottom = 12.0, 96.0, 112.0
	most := 0
	for _, p := range r.Steps {
		most = max(most, p.Done)
	}
	if most > 0 {
		sy := scale{from: 0, to: float64(most), start: bar - 8, end: top}
		var path [][2]float64
		for i, p := range r.Steps {
			path = append(path, [2]float64{s.at(p.At), sy.at(float64(p.Done))})
			if i+1 < len(r.Steps) {
				path = append(path, [2]float64{s.at(r.Steps[i+1].At), sy.at(float64(p.Done))})
			}
		}
		d.path(path, black)
		d.text(0, top+2, small, "start", grey, fmt.Sprintf("progress shown, up to %d steps", most))
	}
	for _, p := range spans(r) {
		d.rect(s.at(p.from), bar, s.at(p.to)-s.at(p.from), bottom-bar, p.colour, fmt.Sprintf("%s from %.1f s to %.1f s", p.name, p.from, p.to))
	}
	for _, e := range r.Events {
		switch e.Kind {
		case "checkpoint":
			d.mark("triangle", s.at(e.At), bottom+8, blue, e.Text)
		case "checkpoint-failed", "migrate-failed":
			d.mark("cross", s.at(e.At), bottom+8, grey, e.Text)
		case "node-health", "decision":
			d.mark("diamond", s.at(e.At), bar-12, orange, e.Text)
		case "migrated":
			d.mark("diamond", s.at(e.At), bottom+8, purple, e.Text)
		case "restarted":
			d.mark("circle", s.at(e.At), bottom+8, green, e.Text)
		}
	}
	y := bottom + 20
	for _, f := range r.Faults {
		if f.At <= 0 {
			continue
		}
		x := s.at(f.At)
		d.line(x, top, x, bottom+6, red, 1.5)
		if f.Until > f.At {
			d.rect(x, bar-5, s.at(f.Until)-x, 4, red, fmt.Sprintf("until %.1f s", f.Until))
		}
		y += 12
		anchor := "start"
		if x > width/2 {
			anchor = "end"
		}
		d.text(x, y, small, anchor, red, strings.TrimSpace(fmt.Sprintf("%s %s at %.1f s", f.Do, f.Target, f.At)))
	}
	d.height = d.timeAxis(s, y) + 2
	return d.svg("timeline of " + r.Key)
}

// timelineLegend explains the signs.
func timelineLegend() string {
	d := &drawing{}
	h := d.legend(12, []legendEntry{
		{"", grey, "booting"},
		{"", green, "running"},
		{"", red, "down"},
		{"", light, "finishing"},
		{"triangle", blue, "checkpoint committed"},
		{"circle", green, "restarted"},
		{"diamond", purple, "guest migrated"},
		{"diamond", orange, "health of a node, decision"},
		{"cross", grey, "checkpoint or migration failed"},
	})
	d.height = 12 + h
	return d.svg("signs of the timelines")
}
