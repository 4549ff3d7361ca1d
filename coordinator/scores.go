package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/health/score"
)

// weighed is what a node says of itself, in the light of how often the rules
// that say it were right.
type weighed struct {
	confidence float64 // that the node fails
	rules      []ruleWeight
}

// ruleWeight is one rule that has an alarm raised.
type ruleWeight struct {
	rule  string
	own   float64 // its own confidence
	tally score.Tally
}

// weigh puts the estimated precision of each rule in the place of its own
// confidence, and adds them up as the node does (docs/HEALTH.md). The rules come
// in the order of the node's reasons.
func weigh(h *vftv1.Health, tallies map[string]score.Tally) weighed {
	var w weighed
	for _, r := range h.GetReasons() {
		i := slices.IndexFunc(w.rules, func(x ruleWeight) bool { return x.rule == r.GetRule() })
		if i < 0 {
			w.rules = append(w.rules, ruleWeight{rule: r.GetRule(), own: r.GetConfidence(), tally: tallies[r.GetRule()]})
			continue
		}
		w.rules[i].own = max(w.rules[i].own, r.GetConfidence())
	}
	spared := 1.0
	for _, r := range w.rules {
		spared *= 1 - r.tally.Precision(r.own)
	}
	w.confidence = 1 - spared
	return w
}

// weight is that of the gravest reason's rule.
func (w weighed) weight() float64 { return w.rules[0].weight() }

func (r ruleWeight) weight() float64 { return r.tally.Weight(r.own) }

// String says for people what each rule has been worth so far.
func (w weighed) String() string {
	var out []string
	for _, r := range w.rules {
		judged := r.tally.Hits + r.tally.False
		why := "none of its alarms is judged yet"
		if judged > 0 {
			why = fmt.Sprintf("%d of %d alarms were right", r.tally.Hits, judged)
		}
		out = append(out, fmt.Sprintf("%s has weight %.2f, %s", r.rule, r.weight(), why))
	}
	return strings.Join(out, "; ")
}

// tallies returns the scores of all rules.
func (s *store) tallies() map[string]score.Tally {
	out := map[string]score.Tally{}
	for _, r := range s.scores() {
		out[r.GetRule()] = fsm.TallyOf(r)
	}
	return out
}

func (s *store) scores() []*vftv1.RuleScore {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Scores()
}

func (s *store) alarmsDue(at int64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.AlarmsDue(at)
}

// standings returns the scores of all rules with what follows from them.
func (s *store) standings() []*vftv1.RuleStanding {
	s.mu.RLock()
	scores, episodes := s.state.Scores(), s.state.Episodes()
	s.mu.RUnlock()
	open := map[string]int64{}
	for _, e := range episodes {
		if !e.GetCounted() {
			open[e.GetRule()]++
		}
	}
	var out []*vftv1.RuleStanding
	for _, r := range scores {
		t := fsm.TallyOf(r)
		st := &vftv1.RuleStanding{Score: r, Open: open[r.GetRule()], Weight: t.Weight(t.Confidence), Lead: t.Lead()}
		if t.Confidence > 0 {
			st.Precision = t.Precision(t.Confidence)
		}
		out = append(out, st)
	}
	return out
}

// settleAlarms has alarms counted as false when their time is over, also while
// nothing else happens.
func (t *term) settleAlarms(ctx context.Context) error {
	for {
		if t.c.store.alarmsDue(t.c.cfg.Now().UnixNano()) {
			_, err := t.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_SettleAlarms{SettleAlarms: &vftv1.SettleAlarms{}}})
			if err != nil && !errors.Is(err, errNotLeader) && ctx.Err() == nil {
				t.c.log.Warn("could not count false alarms", "err", err)
			}
		}
		if err := sleep(ctx, alarmPoll); err != nil {
			return nil
		}
	}
}

// ListScores implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) ListScores(context.Context, *connect.Request[vftv1.ListScoresRequest]) (*connect.Response[vftv1.ListScoresResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.ListScoresResponse{Rules: c.store.standings()}), nil
}
