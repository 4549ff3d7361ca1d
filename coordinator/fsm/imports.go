package fsm

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// importEpoch brings an epoch that was committed elsewhere. It is the one entry
// that commits it here: all of its parts must be there and verified by the
// store that took them.
func (s *State) importEpoch(c *vftv1.ImportEpoch, at int64) Result {
	id := c.GetSpec().GetId()
	if id == "" || len(c.GetSpec().GetGuests()) == 0 || c.GetEpoch().GetNumber() == 0 || c.GetEpoch().GetPin() == "" {
		return Result{Err: fmt.Errorf("an import needs a job with guests and a pinned epoch: %w", ErrInvalid)}
	}
	old := s.jobs[id]
	switch {
	case old == nil:
		old = &vftv1.Job{
			Spec: proto.CloneOf(c.GetSpec()), Phase: vftv1.JobPhase_JOB_PHASE_ENDED, Incarnation: c.GetIncarnation(),
			NextEpoch: 1, NextOperation: 1, SubmittedAt: at, EndedAt: at,
			Exit: &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_IMPORTED, Message: "imported, to be resumed"},
		}
	case !SameJob(old.GetSpec(), c.GetSpec()):
		return Result{Err: fmt.Errorf("job %s: %w", id, ErrJobExists), Job: old}
	}
	t := s.transition(old, at)
	changed, err := t.takeEpoch(c)
	if err != nil {
		return Result{Err: fmt.Errorf("job %s: importing epoch %d: %w", id, c.GetEpoch().GetNumber(), err), Job: s.jobs[id]}
	}
	if !changed {
		return Result{Job: old}
	}
	s.jobs[id] = t.job
	return Result{Changed: true, Job: t.job, Jobs: []string{id}}
}

// SameJob says whether two specifications are of one job, which may have been
// resumed by another client, on other nodes, since.
func SameJob(a, b *vftv1.JobSpec) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	for _, s := range []*vftv1.JobSpec{a, b} {
		s.ClientBound = false
		wish(s, []string{""})
	}
	return proto.Equal(a, b)
}

// wish has the guests of a job placed on nodes, in turn, where that is possible.
func wish(s *vftv1.JobSpec, nodes []string) {
	for i, g := range s.GetGuests() {
		g.Node = nodes[i%len(nodes)]
	}
}

func (t *transition) takeEpoch(c *vftv1.ImportEpoch) (bool, error) {
	number := c.GetEpoch().GetNumber()
	if known := t.epoch(number); known.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED {
		if !sameParts(known, c.GetEpoch()) {
			return false, fmt.Errorf("another epoch has this number: %w", ErrJobExists)
		}
		return false, nil
	}
	switch {
	case t.job.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED:
		return false, fmt.Errorf("the job has not ended here: %w", ErrPhase)
	case t.epoch(number) != nil:
		return false, fmt.Errorf("it is being removed, or was given up, here: %w", ErrEpoch)
	case slices.ContainsFunc(t.job.GetEpochs(), func(e *vftv1.Epoch) bool { return e.GetPin() == c.GetEpoch().GetPin() }):
		return false, fmt.Errorf("pin %s: %w", c.GetEpoch().GetPin(), ErrPinned)
	}
	levels, err := beginLevels(&vftv1.BeginOperation{Required: LevelLocal, Levels: c.GetLevels()})
	if err != nil {
		return false, err
	}
	n := proto.CloneOf(c.GetEpoch())
	n.State, n.Required, n.Levels = vftv1.EpochState_EPOCH_STATE_COMMITTED, LevelLocal, levels
	n.Damaged, n.Revision, n.Leftovers = "", 0, false
	if n.Parts, err = t.completeParts(n.GetParts(), n); err != nil {
		return false, err
	}
	t.reckon(n)
	t.setEpoch(n)
	slices.SortFunc(t.job.Epochs, func(a, b *vftv1.Epoch) int { return int(a.GetNumber()) - int(b.GetNumber()) })
	t.job.NextEpoch = max(t.job.GetNextEpoch(), number+1)
	t.job.Incarnation = max(t.job.GetIncarnation(), c.GetIncarnation(), n.GetIncarnation())
	t.event("imported", fmt.Sprintf("checkpoint %d imported, pinned as %s", number, n.GetPin()), map[string]int64{"epoch": int64(number)}, nil)
	return true, nil
}

func sameParts(a, b *vftv1.Epoch) bool {
	return slices.EqualFunc(a.GetParts(), b.GetParts(), func(x, y *vftv1.Part) bool {
		return x.GetGuest() == y.GetGuest() && x.GetManifest() == y.GetManifest()
	})
}

// resume begins another life of a job that has ended.
func (t *transition) resume(c *vftv1.ResumeJob) (bool, error) {
	j := t.job
	e := t.epoch(c.GetEpoch())
	switch {
	case c.GetToken() != "" && j.GetResumption().GetToken() == c.GetToken():
		return false, nil
	case j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED:
		return false, fmt.Errorf("the job has not ended: %w", ErrPhase)
	case j.GetIncarnation() != c.GetIncarnation():
		return false, fmt.Errorf("resuming after incarnation %d, present is %d: %w", c.GetIncarnation(), j.GetIncarnation(), ErrIncarnation)
	case e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED:
		return false, fmt.Errorf("epoch %d is not committed: %w", c.GetEpoch(), ErrEpoch)
	case e.GetDamaged() != "":
		return false, fmt.Errorf("epoch %d is damaged: %s: %w", c.GetEpoch(), e.GetDamaged(), ErrEpoch)
	}
	j.Spec = proto.CloneOf(j.GetSpec())
	j.Spec.ClientBound = c.GetClientBound()
	if nodes := c.GetNodes(); len(nodes) > 0 {
		wish(j.Spec, nodes)
	}
	j.Resumption = &vftv1.Resumption{Epoch: c.GetEpoch(), Incarnation: j.GetIncarnation(), Pending: true, Token: c.GetToken()}
	j.Phase = vftv1.JobPhase_JOB_PHASE_PENDING
	j.Guests = nil
	j.Exit, j.StopExit, j.StopReason = nil, nil, ""
	j.StopRequested, j.StopNow, j.RestartRequested, j.CheckpointRequested = false, false, false, false
	j.EndedAt, j.StartedAt, j.RunningSince, j.Restarts = 0, 0, 0, 0
	t.event("resumed", fmt.Sprintf("the job goes on from checkpoint %d", c.GetEpoch()), map[string]int64{"epoch": int64(c.GetEpoch())}, nil)
	return true, nil
}

// Eligible says whether a job may be restarted from an epoch: it is of the
// job's present life, or the one that this was resumed from, or older.
func Eligible(j *vftv1.Job, e *vftv1.Epoch) bool {
	r := j.GetResumption()
	return r == nil || e.GetNumber() <= r.GetEpoch() || e.GetIncarnation() > r.GetIncarnation()
}
