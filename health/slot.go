package health

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/mpirun-vft/vft/health/internal/cputime"
)

// slot is a probe's place in a runner. One goroutine uses it at a time.
type slot struct {
	Scheduled
	poke chan struct{}
	hung <-chan result // of a run that did not end at its limit
	from time.Time     // when that run began
}

// result is what a run of a probe gave.
type result struct {
	readings []Reading
	err      error
	cpu      time.Duration
}

// afterLimit is how long a run may take beyond its limit to notice that its
// context has ended, before it counts as hung.
const afterLimit = 5 * time.Second

// run runs the probe once. A run that does not end is left behind, and no
// other begins before it has ended.
func (s *slot) run(ctx context.Context, r *Runner) Report {
	name, began := s.Probe.Name(), time.Now()
	if s.hung != nil {
		select {
		case <-s.hung: // what it read is too old
			s.hung = nil
		default:
			err := fmt.Errorf("the run of %v ago has not ended: %w", began.Sub(s.from).Round(time.Second), context.DeadlineExceeded)
			return r.finish(name, nil, err, 0, 0)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.Limit)
	defer cancel()
	done := make(chan result, 1)
	go func() { done <- s.once(ctx) }()
	select {
	case got := <-done:
		return r.finish(name, got.readings, got.err, time.Since(began), got.cpu)
	case <-ctx.Done():
		select {
		case got := <-done:
			return r.finish(name, got.readings, got.err, time.Since(began), got.cpu)
		case <-time.After(afterLimit):
		}
	}
	s.hung, s.from = done, began
	err := fmt.Errorf("no end after %v: %w", s.Limit, context.DeadlineExceeded)
	return r.finish(name, nil, err, time.Since(began), 0)
}

// once calls the probe on a thread of its own, whose processor time is the
// probe's. A probe that panics on what it read has failed.
func (s *slot) once(ctx context.Context) (got result) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, meter := cputime.With(ctx)
	before := cputime.Thread()
	defer func() {
		if p := recover(); p != nil {
			got.err = fmt.Errorf("it panicked: %v", p)
		}
		got.cpu = cputime.Thread() - before + meter.Total()
	}()
	got.readings, got.err = s.Probe.Run(ctx)
	return got
}
