package health

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// machine feeds an engine with one metric.
type machine struct {
	t      *testing.T
	engine *Engine
	log    []string
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newMachine(t *testing.T, rules string) *machine {
	t.Helper()
	return &machine{t: t, engine: NewEngine(parse(t, rules))}
}

func reading(up float64, subject string, value float64) Reading {
	return Reading{Probe: "p", Metric: "m", Subject: subject, Value: value, Up: up, At: epoch.Add(time.Duration(up * float64(time.Second)))}
}

// see observes readings of one time and notes what changed, as "up: +rule
// -rule state".
func (m *machine) see(readings ...Reading) {
	m.t.Helper()
	c, changed := m.engine.Observe(readings)
	if !changed {
		return
	}
	var what []string
	for _, r := range c.Raised {
		what = append(what, "+"+strings.TrimSpace(r.Rule+" "+r.Subject))
	}
	for _, r := range c.Cleared {
		what = append(what, "-"+strings.TrimSpace(r.Rule+" "+r.Subject))
	}
	m.log = append(m.log, fmt.Sprintf("%g: %s", readings[0].Up, strings.Join(append(what, c.Verdict.State.String()), " ")))
}

func TestHysteresis(t *testing.T) {
	m := newMachine(t, one(`, when: value > 10, until: value < 5, for: 60s, hold: 100s`))
	for _, p := range []struct{ up, value float64 }{
		{0, 1},
		{30, 11},
		{60, 9}, // too short: not raised
		{90, 11},
		{120, 12},
		{150, 11}, // lasts 60 s: raised
		{180, 8},
		{400, 8}, // between the thresholds: stays, however long
		{420, 4},
		{490, 4}, // clear, but not for long enough since 400
		{500, 4}, // 100 s since it was last not clear
		{510, 11},
		{570, 11}, // again
	} {
		m.see(reading(p.up, "", p.value))
	}
	assert.Equal(t, []string{"0: healthy", "150: +r failing", "500: -r healthy", "570: +r failing"}, m.log)
	v := m.engine.Verdict()
	assert.Equal(t, Failing, v.State)
	assert.InDelta(t, 0.6, v.Confidence, 1e-9)
	assert.Equal(t, time.Hour, v.Lead)
	assert.Equal(t, epoch.Add(570*time.Second), v.Since)
	require.Len(t, v.Reasons, 1)
	assert.Equal(t, 3*time.Hour, v.Reasons[0].Window)
	assert.Equal(t, reading(570, "", 11), v.Reasons[0].Reading)
}

func TestPendingIsShown(t *testing.T) {
	m := newMachine(t, one(`, when: value > 10, for: 60s`))
	m.see(reading(1, "x", 11))
	assert.Equal(t, Healthy, m.engine.Verdict().State)
	require.Len(t, m.engine.Pending(), 1)
	assert.Equal(t, "x", m.engine.Pending()[0].Subject)
}

func TestUnknownUntilSomethingIsRead(t *testing.T) {
	m := newMachine(t, one(`, when: value > 10`))
	assert.Equal(t, Unknown, m.engine.Verdict().State)
	m.see(
		Reading{Probe: "p", Metric: MetricState, Value: float64(NotThere), Up: 1},
		Reading{Probe: "p", Metric: MetricSeconds, Value: 1, Up: 1},
		Reading{Probe: "p", Metric: MetricCPU, Value: 1, Up: 1},
		reading(1, "", 0))
	assert.Equal(t, Unknown, m.engine.Verdict().State, "a machine of which nothing was read is not healthy")
	m.see(reading(2, "", 0))
	assert.Equal(t, Healthy, m.engine.Verdict().State)
}

func TestReadingsThatAreNone(t *testing.T) {
	m := newMachine(t, one(`, when: value > 10`))
	m.see(reading(1, "", math.NaN()), reading(1, "", math.Inf(1)), Reading{Value: 99, Up: 1}, reading(-5, "", 99))
	assert.Equal(t, Unknown, m.engine.Verdict().State)
	m.see(reading(2, "bad\x00\xffname\n"+strings.Repeat("x", 300), 11))
	require.Len(t, m.engine.Verdict().Reasons, 1)
	s := m.engine.Verdict().Reasons[0].Subject
	assert.True(t, strings.HasPrefix(s, "bad ?name "), s)
	assert.LessOrEqual(t, len(s), maxSubject)
}

func TestRateAcrossAReset(t *testing.T) {
	m := newMachine(t, one(`, when: 'delta("1m") > 5', until: 'delta("1m") < 1'`))
	count := func(up, v float64) Reading {
		r := reading(up, "", v)
		r.Counter = true
		return r
	}
	m.see(count(1000, 500)) // the first value is no growth
	m.see(count(1030, 501))
	m.see(count(1060, 2)) // reset, then two
	m.see(count(1090, 9))
	m.see(count(1200, 9))
	assert.Equal(t, []string{"1000: healthy", "1090: +r failing", "1200: -r healthy"}, m.log)
}

func TestTheMachineRestarts(t *testing.T) {
	m := newMachine(t, one(`, when: 'delta("1h") > 5', hold: 60s, until: value < 3`))
	for _, p := range []struct{ up, value float64 }{
		{5000, 0}, {5030, 10}, // raised
		{40, 8},           // restarted: nothing is known of growth, it stays
		{70, 8}, {100, 2}, // clear, but hold counts from 70
		{140, 2},
	} {
		m.see(reading(p.up, "", p.value))
	}
	assert.Equal(t, []string{"5000: healthy", "5030: +r failing", "140: -r healthy"}, m.log)
}

func TestOtherMetrics(t *testing.T) {
	m := newMachine(t, one(`, when: value < other("limit")`))
	other := func(up float64, subject string, v float64) Reading {
		r := reading(up, subject, v)
		r.Metric = "limit"
		return r
	}
	m.see(reading(1, "a", 5))
	m.see(reading(2, "a", 5), other(2, "b", 9))
	assert.Equal(t, []string{"1: healthy"}, m.log, "another subject's metric is another")
	m.see(reading(3, "a", 5), other(3, "a", 9)) // order within a run does not matter
	assert.Equal(t, []string{"1: healthy", "3: +r a failing"}, m.log)
}

func TestForgetting(t *testing.T) {
	m := newMachine(t, one(`, when: value > 10, forget: 1h`))
	m.see(reading(1, "disk", 11), reading(1, "other", 1))
	for up := 60.0; up < 4000; up += 60 {
		m.see(reading(up, "other", 1))
	}
	assert.Equal(t, []string{"1: +r disk failing", "3660: -r disk healthy"}, m.log)
	for up := 4000.0; up < 200000; up += 3000 {
		m.see(reading(up, "other", 1))
	}
	assert.Len(t, m.engine.state.Series, 1, "a series that does not come any more stays for ever")
}

func TestConfidence(t *testing.T) {
	rules := `version: 1
base: none
levels: {suspect: 0.1, failing: 0.5}
rules:
  - {name: bad, probe: p, metric: m, when: value > 10, level: failing, confidence: 0.6, lead: 1h, evidence: e}
  - {name: odd, probe: p, metric: m, when: value > 5, level: suspect, confidence: 0.2, lead: 10m, evidence: e}
`
	m := newMachine(t, rules)
	m.see(reading(1, "a", 6))
	v := m.engine.Verdict()
	assert.Equal(t, Suspect, v.State)
	assert.InDelta(t, 0.2, v.Confidence, 1e-9)
	assert.Equal(t, 10*time.Minute, v.Lead)

	m.see(reading(2, "b", 7))
	assert.InDelta(t, 0.2, m.engine.Verdict().Confidence, 1e-9, "subjects of one rule are not independent")

	m.see(reading(3, "a", 11))
	v = m.engine.Verdict()
	assert.Equal(t, Failing, v.State)
	assert.InDelta(t, 1-0.4*0.8, v.Confidence, 1e-9)
	assert.Equal(t, time.Hour, v.Lead, "the lead is that of the alarms that make the state")
	assert.Equal(t, []string{"bad a", "odd a", "odd b"}, names(v.Reasons))
}

// An alarm that is not sure enough of itself for its level counts for less.
func TestLevels(t *testing.T) {
	m := newMachine(t, `version: 1
base: none
levels: {suspect: 0.1, failing: 0.5}
rules:
  - {name: timid, probe: p, metric: m, when: value > 10, level: failing, confidence: 0.4, lead: 1h, evidence: e}
  - {name: faint, probe: p, metric: m, when: value > 5, level: suspect, confidence: 0.05, lead: 10m, evidence: e}
`)
	m.see(reading(1, "a", 6))
	v := m.engine.Verdict()
	assert.Equal(t, Healthy, v.State)
	assert.Len(t, v.Reasons, 1, "but it is shown")
	assert.Zero(t, v.Lead)
	m.see(reading(2, "a", 11))
	assert.Equal(t, Suspect, m.engine.Verdict().State)
}

// A rule watches when there was something for it to read.
func TestWatching(t *testing.T) {
	m := newMachine(t, `version: 1
base: none
levels: {suspect: 0.1, failing: 0.5}
rules:
  - {name: seen, probe: p, metric: m, when: value > 10, level: failing, confidence: 0.4, lead: 1h, evidence: e}
  - {name: blind, probe: q, metric: m, when: value > 10, level: failing, confidence: 0.4, lead: 1h, evidence: e}
  - {name: elsewhere, probe: p, metric: m, subject: b, when: value > 10, level: failing, confidence: 0.4, lead: 1h, evidence: e}
`)
	assert.Empty(t, m.engine.Watching())
	m.see(reading(1, "a", 6))
	assert.Equal(t, []string{"seen"}, m.engine.Watching())
	m.see(reading(1, "b", 6))
	assert.Equal(t, []string{"elsewhere", "seen"}, m.engine.Watching())
	m.engine.Reload(parse(t, one(", when: value > 10")), epoch)
	assert.Empty(t, m.engine.Watching(), "rules that are gone watch no more")
}

func names(reasons []Reason) (list []string) {
	for _, r := range reasons {
		list = append(list, r.Rule+" "+r.Subject)
	}
	return list
}

func TestLeadFromAReading(t *testing.T) {
	m := newMachine(t, strings.Replace(one(", when: value > 1"), "lead: 1h", "lead: value * 60", 1))
	m.see(reading(1, "", 5))
	assert.Equal(t, 5*time.Minute, m.engine.Verdict().Lead)
	m.see(reading(2, "", 2))
	assert.Equal(t, 2*time.Minute, m.engine.Verdict().Lead, "it follows the readings")
	m = newMachine(t, strings.Replace(one(", when: value > 1"), "lead: 1h", `lead: other("x")`, 1))
	m.see(reading(1, "", 5))
	assert.Zero(t, m.engine.Verdict().Lead, "what is not known is no time at all")
}

func TestReload(t *testing.T) {
	m := newMachine(t, one(", when: value > 10, for: 10s"))
	m.see(reading(1, "a", 11))
	m.see(reading(11, "a", 11), reading(11, "b", 11))
	require.Equal(t, []string{"r a"}, names(m.engine.Verdict().Reasons))

	same := parse(t, strings.Replace(one(", when: value > 10, for: 10s"), "0.6", "0.7", 1))
	_, changed := m.engine.Reload(same, epoch)
	assert.False(t, changed, "the condition is the same: nothing is cleared")
	assert.InDelta(t, 0.7, m.engine.Verdict().Confidence, 1e-9)
	m.see(reading(21, "b", 11))
	assert.Len(t, m.engine.Verdict().Reasons, 2, "what was pending goes on")

	c, changed := m.engine.Reload(parse(t, one(", when: value > 100")), epoch)
	require.True(t, changed)
	assert.Equal(t, []string{"r a", "r b"}, names(c.Cleared))
	assert.Equal(t, Healthy, c.Verdict.State)
}

func TestSnapshot(t *testing.T) {
	const rules = `, when: 'delta("1h") > 5', until: 'delta("1h") < 1', for: 30s, hold: 60s`
	play := func(restart bool) []string {
		m := newMachine(t, one(rules))
		for i := range 400 {
			v := 0.0
			if i > 100 && i < 150 {
				v = float64(i - 100)
			} else if i >= 150 {
				v = 50
			}
			m.see(reading(float64(i*30), "a", v))
			if restart && i%7 == 0 {
				data, err := m.engine.Save("boot")
				require.NoError(t, err)
				m.engine = NewEngine(parse(t, one(rules)))
				require.NoError(t, m.engine.Restore(data, "boot"))
			}
		}
		return m.log
	}
	want := play(false)
	require.Len(t, want, 3)
	assert.Equal(t, want, play(true), "restarts of the daemon change nothing")
}

func TestSnapshotOfAnotherBoot(t *testing.T) {
	m := newMachine(t, one(`, when: 'delta("1h") > 5', until: value < 1`))
	m.see(reading(1, "", 0))
	m.see(reading(100, "", 9))
	data, err := m.engine.Save("first")
	require.NoError(t, err)
	e := NewEngine(parse(t, one(`, when: 'delta("1h") > 5', until: value < 1`)))
	require.NoError(t, e.Restore(data, "second"))
	assert.Equal(t, Failing, e.Verdict().State, "the verdict stays")
	e.Observe([]Reading{reading(500, "", 20)})
	assert.Equal(t, 1, len(e.state.Series[seriesKey{"p", "m", ""}].Past.Samples), "but the history does not")
}

func TestBadSnapshots(t *testing.T) {
	e := NewEngine(parse(t, one(", when: value > 1")))
	for name, text := range map[string]string{
		"no JSON":       "{",
		"version":       `{"version": 9}`,
		"out of order":  `{"version": 1, "series": [{"Probe": "p", "Metric": "m", "past": {"samples": [{"t": 2}, {"t": 1}]}}]}`,
		"not a number":  `{"version": 1, "latest": "x"}`,
		"unknown state": `{"version": 1, "state": "sick"}`,
	} {
		assert.ErrorIs(t, e.Restore([]byte(text), ""), ErrSnapshot, name)
	}
	assert.Equal(t, Unknown, e.Verdict().State)
}

// Whatever is read in whatever order: an alarm is raised only while its
// condition has held for long enough, the verdict follows from the alarms, and
// memory is bounded.
func TestEngineProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rules := parse(t, one(`, when: value > 10, until: value < 5, for: 60s, hold: 120s`))
		e := NewEngine(rules)
		type truth struct{ from, high float64 }
		since := map[string]*truth{} // subject → how long the condition holds, when it was last not clear
		up := 0.0
		for range rapid.IntRange(1, 80).Draw(rt, "rounds") {
			up += float64(rapid.IntRange(1, 50).Draw(rt, "step"))
			subject := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "subject")
			value := float64(rapid.IntRange(0, 15).Draw(rt, "value"))
			c, changed := e.Observe([]Reading{reading(up, subject, value)})
			w := since[subject]
			if w == nil {
				w = &truth{from: -1, high: -1e9}
				since[subject] = w
			}
			if value <= 10 {
				w.from = -1
			} else if w.from < 0 {
				w.from = up
			}
			if value >= 5 {
				w.high = up
			}
			for _, r := range c.Raised {
				if r.Subject != subject || w.from < 0 || up-w.from < 60 {
					rt.Fatalf("raised for %s at %v, true since %v", r.Subject, up, w.from)
				}
			}
			for _, r := range c.Cleared {
				if r.Subject != subject || up-w.high < 120 {
					rt.Fatalf("cleared for %s at %v, not clear at %v", r.Subject, up, w.high)
				}
			}
			v := e.Verdict()
			if (len(v.Reasons) > 0) != (v.State == Failing) {
				rt.Fatalf("%d alarms, but %v", len(v.Reasons), v.State)
			}
			if changed && c.Verdict.State != v.State {
				rt.Fatalf("the change says %v, the engine %v", c.Verdict.State, v.State)
			}
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	m := newMachine(t, one(`, when: 'delta("1h") > 5'`))
	batch := make([]Reading, 0, 2*maxSeries)
	for i := range 2 * maxSeries {
		batch = append(batch, reading(1, fmt.Sprint(i), 1))
	}
	m.see(batch...)
	assert.Len(t, m.engine.state.Series, maxSeries)
}
