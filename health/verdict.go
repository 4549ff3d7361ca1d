package health

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// State is what a verdict says.
type State int

// States, from good to bad. Unknown is that of a node on which nothing was read.
const (
	Unknown State = iota
	Healthy
	Suspect
	Failing
)

// String returns the state in a word.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Healthy:
		return "healthy"
	case Suspect:
		return "suspect"
	case Failing:
		return "failing"
	}
	return fmt.Sprintf("state %d", int(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(text []byte) error {
	for _, known := range []State{Unknown, Healthy, Suspect, Failing} {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("no state is called %q; there are unknown, healthy, suspect and failing", text)
}

// Verdict says how a node does.
type Verdict struct {
	State State `json:"state"`
	// Confidence is the estimated probability that the node fails; 0 when
	// there is no alarm.
	Confidence float64 `json:"confidence"`
	// Lead is the expected time until it does, counted from when the alarm's
	// reading was taken. 0 when there is no alarm.
	Lead    time.Duration `json:"lead_ns"`
	Since   time.Time     `json:"since"` // when the state became this one
	Reasons []Reason      `json:"reasons,omitempty"`
}

// Reason is one raised alarm.
type Reason struct {
	Rule       string        `json:"rule"`
	Subject    string        `json:"subject,omitempty"`
	Level      State         `json:"level"`
	Confidence float64       `json:"confidence"` // the rule's own
	Lead       time.Duration `json:"lead_ns"`
	Window     time.Duration `json:"window_ns"` // a failure within it was predicted
	Since      time.Time     `json:"since"`
	Evidence   string        `json:"evidence"`
	Reading    Reading       `json:"reading"` // the last one of the alarm
}

// Change is what one batch of readings changed.
type Change struct {
	At      time.Time `json:"at"`
	From    State     `json:"from"`
	Verdict Verdict   `json:"verdict"`
	Raised  []Reason  `json:"raised,omitempty"`
	Cleared []Reason  `json:"cleared,omitempty"`
}

// judge makes the verdict of alarms.
func judge(levels Levels, reasons []Reason) (state State, confidence float64, lead time.Duration) {
	state = Healthy
	byRule := map[string]float64{}
	for _, r := range reasons {
		byRule[r.Rule] = max(byRule[r.Rule], r.Confidence)
		state = max(state, r.state(levels))
	}
	spared := 1.0
	for _, rule := range slices.Sorted(maps.Keys(byRule)) { // in order: floats do not commute
		spared *= 1 - byRule[rule]
	}
	confidence = 1 - spared
	lead = time.Duration(math.MaxInt64)
	for _, r := range reasons {
		if r.state(levels) == state {
			lead = min(lead, r.Lead)
		}
	}
	if len(reasons) == 0 || state == Healthy {
		lead = 0
	}
	return state, confidence, lead
}

// state is what one alarm alone would make of the verdict.
func (r *Reason) state(levels Levels) State {
	switch {
	case r.Level == Failing && r.Confidence >= levels.Failing:
		return Failing
	case r.Confidence >= levels.Suspect:
		return Suspect
	}
	return Healthy
}

func compareReasons(a, b Reason) int {
	if a.Level != b.Level {
		return int(b.Level) - int(a.Level)
	}
	if a.Confidence != b.Confidence {
		if a.Confidence > b.Confidence {
			return -1
		}
		return 1
	}
	if c := strings.Compare(a.Rule, b.Rule); c != 0 {
		return c
	}
	return strings.Compare(a.Subject, b.Subject)
}
