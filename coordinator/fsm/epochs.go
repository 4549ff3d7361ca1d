package fsm

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// commit makes a gathering epoch committed. All of I1 is checked: the epoch is
// gathering, by the operation and incarnation that commit it; the operation
// passed the release, and with it the proof of the cut; and every guest has a
// part that is safe at the level required.
func (t *transition) commit(c *vftv1.CommitEpoch) (bool, error) {
	e := t.epoch(c.GetEpoch())
	if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
		return false, nil
	}
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_GATHERING {
		return false, fmt.Errorf("committing epoch %d: %w", c.GetEpoch(), ErrEpoch)
	}
	op, err := t.current(c.GetOperation(), c.GetIncarnation())
	if err != nil {
		return false, err
	}
	if op.GetKind() != vftv1.OperationKind_OPERATION_KIND_CHECKPOINT || op.GetEpoch() != c.GetEpoch() {
		return false, fmt.Errorf("committing epoch %d: %w", c.GetEpoch(), ErrOperation)
	}
	if op.GetPhase() != vftv1.OperationPhase_OPERATION_PHASE_RELEASED || e.GetProof() == nil {
		return false, fmt.Errorf("committing epoch %d before its release: %w", c.GetEpoch(), ErrProof)
	}
	parts, err := t.completeParts(c.GetParts(), e)
	if err != nil {
		return false, fmt.Errorf("committing epoch %d: %w", c.GetEpoch(), err)
	}
	n := proto.CloneOf(e)
	n.State = vftv1.EpochState_EPOCH_STATE_COMMITTED
	n.EndedAt = t.at
	n.Parts = parts
	for _, l := range n.GetLevels() {
		for _, p := range parts {
			l.Bytes += FindPartLevel(p, l.GetLevel()).GetBytes()
		}
	}
	t.reckon(n)
	t.setEpoch(n)
	t.endCheckpoint(op)
	t.eventCommitted(n)
	return true, nil
}

// completeParts checks that there is one durable part of every guest, and
// fills in figures that were known at the cut only.
func (t *transition) completeParts(parts []*vftv1.Part, e *vftv1.Epoch) ([]*vftv1.Part, error) {
	want := len(t.job.GetSpec().GetGuests())
	if len(parts) != want {
		return nil, fmt.Errorf("%d parts of %d guests: %w", len(parts), want, ErrProof)
	}
	out := make([]*vftv1.Part, want)
	for _, p := range parts {
		g := int(p.GetGuest())
		if g >= want || out[g] != nil {
			return nil, fmt.Errorf("part of guest %d: %w", g, ErrProof)
		}
		if p.GetManifest() == "" {
			return nil, fmt.Errorf("part of guest %d without manifest: %w", g, ErrProof)
		}
		for _, l := range []*vftv1.EpochLevel{FindLevel(e, LevelLocal), FindLevel(e, e.GetRequired())} {
			if !SafeAt(p, l, anyNode) {
				return nil, fmt.Errorf("part of guest %d is not safe at level %s: %w", g, l.GetLevel(), ErrProof)
			}
		}
		out[g] = proto.CloneOf(p)
	}
	for _, known := range e.GetParts() {
		if int(known.GetGuest()) >= want {
			continue
		}
		p := out[known.GetGuest()]
		p.Pause = orElse(p.GetPause(), known.GetPause())
		p.CutAt = orElse(p.GetCutAt(), known.GetCutAt())
		p.HeldFrames = orElse(p.GetHeldFrames(), known.GetHeldFrames())
		p.HeldBytes = orElse(p.GetHeldBytes(), known.GetHeldBytes())
		p.Engine = orElse(p.GetEngine(), known.GetEngine())
	}
	return out, nil
}

// anyNode takes each node's word for what it held when it was asked.
func anyNode(string) bool { return true }

func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

// abort gives a gathering epoch up. The job goes on (I7).
func (t *transition) abort(c *vftv1.AbortEpoch) (bool, error) {
	e := t.epoch(c.GetEpoch())
	if e.GetState() == vftv1.EpochState_EPOCH_STATE_ABORTED {
		return false, nil
	}
	op := t.job.GetOperation()
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_GATHERING {
		return false, fmt.Errorf("aborting epoch %d: %w", c.GetEpoch(), ErrEpoch)
	}
	if op.GetId() != c.GetOperation() || op.GetEpoch() != c.GetEpoch() {
		return false, fmt.Errorf("aborting epoch %d by operation %d: %w", c.GetEpoch(), c.GetOperation(), ErrOperation)
	}
	t.abortGathering(c.GetReason())
	t.endCheckpoint(op)
	return true, nil
}

// abortGathering marks the epoch that is being gathered, if any, as aborted.
func (t *transition) abortGathering(reason string) {
	op := t.job.GetOperation()
	if op.GetKind() != vftv1.OperationKind_OPERATION_KIND_CHECKPOINT {
		return
	}
	e := t.epoch(op.GetEpoch())
	if e.GetState() != vftv1.EpochState_EPOCH_STATE_GATHERING {
		return
	}
	n := proto.CloneOf(e)
	n.State = vftv1.EpochState_EPOCH_STATE_ABORTED
	n.EndedAt = t.at
	n.Reason = reason
	n.Parts, n.Proof = nil, nil
	n.Leftovers = op.GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RELEASED && FindLevel(n, n.GetRequired()).GetOutside()
	t.setEpoch(n)
	if t.job.GetStopRequested() {
		return // the job is over: nobody misses this one
	}
	t.event("checkpoint-failed", fmt.Sprintf("checkpoint %d given up, the job goes on: %s", n.GetNumber(), reason),
		map[string]int64{"epoch": int64(n.GetNumber()), "took": t.at - n.GetBegunAt()},
		map[string]string{"reason": reason, "trigger": n.GetTrigger()})
}

// endCheckpoint ends a checkpoint operation and answers its request.
func (t *transition) endCheckpoint(op *vftv1.Operation) {
	if op.GetTrigger() == TriggerRequest {
		t.job.CheckpointsDone++
	}
	t.job.Operation = nil
}

func (t *transition) deleteEpoch(c *vftv1.DeleteEpoch) (bool, error) {
	e := t.epoch(c.GetEpoch())
	switch {
	case e == nil && (c.GetEpoch() == 0 || c.GetEpoch() >= t.job.GetNextEpoch()):
		return false, fmt.Errorf("epoch %d does not exist: %w", c.GetEpoch(), ErrEpoch)
	case e == nil || e.GetState() == vftv1.EpochState_EPOCH_STATE_DELETED:
		return false, nil
	case e.GetState() == vftv1.EpochState_EPOCH_STATE_GATHERING:
		return false, fmt.Errorf("epoch %d is being taken: %w", c.GetEpoch(), ErrEpoch)
	case e.GetPin() != "" && !c.GetPinned():
		return false, fmt.Errorf("epoch %d is pinned as %s: %w", c.GetEpoch(), e.GetPin(), ErrPinned)
	}
	op := t.job.GetOperation()
	if op.GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART && op.GetEpoch() == c.GetEpoch() {
		return false, fmt.Errorf("epoch %d is being restored: %w", c.GetEpoch(), ErrEpoch)
	}
	ended := t.job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED
	if t.job.GetFilling() && t.job.GetRestoredFrom() == c.GetEpoch() && !ended {
		return false, fmt.Errorf("epoch %d is being read by the guests that were restored from it: %w", c.GetEpoch(), ErrFilling)
	}
	if LastGood(t.job).GetNumber() == c.GetEpoch() && !c.GetLast() && !ended {
		return false, fmt.Errorf("epoch %d is the last one that the job can restart from: %w", c.GetEpoch(), ErrEpoch)
	}
	t.discard(e)
	if !c.GetQuiet() {
		t.event("epoch-deleted", fmt.Sprintf("checkpoint %d deleted", c.GetEpoch()), map[string]int64{"epoch": int64(c.GetEpoch())}, nil)
	}
	return true, nil
}

// discard gives an epoch up. It is remembered as long as something of it is
// left outside the nodes; what nodes have of it they are told to remove.
func (t *transition) discard(e *vftv1.Epoch) {
	outside := slices.ContainsFunc(e.GetLevels(), (*vftv1.EpochLevel).GetOutside)
	if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED && outside || e.GetLeftovers() {
		n := proto.CloneOf(e)
		n.State, n.Leftovers, n.Pin, n.Proof = vftv1.EpochState_EPOCH_STATE_DELETED, true, "", nil
		t.setEpoch(n)
		return
	}
	t.forget(e)
}

func (t *transition) forget(e *vftv1.Epoch) {
	t.job.Epochs = slices.DeleteFunc(slices.Clone(t.job.GetEpochs()), func(x *vftv1.Epoch) bool { return x.GetNumber() == e.GetNumber() })
}

// discardCommitted gives up all committed epochs that are not pinned.
func (t *transition) discardCommitted() {
	for _, e := range t.job.GetEpochs() {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED && e.GetPin() == "" {
			t.discard(e)
		}
	}
}

func (t *transition) clearEpoch(c *vftv1.ClearEpoch) (bool, error) {
	e := t.epoch(c.GetEpoch())
	switch {
	case e.GetState() == vftv1.EpochState_EPOCH_STATE_DELETED:
		t.forget(e)
		return true, nil
	case e.GetState() == vftv1.EpochState_EPOCH_STATE_ABORTED && e.GetLeftovers():
		n := proto.CloneOf(e)
		n.Leftovers = false
		t.setEpoch(n)
		return true, nil
	case e == nil || e.GetState() == vftv1.EpochState_EPOCH_STATE_ABORTED:
		return false, nil
	}
	return false, fmt.Errorf("epoch %d is neither aborted nor deleted: %w", c.GetEpoch(), ErrEpoch)
}

// LastGood returns the newest committed epoch that a job may be restarted from
// and that is not known to be damaged; without one the newest committed one, or
// nil.
func LastGood(j *vftv1.Job) *vftv1.Epoch {
	for _, e := range slices.Backward(j.GetEpochs()) {
		if e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED && e.GetDamaged() == "" && Eligible(j, e) {
			return e
		}
	}
	return LastCommitted(j)
}

// LastCommitted returns the newest committed epoch of a job, or nil.
func LastCommitted(j *vftv1.Job) *vftv1.Epoch {
	for i := len(j.GetEpochs()) - 1; i >= 0; i-- {
		if e := j.GetEpochs()[i]; e.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
			return e
		}
	}
	return nil
}

func (t *transition) epoch(number uint64) *vftv1.Epoch { return FindEpoch(t.job, number) }

// FindEpoch returns the epoch of that number, or nil.
func FindEpoch(j *vftv1.Job, number uint64) *vftv1.Epoch {
	for _, e := range j.GetEpochs() {
		if e.GetNumber() == number {
			return e
		}
	}
	return nil
}

func (t *transition) setEpoch(n *vftv1.Epoch) {
	t.job.Epochs = slices.Clone(t.job.GetEpochs())
	for i, e := range t.job.GetEpochs() {
		if e.GetNumber() == n.GetNumber() {
			t.job.Epochs[i] = n
			return
		}
	}
	t.job.Epochs = append(t.job.Epochs, n)
}

// checkProof refuses a cut that is not shown to be consistent: a pair with
// frames in flight, or a node that did not release on the leader's order.
func (t *transition) checkProof(c *vftv1.AdvanceOperation) error {
	if err := balanced(c.GetProof()); err != nil {
		return err
	}
	ordered := map[string]bool{}
	for _, r := range c.GetReleases() {
		if !r.GetByOrder() {
			return fmt.Errorf("node %s released by itself: %w", r.GetNode(), ErrProof)
		}
		ordered[r.GetNode()] = true
	}
	for _, g := range t.job.GetGuests() {
		if !ordered[g.GetNode()] {
			return fmt.Errorf("node %s did not confirm its release: %w", g.GetNode(), ErrProof)
		}
	}
	return nil
}

// balanced refuses a missing proof, and one that shows frames in flight.
func balanced(proof *vftv1.DrainProof) error {
	if proof == nil {
		return fmt.Errorf("no drain proof: %w", ErrProof)
	}
	for _, p := range proof.GetPairs() {
		if p.GetSent() != p.GetDelivered()+p.GetDropped() {
			return fmt.Errorf("guest %d to %d: %d sent, %d delivered, %d dropped: %w",
				p.GetSource(), p.GetDestination(), p.GetSent(), p.GetDelivered(), p.GetDropped(), ErrProof)
		}
	}
	return nil
}
