// Package campaign keeps what an experiment's runs gave: a directory with the
// experiment, one line of JSON per run, and the comparisons drawn from them. A
// campaign that was interrupted goes on where it was.
package campaign

import (
	"time"

	"github.com/mpirun-vft/vft/bench/experiment"
)

// Outcomes of a run.
const (
	Verified   = "verified"   // it ended and its own verification says that the result is right
	Unverified = "unverified" // it ended without that
	Failed     = "failed"     // it did not end well
	TimedOut   = "timed out"
)

// Run is the record of one run.
type Run struct {
	Key         string             `json:"key"`
	Variant     experiment.Variant `json:"variant"`
	Repetition  int                `json:"repetition"`
	Seed        uint64             `json:"seed"`
	Environment int                `json:"environment"` // number of the environment's line, from 1
	Load        float64            `json:"load"`        // of the machine before the run, processes per minute
	Begun       time.Time          `json:"begun"`
	Took        float64            `json:"took"`                  // s, with the lab's start and end
	Accelerator string             `json:"accelerator,omitempty"` // of the guests: kvm, tcg
	Outcome     string             `json:"outcome"`
	Why         string             `json:"why,omitempty"`   // of an outcome that is not Verified
	Proof       []string           `json:"proof,omitempty"` // the program's own words
	Exit        int                `json:"exit"`
	Figures     map[string]float64 `json:"figures"` // by metric, in experiment.Units
	Curve       []Point            `json:"curve,omitempty"`
	Steps       []Step             `json:"steps,omitempty"`
	Events      []Event            `json:"events,omitempty"`
	Faults      []Fault            `json:"faults,omitempty"`
}

// Point is one size of a run that measures messages.
type Point struct {
	Bytes     int     `json:"bytes"`
	Latency   float64 `json:"latency"`   // µs, half a round trip
	Bandwidth float64 `json:"bandwidth"` // Mbit/s
}

// Step is a sign of progress: the program said at At that it had done so much.
type Step struct {
	At   float64 `json:"at"` // s after Begun
	Done int     `json:"done"`
}

// Event is a line of the job's history.
type Event struct {
	At      float64           `json:"at"` // s after Begun
	Kind    string            `json:"kind"`
	Text    string            `json:"text"`
	Figures map[string]int64  `json:"figures,omitempty"` // durations in ns, sizes in bytes
	Labels  map[string]string `json:"labels,omitempty"`
}

// Fault is what was done to the job, or could not be.
type Fault struct {
	Do      string  `json:"do"`
	Target  string  `json:"target"`
	Planned float64 `json:"planned"` // s after the program's start, or after the checkpoint's commit
	After   int     `json:"after,omitempty"`
	At      float64 `json:"at,omitempty"`      // s after Begun, when it was done
	Until   float64 `json:"until,omitempty"`   // s after Begun, when it was undone
	NotDone string  `json:"notDone,omitempty"` // why
}

// Environment is where runs took place.
type Environment struct {
	Number   int               `json:"number"`
	At       time.Time         `json:"at"`
	Machine  string            `json:"machine"` // processor and how many, memory
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"` // of vft, QEMU, the MPIs
}

// Same says whether runs of both can be compared.
func (e Environment) Same(o Environment) bool {
	if e.Machine != o.Machine || e.Kernel != o.Kernel || len(e.Versions) != len(o.Versions) {
		return false
	}
	for k, v := range e.Versions {
		if o.Versions[k] != v {
			return false
		}
	}
	return true
}
