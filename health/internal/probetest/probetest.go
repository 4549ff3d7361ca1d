// Package probetest helps to test probes.
package probetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mpirun-vft/vft/health"
)

// Lines writes readings as "metric [subject] = value unit (text)", counters
// with "+=".
func Lines(readings []health.Reading) []string {
	lines := make([]string, 0, len(readings))
	for _, r := range readings {
		var b strings.Builder
		b.WriteString(r.Metric)
		if r.Subject != "" {
			fmt.Fprintf(&b, " [%s]", r.Subject)
		}
		sign := "="
		if r.Counter {
			sign = "+="
		}
		fmt.Fprintf(&b, " %s %g", sign, r.Value)
		if r.Unit != "" {
			b.WriteString(" " + r.Unit)
		}
		if r.Text != "" {
			b.WriteString(" (" + r.Text + ")")
		}
		lines = append(lines, b.String())
	}
	return lines
}

// Read runs a probe, which has to succeed, and returns its readings as lines.
func Read(t testing.TB, p health.Probe) []string {
	t.Helper()
	readings, err := p.Run(t.Context())
	if err != nil {
		t.Fatalf("probe %s: %v", p.Name(), err)
	}
	return Lines(readings)
}

// Absent runs a probe, which has to find nothing to read, and returns why.
func Absent(t testing.TB, p health.Probe) string {
	t.Helper()
	readings, err := p.Run(t.Context())
	if !errors.Is(err, health.ErrAbsent) {
		t.Fatalf("probe %s: error %v, want one that says that nothing is there", p.Name(), err)
	}
	if len(readings) > 0 {
		t.Fatalf("probe %s: readings of what is not there: %v", p.Name(), Lines(readings))
	}
	return err.Error()
}
