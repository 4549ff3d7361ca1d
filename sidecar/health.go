package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/internal/atomicfile"
)

// healthFile, below the data directory, is what the rules remember, so that a
// sidecar that starts again neither forgets a verdict nor the rates behind it.
const healthFile = "health.json"

// Health is what a sidecar needs to watch over its machine.
type Health struct {
	Probes []health.Scheduled
	Rules  *health.Rules
	// Uptime is the time since the machine started, Boot names that start.
	Uptime time.Duration
	Boot   string
	// Reload brings rules that take the place of those in force; nil: never.
	Reload <-chan *health.Rules
}

// healthWatch runs the probes and keeps the verdict for the heartbeat.
type healthWatch struct {
	log    *slog.Logger
	runner *health.Runner
	conf   Health
	file   string
	told   func() // the verdict has changed

	mu      sync.Mutex
	verdict *vftv1.Health
}

func newHealthWatch(conf Health, data string, log *slog.Logger, told func()) *healthWatch {
	w := &healthWatch{log: log, conf: conf, file: filepath.Join(data, healthFile), told: told}
	w.runner = health.NewRunner(health.Config{
		Probes: conf.Probes, Rules: conf.Rules, Uptime: conf.Uptime, Log: log, OnChange: w.changed,
	})
	saved, err := os.ReadFile(w.file)
	if err == nil {
		err = w.runner.Restore(saved, conf.Boot)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("what the health rules remembered cannot be used", "file", w.file, "err", err)
	}
	w.verdict = protoHealth(w.runner.Verdict())
	return w
}

// run probes until ctx ends.
func (w *healthWatch) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.runner.Run(gctx) })
	g.Go(func() error {
		for {
			select {
			case rules := <-w.conf.Reload:
				w.runner.Reload(rules)
				w.log.Info("health rules read again", "rules", len(rules.List()))
			case <-gctx.Done():
				return nil
			}
		}
	})
	err := g.Wait()
	w.save()
	return errors.Join(err, w.runner.Close())
}

// changed takes a change of verdict or alarms.
func (w *healthWatch) changed(c health.Change) {
	for _, r := range c.Raised {
		w.log.Warn("health alarm", "rule", r.Rule, "subject", r.Subject, "level", r.Level.String(), "confidence", r.Confidence, "evidence", r.Evidence)
	}
	for _, r := range c.Cleared {
		w.log.Info("health alarm over", "rule", r.Rule, "subject", r.Subject, "evidence", r.Evidence)
	}
	if c.From != c.Verdict.State {
		w.log.Info("health verdict", "from", c.From.String(), "to", c.Verdict.State.String(), "confidence", c.Verdict.Confidence, "lead", c.Verdict.Lead)
	}
	w.mu.Lock()
	w.verdict = protoHealth(c.Verdict)
	w.mu.Unlock()
	w.told()
	w.save()
}

// save keeps what the rules remember.
func (w *healthWatch) save() {
	data, err := w.runner.Save(w.conf.Boot)
	if err == nil {
		err = atomicfile.WriteFile(w.file, data, 0o600)
	}
	if err != nil {
		w.log.Warn("what the health rules remember was not saved", "err", err)
	}
}

// now is the verdict, with the rules that watch by now.
func (w *healthWatch) now() *vftv1.Health {
	watching := w.runner.Watching()
	w.mu.Lock()
	defer w.mu.Unlock()
	h := proto.CloneOf(w.verdict)
	h.Watching = watching
	return h
}

var healthStates = map[health.State]vftv1.HealthState{
	health.Unknown: vftv1.HealthState_HEALTH_STATE_UNSPECIFIED,
	health.Healthy: vftv1.HealthState_HEALTH_STATE_HEALTHY,
	health.Suspect: vftv1.HealthState_HEALTH_STATE_SUSPECT,
	health.Failing: vftv1.HealthState_HEALTH_STATE_FAILING,
}

func protoHealth(v health.Verdict) *vftv1.Health {
	h := &vftv1.Health{State: healthStates[v.State], Confidence: v.Confidence, Lead: int64(v.Lead), Since: nanos(v.Since)}
	for _, r := range v.Reasons {
		h.Reasons = append(h.Reasons, &vftv1.HealthReason{
			Rule: r.Rule, Subject: r.Subject, Level: healthStates[r.Level], Confidence: r.Confidence,
			Lead: int64(r.Lead), Window: int64(r.Window), Since: nanos(r.Since), Evidence: r.Evidence,
		})
	}
	return h
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

var (
	healthStateDesc   = prometheus.NewDesc("vft_health_state", "The node's verdict about itself: 0 unknown, 1 healthy, 2 suspect, 3 failing.", nil, nil)
	healthAlarmDesc   = prometheus.NewDesc("vft_health_alarm_confidence", "Confidence of each raised alarm.", []string{"rule", "subject", "level"}, nil)
	healthOutcomeDesc = prometheus.NewDesc("vft_health_probe_outcome", "How each probe's last run ended: 0 ok, 1 nothing to read, 2 failed, 3 cut off at its limit.", []string{"probe"}, nil)
	healthTimeDesc    = prometheus.NewDesc("vft_health_probe_seconds", "How long each probe's last run took.", []string{"probe"}, nil)
)

// Describe implements prometheus.Collector.
func (w *healthWatch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{healthStateDesc, healthAlarmDesc, healthOutcomeDesc, healthTimeDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w *healthWatch) Collect(ch chan<- prometheus.Metric) {
	v := w.runner.Verdict()
	ch <- prometheus.MustNewConstMetric(healthStateDesc, prometheus.GaugeValue, float64(healthStates[v.State]))
	for _, r := range v.Reasons {
		ch <- prometheus.MustNewConstMetric(healthAlarmDesc, prometheus.GaugeValue, r.Confidence, r.Rule, r.Subject, r.Level.String())
	}
	for _, r := range w.runner.Reports() {
		ch <- prometheus.MustNewConstMetric(healthOutcomeDesc, prometheus.GaugeValue, float64(r.Outcome), r.Probe)
		ch <- prometheus.MustNewConstMetric(healthTimeDesc, prometheus.GaugeValue, r.Took.Seconds(), r.Probe)
	}
}

// watchHealth makes the node's watch over itself, nil when it keeps none.
func (s *Sidecar) watchHealth() (*healthWatch, error) {
	if s.cfg.Health == nil {
		return nil, nil //nolint:nilnil // no watch is a way to run
	}
	w := newHealthWatch(*s.cfg.Health, s.cfg.Data, s.log, s.heartbeatNow)
	if s.cfg.Metrics != nil {
		if err := s.cfg.Metrics.Register(w); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return w, nil
}
