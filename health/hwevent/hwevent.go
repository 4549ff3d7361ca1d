// Package hwevent counts machine checks and other hardware events that the
// kernel reported: from rasdaemon's database where there is one, else from the
// kernel log; and from the kernel log what rasdaemon does not know.
package hwevent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "hwevent"

// Probe follows the events.
//
// Readings, counters since boot: corrected and uncorrected hardware errors
// (subject cpu0/bank7, a DIMM's label, a PCIe address, or firmware), pages,
// the number of different pages of memory with corrected errors (subject: a
// DIMM's label), and kernel_events (subject: kind and part, "io_error sda";
// the text is the last message). Kinds that did not occur have no reading,
// except kernel_log, whose counter says that the log is followed.
type Probe struct {
	log   kernelLog
	ras   database
	found counts
}

// New returns the probe of a machine.
func New(h *host.Host) *Probe {
	return &Probe{log: kernelLog{host: h, fd: -1}, ras: database{host: h}, found: newCounts()}
}

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Close closes the kernel log.
func (p *Probe) Close() error { return p.log.close() }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	recorded, dbErr := p.ras.read(ctx, &p.found)
	logErr := p.log.read(ctx, func(message string) { p.found.message(message, !recorded) })
	var errs []error
	if dbErr != nil {
		errs = append(errs, fmt.Errorf("reading rasdaemon's database: %w", dbErr))
	}
	switch {
	case logErr == nil:
		p.found.add("kernel_events", "kernel_log", 0, "")
	case !errors.Is(logErr, health.ErrAbsent):
		errs = append(errs, logErr)
	case !recorded && dbErr == nil:
		return nil, logErr
	}
	return p.found.readings(), errors.Join(errs...)
}

// Bounds of what is remembered: subjects and pages come from outside.
const (
	maxSubjects = 512
	maxPages    = 4096
)

type key struct{ metric, subject string }

type count struct {
	n    float64
	text string
}

// counts adds events up.
type counts struct {
	byKey map[key]*count
	pages map[string]map[uint64]bool
}

func newCounts() counts {
	return counts{map[key]*count{}, map[string]map[uint64]bool{}}
}

func (c *counts) add(metric, subject string, n float64, text string) {
	k := key{metric, subject}
	v := c.byKey[k]
	if v == nil {
		if len(c.byKey) >= maxSubjects {
			k.subject, _, _ = strings.Cut(subject, " ")
			if v = c.byKey[k]; v == nil && len(c.byKey) >= 2*maxSubjects {
				return
			}
		}
		if v == nil {
			v = &count{}
			c.byKey[k] = v
		}
	}
	v.n += n
	if text != "" {
		v.text = text
	}
}

// page notes that a page of a DIMM had a corrected error.
func (c *counts) page(label string, page uint64) {
	set := c.pages[label]
	if set == nil {
		if len(c.pages) >= maxSubjects {
			return
		}
		set = map[uint64]bool{}
		c.pages[label] = set
	}
	if len(set) < maxPages {
		set[page] = true
	}
}

func (c *counts) readings() []health.Reading {
	readings := make([]health.Reading, 0, len(c.byKey)+len(c.pages))
	for k, v := range c.byKey {
		readings = append(readings, health.Reading{
			Metric: k.metric, Subject: k.subject, Value: v.n, Unit: "events", Counter: true, Text: v.text,
		})
	}
	for label, set := range c.pages {
		readings = append(readings, health.Reading{
			Metric: "pages", Subject: label, Value: float64(len(set)), Unit: "pages", Counter: true,
		})
	}
	slices.SortFunc(readings, func(a, b health.Reading) int {
		return strings.Compare(a.Metric+"\x00"+a.Subject, b.Metric+"\x00"+b.Subject)
	})
	return readings
}

// uncorrectedBit is UC of a machine check's status (Intel SDM 3B, MCi_STATUS).
const uncorrectedBit = 1 << 61

// machineCheck counts a machine check by the status of its bank.
func (c *counts) machineCheck(cpu, bank, status uint64) {
	metric := "corrected"
	if status&uncorrectedBit != 0 {
		metric = "uncorrected"
	}
	c.add(metric, fmt.Sprintf("cpu%d/bank%d", cpu, bank), 1, fmt.Sprintf("status %016x", status))
}
