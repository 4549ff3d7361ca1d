// Package experiment describes what is to be measured: variants of a job,
// repetitions, faults at times that a seed decides, and what is to be compared
// with what. It is read from YAML (docs/BENCH.md) and is pure: nothing is run
// here.
package experiment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Experiment is a declared experiment.
type Experiment struct {
	Name  string `yaml:"name" json:"name"`
	Title string `yaml:"title" json:"title"`
	// About says for readers of the report what is asked and how to read it.
	About       string             `yaml:"about" json:"about,omitempty"`
	Seed        uint64             `yaml:"seed" json:"seed"`
	Repetitions int                `yaml:"repetitions" json:"repetitions"`
	Timeout     Duration           `yaml:"timeout" json:"timeout"` // of one run; default 10 min
	Programs    map[string]Program `yaml:"programs" json:"programs,omitempty"`
	Runs        []Matrix           `yaml:"runs" json:"-"`
	Variants    []Variant          `yaml:"-" json:"variants"` // what Runs stands for
	Faults      map[string]Plan    `yaml:"faults" json:"faults,omitempty"`
	// Health are the nodes' health rules (docs/HEALTH.md), as the text of their
	// file; empty: those compiled in.
	Health string `yaml:"health" json:"health,omitempty"`
	// Metrics are shown in the report, the first one in its charts.
	Metrics []string `yaml:"metrics" json:"metrics"`
	// Baseline are the fields of the variants that others are compared with;
	// they must be equal in the fields named in Per.
	Baseline map[string]string `yaml:"baseline" json:"baseline,omitempty"`
	Per      []string          `yaml:"per" json:"per,omitempty"`
	Claims   []Claim           `yaml:"claims" json:"claims,omitempty"`
	// Plots are lines of a metric over a field of the variants.
	Plots []Plot `yaml:"plots" json:"plots,omitempty"`
}

// Program is a workload that the user has, besides the built-in ones.
type Program struct {
	Path      string   `yaml:"path" json:"path"`
	Arguments []string `yaml:"arguments" json:"arguments,omitempty"` // "{class}" stands for the variant's class
	// Check says how its result is verified: npb (the verdict and figures that
	// the NAS benchmarks print), or text (Expect must be in its output).
	Check  string `yaml:"check" json:"check"`
	Expect string `yaml:"expect" json:"expect,omitempty"`
}

// Claim is something that shall hold of the medians: the metric of the variants
// that match Of is at most Factor times that of their baselines, plus Add.
type Claim struct {
	Text   string            `yaml:"text" json:"text"`
	Metric string            `yaml:"metric" json:"metric"`
	Of     map[string]string `yaml:"of" json:"of"`
	Factor float64           `yaml:"factor" json:"factor"` // 0: no baseline, Add is the limit
	Add    float64           `yaml:"add" json:"add"`       // in the metric's unit
}

// Plot is a chart of lines.
type Plot struct {
	Title  string `yaml:"title" json:"title"`
	Metric string `yaml:"metric" json:"metric"`
	X      string `yaml:"x" json:"x"` // field of the variants
	By     string `yaml:"by" json:"by"`
	// Relative divides the baseline's figure by the variant's: an efficiency.
	Relative bool `yaml:"relative" json:"relative,omitempty"`
}

// BuiltIn are the programs that need no declaration.
var BuiltIn = []string{"bt-mz", "sp-mz", "lu-mz", "heat", "netpipe"}

// defaultTimeout bounds a run.
const defaultTimeout = 10 * time.Minute

// ErrInvalid is wrapped by all errors about an experiment that cannot be meant.
var ErrInvalid = errors.New("not a valid experiment")

// Parse reads an experiment from YAML. Unknown keys are errors.
func Parse(text []byte) (Experiment, error) {
	var x Experiment
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&x); err != nil {
		return Experiment{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := d.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return Experiment{}, fmt.Errorf("%w: there is more than one YAML document", ErrInvalid)
	}
	if x.Timeout == 0 {
		x.Timeout = Duration(defaultTimeout)
	}
	if x.Repetitions == 0 {
		x.Repetitions = 1
	}
	if len(x.Metrics) == 0 {
		x.Metrics = []string{"job"}
	}
	for i, m := range x.Runs {
		vs, err := m.variants()
		if err != nil {
			return Experiment{}, fmt.Errorf("%w: runs[%d]: %w", ErrInvalid, i, err)
		}
		for _, v := range vs {
			if !slices.Contains(x.Variants, v) {
				x.Variants = append(x.Variants, v)
			}
		}
	}
	if err := x.check(); err != nil {
		return Experiment{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return x, nil
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func (x Experiment) check() error {
	switch {
	case !nameForm.MatchString(x.Name):
		return fmt.Errorf("the name %q is not of small letters, digits and dashes", x.Name)
	case x.Repetitions < 1:
		return fmt.Errorf("repetitions: %d", x.Repetitions)
	case x.Timeout < 0:
		return fmt.Errorf("timeout: %s", x.Timeout)
	case len(x.Variants) == 0:
		return errors.New("there is nothing under runs")
	}
	for name, p := range x.Programs {
		if slices.Contains(BuiltIn, name) {
			return fmt.Errorf("programs: %s is built in", name)
		}
		if p.Path == "" {
			return fmt.Errorf("programs: %s has no path", name)
		}
		if p.Check != "npb" && (p.Check != "text" || p.Expect == "") {
			return fmt.Errorf("programs: %s: check is npb, or text with what to expect: a run that nobody verified cannot be compared", name)
		}
	}
	for name, p := range x.Faults {
		if err := p.check(); err != nil {
			return fmt.Errorf("faults: %s: %w", name, err)
		}
	}
	for _, v := range x.Variants {
		if _, own := x.Programs[v.Program]; !own && !slices.Contains(BuiltIn, v.Program) {
			return fmt.Errorf("program %q is neither built in (%s) nor declared under programs", v.Program, strings.Join(BuiltIn, ", "))
		}
		if _, ok := x.Faults[v.Faults]; !ok && v.Faults != NoFaults {
			return fmt.Errorf("faults %q are not declared under faults", v.Faults)
		}
	}
	return x.checkComparisons()
}

func (x Experiment) checkComparisons() error {
	known := func(fields ...string) error {
		for _, f := range fields {
			if _, ok := (Variant{}).Fields()[f]; !ok {
				return fmt.Errorf("variants have no field %q", f)
			}
		}
		return nil
	}
	metric := func(name string) error {
		if _, ok := Units[name]; !ok {
			return fmt.Errorf("there is no metric %q", name)
		}
		return nil
	}
	for _, m := range x.Metrics {
		if err := metric(m); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	for f := range x.Baseline {
		if err := known(f); err != nil {
			return fmt.Errorf("baseline: %w", err)
		}
	}
	if err := known(x.Per...); err != nil {
		return fmt.Errorf("per: %w", err)
	}
	for i, c := range x.Claims {
		err := metric(c.Metric)
		for f := range c.Of {
			err = errors.Join(err, known(f))
		}
		if c.Text == "" {
			err = errors.Join(err, errors.New("no text"))
		}
		if c.Factor != 0 && len(x.Baseline) == 0 {
			err = errors.Join(err, errors.New("a factor needs a baseline"))
		}
		if !slices.ContainsFunc(x.Variants, func(v Variant) bool { return v.Matches(c.Of) }) {
			err = errors.Join(err, errors.New("it speaks of no variant"))
		}
		if err != nil {
			return fmt.Errorf("claims[%d]: %w", i, err)
		}
	}
	for i, p := range x.Plots {
		err := errors.Join(metric(p.Metric), known(p.X))
		if p.By != "" {
			err = errors.Join(err, known(p.By))
		}
		if p.Relative && len(x.Baseline) == 0 {
			err = errors.Join(err, errors.New("relative needs a baseline"))
		}
		if err != nil {
			return fmt.Errorf("plots[%d]: %w", i, err)
		}
	}
	return nil
}

// BaselineOf is the variant that v is compared with. There is none for a
// variant that is itself a baseline.
func (x Experiment) BaselineOf(v Variant) (Variant, bool) {
	if len(x.Baseline) == 0 || v.Matches(x.Baseline) {
		return Variant{}, false
	}
	fields := v.Fields()
	for _, b := range x.Variants {
		same := b.Matches(x.Baseline)
		for _, f := range x.Per {
			same = same && b.Fields()[f] == fields[f]
		}
		if same {
			return b, true
		}
	}
	return Variant{}, false
}

// Units are the units of the metrics, by name. docs/BENCH.md says what they are.
var Units = map[string]string{
	"total": "s", "job": "s", "program": "s", "boot": "s", "finish": "s", "compute": "s",
	"mops": "Mop/s", "mops_per_thread": "Mop/s",
	"checkpoints": "", "restarts": "", "migrations": "",
	"pause": "ms", "hold": "ms", "commit": "s", "size": "MiB",
	"paused": "s", "lost": "s", "redone": "s", "detect": "s", "fence": "s", "restore": "s",
	"migrate_downtime": "ms", "migrate_total": "s",
	"latency": "µs", "bandwidth": "Mbit/s",
}

// Duration is a time.Duration that is written as text, such as 10s.
type Duration time.Duration

// String writes it as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes it as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: a time such as 10s is wanted", n.Line)
	}
	if err := d.UnmarshalText([]byte(n.Value)); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}
