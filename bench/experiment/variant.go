package experiment

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Where a variant runs.
const (
	Native = "native" // mpirun on this machine
	Guests = "guests" // mpirun-vft on a lab
)

// NoFaults is the fault plan that does nothing.
const NoFaults = "none"

// Variant is one way to run a job. What has no meaning natively is zero there.
type Variant struct {
	Where     string   `json:"where"`
	Program   string   `json:"program"`
	Class     string   `json:"class,omitempty"`
	Arguments string   `json:"arguments,omitempty"` // further ones, separated by blanks
	MPI       string   `json:"mpi"`                 // openmpi or mpich
	Ranks     int      `json:"ranks"`
	Threads   int      `json:"threads"`            // OpenMP's, per rank
	Guests    int      `json:"guests,omitempty"`   // virtual machines
	CPUs      int      `json:"cpus,omitempty"`     // processors of a guest
	Memory    string   `json:"memory,omitempty"`   // of a guest
	Nodes     int      `json:"nodes,omitempty"`    // of the lab
	Engine    string   `json:"engine,omitempty"`   // of snapshots
	Interval  Duration `json:"interval"`           // between checkpoints, 0: none
	Restarts  int      `json:"restarts,omitempty"` // at most; 0: none
	Faults    string   `json:"faults,omitempty"`   // name of a plan
}

// Matrix stands for all combinations of its values.
type Matrix struct {
	Where     list[string]   `yaml:"where"`
	Program   list[string]   `yaml:"program"`
	Class     list[string]   `yaml:"class"`
	Arguments list[string]   `yaml:"arguments"`
	MPI       list[string]   `yaml:"mpi"`
	Ranks     list[int]      `yaml:"ranks"`
	Threads   list[int]      `yaml:"threads"`
	Guests    list[int]      `yaml:"guests"`
	CPUs      list[int]      `yaml:"cpus"`
	Memory    list[string]   `yaml:"memory"`
	Nodes     list[int]      `yaml:"nodes"`
	Engine    list[string]   `yaml:"engine"`
	Interval  list[Duration] `yaml:"interval"`
	Restarts  list[int]      `yaml:"restarts"`
	Faults    list[string]   `yaml:"faults"`
}

// list is one value or several.
type list[T any] []T

// UnmarshalYAML implements yaml.Unmarshaler.
func (l *list[T]) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		var one T
		if err := n.Decode(&one); err != nil {
			return err
		}
		*l = list[T]{one}
		return nil
	}
	var many []T
	if err := n.Decode(&many); err != nil {
		return err
	}
	if len(many) == 0 {
		return fmt.Errorf("line %d: an empty list stands for no run at all", n.Line)
	}
	*l = many
	return nil
}

// product replaces every variant by one for each of the values.
func product[T any](in []Variant, values list[T], standard T, set func(*Variant, T)) []Variant {
	if len(values) == 0 {
		values = list[T]{standard}
	}
	var out []Variant
	for _, v := range in {
		for _, x := range values {
			set(&v, x)
			out = append(out, v)
		}
	}
	return out
}

// variants are the combinations, without those that come to the same.
func (m Matrix) variants() ([]Variant, error) {
	if len(m.Program) == 0 {
		return nil, errors.New("no program is named")
	}
	vs := []Variant{{}}
	vs = product(vs, m.Where, Guests, func(v *Variant, x string) { v.Where = x })
	vs = product(vs, m.Program, "", func(v *Variant, x string) { v.Program = x })
	vs = product(vs, m.Class, "", func(v *Variant, x string) { v.Class = x })
	vs = product(vs, m.Arguments, "", func(v *Variant, x string) { v.Arguments = x })
	vs = product(vs, m.MPI, "openmpi", func(v *Variant, x string) { v.MPI = x })
	vs = product(vs, m.Ranks, 2, func(v *Variant, x int) { v.Ranks = x })
	vs = product(vs, m.Threads, 1, func(v *Variant, x int) { v.Threads = x })
	vs = product(vs, m.Guests, 0, func(v *Variant, x int) { v.Guests = x })
	vs = product(vs, m.CPUs, 1, func(v *Variant, x int) { v.CPUs = x })
	vs = product(vs, m.Memory, "256M", func(v *Variant, x string) { v.Memory = x })
	vs = product(vs, m.Nodes, 0, func(v *Variant, x int) { v.Nodes = x })
	vs = product(vs, m.Engine, "auto", func(v *Variant, x string) { v.Engine = x })
	vs = product(vs, m.Interval, 0, func(v *Variant, x Duration) { v.Interval = x })
	vs = product(vs, m.Restarts, 10, func(v *Variant, x int) { v.Restarts = x })
	vs = product(vs, m.Faults, NoFaults, func(v *Variant, x string) { v.Faults = x })
	var out []Variant
	for _, v := range vs {
		v = v.plain()
		if err := v.check(); err != nil {
			return nil, err
		}
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out, nil
}

// plain fills in what follows from the rest and clears what has no meaning.
func (v Variant) plain() Variant {
	if v.Where == Native {
		v.Guests, v.CPUs, v.Memory, v.Nodes, v.Engine, v.Interval, v.Restarts = 0, 0, "", 0, "", 0, 0
		v.Faults = NoFaults
		return v
	}
	v.Guests = cmp.Or(v.Guests, v.Ranks)
	v.Nodes = cmp.Or(v.Nodes, v.Guests)
	if v.Interval == 0 {
		v.Engine = "" // nothing is snapshot
	}
	return v
}

func (v Variant) check() error {
	oneOf := func(what, is string, of ...string) error {
		if slices.Contains(of, is) {
			return nil
		}
		return fmt.Errorf("%s is one of %s, not %q", what, strings.Join(of, ", "), is)
	}
	if err := errors.Join(oneOf("where", v.Where, Native, Guests), oneOf("mpi", v.MPI, "openmpi", "mpich")); err != nil {
		return err
	}
	if v.Ranks < 1 || v.Threads < 1 {
		return fmt.Errorf("%d ranks of %d threads", v.Ranks, v.Threads)
	}
	if v.Where == Native {
		return nil
	}
	if v.Engine != "" {
		if err := oneOf("engine", v.Engine, "auto", "background", "pre-copy", "stop-copy"); err != nil {
			return err
		}
	}
	if v.Guests < 1 || v.Guests > v.Ranks || v.CPUs < 1 || v.Nodes < 1 || v.Interval < 0 || v.Restarts < -1 {
		return fmt.Errorf("%d ranks in %d guests with %d processors on %d nodes, checkpoints every %s, %d restarts",
			v.Ranks, v.Guests, v.CPUs, v.Nodes, v.Interval, v.Restarts)
	}
	return nil
}

// Fields are the variant's values by name, as text.
func (v Variant) Fields() map[string]string {
	return map[string]string{
		"where": v.Where, "program": v.Program, "class": v.Class, "arguments": v.Arguments, "mpi": v.MPI,
		"ranks": fmt.Sprint(v.Ranks), "threads": fmt.Sprint(v.Threads), "guests": fmt.Sprint(v.Guests), "cpus": fmt.Sprint(v.CPUs),
		"memory": v.Memory, "nodes": fmt.Sprint(v.Nodes), "engine": v.Engine, "interval": v.Interval.String(),
		"restarts": fmt.Sprint(v.Restarts), "faults": v.Faults,
	}
}

// Matches says whether the variant has all these values. Times are compared as
// such: 0 and 0s are the same.
func (v Variant) Matches(want map[string]string) bool {
	fields := v.Fields()
	for f, w := range want {
		if f == "interval" {
			d, err := time.ParseDuration(w)
			if err != nil || d != time.Duration(v.Interval) {
				return false
			}
		} else if fields[f] != w {
			return false
		}
	}
	return true
}

// order in which names mention fields.
var order = []string{"where", "program", "class", "arguments", "mpi", "ranks", "threads", "guests", "cpus", "memory", "nodes", "engine", "interval", "restarts", "faults"}

// Label names the variant by what tells it from the other variants.
func (x Experiment) Label(v Variant) string {
	mine := v.Fields()
	var words []string
	for _, f := range order {
		if v.has(f) && x.differ(f) {
			words = append(words, word(f, mine[f]))
		}
	}
	if len(words) == 0 {
		return strings.TrimSpace(v.Program + " " + v.Class)
	}
	return strings.Join(words, ", ")
}

// has says whether a field means something in the variant.
func (v Variant) has(field string) bool {
	if v.Where == Native && slices.Contains([]string{"guests", "cpus", "memory", "nodes", "engine", "interval", "restarts", "faults"}, field) {
		return false
	}
	return v.Fields()[field] != ""
}

// differ says whether a field has several values among the variants in which
// it means something.
func (x Experiment) differ(field string) bool {
	values := map[string]bool{}
	asRanks := true
	for _, v := range x.Variants {
		if v.has(field) {
			values[v.Fields()[field]] = true
			asRanks = asRanks && v.Guests == v.Ranks
		}
	}
	// Guests and nodes that only follow the ranks are not worth a word.
	return len(values) > 1 && (!asRanks || field != "guests") && field != "nodes"
}

// word is how a field reads.
func word(field, value string) string {
	switch field {
	case "where", "program", "mpi":
		return value
	case "faults":
		if value == NoFaults {
			return "no fault"
		}
		return value
	case "interval":
		if value == "0s" {
			return "no checkpoints"
		}
		return "every " + value
	case "ranks", "guests", "threads", "cpus", "nodes":
		if value == "1" {
			return value + " " + strings.TrimSuffix(field, "s")
		}
		return value + " " + field
	}
	return field + " " + value
}

// Run is one run of a campaign.
type Run struct {
	Key        string // names it within the experiment
	Variant    Variant
	Repetition int // from 1
	// Seed decides its faults. Equal for all variants of a repetition, so that
	// they are hurt at the same times.
	Seed uint64
}

// Schedule is the order of the runs: variants by turns, each repetition
// beginning with another one, so that a machine that becomes slower or faster
// does so for all of them.
func (x Experiment) Schedule() []Run {
	var runs []Run
	for rep := range x.Repetitions {
		for i := range x.Variants {
			v := x.Variants[(i+rep)%len(x.Variants)]
			runs = append(runs, Run{
				Key: fmt.Sprintf("%s/%d", v.ID(), rep+1), Variant: v, Repetition: rep + 1,
				Seed: rand.New(rand.NewPCG(x.Seed, uint64(rep))).Uint64(), //nolint:gosec // reproducible on purpose
			})
		}
	}
	return runs
}

// ID is a short name that changes with every field.
func (v Variant) ID() string {
	fields := v.Fields()
	h := sha256.New()
	for _, f := range slices.Sorted(maps.Keys(fields)) {
		_, _ = fmt.Fprintf(h, "%s=%q\n", f, fields[f])
	}
	return hex.EncodeToString(h.Sum(nil))[:8]
}

// Same says whether two experiments measure the same, so that runs of one can
// be counted as runs of the other. More repetitions are no difference.
func (x Experiment) Same(y Experiment) bool {
	x.Repetitions, y.Repetitions = 0, 0
	a, errA := json.Marshal(x.measured())
	b, errB := json.Marshal(y.measured())
	return errA == nil && errB == nil && string(a) == string(b)
}

// measured leaves out what only says how results are shown.
func (x Experiment) measured() Experiment {
	x.Title, x.About, x.Metrics, x.Baseline, x.Per, x.Claims, x.Plots = "", "", nil, nil, nil, nil, nil
	return x
}
