package fsm

import (
	"fmt"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func (s *State) putReplica(c *vftv1.PutReplica) Result {
	if c.GetId() == "" {
		return Result{Err: fmt.Errorf("replica without id: %w", ErrInvalid)}
	}
	if s.replicas[c.GetId()] == c.GetAddress() {
		return Result{}
	}
	s.replicas[c.GetId()] = c.GetAddress()
	return Result{Changed: true}
}

func (s *State) putNode(c *vftv1.PutNode, at int64) Result {
	id := c.GetNode().GetId()
	if id == "" {
		return Result{Err: fmt.Errorf("node without id: %w", ErrInvalid)}
	}
	n := proto.CloneOf(c.GetNode())
	n.State = vftv1.NodeState_NODE_STATE_ALIVE
	if e := s.enrolled[id]; e.GetExpelled() != "" {
		return Result{Err: expelled(e)}
	}
	old := s.nodes[id]
	n.Drained = old.GetDrained()
	switch {
	case old == nil:
		n.Since = at
	case old.GetState() == n.GetState():
		n.Since = old.GetSince()
	default:
		n.Since = max(at, old.GetSince()+1)
	}
	if old != nil && proto.Equal(old, n) {
		return Result{}
	}
	s.nodes[id] = n
	s.shownBy(n, at)
	res := Result{Changed: true}
	if old.GetState() != n.GetState() {
		res.Jobs = s.reckonAll(id, at)
	}
	if !proto.Equal(old.GetHealth(), n.GetHealth()) {
		res.Jobs = append(res.Jobs, s.healthChanged(old, n, at)...)
	}
	slices.Sort(res.Jobs)
	res.Jobs = slices.Compact(res.Jobs)
	return res
}

// healthChanged tells the jobs that have guests on a node what it says of
// itself now, when it is or was in trouble, and returns them: their controllers
// act.
func (s *State) healthChanged(old, n *vftv1.Node, at int64) (jobs []string) {
	was, is := old.GetHealth().GetState(), n.GetHealth().GetState()
	ill := max(was, is) >= vftv1.HealthState_HEALTH_STATE_SUSPECT
	for id, j := range s.jobs {
		if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || !placedOn(j, n.GetId()) {
			continue
		}
		jobs = append(jobs, id)
		if was != is && ill {
			t := s.transition(j, at)
			t.eventHealth(n)
			s.jobs[id] = t.job
		}
	}
	return jobs
}

// alive says whether a node is known and not lost.
func (s *State) alive(node string) bool {
	return s.nodes[node].GetState() == vftv1.NodeState_NODE_STATE_ALIVE
}

func (s *State) loseNode(c *vftv1.LoseNode, at int64) Result {
	old := s.nodes[c.GetNode()]
	if old == nil {
		return Result{Err: fmt.Errorf("node %q: %w", c.GetNode(), ErrUnknownNode)}
	}
	if old.GetState() != vftv1.NodeState_NODE_STATE_ALIVE || old.GetSession() != c.GetSession() || old.GetSince() != c.GetSince() {
		return Result{Err: fmt.Errorf("node %s: %w", c.GetNode(), ErrStale)}
	}
	s.failed(old, at)
	return s.lost(old, at, fmt.Sprintf("node %s lost: no heartbeat for %s", old.GetId(), duration(c.GetSilent())),
		map[string]int64{"silent": c.GetSilent()})
}

// lost says that a node is not there any more, and why, to all jobs that have guests on it.
func (s *State) lost(old *vftv1.Node, at int64, text string, figures map[string]int64) Result {
	n := proto.CloneOf(old)
	n.State = vftv1.NodeState_NODE_STATE_LOST
	n.Since = max(at, old.GetSince()+1)
	s.nodes[n.GetId()] = n
	res := Result{Changed: true, Jobs: s.reckonAll(n.GetId(), at)}
	for id, j := range s.jobs {
		if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || !placedOn(j, n.GetId()) {
			continue
		}
		t := s.transition(j, at)
		t.event("node-lost", text, figures, map[string]string{"node": n.GetId()})
		s.jobs[id] = t.job
		res.Jobs = append(res.Jobs, id)
	}
	slices.Sort(res.Jobs)
	res.Jobs = slices.Compact(res.Jobs)
	return res
}

func placedOn(j *vftv1.Job, node string) bool {
	for _, g := range j.GetGuests() {
		if g.GetNode() == node {
			return true
		}
	}
	return false
}

func (s *State) submitJob(c *vftv1.SubmitJob, at int64) Result {
	spec := c.GetSpec()
	if spec.GetId() == "" || len(spec.GetGuests()) == 0 {
		return Result{Err: fmt.Errorf("a job needs an id and at least one guest: %w", ErrInvalid)}
	}
	if old := s.jobs[spec.GetId()]; old != nil {
		if !proto.Equal(old.GetSpec(), spec) {
			return Result{Err: fmt.Errorf("job %s: %w", spec.GetId(), ErrJobExists), Job: old}
		}
		return Result{Job: old}
	}
	if err := CheckPublished(spec.GetPublish(), len(spec.GetGuests())); err != nil {
		return Result{Err: fmt.Errorf("job %s: %w", spec.GetId(), err)}
	}
	t := &transition{at: at, alive: s.alive, job: &vftv1.Job{
		Spec:          proto.CloneOf(spec),
		Published:     proto.CloneOf(spec).GetPublish(),
		Phase:         vftv1.JobPhase_JOB_PHASE_PENDING,
		NextEpoch:     1,
		NextOperation: 1,
		SubmittedAt:   at,
	}}
	t.event("submitted", fmt.Sprintf("submitted: %s on %s", spec.GetName(), count(len(spec.GetGuests()), "guest")),
		map[string]int64{"guests": int64(len(spec.GetGuests()))}, nil)
	s.jobs[spec.GetId()] = t.job
	return Result{Changed: true, Job: t.job, Jobs: []string{spec.GetId()}}
}

// Prunable says whether a command forgets a job: one that ended long ago and of
// which no epoch is pinned.
func Prunable(j *vftv1.Job, c *vftv1.Prune) bool {
	return j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED && j.GetEndedAt() < c.GetJobsBefore() &&
		!slices.ContainsFunc(j.GetEpochs(), func(e *vftv1.Epoch) bool { return e.GetPin() != "" })
}

// PrunableEpoch says whether a command forgets an epoch: one that was given up
// long ago and of which nothing is left.
func PrunableEpoch(e *vftv1.Epoch, c *vftv1.Prune) bool {
	return e.GetState() == vftv1.EpochState_EPOCH_STATE_ABORTED && !e.GetLeftovers() && e.GetEndedAt() < c.GetEpochsBefore()
}

func (s *State) prune(c *vftv1.Prune) Result {
	var res Result
	for id, j := range s.jobs {
		if Prunable(j, c) {
			delete(s.jobs, id)
			res.Jobs = append(res.Jobs, id)
			continue
		}
		var kept []*vftv1.Epoch
		for _, e := range j.GetEpochs() {
			if !PrunableEpoch(e, c) {
				kept = append(kept, e)
			}
		}
		if len(kept) != len(j.GetEpochs()) {
			n := shallow(j)
			n.Epochs = kept
			s.jobs[id] = n
			res.Jobs = append(res.Jobs, id)
		}
	}
	sort.Strings(res.Jobs)
	res.Changed = len(res.Jobs) > 0
	return res
}
