// Package smart asks disks about themselves with smartctl: ATA, SCSI and NVMe.
package smart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "smart"

// Probe runs smartctl for every disk that it finds.
//
// Readings (subject: device and serial number; the text is the model).
// ATA and SCSI: failing 0 or 1, the disk's own judgement. All: error_log,
// selftest_failed, temperature. ATA: prefail, an attribute of imminent failure
// is at its threshold, and the raw values reallocated (5), reported_uncorrectable (187),
// command_timeouts (188), pending (197), offline_uncorrectable (198),
// crc_errors (199). NVMe: critical_warning (bits), media_errors,
// percentage_used, available_spare, available_spare_threshold. SCSI:
// grown_defects, uncorrected_errors, percentage_used.
// Subject the device alone: unreadable 0 or 1, timed_out 0 or 1.
type Probe struct {
	host  *host.Host
	limit time.Duration
	slow  map[string]bool // devices that were cut off last time
}

// deviceLimit bounds one smartctl. A disk that is waking up may take 15 s.
const deviceLimit = 20 * time.Second

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{host: h, limit: deviceLimit, slow: map[string]bool{}} }

// WithLimit sets the limit of one smartctl.
func (p *Probe) WithLimit(d time.Duration) *Probe {
	p.limit = d
	return p
}

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	devices, err := p.scan(ctx)
	if err != nil {
		return nil, err
	}
	// A disk that hangs must not keep the others from being read.
	slices.SortStableFunc(devices, func(a, b device) int { return cmp.Compare(rank(p.slow[a.name()]), rank(p.slow[b.name()])) })
	var readings []health.Reading
	var errs []error
	denied := 0
	for _, d := range devices {
		got, err := p.ask(ctx, d)
		readings = append(readings, got...)
		switch {
		case errors.Is(err, errDenied):
			denied++
		case err != nil:
			errs = append(errs, err)
		}
	}
	if denied == len(devices) {
		return nil, health.Absent("no right to read the disks; root or CAP_SYS_RAWIO and CAP_SYS_ADMIN can")
	}
	return readings, errors.Join(errs...)
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// device is what smartctl --scan says about a disk.
type device struct {
	Path     string `json:"name"`
	Info     string `json:"info_name"`
	Type     string `json:"type"`
	Protocol string `json:"protocol"`
}

// name tells the device from others behind the same controller.
func (d *device) name() string {
	name := strings.TrimPrefix(d.Path, "/dev/")
	if d.behind() {
		name += " " + d.Type
	}
	return name
}

// behind says that the device is one of several behind its path. Otherwise
// smartctl is to find out the type: a scan calls SATA disks SCSI.
func (d *device) behind() bool { return strings.ContainsAny(d.Type, ",+/") }

// maxDevices bounds how many disks are asked.
const maxDevices = 256

func (p *Probe) scan(ctx context.Context) ([]device, error) {
	out, err := p.host.Run(ctx, p.limit, "smartctl", "--json=c", "--scan")
	switch {
	case errors.Is(err, host.ErrNoProgram):
		return nil, health.Absent("smartctl is not installed; the package is called smartmontools")
	case err != nil:
		return nil, fmt.Errorf("looking for disks: %w", err)
	}
	var found struct {
		Devices []device `json:"devices"`
	}
	if err := decode(out.Stdout, &found); err != nil {
		return nil, fmt.Errorf("looking for disks: %w", err)
	}
	if len(found.Devices) == 0 {
		return nil, health.Absent("smartctl finds no disk")
	}
	return found.Devices[:min(len(found.Devices), maxDevices)], nil
}

// errDenied says that this user may not open the device.
var errDenied = errors.New("permission denied")

// ask reads one disk. A sleeping disk is not woken and gives no reading.
func (p *Probe) ask(ctx context.Context, d device) ([]health.Reading, error) {
	argv := []string{"smartctl", "--json=c", "-i", "-H", "-A", "-l", "error", "-n", "standby"}
	if d.behind() {
		argv = append(argv, "-d", d.Type)
	}
	name := d.name()
	out, err := p.host.Run(ctx, p.limit, append(argv, d.Path)...)
	var cut *host.TimeoutError
	if errors.As(err, &cut) {
		p.slow[name] = true
		return []health.Reading{{Metric: "timed_out", Subject: name, Value: 1, Text: err.Error()}}, fmt.Errorf("%s: %w", name, err)
	}
	delete(p.slow, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var a answer
	if err := decode(out.Stdout, &a); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	status := exitStatus(out.Exit)
	switch {
	case a.says("permission denied"):
		return nil, fmt.Errorf("%s: %w", name, errDenied)
	case status.has(exitUsage):
		return nil, fmt.Errorf("%s: smartctl does not understand us: %s", name, a.complaint())
	case status.has(exitOpen) && (a.says("standby") || a.says("sleep")):
		return nil, nil
	}
	readings := []health.Reading{
		{Metric: "timed_out", Subject: name},
		{Metric: "unreadable", Subject: name, Value: float64(rank(status.has(exitOpen))), Text: a.complaint()},
	}
	if status.has(exitOpen) {
		return readings, nil
	}
	subject := strings.TrimSpace(name + " " + a.Serial)
	return append(readings, a.readings(subject, status)...), nil
}
