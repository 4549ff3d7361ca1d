package experiment

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const good = `
name: costs
title: What it costs
seed: 7
repetitions: 3
runs:
  - {program: bt-mz, class: W, where: [native, guests], interval: [0s, 10s], ranks: [1, 2]}
baseline: {where: native}
per: [ranks]
metrics: [job, total]
claims:
  - {text: little, metric: job, of: {interval: 10s}, factor: 2}
`

func TestParse(t *testing.T) {
	x, err := Parse([]byte(good))
	require.NoError(t, err)
	// Natively there are no checkpoints, so their interval makes no difference.
	assert.Len(t, x.Variants, 6)
	assert.Equal(t, Duration(defaultTimeout), x.Timeout)
	v := x.Variants[2]
	assert.Equal(t, Variant{
		Where: Guests, Program: "bt-mz", Class: "W", MPI: "openmpi", Ranks: 1, Threads: 1,
		Guests: 1, CPUs: 1, Memory: "256M", Nodes: 1, Restarts: 10, Faults: NoFaults,
	}, v, "without checkpoints there is no engine")
	b, ok := x.BaselineOf(x.Variants[5])
	require.True(t, ok)
	assert.Equal(t, Native, b.Where)
	assert.Equal(t, x.Variants[5].Ranks, b.Ranks)
	_, ok = x.BaselineOf(b)
	assert.False(t, ok, "a baseline has none")
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct{ yaml, want string }{
		"nothing":            {"", "EOF"},
		"not YAML":           {"a: [", "did not find"},
		"two documents":      {"name: a\n---\nname: b\n", "more than one"},
		"unknown key":        {"name: a\ncolour: red\n", "colour"},
		"no name":            {"runs: [{program: heat}]", "the name"},
		"name with a path":   {"name: ../a\nruns: [{program: heat}]", "the name"},
		"no runs":            {"name: a\n", "nothing under runs"},
		"no program":         {"name: a\nruns: [{class: W}]", "no program"},
		"empty list":         {"name: a\nruns: [{program: []}]", "empty list"},
		"unknown program":    {"name: a\nruns: [{program: tetris}]", "tetris"},
		"unknown place":      {"name: a\nruns: [{program: heat, where: moon}]", "moon"},
		"unknown MPI":        {"name: a\nruns: [{program: heat, mpi: lam}]", "lam"},
		"unknown engine":     {"name: a\nruns: [{program: heat, interval: 1s, engine: steam}]", "steam"},
		"no ranks":           {"name: a\nruns: [{program: heat, ranks: 0}]", "0 ranks"},
		"too many guests":    {"name: a\nruns: [{program: heat, guests: 3}]", "2 ranks in 3 guests"},
		"interval":           {"name: a\nruns: [{program: heat, interval: often}]", "often"},
		"negative interval":  {"name: a\nruns: [{program: heat, interval: -1s}]", "every -1s"},
		"unknown faults":     {"name: a\nruns: [{program: heat, faults: flood}]", "flood"},
		"no repetitions":     {"name: a\nrepetitions: -1\nruns: [{program: heat}]", "repetitions"},
		"unknown metric":     {"name: a\nruns: [{program: heat}]\nmetrics: [beauty]", "beauty"},
		"unknown field":      {"name: a\nruns: [{program: heat}]\nbaseline: {taste: sweet}", "taste"},
		"claim of nothing":   {"name: a\nruns: [{program: heat}]\nclaims: [{text: x, metric: job, of: {ranks: 9}}]", "no variant"},
		"claim, no baseline": {"name: a\nruns: [{program: heat}]\nclaims: [{text: x, metric: job, factor: 1}]", "baseline"},
		"built-in again":     {"name: a\nprograms: {heat: {path: x, check: npb}}\nruns: [{program: heat}]", "built in"},
		"no check":           {"name: a\nprograms: {mine: {path: x}}\nruns: [{program: mine}]", "verified"},
		"text of nothing":    {"name: a\nprograms: {mine: {path: x, check: text}}\nruns: [{program: mine}]", "verified"},
		"plot":               {"name: a\nruns: [{program: heat}]\nplots: [{metric: job, x: wind}]", "wind"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(test.yaml))
			require.ErrorIs(t, err, ErrInvalid)
			assert.ErrorContains(t, err, test.want)
		})
	}
}

func plan(t *testing.T, yaml string) (Plan, error) {
	t.Helper()
	x, err := Parse([]byte("name: a\nruns: [{program: heat, faults: p}]\nfaults:\n  p: " + yaml + "\n"))
	return x.Faults["p"], err
}

func TestPlanRefuses(t *testing.T) {
	for name, test := range map[string]struct{ yaml, want string }{
		"nothing":           {"[]", "no steps"},
		"unknown":           {"[{do: sing}]", "sing"},
		"part of a kill":    {"[{do: kill-node, part: qemu}]", "part"},
		"unknown part":      {"[{do: stop, part: door}]", "door"},
		"same as nothing":   {"[{do: kill-node, on: same}]", "no step before"},
		"leader, elsewhere": {"[{do: kill-leader, on: guest}]", "kill-node"},
		"no errors":         {"[{do: edac}]", "errors"},
		"errors of a kill":  {"[{do: kill-node, errors: 3}]", "errors"},
		"no points":         {"[{do: arm}]", "points"},
		"often":             {"[{do: kill-qemu, times: 3}]", "every"},
		"no time":           {"[{do: kill-qemu, at: noon}]", "noon"},
		"early":             {"[{do: kill-qemu, at: -1s}]", "cannot be drawn"},
		"two distributions": {"[{do: kill-qemu, at: {uniform: [1s, 2s], exponential: 3s}}]", "one distribution"},
		"uniform backwards": {"[{do: kill-qemu, at: {uniform: [2s, 1s]}}]", "cannot be drawn"},
		"half a uniform":    {"[{do: kill-qemu, at: {uniform: [2s]}}]", "a distribution is"},
		"flat weibull":      {"[{do: kill-qemu, at: {weibull: {shape: 0, scale: 1s}}}]", "cannot be drawn"},
		"list":              {"[{do: kill-qemu, at: [1s]}]", "distribution"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := plan(t, test.yaml)
			require.ErrorIs(t, err, ErrInvalid)
			assert.ErrorContains(t, err, test.want)
		})
	}
}

func TestFaultSchedule(t *testing.T) {
	p, err := plan(t, "[{do: kill-qemu, at: {exponential: 20s}, every: {exponential: 20s}, times: 5}, {do: kill-node, at: 3s}]")
	require.NoError(t, err)
	a, b := p.Schedule(11), p.Schedule(11)
	assert.Equal(t, a, b, "the same seed gives the same faults")
	assert.NotEqual(t, a, p.Schedule(12))
	require.Len(t, a, 6)
	assert.True(t, slices.IsSortedFunc(a, func(x, y Fault) int { return int(x.At - y.At) }))
	assert.Contains(t, a, Fault{Step: p[1], At: 3 * time.Second, Pick: a[slices.IndexFunc(a, func(f Fault) bool { return f.Step.Do == KillNode })].Pick})
	for _, f := range a {
		assert.True(t, f.Pick >= 0 && f.Pick < 1)
	}
	// A step more does not move those before it.
	longer := append(slices.Clone(p), Step{Do: Partition, At: Draw{a: 1000}})
	assert.Equal(t, a, longer.Schedule(11)[:6])
}

func TestDraw(t *testing.T) {
	for name, test := range map[string]struct {
		draw       Draw
		mean, from float64
		to         float64
	}{
		"fixed":       {Draw{a: 4}, 4, 4, 4},
		"uniform":     {Draw{kind: "uniform", a: 2, b: 6}, 4, 2, 6},
		"exponential": {Draw{kind: "exponential", a: 5}, 5, 0, math.Inf(1)},
		// The mean is scale Γ(1 + 1/shape).
		"weibull": {Draw{kind: "weibull", a: 2, b: 3}, 3 * math.Gamma(1.5), 0, math.Inf(1)},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			const n = 20000
			sum := 0.0
			for range n {
				x := test.draw.draw(r).Seconds()
				require.True(t, x >= test.from && x <= test.to, "%g", x)
				sum += x
			}
			assert.InEpsilon(t, test.mean, sum/n, 0.03)
		})
	}
}

func TestSchedule(t *testing.T) {
	x, err := Parse([]byte(good))
	require.NoError(t, err)
	runs := x.Schedule()
	require.Len(t, runs, 18)
	keys := map[string]bool{}
	seeds := map[int]uint64{}
	for i, r := range runs {
		keys[r.Key] = true
		assert.Equal(t, i/6+1, r.Repetition, "variants take turns")
		if s, ok := seeds[r.Repetition]; ok {
			assert.Equal(t, s, r.Seed, "all variants of a repetition are hurt alike")
		}
		seeds[r.Repetition] = r.Seed
	}
	assert.Len(t, keys, 18, "keys are unique")
	assert.Len(t, seeds, 3)
	assert.NotEqual(t, seeds[1], seeds[2])
	assert.NotEqual(t, runs[0].Variant, runs[6].Variant, "each repetition begins with another variant")

	more := x
	more.Repetitions = 5
	assert.Equal(t, runs, more.Schedule()[:18], "more repetitions leave the first ones alone")
}

func TestLabels(t *testing.T) {
	x, err := Parse([]byte(good))
	require.NoError(t, err)
	var labels []string
	for _, v := range x.Variants {
		labels = append(labels, x.Label(v))
	}
	assert.Equal(t, []string{
		"native, 1 rank", "native, 2 ranks",
		"guests, 1 rank, no checkpoints", "guests, 1 rank, every 10s",
		"guests, 2 ranks, no checkpoints", "guests, 2 ranks, every 10s",
	}, labels)
	one, err := Parse([]byte("name: a\nruns: [{program: bt-mz, class: S}]"))
	require.NoError(t, err)
	assert.Equal(t, "bt-mz S", one.Label(one.Variants[0]))
}

func TestSame(t *testing.T) {
	x, err := Parse([]byte(good))
	require.NoError(t, err)
	y := x
	y.Repetitions, y.Title, y.Claims = 9, "another title", nil
	assert.True(t, x.Same(y))
	y.Seed++
	assert.False(t, x.Same(y))
}

func TestShipped(t *testing.T) {
	xs, err := Shipped()
	require.NoError(t, err)
	require.NotEmpty(t, xs)
	for _, x := range xs {
		text, err := ShippedText(x.Name)
		require.NoError(t, err, "an experiment is found by its name")
		assert.NotEmpty(t, text)
		assert.NotEmpty(t, x.Title)
		assert.NotEmpty(t, x.About)
		ids := map[string]bool{}
		for _, v := range x.Variants {
			ids[v.ID()] = true
		}
		assert.Len(t, ids, len(x.Variants), "%s: ids are unique", x.Name)
	}
	for _, name := range []string{"nothing", "../experiment", ""} {
		_, err = ShippedText(name)
		assert.Error(t, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("name: a\nruns: [{program: heat, faults: p}]\nfaults:\n  p: [{do: stop, at: {weibull: {shape: 1, scale: 1s}}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := Parse(text)
		if err != nil {
			return
		}
		for _, v := range x.Variants {
			_ = x.Label(v)
			x.Faults[v.Faults].Schedule(1)
		}
	})
}
