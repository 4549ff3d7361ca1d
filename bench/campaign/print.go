package campaign

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/mpirun-vft/vft/bench/experiment"
)

// Print writes the figures and what became of the claims as tables of text.
func (c *Campaign) Print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) } // Flush reports errors
	head := []string{c.Experiment.Name, "verified"}
	for _, m := range c.Experiment.Metrics {
		head = append(head, strings.TrimSpace(m+" "+experiment.Units[m]))
	}
	if len(c.Experiment.Baseline) > 0 {
		head = append(head, c.Experiment.Metrics[0]+" to baseline")
	}
	row(head...)
	for _, v := range c.Experiment.Variants {
		cells := []string{c.Experiment.Label(v), c.VerifiedOf(v)}
		for _, m := range c.Experiment.Metrics {
			cells = append(cells, c.Known(v, m).String())
		}
		if len(c.Experiment.Baseline) > 0 {
			cells = append(cells, c.RatioText(v))
		}
		row(cells...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, j := range c.Judge() {
		if _, err := fmt.Fprintf(out, "%s: %s\n", j.Word(), j.Text(c.Experiment)); err != nil {
			return err
		}
	}
	return nil
}

// VerifiedOf says how many of a variant's runs verified.
func (c *Campaign) VerifiedOf(v experiment.Variant) string {
	good := 0
	runs := c.Of(v)
	for _, r := range runs {
		if r.Outcome == Verified {
			good++
		}
	}
	return fmt.Sprintf("%d of %d", good, len(runs))
}

// RatioText is the first metric's ratio to the baseline, or why there is none.
func (c *Campaign) RatioText(v experiment.Variant) string {
	if _, ok := c.Experiment.BaselineOf(v); !ok {
		return "–"
	}
	ratio, err := c.Ratio(v, c.Experiment.Metrics[0])
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%.3f", ratio)
}

// String is the median, and the range between the quartiles where there are
// several figures.
func (s Spread) String() string {
	switch {
	case s.N == 0:
		return "–"
	case s.N == 1 || s.Min == s.Max:
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Q1), number(s.Q3))
}

func number(v float64) string {
	if v >= 1000 || v == float64(int(v)) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// Word is what became of the claim.
func (j Judgement) Word() string {
	switch {
	case errors.Is(j.Err, ErrNotComparable):
		return "not compared"
	case j.Met:
		return "met"
	}
	return "not met"
}

// Text says what was claimed and what was found.
func (j Judgement) Text(x experiment.Experiment) string {
	if j.Err != nil {
		return fmt.Sprintf("%s (%s)", j.Claim.Text, j.Err)
	}
	unit := experiment.Units[j.Claim.Metric]
	return fmt.Sprintf("%s: %s of %q is %s %s, the limit %s %s", j.Claim.Text, j.Claim.Metric, x.Label(j.Variant), number(j.Value.Median), unit, number(j.Limit), unit)
}
