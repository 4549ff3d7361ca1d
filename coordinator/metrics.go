package coordinator

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// metrics are the figures of one replica. Counters count what this replica
// did as the leader.
type metrics struct {
	c        *Coordinator
	registry prometheus.Registerer

	epochsCommitted prometheus.Counter
	epochsAborted   prometheus.Counter
	restarts        prometheus.Counter
	hold            prometheus.Histogram
	pause           prometheus.Histogram
	levelBytes      *prometheus.CounterVec

	leader  *prometheus.Desc
	jobs    *prometheus.Desc
	age     *prometheus.Desc
	health  *prometheus.Desc
	epochs  *prometheus.Desc
	backlog *prometheus.Desc
	alarms  *prometheus.Desc
	weight  *prometheus.Desc
}

func newMetrics(c *Coordinator, r prometheus.Registerer) (*metrics, error) {
	short := prometheus.ExponentialBuckets(0.001, 2, 14) // 1 ms to 8 s
	m := &metrics{
		c: c, registry: r,
		epochsCommitted: prometheus.NewCounter(prometheus.CounterOpts{Name: "vft_epochs_committed_total", Help: "Group checkpoints committed."}),
		epochsAborted:   prometheus.NewCounter(prometheus.CounterOpts{Name: "vft_epochs_aborted_total", Help: "Group checkpoints given up."}),
		restarts:        prometheus.NewCounter(prometheus.CounterOpts{Name: "vft_restarts_total", Help: "Restarts begun."}),
		hold:            prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vft_checkpoint_hold_seconds", Help: "Longest time that a node held frames, per committed epoch.", Buckets: short}),
		pause:           prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vft_checkpoint_pause_seconds", Help: "Time that the processors of a guest stood still, per part.", Buckets: short}),
		levelBytes:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vft_level_bytes_total", Help: "Bytes written to make parts safe at a level."}, []string{"level"}),
		leader:          prometheus.NewDesc("vft_coordinator_leader", "1 at the replica that leads.", nil, nil),
		jobs:            prometheus.NewDesc("vft_jobs", "Jobs by phase.", []string{"phase"}, nil),
		age:             prometheus.NewDesc("vft_node_heartbeat_age_seconds", "Time since the last heartbeat, at the leader.", []string{"node"}, nil),
		health:          prometheus.NewDesc("vft_node_health", "What a node says of itself: 0 unknown, 1 healthy, 2 suspect, 3 failing.", []string{"node"}, nil),
		epochs:          prometheus.NewDesc("vft_epochs", "Committed epochs by level and how far they are there: pending, safe or failed.", []string{"level", "state"}, nil),
		backlog:         prometheus.NewDesc("vft_level_backlog_parts", "Parts of committed epochs that are not safe at a level yet.", []string{"level"}, nil),
		alarms:          prometheus.NewDesc("vft_health_rule_alarms_total", "How the alarms of a health rule turned out: hit, false, or missed for failures of nodes that it watched without one.", []string{"rule", "outcome"}, nil),
		weight:          prometheus.NewDesc("vft_health_rule_weight", "What a health rule's confidence is multiplied with, from its alarms so far.", []string{"rule"}, nil),
	}
	if r == nil {
		return m, nil
	}
	for _, x := range m.collectors() {
		if err := r.Register(x); err != nil {
			m.unregister()
			return nil, fmt.Errorf("registering the coordinator's metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.epochsCommitted, m.epochsAborted, m.restarts, m.hold, m.pause, m.levelBytes, m}
}

func (m *metrics) unregister() {
	if m.registry == nil {
		return
	}
	for _, x := range m.collectors() {
		m.registry.Unregister(x)
	}
}

func (m *metrics) committed(e *vftv1.Epoch) {
	m.epochsCommitted.Inc()
	m.hold.Observe(time.Duration(e.GetHold()).Seconds())
	for _, p := range e.GetParts() {
		m.pause.Observe(time.Duration(p.GetPause()).Seconds())
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.leader
	ch <- m.jobs
	ch <- m.age
	ch <- m.health
	ch <- m.epochs
	ch <- m.backlog
	ch <- m.alarms
	ch <- m.weight
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	t, err := m.c.leader()
	leads := 1.0
	if errors.Is(err, errNotLeader) {
		leads = 0
	}
	ch <- prometheus.MustNewConstMetric(m.leader, prometheus.GaugeValue, leads)
	phases := map[vftv1.JobPhase]int{}
	for _, j := range m.c.store.jobs() {
		phases[j.GetPhase()]++
	}
	for p := range vftv1.JobPhase_name {
		if p != 0 {
			name := strings.ToLower(strings.TrimPrefix(vftv1.JobPhase(p).String(), "JOB_PHASE_"))
			ch <- prometheus.MustNewConstMetric(m.jobs, prometheus.GaugeValue, float64(phases[vftv1.JobPhase(p)]), name)
		}
	}
	if t == nil {
		return
	}
	m.collectLevels(ch)
	for _, r := range m.c.store.standings() {
		rule := r.GetScore().GetRule()
		for outcome, n := range map[string]int64{"hit": r.GetScore().GetHits(), "false": r.GetScore().GetFalseAlarms(), "missed": r.GetScore().GetMissed()} {
			ch <- prometheus.MustNewConstMetric(m.alarms, prometheus.CounterValue, float64(n), rule, outcome)
		}
		ch <- prometheus.MustNewConstMetric(m.weight, prometheus.GaugeValue, r.GetWeight(), rule)
	}
	now := m.c.cfg.Now()
	for _, n := range m.c.store.nodes() {
		ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, now.Sub(t.leases.seen(n.GetId())).Seconds(), n.GetId())
		ch <- prometheus.MustNewConstMetric(m.health, prometheus.GaugeValue, float64(n.GetHealth().GetState()), n.GetId())
	}
}

// collectLevels counts epochs and parts by level.
func (m *metrics) collectLevels(ch chan<- prometheus.Metric) {
	type key struct {
		level string
		state vftv1.LevelState
	}
	epochs := map[key]int{}
	backlog := map[string]int{}
	for _, j := range m.c.store.jobs() {
		for _, e := range j.GetEpochs() {
			if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
				continue
			}
			for _, l := range e.GetLevels() {
				epochs[key{l.GetLevel(), l.GetState()}]++
				backlog[l.GetLevel()] += 0
				for _, p := range e.GetParts() {
					if !fsm.SafeAt(p, l, m.c.alive) {
						backlog[l.GetLevel()]++
					}
				}
			}
		}
	}
	for k, n := range epochs {
		state := strings.ToLower(strings.TrimPrefix(k.state.String(), "LEVEL_STATE_"))
		ch <- prometheus.MustNewConstMetric(m.epochs, prometheus.GaugeValue, float64(n), k.level, state)
	}
	for level, n := range backlog {
		ch <- prometheus.MustNewConstMetric(m.backlog, prometheus.GaugeValue, float64(n), level)
	}
}
