package fsm

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// TriggerSuspend is that of the checkpoint that a suspended job goes on from.
const TriggerSuspend = "suspend"

// requestSuspend records the wish that a job gives its nodes back.
func (t *transition) requestSuspend(c *vftv1.RequestSuspend) (bool, error) {
	j := t.job
	switch {
	case j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || j.GetStopRequested():
		return false, ErrJobEnded
	case j.GetSuspension() != nil && !j.GetSuspension().GetOver():
		return false, nil
	}
	j.Suspension = &vftv1.Suspension{At: t.at, Epoch: j.GetNextEpoch(), Reason: c.GetReason()}
	t.event("suspending", "suspending: "+c.GetReason(), nil, map[string]string{"reason": c.GetReason()})
	return true, nil
}

// requestContinue ends a suspension: it is not begun, or the controller
// restarts the job from its last epoch.
func (t *transition) requestContinue(c *vftv1.RequestContinue) (bool, error) {
	j := t.job
	switch {
	case j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || j.GetStopRequested():
		return false, ErrJobEnded
	case j.GetSuspension() == nil:
		return false, nil // it goes on already
	case j.GetPhase() != vftv1.JobPhase_JOB_PHASE_SUSPENDED:
		j.Suspension = nil
		return true, nil
	}
	n := proto.CloneOf(j.GetSuspension())
	n.Over, n.Nodes = true, c.GetNodes()
	if proto.Equal(n, j.GetSuspension()) {
		return false, nil
	}
	j.Suspension = n
	return true, nil
}

// beginSuspend takes the job's nodes from it. The raised incarnation keeps its
// guests from the network and has every node end them, also one that cannot be
// reached now (I3). The newest epoch began after the wish, in this life (I2).
func (t *transition) beginSuspend(c *vftv1.BeginOperation) error {
	j := t.job
	if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_RUNNING || j.GetOperation() != nil || j.GetStopRequested() || j.GetSuspension() == nil || j.GetSuspension().GetOver() {
		return fmt.Errorf("suspend: %w", ErrPhase)
	}
	if c.GetIncarnation() != j.GetIncarnation()+1 {
		return fmt.Errorf("new incarnation %d after %d: %w", c.GetIncarnation(), j.GetIncarnation(), ErrIncarnation)
	}
	last := LastCommitted(j)
	if last == nil || last.GetNumber() != c.GetEpoch() || last.GetIncarnation() != j.GetIncarnation() || last.GetDamaged() != "" {
		return fmt.Errorf("suspend with epoch %d, the newest is %d of incarnation %d: %w", c.GetEpoch(), last.GetNumber(), last.GetIncarnation(), ErrEpoch)
	}
	if last.GetNumber() < j.GetSuspension().GetEpoch() {
		return fmt.Errorf("suspend with epoch %d, which began before that was asked for: %w", c.GetEpoch(), ErrEpoch)
	}
	t.dropMoves("the job is suspended")
	j.Incarnation = c.GetIncarnation()
	j.Guests = nil
	j.RunningSince = 0
	j.Phase = vftv1.JobPhase_JOB_PHASE_SUSPENDED
	return nil
}

// finishSuspend tells that the job has no guests any more.
func (t *transition) finishSuspend(op *vftv1.Operation) {
	t.event("suspended", fmt.Sprintf("suspended with checkpoint %d: %s", op.GetEpoch(), t.job.GetSuspension().GetReason()),
		map[string]int64{"epoch": int64(op.GetEpoch()), "took": t.at - t.job.GetSuspension().GetAt()}, map[string]string{"reason": t.job.GetSuspension().GetReason()})
}
