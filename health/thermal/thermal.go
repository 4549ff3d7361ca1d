// Package thermal reads temperatures, fans and how often processors were
// slowed down because they were too hot.
package thermal

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/procfs/sysfs"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "thermal"

const hwmon = "sys/class/hwmon"

// Probe reads hwmon, the thermal zones and the throttle counters.
//
// Readings: temperature in °C (subject: chip and sensor), margin, °C to what
// its driver calls critical, alarm 0 or 1 where the chip has one, fan_rpm; and
// counters since boot core_throttles, the sum over cores, and
// package_throttles (subject package0).
type Probe struct {
	host     *host.Host
	packages map[string]string // processor → package; it does not change
}

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{host: h, packages: map[string]string{}} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	readings, errs := p.chips(ctx)
	for _, part := range []func(context.Context) ([]health.Reading, error){p.zones, p.throttles} {
		got, err := part(ctx)
		readings, errs = append(readings, got...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil || len(readings) > 0 {
		return readings, err
	}
	return nil, health.Absent("no sensor and no throttle counter")
}

// chips reads the hardware monitoring chips.
func (p *Probe) chips(ctx context.Context) (readings []health.Reading, errs []error) {
	for _, chip := range p.host.List(hwmon, "hwmon[0-9]*") {
		if ctx.Err() != nil {
			return readings, append(errs, ctx.Err())
		}
		name, err := p.host.Text(hwmon, chip, "name")
		if err != nil {
			name = "chip"
		}
		dir := hwmon + "/" + chip
		for _, file := range p.host.List(dir, "temp[0-9]*_input") {
			got, err := p.sensor(dir, name+"("+chip+")", strings.TrimSuffix(file, "_input"))
			readings, errs = append(readings, got...), append(errs, err)
		}
		for _, file := range p.host.List(dir, "fan[0-9]*_input") {
			fan := strings.TrimSuffix(file, "_input")
			subject := p.subject(dir, name+"("+chip+")", fan)
			if rpm, ok, err := p.host.Number(dir, file); err == nil && ok {
				readings = append(readings, health.Reading{Metric: "fan_rpm", Subject: subject, Value: rpm, Unit: "1/min"})
			}
			readings = append(readings, p.alarm(dir, fan, subject)...)
		}
	}
	return readings, errs
}

// subject names a sensor by its chip and its label, where it has one.
func (p *Probe) subject(dir, chip, sensor string) string {
	if label, err := p.host.Text(dir, sensor+"_label"); err == nil && label != "" {
		return chip + " " + label
	}
	return chip + " " + sensor
}

// Temperatures beyond these are a sensor that is not connected.
const (
	coldest = -60
	hottest = 200
)

// sensor reads one temperature. A sensor that cannot be read now (its disk
// sleeps, its card is off) is a missing reading.
func (p *Probe) sensor(dir, chip, sensor string) ([]health.Reading, error) {
	milli, ok, err := p.host.Number(dir, sensor+"_input")
	if err != nil || !ok {
		return nil, nil //nolint:nilerr // drivers answer EAGAIN, EIO and more when a part sleeps
	}
	celsius := milli / 1000
	if celsius < coldest || celsius > hottest {
		return nil, nil
	}
	subject := p.subject(dir, chip, sensor)
	readings := []health.Reading{{Metric: "temperature", Subject: subject, Value: celsius, Unit: "°C"}}
	critical, ok, err := p.host.Number(dir, sensor+"_crit")
	if err == nil && ok && critical/1000 > 0 && critical/1000 < hottest {
		readings = append(readings, health.Reading{Metric: "margin", Subject: subject, Value: (critical - milli) / 1000, Unit: "°C"})
	}
	return append(readings, p.alarm(dir, sensor, subject)...), nil
}

// alarm reads the chip's own judgement.
func (p *Probe) alarm(dir, sensor, subject string) []health.Reading {
	worst, known := 0.0, false
	for _, file := range []string{"_crit_alarm", "_emergency_alarm", "_fault", "_alarm"} {
		if v, ok, err := p.host.Number(dir, sensor+file); err == nil && ok {
			worst, known = max(worst, v), true
		}
	}
	if !known {
		return nil
	}
	return []health.Reading{{Metric: "alarm", Subject: subject, Value: worst}}
}

// zones reads the thermal zones that firmware knows.
func (p *Probe) zones(context.Context) ([]health.Reading, error) {
	sys, err := sysfs.NewFS(p.host.Path("sys"))
	if err != nil {
		return nil, nil //nolint:nilerr // no /sys: nothing to read
	}
	stats, err := sys.ClassThermalZoneStats()
	if err != nil {
		return nil, fmt.Errorf("reading thermal zones: %w", err)
	}
	var readings []health.Reading
	for _, z := range stats {
		celsius := float64(z.Temp) / 1000
		if z.ReadErrors != nil || celsius < coldest || celsius > hottest || celsius == 0 {
			continue
		}
		readings = append(readings, health.Reading{
			Metric: "temperature", Subject: "zone" + z.Name + " " + z.Type, Value: celsius, Unit: "°C",
		})
	}
	return readings, nil
}

// throttles adds up the throttle counters per package.
func (p *Probe) throttles(ctx context.Context) ([]health.Reading, error) {
	const cpus = "sys/devices/system/cpu"
	cores, packages := map[string]float64{}, map[string]float64{}
	var order []string
	for _, cpu := range p.host.List(cpus, "cpu[0-9]*") {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		core, ok, err := p.host.Number(cpus, cpu, "thermal_throttle/core_throttle_count")
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		pkg := p.pkg(cpus, cpu)
		if _, seen := cores[pkg]; !seen {
			order = append(order, pkg)
		}
		cores[pkg] += core
		if whole, ok, err := p.host.Number(cpus, cpu, "thermal_throttle/package_throttle_count"); err == nil && ok {
			packages[pkg] = max(packages[pkg], whole)
		}
	}
	var readings []health.Reading
	for _, pkg := range order {
		readings = append(readings,
			health.Reading{Metric: "core_throttles", Subject: pkg, Value: cores[pkg], Unit: "events", Counter: true},
			health.Reading{Metric: "package_throttles", Subject: pkg, Value: packages[pkg], Unit: "events", Counter: true})
	}
	return readings, nil
}

func (p *Probe) pkg(cpus, cpu string) string {
	if name, ok := p.packages[cpu]; ok {
		return name
	}
	name := "package?"
	if id, err := p.host.Text(cpus, cpu, "topology/physical_package_id"); err == nil {
		name = "package" + id
	}
	p.packages[cpu] = name
	return name
}
