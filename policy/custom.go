package policy

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
)

// Custom is a user's own rule for alarms: an expression (expr-lang.org) over
// the figures of the alarm that yields the name of an action. It sees nothing
// but its inputs and cannot loop without bound.
type Custom struct {
	source  string
	program *vm.Program
}

// inputs are the names an expression may use. Times are seconds.
type inputs struct {
	Confidence    float64 `expr:"confidence"`
	Lead          float64 `expr:"lead"`
	SinceCommit   float64 `expr:"since_commit"`
	Target        bool    `expr:"target"`
	Memory        float64 `expr:"memory"`
	Bandwidth     float64 `expr:"bandwidth"`
	DirtyRate     float64 `expr:"dirty_rate"`
	MigrationLoss float64 `expr:"migration_loss"`
	Checkpoint    float64 `expr:"checkpoint"`
	Latency       float64 `expr:"latency"`
	Restart       float64 `expr:"restart"`
	Downtime      float64 `expr:"downtime"`
	// Best is what vft would do, Possible the actions that can be completed.
	Best     string   `expr:"best"`
	Possible []string `expr:"possible"`
}

const (
	maxCustom   = 4 << 10
	maxNodes    = 1000
	memoryLimit = 1 << 20 // expr's measure: elements made by one evaluation
)

// ErrCustom says that a user's expression cannot be used or did not give an
// action.
var ErrCustom = errors.New("custom policy")

// Compile checks a user's expression.
func Compile(source string) (*Custom, error) {
	if len(source) > maxCustom {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrCustom, maxCustom)
	}
	program, err := expr.Compile(source, expr.Env(inputs{}), expr.AsKind(reflect.String), expr.MaxNodes(maxNodes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCustom, err)
	}
	return &Custom{source: source, program: program}, nil
}

// String returns the expression.
func (c *Custom) String() string { return c.source }

// Decide lets the expression choose. An action that is unknown or cannot be
// completed is an error, and the caller does what Decide would.
func (c *Custom) Decide(a Alarm, costs Costs) (Decision, error) {
	d := Decide(a, costs)
	in := inputs{
		Confidence: a.Confidence, Lead: a.Lead.Seconds(), SinceCommit: a.SinceCommit.Seconds(), Target: a.Target,
		Memory: float64(a.Memory), Bandwidth: a.Bandwidth, DirtyRate: a.DirtyRate, MigrationLoss: a.MigrationLoss.Seconds(),
		Checkpoint: costs.Checkpoint.Seconds(), Latency: costs.Latency.Seconds(),
		Restart: costs.Restart.Seconds(), Downtime: costs.Downtime.Seconds(), Best: string(d.Action),
	}
	for _, o := range d.Options {
		if o.Obstacle == "" {
			in.Possible = append(in.Possible, string(o.Action))
		}
	}
	machine := vm.VM{MemoryBudget: memoryLimit}
	out, err := machine.Run(c.program, in)
	if err != nil {
		return d, fmt.Errorf("%w: %w", ErrCustom, err)
	}
	for _, o := range d.Options {
		if string(o.Action) != out {
			continue
		}
		if o.Obstacle != "" {
			return d, fmt.Errorf("%w: chose %q, which is not possible: %s", ErrCustom, out, o.Obstacle)
		}
		d.Action = o.Action
		return d, nil
	}
	return d, fmt.Errorf("%w: gave %q, want one of %q", ErrCustom, out, []Action{Ignore, Checkpoint, Migrate, Move})
}
