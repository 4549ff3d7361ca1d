package health

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/expr-lang/expr"
)

// Rule is one rule as a file says it.
type Rule struct {
	Name    string `yaml:"name" json:"name"`
	Probe   string `yaml:"probe" json:"probe"`                         // name, or patterns as path.Match has them, separated by |
	Metric  string `yaml:"metric" json:"metric"`                       //
	Subject string `yaml:"subject,omitempty" json:"subject,omitempty"` // likewise; empty: every subject
	When    string `yaml:"when" json:"when"`                           // condition that raises the alarm
	Until   string `yaml:"until,omitempty" json:"until,omitempty"`     // condition that clears it; empty: not When
	For     Span   `yaml:"for,omitempty" json:"for,omitempty"`         // When has to hold so long
	Hold    Span   `yaml:"hold,omitempty" json:"hold,omitempty"`       // the alarm stays so long after it was last true
	Forget  Span   `yaml:"forget,omitempty" json:"forget,omitempty"`   // the alarm goes when no reading came for so long
	Level   State  `yaml:"level" json:"level"`                         // suspect or failing
	// Confidence is the share of alarms that are expected to be followed by a
	// failure of the node.
	Confidence float64 `yaml:"confidence" json:"confidence"`
	// Lead is the expected time from the alarm to the failure: a length of
	// time, or an expression in seconds.
	Lead string `yaml:"lead" json:"lead"`
	// Window is the time within which a failure counts as predicted.
	Window   Span   `yaml:"window,omitempty" json:"window,omitempty"`
	Evidence string `yaml:"evidence" json:"evidence"` // a sentence with expressions in braces
	Off      bool   `yaml:"off,omitempty" json:"off,omitempty"`
}

// Defaults of a rule.
const (
	defaultForget = Span(24 * 3600 * 1e9)
	// A failure within three times its mean lead is one that was predicted:
	// 95 % of them, if the time to failure is exponential.
	leadsInWindow = 3
	// defaultWindow is for leads that are worked out from readings.
	defaultWindow = Span(24 * 3600 * 1e9)
)

// compiled is a rule ready to be applied.
type compiled struct {
	Rule
	when, until *expression
	lead        *expression // nil: leadConst
	leadConst   Span
	evidence    *template
	horizon     float64
	others      []string
}

// compile checks a rule. The errors do not name it: the caller knows where it
// stands.
func (r Rule) compile() (*compiled, error) {
	c := &compiled{Rule: r}
	if err := c.checkFields(); err != nil {
		return nil, err
	}
	var err error
	if c.when, err = compileExpression(r.When, expr.AsBool()); err != nil {
		return nil, fmt.Errorf("when: %w", err)
	}
	if r.Until != "" {
		if c.until, err = compileExpression(r.Until, expr.AsBool()); err != nil {
			return nil, fmt.Errorf("until: %w", err)
		}
	}
	if c.leadConst, err = ParseSpan(r.Lead); err != nil {
		if c.lead, err = compileExpression(r.Lead, expr.AsFloat64()); err != nil {
			return nil, fmt.Errorf("lead is neither a length of time nor an expression: %w", err)
		}
	}
	if c.evidence, err = compileTemplate(r.Evidence); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	c.defaults()
	for _, e := range append([]*expression{c.when, c.until, c.lead}, c.evidence.values...) {
		if e != nil {
			c.horizon = max(c.horizon, e.horizon)
			c.others = append(c.others, e.others...)
		}
	}
	return c, nil
}

func (c *compiled) checkFields() error {
	switch {
	case c.Probe == "" || c.Metric == "":
		return errors.New("it needs a probe and a metric")
	case c.When == "":
		return errors.New("it needs a condition: when")
	case c.Level != Suspect && c.Level != Failing:
		return errors.New("level: want suspect or failing")
	case !(c.Confidence > 0 && c.Confidence <= 1):
		return errors.New("confidence: want a number above 0, up to 1")
	case c.Evidence == "":
		return errors.New("it needs evidence: the sentence that tells people why")
	}
	for p := range strings.SplitSeq(c.Probe+"|"+c.Subject, "|") {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%q is no pattern: %w", p, err)
		}
	}
	return nil
}

func (c *compiled) defaults() {
	if c.Forget == 0 {
		c.Forget = defaultForget
	}
	if c.Window != 0 {
		return
	}
	if c.Window = leadsInWindow * c.leadConst; c.lead != nil || c.Window == 0 {
		c.Window = defaultWindow
	}
}

// selects says whether the rule is about a reading.
func (c *compiled) selects(r *Reading) bool {
	if c.Metric != r.Metric || !match(c.Probe, r.Probe) {
		return false
	}
	return c.Subject == "" || match(c.Subject, r.Subject)
}

// match compares a name with patterns that are known to be right.
func match(patterns, name string) bool {
	for pattern := range strings.SplitSeq(patterns, "|") {
		if ok, _ := path.Match(pattern, name); ok || pattern == name {
			return true
		}
	}
	return false
}
