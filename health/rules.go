package health

import (
	_ "embed" // the default rules
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed rules.default.yaml
var defaultRules []byte

// ErrRules is wrapped by every error about a rules file.
var ErrRules = errors.New("bad rules")

// rulesVersion is the version of the format.
const rulesVersion = 1

// maxRulesFile bounds what is read.
const maxRulesFile = 1 << 20

// Rules is a rules file, checked and compiled.
type Rules struct {
	Levels  Levels
	Probes  map[string]ProbeConf
	Scripts []ScriptConf
	Notices []NoticeConf
	rules   []*compiled
}

// Levels are the effective confidences from which alarms make a state.
type Levels struct {
	Suspect float64 `yaml:"suspect" json:"suspect"`
	Failing float64 `yaml:"failing" json:"failing"`
}

// ProbeConf says when a probe runs.
type ProbeConf struct {
	Every Span `yaml:"every" json:"every"`
	Limit Span `yaml:"limit" json:"limit"`
	Off   bool `yaml:"off,omitempty" json:"off,omitempty"`
}

// ScriptConf is a site script that is run as a probe.
type ScriptConf struct {
	Name       string   `yaml:"name" json:"name"`
	Run        []string `yaml:"run" json:"run"`
	Convention string   `yaml:"convention" json:"convention"` // nhc, npd or nagios
	ProbeConf  `yaml:",inline"`
}

// NoticeConf is a place where the end of the node's time is announced: exactly
// one of File, URL and Environment.
type NoticeConf struct {
	Name        string            `yaml:"name" json:"name"`
	File        string            `yaml:"file,omitempty" json:"file,omitempty"`
	URL         string            `yaml:"url,omitempty" json:"url,omitempty"`
	Headers     map[string]string `yaml:"headers,omitempty" json:"headers,omitempty"`
	Environment string            `yaml:"environment,omitempty" json:"environment,omitempty"`
	Grace       Span              `yaml:"grace,omitempty" json:"grace,omitempty"` // time left where the notice names none
	ProbeConf   `yaml:",inline"`
}

// rulesFile is the file as it is written. Rules are nodes, so that errors can
// say the line.
type rulesFile struct {
	Version int                  `yaml:"version"`
	Base    string               `yaml:"base"`
	Levels  Levels               `yaml:"levels"`
	Probes  map[string]ProbeConf `yaml:"probes"`
	Scripts []ScriptConf         `yaml:"scripts"`
	Notices []NoticeConf         `yaml:"notices"`
	Rules   []yaml.Node          `yaml:"rules"`
}

// DefaultRules returns the rules that are compiled in.
func DefaultRules() (*Rules, error) {
	r := &Rules{Probes: map[string]ProbeConf{}}
	return r, r.apply("rules.default.yaml", defaultRules, true)
}

// LoadRules reads a rules file. An empty path means the default rules.
func LoadRules(path string) (*Rules, error) {
	if path == "" {
		return DefaultRules()
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, maxRulesFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	return ParseRules(path, data)
}

// ParseRules reads the text of a rules file; name is for errors, which name
// the line and wrap ErrRules.
func ParseRules(name string, data []byte) (*Rules, error) {
	if len(data) > maxRulesFile {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrRules, name, maxRulesFile)
	}
	var head rulesFile
	if err := decodeStrict(data, &head); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRules, name, err)
	}
	r := &Rules{Probes: map[string]ProbeConf{}}
	switch head.Base {
	case "", "default":
		var err error
		if r, err = DefaultRules(); err != nil {
			return nil, err
		}
	case "none":
	default:
		return nil, fmt.Errorf("%w: %s: base: want default or none, not %q", ErrRules, name, head.Base)
	}
	return r, r.apply(name, data, head.Base == "none")
}

// decodeStrict refuses fields that do not exist.
func decodeStrict(data []byte, into any) error {
	d := yaml.NewDecoder(strings.NewReader(string(data)))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// apply puts a file over what there is.
func (r *Rules) apply(name string, data []byte, whole bool) error {
	var f rulesFile
	if err := decodeStrict(data, &f); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRules, name, err)
	}
	if f.Version != rulesVersion {
		return fmt.Errorf("%w: %s: version %d; this program reads version %d", ErrRules, name, f.Version, rulesVersion)
	}
	if f.Levels != (Levels{}) {
		r.Levels = f.Levels
	}
	if l := r.Levels; !(l.Suspect > 0 && l.Suspect <= l.Failing && l.Failing <= 1) {
		return fmt.Errorf("%w: %s: levels: want 0 < suspect ≤ failing ≤ 1", ErrRules, name)
	}
	for probe, conf := range f.Probes {
		if err := conf.check(); err != nil {
			return fmt.Errorf("%w: %s: probe %s: %w", ErrRules, name, probe, err)
		}
		r.Probes[probe] = conf
	}
	if err := r.applyScripts(f.Scripts); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRules, name, err)
	}
	if err := r.applyNotices(f.Notices); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRules, name, err)
	}
	var problems []error
	for i := range f.Rules {
		if err := r.applyRule(&f.Rules[i], whole); err != nil {
			problems = append(problems, fmt.Errorf("%w: %s: line %d: %w", ErrRules, name, f.Rules[i].Line, err))
		}
	}
	return errors.Join(problems...)
}

func (r *Rules) applyRule(node *yaml.Node, whole bool) error {
	var rule Rule
	text, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	if err := decodeStrict(text, &rule); err != nil {
		// The line within the rule would mislead.
		return fmt.Errorf("rule %q: %s", rule.Name, withoutLine(err))
	}
	if rule.Name == "" {
		return errors.New("a rule needs a name")
	}
	at := slices.IndexFunc(r.rules, func(c *compiled) bool { return c.Name == rule.Name })
	switch {
	case rule.Off && at < 0:
		return fmt.Errorf("rule %q: off, but there is no such rule", rule.Name)
	case rule.Off:
		r.rules = slices.Delete(r.rules, at, at+1)
		return nil
	case at >= 0 && whole:
		return fmt.Errorf("rule %q: there is one of this name already", rule.Name)
	}
	c, err := rule.compile()
	if err != nil {
		return fmt.Errorf("rule %q: %w", rule.Name, err)
	}
	if at >= 0 {
		r.rules[at] = c
	} else {
		r.rules = append(r.rules, c)
	}
	return nil
}

// withoutLine takes yaml's line numbers out of an error.
func withoutLine(err error) string {
	var typeError *yaml.TypeError
	if !errors.As(err, &typeError) {
		return err.Error()
	}
	var out []string
	for _, e := range typeError.Errors {
		if _, what, ok := strings.Cut(e, ": "); ok {
			e = what
		}
		out = append(out, e)
	}
	return strings.Join(out, "; ")
}

// List returns the rules in force.
func (r *Rules) List() []Rule {
	list := make([]Rule, len(r.rules))
	for i, c := range r.rules {
		list[i] = c.Rule
	}
	return list
}

// WriteTo writes the rules in force as a file that ParseRules reads.
func (r *Rules) WriteTo(w io.Writer) (int64, error) {
	data, err := yaml.Marshal(struct {
		Version int                  `yaml:"version"`
		Base    string               `yaml:"base"`
		Levels  Levels               `yaml:"levels"`
		Probes  map[string]ProbeConf `yaml:"probes,omitempty"`
		Scripts []ScriptConf         `yaml:"scripts,omitempty"`
		Notices []NoticeConf         `yaml:"notices,omitempty"`
		Rules   []Rule               `yaml:"rules"`
	}{rulesVersion, "none", r.Levels, r.Probes, r.Scripts, r.Notices, r.List()})
	if err != nil {
		return 0, fmt.Errorf("writing rules: %w", err)
	}
	n, err := w.Write(data)
	return int64(n), err
}
