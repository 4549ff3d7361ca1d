package main

import (
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestCostOf(t *testing.T) {
	const s = int64(1e9)
	decided := func(at int64, node, action string) *vftv1.Event {
		return &vftv1.Event{
			Kind: "decision", At: at * s, Labels: map[string]string{"node": node, "action": action, "alarm": node},
			Figures: map[string]int64{"lead": 10 * s, "since_commit": 30 * s, "downtime": 3 * s, "restart": 7 * s},
		}
	}
	event := func(kind, trigger, from string, figures map[string]int64) *vftv1.Event {
		return &vftv1.Event{Kind: kind, Labels: map[string]string{"trigger": trigger, "from": from}, Figures: figures}
	}
	hold := map[string]int64{"hold": s}
	j := &vftv1.Job{
		Spec: &vftv1.JobSpec{Id: "j"}, Guests: []*vftv1.Guest{{Node: "a"}, {Node: "b"}},
		Events: []*vftv1.Event{
			event("checkpoint", "interval", "", hold),
			event("restarted", "", "", map[string]int64{"lost": 5 * s, "detect": 3 * s, "took": 2 * s}),
			decided(100, "sick", "migrate"), event("migrated", "policy", "sick", hold),
			decided(150, "sick", "migrate"), // the same alarm
			decided(200, "wrong", "migrate"), event("migrated", "policy", "wrong", hold),
			decided(300, "wrong", "checkpoint"), event("checkpoint", "alarm", "", hold),
			decided(990, "open", "migrate"), event("migrated", "policy", "open", hold),
			event("migrated", "user", "wrong", hold),
		},
	}
	nodes := []*vftv1.Node{
		{Id: "sick", State: vftv1.NodeState_NODE_STATE_LOST, Since: 400 * s},
		{Id: "wrong", State: vftv1.NodeState_NODE_STATE_ALIVE},
		{Id: "open", State: vftv1.NodeState_NODE_STATE_ALIVE},
	}
	want := jobCost{Job: "j", Nodes: 2, Lost: 10, Downtime: 10, Checkpoints: 4, Migrations: 8, FalseAlarms: 4, Saved: 80}
	if got := costOf(j, nodes, 1000*s); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
