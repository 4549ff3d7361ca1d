package coordinator

import (
	"math"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/health/score"
)

func (c *cluster) standings() []*vftv1.RuleStanding {
	c.t.Helper()
	r, err := c.leader().ListScores(c.ctx, connect.NewRequest(&vftv1.ListScoresRequest{}))
	if err != nil {
		c.t.Fatal(err)
	}
	return r.Msg.GetRules()
}

// cry has a node raise an alarm for a moment that nothing follows.
func (c *cluster) cry(node string) {
	c.t.Helper()
	c.fall(node, 0.9, 0)
	c.eventually("the alarm is heard", func() bool { return failing(c.leader().store.node(node)) })
	c.nodes[node].do(func() { c.nodes[node].node.Health = nil })
	c.eventually("the alarm is over", func() bool { return !failing(c.leader().store.node(node)) })
}

// A rule whose alarms nothing followed is believed less, on every node, and the
// decision says so. A failure that it announces counts for it, and another
// leader knows all that.
func TestRuleThatMisfires(t *testing.T) {
	t.Parallel()
	metrics := map[string]*prometheus.Registry{}
	c := newCluster(t, 3, 3, func(cfg *Config) {
		metrics[cfg.ID] = prometheus.NewRegistry()
		cfg.Metrics = metrics[cfg.ID]
		cfg.Lease = 3 * time.Second // a node that is slow for a moment has not failed
	})
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	wolf := c.other(j)
	for range 8 {
		c.cry(wolf)
	}
	c.eventually("the false alarms are counted", func() bool {
		s := c.standings()
		return len(s) == 1 && s[0].GetScore().GetFalseAlarms() == 8 && s[0].GetOpen() == 0
	})
	if s := c.standings()[0]; s.GetScore().GetRule() != "memory-uncorrected" || math.Abs(s.GetPrecision()-0.3) > 1e-9 || math.Abs(s.GetWeight()-1.0/3) > 1e-9 {
		t.Errorf("standing %v", s)
	}
	c.fall(nodeOf(j, 1), 0.9, time.Hour)
	c.eventually("a decision", func() bool { return len(events(c.job("j"), "decision")) > 0 })
	d := events(c.job("j"), "decision")[0]
	if f := d.GetFigures(); f["own_confidence_ppm"] != 900000 || f["confidence_ppm"] != 300000 || f["weight_ppm"] != 333333 {
		t.Errorf("figures %v", f)
	}
	if got := d.GetLabels()["scores"]; got != "memory-uncorrected has weight 0.33, 0 of 8 alarms were right" {
		t.Errorf("%q", got)
	}

	c.fall(wolf, 0.9, time.Hour)
	c.eventually("the alarm is heard", func() bool { return failing(c.leader().store.node(wolf)) })
	c.nodes[wolf].setDown(true)
	c.eventually("it was right", func() bool { return c.standings()[0].GetScore().GetHits() == 1 })
	was := c.standings()[0]
	if was.GetOpen() != 1 || was.GetScore().GetEpisodes() != 10 || was.GetLead() <= 0 || was.GetWeight() <= 1.0/3 {
		t.Errorf("standing %v", was)
	}
	got := gather(t, metrics[c.leader().cfg.ID])
	if got["vft_health_rule_alarms_total false memory-uncorrected"] != 8 || got["vft_health_rule_alarms_total hit memory-uncorrected"] != 1 ||
		got["vft_health_rule_weight memory-uncorrected"] != was.GetWeight() {
		t.Errorf("metrics %v", got)
	}
	c.crash(c.leader())
	if now := c.standings()[0]; now.GetScore().GetHits() != 1 || now.GetScore().GetFalseAlarms() != 8 || now.GetWeight() != was.GetWeight() {
		t.Errorf("at the next leader %v, want %v", now, was)
	}
}

// Alarms are counted as false when their time is over, also while nothing happens.
func TestQuietFalseAlarm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.fall("n1", 0.9, time.Millisecond)
	c.eventually("it is counted", func() bool {
		s := c.standings()
		return len(s) == 1 && s[0].GetScore().GetFalseAlarms() == 1
	})
	if !failing(c.leader().store.node("n1")) {
		t.Error("the alarm is not raised any more")
	}
}

func TestWeigh(t *testing.T) {
	reason := func(rule, subject string, c float64) *vftv1.HealthReason {
		return &vftv1.HealthReason{Rule: rule, Subject: subject, Confidence: c}
	}
	h := &vftv1.Health{Reasons: []*vftv1.HealthReason{reason("disk", "a", 0.5), reason("fan", "x", 0.2), reason("disk", "b", 0.5)}}
	w := weigh(h, nil)
	if math.Abs(w.confidence-(1-0.5*0.8)) > 1e-9 || w.weight() != 1 {
		t.Errorf("of rules that nothing is known about: %+v", w)
	}
	w = weigh(h, map[string]score.Tally{"disk": {False: 4}, "fan": {Hits: 4}})
	if math.Abs(w.confidence-(1-0.75*0.4)) > 1e-9 || w.weight() != 0.5 {
		t.Errorf("%+v", w)
	}
	if s := w.String(); !strings.HasPrefix(s, "disk has weight 0.50, 0 of 4 alarms were right; fan has weight 3.00, 4 of 4") {
		t.Errorf("%q", s)
	}
}
