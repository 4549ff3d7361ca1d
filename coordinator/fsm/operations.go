package fsm

import (
	"fmt"
	"maps"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// What made a checkpoint begin.
const (
	TriggerInterval = "interval"
	TriggerRequest  = "request"
	TriggerAlarm    = "alarm"
)

// transition is one command at work on a copy of one job.
type transition struct {
	job    *vftv1.Job
	at     int64
	alive  func(node string) bool
	ticket uint64
}

func (s *State) transition(old *vftv1.Job, at int64) *transition {
	return &transition{job: shallow(old), at: at, alive: s.alive}
}

// shallow copies a job, sharing what it points to. Lists are only ever
// appended to or replaced, messages only replaced, so readers of the old job
// are not disturbed.
func shallow(j *vftv1.Job) *vftv1.Job {
	n := &vftv1.Job{}
	dst := n.ProtoReflect()
	j.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		dst.Set(fd, v)
		return true
	})
	return n
}

// current returns the operation under way if it is the one named, of the
// present incarnation.
func (t *transition) current(id, incarnation uint64) (*vftv1.Operation, error) {
	op := t.job.GetOperation()
	if op == nil || op.GetId() != id {
		return nil, fmt.Errorf("operation %d, under way is %d: %w", id, op.GetId(), ErrOperation)
	}
	if incarnation != t.job.GetIncarnation() {
		return nil, fmt.Errorf("incarnation %d, present is %d: %w", incarnation, t.job.GetIncarnation(), ErrIncarnation)
	}
	return op, nil
}

func (t *transition) begin(c *vftv1.BeginOperation) (bool, error) {
	j := t.job
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
		return false, ErrJobEnded
	}
	if c.GetOperation() < j.GetNextOperation() {
		return false, fmt.Errorf("operation %d has begun before: %w", c.GetOperation(), ErrStale)
	}
	if c.GetOperation() > j.GetNextOperation() {
		return false, fmt.Errorf("operation %d, next is %d: %w", c.GetOperation(), j.GetNextOperation(), ErrOperation)
	}
	op := &vftv1.Operation{
		Id: c.GetOperation(), Kind: c.GetKind(), Phase: vftv1.OperationPhase_OPERATION_PHASE_BEGUN,
		Epoch: c.GetEpoch(), Incarnation: c.GetIncarnation(), Reason: c.GetReason(), Trigger: c.GetTrigger(),
		BegunAt: t.at, Figures: maps.Clone(c.GetFigures()),
	}
	var err error
	switch c.GetKind() {
	case vftv1.OperationKind_OPERATION_KIND_BOOT:
		err = t.beginBoot(c)
	case vftv1.OperationKind_OPERATION_KIND_CHECKPOINT:
		err = t.beginCheckpoint(c)
	case vftv1.OperationKind_OPERATION_KIND_RESTART:
		err = t.beginRestart(c)
	case vftv1.OperationKind_OPERATION_KIND_STOP:
		err = t.beginStop(c)
	case vftv1.OperationKind_OPERATION_KIND_MIGRATE:
		op.Move, err = t.beginMigrate(c)
	case vftv1.OperationKind_OPERATION_KIND_SUSPEND:
		err = t.beginSuspend(c)
	default:
		err = fmt.Errorf("operation kind %v: %w", c.GetKind(), ErrInvalid)
	}
	if err != nil {
		return false, err
	}
	j.Operation = op
	j.NextOperation++
	return true, nil
}

func (t *transition) beginBoot(c *vftv1.BeginOperation) error {
	j := t.job
	if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_PENDING || j.GetOperation() != nil || j.GetStopRequested() || j.GetResumption() != nil {
		return fmt.Errorf("boot: %w", ErrPhase)
	}
	if err := t.place(c); err != nil {
		return err
	}
	j.Phase = vftv1.JobPhase_JOB_PHASE_STARTING
	t.event("booting", fmt.Sprintf("booting %s on %s", count(len(j.GetGuests()), "guest"), nodeList(j.GetGuests())), nil, nil)
	return nil
}

func (t *transition) beginCheckpoint(c *vftv1.BeginOperation) error {
	j := t.job
	if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_RUNNING || j.GetOperation() != nil || j.GetStopRequested() {
		return fmt.Errorf("checkpoint: %w", ErrPhase)
	}
	if j.GetFilling() {
		return fmt.Errorf("checkpoint: %w", ErrFilling)
	}
	if c.GetIncarnation() != j.GetIncarnation() {
		return fmt.Errorf("checkpoint of incarnation %d: %w", c.GetIncarnation(), ErrIncarnation)
	}
	if c.GetEpoch() != j.GetNextEpoch() {
		return fmt.Errorf("checkpoint %d, next is %d: %w", c.GetEpoch(), j.GetNextEpoch(), ErrEpoch)
	}
	levels, err := beginLevels(c)
	if err != nil {
		return err
	}
	t.setEpoch(&vftv1.Epoch{
		Number: c.GetEpoch(), Incarnation: c.GetIncarnation(), State: vftv1.EpochState_EPOCH_STATE_GATHERING,
		BegunAt: t.at, Trigger: c.GetTrigger(), Required: c.GetRequired(), Levels: levels,
	})
	j.NextEpoch++
	if c.GetTrigger() == TriggerRequest {
		j.CheckpointRequested = false
	}
	return nil
}

// beginRestart raises the incarnation: this entry is the fence that keeps the
// guests of before from the network (I3). It restores a committed epoch (I2).
func (t *transition) beginRestart(c *vftv1.BeginOperation) error {
	j := t.job
	if j.GetIncarnation() == 0 || j.GetStopRequested() || j.GetOperation().GetKind() == vftv1.OperationKind_OPERATION_KIND_STOP {
		return fmt.Errorf("restart: %w", ErrPhase)
	}
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_SUSPENDED && (j.GetOperation() != nil || !j.GetSuspension().GetOver()) {
		return fmt.Errorf("restart of a suspended job: %w", ErrPhase)
	}
	last := LastCommitted(j)
	switch {
	case c.GetEpoch() != 0 && t.epoch(c.GetEpoch()).GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED:
		return fmt.Errorf("restart from epoch %d, which is not committed: %w", c.GetEpoch(), ErrEpoch)
	case c.GetEpoch() != 0 && !Eligible(j, t.epoch(c.GetEpoch())):
		return fmt.Errorf("restart from epoch %d of a former life: %w", c.GetEpoch(), ErrEpoch)
	case t.epoch(c.GetEpoch()).GetDamaged() != "":
		return fmt.Errorf("restart from epoch %d, which is damaged: %w", c.GetEpoch(), ErrEpoch)
	case c.GetEpoch() == 0 && last != nil && !c.GetAbandon():
		return fmt.Errorf("restart from the beginning with epoch %d committed: %w", last.GetNumber(), ErrEpoch)
	}
	if err := t.place(c); err != nil {
		return err
	}
	for _, g := range c.GetLostGuests() {
		t.event("guest-lost", c.GetReason(), map[string]int64{"guest": int64(g)}, nil)
	}
	t.interrupt("interrupted: " + c.GetReason())
	text := "no checkpoint yet: restarting from the beginning"
	if c.GetEpoch() != 0 {
		text = fmt.Sprintf("restarting from checkpoint %d", c.GetEpoch())
	} else if last != nil {
		text = fmt.Sprintf("checkpoint %d is out of reach: restarting from the beginning", last.GetNumber())
		t.discardCommitted()
	}
	if c.GetCounted() {
		j.Restarts++
	}
	j.RestartRequested = false
	if j.GetSuspension().GetOver() {
		j.Suspension = nil
	}
	if j.GetResumption().GetPending() {
		j.Resumption = proto.CloneOf(j.GetResumption())
		j.Resumption.Pending = false
	}
	j.Phase = vftv1.JobPhase_JOB_PHASE_RESTARTING
	labels := map[string]string{"reason": c.GetReason()}
	text += " on " + nodeList(j.GetGuests())
	if c.GetOversubscribed() {
		text += " (more guests than processors)"
		labels["oversubscribed"] = "true"
	}
	t.event("restarting", text+": "+c.GetReason(), map[string]int64{"epoch": int64(c.GetEpoch()), "incarnation": int64(c.GetIncarnation())}, labels)
	return nil
}

func (t *transition) beginStop(c *vftv1.BeginOperation) error {
	j := t.job
	if !j.GetStopRequested() || j.GetOperation().GetKind() == vftv1.OperationKind_OPERATION_KIND_STOP {
		return fmt.Errorf("stop: %w", ErrPhase)
	}
	if c.GetIncarnation() != j.GetIncarnation() {
		return fmt.Errorf("stop of incarnation %d: %w", c.GetIncarnation(), ErrIncarnation)
	}
	t.interrupt("the job is being stopped")
	t.dropMoves("the job is being stopped")
	j.Phase = vftv1.JobPhase_JOB_PHASE_STOPPING
	return nil
}

// place takes over the new incarnation and its placement.
func (t *transition) place(c *vftv1.BeginOperation) error {
	j := t.job
	if c.GetIncarnation() != j.GetIncarnation()+1 {
		return fmt.Errorf("new incarnation %d after %d: %w", c.GetIncarnation(), j.GetIncarnation(), ErrIncarnation)
	}
	if len(c.GetGuests()) != len(j.GetSpec().GetGuests()) {
		return fmt.Errorf("placement of %d guests, the job has %d: %w", len(c.GetGuests()), len(j.GetSpec().GetGuests()), ErrInvalid)
	}
	guests := make([]*vftv1.Guest, len(c.GetGuests()))
	for i, g := range c.GetGuests() {
		if int(g.GetIndex()) != i || g.GetNode() == "" {
			return fmt.Errorf("placement of guest %d: %w", i, ErrInvalid)
		}
		guests[i] = proto.CloneOf(g)
	}
	j.Incarnation = c.GetIncarnation()
	j.RestoredFrom = c.GetEpoch()
	j.Guests = guests
	j.RunningSince = 0
	j.Filling = false
	return nil
}

func (t *transition) advance(c *vftv1.AdvanceOperation) (bool, error) {
	op, err := t.current(c.GetOperation(), c.GetIncarnation())
	if err != nil {
		return false, err
	}
	if op.GetPhase() == c.GetPhase() {
		return false, nil
	}
	n := proto.CloneOf(op)
	n.Phase = c.GetPhase()
	n.Figures = merged(op.GetFigures(), c.GetFigures())
	switch {
	case op.GetPhase() != vftv1.OperationPhase_OPERATION_PHASE_BEGUN:
		return false, fmt.Errorf("operation %d from %v to %v: %w", op.GetId(), op.GetPhase(), c.GetPhase(), ErrPhase)
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_CHECKPOINT && c.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RELEASED:
		if err := t.checkProof(c); err != nil {
			return false, err
		}
		e := proto.CloneOf(t.epoch(op.GetEpoch()))
		e.Proof = proto.CloneOf(c.GetProof())
		for _, p := range c.GetParts() {
			e.Parts = append(e.Parts, proto.CloneOf(p))
		}
		for _, r := range c.GetReleases() {
			e.Hold = max(e.Hold, r.GetHold())
		}
		t.setEpoch(e)
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_BOOT && c.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RESTORED:
		t.event("booted", "booted: "+count(len(t.job.GetGuests()), "guest")+" ready in "+duration(t.at-op.GetBegunAt()),
			merged(n.GetFigures(), map[string]int64{"took": t.at - op.GetBegunAt()}), nil)
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART && c.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RESTORED:
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_MIGRATE && c.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_MOVED:
		if err := t.moved(op, c); err != nil {
			return false, err
		}
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_MIGRATE && c.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_REVOKED:
		n.Reason = c.GetReason()
	default:
		return false, fmt.Errorf("operation %d (%v) to %v: %w", op.GetId(), op.GetKind(), c.GetPhase(), ErrPhase)
	}
	t.job.Operation = n
	return true, nil
}

func (t *transition) finish(c *vftv1.FinishOperation) (bool, error) {
	op, err := t.current(c.GetOperation(), c.GetIncarnation())
	if err != nil {
		return false, err
	}
	j := t.job
	figures := merged(op.GetFigures(), c.GetFigures())
	restored := op.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RESTORED
	switch {
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_BOOT && restored:
		t.running()
		t.event("started", "program started", figures, nil)
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART && restored:
		t.running()
		j.Filling = c.GetFilling() && op.GetEpoch() != 0
		t.eventRestarted(op, figures)
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_MIGRATE:
		if err := t.finishMove(op, figures); err != nil {
			return false, err
		}
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_SUSPEND:
		t.finishSuspend(op)
	case op.GetKind() == vftv1.OperationKind_OPERATION_KIND_STOP:
		j.Phase = vftv1.JobPhase_JOB_PHASE_ENDED
		j.EndedAt = t.at
		j.Filling = false
		j.Exit = proto.CloneOf(j.GetStopExit())
		t.discardCommitted()
		t.eventEnded()
	default:
		return false, fmt.Errorf("finishing operation %d (%v) in %v: %w", op.GetId(), op.GetKind(), op.GetPhase(), ErrPhase)
	}
	j.Operation = nil
	return true, nil
}

// filled takes note that the guests have all of their memory: from here on
// they can be saved and moved.
func (t *transition) filled(c *vftv1.GuestsFilled) (bool, error) {
	j := t.job
	if c.GetIncarnation() != j.GetIncarnation() || j.GetIncarnation() == 0 {
		return false, fmt.Errorf("memory of incarnation %d, present is %d: %w", c.GetIncarnation(), j.GetIncarnation(), ErrIncarnation)
	}
	if !j.GetFilling() {
		return false, nil
	}
	j.Filling = false
	t.eventFilled(c.GetFigures())
	return true, nil
}

func (t *transition) running() {
	t.job.Phase = vftv1.JobPhase_JOB_PHASE_RUNNING
	t.job.RunningSince = t.at
	if t.job.GetStartedAt() == 0 {
		t.job.StartedAt = t.at
	}
}

func merged(a, b map[string]int64) map[string]int64 {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(a)
	if out == nil {
		out = map[string]int64{}
	}
	maps.Copy(out, b)
	return out
}
