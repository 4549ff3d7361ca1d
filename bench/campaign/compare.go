package campaign

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/mpirun-vft/vft/bench/experiment"
)

// Spread says how figures lie.
type Spread struct {
	N                        int
	Median, Q1, Q3, Min, Max float64
}

// Of sums figures up.
func Of(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	return Spread{
		N: len(values), Median: Quantile(values, 0.5), Q1: Quantile(values, 0.25), Q3: Quantile(values, 0.75),
		Min: slices.Min(values), Max: slices.Max(values),
	}
}

// Quantile interpolates between the two values next to it in order (the seventh
// definition of Hyndman and Fan, 1996); 0 of no values.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	at := q * float64(len(s)-1)
	low := int(math.Floor(at))
	if low+1 >= len(s) {
		return s[low]
	}
	return s[low] + (at-float64(low))*(s[low+1]-s[low])
}

// ErrNotComparable says why figures are not compared.
var ErrNotComparable = errors.New("not compared")

// Figure is a metric of a variant's runs. Runs that did not verify make it
// incomparable: what they lack may be what was slow.
func (c *Campaign) Figure(v experiment.Variant, metric string) (Spread, error) {
	runs := c.Of(v)
	if len(runs) == 0 {
		return Spread{}, fmt.Errorf("%w: %s has not run yet", ErrNotComparable, c.Experiment.Label(v))
	}
	bad := 0
	for _, r := range runs {
		if r.Outcome != Verified {
			bad++
		}
	}
	if bad > 0 {
		return Spread{}, fmt.Errorf("%w: %d of %d runs of %s did not verify", ErrNotComparable, bad, len(runs), c.Experiment.Label(v))
	}
	values := c.values(v, metric)
	if len(values) < len(runs) {
		return Spread{}, fmt.Errorf("%w: %d of %d runs of %s have no %s", ErrNotComparable, len(runs)-len(values), len(runs), c.Experiment.Label(v), metric)
	}
	return Of(values), nil
}

// Known is a metric of those of a variant's runs that verified and have it: to
// be shown, not to be compared.
func (c *Campaign) Known(v experiment.Variant, metric string) Spread { return Of(c.values(v, metric)) }

func (c *Campaign) values(v experiment.Variant, metric string) []float64 {
	var out []float64
	for _, r := range c.Of(v) {
		if f, ok := r.Figures[metric]; ok && r.Outcome == Verified {
			out = append(out, f)
		}
	}
	return out
}

// Pair is a metric of a variant and of its baseline.
func (c *Campaign) Pair(v experiment.Variant, metric string) (mine, base Spread, err error) {
	b, ok := c.Experiment.BaselineOf(v)
	if !ok {
		return mine, base, fmt.Errorf("%w: %s has no baseline", ErrNotComparable, c.Experiment.Label(v))
	}
	if mine, err = c.Figure(v, metric); err != nil {
		return mine, base, err
	}
	if base, err = c.Figure(b, metric); err != nil {
		return mine, base, err
	}
	return mine, base, c.oneEnvironment(v, b)
}

// Ratio divides a variant's median by its baseline's.
func (c *Campaign) Ratio(v experiment.Variant, metric string) (float64, error) {
	mine, base, err := c.Pair(v, metric)
	if err == nil && base.Median == 0 {
		err = fmt.Errorf("%w: the baseline's %s is 0", ErrNotComparable, metric)
	}
	if err != nil {
		return 0, err
	}
	return mine.Median / base.Median, nil
}

func (c *Campaign) oneEnvironment(vs ...experiment.Variant) error {
	seen := 0
	for _, v := range vs {
		for _, r := range c.Of(v) {
			if seen != 0 && r.Environment != seen {
				return fmt.Errorf("%w: they ran in environments %d and %d, which differ", ErrNotComparable, seen, r.Environment)
			}
			seen = r.Environment
		}
	}
	return nil
}

// Judgement is a claim held against one variant's figures.
type Judgement struct {
	Claim   experiment.Claim
	Variant experiment.Variant
	Value   Spread
	Limit   float64
	Met     bool
	Err     error // ErrNotComparable: neither met nor not
}

// Judge holds all claims against the figures.
func (c *Campaign) Judge() []Judgement {
	var out []Judgement
	for _, claim := range c.Experiment.Claims {
		for _, v := range c.Experiment.Variants {
			if v.Matches(claim.Of) {
				out = append(out, c.judge(claim, v))
			}
		}
	}
	return out
}

func (c *Campaign) judge(claim experiment.Claim, v experiment.Variant) Judgement {
	j := Judgement{Claim: claim, Variant: v, Limit: claim.Add}
	if claim.Factor == 0 {
		j.Value, j.Err = c.Figure(v, claim.Metric)
	} else {
		var base Spread
		j.Value, base, j.Err = c.Pair(v, claim.Metric)
		j.Limit += claim.Factor * base.Median
	}
	j.Met = j.Err == nil && j.Value.Median <= j.Limit
	return j
}
