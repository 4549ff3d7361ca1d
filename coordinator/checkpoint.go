package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// keepSafe is what there is to do for a job that runs: a checkpoint when one
// is due.
func (k *controller) keepSafe(ctx context.Context, job *vftv1.Job) (next, error) {
	now := k.c.cfg.Now()
	if job.GetCheckpointRequested() {
		return k.beginCheckpoint(ctx, job, fsm.TriggerRequest)
	}
	interval := k.interval(ctx, job)
	if interval <= 0 {
		return next{after: idle}, nil
	}
	last := job.GetRunningSince()
	if e := fsm.LastCommitted(job); e != nil {
		last = max(last, e.GetEndedAt())
	}
	due := time.Unix(0, last).Add(interval)
	if k.checkpointAfter.After(due) {
		due = k.checkpointAfter
	}
	if wait := due.Sub(now); wait > 0 {
		return next{after: min(wait, interval)}, nil
	}
	return k.beginCheckpoint(ctx, job, fsm.TriggerInterval)
}

func (k *controller) beginCheckpoint(ctx context.Context, job *vftv1.Job, trigger string) (next, error) {
	levels, err := levelsOf(job.GetSpec())
	if err != nil {
		return next{}, err
	}
	job, err = k.begin(ctx, job, &vftv1.BeginOperation{
		Kind: vftv1.OperationKind_OPERATION_KIND_CHECKPOINT, Incarnation: job.GetIncarnation(), Epoch: job.GetNextEpoch(),
		Levels: levels, Required: required(levels, job.GetSpec().GetCommit(), len(k.c.reachable())), Trigger: trigger, Reason: trigger,
	})
	if err != nil {
		return next{}, err
	}
	return k.checkpoint(ctx, job)
}

// checkpoint takes the epoch whose operation has just begun: prepare, hold,
// verify the drain, cut, release, wait for the parts, commit.
func (k *controller) checkpoint(ctx context.Context, job *vftv1.Job) (next, error) {
	log := k.log.With("epoch", job.GetOperation().GetEpoch(), "operation", job.GetOperation().GetId())
	advance, err := k.takeCut(ctx, job)
	if err != nil {
		// The network must flow again before anything else is done.
		k.abortInBackground(ctx, job)
		return k.giveUp(ctx, job, err)
	}
	if _, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: advance}}); err != nil {
		if errors.Is(err, errNotLeader) || ctx.Err() != nil {
			return next{}, err // the log, or the next leader, decides
		}
		return k.giveUpThenAbort(ctx, job, err)
	}
	log.Debug("released")
	return k.gather(ctx, job)
}

// resumeCheckpoint takes up what an earlier leader left. Guests that may still
// be held are released and the epoch is given up; an epoch whose cut is proven
// needs only its parts.
func (k *controller) resumeCheckpoint(ctx context.Context, job *vftv1.Job) (next, error) {
	if job.GetOperation().GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RELEASED {
		return k.gather(ctx, job)
	}
	k.abortInBackground(ctx, job)
	return k.giveUp(ctx, job, errors.New("the coordinator's leader changed before the cut was complete"))
}

// takeCut makes the consistent cut and returns the command that records it.
func (k *controller) takeCut(ctx context.Context, job *vftv1.Job) (*vftv1.AdvanceOperation, error) {
	ctx, release := k.guard(ctx, job)
	defer release()
	epoch := job.GetOperation().GetEpoch()
	targets := k.c.targetsOf(job)
	call := k.c.callContext(job)
	_, err := each(ctx, k.c, targets, "prepare", k.c.cfg.PrepareTimeout, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.Prepare(ctx, connect.NewRequest(&vftv1.PrepareRequest{Context: call, Epoch: epoch, Engine: job.GetSpec().GetEngine()}))
			return struct{}{}, err
		})
	if err != nil {
		return nil, err
	}

	// From here on frames are held. All must be done before a node lets go by
	// itself, so the steps share what is left of that time.
	held := time.Now()
	left := func() time.Duration { return k.c.cfg.HoldTimeout*9/10 - time.Since(held) }
	reports, err := each(ctx, k.c, targets, "hold", left()/2, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) ([]*vftv1.PairCount, error) {
			r, err := s.Hold(ctx, connect.NewRequest(&vftv1.HoldRequest{Context: call, Epoch: epoch, Timeout: int64(k.c.cfg.HoldTimeout)}))
			if err != nil {
				return nil, err
			}
			return r.Msg.GetPairs(), nil
		})
	if err != nil {
		return nil, err
	}
	proof, err := k.c.cfg.VerifyDrain(k.c.members(job), reports)
	if err != nil {
		return nil, fmt.Errorf("the held network is not empty: %w", err)
	}
	parts, err := each(ctx, k.c, targets, "cut", left(), true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) ([]*vftv1.Part, error) {
			r, err := s.Cut(ctx, connect.NewRequest(&vftv1.CutRequest{Context: call, Epoch: epoch}))
			if err != nil {
				return nil, err
			}
			return r.Msg.GetParts(), nil
		})
	if err != nil {
		return nil, err
	}
	releases, err := each(ctx, k.c, targets, "release", min(k.c.cfg.CallTimeout, k.c.cfg.HoldTimeout), false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (*vftv1.ReleaseResponse, error) {
			r, err := s.Release(ctx, connect.NewRequest(&vftv1.ReleaseRequest{Context: call, Epoch: epoch}))
			if err != nil {
				return nil, err
			}
			return r.Msg, nil
		})
	if err != nil {
		return nil, err
	}
	a := &vftv1.AdvanceOperation{
		Job: k.id, Operation: job.GetOperation().GetId(), Incarnation: job.GetIncarnation(),
		Phase: vftv1.OperationPhase_OPERATION_PHASE_RELEASED, Proof: proof,
	}
	for node, r := range releases {
		if !r.GetByOrder() {
			return nil, fmt.Errorf("node %s held its network for too long and released by itself", node)
		}
		a.Releases = append(a.Releases, &vftv1.NodeRelease{Node: node, ByOrder: r.GetByOrder(), Hold: r.GetHold()})
	}
	for _, p := range parts {
		a.Parts = append(a.Parts, p...)
	}
	return a, nil
}

// gather waits until all parts of a released epoch are safe at the level that
// it requires and commits it.
func (k *controller) gather(ctx context.Context, job *vftv1.Job) (next, error) {
	guarded, release := k.guard(ctx, job)
	op := job.GetOperation()
	e := fsm.FindEpoch(job, op.GetEpoch())
	candidates := k.candidatesOf(job, e)
	out, err := each(guarded, k.c, k.c.targetsOf(job), "storing parts", k.c.cfg.PartsTimeout, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) ([]*vftv1.Part, error) {
			r, err := s.WaitParts(ctx, connect.NewRequest(&vftv1.WaitPartsRequest{Context: k.c.callContext(job), Epoch: op.GetEpoch()}))
			if err != nil {
				return nil, err
			}
			return r.Msg.GetParts(), k.secureRequired(ctx, job, e, r.Msg.GetParts(), candidates)
		})
	release()
	if err != nil {
		return k.giveUpThenAbort(ctx, job, err)
	}
	commit := &vftv1.CommitEpoch{Job: k.id, Operation: op.GetId(), Incarnation: job.GetIncarnation(), Epoch: op.GetEpoch()}
	for _, p := range out {
		commit.Parts = append(commit.Parts, p...)
	}
	res, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_CommitEpoch{CommitEpoch: commit}})
	switch {
	case err == nil:
	case errors.Is(err, errNotLeader) || ctx.Err() != nil:
		return next{}, err
	default:
		return k.giveUpThenAbort(ctx, job, err)
	}
	k.checkpointFailures, k.checkpointAfter = 0, time.Time{}
	clear(k.avoid) // what failed before has worked since
	clear(k.epochFailures)
	e = fsm.FindEpoch(res.Job, op.GetEpoch())
	k.c.metrics.committed(e)
	k.log.Info("epoch committed", "epoch", e.GetNumber(), "operation", op.GetId(), "took", time.Duration(e.GetEndedAt()-e.GetBegunAt()), "hold", time.Duration(e.GetHold()))
	return next{}, nil
}

// giveUp aborts the epoch in the log; the job goes on.
func (k *controller) giveUp(ctx context.Context, job *vftv1.Job, cause error) (next, error) {
	if ctx.Err() != nil {
		return next{}, ctx.Err()
	}
	if !errors.Is(cause, errInterrupted) {
		k.checkpointFailures++
	}
	limit := max(time.Duration(job.GetSpec().GetInterval()), k.c.cfg.RetryBackoff)
	k.checkpointAfter = k.c.cfg.Now().Add(backoff(k.c.cfg.RetryBackoff, k.checkpointFailures, limit))
	op := job.GetOperation()
	_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AbortEpoch{AbortEpoch: &vftv1.AbortEpoch{
		Job: k.id, Operation: op.GetId(), Epoch: op.GetEpoch(), Reason: cause.Error(),
	}}})
	if err != nil {
		return next{}, err
	}
	k.c.metrics.epochsAborted.Inc()
	k.log.Warn("epoch aborted", "epoch", op.GetEpoch(), "operation", op.GetId(), "err", cause)
	return next{}, nil
}

// giveUpThenAbort is for an epoch that is released: nobody waits for frames,
// but another leader may be about to commit it, so the log decides first.
func (k *controller) giveUpThenAbort(ctx context.Context, job *vftv1.Job, cause error) (next, error) {
	n, err := k.giveUp(ctx, job, cause)
	if err == nil {
		k.abortInBackground(ctx, job)
	}
	return n, err
}

func (k *controller) abortInBackground(ctx context.Context, job *vftv1.Job) {
	call, epoch, targets := k.c.callContext(job), job.GetOperation().GetEpoch(), k.c.targetsOf(job)
	if job.GetOperation().GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RELEASED {
		targets = k.c.reachable() // others may have copies by now
	}
	k.background(func() { k.abortCalls(ctx, call, epoch, targets) })
}

// abortCalls tells nodes to release and to forget the parts of an epoch. A
// node that does not hear it releases by its own time-out.
func (k *controller) abortCalls(ctx context.Context, call *vftv1.Context, epoch uint64, targets []target) {
	_, err := each(ctx, k.c, targets, "abort", k.c.cfg.CallTimeout, false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.AbortEpoch(ctx, connect.NewRequest(&vftv1.AbortEpochRequest{Context: call, Epoch: epoch}))
			return struct{}{}, err
		})
	if err != nil {
		k.log.Info("epoch not aborted everywhere", "epoch", epoch, "err", err)
	}
}
