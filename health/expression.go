package health

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"
)

// scope is what expressions of rules see.
type scope struct {
	Value   float64                                  `expr:"value"`
	Text    string                                   `expr:"text"`
	Subject string                                   `expr:"subject"`
	Delta   func(window string) float64              `expr:"delta"`
	Rate    func(window string) float64              `expr:"rate"`
	Leaky   func(out float64, window string) float64 `expr:"leaky"`
	Other   func(metric string) float64              `expr:"other"`
	Bit     func(n int) bool                         `expr:"bit"`
}

// expression is a compiled expression and what it needs to be known.
type expression struct {
	source  string
	program *vm.Program
	horizon float64  // how far back it looks, in seconds; 0: not at all
	others  []string // other metrics that it reads
}

// Bounds of what a rules file may say.
const (
	maxWindow     = Span(60 * 24 * 3600 * 1e9)
	maxExpression = 2048
	maxNodes      = 256
)

// compileExpression checks source and compiles it. The result is a number or,
// where boolean is asked for, a truth value.
func compileExpression(source string, options ...expr.Option) (*expression, error) {
	if len(source) > maxExpression {
		return nil, fmt.Errorf("an expression of more than %d bytes", maxExpression)
	}
	e := &expression{source: source}
	v := &visitor{e: e}
	options = append(options, expr.Env(scope{}), expr.DisableAllBuiltins(), expr.MaxNodes(maxNodes), expr.Patch(v))
	program, err := expr.Compile(source, options...)
	if v.err != nil {
		return nil, v.err
	}
	if err != nil {
		var at *file.Error
		if errors.As(err, &at) { // without the drawing of where it is
			return nil, fmt.Errorf("in `%s`, column %d: %s", source, at.Column+1, at.Message)
		}
		return nil, fmt.Errorf("in `%s`: %w", source, err)
	}
	e.program = program
	return e, nil
}

// visitor finds the windows and metrics that an expression names. They are
// constants, so that the history needed is known before anything is read.
type visitor struct {
	e   *expression
	err error
}

// Visit implements ast.Visitor.
func (v *visitor) Visit(node *ast.Node) {
	call, ok := (*node).(*ast.CallNode)
	if !ok || v.err != nil {
		return
	}
	callee, ok := call.Callee.(*ast.IdentifierNode)
	if !ok || len(call.Arguments) == 0 || !slices.Contains([]string{"delta", "rate", "leaky", "other"}, callee.Value) {
		return // the type check says what is wrong
	}
	last, ok := call.Arguments[len(call.Arguments)-1].(*ast.StringNode)
	if !ok {
		v.err = fmt.Errorf("in `%s`: the last argument of %s is a text in quotes", v.e.source, callee.Value)
		return
	}
	if callee.Value == "other" {
		v.e.others = append(v.e.others, last.Value)
		return
	}
	window, err := ParseSpan(last.Value)
	if err == nil && (window <= 0 || window > maxWindow) {
		err = fmt.Errorf("a window is more than nothing and at most %v", maxWindow)
	}
	if err != nil {
		v.err = fmt.Errorf("in `%s`: %s: %w", v.e.source, callee.Value, err)
		return
	}
	horizon := window.Seconds()
	if callee.Value == "leaky" {
		horizon *= leakyMemory
	}
	v.e.horizon = math.Max(v.e.horizon, horizon)
}

// leakyMemory is how many windows of history a leaky bucket is worked out
// from: what is older is taken to have run out.
const leakyMemory = 3

// truth evaluates a boolean expression. What cannot be evaluated is not true.
func (e *expression) truth(s *scope) bool {
	v, err := expr.Run(e.program, s)
	b, ok := v.(bool)
	return err == nil && ok && b
}

// number evaluates a numeric expression, to NaN where that is impossible.
func (e *expression) number(s *scope) float64 {
	v, err := expr.Run(e.program, s)
	f, ok := v.(float64)
	if err != nil || !ok {
		return math.NaN()
	}
	return f
}

// template is a text with expressions in braces.
type template struct {
	source string
	texts  []string // one more than values
	values []*expression
}

func compileTemplate(source string) (*template, error) {
	t := &template{source: source}
	rest := source
	for {
		text, after, found := strings.Cut(rest, "{")
		t.texts = append(t.texts, text)
		if !found {
			return t, nil
		}
		inner, tail, closed := strings.Cut(after, "}")
		if !closed {
			return nil, fmt.Errorf("a { without } in %q", source)
		}
		e, err := compileExpression(inner)
		if err != nil {
			return nil, err
		}
		t.values = append(t.values, e)
		rest = tail
	}
}

// fill returns the text with the values of now.
func (t *template) fill(s *scope) string {
	var b strings.Builder
	for i, text := range t.texts {
		b.WriteString(text)
		if i == len(t.values) {
			break
		}
		v, err := expr.Run(t.values[i].program, s)
		switch v := v.(type) {
		case float64:
			b.WriteString(strconv.FormatFloat(v, 'g', 4, 64))
		default:
			if err != nil {
				v = "?"
			}
			fmt.Fprint(&b, v)
		}
	}
	return strings.TrimSpace(b.String())
}
