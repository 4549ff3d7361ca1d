package coordinator

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// restartedLazily is a cluster with a job whose guests run and lack memory,
// in incarnation 2.
func restartedLazily(t *testing.T, replicas int) *cluster {
	t.Helper()
	c := newCluster(t, replicas, 3)
	for _, n := range c.nodes {
		n.do(func() { n.lazy = true })
	}
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	for range 2 {
		if e := c.checkpoint("j"); e.GetState() != committed {
			t.Fatal(e)
		}
	}
	n := c.nodes[nodeOf(j, 1)]
	n.do(func() { n.guests["/j/1"].state = vftv1.GuestState_GUEST_STATE_DEAD })
	if j = c.running("j", 2); !j.GetFilling() {
		t.Fatalf("guests that lack memory pass for complete\n%s", c.describe())
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.do(func() {
				for _, f := range n.faults {
					t.Error(f)
				}
			})
		}
	})
	return c
}

// askForCheckpoint asks in the background and returns where the answer comes.
func (c *cluster) askForCheckpoint(id string) <-chan *vftv1.Epoch {
	out := make(chan *vftv1.Epoch, 1)
	c.beats.Go(func() {
		for c.ctx.Err() == nil {
			l := c.tryLeader()
			if l == nil {
				_ = sleep(c.ctx, 20*time.Millisecond)
				continue
			}
			r, err := l.TakeCheckpoint(c.ctx, connect.NewRequest(&vftv1.TakeCheckpointRequest{Id: id}))
			if connect.CodeOf(err) == connect.CodeUnavailable {
				_ = sleep(c.ctx, 20*time.Millisecond)
				continue
			}
			if err == nil {
				out <- r.Msg.GetEpoch()
			}
			close(out)
			return
		}
	})
	return out
}

func (c *cluster) fill(nodes ...string) {
	for _, n := range nodes {
		c.nodes[n].fill()
	}
}

func (c *cluster) filled() *vftv1.Job {
	c.t.Helper()
	c.eventually("memory complete", func() bool { return !c.job("j").GetFilling() })
	return c.job("j")
}

// Guests that lack memory are not saved and not moved: what is asked for waits
// until the last of them has it.
func TestCheckpointWaitsForMemory(t *testing.T) {
	t.Parallel()
	c := restartedLazily(t, 1)
	j := c.job("j")
	answer := c.askForCheckpoint("j")
	c.eventually("the request is told to wait", func() bool {
		ev := events(c.job("j"), "waiting")
		return len(ev) == 1 && strings.Contains(ev[0].GetText(), "memory")
	})
	if _, err := c.leader().DeleteEpoch(c.ctx, connect.NewRequest(&vftv1.DeleteEpochRequest{Id: "j", Epoch: 2})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the epoch that guests are being filled from can be deleted: %v", err)
	}
	c.fill(nodeOf(j, 0))
	select {
	case e := <-answer:
		t.Fatalf("checkpoint %v while guest 1 lacks memory", e)
	case <-time.After(150 * time.Millisecond):
	}
	c.fill(nodeOf(j, 1))
	if e := <-answer; e.GetState() != committed {
		t.Errorf("%v\n%s", e, c.describe())
	}
	j = c.filled()
	ev := events(j, "filled")
	if len(ev) != 1 || ev[0].GetFigures()["took"] < int64(150*time.Millisecond) || ev[0].GetFigures()["demanded"] != 6 {
		t.Errorf("events %v", ev)
	}
	if re := events(j, "restarted"); len(re) != 1 || !strings.Contains(re[0].GetText(), "memory follows") {
		t.Errorf("events %v", re)
	}
}

func TestMoveWaitsForMemory(t *testing.T) {
	t.Parallel()
	c := restartedLazily(t, 1)
	j := c.job("j")
	from := nodeOf(j, 1)
	if _, err := c.leader().DrainNode(c.ctx, connect.NewRequest(&vftv1.DrainNodeRequest{Node: from, Reason: "repair"})); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if j = c.job("j"); nodeOf(j, 1) != from || j.GetOperation() != nil {
		t.Fatalf("moved while memory is missing\n%s", c.describe())
	}
	for id := range c.nodes {
		c.fill(id)
	}
	c.eventually("the drained node is empty", func() bool { return nodeOf(c.job("j"), 1) != from })
}

// The next leader knows from the log that guests lack memory, and does not
// take for complete those that it has not heard of.
func TestLeaderDiesWhileGuestsLackMemory(t *testing.T) {
	t.Parallel()
	c := restartedLazily(t, 3)
	answer := c.askForCheckpoint("j")
	c.eventually("the request", func() bool { return c.job("j").GetCheckpointRequested() })
	c.crash(c.leader())
	c.leader()
	select {
	case e := <-answer:
		t.Fatalf("checkpoint %v while guests lack memory", e)
	case <-time.After(300 * time.Millisecond):
	}
	for id := range c.nodes {
		c.fill(id)
	}
	if e := <-answer; e.GetState() != committed {
		t.Errorf("%v\n%s", e, c.describe())
	}
	if len(events(c.job("j"), "filled")) != 1 {
		t.Error(c.describe())
	}
}

// A leader that dies between letting guests run and the log: the next one
// learns from the nodes that memory is missing.
func TestLeaderDiesWhileLazyGuestsContinue(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	c.checkpoint("j")
	for _, n := range c.nodes {
		n.do(func() { n.lazy = true })
	}
	n := c.nodes[nodeOf(j, 1)]
	reached := blockAt(n, "ContinueGuests")
	n.do(func() { n.guests["/j/1"].state = vftv1.GuestState_GUEST_STATE_DEAD })
	waitFor(t, reached, "ContinueGuests")
	c.crash(c.leader())
	if j := c.running("j", 2); !j.GetFilling() {
		t.Errorf("guests that lack memory pass for complete\n%s", c.describe())
	}
	for id := range c.nodes {
		c.fill(id)
	}
	c.filled()
}

// The node of a guest that lacks memory starts its sidecar anew: the guest is
// lost, and the job is restarted from the same epoch.
func TestSidecarDiesWhileItsGuestLacksMemory(t *testing.T) {
	t.Parallel()
	c := restartedLazily(t, 1)
	j := c.job("j")
	n := c.nodes[nodeOf(j, 0)]
	n.do(func() {
		g := n.guests["/j/0"]
		g.state, g.filling, g.detail = vftv1.GuestState_GUEST_STATE_DEAD, false, "not adopted"
		n.node.Session++
	})
	j = c.running("j", 3)
	if from := c.restoredFrom(j); from[0] != 2 || from[1] != 2 || !j.GetFilling() {
		t.Errorf("restored from %v\n%s", from, c.describe())
	}
	for id := range c.nodes {
		c.fill(id)
	}
	c.filled()
	if len(events(c.job("j"), "filled")) != 1 {
		t.Error(c.describe())
	}
}

// A restart that a user asks for does not wait for memory.
func TestRestartWhileMemoryIsMissing(t *testing.T) {
	t.Parallel()
	c := restartedLazily(t, 1)
	if _, err := c.leader().RestartJob(context.WithoutCancel(c.ctx), connect.NewRequest(&vftv1.RestartJobRequest{Id: "j"})); err != nil {
		t.Fatal(err)
	}
	c.running("j", 3)
}
