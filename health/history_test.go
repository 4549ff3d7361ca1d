package health

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func fill(counter bool, horizon float64, points ...float64) *history {
	h := &history{}
	for i := 0; i < len(points); i += 2 {
		h.add(points[i], points[i+1], counter, horizon)
	}
	return h
}

func TestDelta(t *testing.T) {
	for name, test := range map[string]struct {
		h      *history
		window float64
		want   float64
	}{
		"nothing":                       {&history{}, 10, math.NaN()},
		"no history at all":             {nil, 10, math.NaN()},
		"one value":                     {fill(true, 60, 1, 5), 10, math.NaN()},
		"counter":                       {fill(true, 60, 0, 5, 10, 8), 60, 3},
		"within the window":             {fill(true, 60, 0, 0, 10, 10, 20, 20), 10, 10},
		"between two samples":           {fill(true, 60, 0, 0, 10, 10, 20, 20), 5, 5},
		"counter reset":                 {fill(true, 60, 0, 100, 10, 3, 20, 5), 60, 5},
		"counter reset to zero":         {fill(true, 60, 0, 100, 10, 0), 60, 0},
		"gauge falls":                   {fill(false, 60, 0, 10, 10, 4), 60, -6},
		"before the machine restarted":  {fill(true, 60, 100, 5, 110, 9, 3, 1, 4, 2), 60, 1},
		"the same time again":           {fill(false, 60, 0, 1, 5, 2, 5, 3), 60, 2},
		"only older than the horizon":   {fill(true, 60, 0, 0, 1000, 7), 60, 7 * 60.0 / 1000},
		"runs of equal values are kept": {fill(true, 600, 0, 0, 10, 1, 20, 1, 30, 1, 40, 2), 15, 1},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.h.delta(test.window)
			if math.IsNaN(test.want) {
				assert.True(t, math.IsNaN(got), got)
				return
			}
			assert.InDelta(t, test.want, got, 1e-9)
		})
	}
}

func TestLeaky(t *testing.T) {
	assert.InDelta(t, 10, fill(true, 60, 0, 0, 1, 10).leaky(60, 60), 1e-9, "nothing had time to leak out")
	assert.InDelta(t, 4, fill(true, 60, 0, 0, 1, 10, 7, 10).leaky(60, 60), 1e-9, "one leaks out per second")
	assert.InDelta(t, 0, fill(true, 60, 0, 0, 1, 10, 50, 10).leaky(60, 60), 1e-9, "never less than empty")
	assert.True(t, math.IsNaN((*history)(nil).leaky(1, 1)))
}

// However a counter is sampled and reset, delta over all of the past is the
// sum of what it counted, and thinning loses at most a thirtieth of the age.
func TestHistoryProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const horizon = 100_000
		h := &history{}
		type point struct{ at, sum float64 }
		var all []point
		now, raw, sum := 0.0, 0.0, 0.0
		for i := range rapid.IntRange(2, 1500).Draw(t, "samples") {
			now += float64(rapid.IntRange(1, 60).Draw(t, "step"))
			grown := float64(rapid.IntRange(0, 3).Draw(t, "grown"))
			if rapid.IntRange(0, 50).Draw(t, "reset") == 0 {
				raw = 0
			}
			if i > 0 {
				// A reset shows only if the counter is lower afterwards.
				if raw+grown < h.Raw {
					sum += raw + grown
				} else {
					sum += raw + grown - h.Raw
				}
			}
			raw += grown
			h.add(now, raw, true, horizon)
			all = append(all, point{now, sum})
		}
		require.NoError(t, h.check())
		assert.LessOrEqual(t, len(h.Samples), 900)
		if len(h.Samples) < 2 {
			return
		}
		window := float64(rapid.IntRange(1, horizon/2).Draw(t, "window"))
		got := h.delta(window)
		// The true growth since a moment up to 3.2 % earlier or later.
		since := func(at float64) float64 {
			base := all[0].sum
			for _, p := range all {
				if p.at <= at {
					base = p.sum
				}
			}
			return sum - base
		}
		slack := 0.035*window + 61
		assert.GreaterOrEqual(t, got, since(now-window+slack)-1e-6)
		assert.LessOrEqual(t, got, since(now-window-slack)+1e-6)
	})
}
