// Package mdraid reads the state of the kernel's software RAID.
package mdraid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "mdraid"

// Probe reads /proc/mdstat.
//
// Readings (subject md0): missing_disks, which the array should have and has
// not, faulty_disks, which the kernel has thrown out (the text names them),
// inactive 0 or 1 (the text is the array's activity), and, while it is
// rebuilt, rebuild_percent.
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
	arrays, err := proc.MDStat()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, health.Absent("the kernel has no software RAID")
	}
	if err != nil {
		return nil, fmt.Errorf("reading mdstat: %w", err)
	}
	if len(arrays) == 0 {
		return nil, health.Absent("there is no array")
	}
	var readings []health.Reading
	for i := range arrays {
		readings = append(readings, array(&arrays[i])...)
	}
	return readings, nil
}

func array(a *procfs.MDStat) []health.Reading {
	var faulty []string
	for _, d := range a.Devices {
		if d.Faulty {
			faulty = append(faulty, d.Name)
		}
	}
	inactive := 0.0
	if a.ActivityState == "inactive" || a.ActivityState == "broken" {
		inactive = 1
	}
	readings := []health.Reading{
		{Metric: "missing_disks", Subject: a.Name, Value: float64(a.DisksDown), Unit: "disks", Text: fmt.Sprintf("%s, %d of %d disks", a.Type, a.DisksActive, a.DisksTotal)},
		{Metric: "faulty_disks", Subject: a.Name, Value: float64(a.DisksFailed), Unit: "disks", Text: strings.Join(faulty, " ")},
		{Metric: "inactive", Subject: a.Name, Value: inactive, Text: a.ActivityState},
	}
	if a.ActivityState == "recovering" {
		readings = append(readings, health.Reading{Metric: "rebuild_percent", Subject: a.Name, Value: a.BlocksSyncedPct, Unit: "%"})
	}
	return readings
}
