// Package fsm is the coordinator's replicated state machine: nodes, jobs,
// guests, incarnations, epochs and operations. It is pure: the same commands
// in the same order give the same state on every replica, so it has no clock,
// no I/O and no goroutine, and every command carries its time. The rules that
// keep a job safe (docs/COORDINATOR.md, invariants I1, I2, I3 and I6) are enforced
// here, whatever a leader asks for.
package fsm

import (
	"errors"
	"fmt"
	"sort"

	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Version is the version of commands and of snapshots. Replicas of different
// versions do not work together.
const Version = 5

// MaxEvents is how many events of a job are kept; numbers go on.
const MaxEvents = 1000

// What a command can be refused for. A refused command changed nothing.
var (
	ErrVersion     = errors.New("another version of the coordinator's state")
	ErrInvalid     = errors.New("malformed command")
	ErrUnknownJob  = errors.New("no such job")
	ErrUnknownNode = errors.New("no such node")
	ErrJobExists   = errors.New("another job has this id")
	ErrJobEnded    = errors.New("the job has ended")
	ErrIncarnation = errors.New("not the present incarnation")
	ErrOperation   = errors.New("not the operation under way")
	ErrPhase       = errors.New("not possible in the present phase")
	ErrEpoch       = errors.New("not an epoch this can be done with")
	ErrProof       = errors.New("the cut is not proven")
	ErrPinned      = errors.New("the epoch is pinned")
	ErrFilling     = errors.New("the guests do not have all of their memory yet")
	ErrStale       = errors.New("the state has changed since the decision")
)

// Result is what a command did.
type Result struct {
	Err     error      // why it was refused
	Changed bool       // false for a repeated command
	Job     *vftv1.Job // the job it was about, as it is now; not to be modified
	Jobs    []string   // ids of all jobs it changed
	// Ticket of RequestCheckpoint: answered when Job.checkpoints_done reaches it;
	// of RequestMove: number of the request.
	Ticket uint64
}

// State is the replicated state. It is not safe for concurrent use, but what
// its accessors return is never modified afterwards and may be kept and
// shared by readers.
type State struct {
	applied  uint64
	nodes    map[string]*vftv1.Node
	jobs     map[string]*vftv1.Job
	replicas map[string]string
	tokens   map[string]*vftv1.Token
	enrolled map[string]*vftv1.Enrolled // by node
}

// New returns the empty state.
func New() *State {
	return &State{
		nodes: map[string]*vftv1.Node{}, jobs: map[string]*vftv1.Job{}, replicas: map[string]string{},
		tokens: map[string]*vftv1.Token{}, enrolled: map[string]*vftv1.Enrolled{},
	}
}

// Apply executes the command at a log index. Commands at or below the last
// index applied do nothing.
func (s *State) Apply(cmd *vftv1.Command, index uint64) Result {
	if index <= s.applied {
		return Result{Err: fmt.Errorf("entry %d after %d: %w", index, s.applied, ErrStale)}
	}
	if cmd.GetVersion() != Version {
		return Result{Err: fmt.Errorf("command of version %d, this is version %d: %w", cmd.GetVersion(), Version, ErrVersion)}
	}
	s.applied = index
	switch b := cmd.GetBody().(type) {
	case *vftv1.Command_PutReplica:
		return s.putReplica(b.PutReplica)
	case *vftv1.Command_PutNode:
		return s.putNode(b.PutNode, cmd.GetAt())
	case *vftv1.Command_LoseNode:
		return s.loseNode(b.LoseNode, cmd.GetAt())
	case *vftv1.Command_DrainNode:
		return s.drainNode(b.DrainNode)
	case *vftv1.Command_SubmitJob:
		return s.submitJob(b.SubmitJob, cmd.GetAt())
	case *vftv1.Command_ImportEpoch:
		return s.importEpoch(b.ImportEpoch, cmd.GetAt())
	case *vftv1.Command_AddToken:
		return s.addToken(b.AddToken, cmd.GetAt())
	case *vftv1.Command_RedeemToken:
		return s.redeemToken(b.RedeemToken, cmd.GetAt())
	case *vftv1.Command_ExpelNode:
		return s.expelNode(b.ExpelNode, cmd.GetAt())
	case *vftv1.Command_Prune:
		return s.prune(b.Prune)
	case nil:
		return Result{Err: fmt.Errorf("empty: %w", ErrInvalid)}
	default:
		return s.applyToJob(cmd)
	}
}

// applyToJob executes a command about one existing job on a copy of it, which
// replaces the job only when the command was accepted and changed something.
func (s *State) applyToJob(cmd *vftv1.Command) Result {
	body, ok := jobCommand(cmd)
	if !ok {
		return Result{Err: fmt.Errorf("unknown command %T: %w", cmd.GetBody(), ErrInvalid)}
	}
	old := s.jobs[body.GetJob()]
	if old == nil {
		return Result{Err: fmt.Errorf("job %q: %w", body.GetJob(), ErrUnknownJob)}
	}
	t := s.transition(old, cmd.GetAt())
	var changed bool
	var err error
	switch b := body.(type) {
	case *vftv1.BeginOperation:
		changed, err = t.begin(b)
	case *vftv1.AdvanceOperation:
		changed, err = t.advance(b)
	case *vftv1.FinishOperation:
		changed, err = t.finish(b)
	case *vftv1.CommitEpoch:
		changed, err = t.commit(b)
	case *vftv1.AbortEpoch:
		changed, err = t.abort(b)
	case *vftv1.DeleteEpoch:
		changed, err = t.deleteEpoch(b)
	case *vftv1.UpdateLevel:
		changed, err = t.updateLevel(b)
	case *vftv1.PinEpoch:
		changed, err = t.pinEpoch(b)
	case *vftv1.SetDamaged:
		changed, err = t.setDamaged(b)
	case *vftv1.ClearEpoch:
		changed, err = t.clearEpoch(b)
	case *vftv1.ResumeJob:
		changed, err = t.resume(b)
	case *vftv1.RequestStop:
		changed, err = t.requestStop(b)
	case *vftv1.RequestRestart:
		changed, err = t.requestRestart()
	case *vftv1.RequestCheckpoint:
		changed, err = t.requestCheckpoint()
	case *vftv1.RecordExit:
		changed, err = t.recordExit(b)
	case *vftv1.RequestMove:
		changed, err = t.requestMove(b)
	case *vftv1.DropMove:
		changed, err = t.dropMove(b)
	case *vftv1.GuestsFilled:
		changed, err = t.filled(b)
	case *vftv1.PublishPort:
		changed, err = t.publishPort(b)
	case *vftv1.RequestSuspend:
		changed, err = t.requestSuspend(b)
	case *vftv1.RequestContinue:
		changed, err = t.requestContinue(b)
	case *vftv1.AppendEvent:
		changed, err = t.appendEvent(b)
	}
	if err != nil {
		return Result{Err: fmt.Errorf("job %s: %w", body.GetJob(), err), Job: old}
	}
	res := Result{Job: old, Changed: changed, Ticket: t.ticket}
	if changed {
		s.jobs[body.GetJob()] = t.job
		res.Job, res.Jobs = t.job, []string{body.GetJob()}
	}
	return res
}

type aboutJob interface{ GetJob() string }

func jobCommand(cmd *vftv1.Command) (aboutJob, bool) {
	switch b := cmd.GetBody().(type) {
	case *vftv1.Command_BeginOperation:
		return b.BeginOperation, true
	case *vftv1.Command_AdvanceOperation:
		return b.AdvanceOperation, true
	case *vftv1.Command_FinishOperation:
		return b.FinishOperation, true
	case *vftv1.Command_CommitEpoch:
		return b.CommitEpoch, true
	case *vftv1.Command_AbortEpoch:
		return b.AbortEpoch, true
	case *vftv1.Command_DeleteEpoch:
		return b.DeleteEpoch, true
	case *vftv1.Command_UpdateLevel:
		return b.UpdateLevel, true
	case *vftv1.Command_PinEpoch:
		return b.PinEpoch, true
	case *vftv1.Command_SetDamaged:
		return b.SetDamaged, true
	case *vftv1.Command_ClearEpoch:
		return b.ClearEpoch, true
	case *vftv1.Command_ResumeJob:
		return b.ResumeJob, true
	case *vftv1.Command_RequestStop:
		return b.RequestStop, true
	case *vftv1.Command_RequestRestart:
		return b.RequestRestart, true
	case *vftv1.Command_RequestCheckpoint:
		return b.RequestCheckpoint, true
	case *vftv1.Command_RecordExit:
		return b.RecordExit, true
	case *vftv1.Command_RequestMove:
		return b.RequestMove, true
	case *vftv1.Command_DropMove:
		return b.DropMove, true
	case *vftv1.Command_GuestsFilled:
		return b.GuestsFilled, true
	case *vftv1.Command_PublishPort:
		return b.PublishPort, true
	case *vftv1.Command_RequestSuspend:
		return b.RequestSuspend, true
	case *vftv1.Command_RequestContinue:
		return b.RequestContinue, true
	case *vftv1.Command_AppendEvent:
		return b.AppendEvent, true
	}
	return nil, false
}

// Applied is the log index of the last command.
func (s *State) Applied() uint64 { return s.applied }

// Job returns a job or nil.
func (s *State) Job(id string) *vftv1.Job { return s.jobs[id] }

// Jobs returns all jobs, oldest first.
func (s *State) Jobs() []*vftv1.Job {
	out := make([]*vftv1.Job, 0, len(s.jobs))
	for _, j := range s.jobs {
		out = append(out, j)
	}
	sort.Slice(out, func(a, b int) bool {
		if out[a].GetSubmittedAt() != out[b].GetSubmittedAt() {
			return out[a].GetSubmittedAt() < out[b].GetSubmittedAt()
		}
		return out[a].GetSpec().GetId() < out[b].GetSpec().GetId()
	})
	return out
}

// Node returns a node or nil.
func (s *State) Node(id string) *vftv1.Node { return s.nodes[id] }

// Nodes returns all nodes by id.
func (s *State) Nodes() []*vftv1.Node {
	out := make([]*vftv1.Node, 0, len(s.nodes))
	for _, n := range s.nodes {
		out = append(out, n)
	}
	sort.Slice(out, func(a, b int) bool { return out[a].GetId() < out[b].GetId() })
	return out
}

// Replica returns the API address of a coordinator replica, empty if unknown.
func (s *State) Replica(id string) string { return s.replicas[id] }

// Snapshot returns the whole state. What it points to is never modified.
func (s *State) Snapshot() *vftv1.State {
	st := &vftv1.State{Version: Version, Applied: s.applied, Nodes: s.Nodes(), Replicas: map[string]string{}}
	for id, a := range s.replicas {
		st.Replicas[id] = a
	}
	for _, j := range s.jobs {
		st.Jobs = append(st.Jobs, j)
	}
	sort.Slice(st.Jobs, func(a, b int) bool { return st.Jobs[a].GetSpec().GetId() < st.Jobs[b].GetSpec().GetId() })
	s.enrolment(st)
	return st
}

// Encode writes a snapshot as bytes, the same for equal states.
func Encode(st *vftv1.State) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(st)
}

// Decode reads what Encode wrote and returns the state. A state of another
// version is refused with ErrVersion.
func Decode(data []byte) (*State, error) {
	st := &vftv1.State{}
	if err := proto.Unmarshal(data, st); err != nil {
		return nil, fmt.Errorf("reading the coordinator's state: %w", err)
	}
	if st.GetVersion() != Version {
		return nil, fmt.Errorf("state of version %d, this coordinator reads version %d: %w", st.GetVersion(), Version, ErrVersion)
	}
	s := New()
	s.applied = st.GetApplied()
	for _, n := range st.GetNodes() {
		s.nodes[n.GetId()] = n
	}
	for _, j := range st.GetJobs() {
		s.jobs[j.GetSpec().GetId()] = j
	}
	for id, a := range st.GetReplicas() {
		s.replicas[id] = a
	}
	for _, t := range st.GetTokens() {
		s.tokens[t.GetId()] = t
	}
	for _, e := range st.GetEnrolled() {
		s.enrolled[e.GetNode()] = e
	}
	return s, nil
}

// Without returns a copy of a job with only the events after a number, and
// with brief without any events or drain proofs, for lists.
func Without(j *vftv1.Job, since uint64, brief bool) *vftv1.Job {
	n := shallow(j)
	if brief {
		n.Events = nil
		n.Epochs = nil
		for _, e := range j.GetEpochs() {
			c := proto.CloneOf(e)
			c.Proof = nil
			n.Epochs = append(n.Epochs, c)
		}
		return n
	}
	i := sort.Search(len(j.GetEvents()), func(i int) bool { return j.GetEvents()[i].GetNumber() > since })
	n.Events = j.GetEvents()[i:]
	return n
}
