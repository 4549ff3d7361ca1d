package health

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func parse(t *testing.T, text string) *Rules {
	t.Helper()
	r, err := ParseRules("test.yaml", []byte(text))
	require.NoError(t, err)
	return r
}

// one is a file with one rule, from its fields.
func one(fields string) string {
	return "version: 1\nbase: none\nlevels: {suspect: 0.1, failing: 0.5}\nrules:\n  - {name: r, probe: p, metric: m, level: failing, confidence: 0.6, lead: 1h, evidence: e" + fields + "}\n"
}

func TestBadRules(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"not yaml":             {"{", "test.yaml"},
		"no version":           {"rules: []", "version 0"},
		"a later version":      {"version: 2", "version 2"},
		"unknown field":        {"version: 1\nrulez: []", "rulez"},
		"unknown base":         {"version: 1\nbase: site", "base"},
		"levels upside down":   {"version: 1\nlevels: {suspect: 0.9, failing: 0.1}", "levels"},
		"no name":              {"version: 1\nrules:\n  - {probe: p}", "line 3: a rule needs a name"},
		"unknown rule field":   {one(", when: value > 1, colour: red"), `line 5: rule "r": field colour not found`},
		"no condition":         {one(""), `line 5: rule "r": it needs a condition`},
		"no probe":             {strings.Replace(one(", when: value > 1"), "probe: p", "probe: ''", 1), "a probe"},
		"a level it cannot be": {strings.Replace(one(", when: value > 1"), "failing,", "healthy,", 1), "level"},
		"no such level":        {strings.Replace(one(", when: value > 1"), "failing,", "sick,", 1), `no state is called "sick"`},
		"confidence":           {strings.Replace(one(", when: value > 1"), "0.6", "1.5", 1), "confidence"},
		"no evidence":          {strings.Replace(one(", when: value > 1"), "evidence: e", "evidence: ''", 1), "evidence"},
		"bad pattern":          {one(", when: value > 1, subject: '['"), "pattern"},
		"bad duration":         {one(", when: value > 1, for: soon"), "soon"},
		"syntax":               {one(", when: value >"), `rule "r": when: in`},
		"unknown variable":     {one(", when: valu > 1"), "column 1: unknown name valu"},
		"not a truth value":    {one(", when: value + 1"), "bool"},
		"types":                {one(`, when: value > "1"`), "mismatched types"},
		"bad until":            {one(", when: value > 1, until: x"), "until: in `x`"},
		"bad lead":             {strings.Replace(one(", when: value > 1"), "1h", "long", 1), "lead is neither"},
		"window not constant":  {one(", when: delta(text) > 1"), "a text in quotes"},
		"window not a time":    {one(`, when: 'delta("x") > 1'`), `"x" is no length of time`},
		"window of nothing":    {one(`, when: 'delta("0s") > 1'`), "more than nothing"},
		"window too long":      {one(`, when: 'delta("90d") > 1'`), "at most 60d"},
		"built-in functions":   {one(", when: len(text) > 1"), "unknown name len"},
		"other not constant":   {one(", when: other(text) > 1"), "a text in quotes"},
		"evidence, open brace": {strings.Replace(one(", when: value > 1"), "evidence: e", "evidence: 'a {value'", 1), "without }"},
		"evidence, expression": {strings.Replace(one(", when: value > 1"), "evidence: e", "evidence: 'a {nil.x}'", 1), "evidence: in"},
		"off, but not there":   {"version: 1\nrules:\n  - {name: nonsense, off: true}", "no such rule"},
		"twice":                {one(", when: value > 1") + "  - {name: r, probe: p, metric: m, when: value > 1, level: failing, confidence: 0.6, lead: 1h, evidence: e}\n", "of this name already"},
		"probe too often":      {"version: 1\nprobes: {edac: {every: 1ms}}", "probe edac: every 1ms"},
		"script without name":  {"version: 1\nscripts: [{run: [x]}]", "a script needs a name"},
		"script without run":   {"version: 1\nscripts: [{name: x, convention: nhc}]", "run"},
		"script's convention":  {"version: 1\nscripts: [{name: x, run: [x], convention: odd}]", `"odd"`},
		"notice nowhere":       {"version: 1\nnotices: [{name: x}]", "exactly one of"},
		"notice in two places": {"version: 1\nnotices: [{name: x, file: /a, url: 'http://b'}]", "exactly one of"},
		"several at once":      {one(", when: x") + "  - {name: s, probe: p, metric: m, when: y, level: failing, confidence: 0.6, lead: 1h, evidence: e}\n", "line 6"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRules("test.yaml", []byte(test.file))
			require.ErrorIs(t, err, ErrRules)
			assert.ErrorContains(t, err, "test.yaml")
			assert.ErrorContains(t, err, test.want)
		})
	}
	_, err := ParseRules("big.yaml", make([]byte, maxRulesFile+1))
	assert.ErrorIs(t, err, ErrRules)
}

func TestASiteChangesTheDefaults(t *testing.T) {
	base, err := DefaultRules()
	require.NoError(t, err)
	site := parse(t, `version: 1
levels: {suspect: 0.2, failing: 0.6}
probes: {ipmi: {off: true}}
scripts:
  - {name: nhc, run: [/usr/sbin/nhc], convention: nhc, every: 5m, limit: 1m}
notices:
  - {name: file, off: true}
rules:
  - {name: clock-off, off: true}
  - {name: too-hot, probe: thermal, metric: margin, when: value < 1, level: failing, confidence: 0.9, lead: 1m, evidence: hot}
  - {name: own, probe: script/*, metric: problem, when: value > 0, level: suspect, confidence: 0.9, lead: 1m, evidence: own}
`)
	assert.Len(t, site.List(), len(base.List()))
	find := func(name string) *Rule {
		for _, r := range site.List() {
			if r.Name == name {
				return &r
			}
		}
		return nil
	}
	assert.Nil(t, find("clock-off"))
	assert.Equal(t, "value < 1", find("too-hot").When)
	assert.NotNil(t, find("own"))
	assert.InDelta(t, 0.6, site.Levels.Failing, 0)
	assert.True(t, site.Probes["ipmi"].Off)
	assert.False(t, site.Probes["edac"].Off)
	assert.Len(t, site.Scripts, 1)
	assert.Len(t, site.Notices, len(base.Notices)-1)
}

func TestRulesAsPrintedAreRead(t *testing.T) {
	want, err := DefaultRules()
	require.NoError(t, err)
	var text bytes.Buffer
	_, err = want.WriteTo(&text)
	require.NoError(t, err)
	got := parse(t, text.String())
	assert.Equal(t, want.List(), got.List())
	assert.Equal(t, want.Probes, got.Probes)
	assert.Equal(t, want.Notices, got.Notices)

	path := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(path, text.Bytes(), 0o600))
	loaded, err := LoadRules(path)
	require.NoError(t, err)
	assert.Equal(t, want.List(), loaded.List())
	_, err = LoadRules(path + ".not")
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestDefaultsOfARule(t *testing.T) {
	r := parse(t, one(`, when: 'delta("2h") > leaky(1, "1h")'`)).rules[0]
	assert.Equal(t, Span(3*time.Hour), r.Window)
	assert.Equal(t, defaultForget, r.Forget)
	assert.InDelta(t, leakyMemory*3600, r.horizon, 0, "a leaky bucket remembers longer than its window")
	r = parse(t, strings.Replace(one(", when: value > 1"), "lead: 1h", "lead: value * 2", 1)).rules[0]
	assert.Equal(t, defaultWindow, r.Window)
}

func TestExpressions(t *testing.T) {
	s := &scope{
		Value: 6, Text: "label", Subject: "mc0",
		Delta: func(w string) float64 { return map[string]float64{"1h": 4}[w] },
		Rate:  func(string) float64 { return 0.5 },
		Leaky: func(n float64, _ string) float64 { return n },
		Other: func(string) float64 { return math.NaN() },
		Bit:   func(n int) bool { return 6&(1<<n) != 0 },
	}
	for source, want := range map[string]bool{
		`value > 5`:                          true,
		`value == 6 and text == "label"`:     true,
		`delta("1h") > 3 and rate("5m") < 1`: true,
		`leaky(10, "24h") == 10`:             true,
		`other("x") < 1`:                     false,
		`other("x") >= 1`:                    false,
		`not (other("x") >= 1)`:              true,
		`bit(1) and not bit(0)`:              true,
		`bit(-1) or bit(500)`:                false,
		`subject matches "^mc[0-9]$"`:        true,
		`value / 0 > 1`:                      true,
	} {
		e, err := compileExpression(source)
		require.NoError(t, err, source)
		assert.Equal(t, want, e.truth(s), source)
	}
	tpl, err := compileTemplate(`{subject} ({text}): {delta("1h")} of {value * 1.25}, {other("x")} {value > 1}.`)
	require.NoError(t, err)
	assert.Equal(t, "mc0 (label): 4 of 7.5, NaN true.", tpl.fill(s))
}

func TestSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "1h30m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "0s": 0, "36500d": 36500 * 24 * time.Hour,
	} {
		got, err := ParseSpan(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, time.Duration(got))
		again, err := ParseSpan(got.String())
		require.NoError(t, err)
		assert.Equal(t, got, again)
	}
	for _, text := range []string{"", "d", "-1s", "1", "99999d", "1d12h", "9999999h"} {
		_, err := ParseSpan(text)
		assert.Error(t, err, text)
	}
	assert.Equal(t, "10m", Span(10*time.Minute).String())
	assert.Equal(t, "2h", Span(2*time.Hour).String())
	assert.Equal(t, "1h0m5s", Span(time.Hour+5*time.Second).String())
}

func FuzzRules(f *testing.F) {
	f.Add(string(defaultRules))
	f.Add(one(", when: value > 1"))
	f.Add(one(`, when: 'delta("1h") > 1', lead: 'value'`))
	f.Add("version: 1\nrules:\n  - &a {name: x}\n  - *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := ParseRules("fuzz", []byte(text))
		if err != nil {
			return
		}
		e := NewEngine(rules)
		for i := range 3 {
			e.Observe([]Reading{{Probe: "p", Metric: "m", Value: float64(i), Up: float64(i), Counter: true}})
		}
	})
}
