package health

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Probe reads one source of a machine. Its readings need no probe name and no
// time: the runner adds them. An error does not take back the readings that
// come with it. A source that is not there is [Absent].
type Probe interface {
	// Name is the probe's name in readings and rules.
	Name() string
	// Run reads once. It returns soon after ctx ends; a runner bears one that
	// does not. Runs of one probe never overlap.
	Run(ctx context.Context) ([]Reading, error)
}

// Outcome is how one run of a probe ended.
type Outcome int

// Outcomes. Their numbers are the values of the reading [MetricState].
const (
	OK       Outcome = iota
	NotThere         // nothing to read here: no such file, program, device or right
	Failed           // there, but it could not be read, or not all of it
	TimedOut         // cut off at its limit
)

// String returns the outcome in words.
func (o Outcome) String() string {
	switch o {
	case OK:
		return "ok"
	case NotThere:
		return "not there"
	case Failed:
		return "failed"
	case TimedOut:
		return "timed out"
	}
	return fmt.Sprintf("outcome %d", int(o))
}

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Metrics that every run of every probe adds.
const (
	MetricState   = "probe_state"       // an Outcome; the text says why
	MetricSeconds = "probe_seconds"     // how long the run lasted
	MetricCPU     = "probe_cpu_seconds" // processor time of the run and of programs it started
)

// ErrAbsent is what errors.Is finds in an error made by Absent.
var ErrAbsent = errors.New("not there")

type absentError struct{ why string }

// Error implements error.
func (e *absentError) Error() string { return e.why }

// Is makes errors.Is find ErrAbsent.
func (e *absentError) Is(target error) bool { return target == ErrAbsent }

// Absent makes the error of a probe whose source is not there. The reason
// says what is missing and, where somebody can do something, what.
func Absent(format string, args ...any) error {
	return &absentError{fmt.Sprintf(format, args...)}
}

// classify maps a probe's error to an outcome.
func classify(err error) Outcome {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, context.DeadlineExceeded):
		return TimedOut
	case errors.Is(err, ErrAbsent):
		return NotThere
	}
	return Failed
}

// Report is one run of a probe.
type Report struct {
	Probe   string        `json:"probe"`
	Outcome Outcome       `json:"outcome"`
	Reason  string        `json:"reason,omitempty"`
	Took    time.Duration `json:"took_ns"`
	CPU     time.Duration `json:"cpu_ns"`
	// Readings are stamped, and those of the run itself are among them.
	Readings []Reading `json:"readings"`
}
