package experiment

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Plan is what goes wrong during a run, step by step. The steps do not wait for
// one another.
type Plan []Step

// Step is a fault, or several of its kind.
type Step struct {
	Do string `yaml:"do" json:"do"`
	// On is what is hit: guest N (a number), guest (a random one of the job),
	// leader, same (what the step before hit), or a node's name. Default: guest.
	On string `yaml:"on" json:"on,omitempty"`
	// Part of a node that stop stops: qemu (the guest), sidecar, coordinator, or
	// node (everything). Default: qemu.
	Part string `yaml:"part" json:"part,omitempty"`
	// At is when, after the program has started, or after the commit of
	// checkpoint number After.
	At    Draw `yaml:"at" json:"at"`
	After int  `yaml:"after" json:"after,omitempty"`
	// Times is how often, every time a draw of Every after the time before.
	Every Draw `yaml:"every" json:"every,omitzero"`
	Times int  `yaml:"times" json:"times,omitempty"`
	// For is how long it lasts: a node is started again, a stopped process goes
	// on, a partition heals; 0: for good. Of edac: how long the counters climb.
	For Duration `yaml:"for" json:"for,omitempty"`
	// Errors and Uncorrected are how many errors edac counts in all.
	Errors      int `yaml:"errors" json:"errors,omitempty"`
	Uncorrected int `yaml:"uncorrected" json:"uncorrected,omitempty"`
	// Points are fault points as VFT_FAULTPOINTS takes them, for arm: armed in
	// all daemons from their start.
	Points string `yaml:"points" json:"points,omitempty"`
}

// What a step can do.
const (
	KillNode   = "kill-node"   // SIGKILL to all of a node, as a power cut
	KillLeader = "kill-leader" // the same, of the node with the coordinators' leader
	KillQEMU   = "kill-qemu"   // SIGKILL to a guest
	Stop       = "stop"        // SIGSTOP, and SIGCONT after For
	Partition  = "partition"   // a node cannot reach the others
	EDAC       = "edac"        // a node's memory controller counts errors
	Migrate    = "migrate"     // not a fault: a guest is moved on request
	Arm        = "arm"         // fault points, such as a disk that is full
)

var doings = []string{KillNode, KillLeader, KillQEMU, Stop, Partition, EDAC, Migrate, Arm}

func (p Plan) check() error {
	if len(p) == 0 {
		return errors.New("no steps; a variant without faults says none")
	}
	for i, s := range p {
		if err := s.check(i == 0); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (s Step) check(first bool) error {
	if !slices.Contains(doings, s.Do) {
		return fmt.Errorf("do is one of %s, not %q", strings.Join(doings, ", "), s.Do)
	}
	if (s.Do == Arm) != (s.Points != "") {
		return errors.New("points belong to arm, and arm needs them")
	}
	if (s.Do == EDAC) != (s.Errors > 0 || s.Uncorrected > 0) {
		return errors.New("errors and uncorrected belong to edac, and edac needs one of them")
	}
	if s.Part != "" && (s.Do != Stop || !slices.Contains([]string{"qemu", "sidecar", "coordinator", "node"}, s.Part)) {
		return fmt.Errorf("part is qemu, sidecar, coordinator or node of a stop, not %q of %s", s.Part, s.Do)
	}
	if s.On == "same" && first {
		return errors.New("on: same, but there is no step before")
	}
	if s.Do == KillLeader && s.On != "" {
		return errors.New("kill-leader hits the leader: say kill-node to hit another")
	}
	if s.Times < 0 || s.After < 0 || s.For < 0 {
		return errors.New("a number is negative")
	}
	if s.Times > 1 && s.Every == (Draw{}) {
		return errors.New("times needs every")
	}
	return nil
}

// Fault is one thing to do, at a time that has been drawn.
type Fault struct {
	Step Step
	At   time.Duration // after the program's start, or after the commit of checkpoint Step.After
	Pick float64       // in [0, 1), chooses among the possible targets
}

// Schedule draws the times of a plan's faults, in order. The same seed gives
// the same ones.
func (p Plan) Schedule(seed uint64) []Fault {
	var out []Fault
	for i, s := range p {
		// A stream per step: a longer plan leaves the times of its beginning alone.
		r := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // reproducible on purpose
		at := s.At.draw(r)
		for n := range max(s.Times, 1) {
			if n > 0 {
				at += s.Every.draw(r)
			}
			out = append(out, Fault{Step: s, At: at, Pick: r.Float64()})
		}
	}
	slices.SortStableFunc(out, func(a, b Fault) int { return int(min(1, max(-1, a.At-b.At))) })
	return out
}

// Draw is a time, or a distribution of times. In YAML: 12s,
// {uniform: [5s, 40s]}, {exponential: 60s} (its mean), or
// {weibull: {shape: 0.7, scale: 60s}}.
type Draw struct {
	kind string  // "": fixed
	a, b float64 // seconds; of weibull shape and scale
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Draw) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		var t Duration
		if err := t.UnmarshalYAML(n); err != nil {
			return err
		}
		*d = Draw{a: time.Duration(t).Seconds()}
		return d.check(n.Line)
	}
	var x struct {
		Uniform     []Duration `yaml:"uniform"`
		Exponential Duration   `yaml:"exponential"`
		Weibull     *struct {
			Shape float64  `yaml:"shape"`
			Scale Duration `yaml:"scale"`
		} `yaml:"weibull"`
	}
	if n.Kind != yaml.MappingNode || len(n.Content) != 2 {
		return fmt.Errorf("line %d: a time such as 10s, or one distribution is wanted", n.Line)
	}
	if err := n.Decode(&x); err != nil {
		return err
	}
	switch {
	case len(x.Uniform) == 2:
		*d = Draw{kind: "uniform", a: time.Duration(x.Uniform[0]).Seconds(), b: time.Duration(x.Uniform[1]).Seconds()}
	case x.Exponential > 0:
		*d = Draw{kind: "exponential", a: time.Duration(x.Exponential).Seconds()}
	case x.Weibull != nil:
		*d = Draw{kind: "weibull", a: x.Weibull.Shape, b: time.Duration(x.Weibull.Scale).Seconds()}
	default:
		return fmt.Errorf("line %d: a distribution is uniform: [from, to], exponential: mean, or weibull: {shape, scale}", n.Line)
	}
	return d.check(n.Line)
}

func (d Draw) check(line int) error {
	ok := d.a >= 0
	switch d.kind {
	case "uniform":
		ok = ok && d.b > d.a
	case "weibull":
		ok = d.a > 0 && d.b > 0
	}
	if !ok {
		return fmt.Errorf("line %d: %s cannot be drawn from", line, d)
	}
	return nil
}

// String says what is drawn from.
func (d Draw) String() string {
	s := func(x float64) string { return time.Duration(x * float64(time.Second)).String() }
	switch d.kind {
	case "uniform":
		return fmt.Sprintf("uniform from %s to %s", s(d.a), s(d.b))
	case "exponential":
		return "exponential with mean " + s(d.a)
	case "weibull":
		return fmt.Sprintf("Weibull with shape %g and scale %s", d.a, s(d.b))
	}
	return s(d.a)
}

// MarshalJSON writes what String says.
func (d Draw) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// draw takes a time from the distribution, by inversion.
func (d Draw) draw(r *rand.Rand) time.Duration {
	u := r.Float64()
	x := d.a
	switch d.kind {
	case "uniform":
		x = d.a + u*(d.b-d.a)
	case "exponential":
		x = -d.a * math.Log(1-u)
	case "weibull":
		x = d.b * math.Pow(-math.Log(1-u), 1/d.a)
	}
	return time.Duration(x * float64(time.Second))
}
