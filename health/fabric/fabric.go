// Package fabric reads the error counters and link changes of network
// interfaces and InfiniBand ports.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/sysfs"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "fabric"

// Probe reads /proc/net/dev, /sys/class/net and /sys/class/infiniband.
//
// Readings of interfaces that stand for hardware (subject eth0), counters but
// for up: rx_errors, tx_errors, rx_drops, carrier_changes, up 0 or 1. Of
// InfiniBand ports (subject mlx5_0/1): up, link_downed, link_recoveries,
// symbol_errors, rx_errors, tx_discards, integrity_errors, and for RoCE
// out_of_sequence and ack_timeouts.
type Probe struct{ host *host.Host }

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{h} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	readings, errs := p.interfaces(ctx)
	ports, err := p.infiniband(ctx)
	readings, errs = append(readings, ports...), append(errs, err)
	if err := errors.Join(errs...); err != nil || len(readings) > 0 {
		return readings, err
	}
	return nil, health.Absent("no network interface stands for hardware")
}

func (p *Probe) interfaces(ctx context.Context) (readings []health.Reading, errs []error) {
	const class = "sys/class/net"
	counters := procfs.NetDev{}
	if proc, err := procfs.NewFS(p.host.Path("proc")); err == nil {
		if counters, err = proc.NetDev(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("reading net/dev: %w", err))
		}
	}
	for _, name := range p.host.List(class, "*") {
		if ctx.Err() != nil {
			return readings, append(errs, ctx.Err())
		}
		if !p.host.Exists(class, name, "device") {
			continue // loopback, bridge, tap and the like
		}
		count := func(metric string, v uint64, unit string) {
			readings = append(readings, health.Reading{Metric: metric, Subject: name, Value: float64(v), Unit: unit, Counter: true})
		}
		if c, ok := counters[name]; ok {
			count("rx_errors", c.RxErrors, "frames")
			count("tx_errors", c.TxErrors, "frames")
			count("rx_drops", c.RxDropped, "frames")
		}
		changes, ok, err := p.host.Number(class, name, "carrier_changes")
		if err != nil {
			errs = append(errs, err)
		}
		if ok {
			readings = append(readings, health.Reading{Metric: "carrier_changes", Subject: name, Value: changes, Unit: "changes", Counter: true})
		}
		if state, err := p.host.Text(class, name, "operstate"); err == nil && state != "unknown" {
			readings = append(readings, up(name, state == "up", state))
		}
	}
	return readings, errs
}

func up(subject string, is bool, state string) health.Reading {
	r := health.Reading{Metric: "up", Subject: subject, Text: state}
	if is {
		r.Value = 1
	}
	return r
}

// portActive is the state of a port that carries traffic.
const portActive = 4

func (p *Probe) infiniband(ctx context.Context) ([]health.Reading, error) {
	sys, err := sysfs.NewFS(p.host.Path("sys"))
	if err != nil {
		return nil, nil //nolint:nilerr // no /sys: nothing to read
	}
	devices, err := sys.InfiniBandClassDevices()
	if err != nil {
		return nil, nil //nolint:nilerr // no InfiniBand
	}
	var readings []health.Reading
	var errs []error
	for _, name := range devices {
		if err := ctx.Err(); err != nil {
			return readings, err
		}
		device, err := sys.InfiniBandDevice(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("reading %s: %w", name, err))
			continue
		}
		for _, number := range slices.Sorted(maps.Keys(device.Ports)) {
			port := device.Ports[number]
			readings = append(readings, portReadings(name+"/"+strconv.FormatUint(uint64(number), 10), &port)...)
		}
	}
	return readings, errors.Join(errs...)
}

func portReadings(subject string, port *sysfs.InfiniBandPort) []health.Reading {
	readings := []health.Reading{up(subject, port.StateID == portActive, port.State+", "+port.PhysState)}
	for _, c := range []struct {
		metric string
		value  *uint64
	}{
		{"link_downed", port.Counters.LinkDowned},
		{"link_recoveries", port.Counters.LinkErrorRecovery},
		{"symbol_errors", port.Counters.SymbolError},
		{"rx_errors", port.Counters.PortRcvErrors},
		{"tx_discards", port.Counters.PortXmitDiscards},
		{"integrity_errors", port.Counters.LocalLinkIntegrityErrors},
		{"out_of_sequence", port.HwCounters.OutOfSequence},
		{"ack_timeouts", port.HwCounters.LocalAckTimeoutErr},
	} {
		if c.value != nil {
			readings = append(readings, health.Reading{Metric: c.metric, Subject: subject, Value: float64(*c.value), Unit: "errors", Counter: true})
		}
	}
	return readings
}
