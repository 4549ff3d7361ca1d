// Package report makes a page of campaigns: one HTML file that needs nothing
// else, and its figures as files of their own.
package report

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// Files of a report, in the directory of the campaigns.
const (
	pageFile   = "report.html"
	figuresDir = "figures"
)

//go:embed page.html
var pageText string

// figure is one picture.
type figure struct {
	name    string // of its file
	Caption string
	SVG     template.HTML
	// Folded figures are there for those who look for them.
	Folded bool
}

// section is a campaign as the page shows it.
type section struct {
	Name, Title  string
	About        []string
	Made, Wanted int
	Head         []string
	Rows         [][]string
	Claims       []claim
	Environments []campaign.Environment
	Accelerators string
	Load         string
	Busy         bool
	Missing      []string // what was not done or went wrong
	Figures      []figure
}

type claim struct{ Word, Class, Text string }

// Report is what Build has written.
type Report struct {
	Page    string   // path
	Figures []string // paths of pictures
	// NoPNG says why there are no PNG pictures.
	NoPNG string
}

// Build writes the report of a campaign's directory, or of all campaigns in
// directories below it.
func Build(ctx context.Context, dir string) (Report, error) {
	campaigns, err := find(dir)
	if err != nil {
		return Report{}, err
	}
	var sections []section
	for _, c := range campaigns {
		sections = append(sections, describe(c))
	}
	page, err := render(sections)
	if err != nil {
		return Report{}, err
	}
	out := Report{Page: filepath.Join(dir, pageFile)}
	if err := atomicfile.WriteFile(out.Page, page, 0o644); err != nil {
		return Report{}, fmt.Errorf("writing the page: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, figuresDir), 0o755); err != nil { //nolint:gosec // results anybody may read
		return Report{}, fmt.Errorf("making the figures' directory: %w", err)
	}
	for _, s := range sections {
		for _, f := range s.Figures {
			path := filepath.Join(dir, figuresDir, s.Name+"-"+f.name+".svg")
			if err := atomicfile.WriteFile(path, []byte(f.SVG), 0o644); err != nil {
				return Report{}, fmt.Errorf("writing a figure: %w", err)
			}
			out.Figures = append(out.Figures, path)
		}
	}
	return out, out.pngs(ctx)
}

// pngs draws every figure as PNG, twice as large.
func (r *Report) pngs(ctx context.Context) error {
	const tool = "rsvg-convert"
	if _, err := exec.LookPath(tool); err != nil {
		r.NoPNG = tool + " is not there: apt-get install librsvg2-bin"
		return nil
	}
	for _, svg := range slices.Clone(r.Figures) {
		png := strings.TrimSuffix(svg, ".svg") + ".png"
		out, err := exec.CommandContext(ctx, tool, "--zoom", "2", "--output", png, svg).CombinedOutput()
		if err != nil {
			return fmt.Errorf("drawing %s: %w: %s", png, err, bytes.TrimSpace(out))
		}
		r.Figures = append(r.Figures, png)
	}
	return nil
}

// find loads the campaigns of a directory.
func find(dir string) ([]*campaign.Campaign, error) {
	c, err := campaign.Load(dir)
	if err == nil {
		return []*campaign.Campaign{c}, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	below, gerr := filepath.Glob(filepath.Join(dir, "*", "experiment.yaml"))
	if gerr != nil || len(below) == 0 {
		return nil, fmt.Errorf("neither %s nor a directory in it holds a campaign: `vft-bench run EXPERIMENT --out DIR` makes one", dir)
	}
	var out []*campaign.Campaign
	for _, path := range below {
		c, err := campaign.Load(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func render(sections []section) ([]byte, error) {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("reading the page's template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, sections); err != nil {
		return nil, fmt.Errorf("writing the page: %w", err)
	}
	return b.Bytes(), nil
}

// describe decides what the page shows of a campaign.
func describe(c *campaign.Campaign) section {
	x := c.Experiment
	s := section{
		Name: x.Name, Title: x.Title, About: strings.Split(strings.TrimSpace(x.About), "\n\n"),
		Made: len(x.Schedule()) - len(c.Pending()), Wanted: len(x.Schedule()), Environments: c.Environments,
	}
	s.table(c)
	for _, j := range c.Judge() {
		class := map[string]string{"met": "good", "not met": "bad"}[j.Word()]
		s.Claims = append(s.Claims, claim{j.Word(), class, j.Text(x)})
	}
	s.conditions(c)
	for _, r := range c.Runs {
		name := fmt.Sprintf("%s, repetition %d", x.Label(r.Variant), r.Repetition)
		if r.Outcome != campaign.Verified {
			s.Missing = append(s.Missing, fmt.Sprintf("%s: %s: %s", name, r.Outcome, firstLine(r.Why)))
		}
		for _, f := range r.Faults {
			if f.NotDone != "" {
				s.Missing = append(s.Missing, fmt.Sprintf("%s: %s was not done: %s", name, f.Do, firstLine(f.NotDone)))
			}
		}
	}
	s.draw(c)
	return s
}

func (s *section) table(c *campaign.Campaign) {
	x := c.Experiment
	s.Head = []string{"variant", "verified"}
	for _, m := range x.Metrics {
		s.Head = append(s.Head, strings.TrimSpace(m+" "+experiment.Units[m]))
	}
	if len(x.Baseline) > 0 {
		s.Head = append(s.Head, x.Metrics[0]+" ÷ baseline")
	}
	for _, v := range x.Variants {
		row := []string{x.Label(v), c.VerifiedOf(v)}
		for _, m := range x.Metrics {
			row = append(row, c.Known(v, m).String())
		}
		if len(x.Baseline) > 0 {
			row = append(row, c.RatioText(v))
		}
		s.Rows = append(s.Rows, row)
	}
}

// busyLoad is the load per processor, before a run, above which others were
// at work and times are not the program's own.
const busyLoad = 0.75

// conditions says under which the runs were made.
func (s *section) conditions(c *campaign.Campaign) {
	var loads []float64
	accelerators := map[string]bool{}
	for _, r := range c.Runs {
		loads = append(loads, r.Load)
		if r.Accelerator != "" && !accelerators[r.Accelerator] {
			accelerators[r.Accelerator] = true
			s.Accelerators = strings.TrimPrefix(s.Accelerators+", "+r.Accelerator, ", ")
		}
	}
	if len(loads) == 0 {
		return
	}
	f := campaign.Of(loads)
	s.Load = f.String()
	for _, e := range c.Environments {
		var processors int
		_, _ = fmt.Sscan(e.Machine, &processors)
		s.Busy = s.Busy || processors > 0 && f.Median > busyLoad*float64(processors)
	}
}

func (s *section) draw(c *campaign.Campaign) {
	add := func(name, caption, svg string, folded bool) {
		if svg != "" {
			s.Figures = append(s.Figures, figure{name, caption, template.HTML(svg), folded}) //nolint:gosec // drawn here, texts escaped
		}
	}
	x := c.Experiment
	add(x.Metrics[0], fmt.Sprintf("Median of %s; the line spans the middle half of the runs.", x.Metrics[0]), bars(c), false)
	for i, p := range x.Plots {
		add(fmt.Sprintf("plot%d", i+1), p.Title, plot(c, p), false)
	}
	bandwidth, latency := messages(c)
	add("bandwidth", "Bandwidth by size of message, medians.", bandwidth, false)
	add("latency", "Time of a message by its size, medians.", latency, false)
	add("waterfall", "Where the time went, in the run with the median total of each variant.", waterfall(c), false)
	until := 0.0
	for _, r := range c.Runs {
		until = max(until, r.Figures["total"])
	}
	any := false
	for i, r := range c.Runs {
		// Undisturbed runs look alike: the first of each variant will do.
		if len(r.Events) == 0 || len(r.Faults) == 0 && r.Repetition > 1 {
			continue
		}
		if !any {
			add("signs", "Timelines: the signs.", timelineLegend(), false)
			any = true
		}
		add(fmt.Sprintf("timeline%02d", i+1), fmt.Sprintf("%s, repetition %d: %s", x.Label(r.Variant), r.Repetition, r.Outcome), timeline(r, until), true)
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
