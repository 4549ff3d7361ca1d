package fsm

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/health/score"
)

// shownBy takes the alarms that a node says are raised.
func (s *State) shownBy(n *vftv1.Node, at int64) {
	byRule := map[string]score.Alarm{}
	for _, r := range n.GetHealth().GetReasons() {
		if r.GetRule() == "" {
			continue
		}
		a := byRule[r.GetRule()] // of its subjects the one that says most
		byRule[r.GetRule()] = score.Alarm{
			Rule: r.GetRule(), Confidence: max(a.Confidence, r.GetConfidence()), Window: max(a.Window, r.GetWindow()),
		}
	}
	alarms := make([]score.Alarm, 0, len(byRule))
	for _, rule := range slices.Sorted(maps.Keys(byRule)) {
		alarms = append(alarms, byRule[rule])
	}
	s.book.Show(n.GetId(), at, alarms)
}

// failed judges the rules by the loss of a node. One that was being emptied may
// have been taken away on purpose: that says nothing about them.
func (s *State) failed(n *vftv1.Node, at int64) {
	if n.GetDrained() != "" {
		s.book.Withdraw(n.GetId())
		return
	}
	s.book.Fail(n.GetId(), at, n.GetHealth().GetWatching())
}

// settleAlarms counts alarms whose time is over.
func (s *State) settleAlarms(at int64) Result {
	if !s.book.Due(at) {
		return Result{}
	}
	s.book.Advance(at)
	return Result{Changed: true}
}

// AlarmsDue says whether SettleAlarms at that time, in Unix nanoseconds, would
// count something.
func (s *State) AlarmsDue(at int64) bool { return s.book.Due(at) }

// Scores returns how often the alarms of each rule were right, by rule.
func (s *State) Scores() []*vftv1.RuleScore {
	out := make([]*vftv1.RuleScore, 0, len(s.book.Tallies))
	for _, rule := range slices.Sorted(maps.Keys(s.book.Tallies)) {
		t := s.book.Tallies[rule]
		out = append(out, &vftv1.RuleScore{
			Rule: rule, Confidence: t.Confidence, Episodes: t.Episodes, Hits: t.Hits, FalseAlarms: t.False, Missed: t.Missed,
			Leads: slices.Clone(t.Leads), At: t.At,
		})
	}
	return out
}

// TallyOf is a rule's score as package score has it.
func TallyOf(r *vftv1.RuleScore) score.Tally {
	return score.Tally{
		Confidence: r.GetConfidence(), Episodes: r.GetEpisodes(), Hits: r.GetHits(), False: r.GetFalseAlarms(), Missed: r.GetMissed(),
		Leads: slices.Clone(r.GetLeads()), At: r.GetAt(),
	}
}

// Episodes returns the alarms whose episode is open, by node and rule.
func (s *State) Episodes() []*vftv1.AlarmEpisode {
	var out []*vftv1.AlarmEpisode
	for node, rules := range s.book.Open {
		for rule, e := range rules {
			out = append(out, &vftv1.AlarmEpisode{Node: node, Rule: rule, Begun: e.Begun, Until: e.Until, Raised: e.Raised, Counted: e.Counted})
		}
	}
	slices.SortFunc(out, func(a, b *vftv1.AlarmEpisode) int {
		return cmp.Or(strings.Compare(a.GetNode(), b.GetNode()), strings.Compare(a.GetRule(), b.GetRule()))
	})
	return out
}

// bookOf is the inverse of Scores and Episodes.
func bookOf(scores []*vftv1.RuleScore, episodes []*vftv1.AlarmEpisode) score.Book {
	b := score.Book{Tallies: map[string]score.Tally{}, Open: map[string]map[string]score.Episode{}}
	for _, r := range scores {
		b.Tallies[r.GetRule()] = TallyOf(r)
	}
	for _, e := range episodes {
		if b.Open[e.GetNode()] == nil {
			b.Open[e.GetNode()] = map[string]score.Episode{}
		}
		b.Open[e.GetNode()][e.GetRule()] = score.Episode{Begun: e.GetBegun(), Until: e.GetUntil(), Raised: e.GetRaised(), Counted: e.GetCounted()}
	}
	return b
}
