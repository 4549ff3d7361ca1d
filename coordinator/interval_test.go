package coordinator

import (
	"testing"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestJobMTBF(t *testing.T) {
	now := time.Unix(0, int64(100*24*time.Hour))
	day := int64(24 * time.Hour)
	job := func(nodes int, start, end int64, restarts int32) *vftv1.Job {
		j := &vftv1.Job{StartedAt: start * day, EndedAt: end * day, Restarts: restarts}
		for i := range nodes {
			j.Guests = append(j.Guests, &vftv1.Guest{Index: uint32(i), Node: string(rune('a' + i))})
		}
		return j
	}
	for _, tc := range []struct {
		name  string
		jobs  []*vftv1.Job
		nodes int
		days  time.Duration
	}{
		{"nothing known", nil, 2, 132},
		{"not started", []*vftv1.Job{job(2, 0, 0, 3)}, 1, 264},
		{"running without failures", []*vftv1.Job{job(4, 50, 0, 0)}, 1, 464},
		{"with failures", []*vftv1.Job{job(4, 50, 0, 0), job(2, 10, 28, 4)}, 2, 50},
	} {
		if got, _ := jobMTBF(tc.jobs, tc.nodes, now); got != tc.days*24*time.Hour {
			t.Errorf("%s: %v, want %d days", tc.name, got, tc.days)
		}
	}
}

// The interval of auto is the user's until a checkpoint was measured, then that
// of the policy; it is told once as long as it stays about the same.
func TestIntervalFollowsTheJob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	s := spec("j", 2)
	s.Interval, s.IntervalAuto = int64(100*time.Millisecond), true
	c.submit(s)
	c.eventually("an interval", func() bool { return len(events(c.job("j"), "interval")) == 1 })
	j := c.running("j", 1)
	ev := events(j, "interval")[0]
	// A checkpoint holds the job for 9 ms, two nodes fail once in 132 days: Young
	// says 7.6 min.
	if got := time.Duration(ev.GetFigures()["interval"]); got < 7*time.Minute || got > 8*time.Minute {
		t.Errorf("the interval is %v: %v", got, ev)
	}
	time.Sleep(300 * time.Millisecond)
	if j := c.job("j"); len(committedEpochs(j)) != 1 || len(events(j, "interval")) != 1 {
		t.Errorf("checkpoints %v, intervals %v", committedEpochs(j), events(j, "interval"))
	}
}
