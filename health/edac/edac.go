// Package edac reads the memory controllers' error counts from sysfs, in both
// layouts of the kernel: per DIMM or rank, and per row and channel.
package edac

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Name of the probe.
const Name = "edac"

const controllers = "sys/devices/system/edac/mc"

// Probe reads EDAC's counters.
//
// Readings, counters since the driver was loaded: corrected and uncorrected
// per DIMM (subject mc0/dimm1, mc0/rank2 or mc0/csrow0/ch1; the label is the
// text), and per controller what could not be told apart (subject mc0).
type Probe struct{ host *host.Host }

// New returns the probe of a machine.
func New(h *host.Host) *Probe { return &Probe{h} }

// Name implements health.Probe.
func (p *Probe) Name() string { return Name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	mcs := p.host.List(controllers, "mc[0-9]*")
	if len(mcs) == 0 {
		return nil, health.Absent("no memory controller has an EDAC driver")
	}
	r := &reader{host: p.host}
	for _, mc := range mcs {
		if err := ctx.Err(); err != nil {
			return r.readings, err
		}
		r.controller(mc)
	}
	if len(r.readings) == 0 && len(r.errs) == 0 {
		return nil, health.Absent("the memory controllers count nothing")
	}
	return r.readings, errors.Join(r.errs...)
}

// reader collects one run. A file that is missing is a missing reading.
type reader struct {
	host     *host.Host
	readings []health.Reading
	errs     []error
}

func (r *reader) controller(mc string) {
	dir := controllers + "/" + mc
	counted := false
	for _, pattern := range []string{"dimm[0-9]*", "rank[0-9]*"} {
		for _, dimm := range r.host.List(dir, pattern) {
			at := dir + "/" + dimm
			label := r.label(at + "/dimm_label")
			subject := mc + "/" + dimm
			ce := r.count("corrected", subject, label, at+"/dimm_ce_count")
			ue := r.count("uncorrected", subject, label, at+"/dimm_ue_count")
			counted = counted || ce || ue
		}
	}
	if !counted { // an older kernel: DIMMs have labels only, or are not there
		for _, row := range r.host.List(dir, "csrow[0-9]*") {
			r.row(mc, row)
		}
	}
	r.count("corrected", mc, "not told apart", dir+"/ce_noinfo_count")
	r.count("uncorrected", mc, "not told apart", dir+"/ue_noinfo_count")
}

// row reads a row: corrected errors per channel, uncorrected ones for the
// whole row, because those spread over its channels.
func (r *reader) row(mc, row string) {
	dir := controllers + "/" + mc + "/" + row
	counted := false
	var names []string
	for _, file := range r.host.List(dir, "ch[0-9]*_ce_count") {
		ch := file[:len(file)-len("_ce_count")]
		label := r.label(dir + "/" + ch + "_dimm_label")
		if label != "" {
			names = append(names, label)
		}
		if r.count("corrected", mc+"/"+row+"/"+ch, label, dir+"/"+file) {
			counted = true
		}
	}
	labels := strings.Join(names, " ")
	if !counted {
		r.count("corrected", mc+"/"+row, labels, dir+"/ce_count")
	}
	r.count("uncorrected", mc+"/"+row, labels, dir+"/ue_count")
}

func (r *reader) label(file string) string {
	text, err := r.host.Text(file)
	if err != nil {
		return ""
	}
	return text
}

// count adds a reading if the file is there.
func (r *reader) count(metric, subject, label, file string) bool {
	v, ok, err := r.host.Number(file)
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("reading %s of %s: %w", metric, subject, err))
		return false
	}
	if !ok {
		return false
	}
	r.readings = append(r.readings, health.Reading{
		Metric: metric, Subject: subject, Value: v, Unit: "errors", Counter: true, Text: label,
	})
	return true
}
