package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/bench/experiment"
)

// executor makes the runs of an experiment.
type executor struct {
	bin string // directory of the binaries
	x   experiment.Experiment
}

// execute makes one run. Its error says that the run could not be made at all;
// whatever the program or vft did is in the record.
func (e executor) execute(ctx context.Context, r experiment.Run) (rec campaign.Run, err error) {
	rec = campaign.Run{Key: r.Key, Variant: r.Variant, Repetition: r.Repetition, Seed: r.Seed, Load: load(), Figures: map[string]float64{}}
	w, err := workloadOf(e.x, r.Variant, e.bin)
	if err != nil {
		return rec, err
	}
	dir, err := os.MkdirTemp("", "vft-bench-")
	if err != nil {
		return rec, fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if r.Variant.Where == experiment.Native {
		err = e.native(ctx, w, dir, &rec)
	} else {
		err = e.guests(ctx, w, dir, r, &rec)
	}
	if ctx.Err() != nil {
		// Interrupted: what happened says nothing about the program.
		return rec, context.Cause(ctx)
	}
	rec.Derive()
	return rec, err
}

// native runs the program with mpirun on this machine.
func (e executor) native(ctx context.Context, w workload, dir string, rec *campaign.Run) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(e.x.Timeout))
	defer cancel()
	argv := w.nativeCommand(rec.Variant)
	cmd := command(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	// Open MPI refuses to run as root unless told twice; in guests nobody minds.
	cmd.Env = append(os.Environ(), "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
	var stdout transcript
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	rec.Begun = time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", argv[0], err)
	}
	err := cmd.Wait()
	rec.Figures["total"] = time.Since(rec.Begun).Seconds()
	rec.Figures["job"] = rec.Figures["total"]
	conclude(ctx, w, rec, &stdout, stderr.String(), err)
	return nil
}

// guests runs the program with mpirun-vft on a lab of its own.
func (e executor) guests(ctx context.Context, w workload, dir string, r experiment.Run, rec *campaign.Run) (err error) {
	plan := e.x.Faults[r.Variant.Faults]
	env, faults := arms(plan.Schedule(r.Seed))
	lab := &cluster{bin: e.bin, dir: filepath.Join(dir, "lab"), env: env}
	var options []string
	if e.x.Health != "" {
		rules := filepath.Join(dir, "health.yaml")
		if err := os.WriteFile(rules, []byte(e.x.Health), 0o600); err != nil {
			return fmt.Errorf("writing health rules: %w", err)
		}
		options = []string{"--health-rules", rules}
	}
	if err := lab.up(ctx, r.Variant.Nodes, options...); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.stop(ctx)) }()
	var nodes []struct{ Accelerator string }
	if err := lab.ask(ctx, &nodes, "node", "ls"); err != nil {
		return err
	}
	if len(nodes) > 0 {
		rec.Accelerator = nodes[0].Accelerator
	}
	inject := newInjector(lab, faults)
	if err := inject.prepare(ctx); err != nil {
		return err
	}
	runCtx, cancel := context.WithTimeout(ctx, time.Duration(e.x.Timeout))
	defer cancel()
	rec.Begun = time.Now()
	j, err := lab.start(runCtx, w.guestOptions(r.Variant)...)
	if err != nil {
		return err
	}
	for ev := range j.events {
		inject.see(runCtx, ev)
		rec.Events = append(rec.Events, campaign.Event{
			At: ev.Time.Sub(rec.Begun).Seconds(), Kind: ev.Kind, Text: ev.Text, Figures: ev.Figures, Labels: ev.Labels,
		})
	}
	<-j.ended
	rec.Figures["total"] = time.Since(rec.Begun).Seconds()
	rec.Faults = append(inject.close(rec.Begun), armed(plan)...)
	conclude(runCtx, w, rec, &j.stdout, j.stderr.String(), j.err)
	return nil
}

// conclude decides what a run's outcome is.
func conclude(ctx context.Context, w workload, rec *campaign.Run, stdout *transcript, stderr string, err error) {
	for at, line := range stdout.lines {
		if n, ok := w.done(line); ok {
			rec.Steps = append(rec.Steps, campaign.Step{At: at.Sub(rec.Begun).Seconds(), Done: n})
		}
	}
	v, verr := w.check(stdout.String(), stderr)
	rec.Proof, rec.Curve = v.proof, v.curve
	for name, f := range v.figures {
		rec.Figures[name] = f
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		rec.Exit = exit.ExitCode()
	}
	switch {
	case ctx.Err() != nil:
		rec.Outcome, rec.Why = campaign.TimedOut, "not finished in time"
	case err != nil:
		rec.Outcome, rec.Why = campaign.Failed, strings.TrimSpace(fmt.Sprintf("%v\n%s", err, tail(stderr, 1000)))
	case verr != nil:
		rec.Outcome, rec.Why = campaign.Unverified, verr.Error()
	default:
		rec.Outcome = campaign.Verified
	}
}

// load is the machine's load average of the last minute.
func load() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	var one float64
	_, _ = fmt.Sscan(string(data), &one)
	return one
}
