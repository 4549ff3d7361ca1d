package policy

import (
	"fmt"
	"time"
)

// Action is what can be done about an alarm.
type Action string

// The actions.
const (
	// Ignore goes on as if nothing had been said.
	Ignore Action = "ignore"
	// Checkpoint takes an epoch at once.
	Checkpoint Action = "checkpoint"
	// Migrate moves the node's guests away while they run.
	Migrate Action = "migrate"
	// Move takes an epoch and restarts the job from it on other nodes.
	Move Action = "move"
)

// Alarm is a verdict about a node that runs guests of a job, with what is known
// of the job at that time.
type Alarm struct {
	// Confidence is the probability that the node fails (p), 0 to 1.
	Confidence float64
	// Lead is the warning time (ℓ).
	Lead time.Duration
	// SinceCommit is the age of the last committed epoch's cut (t): what a
	// failure now would cost in work.
	SinceCommit time.Duration
	// Target says that healthy nodes have room for the guests.
	Target bool
	// Memory is what has to be copied, in bytes (V), for all guests of the
	// job on the node.
	Memory int64
	// Bandwidth is what copying may use, in bytes per second (B).
	Bandwidth float64
	// DirtyRate is what the guests write meanwhile, in bytes per second (d).
	DirtyRate float64
	// MigrationLoss is the job's time that one migration costs (M).
	MigrationLoss time.Duration
}

// Option is one action, weighed.
type Option struct {
	Action Action
	// Cost is the expected loss of the job's time.
	Cost time.Duration
	// Need is how long the action takes until it protects the job.
	Need time.Duration
	// Obstacle says why the action cannot be completed; empty: it can.
	Obstacle Obstacle
}

// Obstacle is what stands against an action.
type Obstacle string

// The obstacles.
const (
	TooLate   Obstacle = "the warning time is too short"
	NoTarget  Obstacle = "no healthy node has room"
	NeverEnds Obstacle = "the guests write faster than they can be copied"
)

// String explains the option.
func (o Option) String() string {
	if o.Obstacle != "" {
		return fmt.Sprintf("%s: not possible, %s (needs %v)", o.Action, o.Obstacle, o.Need.Round(time.Millisecond))
	}
	return fmt.Sprintf("%s: expected loss %v, takes %v", o.Action, o.Cost.Round(time.Millisecond), o.Need.Round(time.Millisecond))
}

// Decision is the cheapest possible action and all that were weighed.
type Decision struct {
	Action  Action
	Options [4]Option
}

// MigrationTime returns how long copying takes while the guests go on writing,
// V/(B−d); false when it would never end.
func MigrationTime(memory int64, bandwidth, dirtyRate float64) (time.Duration, bool) {
	if dirtyRate >= bandwidth {
		return 0, false
	}
	return seconds(float64(memory) / (bandwidth - dirtyRate)), true
}

// Decide weighs the actions against one another. An alarm that does not come
// true costs what was done about it; one that does costs, if ignored, the work
// since the last epoch, the downtime and the restart. Of equal ones the first
// in the order ignore, checkpoint, migrate, move is taken.
func Decide(a Alarm, c Costs) Decision {
	failure := c.Downtime + c.Restart
	saved := c.Checkpoint + c.Latency
	d := Decision{Options: [4]Option{
		{Action: Ignore, Cost: scale(a.SinceCommit+failure, a.Confidence)},
		{Action: Checkpoint, Cost: c.Checkpoint + scale(failure, a.Confidence), Need: saved},
		{Action: Migrate, Cost: a.MigrationLoss},
		{Action: Move, Cost: saved + c.Restart, Need: saved},
	}}
	need, ends := MigrationTime(a.Memory, a.Bandwidth, a.DirtyRate)
	d.Options[2].Need = need
	best := &d.Options[0]
	for i := range d.Options[1:] {
		o := &d.Options[1+i]
		switch {
		case o.Action != Checkpoint && !a.Target:
			o.Obstacle = NoTarget
		case o.Action == Migrate && !ends:
			o.Obstacle = NeverEnds
		case a.Lead < o.Need:
			o.Obstacle = TooLate
		case o.Cost < best.Cost:
			best = o
		}
	}
	d.Action = best.Action
	return d
}

func scale(d time.Duration, f float64) time.Duration { return seconds(d.Seconds() * f) }
