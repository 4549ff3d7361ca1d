package health

import (
	"maps"
	"math"
	"slices"
	"time"
)

// Engine applies rules to readings. It has no clock: time comes with the
// readings. It is for one goroutine.
type Engine struct {
	rules    *Rules
	state    engineState
	named    map[string]*compiled   // by name
	metrics  map[string][]*compiled // by metric
	watched  map[string]float64     // horizons by metric; 0: the value is enough
	watching map[string]bool        // rules that had a reading
	latest   float64                // newest Up seen
	swept    float64                // Up when what does not come any more was last looked for
}

// engineState is all that an engine remembers.
type engineState struct {
	Series map[seriesKey]*series
	Alarms map[alarmKey]*alarm
	State  State
	Since  time.Time
	Blind  bool // nothing about the machine was read yet
}

type seriesKey struct{ Probe, Metric, Subject string }

type alarmKey struct{ Rule, Probe, Subject string }

// series is one metric of one subject.
type series struct {
	Value float64  `json:"value"`
	Seen  float64  `json:"seen"` // Up
	Past  *history `json:"past,omitempty"`
}

// maxSeries bounds the memory of a machine with very many parts: what comes
// beyond is judged by its value alone.
const maxSeries = 16384

// NewEngine returns an engine that has seen nothing.
func NewEngine(rules *Rules) *Engine {
	e := &Engine{state: engineState{
		Series: map[seriesKey]*series{}, Alarms: map[alarmKey]*alarm{}, Blind: true,
	}, watching: map[string]bool{}}
	e.adopt(rules)
	return e
}

// adopt takes rules into use.
func (e *Engine) adopt(rules *Rules) {
	e.rules = rules
	e.named, e.metrics, e.watched = map[string]*compiled{}, map[string][]*compiled{}, map[string]float64{}
	for _, c := range rules.rules {
		e.named[c.Name] = c
		e.metrics[c.Metric] = append(e.metrics[c.Metric], c)
		e.watched[c.Metric] = max(e.watched[c.Metric], c.horizon)
		for _, o := range c.others {
			e.watched[o] = max(e.watched[o], 0)
		}
	}
}

// Watching lists the rules in force that had something to read since the engine
// began, in order. Only these could have announced a failure.
func (e *Engine) Watching() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(e.watching)) {
		if e.named[name] != nil {
			names = append(names, name)
		}
	}
	return names
}

// Reload puts other rules in place. Alarms of rules that are gone or are
// another condition now are cleared. It reports what changed.
func (e *Engine) Reload(rules *Rules, at time.Time) (Change, bool) {
	before := e.named
	e.adopt(rules)
	var cleared []Reason
	for k, a := range e.state.Alarms {
		was, is := before[k.Rule], e.named[k.Rule]
		if was != nil && is != nil && is.When == was.When && is.Metric == was.Metric && is.Level == was.Level {
			continue
		}
		if a.Phase == raised && was != nil {
			cleared = append(cleared, a.reason(was, k.Subject))
		}
		delete(e.state.Alarms, k)
	}
	return e.conclude(at, nil, cleared)
}

// Observe takes readings that were made at about the same time, and reports
// what they changed. Readings that are none are left out.
func (e *Engine) Observe(readings []Reading) (Change, bool) {
	var at time.Time
	absent := notThere(readings)
	kept := make([]*series, len(readings))
	for i := range readings {
		r := &readings[i]
		if r.Check() != nil {
			continue
		}
		r.clip()
		if r.At.After(at) {
			at = r.At
		}
		if r.Up < e.latest-clockSlack {
			e.reboot()
		}
		e.latest = max(e.latest, r.Up)
		if r.Metric != MetricState && r.Metric != MetricSeconds && r.Metric != MetricCPU && !slices.Contains(absent, r.Probe) {
			e.state.Blind = false
		}
		kept[i] = e.keep(r)
	}
	// All values are there before a rule looks at another metric.
	var rose, fell []Reason
	for i := range readings {
		up, down := e.apply(&readings[i], kept[i])
		rose, fell = append(rose, up...), append(fell, down...)
	}
	fell = append(fell, e.forget()...)
	return e.conclude(at, rose, fell)
}

// notThere lists the probes whose runs found nothing to read.
func notThere(readings []Reading) (probes []string) {
	for i := range readings {
		if readings[i].Metric == MetricState && readings[i].Value == float64(NotThere) {
			probes = append(probes, readings[i].Probe)
		}
	}
	return probes
}

// sweepEvery is how often, in seconds, old series are looked for.
const sweepEvery = 60

// clockSlack is how far Up may fall between probes that run at once.
const clockSlack = 120

// reboot forgets what is measured in the time of an earlier boot.
func (e *Engine) reboot() {
	e.latest, e.swept = 0, 0
	for _, s := range e.state.Series {
		s.Seen, s.Past = 0, nil
	}
	for _, a := range e.state.Alarms {
		a.restarted(0)
	}
}

// keep stores a reading that a rule looks at.
func (e *Engine) keep(r *Reading) *series {
	horizon, wanted := e.watched[r.Metric]
	if !wanted {
		return nil
	}
	k := seriesKey{r.Probe, r.Metric, r.Subject}
	s := e.state.Series[k]
	if s == nil {
		s = &series{}
		if len(e.state.Series) < maxSeries {
			e.state.Series[k] = s
		}
	}
	s.Value, s.Seen = r.Value, r.Up
	if horizon > 0 {
		if s.Past == nil {
			s.Past = &history{}
		}
		s.Past.add(r.Up, r.Value, r.Counter, horizon)
	}
	return s
}

// apply steps the alarms of the rules that select the reading.
func (e *Engine) apply(r *Reading, s *series) (rose, fell []Reason) {
	if s == nil {
		return nil, nil
	}
	var sc *scope
	for _, c := range e.metrics[r.Metric] {
		if !c.selects(r) {
			continue
		}
		e.watching[c.Name] = true
		if sc == nil {
			sc = e.scope(r, s)
		}
		k := alarmKey{c.Name, r.Probe, r.Subject}
		a := e.state.Alarms[k]
		if a == nil {
			a = &alarm{}
		}
		up, down := a.step(c, sc, r)
		if a.Phase == idle {
			delete(e.state.Alarms, k)
		} else if len(e.state.Alarms) < maxSeries {
			e.state.Alarms[k] = a
		}
		if up {
			rose = append(rose, a.reason(c, r.Subject))
		}
		if down {
			fell = append(fell, a.reason(c, r.Subject))
		}
	}
	return rose, fell
}

// scope binds a reading for expressions.
func (e *Engine) scope(r *Reading, s *series) *scope {
	window := func(text string) float64 {
		w, err := ParseSpan(text)
		if err != nil {
			return math.NaN()
		}
		return w.Seconds()
	}
	return &scope{
		Value: r.Value, Text: r.Text, Subject: r.Subject,
		Delta: func(text string) float64 { return s.Past.delta(window(text)) },
		Rate: func(text string) float64 {
			w := window(text)
			return s.Past.delta(w) / w
		},
		Leaky: func(out float64, text string) float64 { return s.Past.leaky(out, window(text)) },
		Other: func(metric string) float64 {
			o := e.state.Series[seriesKey{r.Probe, metric, r.Subject}]
			if o == nil {
				return math.NaN()
			}
			return o.Value
		},
		Bit: func(n int) bool {
			return n >= 0 && n < 53 && r.Value >= 0 && r.Value < 1<<53 && uint64(r.Value)&(1<<n) != 0
		},
	}
}

// forget drops alarms and series whose readings do not come any more.
func (e *Engine) forget() []Reason {
	if e.latest-e.swept < sweepEvery {
		return nil
	}
	e.swept = e.latest
	var fell []Reason
	for k, a := range e.state.Alarms {
		c := e.named[k.Rule]
		if c == nil || e.latest-a.LastSeen < c.Forget.Seconds() {
			continue
		}
		if a.Phase == raised {
			fell = append(fell, a.reason(c, k.Subject))
		}
		delete(e.state.Alarms, k)
	}
	for k, s := range e.state.Series {
		if e.latest-s.Seen > max(defaultForget.Seconds(), e.watched[k.Metric]) {
			delete(e.state.Series, k)
		}
	}
	return fell
}

// conclude makes the verdict and says whether there is anything new.
func (e *Engine) conclude(at time.Time, rose, fell []Reason) (Change, bool) {
	from := e.state.State
	state, _, _ := judge(e.rules.Levels, e.raised())
	if e.state.Blind && state == Healthy {
		state = Unknown
	}
	if state != from {
		e.state.State, e.state.Since = state, at
	}
	if state == from && len(rose) == 0 && len(fell) == 0 {
		return Change{}, false
	}
	slices.SortFunc(rose, compareReasons)
	slices.SortFunc(fell, compareReasons)
	return Change{At: at, From: from, Verdict: e.Verdict(), Raised: rose, Cleared: fell}, true
}

// raised lists the raised alarms, the gravest first.
func (e *Engine) raised() []Reason { return e.alarms(raised) }

func (e *Engine) alarms(in phase) []Reason {
	var list []Reason
	for k, a := range e.state.Alarms {
		if c := e.named[k.Rule]; c != nil && a.Phase == in {
			list = append(list, a.reason(c, k.Subject))
		}
	}
	slices.SortFunc(list, compareReasons)
	return list
}

// Verdict returns the verdict of now.
func (e *Engine) Verdict() Verdict {
	reasons := e.raised()
	_, confidence, lead := judge(e.rules.Levels, reasons)
	return Verdict{State: e.state.State, Confidence: confidence, Lead: lead, Since: e.state.Since, Reasons: reasons}
}

// Pending lists conditions that hold but not yet for long enough to be alarms.
func (e *Engine) Pending() []Reason { return e.alarms(pending) }

// Rules returns the rules in force.
func (e *Engine) Rules() *Rules { return e.rules }
