package coordinator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

const (
	running   = vftv1.JobPhase_JOB_PHASE_RUNNING
	ended     = vftv1.JobPhase_JOB_PHASE_ENDED
	committed = vftv1.EpochState_EPOCH_STATE_COMMITTED
	aborted   = vftv1.EpochState_EPOCH_STATE_ABORTED
)

func TestIntervalCheckpointsAndRetention(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	s := spec("j", 2)
	s.Interval = int64(30 * time.Millisecond)
	c.submit(s)
	c.eventually("five commits", func() bool { return len(events(c.job("j"), "checkpoint")) >= 5 })
	c.eventually("two epochs kept", func() bool { return len(committedEpochs(c.job("j"))) == 2 })
	c.eventually("parts of deleted epochs removed", func() bool {
		old := 0
		for _, n := range c.nodes {
			n.do(func() {
				for k := range n.parts {
					if strings.HasPrefix(k, "/j/1/") {
						old++
					}
				}
			})
		}
		return old == 0
	})
	for _, e := range c.job("j").GetEpochs() {
		if e.GetState() != committed {
			continue
		}
		for _, p := range e.GetParts() {
			if len(p.GetNodes()) != 2 || p.GetPause() == 0 || p.GetCutAt() == 0 {
				t.Errorf("epoch %d: part %v", e.GetNumber(), p)
			}
		}
		if e.GetHold() == 0 || e.GetProof() == nil {
			t.Errorf("epoch %d without hold or proof", e.GetNumber())
		}
	}
}

// A checkpoint that fails at any step leaves the job running, the network
// released and the epoch before intact (I7).
func TestFailedCheckpointLeavesTheJobRunning(t *testing.T) {
	t.Parallel()
	fails := func(context.Context, string) error {
		return connect.NewError(connect.CodeInternal, errors.New("scripted"))
	}
	hangs := func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	for _, call := range []string{"Prepare", "Hold", "Cut", "Release", "WaitParts"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1, 2)
			c.submit(spec("j", 2))
			c.running("j", 1)
			if e := c.checkpoint("j"); e.GetState() != committed {
				t.Fatalf("first checkpoint %v", e)
			}
			c.nodes["n2"].hook(call, fails)
			e := c.checkpoint("j")
			if e.GetState() != aborted || !strings.Contains(e.GetReason(), "scripted") || !strings.Contains(e.GetReason(), "n2") {
				t.Errorf("failing %s: %v", call, e)
			}
			c.nothingHeld()
			c.nodes["n2"].hook(call, nil)
			j := c.running("j", 1)
			if got := committedEpochs(j); !slices.Equal(got, []uint64{1}) {
				t.Errorf("committed %v", got)
			}
			if e := c.checkpoint("j"); e.GetState() != committed {
				t.Errorf("checkpoint after the failure: %v", e)
			}
		})
	}
	t.Run("hang in hold releases the others", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 1, 2)
		c.submit(spec("j", 2))
		c.running("j", 1)
		c.nodes["n2"].hook("Hold", hangs)
		begun := time.Now()
		go c.checkpoint("j")
		c.eventually("n1 held", func() bool { return holds(c.nodes["n1"]) })
		c.eventually("n1 released", func() bool { return !holds(c.nodes["n1"]) })
		if took := time.Since(begun); took > 900*time.Millisecond {
			t.Errorf("held for %v", took)
		}
		c.eventually("aborted", func() bool { return len(events(c.job("j"), "checkpoint-failed")) == 1 })
		c.running("j", 1)
	})
}

func holds(n *fakeSidecar) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held) > 0
}

// An epoch that a node released by its own time-out can never commit (I1).
func TestPoisonedEpochIsNotCommitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.nodes["n1"].do(func() { c.nodes["n1"].poisoned["/j/1"] = true })
	if e := c.checkpoint("j"); e.GetState() != aborted || !strings.Contains(e.GetReason(), "released by itself") {
		t.Errorf("epoch %v", e)
	}
	c.running("j", 1)
}

func TestFramesInFlightAbortTheEpoch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2, func(cfg *Config) {
		cfg.VerifyDrain = func([]*vftv1.Member, map[string][]*vftv1.PairCount) (*vftv1.DrainProof, error) {
			return nil, errors.New("guest 0 to 1: 3 in flight")
		}
	})
	c.submit(spec("j", 2))
	c.running("j", 1)
	if e := c.checkpoint("j"); e.GetState() != aborted || !strings.Contains(e.GetReason(), "3 in flight") {
		t.Errorf("epoch %v", e)
	}
	c.nothingHeld()
}

func TestIntervalBacksOffAfterFailures(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2, func(cfg *Config) { cfg.RetryBackoff = 100 * time.Millisecond })
	s := spec("j", 1)
	s.Interval = int64(10 * time.Millisecond)
	for _, n := range c.nodes {
		n.hook("Prepare", func(context.Context, string) error { return errors.New("no") })
	}
	c.submit(s)
	c.running("j", 1)
	time.Sleep(time.Second)
	if n := len(events(c.job("j"), "checkpoint-failed")); n == 0 || n > 12 {
		t.Errorf("%d attempts in a second, backoff 100 ms", n)
	}
}

func TestDegradedCheckpointOnOneNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	c.submit(spec("j", 1))
	c.running("j", 1)
	if e := c.checkpoint("j"); e.GetState() != committed || e.GetRequired() != "local" {
		t.Errorf("epoch %v", e)
	}
	ev := events(c.job("j"), "checkpoint")[0]
	if !strings.Contains(ev.GetText(), "degraded: local instead of partner") {
		t.Errorf("event %q", ev.GetText())
	}
}

// A node that does not take its copy is passed over; when none takes it the
// epoch is given up, and the job goes on (I7).
func TestPartnerThatTakesNoCopies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 1))
	home := nodeOf(c.running("j", 1), 0)
	partner := c.checkpoint("j").GetParts()[0].GetNodes()[1]
	full := func(context.Context, string) error { return errors.New("disk full") }
	c.nodes[partner].hook("SecurePart", full)
	e := c.checkpoint("j")
	if nodes := e.GetParts()[0].GetNodes(); e.GetState() != committed || len(nodes) != 2 || nodes[0] != home || nodes[1] == partner {
		t.Errorf("epoch %v", e)
	}
	for _, n := range c.nodes {
		n.hook("SecurePart", full)
	}
	if e = c.checkpoint("j"); e.GetState() != aborted || !strings.Contains(e.GetReason(), "disk full") {
		t.Errorf("epoch %v", e)
	}
	c.running("j", 1)
}
