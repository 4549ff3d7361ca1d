// Package policy decides, by pure functions, when a job is checkpointed and
// what is done about a node that is expected to fail. It knows neither clocks
// nor nodes: what was measured goes in, a decision with its figures comes out.
// docs/POLICY.md has the formulas and where they come from.
package policy

import (
	"math"
	"time"
)

// Costs are what the running job was measured to pay.
type Costs struct {
	// Checkpoint is how long one checkpoint holds the job up (C): pause,
	// held network, and what the copying slows the job down by.
	Checkpoint time.Duration
	// Latency is the time from the cut until the epoch is committed (L). What
	// is computed meanwhile is lost with a failure before the commit.
	Latency time.Duration
	// Restart is the time from the decision until all guests run again (R).
	Restart time.Duration
	// Downtime is detection, fencing and waiting for a replacement (D).
	Downtime time.Duration
}

// Predictor says how good alarms are.
type Predictor struct {
	// Precision is the share of alarms that a failure follows, 0 to 1.
	Precision float64
	// Recall is the share of failures that an alarm precedes early enough to
	// act on it, 0 to 1.
	Recall float64
	// Cost is the time that acting on an alarm costs the job (C_p).
	Cost time.Duration
}

// Young returns Young's interval √(2Cμ) between checkpoints that cost c, at a
// mean time between failures of mtbf (J. W. Young, CACM 17(9), 1974).
func Young(c, mtbf time.Duration) time.Duration {
	return seconds(math.Sqrt(2 * c.Seconds() * mtbf.Seconds()))
}

// Daly returns Daly's higher-order interval: compute time between two
// checkpoints, the checkpoint itself not included (J. T. Daly, FGCS 22(3),
// 2006). It is mtbf when a checkpoint costs 2·mtbf or more.
func Daly(c, mtbf time.Duration) time.Duration {
	return seconds(daly(c.Seconds(), mtbf.Seconds()))
}

func daly(c, mtbf float64) float64 {
	if c >= 2*mtbf {
		return mtbf
	}
	x := c / (2 * mtbf)
	return math.Sqrt(2*c*mtbf)*(1+math.Sqrt(x)/3+x/9) - c
}

// Interval returns the compute time to leave between checkpoints: Daly's for
// the failures that no alarm announces, whose mean time between is mtbf/(1−r);
// at least the latency, since a checkpoint that begins before the last one is
// committed gains nothing. It is 0 when mtbf is not positive. A recall of 1 is
// not believed: bestRecall is.
func Interval(c Costs, p Predictor, mtbf time.Duration) time.Duration {
	if mtbf <= 0 {
		return 0
	}
	unannounced := mtbf.Seconds() / (1 - min(max(0, p.Recall), bestRecall))
	return max(seconds(daly(c.Checkpoint.Seconds(), unannounced)), c.Latency)
}

// bestRecall is the highest recall that an interval relies on.
const bestRecall = 0.9999

// Waste returns the expected share of time that does not advance the job, to
// first order: checkpoints every t, half an interval and the latency lost with
// each failure that no alarm announced, acting on alarms, and restarts.
func Waste(c Costs, p Predictor, mtbf, t time.Duration) float64 {
	mu, interval := mtbf.Seconds(), t.Seconds()
	w := c.Checkpoint.Seconds()/interval +
		(1-p.Recall)*(interval/2+c.Latency.Seconds())/mu +
		(c.Downtime+c.Restart).Seconds()/mu
	if p.Recall > 0 && p.Precision > 0 {
		w += p.Recall * p.Cost.Seconds() / (p.Precision * mu)
	}
	return w
}

// Level is one of two kinds of checkpoints: what it costs, and how often
// failures come that need it.
type Level struct {
	Cost time.Duration
	MTBF time.Duration
}

// Pattern is a repeated sequence of checkpoints on two levels.
type Pattern struct {
	// Cheap is the number of cheap checkpoints for each dear one, at least 1.
	Cheap int
	// Work is the compute time of one sequence.
	Work time.Duration
}

// TwoLevel returns the sequence with the least overhead: N cheap checkpoints
// and a dear one per W of work, N* = √(λ₁C₂/(λ₂C₁)) and
// W* = √((N·C₁+C₂)/(λ₁/(2N)+λ₂/2)), both integers next to N* compared
// (A. Benoit, A. Cavelan, Y. Robert, H. Sun, IPDPS 2016).
func TwoLevel(cheap, dear Level) Pattern {
	c1, c2 := cheap.Cost.Seconds(), dear.Cost.Seconds()
	l1, l2 := 1/cheap.MTBF.Seconds(), 1/dear.MTBF.Seconds()
	rate := func(n float64) float64 { return l1/(2*n) + l2/2 }
	overhead := func(n float64) float64 { return 2 * math.Sqrt((n*c1+c2)*rate(n)) }
	best := max(1, math.Floor(math.Sqrt(l1*c2/(l2*c1))))
	if overhead(best+1) < overhead(best) {
		best++
	}
	return Pattern{Cheap: int(best), Work: seconds(math.Sqrt((best*c1 + c2) / rate(best)))}
}

// EstimateMTBF returns the mean time between failures after failures were seen
// in the observed time: (observed + k·prior)/(failures + k). Weight k, 1 to 3,
// says how many failures the prior estimate is worth. Planned ends and the
// program's own failures are not failures.
func EstimateMTBF(prior, observed time.Duration, failures int, weight float64) time.Duration {
	return seconds((observed.Seconds() + weight*prior.Seconds()) / (float64(failures) + weight))
}

// seconds converts, and keeps what does not fit at the longest duration.
func seconds(s float64) time.Duration {
	const longest = time.Duration(math.MaxInt64)
	if s >= longest.Seconds() {
		return longest
	}
	return time.Duration(s * float64(time.Second))
}
