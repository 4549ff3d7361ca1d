package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// blockAt makes the first call of that name at a node wait until its caller is
// gone, and tells when it was reached.
func blockAt(n *fakeSidecar, call string) <-chan struct{} {
	reached := make(chan struct{})
	first := true
	n.hook(call, func(ctx context.Context, _ string) error {
		n.mu.Lock()
		mine := first
		first = false
		n.mu.Unlock()
		if !mine {
			return nil
		}
		close(reached)
		<-ctx.Done()
		return ctx.Err()
	})
	return reached
}

func waitFor(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(15 * time.Second):
		t.Fatalf("not reached: %s", what)
	}
}

// oneCommit checks that no epoch was committed twice or skipped into a state
// that the events do not tell (I1).
func oneCommit(t *testing.T, j *vftv1.Job) {
	t.Helper()
	seen := map[int64]bool{}
	for _, e := range events(j, "checkpoint") {
		n := e.GetFigures()["epoch"]
		if seen[n] {
			t.Errorf("epoch %d committed twice", n)
		}
		seen[n] = true
	}
	for i, e := range j.GetEvents() {
		if i > 0 && e.GetNumber() != j.GetEvents()[i-1].GetNumber()+1 {
			t.Errorf("event %d after %d", e.GetNumber(), j.GetEvents()[i-1].GetNumber())
		}
	}
}

// A leader that dies at any step of a checkpoint: the next one aborts the
// epoch or commits it, and the job goes on (I5, I7).
func TestLeaderDiesDuringCheckpoint(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		call      string
		committed bool
	}{{"Prepare", false}, {"Hold", false}, {"Cut", false}, {"Release", false}, {"WaitParts", true}} {
		t.Run(tc.call, func(t *testing.T) {
			c := newCluster(t, 3, 2)
			c.submit(spec("j", 2))
			c.running("j", 1)
			if e := c.checkpoint("j"); e.GetState() != committed {
				t.Fatal(e)
			}
			reached := blockAt(c.nodes["n1"], tc.call)
			old := c.leader()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, err := old.TakeCheckpoint(c.ctx, connect.NewRequest(&vftv1.TakeCheckpointRequest{Id: "j"}))
				if connect.CodeOf(err) != connect.CodeUnavailable {
					t.Errorf("the client of the lost leader got %v", err)
				}
			}()
			waitFor(t, reached, tc.call)
			c.crash(old)
			waitFor(t, done, "the client's answer")
			c.eventually("the epoch decided", func() bool {
				j := c.job("j")
				return j.GetCheckpointsDone() == 2 && j.GetOperation() == nil
			})
			j := c.running("j", 1)
			want := []uint64{1}
			if tc.committed {
				want = []uint64{1, 2}
			}
			if got := committedEpochs(j); !slices.Equal(got, want) {
				t.Errorf("committed %v, want %v", got, want)
			}
			c.nothingHeld()
			oneCommit(t, j)
			if e := c.checkpoint("j"); e.GetState() != committed || e.GetNumber() < 3 {
				t.Errorf("next checkpoint %v", e)
			}
		})
	}
}

// A leader that dies at any step of a restart: the next one finishes it, in
// the same incarnation.
func TestLeaderDiesDuringRestart(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"KillGuests", "RestoreGuests", "ContinueGuests"} {
		t.Run(call, func(t *testing.T) {
			c := newCluster(t, 3, 3, func(cfg *Config) { cfg.FenceTimeout = 5 * time.Second })
			c.submit(spec("j", 2))
			j := c.running("j", 1)
			c.checkpoint("j")
			stays := c.nodes[nodeOf(j, 0)]
			reached := blockAt(stays, call)
			c.nodes[nodeOf(j, 1)].setDown(true)
			waitFor(t, reached, call)
			c.crash(c.leader())
			j = c.running("j", 2)
			for g, from := range c.restoredFrom(j) {
				if from != 1 {
					t.Errorf("guest %d restored from %d", g, from)
				}
			}
			if j.GetRestarts() != 1 || len(events(j, "restarted")) != 1 {
				t.Errorf("%s", c.describe())
			}
			oneCommit(t, j)
		})
	}
}

func TestLeaderDiesDuringBoot(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"BootGuests", "StartProgram"} {
		t.Run(call, func(t *testing.T) {
			c := newCluster(t, 3, 2)
			reached := blockAt(c.nodes["n1"], call)
			c.submit(spec("j", 2))
			waitFor(t, reached, call)
			c.crash(c.leader())
			j := c.running("j", 1)
			n := c.nodes[nodeOf(j, 0)]
			n.do(func() {
				if n.started["/j/1"] != 1 {
					t.Errorf("program started %v", n.started)
				}
			})
		})
	}
}

func TestLeaderDiesDuringStop(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 2)
	c.submit(spec("j", 2))
	c.running("j", 1)
	reached := blockAt(c.nodes["n1"], "KillGuests")
	if !c.finish("j", 1, 7) {
		t.Fatal("exit refused")
	}
	waitFor(t, reached, "KillGuests")
	c.crash(c.leader())
	if j := c.waitPhase("j", ended); j.GetExit().GetCode() != 7 {
		t.Errorf("exit %v", j.GetExit())
	}
}

func TestLeaderHandsOverOnShutdown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 2)
	c.submit(spec("j", 1))
	c.running("j", 1)
	old := c.leader()
	c.mu.Lock()
	old.dead = true
	c.mu.Unlock()
	begun := time.Now()
	old.cancel()
	c.leader()
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("no leader for %v", took)
	}
	c.running("j", 1)
	if e := c.checkpoint("j"); e.GetState() != committed {
		t.Error(e)
	}
	if n := len(c.leader().reachable()); n != 2 {
		t.Errorf("%d nodes alive after the hand-over", n)
	}
}

// Replicas that do not lead say who does.
func TestFollowersNameTheLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 1)
	c.nodesAlive(1)
	l := c.leader()
	for _, r := range c.reps {
		if r == l {
			continue
		}
		c.eventually("hint", func() bool {
			_, err := r.GetJob(c.ctx, connect.NewRequest(&vftv1.GetJobRequest{Id: "x"}))
			var ce *connect.Error
			if !errors.As(err, &ce) || ce.Code() != connect.CodeUnavailable {
				t.Fatalf("follower answered %v", err)
			}
			for _, d := range ce.Details() {
				m, err := d.Value()
				if h, ok := m.(*vftv1.LeaderHint); ok && err == nil && h.GetId() == l.cfg.ID {
					return h.GetAddress() == l.cfg.APIAddress
				}
			}
			return false
		})
		st, err := r.Status(c.ctx, connect.NewRequest(&vftv1.StatusRequest{}))
		if err != nil || st.Msg.GetState() != "follower" || st.Msg.GetLeader() != l.cfg.ID || len(st.Msg.GetReplicas()) != 3 {
			t.Errorf("status %v, %v", st, err)
		}
	}
}

// A minority cannot decide anything: its leader steps down, and what it was
// asked is not done.
func TestIsolatedLeaderDecidesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 2)
	c.submit(spec("j", 1))
	c.running("j", 1)
	old := c.leader()
	old.layer.cutOff(true)
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	_, err := old.FinishJob(ctx, connect.NewRequest(&vftv1.FinishJobRequest{Id: "j", Incarnation: 1, Exit: &vftv1.Exit{Code: 9}}))
	if connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("isolated leader answered %v", err)
	}
	c.eventually("another leader", func() bool { l := c.tryLeader(); return l != nil && l != old })
	old.layer.cutOff(false)
	c.eventually("the old one follows", func() bool {
		return old.store.applied() >= c.leader().store.applied() && old != c.leader()
	})
	if j := c.job("j"); j.GetPhase() != running || j.GetStopRequested() {
		t.Errorf("job %v", j)
	}
}

func TestPartitionedSidecarDuringCheckpoint(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"Hold", "WaitParts"} {
		t.Run(call, func(t *testing.T) {
			c := newCluster(t, 1, 3)
			c.submit(spec("j", 2))
			j := c.running("j", 1)
			c.checkpoint("j")
			lost := c.nodes[nodeOf(j, 1)]
			lost.hook(call, func(ctx context.Context, _ string) error {
				lost.setDown(true)
				<-ctx.Done()
				return fmt.Errorf("no route: %w", ctx.Err())
			})
			if e := c.checkpoint("j"); e.GetState() != aborted {
				t.Errorf("epoch %v", e)
			}
			j = c.running("j", 2)
			for g, from := range c.restoredFrom(j) {
				if from != 1 {
					t.Errorf("guest %d restored from %d", g, from)
				}
			}
		})
	}
}
