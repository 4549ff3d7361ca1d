package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// beginRestart decides from where and on which nodes a job goes on, and raises
// its incarnation, which is the fence.
func (k *controller) beginRestart(ctx context.Context, job *vftv1.Job, l loss) (next, error) {
	decided := k.c.cfg.Now()
	spec := job.GetSpec()
	if !l.requested && spec.GetRestartLimit() >= 0 && job.GetRestarts() >= spec.GetRestartLimit() {
		return k.fail(ctx, fmt.Sprintf("restart limit reached (%d): %s", spec.GetRestartLimit(), l.reason))
	}
	for _, n := range l.avoid {
		k.avoid[n] = max(k.avoid[n], 1)
	}
	if d := k.restartAfter.Sub(decided); d > 0 {
		return next{after: d}, nil
	}
	if judged, err := k.suspectEpoch(ctx, job, l); judged || err != nil {
		return next{}, err
	}
	epoch, abandon, missing := k.chooseEpoch(job)
	if missing != "" {
		left := k.waited(min(k.c.cfg.HolderWait, k.c.cfg.RestartWait))
		if left > 0 {
			k.sayWaiting(ctx, "waiting for a node that holds "+missing)
			return next{after: left, any: true}, nil
		}
		if n, wait := patient(job); wait {
			return n, nil
		}
		epoch, abandon = nil, true
	}
	if r := job.GetResumption(); r != nil && job.GetStartedAt() == 0 && epoch.GetNumber() != r.GetEpoch() {
		why := fsm.FindEpoch(job, r.GetEpoch()).GetDamaged()
		if why == "" {
			why = "no node that is alive has all of it"
		}
		return k.fail(ctx, fmt.Sprintf("the job cannot be resumed from checkpoint %d: %s", r.GetEpoch(), why))
	}
	k.t.placing.Lock() // until the log knows what is taken
	defer k.t.placing.Unlock()
	p, err := place(placing{
		spec: spec, nodes: k.forNow(job), used: k.c.used(k.id), restart: true, present: job.GetGuests(),
		holders: holdersOf(epoch), avoid: k.avoid,
	})
	if err != nil {
		if n, wait := patient(job); wait {
			k.sayWaiting(ctx, "waiting for nodes to go on on: "+err.Error())
			return n, nil
		}
		left := k.waited(k.c.cfg.RestartWait)
		if left <= 0 {
			return k.fail(ctx, err.Error())
		}
		k.sayWaiting(ctx, "waiting for nodes to restart on: "+err.Error())
		return next{after: left, any: true}, nil
	}
	if !k.takeToken() {
		return next{after: 50 * time.Millisecond}, nil
	}
	figures := k.lossFigures(job, epoch, l, decided)
	job, err = k.begin(ctx, job, &vftv1.BeginOperation{
		Kind: vftv1.OperationKind_OPERATION_KIND_RESTART, Incarnation: job.GetIncarnation() + 1, Guests: k.c.guests(p),
		Epoch: epoch.GetNumber(), Reason: l.reason, Counted: !l.requested, Abandon: abandon,
		LostGuests: l.guests, Oversubscribed: p.oversubscribed, Figures: figures,
	})
	if err != nil {
		return next{}, err
	}
	k.waiting = waiting{}
	k.c.metrics.restarts.Inc()
	k.log.Warn("restarting", "incarnation", job.GetIncarnation(), "epoch", epoch.GetNumber(), "nodes", p.nodes, "reason", l.reason)
	return next{}, nil
}

// lossFigures is what is known of the cost at the decision. Of a restart that
// takes the place of a failed one, the loss is still that of the first.
func (k *controller) lossFigures(job *vftv1.Job, epoch *vftv1.Epoch, l loss, decided time.Time) map[string]int64 {
	figures := map[string]int64{}
	if !l.seen.IsZero() {
		figures["detect"] = max(0, int64(decided.Sub(l.seen)))
	}
	since := workSince(job, epoch)
	if since == 0 || job.GetResumption().GetPending() || job.GetPhase() == vftv1.JobPhase_JOB_PHASE_SUSPENDED {
		return figures
	}
	stopped := decided.UnixNano()
	if op := job.GetOperation(); op.GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART {
		if d, ok := op.GetFigures()["detect"]; ok {
			figures["detect"] = d
		}
		if lost, ok := op.GetFigures()["lost"]; ok {
			stopped = workSince(job, fsm.FindEpoch(job, op.GetEpoch())) + lost
		}
	}
	figures["lost"] = max(0, stopped-since)
	return figures
}

func (k *controller) sayWaiting(ctx context.Context, text string) {
	if !k.waiting.said {
		k.waiting.said = true
		k.say(ctx, "waiting", text, nil, nil)
	}
}

// workSince is when the state that is restored was taken.
func workSince(job *vftv1.Job, epoch *vftv1.Epoch) int64 {
	if epoch == nil {
		if job.GetStartedAt() == 0 {
			return 0
		}
		return job.GetStartedAt()
	}
	var cut int64
	for _, p := range epoch.GetParts() {
		cut = max(cut, p.GetCutAt())
	}
	return orElse(cut, epoch.GetBegunAt())
}

func orElse(v, other int64) int64 {
	if v == 0 {
		return other
	}
	return v
}

// chooseEpoch returns the newest committed epoch that is not damaged, of which
// every part can be had from some level and that did not fail twice; nil: none
// is needed, from the beginning. missing names an epoch that would do if its
// nodes came back. abandon says that all committed ones are damaged.
func (k *controller) chooseEpoch(job *vftv1.Job) (epoch *vftv1.Epoch, abandon bool, missing string) {
	var reachable []*vftv1.Epoch
	committed := 0
	for _, e := range slices.Backward(job.GetEpochs()) {
		if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED || !fsm.Eligible(job, e) {
			continue
		}
		committed++
		if e.GetDamaged() != "" {
			continue
		}
		if away := k.partsAway(e); away != "" {
			if missing == "" {
				missing = fmt.Sprintf("checkpoint %d (%s)", e.GetNumber(), away)
			}
			continue
		}
		reachable = append(reachable, e)
	}
	for _, e := range reachable {
		if k.epochFailures[e.GetNumber()] < maxEpochFailures {
			return e, false, ""
		}
	}
	if len(reachable) > 0 { // each failed: begin again with the newest
		for _, e := range reachable {
			k.epochFailures[e.GetNumber()] = 0
		}
		return reachable[0], false, ""
	}
	return nil, committed > 0, missing
}

// maxEpochFailures is how often an epoch is tried before it is the turn of the
// one before.
const maxEpochFailures = 2

// partsAway names nodes of which some must come back to restore the epoch.
func (k *controller) partsAway(e *vftv1.Epoch) string {
	for _, p := range e.GetParts() {
		readable := func(l *vftv1.EpochLevel) bool { return fsm.Readable(p, l, k.c.alive) }
		if !slices.ContainsFunc(e.GetLevels(), readable) {
			return fmt.Sprintf("guest %d: %v", p.GetGuest(), p.GetNodes())
		}
	}
	return ""
}

func holdersOf(e *vftv1.Epoch) map[uint32][]string {
	out := map[uint32][]string{}
	for _, p := range e.GetParts() {
		out[p.GetGuest()] = p.GetNodes()
	}
	return out
}

// restart carries out a restart from where the log says it is.
func (k *controller) restart(ctx context.Context, job *vftv1.Job) (next, error) {
	if !k.takeToken() {
		return next{after: 50 * time.Millisecond}, nil
	}
	op := job.GetOperation()
	if op.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RESTORED {
		var err error
		filling := false
		if op.GetEpoch() == 0 {
			err = k.startProgram(ctx, job)
		} else {
			filling, err = k.continueGuests(ctx, job)
		}
		if err != nil {
			return k.comingUpFailed(ctx, job, err)
		}
		if err := k.finishRestart(ctx, job, filling); err != nil {
			return next{}, err
		}
		k.restartFailures, k.restartAfter = 0, time.Time{}
		k.releaseToken()
		return next{}, nil
	}
	began := k.c.cfg.Now()
	k.killOld(ctx, job)
	fenced := k.c.cfg.Now()
	var figures map[string]int64
	var err error
	if op.GetEpoch() == 0 {
		figures, err = k.bootGuests(ctx, job)
	} else {
		figures, err = k.restoreGuests(ctx, job)
	}
	if err != nil {
		return k.comingUpFailed(ctx, job, err)
	}
	figures["fence"] = int64(fenced.Sub(began))
	figures["restore"] = int64(k.c.cfg.Now().Sub(fenced))
	return next{}, k.advance(ctx, job, vftv1.OperationPhase_OPERATION_PHASE_RESTORED, figures)
}

func (k *controller) finishRestart(ctx context.Context, job *vftv1.Job, filling bool) error {
	_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_FinishOperation{FinishOperation: &vftv1.FinishOperation{
		Job: k.id, Operation: job.GetOperation().GetId(), Incarnation: job.GetIncarnation(), Filling: filling,
	}}})
	return err
}

// suspectEpoch holds it against the epoch that the job was restored from when
// a guest dies by itself before another one is committed: the state that was
// saved may be what kills it, and going back to it again and again would use
// up the restarts. When a guest died for lack of data that no level has, the
// epoch is damaged and has lost its turn at once.
func (k *controller) suspectEpoch(ctx context.Context, job *vftv1.Job, l loss) (judged bool, err error) {
	from := fsm.FindEpoch(job, job.GetRestoredFrom())
	if len(l.guests) == 0 || from.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED || k.suspected == job.GetIncarnation() {
		return false, nil
	}
	k.suspected = job.GetIncarnation() // once per life
	if l.dataLost {
		return true, k.loseTurn(ctx, from, l.reason)
	}
	for _, e := range job.GetEpochs() {
		if e.GetIncarnation() == job.GetIncarnation() && e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			return false, nil
		}
	}
	k.epochFailures[from.GetNumber()]++
	return false, nil
}

// loseTurn is for an epoch of which all who were asked said that they cannot
// give something back. It is damaged, unless a node that is away may have it.
func (k *controller) loseTurn(ctx context.Context, e *vftv1.Epoch, reason string) error {
	for _, p := range e.GetParts() {
		if slices.ContainsFunc(p.GetNodes(), func(n string) bool { return !k.c.alive(n) }) {
			k.epochFailures[e.GetNumber()] += maxEpochFailures
			return nil
		}
	}
	return k.c.change(k.id, e.GetNumber(), func(e *vftv1.Epoch) error {
		_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_SetDamaged{SetDamaged: &vftv1.SetDamaged{
			Job: k.id, Epoch: e.GetNumber(), Revision: e.GetRevision(), Reason: reason,
		}}})
		return err
	})
}

// killOld ends guests of older incarnations where they can be reached. The
// raised incarnation keeps the others from the network.
func (k *controller) killOld(ctx context.Context, job *vftv1.Job) {
	old := k.c.callContext(job)
	old.Incarnation--
	var gathering uint64 // an epoch that the restart put an end to
	if e := fsm.FindEpoch(job, job.GetNextEpoch()-1); e.GetState() == vftv1.EpochState_EPOCH_STATE_ABORTED {
		gathering = e.GetNumber()
	}
	targets := k.c.reachable()
	_, err := each(ctx, k.c, targets, "kill", k.c.cfg.FenceTimeout, false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.KillGuests(ctx, connect.NewRequest(&vftv1.KillGuestsRequest{Context: old}))
			return struct{}{}, err
		})
	if err != nil {
		k.log.Info("guests of before not killed everywhere", "incarnation", old.GetIncarnation(), "err", err)
	}
	if gathering != 0 { // its guests are dead, but parts of it may be left
		call := k.c.callContext(job)
		k.background(func() { k.abortCalls(ctx, call, gathering, targets) })
	}
}

func (k *controller) restoreGuests(ctx context.Context, job *vftv1.Job) (map[string]int64, error) {
	guarded, release := k.guard(ctx, job)
	defer release()
	epoch := fsm.FindEpoch(job, job.GetOperation().GetEpoch())
	sources := map[uint32]*vftv1.PartSource{}
	for _, p := range epoch.GetParts() {
		sources[p.GetGuest()] = k.c.source(epoch, p)
	}
	out, err := each(guarded, k.c, k.c.targetsOf(job), "restore", k.c.cfg.RestoreTimeout, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, t target) (*vftv1.RestoreGuestsResponse, error) {
			req := &vftv1.RestoreGuestsRequest{Context: k.c.callContext(job), Spec: job.GetSpec(), Members: k.c.members(job)}
			for _, g := range t.guests {
				req.Parts = append(req.Parts, sources[g])
			}
			r, err := s.RestoreGuests(ctx, connect.NewRequest(req))
			if err != nil {
				return nil, err
			}
			return r.Msg, nil
		})
	if err != nil {
		return nil, err
	}
	figures := map[string]int64{}
	for _, r := range out {
		figures["fetch"] = max(figures["fetch"], r.GetFetch())
		figures["load"] = max(figures["load"], r.GetLoad())
		figures["lazy"] += int64(r.GetLazy())
	}
	return figures, nil
}

// continueGuests lets all restored guests run, trying again where a call fails:
// the others run already. filling says that some do not have all of their memory.
func (k *controller) continueGuests(ctx context.Context, job *vftv1.Job) (filling bool, err error) {
	guarded, release := k.guard(ctx, job)
	defer release()
	left := k.c.targetsOf(job)
	for try := range 3 {
		if try > 0 && sleep(guarded, backoff(50*time.Millisecond, try, time.Second)) != nil {
			return false, fmt.Errorf("%w: %w", errInterrupted, err)
		}
		var done map[string]bool
		done, err = each(guarded, k.c, left, "continue", k.c.cfg.CallTimeout, false,
			func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (bool, error) {
				r, err := s.ContinueGuests(ctx, connect.NewRequest(&vftv1.ContinueGuestsRequest{Context: k.c.callContext(job)}))
				if err != nil {
					return false, err
				}
				return len(r.Msg.GetFilling()) > 0, nil
			})
		for _, f := range done {
			filling = filling || f
		}
		if err == nil || errors.Is(err, errInterrupted) {
			return filling, err
		}
		left = slices.DeleteFunc(left, func(t target) bool { _, ok := done[t.node]; return ok })
	}
	return filling, err
}

// awaitMemory waits until all guests have all of their memory. Until then the
// job can be neither saved nor moved; what was asked for waits.
func (k *controller) awaitMemory(ctx context.Context, job *vftv1.Job) (next, error) {
	guests, figures := k.t.leases.unfilled(job)
	if len(guests) == 0 {
		_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_GuestsFilled{GuestsFilled: &vftv1.GuestsFilled{
			Job: k.id, Incarnation: job.GetIncarnation(), Figures: figures,
		}}})
		return next{}, err
	}
	if asked := job.GetCheckpointRequested() || len(job.GetMoves()) > 0; asked && k.saidFilling != job.GetIncarnation() {
		k.saidFilling = job.GetIncarnation()
		k.say(ctx, "waiting", fmt.Sprintf("what was asked for waits until guests %v have all of their memory", guests), nil, nil)
	}
	return next{after: idle}, nil // a heartbeat tells
}

// takeToken takes part in the storm guard: so many restarts at a time.
func (k *controller) takeToken() bool {
	if k.token {
		return true
	}
	select {
	case k.t.restarts <- struct{}{}:
		k.token = true
	default:
	}
	return k.token
}

func (k *controller) releaseToken() {
	if k.token {
		k.token = false
		<-k.t.restarts
	}
}
