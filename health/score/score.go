// Package score keeps how often rules were right. It is pure: times come in,
// nothing is read, so it can be part of a replicated state.
//
// Times and windows are in nanoseconds of any one clock.
package score

import (
	"maps"
	"slices"
)

// Tally is how one rule did.
type Tally struct {
	// Confidence is the rule's own, as of its latest alarm; 0: it raised none.
	Confidence float64 `json:"confidence"`
	Episodes   int64   `json:"episodes"`
	Hits       int64   `json:"hits"`   // episodes that a failure of the node followed in time
	False      int64   `json:"false"`  // episodes that none followed
	Missed     int64   `json:"missed"` // failures of nodes that the rule watched without an alarm
	// Leads are the times from the alarm to the failure of the newest hits, at
	// most MaxLeads, oldest first.
	Leads []int64 `json:"leads,omitempty"`
	At    int64   `json:"at"` // when something was counted last
}

// A book is part of a state that is copied and kept, so it has a size that no
// node can make it exceed.
const (
	// MaxRules is how many rules have a score. Another one takes the place of
	// that which had nothing counted for the longest time.
	MaxRules = 512
	// MaxOpen is how many episodes of one node are followed at a time; alarms
	// beyond are not counted.
	MaxOpen = 128
	// MaxLeads is how many lead times of a rule are remembered.
	MaxLeads = 15
	// MaxWindow bounds the time after which an episode is over: 90 days in
	// nanoseconds. Longer windows are cut.
	MaxWindow = 90 * 24 * 3600 * int64(1e9)
)

// priorStrength is how many observations a rule's own confidence counts for.
const priorStrength = 4

// Precision is the estimated share of alarms that are right of a rule with this
// confidence of its own: the mean of a Beta posterior whose prior has that as
// its mean.
func (t Tally) Precision(confidence float64) float64 {
	return (confidence*priorStrength + float64(t.Hits)) / (priorStrength + float64(t.Hits+t.False))
}

// Weight is what that confidence is multiplied with; 1 for a rule that nothing
// is known about.
func (t Tally) Weight(confidence float64) float64 {
	if confidence <= 0 {
		return 1
	}
	return t.Precision(confidence) / confidence
}

// Lead is the median time from alarm to failure of the newest hits, 0 without
// one; of an even number the shorter one in the middle.
func (t Tally) Lead() int64 {
	if len(t.Leads) == 0 {
		return 0
	}
	leads := slices.Sorted(slices.Values(t.Leads))
	return leads[(len(leads)-1)/2]
}

// Recall is the share of failures that the rule announced; ok is false while
// there were none.
func (t Tally) Recall() (r float64, ok bool) {
	if t.Hits+t.Missed == 0 {
		return 0, false
	}
	return float64(t.Hits) / float64(t.Hits+t.Missed), true
}

// Episode is the time from a rule's first alarm on a node until it is known
// whether it was right.
type Episode struct {
	Begun int64 `json:"begun"`
	Until int64 `json:"until"` // a failure after this does not count
	// Raised says that an alarm of the rule is raised; a rule that was wrong
	// but stays raised is not counted again.
	Raised  bool `json:"raised"`
	Counted bool `json:"counted"`
}

// Alarm is a rule that has an alarm raised on a node.
type Alarm struct {
	Rule       string
	Confidence float64 // the rule's own
	Window     int64   // a failure within it was predicted
}

// Book is the score of all rules. The zero Book is empty. It is for one
// goroutine. The same calls give the same book.
type Book struct {
	Tallies map[string]Tally              `json:"tallies,omitempty"`
	Open    map[string]map[string]Episode `json:"open,omitempty"` // node → rule → episode
}

// Show notes the alarms that are raised on a node, which are all of it. Those of
// a rule that are there while an episode of it is open belong to that. The
// episode of a rule that has no alarm any more goes on until its window ends: a
// failure may still come.
func (b *Book) Show(node string, now int64, alarms []Alarm) {
	b.Advance(now)
	raised := map[string]bool{}
	for _, a := range alarms {
		raised[a.Rule] = true
		b.raise(node, now, a)
	}
	for _, rule := range slices.Sorted(maps.Keys(b.Open[node])) {
		if e := b.Open[node][rule]; !raised[rule] && e.Raised {
			e.Raised = false
			b.Open[node][rule] = e
			if e.Counted {
				b.drop(node, rule)
			}
		}
	}
}

func (b *Book) raise(node string, now int64, a Alarm) {
	e, open := b.Open[node][a.Rule]
	if !open {
		if len(b.Open[node]) >= MaxOpen {
			return
		}
		e = Episode{Begun: now, Until: now + min(max(a.Window, 0), MaxWindow)}
	}
	if !e.Raised || !open {
		b.count(a.Rule, now, func(t *Tally) {
			t.Confidence = a.Confidence
			if !open {
				t.Episodes++
			}
		})
	}
	e.Raised = true
	if b.Open == nil {
		b.Open = map[string]map[string]Episode{}
	}
	if b.Open[node] == nil {
		b.Open[node] = map[string]Episode{}
	}
	b.Open[node][a.Rule] = e
}

// Fail notes that a node failed, for a reason of its own: not a planned end.
// watching are the rules that could have seen it coming.
func (b *Book) Fail(node string, now int64, watching []string) {
	b.Advance(now)
	open := b.Open[node]
	for _, rule := range slices.Sorted(maps.Keys(open)) {
		if e := open[rule]; !e.Counted {
			b.count(rule, now, func(t *Tally) {
				t.Hits++
				t.Leads = append(slices.Clone(t.Leads), now-e.Begun)
				t.Leads = t.Leads[max(0, len(t.Leads)-MaxLeads):]
			})
		}
	}
	for _, rule := range slices.Compact(slices.Sorted(slices.Values(watching))) {
		if _, announced := open[rule]; !announced {
			b.count(rule, now, func(t *Tally) { t.Missed++ })
		}
	}
	delete(b.Open, node)
}

// Withdraw forgets a node that was taken away on purpose: whether the alarms
// were right will never be known.
func (b *Book) Withdraw(node string) { delete(b.Open, node) }

// Due says whether Advance would count something.
func (b *Book) Due(now int64) bool {
	for _, rules := range b.Open {
		for _, e := range rules {
			if e.over(now) {
				return true
			}
		}
	}
	return false
}

func (e Episode) over(now int64) bool { return !e.Counted && now > e.Until }

// Advance counts the episodes whose window has ended by now.
func (b *Book) Advance(now int64) {
	for _, node := range slices.Sorted(maps.Keys(b.Open)) { // in order: which rule makes room depends on it
		for _, rule := range slices.Sorted(maps.Keys(b.Open[node])) {
			e := b.Open[node][rule]
			if !e.over(now) {
				continue
			}
			b.count(rule, now, func(t *Tally) { t.False++ })
			if !e.Raised {
				b.drop(node, rule)
				continue
			}
			e.Counted = true
			b.Open[node][rule] = e
		}
	}
}

// count changes a rule's tally.
func (b *Book) count(rule string, now int64, change func(*Tally)) {
	if b.Tallies == nil {
		b.Tallies = map[string]Tally{}
	}
	t, known := b.Tallies[rule]
	if !known && len(b.Tallies) >= MaxRules {
		b.makeRoom()
	}
	change(&t)
	t.At = max(t.At, now)
	b.Tallies[rule] = t
}

// makeRoom forgets the rule that had nothing counted for the longest time.
func (b *Book) makeRoom() {
	oldest := ""
	for rule, t := range b.Tallies {
		if o := b.Tallies[oldest]; oldest == "" || t.At < o.At || t.At == o.At && rule < oldest {
			oldest = rule
		}
	}
	delete(b.Tallies, oldest)
}

func (b *Book) drop(node, rule string) {
	delete(b.Open[node], rule)
	if len(b.Open[node]) == 0 {
		delete(b.Open, node)
	}
}
