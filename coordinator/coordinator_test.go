package coordinator

import (
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestPlainRun(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.submit(spec("job1", 2))
	j := c.running("job1", 1)
	if j.GetGuests()[0].GetNode() == j.GetGuests()[1].GetNode() {
		t.Errorf("both guests on %s", j.GetGuests()[0].GetNode())
	}
	e := c.checkpoint("job1")
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
		t.Fatalf("checkpoint: %v", e)
	}
	if !c.finish("job1", 1, 3) {
		t.Error("exit of the present incarnation refused")
	}
	j = c.waitPhase("job1", vftv1.JobPhase_JOB_PHASE_ENDED)
	if j.GetExit().GetCause() != vftv1.ExitCause_EXIT_CAUSE_PROGRAM || j.GetExit().GetCode() != 3 {
		t.Errorf("exit %v", j.GetExit())
	}
	for _, e := range j.GetEvents() {
		t.Logf("%d %s: %s", e.GetNumber(), e.GetKind(), e.GetText())
	}
	for id, n := range c.nodes {
		n.do(func() {
			if len(n.guests) != 0 || len(n.parts) != 0 || !n.forgot["job1"] {
				t.Errorf("%s still has guests %v, parts %v", id, n.guests, n.parts)
			}
		})
	}
}
