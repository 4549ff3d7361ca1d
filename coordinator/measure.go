package coordinator

import (
	"slices"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/policy"
)

// What is assumed as long as nothing was measured, of this job or another one.
const (
	assumedCheckpoint = 250 * time.Millisecond
	assumedBandwidth  = 200 << 20       // bytes per second
	assumedRestart    = 2 * time.Second // besides copying the memory
	recent            = 5               // how many of the newest measurements count
	mostDirty         = 0.5             // of the bandwidth, see measured.dirty
)

// measured is what a job was seen to pay, from its epochs and events.
type measured struct {
	costs policy.Costs
	// move is how long one migration of one guest holds the job up.
	move time.Duration
	// bandwidth is the memory that a migration gets through, that which holds
	// nothing included, and dirty what the guest wrote meanwhile, in bytes per
	// second: at most half of the bandwidth, since what is written during the
	// one pass over memory is copied once more and that is all.
	bandwidth, dirty float64
	// assumed are the names of the figures that are not measured.
	assumed []string
}

// measure looks at the job first, for what it does not tell at the others, the
// newest first, and assumes the rest.
func measure(job *vftv1.Job, others []*vftv1.Job, lease time.Duration) measured {
	m := measured{}
	jobs := []*vftv1.Job{job}
	for _, o := range slices.Backward(others) {
		if o.GetSpec().GetId() != job.GetSpec().GetId() {
			jobs = append(jobs, o)
		}
	}
	guest := float64(job.GetSpec().GetMemoryMib()) * (1 << 20)

	moves, of := figuresOf(jobs, "migrated", "took", "rest", "hold")
	memory := int64(of.GetSpec().GetMemoryMib()) << 20
	m.bandwidth = ratio(memory*int64(len(moves["took"])), moves["took"])
	if m.bandwidth <= 0 {
		m.bandwidth = assumedBandwidth
		m.assume("bandwidth")
	}
	m.dirty = min(ratio(sum(moves["rest"]), moves["took"]), mostDirty*m.bandwidth)
	copying := time.Duration(guest / m.bandwidth * float64(time.Second))
	if m.move = mean(moves["hold"]); m.move <= 0 {
		m.move = copying
		m.assume("migration_loss")
	}

	var holds, latencies []int64
	for _, e := range slices.Backward(job.GetEpochs()) {
		if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED || len(holds) == recent {
			continue
		}
		hold := e.GetHold()
		for _, p := range e.GetParts() {
			hold = max(hold, p.GetPause())
		}
		holds = append(holds, hold)
		latencies = append(latencies, max(0, e.GetEndedAt()-workSince(job, e)))
	}
	m.costs.Checkpoint, m.costs.Latency = mean(holds), mean(latencies)
	if len(holds) == 0 {
		m.costs.Checkpoint, m.costs.Latency = assumedCheckpoint, copying
		m.assume("checkpoint", "latency")
	}

	restarts, _ := figuresOf(jobs, "restarted", "took", "detect")
	if m.costs.Restart = mean(restarts["took"]); m.costs.Restart <= 0 {
		m.costs.Restart = assumedRestart + copying
		m.assume("restart")
	}
	if m.costs.Downtime = mean(restarts["detect"]); m.costs.Downtime <= 0 {
		m.costs.Downtime = lease
		m.assume("downtime")
	}
	return m
}

func (m *measured) assume(names ...string) { m.assumed = append(m.assumed, names...) }

// figuresOf collects figures of the newest events of a kind, from the first of
// the jobs that has any.
func figuresOf(jobs []*vftv1.Job, kind string, names ...string) (figures map[string][]int64, of *vftv1.Job) {
	out := map[string][]int64{}
	for _, j := range jobs {
		found := 0
		for _, ev := range slices.Backward(j.GetEvents()) {
			if ev.GetKind() != kind || found == recent {
				continue
			}
			found++
			for _, n := range names {
				if v, ok := ev.GetFigures()[n]; ok {
					out[n] = append(out[n], v)
				}
			}
		}
		if found > 0 {
			return out, j
		}
	}
	return out, nil
}

func sum(v []int64) (s int64) {
	for _, x := range v {
		s += x
	}
	return s
}

func mean(v []int64) time.Duration {
	if len(v) == 0 {
		return 0
	}
	return time.Duration(sum(v) / int64(len(v)))
}

// ratio is bytes per second of figures in bytes and ns; 0 without any.
func ratio(bytes int64, took []int64) float64 {
	if t := time.Duration(sum(took)).Seconds(); t > 0 {
		return float64(bytes) / t
	}
	return 0
}
