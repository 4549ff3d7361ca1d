package fsm

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func (t *transition) requestStop(c *vftv1.RequestStop) (bool, error) {
	j := t.job
	if c.GetExit() == nil {
		return false, fmt.Errorf("stop without the exit to record: %w", ErrInvalid)
	}
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
		return false, nil
	}
	if j.GetStopRequested() {
		if j.GetStopNow() || !c.GetNow() {
			return false, nil
		}
		j.StopNow = true
		return true, nil
	}
	j.StopRequested = true
	j.StopNow = c.GetNow()
	j.StopReason = c.GetReason()
	j.StopExit = proto.CloneOf(c.GetExit())
	t.event("stopping", "stopping: "+c.GetReason(), nil, map[string]string{"reason": c.GetReason()})
	return true, nil
}

// recordExit takes the exit of the program of the present incarnation; that of
// an older one is not an exit of the job, which goes on in the newer one.
func (t *transition) recordExit(c *vftv1.RecordExit) (bool, error) {
	j := t.job
	if c.GetExit() == nil {
		return false, fmt.Errorf("end of the program without exit: %w", ErrInvalid)
	}
	if c.GetIncarnation() != j.GetIncarnation() || j.GetIncarnation() == 0 {
		return false, fmt.Errorf("exit of incarnation %d, present is %d: %w", c.GetIncarnation(), j.GetIncarnation(), ErrIncarnation)
	}
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || j.GetStopNow() {
		return false, nil
	}
	if k := j.GetOperation(); k.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_BEGUN &&
		(k.GetKind() == vftv1.OperationKind_OPERATION_KIND_BOOT || k.GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART) {
		return false, fmt.Errorf("exit of a program that has not started: %w", ErrPhase)
	}
	exit := proto.CloneOf(c.GetExit())
	if j.GetStopRequested() {
		// A user asked for the end and the program obeyed.
		exit.Cause = j.GetStopExit().GetCause()
		if exit.GetMessage() == "" {
			exit.Message = j.GetStopExit().GetMessage()
		}
	} else {
		j.StopReason = "the program has ended"
	}
	j.StopRequested = true
	j.StopNow = true
	j.StopExit = exit
	return true, nil
}

func (t *transition) requestRestart() (bool, error) {
	j := t.job
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || j.GetStopRequested() {
		return false, ErrJobEnded
	}
	if j.GetIncarnation() == 0 {
		return false, fmt.Errorf("restart of a job that never started: %w", ErrPhase)
	}
	if j.GetRestartRequested() {
		return false, nil
	}
	j.RestartRequested = true
	return true, nil
}

func (t *transition) requestCheckpoint() (bool, error) {
	j := t.job
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || j.GetStopRequested() {
		return false, ErrJobEnded
	}
	t.ticket = j.GetCheckpointsDone() + 1
	if op := j.GetOperation(); op.GetKind() == vftv1.OperationKind_OPERATION_KIND_CHECKPOINT && op.GetTrigger() == TriggerRequest {
		t.ticket++
	}
	if j.GetCheckpointRequested() {
		return false, nil
	}
	j.CheckpointRequested = true
	return true, nil
}

func (t *transition) appendEvent(c *vftv1.AppendEvent) (bool, error) {
	j := t.job
	if c.GetEvent().GetKind() == "" || c.GetEvent().GetText() == "" {
		return false, fmt.Errorf("event without kind or text: %w", ErrInvalid)
	}
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
		return false, ErrJobEnded
	}
	if want := LastEvent(j) + 1; c.GetEvent().GetNumber() != want {
		return false, fmt.Errorf("event %d, next is %d: %w", c.GetEvent().GetNumber(), want, ErrStale)
	}
	t.event(c.GetEvent().GetKind(), c.GetEvent().GetText(), c.GetEvent().GetFigures(), c.GetEvent().GetLabels())
	return true, nil
}
