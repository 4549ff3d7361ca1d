package campaign

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/bench/experiment"
)

const text = `
name: costs
title: What it costs
repetitions: 3
runs:
  - {program: heat, interval: [0s, 10s]}
metrics: [job, pause]
baseline: {interval: 0s}
claims:
  - {text: little, metric: job, of: {interval: 10s}, factor: 1.1}
  - {text: short pauses, metric: pause, of: {interval: 10s}, add: 20}
`

// made is a verified run with a time and a pause.
func made(r experiment.Run, job, pause float64) Run {
	return Run{Key: r.Key, Variant: r.Variant, Repetition: r.Repetition, Environment: 1, Outcome: Verified, Figures: map[string]float64{"job": job, "pause": pause}}
}

func open(t *testing.T, dir string) *Campaign {
	t.Helper()
	c, err := Open(dir, []byte(text))
	require.NoError(t, err)
	return c
}

func TestResume(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "campaign")
	c := open(t, dir)
	n, err := c.Enter(Environment{Kernel: "one"})
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	pending := c.Pending()
	require.Len(t, pending, 6)
	require.NoError(t, c.Add(made(pending[0], 10, 1)))
	require.NoError(t, c.Add(made(pending[1], 11, 2)))

	// The machine dies while the third result is written.
	path := filepath.Join(dir, resultsFile)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"run":{"key":"` + pending[2].Key)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	seen, err := Load(dir)
	require.NoError(t, err, "a report can be made meanwhile")
	assert.Len(t, seen.Runs, 2)

	c = open(t, dir)
	assert.Equal(t, pending[2:], c.Pending(), "the runs made are not made again, the torn one is")
	n, err = c.Enter(Environment{Kernel: "one"})
	require.NoError(t, err)
	assert.Equal(t, 1, n, "the same environment is entered once")
	n, err = c.Enter(Environment{Kernel: "two"})
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	require.NoError(t, c.Add(made(pending[2], 12, 3)))
	c, err = Load(dir)
	require.NoError(t, err, "what was torn does not damage the line after it")
	assert.Len(t, c.Runs, 3)
	assert.Len(t, c.Environments, 2)
	assert.Equal(t, 12.0, c.Runs[2].Figures["job"])
}

func TestMoreRepetitions(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	for _, r := range c.Pending() {
		require.NoError(t, c.Add(made(r, 1, 1)))
	}
	assert.Empty(t, c.Pending())
	c, err := Open(dir, []byte(strings.Replace(text, "repetitions: 3", "repetitions: 4", 1)))
	require.NoError(t, err)
	assert.Len(t, c.Pending(), 2)
}

func TestAnotherExperiment(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := Open(dir, []byte(strings.Replace(text, "interval: [0s, 10s]", "interval: [0s, 9s, 10s]", 1)))
	require.ErrorIs(t, err, ErrOther)
	assert.ErrorContains(t, err, "--out")
	_, err = Load(t.TempDir())
	assert.ErrorContains(t, err, "holds no campaign")
}

func TestDamagedResults(t *testing.T) {
	for name, line := range map[string]string{"not JSON": "run\n", "nothing": "{}\n"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir)
			require.NoError(t, os.WriteFile(filepath.Join(dir, resultsFile), []byte(line), 0o600))
			_, err := Load(dir)
			assert.ErrorContains(t, err, "line 1")
		})
	}
}

func TestSpread(t *testing.T) {
	for name, test := range map[string]struct {
		values []float64
		want   Spread
		text   string
	}{
		"none":  {nil, Spread{}, "–"},
		"one":   {[]float64{3}, Spread{1, 3, 3, 3, 3, 3}, "3"},
		"two":   {[]float64{4, 2}, Spread{2, 3, 2.5, 3.5, 2, 4}, "3 (2.5–3.5)"},
		"odd":   {[]float64{5, 1, 2, 4, 3}, Spread{5, 3, 2, 4, 1, 5}, "3 (2–4)"},
		"even":  {[]float64{1, 2, 3, 4}, Spread{4, 2.5, 1.75, 3.25, 1, 4}, "2.5 (1.75–3.25)"},
		"equal": {[]float64{2.125, 2.125}, Spread{2, 2.125, 2.125, 2.125, 2.125, 2.125}, "2.12"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Of(test.values)
			assert.Equal(t, test.want, s)
			assert.Equal(t, test.text, s.String())
		})
	}
}

// filled is a finished campaign; change may spoil its runs.
func filled(t *testing.T, change func(*Run)) *Campaign {
	t.Helper()
	c := open(t, t.TempDir())
	for i, r := range c.Pending() {
		rec := made(r, 100, 10)
		if r.Variant.Interval > 0 {
			rec = made(r, 104, 30)
		}
		rec.Figures["job"] += float64(i % 2)
		if change != nil {
			change(&rec)
		}
		require.NoError(t, c.Add(rec))
	}
	return c
}

func TestJudge(t *testing.T) {
	protected := func(r *Run) bool { return r.Variant.Interval > 0 }
	for name, test := range map[string]struct {
		change func(*Run)
		words  []string
		text   string
	}{
		"as measured": {nil, []string{"met", "not met"}, "job of"},
		"one did not verify": {func(r *Run) {
			if protected(r) && r.Repetition == 2 {
				r.Outcome = Unverified
			}
		}, []string{"not compared", "not compared"}, "1 of 3 runs of every 10s did not verify"},
		"a baseline failed": {func(r *Run) {
			if !protected(r) && r.Repetition == 1 {
				r.Outcome = Failed
			}
		}, []string{"not compared", "not met"}, "1 of 3 runs of no checkpoints did not verify"},
		"a figure is missing": {func(r *Run) {
			if protected(r) && r.Repetition == 3 {
				delete(r.Figures, "job")
			}
		}, []string{"not compared", "not met"}, "have no job"},
		"another machine": {func(r *Run) {
			if protected(r) {
				r.Environment = 2
			}
		}, []string{"not compared", "not met"}, "environments"},
	} {
		t.Run(name, func(t *testing.T) {
			c := filled(t, test.change)
			js := c.Judge()
			require.Len(t, js, 2)
			assert.Equal(t, test.words, []string{js[0].Word(), js[1].Word()})
			assert.Contains(t, js[0].Text(c.Experiment), test.text)
			var out bytes.Buffer
			require.NoError(t, c.Print(&out))
			assert.Contains(t, out.String(), test.words[0]+": little")
		})
	}
	empty := open(t, t.TempDir())
	assert.Equal(t, "not compared", empty.Judge()[0].Word())
	assert.Contains(t, empty.Judge()[0].Text(empty.Experiment), "has not run yet")
}

func TestDerive(t *testing.T) {
	const s = int64(1e9)
	r := Run{Figures: map[string]float64{"total": 70}, Events: []Event{
		{At: 5, Kind: "started"},
		{At: 16, Kind: "checkpoint", Figures: map[string]int64{"pause": s / 10, "hold": s / 20, "took": 2 * s, "size": 64 << 20}},
		{At: 27, Kind: "checkpoint", Figures: map[string]int64{"pause": 3 * s / 10, "hold": s / 20, "took": 4 * s, "size": 64 << 20}},
		{At: 40, Kind: "restarted", Figures: map[string]int64{"lost": 8 * s, "detect": 3 * s, "fence": s / 10, "restore": s}},
		{At: 50, Kind: "migrated", Figures: map[string]int64{"downtime": s / 50, "took": 2 * s}},
		{At: 69, Kind: "ended"},
	}}
	r.Derive()
	for name, want := range map[string]float64{
		"boot": 5, "job": 64, "finish": 1, "checkpoints": 2, "restarts": 1, "migrations": 1,
		"pause": 200, "hold": 50, "commit": 3, "size": 64, "paused": 0.4, "lost": 8, "detect": 3, "fence": 0.1, "restore": 1,
		"redone": 5, "compute": 64 - 0.4 - 5 - 3 - 0.1 - 1, "migrate_downtime": 20, "migrate_total": 2,
	} {
		assert.InDelta(t, want, r.Figures[name], 1e-9, name)
		assert.Contains(t, experiment.Units, name)
	}
	native := Run{Figures: map[string]float64{"total": 3}}
	native.Derive()
	assert.Equal(t, map[string]float64{"total": 3}, native.Figures)
	var cut Run
	cut.Events = []Event{{At: 5, Kind: "started"}}
	cut.Derive()
	assert.NotContains(t, cut.Figures, "job", "a job that did not end took no time")
	silent := Run{Outcome: Verified, Figures: map[string]float64{"total": 30}, Events: []Event{{At: 5, Kind: "started"}}}
	silent.Derive()
	assert.Equal(t, 25.0, silent.Figures["job"], "mpirun-vft ended before it heard that the job had")
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"run":{"key":"a/1","variant":{"where":"guests","interval":"1s"}}}` + "\n"))
	f.Add([]byte(`{"environment":{"number":1}}` + "\n{"))
	f.Fuzz(func(t *testing.T, results []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, experimentFile), []byte(text), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, resultsFile), results, 0o600))
		if c, err := Load(dir); err == nil {
			_ = c.Judge()
			_ = fmt.Sprint(c.Pending())
		}
	})
}
