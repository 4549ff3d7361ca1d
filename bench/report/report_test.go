package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

const text = `
name: sample
title: Faults & <checkpoints>
about: |
  First paragraph.

  Second paragraph.
repetitions: 2
runs:
  - {program: bt-mz, class: W, nodes: 3, ranks: [2, 4], interval: 10s, faults: [none, node-lost]}
  - {program: netpipe, where: native}
faults:
  node-lost: [{do: kill-node, at: 20s}]
metrics: [total, lost]
baseline: {faults: none, where: guests}
per: [ranks, program]
claims:
  - {text: not much longer, metric: total, of: {faults: node-lost, ranks: 2}, factor: 1, add: 11}
  - {text: nothing lost, metric: lost, of: {faults: node-lost, ranks: 2}, add: 1}
  - {text: even with four, metric: total, of: {faults: node-lost, ranks: 4}, factor: 1}
plots:
  - {title: Total against ranks, metric: total, x: ranks, by: faults}
`

// sample is a campaign in which one run failed and one fault could not be done.
func sample(t *testing.T, dir string) {
	t.Helper()
	c, err := campaign.Open(dir, []byte(text))
	require.NoError(t, err)
	_, err = c.Enter(campaign.Environment{Machine: "2 × Processor, 4 GiB", Kernel: "Linux 6", Versions: map[string]string{"QEMU": "7.2"}})
	require.NoError(t, err)
	const s = int64(1e9)
	for _, r := range c.Pending() {
		rec := campaign.Run{
			Key: r.Key, Variant: r.Variant, Repetition: r.Repetition, Environment: 1, Load: 0.4, Begun: time.Unix(1e9, 0),
			Outcome: campaign.Verified, Figures: map[string]float64{"total": 60 + float64(r.Repetition)},
		}
		if r.Variant.Where == experiment.Native {
			rec.Curve = []campaign.Point{{Bytes: 1, Latency: 2, Bandwidth: 4}, {Bytes: 1024, Latency: 3, Bandwidth: 3000}}
			require.NoError(t, c.Add(rec))
			continue
		}
		rec.Accelerator = "tcg"
		rec.Events = []campaign.Event{
			{At: 5, Kind: "started", Text: "program started"},
			{At: 16, Kind: "checkpoint", Text: "checkpoint 1 committed", Figures: map[string]int64{"pause": s / 100}},
		}
		rec.Steps = []campaign.Step{{At: 6, Done: 1}, {At: 30, Done: 100}, {At: 58, Done: 200}}
		if r.Variant.Faults != experiment.NoFaults {
			rec.Figures["total"] += 9
			rec.Faults = []campaign.Fault{{Do: "kill-node", Target: "n2 (guest 1)", Planned: 20, At: 25}}
			rec.Events = append(
				rec.Events,
				campaign.Event{At: 28, Kind: "node-lost", Text: "node n2 lost"},
				campaign.Event{At: 29, Kind: "restarted", Text: "restarted", Figures: map[string]int64{"lost": 12 * s, "detect": 3 * s, "restore": s / 2}},
			)
		}
		rec.Events = append(rec.Events, campaign.Event{At: rec.Figures["total"] - 1, Kind: "ended"})
		rec.Derive()
		if r.Variant.Ranks == 4 && r.Variant.Faults != experiment.NoFaults {
			if r.Repetition == 1 {
				rec.Outcome, rec.Why = campaign.Unverified, "the program says <nothing>\nmore"
			} else {
				rec.Faults = []campaign.Fault{{Do: "kill-node", NotDone: "the job ended before"}}
			}
		}
		require.NoError(t, c.Add(rec))
	}
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	sample(t, filepath.Join(dir, "one"))
	r, err := Build(t.Context(), dir)
	require.NoError(t, err)
	page, err := os.ReadFile(r.Page)
	require.NoError(t, err)
	for _, want := range []string{
		"Faults &amp; &lt;checkpoints&gt;", "First paragraph.</p>", "Second paragraph.</p>",
		">met</b> not much longer", ">not met</b> nothing lost", ">not compared</b> even with four",
		"1 of 2 runs of guests, bt-mz, 4 ranks, node-lost did not verify", "unverified: the program says &lt;nothing&gt;</li>", "kill-node was not done: the job ended before",
		"Guests ran with tcg", "QEMU: 7.2",
	} {
		assert.True(t, strings.Contains(string(page), want), want)
	}
	for _, not := range []string{"<script", "http://", "https://", "src=", "@import", "runs have been made", "kept the machine busy"} {
		assert.False(t, strings.Contains(strings.ReplaceAll(string(page), `xmlns="http://www.w3.org/2000/svg"`, ""), not), "the page needs nothing else, but has %s", not)
	}
	want := []string{"total", "plot1", "bandwidth", "latency", "waterfall", "signs", "timeline01"}
	for _, name := range want {
		svg, err := os.ReadFile(filepath.Join(dir, figuresDir, "sample-"+name+".svg"))
		require.NoError(t, err)
		texts := wellFormed(t, svg)
		assert.NotEmpty(t, texts, name)
	}
	assert.Contains(t, wellFormed(t, read(t, dir, "waterfall")), "work done again")
	assert.Contains(t, wellFormed(t, read(t, dir, "total")), "70.5 s (×1.146)")
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	svg, err := os.ReadFile(filepath.Join(dir, figuresDir, "sample-"+name+".svg"))
	require.NoError(t, err)
	return svg
}

// wellFormed requires a picture to be XML without NaN or negative sizes, which
// browsers drop, and returns its texts.
func wellFormed(t *testing.T, svg []byte) []string {
	t.Helper()
	var texts []string
	d := xml.NewDecoder(strings.NewReader(string(svg)))
	in := ""
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		require.NoError(t, err)
		switch e := token.(type) {
		case xml.StartElement:
			in = e.Name.Local
			for _, a := range e.Attr {
				assert.NotContains(t, a.Value, "NaN")
				assert.NotContains(t, a.Value, "Inf")
				if a.Name.Local == "width" || a.Name.Local == "height" {
					assert.False(t, strings.HasPrefix(a.Value, "-"), a.Value)
				}
			}
		case xml.CharData:
			if in == "text" {
				texts = append(texts, string(e))
			}
			in = ""
		}
	}
}

func TestBuildOfNothing(t *testing.T) {
	_, err := Build(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "vft-bench run")
	dir := t.TempDir()
	_, err = campaign.Open(dir, []byte(text))
	require.NoError(t, err)
	r, err := Build(t.Context(), dir)
	require.NoError(t, err, "a campaign that has just begun can be looked at")
	page, err := os.ReadFile(r.Page)
	require.NoError(t, err)
	assert.True(t, strings.Contains(string(page), "0 of 10 runs have been made"))
	wellFormed(t, read(t, dir, "total"))
}

func TestBusyMachine(t *testing.T) {
	dir := t.TempDir()
	c, err := campaign.Open(dir, []byte("name: a\ntitle: t\nruns: [{program: heat, where: native}]"))
	require.NoError(t, err)
	_, err = c.Enter(campaign.Environment{Machine: "2 × Processor, 4 GiB"})
	require.NoError(t, err)
	r := c.Pending()[0]
	require.NoError(t, c.Add(campaign.Run{Key: r.Key, Variant: r.Variant, Environment: 1, Load: 9, Outcome: campaign.Verified}))
	assert.True(t, describe(c).Busy)
}

func TestSpans(t *testing.T) {
	r := campaign.Run{Figures: map[string]float64{"total": 60}, Events: []campaign.Event{
		{At: 5, Kind: "started"},
		{At: 20, Kind: "node-lost"},
		{At: 21, Kind: "restarting"},
		{At: 24, Kind: "restarted"},
		{At: 58, Kind: "ended"},
	}}
	var names []string
	at := 0.0
	for _, s := range spans(r) {
		assert.Equal(t, at, s.from, "without gaps")
		at = s.to
		names = append(names, s.name)
	}
	assert.Equal(t, []string{"booting", "running", "down", "running", "finishing"}, names)
	assert.Equal(t, 60.0, at)
}

func TestTicks(t *testing.T) {
	assert.Equal(t, []float64{0, 20, 40, 60, 80}, scale{from: 0, to: 90}.ticks(6))
	assert.Equal(t, []float64{0, 0.1, 0.2}, scale{from: 0, to: 0.25}.ticks(3))
	assert.Equal(t, []float64{1, 10, 100, 1000}, scale{from: 1, to: 4000, log: true}.ticks(5))
	assert.Equal(t, []float64{7}, scale{from: 7, to: 7}.ticks(5))
	for v, want := range map[float64]string{0: "0", 1000: "1000", 0.1234: "0.123", 12345: "12.3k", 2e6: "2M"} {
		assert.Equal(t, want, short(v))
	}
}

func TestAmount(t *testing.T) {
	for text, want := range map[string]float64{"4": 4, "256M": 256 << 20, "2G": 2 << 30, "10s": 10} {
		v, ok := amount(text)
		assert.True(t, ok)
		assert.Equal(t, want, v, text)
	}
	for _, text := range []string{"", "many", "M"} {
		_, ok := amount(text)
		assert.False(t, ok, text)
	}
}
