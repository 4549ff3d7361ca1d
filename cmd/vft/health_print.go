package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/health"
)

// seenOnce is what one round of probes gave.
type seenOnce struct {
	Probes  []health.Report `json:"probes"`
	Verdict health.Verdict  `json:"verdict"`
	Pending []health.Reason `json:"pending,omitempty"`
	// Cost is the share of one core that probing takes at its intervals.
	Cost float64 `json:"cost"`
}

// cost adds up what the probes take of one core.
func cost(probes []health.Scheduled, reports []health.Report) float64 {
	sum := 0.0
	for i, r := range reports {
		sum += r.CPU.Seconds() / probes[i].Every.Seconds()
	}
	return sum
}

func (s *seenOnce) print(w io.Writer) error {
	err := table(w, "probe\tmetric\tsubject\tvalue\tunit\ttext", func(row func(...any)) {
		for _, report := range s.Probes {
			for _, r := range report.Readings {
				if !slices.Contains([]string{health.MetricState, health.MetricSeconds, health.MetricCPU}, r.Metric) {
					row(r.Probe, r.Metric, dash(r.Subject), strconv.FormatFloat(r.Value, 'g', 8, 64), dash(r.Unit), r.Text)
				}
			}
		}
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(w) //nolint:errcheck // the last write tells
	err = table(w, "probe\tstate\ttook\tcpu\treadings\twhy", func(row func(...any)) {
		for _, r := range s.Probes {
			row(r.Probe, r.Outcome, short(int64(r.Took)), short(int64(r.CPU)), len(r.Readings)-3, r.Reason)
		}
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "cost %.4f %% of one core at these intervals\n\n%s\n", 100*s.Cost, verdictLine(s.Verdict))
	for _, r := range s.Verdict.Reasons {
		_, err = fmt.Fprintln(w, reasonLine(r))
	}
	for _, r := range s.Pending {
		_, err = fmt.Fprintf(w, "%s (not for long enough yet)\n", reasonLine(r))
	}
	return err
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func verdictLine(v health.Verdict) string {
	if len(v.Reasons) == 0 {
		return "verdict " + v.State.String()
	}
	return fmt.Sprintf("verdict %s, confidence %.2f, lead %s", v.State, v.Confidence, lead(v.Lead))
}

func lead(d time.Duration) string {
	if d >= time.Minute {
		d = d.Round(time.Minute)
	} else {
		d = d.Round(time.Second)
	}
	return health.Span(d).String()
}

func reasonLine(r health.Reason) string {
	return fmt.Sprintf("  %s %.2f  %s: %s", r.Level, r.Confidence, r.Rule, r.Evidence)
}

func printOutcome(w io.Writer, r health.Report) {
	text := strings.TrimSpace("probe " + r.Probe + " " + r.Outcome.String())
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	fmt.Fprintln(w, text) //nolint:errcheck // a closed pipe ends the process
}

// printChange writes one change as text or as one line of JSON.
func (p *probing) printChange(c health.Change) {
	if p.g.json {
		if err := printLine(p.out, c); err != nil {
			fmt.Fprintf(os.Stderr, "vft: %v\n", err)
		}
		return
	}
	when := c.At.Format(time.RFC3339)
	if c.From != c.Verdict.State {
		fmt.Fprintf(p.out, "%s %s → %s\n", when, c.From, verdictLine(c.Verdict)) //nolint:errcheck // a closed pipe ends the process
	}
	for _, r := range c.Raised {
		fmt.Fprintf(p.out, "%s raised%s\n", when, reasonLine(r)) //nolint:errcheck // likewise
	}
	for _, r := range c.Cleared {
		fmt.Fprintf(p.out, "%s cleared%s\n", when, reasonLine(r)) //nolint:errcheck // likewise
	}
}
