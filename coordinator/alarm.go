package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/policy"
)

// alarmPoll is how often an alarm that stands is judged anew: what an ignored
// failure would cost grows with the time since the last checkpoint, and other
// moves come to their end.
const alarmPoll = time.Second

// alarm is a node that expects to fail and has guests of a job.
type alarm struct {
	node   *vftv1.Node
	guests []uint32
	key    string // the same as long as it is the same alarm about the same guests' life
}

// alarmed returns the most pressing alarm about a node of the job, or nil.
func (k *controller) alarmed(job *vftv1.Job) *alarm {
	var found *alarm
	for _, t := range k.c.targetsOf(job) {
		n := k.c.store.node(t.node)
		if !failing(n) {
			continue
		}
		a := &alarm{node: n, guests: t.guests, key: fmt.Sprintf("%s@%d/%d", n.GetId(), n.GetHealth().GetSince(), job.GetIncarnation())}
		if found == nil || cmp.Or(
			cmp.Compare(n.GetHealth().GetLead(), found.node.GetHealth().GetLead()),
			-cmp.Compare(n.GetHealth().GetConfidence(), found.node.GetHealth().GetConfidence()),
		) < 0 {
			found = a
		}
	}
	return found
}

// reason is why the node is feared for, for people.
func (a *alarm) reason() string {
	return fmt.Sprintf("node %s expects to fail: %s", a.node.GetId(), a.node.GetHealth().GetReasons()[0].GetEvidence())
}

// decision is what the policy says about an alarm, and from what.
type decision struct {
	policy.Decision
	alarm    policy.Alarm
	weighed  weighed
	measured measured
	by       string // the policy
	fault    string // why it was not the user's
}

// judge asks the policy.
func (k *controller) judge(job *vftv1.Job, a *alarm) decision {
	h, guests := a.node.GetHealth(), len(a.guests)
	m := measure(job, k.c.store.jobs(), k.c.cfg.Lease)
	_, err := placeOne(placing{spec: job.GetSpec(), nodes: k.c.store.nodes(), used: k.c.used(k.id), present: job.GetGuests()}, a.guests[0], "")
	w := weigh(h, k.c.store.tallies())
	d := decision{measured: m, weighed: w, by: "default", alarm: policy.Alarm{
		Confidence: w.confidence, Lead: time.Duration(h.GetLead()), Target: err == nil,
		Memory:    int64(guests) * int64(job.GetSpec().GetMemoryMib()) << 20,
		Bandwidth: m.bandwidth, DirtyRate: m.dirty, MigrationLoss: time.Duration(guests) * m.move,
	}}
	if since := workSince(job, fsm.LastCommitted(job)); since != 0 {
		d.alarm.SinceCommit = max(0, k.c.cfg.Now().Sub(time.Unix(0, since)))
	}
	custom := k.c.policy.Load()
	if custom == nil {
		d.Decision = policy.Decide(d.alarm, m.costs)
		return d
	}
	if d.Decision, err = within(customLimit, custom, d.alarm, m.costs); err != nil {
		d.fault = err.Error()
		k.log.Warn("the site's policy was not used", "policy", custom.String(), "err", err)
	} else {
		d.by = custom.String()
	}
	return d
}

// customLimit is how long a site's policy may take for one decision.
const customLimit = 200 * time.Millisecond

// within asks a site's policy, for at most so long. What it has allocated is
// bounded, so that one that is late ends by itself.
func within(limit time.Duration, custom *policy.Custom, a policy.Alarm, c policy.Costs) (policy.Decision, error) {
	type answer struct {
		d   policy.Decision
		err error
	}
	out := make(chan answer, 1)
	go func() {
		d, err := custom.Decide(a, c)
		out <- answer{d, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case got := <-out:
		return got.d, got.err
	case <-timer.C:
		return policy.Decide(a, c), fmt.Errorf("%w: no answer within %v", policy.ErrCustom, limit)
	}
}

// SetPolicy has a site's expression decide about alarms; nil: the policy that
// is built in. It may be called at any time.
func (c *Coordinator) SetPolicy(custom *policy.Custom) { c.policy.Store(custom) }

// last returns the newest recorded decision about an alarm, or nil.
func (a *alarm) last(job *vftv1.Job) *vftv1.Event {
	for _, ev := range slices.Backward(job.GetEvents()) {
		if ev.GetKind() == "decision" && ev.GetLabels()["alarm"] == a.key {
			return ev
		}
	}
	return nil
}

// answerAlarms does what the policy says about a node of the job that expects
// to fail. began is false when nothing is to be done now; then n says when to
// look again, if anybody has to.
func (k *controller) answerAlarms(ctx context.Context, job *vftv1.Job) (began bool, n next, err error) {
	a := k.alarmed(job)
	if a == nil {
		k.alarmFailures, k.alarmAfter = 0, time.Time{}
		return false, next{}, nil
	}
	if wait := k.alarmAfter.Sub(k.c.cfg.Now()); wait > 0 {
		return false, next{after: wait}, nil
	}
	last := a.last(job)
	if policy.Action(last.GetLabels()["action"]) == policy.Move && last.GetLabels()["deferred"] == "" {
		return k.moveAway(ctx, job, a, last) // begun is begun: after its checkpoint the figures look otherwise
	}
	d := k.judge(job, a)
	deferred := ""
	switch d.Action {
	case policy.Checkpoint:
		if !k.worthAnother(job, d) {
			return false, next{after: alarmPoll}, nil
		}
	case policy.Migrate, policy.Move:
		deferred = k.mayMove(a, d, "")
	case policy.Ignore:
	}
	said := last.GetLabels()
	switch {
	case last != nil && d.Action == policy.Ignore && said["action"] == string(policy.Checkpoint): // it has been answered
	case last == nil || d.Action == policy.Checkpoint || said["action"] != string(d.Action) || (said["deferred"] == "") != (deferred == ""):
		k.sayDecision(ctx, a, d, deferred)
		last = a.last(k.c.store.job(k.id))
	}
	switch {
	case deferred != "" || d.Action == policy.Ignore:
		return false, next{after: alarmPoll}, nil
	case d.Action == policy.Checkpoint:
		n, err = k.beginCheckpoint(ctx, job, fsm.TriggerAlarm)
		return true, n, err
	case d.Action == policy.Move:
		return k.moveAway(ctx, job, a, last)
	}
	return k.migrateAway(ctx, job, a, d)
}

// migrateAway moves the first of the guests; the others follow when it is away.
func (k *controller) migrateAway(ctx context.Context, job *vftv1.Job, a *alarm, d decision) (bool, next, error) {
	moving, err := k.beginMove(ctx, job, &vftv1.Move{Guest: a.guests[0], Trigger: fsm.TriggerPolicy, Reason: a.reason()},
		func(to string) string { return k.mayMove(a, d, to) })
	var none *noPlaceError
	if errors.As(err, &none) { // somebody was faster: decide anew
		return false, next{after: alarmPoll}, nil
	}
	if err != nil {
		return true, next{}, err
	}
	n, err := k.migrate(ctx, moving)
	return true, n, err
}

// moveAway takes a checkpoint, and when one began after the decision restarts
// the job from it, on other nodes.
func (k *controller) moveAway(ctx context.Context, job *vftv1.Job, a *alarm, decided *vftv1.Event) (bool, next, error) {
	if e := fsm.LastCommitted(job); e != nil && decided != nil && e.GetBegunAt() >= decided.GetAt() {
		n, err := k.beginRestart(ctx, job, loss{reason: a.reason(), requested: true})
		return true, n, err
	}
	if wait := k.checkpointAfter.Sub(k.c.cfg.Now()); wait > 0 {
		return false, next{after: wait}, nil
	}
	n, err := k.beginCheckpoint(ctx, job, fsm.TriggerAlarm)
	return true, n, err
}

// alarmLater has an alarm wait before its answer is tried again.
func (k *controller) alarmLater() {
	k.alarmFailures++
	k.alarmAfter = k.c.cfg.Now().Add(backoff(k.c.cfg.RetryBackoff, k.alarmFailures, time.Minute))
}

// worthAnother says whether a checkpoint on account of an alarm is due: a node
// that fails with probability p within ℓ fails at the rate p/ℓ, and Young's
// interval for it should have passed since the last one.
func (k *controller) worthAnother(job *vftv1.Job, d decision) bool {
	if k.checkpointAfter.After(k.c.cfg.Now()) {
		return false
	}
	for _, e := range slices.Backward(job.GetEpochs()) {
		if e.GetTrigger() == fsm.TriggerAlarm && e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED && e.GetIncarnation() == job.GetIncarnation() {
			rare := time.Duration(float64(d.alarm.Lead) / max(d.alarm.Confidence, 0.01))
			return d.alarm.SinceCommit >= policy.Young(d.measured.costs.Checkpoint, rare)
		}
	}
	return true
}

// mayMove asks the storm guard; "" is yes. With to empty no target is chosen yet.
func (k *controller) mayMove(a *alarm, d decision, to string) string {
	g := k.c.cfg.Guard
	s := situation(k.c.store.jobs(), k.c.store.nodes(), a.node.GetId(), to, k.c.cfg.Now())
	s.InCluster += len(k.t.restarts)
	need := d.Options[2].Need
	return g.Allow(s, d.alarm.Lead < g.Cooldown+2*need)
}

// situation is what the storm guard looks at before guests leave from for to.
// Moves off one node are one: guests that left it do not have the others wait.
func situation(jobs []*vftv1.Job, nodes []*vftv1.Node, from, to string, now time.Time) policy.Situation {
	s := policy.Situation{SinceMove: -1}
	for _, n := range nodes {
		if n.GetId() != from && n.GetState() == vftv1.NodeState_NODE_STATE_ALIVE && n.GetDrained() == "" && !failing(n) {
			s.Healthy++
		}
	}
	touches := func(node, a, b string) bool { return node != "" && (node == a || node == b) }
	for _, j := range jobs {
		if m := j.GetOperation().GetMove(); m != nil {
			s.InCluster++
			if touches(from, m.GetFrom(), m.GetTo()) {
				s.AtSource++
			}
			if touches(to, m.GetFrom(), m.GetTo()) {
				s.AtTarget++
			}
		}
		for _, ev := range j.GetEvents() {
			l := ev.GetLabels()
			if ev.GetKind() != "migrated" || l["trigger"] != fsm.TriggerPolicy || l["from"] == from {
				continue
			}
			if touches(from, l["from"], l["to"]) || touches(to, l["from"], l["to"]) {
				if age := now.Sub(time.Unix(0, ev.GetAt())); s.SinceMove < 0 || age < s.SinceMove {
					s.SinceMove = max(0, age)
				}
			}
		}
	}
	return s
}

// sayDecision makes the decision an event, with everything it was made from.
func (k *controller) sayDecision(ctx context.Context, a *alarm, d decision, deferred string) {
	h, c := a.node.GetHealth(), d.measured.costs
	figures := map[string]int64{
		"confidence_ppm": int64(d.alarm.Confidence * 1e6), "own_confidence_ppm": int64(h.GetConfidence() * 1e6),
		"weight_ppm": int64(d.weighed.weight() * 1e6), "lead": int64(d.alarm.Lead), "since_commit": int64(d.alarm.SinceCommit),
		"guests": int64(len(a.guests)), "memory": d.alarm.Memory, "bandwidth": int64(d.alarm.Bandwidth), "dirty_rate": int64(d.alarm.DirtyRate),
		"migration_loss": int64(d.alarm.MigrationLoss), "checkpoint": int64(c.Checkpoint), "latency": int64(c.Latency),
		"restart": int64(c.Restart), "downtime": int64(c.Downtime),
	}
	labels := map[string]string{
		"alarm": a.key, "node": a.node.GetId(), "action": string(d.Action), "rule": h.GetReasons()[0].GetRule(),
		"evidence": h.GetReasons()[0].GetEvidence(), "policy": d.by, "scores": d.weighed.String(),
	}
	for name, text := range map[string]string{"deferred": deferred, "assumed": strings.Join(d.measured.assumed, " "), "policy_fault": d.fault} {
		if text != "" {
			labels[name] = text
		}
	}
	var others []string
	for _, o := range d.Options {
		figures["cost_"+string(o.Action)], figures["need_"+string(o.Action)] = int64(o.Cost), int64(o.Need)
		if o.Obstacle != "" {
			labels["obstacle_"+string(o.Action)] = string(o.Obstacle)
		}
		if o.Action != d.Action {
			others = append(others, o.String())
		}
	}
	text := fmt.Sprintf("%s (confidence %.0f %%, lead %v): decided to %s", a.reason(), 100*d.alarm.Confidence, d.alarm.Lead, doing[d.Action])
	if deferred != "" {
		text += ", but not yet: " + deferred
	}
	k.log.Info("decision about an alarm", "node", a.node.GetId(), "action", string(d.Action), "deferred", deferred, "figures", figures)
	k.say(ctx, "decision", text+"; "+strings.Join(others, "; "), figures, labels)
}

var doing = map[policy.Action]string{
	policy.Ignore:     "go on",
	policy.Checkpoint: "take a checkpoint",
	policy.Migrate:    "migrate the guests there",
	policy.Move:       "take a checkpoint and restart elsewhere",
}
