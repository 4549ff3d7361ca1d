package coordinator

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

func (c *cluster) suspend(job string) *vftv1.Job {
	c.t.Helper()
	r, err := c.leader().SuspendJob(c.ctx, connect.NewRequest(&vftv1.SuspendJobRequest{Id: job, Reason: "test"}))
	if err != nil {
		c.t.Fatalf("suspend: %v\n%s", err, c.describe())
	}
	return r.Msg.GetJob()
}

func (c *cluster) goOn(job string, nodes ...string) {
	c.t.Helper()
	if _, err := c.leader().ContinueJob(c.ctx, connect.NewRequest(&vftv1.ContinueJobRequest{Id: job, Nodes: nodes})); err != nil {
		c.t.Fatalf("go on: %v\n%s", err, c.describe())
	}
}

// A suspended job has an epoch that began after it was asked for and nothing on any
// node, other jobs have its room, and it goes on where it is told to, from
// there, with no restart counted.
func TestSuspendAndGoOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.checkpoint("j")
	j := c.suspend("j")
	if got := committedEpochs(j); len(got) != 2 || len(j.GetGuests()) != 0 || j.GetPhase() != vftv1.JobPhase_JOB_PHASE_SUSPENDED {
		t.Fatalf("suspended: %v", j)
	}
	epoch := fsm.LastCommitted(j)
	if epoch.GetTrigger() != fsm.TriggerSuspend {
		t.Errorf("epoch %v", epoch)
	}
	for _, n := range c.nodes {
		n.do(func() {
			if len(n.guestsOf("j")) != 0 {
				t.Errorf("node %s has guests %v", n.id, n.guestsOf("j"))
			}
		})
	}
	if used := c.leader().used(""); len(used) != 0 {
		t.Errorf("%v is used", used)
	}
	c.suspend("j") // again
	time.Sleep(2 * testConfig("x").ClientLease)
	c.goOn("j", "n3")
	j = c.running("j", 3)
	for i := range 2 {
		if nodeOf(j, i) != "n3" {
			t.Errorf("guest %d is on %s", i, nodeOf(j, i))
		}
	}
	for g, from := range c.restoredFrom(j) {
		if from != epoch.GetNumber() {
			t.Errorf("guest %d restored from %d, want %d", g, from, epoch.GetNumber())
		}
	}
	ev := events(j, "restarted")
	if _, lost := ev[0].GetFigures()["lost"]; lost || j.GetRestarts() != 0 || j.GetSuspension() != nil {
		t.Errorf("%v, %d restarts, %v", ev[0], j.GetRestarts(), j.GetSuspension())
	}
	c.goOn("j") // again
	if j := c.running("j", 3); len(events(j, "suspended")) != 1 {
		t.Errorf("%v", events(j, "suspended"))
	}
}

// All nodes are away and come back while a job is suspended; the leader changes.
// It waits for them and loses nothing.
func TestSuspendedJobWaitsForItsNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 2)
	c.submit(spec("j", 2))
	c.running("j", 1)
	epoch := fsm.LastCommitted(c.suspend("j")).GetNumber()
	for _, n := range c.nodes {
		n.setDown(true)
	}
	c.nodesAlive(0)
	c.crash(c.leader())
	c.goOn("j")
	time.Sleep(2 * testConfig("x").HolderWait)
	if j := c.job("j"); j.GetPhase() != vftv1.JobPhase_JOB_PHASE_SUSPENDED {
		t.Fatalf("%v", j.GetPhase())
	}
	for _, n := range c.nodes {
		n.setDown(false)
	}
	for g, from := range c.restoredFrom(c.running("j", 3)) {
		if from != epoch {
			t.Errorf("guest %d restored from %d, want %d", g, from, epoch)
		}
	}
}

// A job can be stopped while it is suspended, and one that does not get its
// checkpoint goes on when the wish is taken back.
func TestSuspendedJobCanBeStopped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.suspend("j")
	if _, err := c.leader().StopJob(c.ctx, connect.NewRequest(&vftv1.StopJobRequest{Id: "j", Reason: "test"})); err != nil {
		t.Fatal(err)
	}
	c.waitPhase("j", vftv1.JobPhase_JOB_PHASE_ENDED)
	_, err := c.leader().SuspendJob(c.ctx, connect.NewRequest(&vftv1.SuspendJobRequest{Id: "j"}))
	if err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("suspending a job that has ended: %v", err)
	}
}
