package health

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Scheduled is a probe with its times.
type Scheduled struct {
	Probe Probe
	Every time.Duration // from start to start
	Limit time.Duration // of one run
	// Urgent probes do not wait when the budget is overdrawn. They are cheap.
	Urgent bool
}

// Config is what a Runner needs.
type Config struct {
	Probes []Scheduled
	Rules  *Rules
	Log    *slog.Logger
	// Uptime is the time since the machine started, when the runner is made.
	Uptime time.Duration
	// OnReport and OnChange are called in order, one at a time, and may ask
	// the runner anything. Both may be nil.
	OnReport func(Report)
	OnChange func(Change)
}

// Runner runs probes and keeps the verdict. Its methods may be called from
// several goroutines.
type Runner struct {
	conf   Config
	slots  []*slot
	begun  time.Time
	budget *budget

	deliver sync.Mutex // orders callbacks; taken before mu
	mu      sync.Mutex
	engine  *Engine
	last    map[string]Report
}

// NewRunner returns a runner that has run nothing.
func NewRunner(conf Config) *Runner {
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	now := time.Now()
	r := &Runner{
		conf: conf, begun: now, budget: newBudget(now),
		engine: NewEngine(conf.Rules), last: map[string]Report{},
	}
	for _, p := range conf.Probes {
		r.slots = append(r.slots, &slot{Scheduled: p, poke: make(chan struct{}, 1)})
	}
	return r
}

// Run runs the probes at their intervals until ctx ends, and then waits a
// moment for those that run.
func (r *Runner) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range r.slots {
		g.Go(func() error { return r.loop(ctx, s) })
	}
	return g.Wait()
}

// loop runs one probe again and again.
func (r *Runner) loop(ctx context.Context, s *slot) error {
	next := time.Now()
	for first := true; ; first = false {
		select {
		case <-time.After(time.Until(next)):
		case <-s.poke:
		case <-ctx.Done():
			return nil
		}
		if wait := r.budget.wait(time.Now()); wait > 0 && !s.Urgent {
			next = time.Now().Add(min(wait, s.Every))
			continue
		}
		next = time.Now().Add(s.Every)
		if first { // so that probes of one interval do not run at once for ever
			next = time.Now().Add(s.Every/2 + spread(s.Probe.Name(), s.Every/2))
		}
		report := s.run(ctx, r)
		if ctx.Err() != nil {
			return nil // it was cut off by the end
		}
		r.take(report)
	}
}

// spread is a part of d that differs between names.
func spread(name string, d time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = io.WriteString(h, name)
	return time.Duration(float64(d) * float64(h.Sum32()) / (1 << 32))
}

// Once runs every probe once, at the same time, and returns the reports in the
// order of the probes.
func (r *Runner) Once(ctx context.Context) []Report {
	reports := make([]Report, len(r.slots))
	var wg sync.WaitGroup
	for i, s := range r.slots {
		wg.Go(func() { reports[i] = s.run(ctx, r) })
	}
	wg.Wait()
	for i := range r.slots {
		r.take(reports[i])
	}
	return reports
}

// Poke runs a probe now, whatever its interval.
func (r *Runner) Poke(probe string) {
	for _, s := range r.slots {
		if s.Probe.Name() == probe {
			select {
			case s.poke <- struct{}{}:
			default: // it is about to run
			}
		}
	}
}

// take gives a report to the engine and tells who wants to know.
func (r *Runner) take(report Report) {
	r.budget.spend(time.Now(), report.CPU)
	r.deliver.Lock()
	defer r.deliver.Unlock()
	r.mu.Lock()
	before, ran := r.last[report.Probe]
	r.last[report.Probe] = report
	change, changed := r.engine.Observe(report.Readings)
	r.mu.Unlock()
	if !ran || before.Outcome != report.Outcome {
		r.log(report)
	}
	if r.conf.OnReport != nil {
		r.conf.OnReport(report)
	}
	r.tell(change, changed)
}

func (r *Runner) tell(change Change, changed bool) {
	if changed && r.conf.OnChange != nil {
		r.conf.OnChange(change)
	}
}

// log says how a probe does when that changes, not each time.
func (r *Runner) log(report Report) {
	args := []any{"probe", report.Probe, "outcome", report.Outcome.String(), "why", report.Reason}
	switch report.Outcome {
	case OK:
		r.conf.Log.Debug("a probe works", args...)
	case NotThere:
		r.conf.Log.Debug("a probe has nothing to read", args...)
	case Failed, TimedOut:
		r.conf.Log.Warn("a probe does not work", args...)
	}
}

// Verdict returns the verdict of now.
func (r *Runner) Verdict() Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Verdict()
}

// Pending lists conditions that hold, but not yet for long enough.
func (r *Runner) Pending() []Reason {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Pending()
}

// Reports returns the last report of every probe that has run, by name.
func (r *Runner) Reports() []Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Report
	for _, s := range r.slots {
		if report, ok := r.last[s.Probe.Name()]; ok {
			list = append(list, report)
		}
	}
	return list
}

// Rules returns the rules in force.
func (r *Runner) Rules() *Rules {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Rules()
}

// Reload puts other rules in place. Probes and their times stay as they are.
func (r *Runner) Reload(rules *Rules) {
	r.deliver.Lock()
	defer r.deliver.Unlock()
	r.mu.Lock()
	change, changed := r.engine.Reload(rules, time.Now())
	r.mu.Unlock()
	r.tell(change, changed)
}

// Watching lists the rules that have something to read; see [Engine.Watching].
func (r *Runner) Watching() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Watching()
}

// Save returns what the engine remembers; see [Engine.Save].
func (r *Runner) Save(boot string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Save(boot)
}

// Restore puts back what Save returned; see [Engine.Restore].
func (r *Runner) Restore(data []byte, boot string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Restore(data, boot)
}

// up is the time of the clock that is never set.
func (r *Runner) up(now time.Time) float64 {
	return (r.conf.Uptime + now.Sub(r.begun)).Seconds()
}

// stamp completes readings.
func (r *Runner) stamp(readings []Reading, probe string, now time.Time) []Reading {
	for i := range readings {
		readings[i].Probe, readings[i].At, readings[i].Up = probe, now, r.up(now)
		readings[i].clip()
	}
	return slices.DeleteFunc(readings, func(v Reading) bool { return v.Check() != nil })
}

// finish makes the report of a run.
func (r *Runner) finish(probe string, readings []Reading, err error, took, cpu time.Duration) Report {
	report := Report{Probe: probe, Outcome: classify(err), Took: took, CPU: cpu}
	if err != nil {
		report.Reason = clip(err.Error(), maxText)
	}
	readings = append(readings,
		Reading{Metric: MetricState, Value: float64(report.Outcome), Text: report.Reason},
		Reading{Metric: MetricSeconds, Value: took.Seconds(), Unit: "s"},
		Reading{Metric: MetricCPU, Value: cpu.Seconds(), Unit: "s"},
	)
	report.Readings = r.stamp(readings, probe, time.Now())
	return report
}

// Close lets go of what probes hold open. Nothing runs any more then.
func (r *Runner) Close() error {
	var errs []error
	for _, s := range r.slots {
		c, ok := s.Probe.(io.Closer)
		if !ok || s.hung != nil {
			continue
		}
		if err := c.Close(); err != nil {
			errs = append(errs, fmt.Errorf("closing probe %s: %w", s.Probe.Name(), err))
		}
	}
	return errors.Join(errs...)
}
