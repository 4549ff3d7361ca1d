package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/health/internal/cputime"
)

// probe is a probe made of a function.
type probe struct {
	name string
	run  func(ctx context.Context) ([]Reading, error)

	mu     sync.Mutex
	starts []time.Duration // since the runner began
	begun  time.Time
	closed int
}

func (p *probe) Name() string { return p.name }

func (p *probe) Close() error {
	p.closed++
	return nil
}

func (p *probe) Run(ctx context.Context) ([]Reading, error) {
	p.mu.Lock()
	p.starts = append(p.starts, time.Since(p.begun))
	p.mu.Unlock()
	return p.run(ctx)
}

func (p *probe) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.starts)
}

func value(v float64) func(context.Context) ([]Reading, error) {
	return func(context.Context) ([]Reading, error) { return []Reading{{Metric: "m", Value: v}}, nil }
}

func newProbe(name string, run func(context.Context) ([]Reading, error)) *probe {
	return &probe{name: name, run: run, begun: time.Now()}
}

func every(d time.Duration, p Probe) Scheduled {
	return Scheduled{Probe: p, Every: d, Limit: 5 * time.Second}
}

// during runs a runner for d of the bubble's time.
func during(t *testing.T, d time.Duration, conf Config) *Runner {
	t.Helper()
	if conf.Rules == nil {
		conf.Rules = parse(t, one(", when: value > 10"))
	}
	r := NewRunner(conf)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	require.NoError(t, r.Run(ctx))
	return r
}

func TestIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fast, slow := newProbe("fast", value(1)), newProbe("slow", value(1))
		r := during(t, 10*time.Minute, Config{Probes: []Scheduled{every(30*time.Second, fast), every(2*time.Minute, slow)}})
		assert.InDelta(t, 21, fast.count(), 1)
		assert.InDelta(t, 6, slow.count(), 1)
		assert.Zero(t, fast.starts[0], "the first round is at once")
		assert.Equal(t, 30*time.Second, fast.starts[3]-fast.starts[2])
		require.NoError(t, r.Close())
		assert.Equal(t, 1, fast.closed)
		assert.Len(t, r.Reports(), 2)
	})
}

func TestAHungProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hung := newProbe("hung", func(context.Context) ([]Reading, error) {
			<-release // closed later: then it works
			return nil, nil
		})
		other := newProbe("other", value(1))
		var outcomes []string
		var log bytes.Buffer
		conf := Config{
			Probes: []Scheduled{every(30*time.Second, hung), every(30*time.Second, other)},
			Log:    slog.New(slog.NewTextHandler(&log, nil)),
			OnReport: func(r Report) {
				if r.Probe != "hung" {
					return
				}
				outcomes = append(outcomes, r.Outcome.String())
				assert.InDelta(t, float64(r.Outcome), r.Readings[0].Value, 0)
				if len(outcomes) == 5 {
					close(release)
				}
			},
		}
		r := during(t, 5*time.Minute, conf)
		assert.GreaterOrEqual(t, other.count(), 9, "a hung probe delays another")
		require.GreaterOrEqual(t, len(outcomes), 8)
		assert.Equal(t, "timed out timed out timed out timed out timed out ok ok ok", strings.Join(outcomes[:8], " "))
		assert.Equal(t, len(outcomes)-4, hung.count(), "a hung probe is not started again")
		assert.Equal(t, 1, strings.Count(log.String(), "does not work"), "one line, not one per run: %s", log.String())
		assert.Equal(t, OK, r.Reports()[0].Outcome)
	})
}

func TestAProbeThatHangsWhenItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hung := newProbe("hung", func(context.Context) ([]Reading, error) {
			<-release
			return nil, nil
		})
		began := time.Now()
		r := during(t, time.Second, Config{Probes: []Scheduled{every(time.Minute, hung)}})
		assert.LessOrEqual(t, time.Since(began), time.Second+afterLimit, "the runner waits for a hung probe")
		require.NoError(t, r.Close())
		assert.Zero(t, hung.closed, "what is still in use is closed")
		close(release)
	})
}

func TestOutcomes(t *testing.T) {
	some := []Reading{{Metric: "m", Value: 3}}
	for name, test := range map[string]struct {
		run     func(context.Context) ([]Reading, error)
		outcome Outcome
		why     string
		kept    int
	}{
		"ok":             {value(1), OK, "", 1},
		"not there":      {func(context.Context) ([]Reading, error) { return nil, Absent("no %s here", "such thing") }, NotThere, "no such thing here", 0},
		"failed, partly": {func(context.Context) ([]Reading, error) { return some, errors.New("one file is broken") }, Failed, "one file is broken", 1},
		"a part timed out": {func(context.Context) ([]Reading, error) {
			return some, errors.Join(errors.New("odd"), fmt.Errorf("sda: %w", context.DeadlineExceeded))
		}, TimedOut, "odd sda: context deadline exceeded", 1},
		"heeds its context": {func(ctx context.Context) ([]Reading, error) {
			<-ctx.Done()
			return some, ctx.Err()
		}, TimedOut, "deadline", 1},
		"panics":          {func(context.Context) ([]Reading, error) { panic("index out of range") }, Failed, "it panicked: index out of range", 0},
		"readings of NaN": {value(nan()), OK, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProbe("p", test.run)
				r := NewRunner(Config{Probes: []Scheduled{every(time.Minute, p)}, Rules: parse(t, one(", when: value > 10")), Uptime: time.Hour})
				reports := r.Once(t.Context())
				require.Len(t, reports, 1)
				assert.Equal(t, test.outcome, reports[0].Outcome)
				assert.Contains(t, reports[0].Reason, test.why)
				require.Len(t, reports[0].Readings, test.kept+3)
				state := reports[0].Readings[test.kept]
				assert.Equal(t, MetricState, state.Metric)
				assert.InDelta(t, float64(test.outcome), state.Value, 0)
				for _, got := range reports[0].Readings {
					assert.Equal(t, "p", got.Probe)
					assert.Equal(t, time.Now(), got.At)
					assert.GreaterOrEqual(t, got.Up, 3600.0)
				}
			})
		})
	}
}

func nan() float64 {
	var zero float64
	return zero / zero
}

func TestPoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProbe("p", value(1))
		r := NewRunner(Config{Probes: []Scheduled{every(time.Hour, p)}, Rules: parse(t, one(", when: value > 10"))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		r.Poke("p")
		r.Poke("nobody")
		synctest.Wait()
		assert.Equal(t, 2, p.count())
		cancel()
		require.NoError(t, <-done)
	})
}

// The verdict follows the probes, and who is told may ask and act.
func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := 0.0
		p := newProbe("p", func(context.Context) ([]Reading, error) {
			now += 4
			return []Reading{{Metric: "m", Value: now}}, nil
		})
		var seen []string
		var r *Runner
		conf := Config{Probes: []Scheduled{every(time.Minute, p)}, Rules: parse(t, one(", when: value > 10"))}
		conf.OnChange = func(c Change) {
			assert.Equal(t, c.Verdict.State, r.Verdict().State)
			seen = append(seen, c.From.String()+"→"+c.Verdict.State.String())
			if c.Verdict.State == Failing {
				r.Poke("p")
			}
		}
		r = NewRunner(conf)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		require.NoError(t, r.Run(ctx))
		assert.Equal(t, []string{"unknown→healthy", "healthy→failing"}, seen)

		r.Reload(parse(t, one(", when: value > 1000")))
		assert.Equal(t, "failing→healthy", seen[len(seen)-1])
		assert.Equal(t, "value > 1000", r.Rules().List()[0].When)
	})
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		costly := func(ctx context.Context) ([]Reading, error) {
			cputime.Add(ctx, 100*time.Millisecond)
			return nil, nil
		}
		normal, urgent := newProbe("normal", costly), newProbe("urgent", value(1))
		u := every(10*time.Second, urgent)
		u.Urgent = true
		during(t, 2*time.Hour, Config{Probes: []Scheduled{every(10*time.Second, normal), u}})
		// 2 s at once, then 1 ms per second: at 100 ms a run.
		assert.InDelta(t, 20+7200*budgetShare/0.1, normal.count(), 3)
		assert.InDelta(t, 720, urgent.count(), 2, "a notice waits for the budget")
	})
	b := newBudget(epoch)
	b.spend(epoch, budgetBurst+10*time.Millisecond)
	assert.InDelta(t, 10, b.wait(epoch).Seconds(), 1e-6)
	assert.Zero(t, b.wait(epoch.Add(-time.Hour)).Seconds() < 0)
	assert.Zero(t, b.wait(epoch.Add(11*time.Second)))
	b.fill(epoch.Add(1000 * time.Hour))
	assert.Equal(t, budgetBurst, b.left, "nobody saves up more than the burst")
}

func TestSaveAndRestoreOfARunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := Config{Probes: []Scheduled{every(time.Minute, newProbe("p", value(11)))}, Rules: parse(t, one(", when: value > 10, hold: 1h"))}
		r := NewRunner(conf)
		r.Once(t.Context())
		data, err := r.Save("boot")
		require.NoError(t, err)
		r = NewRunner(conf)
		assert.Equal(t, Unknown, r.Verdict().State)
		require.NoError(t, r.Restore(data, "boot"))
		assert.Equal(t, Failing, r.Verdict().State)
		assert.InDelta(t, 0.6, r.Verdict().Confidence, 1e-9)
		assert.Empty(t, r.Pending())
	})
}
