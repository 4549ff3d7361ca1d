package coordinator

import (
	"context"
	"fmt"
	"slices"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/policy"
)

const (
	// nodeMTBF is what a node's mean time between failures is taken for at first:
	// 419 unexpected interruptions of 2,048 nodes in 54 days (docs/POLICY.md). It
	// counts for priorWeight failures.
	nodeMTBF    = 264 * 24 * time.Hour
	priorWeight = 1
	// shortestInterval keeps a job whose checkpoints cost next to nothing from
	// taking one after the other.
	shortestInterval = time.Second
	// tellInterval is the change of the interval, by ratio, that is an event.
	tellInterval = 1.2
)

// interval is the time to leave between checkpoints: the one that the user
// named, or with auto the one that follows what the job pays and how often
// nodes fail. That of auto is told when it changes.
func (k *controller) interval(ctx context.Context, job *vftv1.Job) time.Duration {
	first := time.Duration(job.GetSpec().GetInterval())
	if !job.GetSpec().GetIntervalAuto() {
		return first
	}
	jobs := k.c.store.jobs()
	m := measure(job, jobs, k.c.cfg.Lease)
	if slices.Contains(m.assumed, "checkpoint") {
		return first
	}
	nodes := max(1, len(nodesOf(job)))
	mtbf, failures := jobMTBF(jobs, nodes, k.c.cfg.Now())
	t := max(policy.Interval(m.costs, policy.Predictor{}, mtbf), shortestInterval)
	last := lastInterval(job)
	if last > 0 && t < time.Duration(float64(last)*tellInterval) && last < time.Duration(float64(t)*tellInterval) {
		return last
	}
	k.say(ctx, "interval", fmt.Sprintf("checkpoints every %v from now on: one costs %v and takes %v, and %d nodes are expected to fail once in %v",
		t.Round(100*time.Millisecond), m.costs.Checkpoint.Round(time.Millisecond), m.costs.Latency.Round(time.Millisecond), nodes, mtbf.Round(time.Second)),
		map[string]int64{
			"interval": int64(t), "checkpoint": int64(m.costs.Checkpoint), "latency": int64(m.costs.Latency),
			"mtbf": int64(mtbf), "failures": failures, "nodes": int64(nodes),
		}, nil)
	return t
}

// lastInterval is the interval that was told last, 0 for none.
func lastInterval(job *vftv1.Job) time.Duration {
	for _, ev := range slices.Backward(job.GetEvents()) {
		if ev.GetKind() == "interval" {
			return time.Duration(ev.GetFigures()["interval"])
		}
	}
	return 0
}

// jobMTBF estimates the mean time between failures of a job on so many nodes
// from the time that nodes ran jobs and the failures seen meanwhile.
func jobMTBF(jobs []*vftv1.Job, nodes int, now time.Time) (mtbf time.Duration, failures int64) {
	var observed time.Duration
	for _, j := range jobs {
		if j.GetStartedAt() == 0 {
			continue
		}
		end := now.UnixNano()
		if j.GetEndedAt() != 0 {
			end = j.GetEndedAt()
		}
		observed += time.Duration(max(0, end-j.GetStartedAt())) * time.Duration(max(1, len(nodesOf(j))))
		failures += int64(j.GetRestarts())
	}
	return policy.EstimateMTBF(nodeMTBF, observed, int(failures), priorWeight) / time.Duration(nodes), failures
}
