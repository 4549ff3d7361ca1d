package coordinator

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/policy"
)

// fall makes a node say that it expects to fail.
func (c *cluster) fall(node string, confidence float64, lead time.Duration) {
	c.t.Helper()
	n := c.nodes[node]
	n.do(func() {
		h := verdict(vftv1.HealthState_HEALTH_STATE_FAILING)
		h.Confidence, h.Lead, h.Since = confidence, int64(lead), time.Now().UnixNano()
		h.Reasons[0].Confidence, h.Reasons[0].Lead, h.Reasons[0].Window = confidence, int64(lead), 3*int64(lead)
		n.node.Health = h
	})
}

func (c *cluster) decisions(job string, action policy.Action) []*vftv1.Event {
	return slices.DeleteFunc(events(c.job(job), "decision"), func(ev *vftv1.Event) bool { return ev.GetLabels()["action"] != string(action) })
}

// A node that expects to fail is emptied while its jobs run; the decision tells
// from what it was made, once, and the node gets no guest.
func TestFailingNodeIsEmptied(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 4)
	c.submit(spec("j", 2))
	c.submit(spec("k", 2))
	j := c.running("j", 1)
	c.running("k", 1)
	from := nodeOf(j, 1)
	time.Sleep(time.Until(time.Unix(0, j.GetStartedAt()).Add(300 * time.Millisecond))) // something to lose
	c.fall(from, 1, time.Hour)
	c.eventually("the node is empty", func() bool { return !placedOn(c.job("j"), from) && !placedOn(c.job("k"), from) })
	j = c.running("j", 1)
	d := c.decisions("j", policy.Migrate)
	if len(d) != 1 || d[0].GetLabels()["node"] != from || d[0].GetLabels()["rule"] != "memory-uncorrected" || d[0].GetFigures()["confidence_ppm"] != 1e6 ||
		d[0].GetFigures()["cost_ignore"] <= d[0].GetFigures()["cost_migrate"] || !strings.Contains(d[0].GetText(), "decided to migrate the guests") {
		t.Errorf("decisions %v", events(j, "decision"))
	}
	if ev := events(j, "migrated"); len(ev) != 1 || ev[0].GetLabels()["trigger"] != fsm.TriggerPolicy || !strings.Contains(ev[0].GetLabels()["reason"], "uncorrected") {
		t.Errorf("migrations %v", ev)
	}
	if ev := events(j, "node-health"); len(ev) != 1 || ev[0].GetLabels()["state"] != "failing" {
		t.Errorf("verdicts %v", ev)
	}
	c.oneCopy("j", 1, nodeOf(j, 1))
	if _, err := c.migrate("j", 1, from); err == nil || !strings.Contains(err.Error(), "is failing") {
		t.Errorf("migration to the failing node: %v", err)
	}
	if j.GetRestarts() != 0 {
		t.Errorf("%d restarts", j.GetRestarts())
	}
}

// Without a node to go to, the job takes a checkpoint, and another one only
// when enough time has passed for it to be worth it.
func TestAlarmWithoutTargetTakesACheckpoint(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("j", 2)
	s.MemoryMib = 6000 // no two on a node
	c.submit(s)
	j := c.running("j", 1)
	time.Sleep(time.Until(time.Unix(0, j.GetStartedAt()).Add(500 * time.Millisecond)))
	c.fall(nodeOf(j, 1), 0.9, time.Hour)
	c.eventually("a checkpoint on account of the alarm", func() bool {
		e := fsm.LastCommitted(c.job("j"))
		return e.GetTrigger() == fsm.TriggerAlarm
	})
	c.running("j", 1)
	time.Sleep(2 * alarmPoll)
	j = c.running("j", 1)
	if len(committedEpochs(j)) != 1 || len(events(j, "decision")) != 1 {
		t.Errorf("checkpoints %v, decisions %v", committedEpochs(j), events(j, "decision"))
	}
	if d := c.decisions("j", policy.Checkpoint); len(d) != 1 || d[0].GetLabels()["obstacle_migrate"] != string(policy.NoTarget) {
		t.Errorf("decisions %v", d)
	}
}

// When there is no time to migrate but for a checkpoint, the job is restarted
// from one elsewhere.
func TestAlarmMovesTheJob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.checkpoint("j")
	if _, err := c.leader().apply(c.ctx, &vftv1.Command{Body: &vftv1.Command_RequestRestart{RequestRestart: &vftv1.RequestRestart{Job: "j"}}}); err != nil {
		t.Fatal(err)
	}
	j := c.running("j", 2) // so that restarts are known to be fast
	c.checkpoint("j")
	from := nodeOf(j, 1)
	c.fall(from, 1, 3*time.Second) // copying 1 GiB is assumed to take 5 s
	j = c.running("j", 3)
	if placedOn(j, from) || j.GetRestarts() != 0 {
		t.Errorf("guests %v, %d restarts", j.GetGuests(), j.GetRestarts())
	}
	d := c.decisions("j", policy.Move)
	if len(d) != 1 || d[0].GetLabels()["obstacle_migrate"] != string(policy.TooLate) {
		t.Fatalf("decisions %v", events(j, "decision"))
	}
	ev := events(j, "restarted")
	if e := fsm.FindEpoch(j, uint64(ev[len(ev)-1].GetFigures()["epoch"])); e.GetTrigger() != fsm.TriggerAlarm {
		t.Errorf("restarted from %v", e)
	}
}

// What the storm guard puts off is said once and done when it may be.
func TestGuardPutsMovesOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3, func(cfg *Config) { cfg.Guard = policy.Guard{MinHealthy: 2} })
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	time.Sleep(time.Until(time.Unix(0, j.GetStartedAt()).Add(300 * time.Millisecond)))
	other := c.nodes[c.other(j)]
	other.do(func() { other.node.Health = verdict(vftv1.HealthState_HEALTH_STATE_FAILING) })
	third := nodeOf(j, 0)
	c.eventually("one node is failing", func() bool { return failing(c.leader().store.node(other.id)) })
	c.fall(nodeOf(j, 1), 1, time.Hour)
	c.eventually("a decision", func() bool { return len(c.decisions("j", policy.Migrate)) == 1 })
	if d := c.decisions("j", policy.Migrate)[0]; !strings.Contains(d.GetLabels()["deferred"], "1 other nodes are healthy, at least 2") || !strings.Contains(d.GetText(), "not yet") {
		t.Errorf("decision %v", d)
	}
	other.do(func() { other.node.Health = nil })
	c.eventually("the guest is away", func() bool { return nodeOf(c.job("j"), 1) != nodeOf(j, 1) })
	if j := c.running("j", 1); len(c.decisions("j", policy.Migrate)) != 2 || nodeOf(j, 0) != third {
		t.Errorf("%v", j)
	}
}

// A leader that takes over knows what was decided.
func TestNewLeaderKeepsTheDecision(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	from, to := nodeOf(j, 1), c.other(j)
	time.Sleep(time.Until(time.Unix(0, j.GetStartedAt()).Add(300 * time.Millisecond)))
	reached := blockAt(c.nodes[to], "PrepareMove")
	c.fall(from, 1, time.Hour)
	waitFor(t, reached, "PrepareMove")
	c.nodes[to].hook("PrepareMove", func(context.Context, string) error { return nil })
	c.crash(c.leader())
	c.eventually("the guest is away", func() bool {
		j := c.job("j") // none while nobody leads
		return j != nil && nodeOf(j, 1) == to
	})
	if j := c.running("j", 1); len(c.decisions("j", policy.Migrate)) != 1 {
		t.Errorf("decisions %v", events(j, "decision"))
	}
	c.oneCopy("j", 1, to)
}

// A site's expression decides in place of the policy, and when it gives what
// cannot be done the policy does.
func TestSitePolicy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	time.Sleep(time.Until(time.Unix(0, j.GetStartedAt()).Add(300 * time.Millisecond)))
	set := func(source string) {
		custom, err := policy.Compile(source)
		if err != nil {
			t.Fatal(err)
		}
		c.leader().SetPolicy(custom)
	}
	set(`confidence > 0.9 ? "ignore" : best`)
	c.fall(nodeOf(j, 1), 1, time.Hour)
	c.eventually("a decision", func() bool { return len(events(c.job("j"), "decision")) == 1 })
	if d := c.decisions("j", policy.Ignore); len(d) != 1 || !strings.Contains(d[0].GetLabels()["policy"], "0.9") {
		t.Errorf("decisions %v", d)
	}
	set(`"reboot"`)
	c.eventually("the guest is away", func() bool { return nodeOf(c.job("j"), 1) != nodeOf(j, 1) })
	if d := c.decisions("j", policy.Migrate); len(d) != 1 || d[0].GetLabels()["policy"] != "default" || !strings.Contains(d[0].GetLabels()["policy_fault"], "reboot") {
		t.Errorf("decisions %v", d)
	}
}

func TestSituation(t *testing.T) {
	now := time.Unix(1000, 0)
	moving := func(from, to string) *vftv1.Job {
		return &vftv1.Job{Operation: &vftv1.Operation{Move: &vftv1.Move{From: from, To: to}}}
	}
	moved := func(from, to, trigger string, ago time.Duration) *vftv1.Job {
		return &vftv1.Job{Events: []*vftv1.Event{{Kind: "migrated", At: now.Add(-ago).UnixNano(), Labels: map[string]string{"from": from, "to": to, "trigger": trigger}}}}
	}
	ill := aNode("d", "d", 1, 1)
	ill.Health = verdict(vftv1.HealthState_HEALTH_STATE_FAILING)
	drained := aNode("e", "e", 1, 1)
	drained.Drained = "x"
	nodes := []*vftv1.Node{aNode("a", "a", 1, 1), aNode("b", "b", 1, 1), aNode("c", "c", 1, 1), ill, drained}
	for _, tc := range []struct {
		name string
		jobs []*vftv1.Job
		want policy.Situation
	}{
		{"quiet", nil, policy.Situation{Healthy: 2, SinceMove: -1}},
		{"under way", []*vftv1.Job{moving("a", "b"), moving("c", "a"), moving("c", "b"), moving("c", "d")}, policy.Situation{Healthy: 2, SinceMove: -1, AtSource: 2, AtTarget: 2, InCluster: 4}},
		{"off the same node", []*vftv1.Job{moved("a", "b", fsm.TriggerPolicy, time.Second)}, policy.Situation{Healthy: 2, SinceMove: -1}},
		{"on to the node", []*vftv1.Job{moved("c", "a", fsm.TriggerPolicy, 2*time.Second), moved("c", "b", fsm.TriggerPolicy, time.Second)}, policy.Situation{Healthy: 2, SinceMove: time.Second}},
		{"by users", []*vftv1.Job{moved("c", "a", fsm.TriggerUser, time.Second)}, policy.Situation{Healthy: 2, SinceMove: -1}},
	} {
		if got := situation(tc.jobs, nodes, "a", "b", now); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestMeasure(t *testing.T) {
	s := int64(time.Second)
	job := &vftv1.Job{Spec: &vftv1.JobSpec{Id: "j", MemoryMib: 100}}
	other := &vftv1.Job{Spec: &vftv1.JobSpec{Id: "o", MemoryMib: 200}, Events: []*vftv1.Event{
		{Kind: "restarted", Figures: map[string]int64{"took": 4 * s, "detect": 2 * s}},
		{Kind: "migrated", Figures: map[string]int64{"took": 2 * s, "rest": 10 << 20, "hold": s / 10}},
	}}
	m := measure(job, nil, 3*time.Second)
	if m.bandwidth != assumedBandwidth || m.move != 500*time.Millisecond || m.costs.Restart != 2500*time.Millisecond || m.costs.Downtime != 3*time.Second || len(m.assumed) != 6 {
		t.Errorf("nothing known: %+v", m)
	}
	job.Epochs = []*vftv1.Epoch{{
		State: vftv1.EpochState_EPOCH_STATE_COMMITTED, Hold: s / 5, EndedAt: 3 * s, BegunAt: s,
		Parts: []*vftv1.Part{{CutAt: 2 * s, Pause: s / 4}},
	}, {State: vftv1.EpochState_EPOCH_STATE_ABORTED, Hold: s}}
	m = measure(job, []*vftv1.Job{job, other}, 3*time.Second)
	want := policy.Costs{Checkpoint: 250 * time.Millisecond, Latency: time.Second, Restart: 4 * time.Second, Downtime: 2 * time.Second}
	if m.costs != want || m.bandwidth != 100<<20 || m.dirty != 5<<20 || m.move != 100*time.Millisecond || len(m.assumed) != 0 {
		t.Errorf("measured: %+v", m)
	}
}
