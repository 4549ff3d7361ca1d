// Package pcie reads the counters of PCIe's Advanced Error Reporting.
package pcie

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "pcie"

const devices = "sys/bus/pci/devices"

// Probe reads aer_dev_correctable, aer_dev_nonfatal and aer_dev_fatal of every
// device that has them.
//
// Readings, counters since boot: corrected, nonfatal, fatal (subject the
// device's address; the text names the kinds of errors).
type Probe struct{ host *host.Host }

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{h} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	var readings []health.Reading
	var errs []error
	kinds := []struct{ metric, file string }{
		{"corrected", "aer_dev_correctable"}, {"nonfatal", "aer_dev_nonfatal"}, {"fatal", "aer_dev_fatal"},
	}
	for _, dev := range p.host.List(devices, "*") {
		if err := ctx.Err(); err != nil {
			return readings, err
		}
		for _, k := range kinds {
			text, err := p.host.Text(devices, dev, k.file)
			if host.Missing(err) {
				break // a device has all three or none
			}
			if err == nil {
				var r health.Reading
				if r, err = parse(text); err == nil {
					r.Metric, r.Subject = k.metric, dev
					readings = append(readings, r)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("reading %s of %s: %w", k.file, dev, err))
			}
		}
	}
	if len(readings) == 0 && len(errs) == 0 {
		return nil, health.Absent("no PCIe device reports errors")
	}
	return readings, errors.Join(errs...)
}

// parse reads lines of a kind and a count. The last is the total.
func parse(text string) (health.Reading, error) {
	r := health.Reading{Unit: "errors", Counter: true}
	var sum, total float64
	hasTotal := false
	var kinds []string
	for line := range strings.Lines(text) {
		kind, number, ok := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
		if !ok || err != nil {
			return r, fmt.Errorf("%q is not a kind and a count", strings.TrimSpace(line[:min(len(line), 40)]))
		}
		if strings.HasPrefix(kind, "TOTAL_") {
			total, hasTotal = float64(n), true
			continue
		}
		sum += float64(n)
		if n > 0 {
			kinds = append(kinds, kind+" "+number)
		}
	}
	r.Value, r.Text = sum, strings.Join(kinds, ", ")
	if hasTotal {
		r.Value = total
	}
	return r, nil
}
