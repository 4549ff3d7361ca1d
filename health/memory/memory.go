// Package memory reads how much memory is left, how much the kernel has taken
// out of use because it is broken, and how often it ran out.
package memory

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "memory"

// Probe reads /proc/meminfo and /proc/vmstat.
//
// Readings: available_percent, swap_free_percent (where there is swap),
// hardware_corrupted in bytes, oom_kills, a counter since boot.
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
	info, err := proc.Meminfo()
	switch {
	case err == nil:
		readings = amounts(&info)
	case !host.Missing(err):
		errs = append(errs, fmt.Errorf("reading meminfo: %w", err))
	}
	kills, ok, err := p.oomKills()
	if err != nil {
		errs = append(errs, err)
	}
	if ok {
		readings = append(readings, health.Reading{Metric: "oom_kills", Value: kills, Unit: "processes", Counter: true})
	}
	if len(readings) == 0 && len(errs) == 0 {
		return nil, health.Absent("no /proc/meminfo")
	}
	return readings, errors.Join(errs...)
}

func amounts(m *procfs.Meminfo) []health.Reading {
	var readings []health.Reading
	share := func(metric string, part, whole *uint64) {
		if part != nil && whole != nil && *whole > 0 {
			readings = append(readings, health.Reading{
				Metric: metric, Value: 100 * float64(*part) / float64(*whole), Unit: "%",
			})
		}
	}
	share("available_percent", m.MemAvailableBytes, m.MemTotalBytes)
	share("swap_free_percent", m.SwapFreeBytes, m.SwapTotalBytes)
	if m.HardwareCorruptedBytes != nil {
		readings = append(readings, health.Reading{
			Metric: "hardware_corrupted", Value: float64(*m.HardwareCorruptedBytes), Unit: "B",
		})
	}
	return readings
}

// oomKills reads how many processes were killed for want of memory; kernels
// count it since 4.13.
func (p *Probe) oomKills() (v float64, ok bool, err error) {
	text, err := p.host.Text("proc/vmstat")
	if host.Missing(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("reading vmstat: %w", err)
	}
	for line := range strings.Lines(text) {
		if number, found := strings.CutPrefix(line, "oom_kill "); found {
			n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
			if err != nil {
				return 0, false, fmt.Errorf("reading vmstat: oom_kill: %w", err)
			}
			return float64(n), true, nil
		}
	}
	return 0, false, nil
}
