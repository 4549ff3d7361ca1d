// Package script runs a site's own checks, in the conventions that node health
// checks have.
package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Convention says what a script's exit status means.
type Convention string

// Conventions. In all of them 0 means that there is no problem.
const (
	// NHC is LBNL Node Health Check, and whatever a batch system runs in its
	// place: everything but 0 takes the node out of service. Its message may
	// be on either stream.
	NHC Convention = "nhc"
	// NPD is a plug-in of Kubernetes' node-problem-detector: 1 is a problem,
	// everything else means that the plug-in could not tell.
	NPD Convention = "npd"
	// Nagios plug-ins: 1 warning, 2 critical, everything else could not tell.
	Nagios Convention = "nagios"
)

// Probe runs one script.
//
// Reading: problem 0, 1 (warning) or 2 (critical), the script's first line as
// the text. A script that could not tell gives none, and the probe has failed.
type Probe struct {
	host       *host.Host
	name       string
	argv       []string
	convention Convention
	limit      time.Duration
}

// New returns the probe of a script, called script/NAME.
func New(h *host.Host, name string, argv []string, convention Convention, limit time.Duration) *Probe {
	return &Probe{h, "script/" + name, argv, convention, limit}
}

// Name implements health.Probe.
func (p *Probe) Name() string { return p.name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	out, err := p.host.Run(ctx, p.limit, p.argv...)
	switch {
	case errors.Is(err, host.ErrNoProgram):
		return nil, health.Absent("there is no program %s", p.argv[0])
	case err != nil:
		return nil, err
	}
	text := firstLine(out.Stdout)
	if text == "" {
		text = firstLine(out.Stderr)
	}
	problem, told := p.convention.problem(out.Exit)
	if !told {
		return nil, fmt.Errorf("it could not tell (exit status %d): %s", out.Exit, text)
	}
	return []health.Reading{{Metric: "problem", Value: problem, Text: text}}, nil
}

// problem maps an exit status.
func (c Convention) problem(exit int) (v float64, told bool) {
	switch {
	case exit == 0:
		return 0, true
	case c == NHC:
		return 2, true
	case c == NPD && exit == 1:
		return 2, true
	case c == Nagios && (exit == 1 || exit == 2):
		return float64(exit), true
	}
	return 0, false
}

// firstLine is the first line that is not empty; Nagios' performance data
// behind a bar is left out.
func firstLine(out []byte) string {
	for line := range bytes.Lines(out) {
		text, _, _ := strings.Cut(string(line), "|")
		if text = strings.TrimSpace(text); text != "" {
			return text
		}
	}
	return ""
}
