package fsm

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// What made a migration begin.
const (
	TriggerUser   = "user"
	TriggerPolicy = "policy"
	TriggerDrain  = "drain"
)

// drainNode notes that a node is to be emptied, or is to be used again.
func (s *State) drainNode(c *vftv1.DrainNode) Result {
	old := s.nodes[c.GetNode()]
	if old == nil {
		return Result{Err: fmt.Errorf("node %q: %w", c.GetNode(), ErrUnknownNode)}
	}
	if old.GetDrained() == c.GetReason() {
		return Result{}
	}
	n := proto.CloneOf(old)
	n.Drained = c.GetReason()
	s.nodes[c.GetNode()] = n
	res := Result{Changed: true}
	for id, j := range s.jobs { // their controllers act
		if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED && placedOn(j, c.GetNode()) {
			res.Jobs = append(res.Jobs, id)
		}
	}
	slices.Sort(res.Jobs)
	return res
}

// requestMove records the wish for a migration; the ticket is its number.
func (t *transition) requestMove(c *vftv1.RequestMove) (bool, error) {
	j, m := t.job, c.GetMove()
	if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || j.GetStopRequested() {
		return false, ErrJobEnded
	}
	if int(m.GetGuest()) >= len(j.GetSpec().GetGuests()) {
		return false, fmt.Errorf("guest %d, the job has %d: %w", m.GetGuest(), len(j.GetSpec().GetGuests()), ErrInvalid)
	}
	if m.GetTo() != "" && !t.alive(m.GetTo()) {
		return false, fmt.Errorf("migration to node %s, which is not alive: %w", m.GetTo(), ErrUnknownNode)
	}
	if op := j.GetOperation().GetMove(); op.GetNumber() != 0 && op.GetGuest() == m.GetGuest() && op.GetTo() == m.GetTo() && op.GetCold() == m.GetCold() {
		t.ticket = op.GetNumber() // it is being carried out
		return false, nil
	}
	n := &vftv1.Move{
		Number: j.GetNextMove() + 1, Guest: m.GetGuest(), To: m.GetTo(), Cold: m.GetCold(),
		Reason: m.GetReason(), Trigger: orElse(m.GetTrigger(), TriggerUser),
	}
	for _, old := range j.GetMoves() {
		if old.GetGuest() != m.GetGuest() {
			continue
		}
		same := proto.CloneOf(n)
		same.Number = old.GetNumber()
		if proto.Equal(same, old) { // asked again
			t.ticket = old.GetNumber()
			return false, nil
		}
		t.eventMoveFailed(old, 0, "another one was asked for")
	}
	j.NextMove = n.GetNumber()
	j.Moves = append(t.movesBut(m.GetGuest()), n)
	t.ticket = n.GetNumber()
	return true, nil
}

// movesBut returns the requests for other guests, in a list of their own.
func (t *transition) movesBut(guest uint32) []*vftv1.Move {
	return slices.DeleteFunc(slices.Clone(t.job.GetMoves()), func(m *vftv1.Move) bool { return m.GetGuest() == guest })
}

// dropMove answers a request that cannot be carried out.
func (t *transition) dropMove(c *vftv1.DropMove) (bool, error) {
	for _, m := range t.job.GetMoves() {
		if m.GetNumber() == c.GetNumber() {
			t.job.Moves = t.movesBut(m.GetGuest())
			t.eventMoveFailed(m, 0, c.GetReason())
			return true, nil
		}
	}
	if c.GetNumber() == 0 || c.GetNumber() > t.job.GetNextMove() {
		return false, fmt.Errorf("request %d for a migration, the last is %d: %w", c.GetNumber(), t.job.GetNextMove(), ErrInvalid)
	}
	return false, nil
}

// beginMigrate starts a migration. It takes the number of an epoch for its
// hold, so that all holds of a job are in one order. The guest's place stays
// where it is until the operation is advanced to moved.
func (t *transition) beginMigrate(c *vftv1.BeginOperation) (*vftv1.Move, error) {
	j := t.job
	if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_RUNNING || j.GetOperation() != nil || j.GetStopRequested() {
		return nil, fmt.Errorf("migration: %w", ErrPhase)
	}
	if j.GetFilling() {
		return nil, fmt.Errorf("migration: %w", ErrFilling)
	}
	if c.GetIncarnation() != j.GetIncarnation() {
		return nil, fmt.Errorf("migration in incarnation %d: %w", c.GetIncarnation(), ErrIncarnation)
	}
	if c.GetEpoch() != j.GetNextEpoch() {
		return nil, fmt.Errorf("migration with hold %d, next is %d: %w", c.GetEpoch(), j.GetNextEpoch(), ErrEpoch)
	}
	m := proto.CloneOf(c.GetMove())
	if m == nil || int(m.GetGuest()) >= len(j.GetGuests()) || m.GetTo() == "" {
		return nil, fmt.Errorf("migration of guest %d to node %q: %w", m.GetGuest(), m.GetTo(), ErrInvalid)
	}
	m.From = j.GetGuests()[m.GetGuest()].GetNode()
	if m.GetFrom() == m.GetTo() {
		return nil, fmt.Errorf("guest %d is on node %s: %w", m.GetGuest(), m.GetTo(), ErrInvalid)
	}
	if !t.alive(m.GetTo()) {
		return nil, fmt.Errorf("migration to node %s, which is not alive: %w", m.GetTo(), ErrUnknownNode)
	}
	if m.GetNumber() != 0 {
		if !slices.ContainsFunc(j.GetMoves(), func(r *vftv1.Move) bool { return r.GetNumber() == m.GetNumber() && r.GetGuest() == m.GetGuest() }) {
			return nil, fmt.Errorf("request %d for a migration of guest %d is not open: %w", m.GetNumber(), m.GetGuest(), ErrStale)
		}
		j.Moves = t.movesBut(m.GetGuest())
	}
	j.NextEpoch++
	t.event("migrating", fmt.Sprintf("migrating guest %d from %s to %s: %s", m.GetGuest(), m.GetFrom(), m.GetTo(), m.GetReason()),
		map[string]int64{"guest": int64(m.GetGuest()), "request": int64(m.GetNumber())}, moveLabels(m))
	return m, nil
}

// moved gives the guest its new place. From this entry on its copy on the old
// node never runs again, and the one on the new node may (I3). The network was
// empty when the guest was stopped.
func (t *transition) moved(op *vftv1.Operation, c *vftv1.AdvanceOperation) error {
	if err := balanced(c.GetProof()); err != nil {
		return err
	}
	if !t.alive(op.GetMove().GetTo()) {
		return fmt.Errorf("migration to node %s, which is not alive: %w", op.GetMove().GetTo(), ErrUnknownNode)
	}
	guests := slices.Clone(t.job.GetGuests())
	g := proto.CloneOf(guests[op.GetMove().GetGuest()])
	g.Node = op.GetMove().GetTo()
	guests[op.GetMove().GetGuest()] = g
	t.job.Guests = guests
	return nil
}

// finishMove tells how a migration ended.
func (t *transition) finishMove(op *vftv1.Operation, figures map[string]int64) error {
	m := op.GetMove()
	switch op.GetPhase() {
	case vftv1.OperationPhase_OPERATION_PHASE_MOVED:
		took := t.at - op.GetBegunAt()
		way := "live"
		if m.GetCold() {
			way = "cold"
		}
		labels := moveLabels(m)
		labels["way"] = way
		text := fmt.Sprintf("guest %d migrated from %s to %s in %s (%s", m.GetGuest(), m.GetFrom(), m.GetTo(), duration(took), way)
		if d, ok := figures["downtime"]; ok {
			text += ", stood still for " + duration(d)
		}
		if n, ok := figures["bytes"]; ok {
			text += ", " + binarySize(n) + " sent"
		}
		t.event("migrated", text+")", merged(figures, map[string]int64{
			"guest": int64(m.GetGuest()), "request": int64(m.GetNumber()), "took": took,
		}), labels)
		return nil
	case vftv1.OperationPhase_OPERATION_PHASE_REVOKED:
		t.eventMoveFailed(m, t.at-op.GetBegunAt(), op.GetReason())
		return nil
	case vftv1.OperationPhase_OPERATION_PHASE_UNSPECIFIED, vftv1.OperationPhase_OPERATION_PHASE_BEGUN,
		vftv1.OperationPhase_OPERATION_PHASE_RELEASED, vftv1.OperationPhase_OPERATION_PHASE_RESTORED:
	}
	return fmt.Errorf("finishing a migration in %v: %w", op.GetPhase(), ErrPhase)
}

// interrupt ends what a restart or a stop takes the place of.
func (t *transition) interrupt(reason string) {
	t.abortGathering(reason)
	switch op := t.job.GetOperation(); op.GetKind() {
	case vftv1.OperationKind_OPERATION_KIND_CHECKPOINT:
		t.endCheckpoint(op)
	case vftv1.OperationKind_OPERATION_KIND_MIGRATE:
		t.eventMoveFailed(op.GetMove(), t.at-op.GetBegunAt(), reason)
		t.job.Operation = nil
	case vftv1.OperationKind_OPERATION_KIND_UNSPECIFIED, vftv1.OperationKind_OPERATION_KIND_BOOT,
		vftv1.OperationKind_OPERATION_KIND_SUSPEND, vftv1.OperationKind_OPERATION_KIND_RESTART, vftv1.OperationKind_OPERATION_KIND_STOP:
	}
}

// dropMoves answers all open requests.
func (t *transition) dropMoves(reason string) {
	for _, m := range t.job.GetMoves() {
		t.eventMoveFailed(m, 0, reason)
	}
	t.job.Moves = nil
}

func (t *transition) eventMoveFailed(m *vftv1.Move, took int64, reason string) {
	labels := moveLabels(m)
	labels["reason"] = reason
	to := ""
	if m.GetTo() != "" {
		to = " to " + m.GetTo()
	}
	t.event("migrate-failed", fmt.Sprintf("guest %d not migrated%s: %s", m.GetGuest(), to, reason),
		map[string]int64{"guest": int64(m.GetGuest()), "request": int64(m.GetNumber()), "took": took}, labels)
}

func moveLabels(m *vftv1.Move) map[string]string {
	labels := map[string]string{"trigger": m.GetTrigger(), "reason": m.GetReason()}
	if m.GetFrom() != "" {
		labels["from"] = m.GetFrom()
	}
	if m.GetTo() != "" {
		labels["to"] = m.GetTo()
	}
	return labels
}
