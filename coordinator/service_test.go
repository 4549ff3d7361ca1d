package coordinator

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

func TestWatchJobOverHTTP(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.nodesAlive(2)
	mux := http.NewServeMux()
	mux.Handle(vftv1connect.NewCoordinatorServiceHandler(c.leader()))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	client := vftv1connect.NewCoordinatorServiceClient(srv.Client(), srv.URL)
	s := spec("0123456789", 1)
	for range 2 { // a repeated submit is the same job
		if _, err := client.SubmitJob(c.ctx, connect.NewRequest(&vftv1.SubmitJobRequest{Spec: s})); err != nil {
			t.Fatal(err)
		}
	}
	w, err := client.WatchJob(c.ctx, connect.NewRequest(&vftv1.WatchJobRequest{Id: "0123"}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	var numbers []uint64
	var kinds []string
	finished := false
	for w.Receive() {
		j := w.Msg().GetJob()
		for _, e := range j.GetEvents() {
			numbers, kinds = append(numbers, e.GetNumber()), append(kinds, e.GetKind())
		}
		if j.GetPhase() == running && !finished {
			finished = true
			if got := w.Msg().GetNodeAddresses()[nodeOf(j, 0)]; got != nodeOf(j, 0)+":1" {
				t.Errorf("address %q", got)
			}
			c.finish("0123456789", 1, 0)
		}
	}
	if w.Err() != nil {
		t.Error(w.Err())
	}
	if !slices.Equal(numbers, []uint64{1, 2, 3, 4, 5}) || kinds[4] != "ended" {
		t.Errorf("events %v %v", numbers, kinds)
	}
	l, err := client.ListJobs(c.ctx, connect.NewRequest(&vftv1.ListJobsRequest{}))
	if err != nil || len(l.Msg.GetJobs()) != 1 || len(l.Msg.GetJobs()[0].GetEvents()) != 0 {
		t.Errorf("%v, %v", l, err)
	}
	if _, err := client.GetJob(c.ctx, connect.NewRequest(&vftv1.GetJobRequest{Id: "9"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown job: %v", err)
	}
	bad := spec("x", 0)
	if _, err := client.SubmitJob(c.ctx, connect.NewRequest(&vftv1.SubmitJobRequest{Spec: bad})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("job without guests: %v", err)
	}
}

func TestStopLetsTheProgramEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	c.submit(spec("j", 1))
	c.running("j", 1)
	n := c.nodes["n1"]
	n.do(func() { n.onSignal = func(job string, inc uint64) { c.finish(job, inc, 9) } })
	if _, err := c.leader().StopJob(c.ctx, connect.NewRequest(&vftv1.StopJobRequest{Id: "j", Reason: "enough"})); err != nil {
		t.Fatal(err)
	}
	j := c.waitPhase("j", ended)
	if x := j.GetExit(); x.GetCause() != vftv1.ExitCause_EXIT_CAUSE_STOPPED || x.GetCode() != 9 {
		t.Errorf("exit %v", x)
	}
	n.do(func() {
		if !slices.Equal(n.signals, []int32{15}) || len(n.guests) != 0 {
			t.Errorf("signals %v, guests %v", n.signals, n.guests)
		}
	})
}

func TestStopOfAProgramThatDoesNotListen(t *testing.T) {
	t.Parallel()
	for _, now := range []bool{false, true} {
		c := newCluster(t, 1, 1)
		c.submit(spec("j", 1))
		c.running("j", 1)
		begun := time.Now()
		if _, err := c.leader().StopJob(c.ctx, connect.NewRequest(&vftv1.StopJobRequest{Id: "j", Now: now})); err != nil {
			t.Fatal(err)
		}
		j := c.waitPhase("j", ended)
		if j.GetExit().GetCause() != vftv1.ExitCause_EXIT_CAUSE_STOPPED {
			t.Errorf("exit %v", j.GetExit())
		}
		n := c.nodes["n1"]
		n.do(func() {
			if now != (len(n.signals) == 0) {
				t.Errorf("now %v: signals %v", now, n.signals)
			}
		})
		if took := time.Since(begun); !now && took < 250*time.Millisecond {
			t.Errorf("waited only %v", took)
		}
	}
}

// A job that is submitted long after the leader began has a whole lease too.
func TestClientOfNewJobHasALease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	time.Sleep(700 * time.Millisecond) // longer than the client lease
	s := spec("j", 1)
	s.ClientBound = true
	c.submit(s)
	for range 4 {
		time.Sleep(100 * time.Millisecond)
		if j := c.job("j"); j.GetStopRequested() {
			t.Fatalf("the job was stopped %v", j.GetStopReason())
		}
	}
}

func TestClientGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	s := spec("j", 1)
	s.ClientBound = true
	c.submit(s)
	for range 8 {
		time.Sleep(100 * time.Millisecond)
		if _, err := c.leader().RenewClient(c.ctx, connect.NewRequest(&vftv1.RenewClientRequest{Id: "j"})); err != nil {
			t.Fatal(err)
		}
	}
	c.running("j", 1)
	if j := c.waitPhase("j", ended); j.GetExit().GetCause() != vftv1.ExitCause_EXIT_CAUSE_CLIENT_GONE {
		t.Errorf("exit %v", j.GetExit())
	}
}

func TestUnplaceableJobFailsWithAdvice(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	s := spec("j", 1)
	s.MemoryMib = 1 << 20
	c.submit(s)
	if x := c.waitPhase("j", ended).GetExit(); x.GetCause() != vftv1.ExitCause_EXIT_CAUSE_FAILED || !strings.Contains(x.GetMessage(), "8192 of 8192 MiB free") {
		t.Errorf("exit %v", x)
	}
}

func TestJobWaitsForNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1, func(cfg *Config) { cfg.StartWait = 10 * time.Second })
	c.nodes["n1"].setDown(true)
	l := c.leader()
	if _, err := l.SubmitJob(c.ctx, connect.NewRequest(&vftv1.SubmitJobRequest{Spec: spec("j", 1)})); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	c.nodes["n1"].setDown(false)
	c.running("j", 1)
}

// A node that was away while its job ended cleans up by the heartbeat.
func TestLostNodeLearnsOfTheEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.checkpoint("j")
	c.nodes["n2"].setDown(true)
	c.finish("j", 1, 0)
	c.waitPhase("j", ended)
	c.nodes["n2"].setDown(false)
	c.eventually("n2 clean", func() (ok bool) {
		n := c.nodes["n2"]
		n.do(func() { ok = n.forgot["j"] && len(n.guests) == 0 })
		return ok
	})
}

func TestDeleteEpochAndRepeatedCalls(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 1))
	c.running("j", 1)
	c.checkpoint("j")
	c.checkpoint("j")
	l := c.leader()
	del := func(n uint64) error {
		_, err := l.DeleteEpoch(c.ctx, connect.NewRequest(&vftv1.DeleteEpochRequest{Id: "j", Epoch: n}))
		return err
	}
	for range 2 {
		if err := del(1); err != nil {
			t.Error(err)
		}
	}
	if err := del(2); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("last epoch deleted: %v", err)
	}
	for range 2 {
		if !c.finish("j", 1, 0) {
			t.Error("repeated exit refused")
		}
	}
	c.waitPhase("j", ended)
	if !c.finish("j", 1, 1) || c.job("j").GetExit().GetCode() != 0 {
		t.Error("a late exit is not answered as the first")
	}
	_, err := l.TakeCheckpoint(c.ctx, connect.NewRequest(&vftv1.TakeCheckpointRequest{Id: "j"}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("checkpoint of an ended job: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := newCluster(t, 1, 2, func(cfg *Config) { cfg.Metrics = reg })
	c.submit(spec("j", 1))
	c.running("j", 1)
	c.checkpoint("j")
	var got map[string]float64
	want := map[string]float64{
		"vft_coordinator_leader": 1, "vft_jobs running": 1, "vft_epochs_committed_total": 1, "vft_checkpoint_hold_seconds": 1, "vft_checkpoint_pause_seconds": 1,
	}
	c.eventually("the figures", func() bool {
		got = gather(t, reg)
		for name, v := range want {
			if got[name] != v {
				return false
			}
		}
		return true
	})
	if _, ok := got["vft_node_heartbeat_age_seconds n1"]; !ok {
		t.Errorf("no heartbeat age in %v", got)
	}
}

func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return got
}

func TestTakeCheckpointEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 1)
	c.submit(spec("j", 1))
	c.running("j", 1)
	blockAt(c.nodes["n1"], "WaitParts")
	ctx, cancel := context.WithTimeout(c.ctx, 100*time.Millisecond)
	defer cancel()
	_, err := c.leader().TakeCheckpoint(ctx, connect.NewRequest(&vftv1.TakeCheckpointRequest{Id: "j"}))
	if err == nil {
		t.Error("answered without a checkpoint")
	}
}

func TestClientSeenFromFirstSight(t *testing.T) {
	began := time.Unix(1000, 0)
	l := newLeases(began)
	first := began.Add(time.Hour)
	if got := l.clientSeen("j", first); !got.Equal(first) {
		t.Errorf("a client not heard of yet counts from %v, want %v", got, first)
	}
	if got := l.clientSeen("j", first.Add(time.Minute)); !got.Equal(first) {
		t.Errorf("a silent client counts from %v, want %v", got, first)
	}
}

// Nothing is written to the log by heartbeats that say nothing new.
func TestHeartbeatsOfADrainedNodeAreNotLogged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.eventually("both nodes", func() bool { return len(c.leader().store.nodes()) == 2 })
	n := c.nodes["n1"]
	n.do(func() {
		n.node.Health = &vftv1.Health{State: vftv1.HealthState_HEALTH_STATE_SUSPECT, Confidence: 0.1 + 0.2, Lead: 5}
	})
	if _, err := c.leader().DrainNode(c.ctx, connect.NewRequest(&vftv1.DrainNodeRequest{Node: "n1", Reason: "test"})); err != nil {
		t.Fatal(err)
	}
	c.eventually("the verdict", func() bool { return c.leader().store.node("n1").GetHealth() != nil })
	before := c.leader().store.applied()
	lead, err := c.leader().leader()
	if err != nil {
		t.Fatal(err)
	}
	seen := lead.leases.seen("n1")
	c.eventually("ten more heartbeats", func() bool { return lead.leases.seen("n1").Sub(seen) > 400*time.Millisecond })
	if after := c.leader().store.applied(); after != before {
		t.Errorf("%d entries were written by heartbeats", after-before)
	}
}
