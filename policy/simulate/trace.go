// Package simulate runs the decisions of package policy against made-up
// failures, to see what they would have cost a job in a long time. Nothing in
// it knows the true rates but the maker of the trace.
package simulate

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// Failures describe what befalls a job.
type Failures struct {
	// MTBF is the mean time between failures of the job's nodes together;
	// times between failures are exponential.
	MTBF time.Duration
	// Precision and Recall are those of the alarms, 0 to 1. With a precision
	// of 0 no alarm comes true, and false ones come as often as failures.
	Precision, Recall float64
	// Lead is the warning time of an alarm.
	Lead time.Duration
}

// incident is a failure, an alarm, or an alarm that comes true.
type incident struct {
	at    float64 // seconds; of the alarm if there is one
	alarm bool
	fails bool
	fail  float64 // seconds; of the failure
}

// Trace is one random history, the same for every strategy.
type Trace struct {
	incidents []incident
	length    float64
	failures  Failures
}

// NewTrace draws a history of the given length. The same seed gives the same
// history.
func NewTrace(f Failures, length time.Duration, seed uint64) *Trace {
	r := rand.New(rand.NewPCG(seed, 0x766674)) //nolint:gosec // a simulation
	t := &Trace{length: length.Seconds(), failures: f}
	mu, lead := f.MTBF.Seconds(), f.Lead.Seconds()
	for at := r.ExpFloat64() * mu; at < t.length; at += r.ExpFloat64() * mu {
		i := incident{at: at, fails: true, fail: at}
		if f.Precision > 0 && r.Float64() < f.Recall && at > lead {
			i.alarm, i.at = true, at-lead
		}
		t.incidents = append(t.incidents, i)
	}
	falseRate := 1 / mu
	if f.Precision > 0 {
		falseRate = f.Recall * (1 - f.Precision) / (f.Precision * mu)
	}
	if falseRate > 0 {
		for at := r.ExpFloat64() / falseRate; at < t.length; at += r.ExpFloat64() / falseRate {
			t.incidents = append(t.incidents, incident{at: at, alarm: true})
		}
	}
	slices.SortFunc(t.incidents, func(a, b incident) int { return cmp.Compare(a.at, b.at) })
	return t
}

// Failures returns how many failures the trace has.
func (t *Trace) Failures() int {
	n := 0
	for _, i := range t.incidents {
		if i.fails {
			n++
		}
	}
	return n
}
