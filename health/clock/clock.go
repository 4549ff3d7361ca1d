// Package clock reads how far the machine's clock may be off.
package clock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "clock"

// Probe asks the kernel, and chrony where it runs, and compares the wall clock
// with the monotonic one.
//
// Readings: synchronized 0 or 1; in seconds, without sign: max_error, which
// the kernel guarantees, offset from true time (chrony's, else what the kernel
// still has to correct), and step, by which the clock was set since the run
// before.
type Probe struct {
	host *host.Host
	last time.Time
}

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{host: h} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// chronyLimit bounds chronyc, which asks a daemon of this machine.
const chronyLimit = 2 * time.Second

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	readings := p.step()
	var errs []error
	kernel, err := p.host.Clock()
	switch {
	case err == nil:
		sync := 0.0
		if kernel.Synchronized {
			sync = 1
		}
		readings = append(readings,
			health.Reading{Metric: "synchronized", Value: sync},
			health.Reading{Metric: "max_error", Value: kernel.MaxError, Unit: "s"})
	case !errors.Is(err, fs.ErrNotExist):
		errs = append(errs, err)
	}
	offset, from, err := p.chrony(ctx)
	switch {
	case err != nil:
		errs = append(errs, err)
	case from != "":
		readings = append(readings, health.Reading{Metric: "offset", Value: math.Abs(offset), Unit: "s", Text: "chrony, from " + from})
	case kernel.Synchronized:
		readings = append(readings, health.Reading{Metric: "offset", Value: math.Abs(kernel.Offset), Unit: "s", Text: "kernel"})
	}
	if len(readings) == 0 && len(errs) == 0 {
		return nil, health.Absent("nothing is known about the clock")
	}
	return readings, errors.Join(errs...)
}

// step is how far the wall clock has moved against the monotonic one.
func (p *Probe) step() []health.Reading {
	if !p.host.Live() {
		return nil
	}
	now := time.Now()
	before := p.last
	p.last = now
	if before.IsZero() {
		return nil
	}
	// Round(0) takes the monotonic time away.
	moved := now.Round(0).Sub(before.Round(0)) - now.Sub(before)
	return []health.Reading{{Metric: "step", Value: moved.Abs().Seconds(), Unit: "s"}}
}

// chrony returns the offset that chronyd knows and its source; no source where
// there is no chronyd.
func (p *Probe) chrony(ctx context.Context) (offset float64, from string, err error) {
	if !p.host.Exists("run/chrony") || !p.host.Has("chronyc") {
		return 0, "", nil
	}
	out, err := p.host.Run(ctx, chronyLimit, "chronyc", "-c", "-n", "tracking")
	if err != nil {
		return 0, "", err
	}
	if out.Exit != 0 {
		return 0, "", nil // chronyd does not run
	}
	return parseTracking(string(out.Stdout))
}

// parseTracking reads chronyc's line: reference, its name, stratum, time,
// system time's offset, ...
func parseTracking(text string) (offset float64, from string, err error) {
	fields := strings.Split(strings.TrimSpace(text), ",")
	if len(fields) < 5 {
		return 0, "", fmt.Errorf("chronyc: %d fields, want at least 5", len(fields))
	}
	if fields[1] == "" {
		return 0, "", nil // no source yet
	}
	offset, err = strconv.ParseFloat(fields[4], 64)
	if err != nil || math.IsNaN(offset) || math.IsInf(offset, 0) {
		return 0, "", fmt.Errorf("chronyc: %q is no offset", fields[4][:min(len(fields[4]), 40)])
	}
	return offset, fields[1], nil
}
