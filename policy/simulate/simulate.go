package simulate

import (
	"math"
	"slices"
	"time"

	"github.com/mpirun-vft/vft/policy"
)

// Job is what the job pays, constant over a run.
type Job struct {
	policy.Costs
	// Migration is how long moving guests off a node takes, MigrationLoss what
	// it costs the job.
	Migration, MigrationLoss time.Duration
	// Prior is the mean time between failures that is assumed before anything
	// was seen.
	Prior time.Duration
}

// Strategy says how a run behaves.
type Strategy struct {
	// Fixed is the compute time between checkpoints; 0: policy.Interval with
	// what has been seen so far.
	Fixed time.Duration
	// Alarms are acted on, as policy.Decide says.
	Alarms bool
}

// Outcome of a run.
type Outcome struct {
	// Wasted is the share of the time that did not advance the job.
	Wasted float64
	// Failures that hit the job, Avoided ones that a migration had emptied
	// the node for.
	Failures, Avoided int
	// Checkpoints taken, of them OnAlarm; Migrations made, of them in vain.
	Checkpoints, OnAlarm, Migrations, InVain int
}

// priorWeight is how many failures the prior estimate of the MTBF is worth, and
// priorAlarms how many alarms the prior estimate of precision and recall.
const (
	priorWeight = 2
	priorAlarms = 4
	priorGood   = 2 // of them
)

// run is the state of a simulated job; times are seconds.
type run struct {
	job  Job
	how  Strategy
	now  float64
	work float64 // saved in the last committed epoch
	done float64 // computed in all, not all of it saved

	pending []epoch // cut, not committed
	sinceCk float64 // computed since the last checkpoint began
	out     Outcome

	alarmsTrue, alarmsFalse, failuresSeen, failuresTold float64
	downUntil                                           float64
}

// epoch is a checkpoint on its way.
type epoch struct {
	at   float64 // of the commit
	work float64
}

// Run simulates a job through a trace.
func Run(t *Trace, j Job, s Strategy) Outcome {
	r := &run{job: j, how: s}
	pendingFailures := []incident{}
	for _, i := range t.incidents {
		r.failUntil(i.at, &pendingFailures)
		switch {
		case !i.alarm:
			r.fail(i.fail, false)
		case !s.Alarms:
			if i.fails {
				pendingFailures = append(pendingFailures, i)
			}
		default:
			if r.onAlarm(i) && i.fails {
				// The node is empty when it fails.
				r.out.Avoided++
				r.failuresTold++
				r.failuresSeen++
				r.alarmsTrue++
			} else if i.fails {
				pendingFailures = append(pendingFailures, i)
			}
			if !i.fails {
				r.alarmsFalse++
			}
		}
	}
	r.failUntil(t.length, &pendingFailures)
	r.advance(t.length)
	r.out.Wasted = 1 - r.done/t.length
	return r.out
}

// failUntil lets the announced failures happen that are due.
func (r *run) failUntil(at float64, due *[]incident) {
	slices.SortFunc(*due, func(a, b incident) int {
		switch {
		case a.fail < b.fail:
			return -1
		case a.fail > b.fail:
			return 1
		}
		return 0
	})
	for len(*due) > 0 && (*due)[0].fail <= at {
		r.fail((*due)[0].fail, true)
		*due = (*due)[1:]
	}
}

// interval is the compute time until the next checkpoint.
func (r *run) interval() float64 {
	if r.how.Fixed > 0 {
		return r.how.Fixed.Seconds()
	}
	mtbf := policy.EstimateMTBF(r.job.Prior, time.Duration(r.now*float64(time.Second)), int(r.failuresSeen), priorWeight)
	return policy.Interval(r.job.Costs, r.predictor(), mtbf).Seconds()
}

// predictor is what has been seen of the alarms.
func (r *run) predictor() policy.Predictor {
	if !r.how.Alarms {
		return policy.Predictor{}
	}
	return policy.Predictor{
		Precision: (r.alarmsTrue + priorGood) / (r.alarmsTrue + r.alarmsFalse + priorAlarms),
		// Recall begins at nothing: to count on alarms that do not come is dear.
		Recall: r.failuresTold / (r.failuresSeen + 1),
		Cost:   r.job.Checkpoint,
	}
}

// advance computes and checkpoints until the time is at.
func (r *run) advance(at float64) {
	r.now = max(r.now, min(r.downUntil, at))
	for r.now < at {
		step := min(at-r.now, max(0, r.interval()-r.sinceCk))
		r.now += step
		r.done += step
		r.sinceCk += step
		if r.now >= at {
			break
		}
		r.checkpoint(at)
	}
	r.commit()
}

// checkpoint holds the job up; it may be cut short by what happens at limit.
func (r *run) checkpoint(limit float64) {
	c := r.job.Checkpoint.Seconds()
	r.sinceCk = 0
	if r.now+c > limit {
		r.now = limit
		return
	}
	r.now += c
	r.out.Checkpoints++
	r.commit()
	r.pending = append(r.pending, epoch{at: r.now + r.job.Latency.Seconds(), work: r.done})
}

func (r *run) commit() {
	for len(r.pending) > 0 && r.pending[0].at <= r.now {
		r.work = r.pending[0].work
		r.pending = r.pending[1:]
	}
}

// fail loses what is not saved.
func (r *run) fail(at float64, told bool) {
	r.advance(at)
	r.commit()
	r.out.Failures++
	r.failuresSeen++
	if told {
		r.failuresTold++
		r.alarmsTrue++
	}
	r.done = r.work
	r.pending, r.sinceCk = nil, 0
	r.downUntil = max(r.now, at) + (r.job.Downtime + r.job.Restart).Seconds()
}

// onAlarm does what the policy says and reports whether the node was emptied
// in time.
func (r *run) onAlarm(i incident) bool {
	r.advance(i.at)
	if r.now < r.downUntil {
		return false
	}
	p := r.predictor()
	lead := math.Inf(1)
	if i.fails {
		lead = i.fail - i.at
	}
	d := policy.Decide(policy.Alarm{
		Confidence: p.Precision, Lead: time.Duration(min(lead, 1e9) * float64(time.Second)),
		SinceCommit: time.Duration((r.done - r.work) * float64(time.Second)), Target: true,
		Memory: 1 << 30, Bandwidth: float64(int64(1)<<30) / r.job.Migration.Seconds(), MigrationLoss: r.job.MigrationLoss,
	}, r.job.Costs)
	switch d.Action {
	case policy.Migrate:
		r.now += r.job.MigrationLoss.Seconds()
		r.out.Migrations++
		if !i.fails {
			r.out.InVain++
		}
		return true
	case policy.Checkpoint:
		r.out.OnAlarm++
		r.checkpoint(math.Inf(1))
	case policy.Move:
		r.out.OnAlarm++
		r.checkpoint(math.Inf(1))
		r.now += (r.job.Latency + r.job.Restart).Seconds()
		r.commit()
		return true
	case policy.Ignore:
	}
	return false
}

// BestFixed searches, with hindsight over all traces, the fixed interval that
// wastes least, alarms handled or not; it returns it with its mean waste.
func BestFixed(traces []*Trace, j Job, alarms bool) (time.Duration, float64) {
	best, least := time.Duration(0), math.Inf(1)
	young := policy.Young(j.Checkpoint, traces[0].failures.MTBF).Seconds()
	low, high := young/4, young*32
	const steps = 56
	ratio := math.Pow(high/low, 1.0/steps)
	for k, t := 0, low; k <= steps; k, t = k+1, t*ratio {
		d := time.Duration(t * float64(time.Second))
		if w := Mean(traces, j, Strategy{Fixed: d, Alarms: alarms}); w < least {
			best, least = d, w
		}
	}
	return best, least
}

// Mean is the mean waste of a strategy over traces.
func Mean(traces []*Trace, j Job, s Strategy) float64 {
	sum := 0.0
	for _, t := range traces {
		sum += Run(t, j, s).Wasted
	}
	return sum / float64(len(traces))
}
