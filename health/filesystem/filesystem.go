// Package filesystem reads how full file systems are and whether they were
// made read-only, without being held up by one that does not answer.
package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "filesystem"

// Probe reads the mount table and asks every file system on a disk or a file
// server how full it is.
//
// Readings (subject: mount point, the text names source and type): read_only 0
// or 1, used_percent, inodes_used_percent, and stalled: 1 when it did not
// answer, or has not answered since an earlier run.
type Probe struct {
	host    *host.Host
	waiting map[string]<-chan struct{} // mounts that were asked and have not answered
}

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{host: h, waiting: map[string]<-chan struct{}{}} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// maxMounts bounds how many file systems are asked.
const maxMounts = 256

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	proc, err := procfs.NewFS(p.host.Path("proc"))
	if err != nil {
		return nil, health.Absent("no /proc")
	}
	mounts, err := proc.GetMounts()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, health.Absent("no mount table")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	var readings []health.Reading
	var errs []error
	for _, m := range real(mounts) {
		if err := ctx.Err(); err != nil {
			return readings, err
		}
		got, err := p.mount(ctx, m)
		readings = append(readings, got...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(readings) == 0 && len(errs) == 0 {
		return nil, health.Absent("no file system on a disk or a file server is mounted")
	}
	return readings, errors.Join(errs...)
}

// served are types of file systems whose source is no device of this machine.
var served = []string{"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "9p", "virtiofs"}

// images are types that are always read-only and always full.
var images = []string{"squashfs", "iso9660", "erofs", "cramfs", "udf"}

// real picks what holds data: one mount point per file system, the first.
func real(mounts []*procfs.MountInfo) []*procfs.MountInfo {
	seen := map[string]bool{}
	var list []*procfs.MountInfo
	for _, m := range mounts {
		device := strings.HasPrefix(m.Source, "/") && !slices.Contains(images, m.FSType)
		if (!device && !slices.Contains(served, m.FSType)) || seen[m.MajorMinorVer] || len(list) == maxMounts {
			continue
		}
		seen[m.MajorMinorVer] = true
		list = append(list, m)
	}
	return list
}

func (p *Probe) mount(ctx context.Context, m *procfs.MountInfo) ([]health.Reading, error) {
	point := unescape(m.MountPoint)
	what := unescape(m.Source) + " " + m.FSType
	readings := []health.Reading{{Metric: "read_only", Subject: point, Value: readOnly(m), Text: what}}
	if asked, ok := p.waiting[point]; ok {
		select {
		case <-asked:
			delete(p.waiting, point)
		default:
			return append(readings, health.Reading{Metric: "stalled", Subject: point, Value: 1, Text: what}), nil
		}
	}
	usage, pending, err := p.host.Usage(ctx, point)
	switch {
	case errors.Is(err, host.ErrStalled):
		p.waiting[point] = pending
		return append(readings, health.Reading{Metric: "stalled", Subject: point, Value: 1, Text: what}), nil
	case errors.Is(err, fs.ErrNotExist), host.Missing(err):
		return readings, nil // unmounted since, or not for us
	case err != nil:
		return readings, err
	}
	return append(readings,
		health.Reading{Metric: "stalled", Subject: point, Text: what},
		health.Reading{Metric: "used_percent", Subject: point, Value: usage.UsedPercent, Unit: "%", Text: what},
		health.Reading{Metric: "inodes_used_percent", Subject: point, Value: usage.InodesPercent, Unit: "%", Text: what},
	), nil
}

// readOnly says whether writing is impossible: the mount, the file system, or
// the file system after an error.
func readOnly(m *procfs.MountInfo) float64 {
	for _, options := range []map[string]string{m.Options, m.SuperOptions} {
		for _, ro := range []string{"ro", "emergency_ro", "shutdown"} {
			if _, ok := options[ro]; ok {
				return 1
			}
		}
	}
	return 0
}

// unescape undoes the kernel's octal escapes of blanks in the mount table.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
