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
	Hits   int64 `json:"hits"`   // episodes that a failure of the node followed in time
	False  int64 `json:"false"`  // episodes that none followed
	Missed int64 `json:"missed"` // failures of nodes that the rule watched without an alarm
}

// priorStrength is how many observations a rule's own confidence counts for.
const priorStrength = 4

// Precision is the estimated share of alarms that are right: the mean of a
// Beta posterior whose prior has the rule's own confidence as its mean.
func (t Tally) Precision(confidence float64) float64 {
	return (confidence*priorStrength + float64(t.Hits)) / (priorStrength + float64(t.Hits+t.False))
}

// Weight is what the rule's confidence is multiplied with; 1 for a rule that
// nothing is known about.
func (t Tally) Weight(confidence float64) float64 {
	if confidence <= 0 {
		return 1
	}
	return t.Precision(confidence) / confidence
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
	Until int64 `json:"until"` // a failure after this does not count
	// Raised says that an alarm of the rule is raised; a rule that was wrong
	// but stays raised is not counted again.
	Raised  bool `json:"raised"`
	Counted bool `json:"counted"`
}

// Book is the score of all rules. The zero Book is empty. It is for one
// goroutine.
type Book struct {
	Tallies map[string]Tally              `json:"tallies,omitempty"`
	Open    map[string]map[string]Episode `json:"open,omitempty"` // node → rule → episode
}

// Raise notes that a rule raised an alarm on a node. A failure within window
// will have been predicted. A second alarm within an episode belongs to it.
func (b *Book) Raise(node, rule string, now, window int64) {
	if b.Open == nil {
		b.Open = map[string]map[string]Episode{}
	}
	if b.Open[node] == nil {
		b.Open[node] = map[string]Episode{}
	}
	e, open := b.Open[node][rule]
	if !open {
		e = Episode{Until: now + max(window, 0)}
	}
	e.Raised = true
	b.Open[node][rule] = e
}

// Clear notes that a rule has no alarm on a node any more. The episode goes on
// until its window ends: a failure may still come.
func (b *Book) Clear(node, rule string) {
	e, open := b.Open[node][rule]
	if !open {
		return
	}
	e.Raised = false
	if e.Counted {
		b.drop(node, rule)
		return
	}
	b.Open[node][rule] = e
}

// Fail notes that a node failed, for a reason of its own: not a planned end.
// watching are the rules that could have seen it coming.
func (b *Book) Fail(node string, now int64, watching []string) {
	b.Advance(now)
	for _, rule := range slices.Sorted(maps.Keys(b.Open[node])) {
		if !b.Open[node][rule].Counted {
			b.count(rule, Tally{Hits: 1})
		}
	}
	for _, rule := range watching {
		if _, open := b.Open[node][rule]; !open {
			b.count(rule, Tally{Missed: 1})
		}
	}
	delete(b.Open, node)
}

// Withdraw forgets a node that was taken away on purpose: whether the alarms
// were right will never be known.
func (b *Book) Withdraw(node string) { delete(b.Open, node) }

// Advance counts the episodes whose window has ended by now.
func (b *Book) Advance(now int64) {
	for node, rules := range b.Open {
		for rule, e := range rules {
			if e.Counted || now <= e.Until {
				continue
			}
			b.count(rule, Tally{False: 1})
			if !e.Raised {
				b.drop(node, rule)
				continue
			}
			e.Counted = true
			rules[rule] = e
		}
	}
}

// Weights returns the weights of rules with these confidences.
func (b *Book) Weights(confidences map[string]float64) map[string]float64 {
	weights := make(map[string]float64, len(confidences))
	for rule, c := range confidences {
		weights[rule] = b.Tallies[rule].Weight(c)
	}
	return weights
}

func (b *Book) count(rule string, t Tally) {
	if b.Tallies == nil {
		b.Tallies = map[string]Tally{}
	}
	was := b.Tallies[rule]
	b.Tallies[rule] = Tally{was.Hits + t.Hits, was.False + t.False, was.Missed + t.Missed}
}

func (b *Book) drop(node, rule string) {
	delete(b.Open[node], rule)
	if len(b.Open[node]) == 0 {
		delete(b.Open, node)
	}
}
