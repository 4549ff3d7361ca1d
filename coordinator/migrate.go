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

// maxMoveTries is how often nodes are asked to end a migration before the job
// is restarted instead.
const maxMoveTries = 8

// loadedMove is when a guest was ready to run on its new node, for the figures.
type loadedMove struct {
	operation uint64
	at        time.Time
	held      time.Time
	stopped   time.Duration
}

// move begins the migration of a guest that somebody asked for, or whose node
// is being drained. began is false when there is none to begin now.
func (k *controller) move(ctx context.Context, job *vftv1.Job) (began bool, n next, err error) {
	if len(job.GetMoves()) > 0 {
		m := job.GetMoves()[0]
		job, err = k.beginMove(ctx, job, m, nil)
		var none *noPlaceError
		if errors.As(err, &none) {
			_, err = k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_DropMove{DropMove: &vftv1.DropMove{Job: k.id, Number: m.GetNumber(), Reason: none.Error()}}})
			return true, next{}, err
		}
		if err != nil {
			return true, next{}, err
		}
		n, err = k.migrate(ctx, job)
		return true, n, err
	}
	for _, g := range job.GetGuests() {
		why := k.c.store.node(g.GetNode()).GetDrained()
		if why == "" {
			continue
		}
		if k.moveAfter.After(k.c.cfg.Now()) {
			return false, next{}, nil
		}
		moving, err := k.beginMove(ctx, job, &vftv1.Move{Guest: g.GetIndex(), Trigger: fsm.TriggerDrain, Reason: fmt.Sprintf("node %s is being drained: %s", g.GetNode(), why)}, nil)
		var none *noPlaceError
		if errors.As(err, &none) {
			k.moveLater(ctx, fmt.Sprintf("guest %d stays on node %s for now: %v", g.GetIndex(), g.GetNode(), none))
			return false, next{}, nil
		}
		if err != nil {
			return true, next{}, err
		}
		n, err = k.migrate(ctx, moving)
		return true, n, err
	}
	k.moveFailures, k.moveAfter = 0, time.Time{}
	return false, next{}, nil
}

// moveLater has guests of drained nodes wait before they are tried again.
func (k *controller) moveLater(ctx context.Context, why string) {
	k.moveFailures++
	k.moveAfter = k.c.cfg.Now().Add(backoff(k.c.cfg.RetryBackoff, k.moveFailures, time.Minute))
	if why != "" && k.moveFailures == 1 {
		k.say(ctx, "waiting", why, nil, nil)
	}
}

// noPlaceError says that no node can take a guest.
type noPlaceError struct{ error }

// beginMove begins the migration of a guest to the node named, or the best, if
// nothing speaks against that one. against may be nil.
func (k *controller) beginMove(ctx context.Context, job *vftv1.Job, m *vftv1.Move, against func(to string) string) (*vftv1.Job, error) {
	k.t.placing.Lock() // until the log knows what is taken
	defer k.t.placing.Unlock()
	to, err := placeOne(placing{spec: job.GetSpec(), nodes: k.c.store.nodes(), used: k.c.used(k.id), present: job.GetGuests()}, m.GetGuest(), m.GetTo())
	if err != nil {
		return nil, &noPlaceError{err}
	}
	if against != nil {
		if why := against(to); why != "" {
			return nil, &noPlaceError{errors.New(why)}
		}
	}
	reason := m.GetReason()
	if reason == "" {
		reason = "a user asked for it"
	}
	return k.begin(ctx, job, &vftv1.BeginOperation{
		Kind: vftv1.OperationKind_OPERATION_KIND_MIGRATE, Incarnation: job.GetIncarnation(), Epoch: job.GetNextEpoch(), Reason: reason,
		Move: &vftv1.Move{Number: m.GetNumber(), Guest: m.GetGuest(), To: to, Cold: m.GetCold(), Reason: reason, Trigger: m.GetTrigger()},
	})
}

// resumeMove takes up a migration where the log says it is. One that was not
// moved when its leader went is given up: nobody knows how far it is.
func (k *controller) resumeMove(ctx context.Context, job *vftv1.Job) (next, error) {
	switch job.GetOperation().GetPhase() {
	case vftv1.OperationPhase_OPERATION_PHASE_MOVED:
		return k.finishMove(ctx, job)
	case vftv1.OperationPhase_OPERATION_PHASE_REVOKED:
		return k.undoMove(ctx, job)
	default:
		return k.revoke(ctx, job, errors.New("the coordinator's leader changed before the switch-over"))
	}
}

// migrate moves the guest of the operation that has just begun, up to the
// entry in the log that gives it its new place.
func (k *controller) migrate(ctx context.Context, job *vftv1.Job) (next, error) {
	advance, err := k.sendGuest(ctx, job)
	if err != nil {
		return k.revoke(ctx, job, err)
	}
	res, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: advance}})
	switch {
	case err == nil:
		return k.finishMove(ctx, res.Job)
	case errors.Is(err, errNotLeader) || ctx.Err() != nil:
		return next{}, err // the log, or the next leader, decides
	}
	return k.revoke(ctx, job, err)
}

// order is what a migration does, for the nodes.
func (k *controller) order(job *vftv1.Job) *vftv1.MoveOrder {
	m := job.GetOperation().GetMove()
	member := func(node string) *vftv1.Member {
		return &vftv1.Member{Node: node, Address: k.c.store.node(node).GetAddress()}
	}
	return &vftv1.MoveOrder{Epoch: job.GetOperation().GetEpoch(), Guest: m.GetGuest(), From: member(m.GetFrom()), To: member(m.GetTo()), Cold: m.GetCold()}
}

// holdFor is for how long nodes hold the network at most while a guest moves:
// what is copied when it stands still may be all of its memory.
func (k *controller) holdFor(job *vftv1.Job) time.Duration {
	const perMiB = 10 * time.Millisecond
	return k.c.cfg.HoldTimeout + time.Duration(job.GetSpec().GetMemoryMib())*perMiB
}

// with adds a node to targets.
func (k *controller) with(targets []target, node string) []target {
	if slices.ContainsFunc(targets, func(t target) bool { return t.node == node }) {
		return targets
	}
	return append(slices.Clone(targets), target{node: node, address: k.c.store.node(node).GetAddress()})
}

// sendGuest does everything that can be taken back, and returns the command
// that cannot.
func (k *controller) sendGuest(ctx context.Context, job *vftv1.Job) (*vftv1.AdvanceOperation, error) {
	ctx, release := k.guard(ctx, job)
	defer release()
	op, order, call := job.GetOperation(), k.order(job), k.c.callContext(job)
	ctx, there := k.c.whileAlive(ctx, order.GetTo().GetNode())
	defer there()
	present := k.c.targetsOf(job)
	prepare := func(targets []target) error {
		_, err := each(ctx, k.c, targets, "prepare the migration", k.c.cfg.RestoreTimeout, true,
			func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
				_, err := s.PrepareMove(ctx, connect.NewRequest(&vftv1.PrepareMoveRequest{Context: call, Move: order, Spec: job.GetSpec(), Members: k.c.members(job)}))
				return struct{}{}, err
			})
		return err
	}
	to := target{node: order.GetTo().GetNode(), address: order.GetTo().GetAddress()}
	if err := prepare([]target{to}); err != nil {
		return nil, err
	}
	if err := prepare(slices.DeleteFunc(slices.Clone(present), func(t target) bool { return t.node == to.node })); err != nil {
		return nil, err
	}

	k.loaded = loadedMove{operation: op.GetId(), held: k.c.cfg.Now()}
	limit := k.holdFor(job)
	left := func() time.Duration { return limit*9/10 - k.c.cfg.Now().Sub(k.loaded.held) }
	reports, err := each(ctx, k.c, present, "hold", left()/2, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) ([]*vftv1.PairCount, error) {
			r, err := s.Hold(ctx, connect.NewRequest(&vftv1.HoldRequest{Context: call, Epoch: order.GetEpoch(), Timeout: int64(limit)}))
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
	cuts, err := each(ctx, k.c, k.with(present, to.node), "switch over", left(), true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (*vftv1.CutMoveResponse, error) {
			r, err := s.CutMove(ctx, connect.NewRequest(&vftv1.CutMoveRequest{Context: call, Move: order, Members: k.membersWith(job, order)}))
			if err != nil {
				return nil, err
			}
			return r.Msg, nil
		})
	if err != nil {
		return nil, err
	}
	cut := cuts[order.GetFrom().GetNode()]
	k.loaded.at, k.loaded.stopped = k.c.cfg.Now(), time.Duration(cut.GetStopped())
	if left() <= 0 {
		return nil, fmt.Errorf("the network was held for %s, which is too long", k.loaded.at.Sub(k.loaded.held))
	}
	return &vftv1.AdvanceOperation{
		Job: k.id, Operation: op.GetId(), Incarnation: job.GetIncarnation(), Phase: vftv1.OperationPhase_OPERATION_PHASE_MOVED, Proof: proof,
		Figures: map[string]int64{"bytes": cut.GetBytes(), "rest": cut.GetRest(), "frames": int64(cut.GetHeldFrames()), "copied": cut.GetStopped()},
	}, nil
}

// membersWith is the job's members as they will be.
func (k *controller) membersWith(job *vftv1.Job, order *vftv1.MoveOrder) []*vftv1.Member {
	members := k.c.members(job)
	members[order.GetGuest()] = &vftv1.Member{Guest: order.GetGuest(), Node: order.GetTo().GetNode(), Address: order.GetTo().GetAddress()}
	return members
}

// finishMove lets the guest run where the log says it is.
func (k *controller) finishMove(ctx context.Context, job *vftv1.Job) (next, error) {
	order, call := k.order(job), k.c.callContext(job)
	guarded, release := k.guard(ctx, job)
	from := order.GetFrom().GetNode()
	targets := k.c.targetsOf(job)
	there := func() {}
	if k.c.alive(from) {
		targets = k.with(targets, from)
		guarded, there = k.c.whileAlive(guarded, from)
	}
	ran := make(chan time.Time, 1)
	_, err := each(guarded, k.c, targets, "finish the migration", k.c.cfg.RestoreTimeout, false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, t target) (struct{}, error) {
			ctx, cancel := context.WithTimeout(ctx, 4*k.c.cfg.CallTimeout)
			defer cancel()
			_, err := s.FinishMove(ctx, connect.NewRequest(&vftv1.FinishMoveRequest{Context: call, Move: order, Members: k.c.members(job)}))
			if err == nil && t.node == order.GetTo().GetNode() {
				ran <- k.c.cfg.Now()
			}
			return struct{}{}, err
		})
	there()
	release()
	if err != nil {
		return k.tryMoveAgain(ctx, job, err, fmt.Sprintf("guest %d could not go on on node %s", order.GetGuest(), order.GetTo().GetNode()))
	}
	figures := map[string]int64{}
	if k.loaded.operation == job.GetOperation().GetId() {
		figures["downtime"] = int64(k.loaded.stopped + (<-ran).Sub(k.loaded.at))
		figures["hold"] = int64(k.c.cfg.Now().Sub(k.loaded.held))
	}
	if err := k.finish(ctx, job, figures); err != nil {
		return next{}, err
	}
	k.moveTries, k.moveFailures, k.moveAfter = 0, 0, time.Time{}
	k.log.Info("guest migrated", "guest", order.GetGuest(), "from", from, "to", order.GetTo().GetNode(), "figures", figures)
	return next{}, nil
}

// revoke gives the migration up in the log; then it is taken back at the nodes.
func (k *controller) revoke(ctx context.Context, job *vftv1.Job, cause error) (next, error) {
	if ctx.Err() != nil {
		return next{}, ctx.Err()
	}
	k.log.Warn("migration given up", "operation", job.GetOperation().GetId(), "err", cause)
	res, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AdvanceOperation{AdvanceOperation: &vftv1.AdvanceOperation{
		Job: k.id, Operation: job.GetOperation().GetId(), Incarnation: job.GetIncarnation(),
		Phase: vftv1.OperationPhase_OPERATION_PHASE_REVOKED, Reason: cause.Error(),
	}}})
	if err != nil {
		return next{}, err
	}
	return k.undoMove(ctx, res.Job)
}

// undoMove has the guest go on where it was. All nodes of the job must have
// heard of it before anything else is done: some may send to the new place.
func (k *controller) undoMove(ctx context.Context, job *vftv1.Job) (next, error) {
	order, call := k.order(job), k.c.callContext(job)
	guarded, release := k.guard(ctx, job)
	abort := func(targets []target) error {
		_, err := each(guarded, k.c, targets, "take the migration back", 4*k.c.cfg.CallTimeout, false,
			func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
				_, err := s.AbortMove(ctx, connect.NewRequest(&vftv1.AbortMoveRequest{Context: call, Move: order, Members: k.c.members(job)}))
				return struct{}{}, err
			})
		return err
	}
	present := k.c.targetsOf(job)
	to := order.GetTo().GetNode()
	if !slices.ContainsFunc(present, func(t target) bool { return t.node == to }) && k.c.alive(to) {
		k.background(func() { // the copy there never runs; nobody waits for its end
			_, _ = each(ctx, k.c, k.with(nil, to), "take the migration back", 4*k.c.cfg.CallTimeout, false,
				func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
					_, err := s.AbortMove(ctx, connect.NewRequest(&vftv1.AbortMoveRequest{Context: call, Move: order, Members: k.c.members(job)}))
					return struct{}{}, err
				})
		})
	}
	err := abort(present)
	release()
	if err != nil {
		return k.tryMoveAgain(ctx, job, err, fmt.Sprintf("guest %d could not go on on node %s", order.GetGuest(), order.GetFrom().GetNode()))
	}
	k.moveTries = 0
	if err := k.finish(ctx, job, nil); err != nil {
		return next{}, err
	}
	if job.GetOperation().GetMove().GetTrigger() == fsm.TriggerPolicy {
		k.alarmLater()
	} else {
		k.moveLater(ctx, "")
	}
	return next{}, nil
}

// tryMoveAgain waits before a migration is ended again, or gives the guests up.
func (k *controller) tryMoveAgain(ctx context.Context, job *vftv1.Job, err error, what string) (next, error) {
	if ctx.Err() != nil || errors.Is(err, errInterrupted) {
		return next{after: time.Millisecond}, ctx.Err()
	}
	k.moveTries++
	k.log.Warn("a migration could not be ended", "tries", k.moveTries, "err", err)
	if k.moveTries < maxMoveTries {
		return next{after: backoff(50*time.Millisecond, k.moveTries, time.Second)}, nil
	}
	k.moveTries = 0
	k.failed = &failedAttempt{incarnation: job.GetIncarnation(), loss: loss{reason: fmt.Sprintf("%s: %v", what, err)}}
	return next{}, nil
}
