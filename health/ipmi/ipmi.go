// Package ipmi asks the baseboard management controller for its sensors and
// its event log, with ipmitool.
package ipmi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "ipmi"

// Probe runs `ipmitool sdr elist` and `ipmitool sel elist`.
//
// Readings: sensor_state 0 ok, 1 non-critical, 2 critical, 3 non-recoverable
// (subject: the sensor, the text its reading);
// sel_events, a counter of log entries since the probe began (subject: memory,
// processor, power, temperature, fan, voltage, drive, bus or other; the text is
// the last entry), and sel_entries, how many were looked at.
type Probe struct {
	host *host.Host
	sel  log
}

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{host: h} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// limit bounds one ipmitool: a controller may be slow, and is asked for
// hundreds of sensors one by one.
const limit = 45 * time.Second

// recent is how many entries of the event log are read.
const recent = "100"

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	device := ""
	for _, d := range []string{"dev/ipmi0", "dev/ipmi/0", "dev/ipmidev/0"} {
		if p.host.Exists(d) {
			device = d
		}
	}
	if device == "" {
		return nil, health.Absent("no IPMI device: no controller, or no driver (modprobe ipmi_si ipmi_devintf)")
	}
	if !p.host.MayWrite(device) {
		return nil, health.Absent("no right to open /%s; root can", device)
	}
	sensors, err := p.ask(ctx, "sdr", "elist")
	if errors.Is(err, host.ErrNoProgram) {
		return nil, health.Absent("ipmitool is not installed")
	}
	var errs []error
	var readings []health.Reading
	if err != nil {
		errs = append(errs, err)
	} else {
		readings = parseSensors(sensors)
	}
	entries, err := p.ask(ctx, "sel", "elist", "last", recent)
	if err != nil {
		return readings, errors.Join(append(errs, err)...)
	}
	return append(readings, p.sel.take(entries)...), errors.Join(errs...)
}

func (p *Probe) ask(ctx context.Context, args ...string) (string, error) {
	out, err := p.host.Run(ctx, limit, append([]string{"ipmitool"}, args...)...)
	if err != nil {
		return "", err
	}
	if out.Exit != 0 && len(out.Stdout) == 0 {
		return "", fmt.Errorf("ipmitool %s: %s", strings.Join(args, " "), strings.TrimSpace(string(out.Stderr)))
	}
	return string(out.Stdout), nil
}

// parseSensors reads lines such as
//
//	Inlet Temp       | 04h | ok  |  7.1 | 23 degrees C
//
// A number is judged by the controller's thresholds. "ok" of a sensor without
// a number says that it was read, not that all is well: its states are text.
func parseSensors(text string) []health.Reading {
	var readings []health.Reading
	for line := range strings.Lines(text) {
		fields := strings.Split(line, "|")
		if len(fields) != 5 {
			continue
		}
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		state, known := sensorState(fields[2])
		if !known || fields[0] == "" || fields[4] == "" {
			continue
		}
		if state == 0 {
			state = wordState(fields[4])
		}
		readings = append(readings, health.Reading{
			Metric: "sensor_state", Subject: fields[0], Value: state, Text: fields[4],
		})
	}
	return readings
}

// sensorState reads ok, nc, cr and nr, with or without u or l for upper and
// lower before them; ns is a sensor that has no reading.
func sensorState(s string) (float64, bool) {
	if s == "ok" {
		return 0, true
	}
	if len(s) == 3 && (s[0] == 'u' || s[0] == 'l') {
		s = s[1:]
	}
	switch s {
	case "nc":
		return 1, true
	case "cr":
		return 2, true
	case "nr":
		return 3, true
	}
	return 0, false
}

// bad are states of sensors without a number that say that something is wrong,
// in the words of IPMI's tables of sensor types.
var bad = []struct {
	words string
	state float64
}{
	{"predictive failure", 1},
	{"redundancy lost", 1},
	{"failure detected", 2},
	{"ac lost", 2},
	{"drive fault", 2},
	{"uncorrectable ecc", 2},
	{"ierr", 2},
	{"thermal trip", 3},
	{"non-recoverable", 3},
}

func wordState(text string) float64 {
	state := 0.0
	low := strings.ToLower(text)
	for _, b := range bad {
		if strings.Contains(low, b.words) {
			state = max(state, b.state)
		}
	}
	return state
}
