// Package pressure reads the kernel's pressure stall information: the share of
// time in which tasks waited for a processor, memory or a disk.
package pressure

import (
	"context"
	"errors"
	"io/fs"

	"github.com/prometheus/procfs"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "pressure"

// Probe reads /proc/pressure.
//
// Readings in percent of the time (subject cpu, memory or io): some_avg60 and
// some_avg300, in which some task waited, full_avg60 and full_avg300, in which
// all did.
type Probe struct{ host *host.Host }

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{h} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Run implements health.Probe.
func (p *Probe) Run(context.Context) ([]health.Reading, error) {
	proc, err := procfs.NewFS(p.host.Path("proc"))
	if err != nil {
		return nil, health.Absent("no /proc")
	}
	var readings []health.Reading
	var errs []error
	for _, resource := range []string{"cpu", "memory", "io"} {
		stats, err := proc.PSIStatsForResource(resource)
		if errors.Is(err, fs.ErrNotExist) || host.Missing(err) {
			continue // an older kernel, or one started with psi=0
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		readings = append(readings, lines(resource, "some", stats.Some)...)
		readings = append(readings, lines(resource, "full", stats.Full)...)
	}
	if len(readings) == 0 && len(errs) == 0 {
		return nil, health.Absent("the kernel has no pressure stall information (psi=1 turns it on)")
	}
	return readings, errors.Join(errs...)
}

func lines(resource, who string, line *procfs.PSILine) []health.Reading {
	if line == nil {
		return nil
	}
	return []health.Reading{
		{Metric: who + "_avg60", Subject: resource, Value: line.Avg60, Unit: "%"},
		{Metric: who + "_avg300", Subject: resource, Value: line.Avg300, Unit: "%"},
	}
}
