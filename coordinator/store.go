package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// store holds the replicated state for readers, and lets Raft change it.
type store struct {
	mu      sync.RWMutex
	state   *fsm.State
	changes *changes
	broken  chan error // capacity 1: this replica cannot follow the log
}

func newStore() *store {
	return &store{state: fsm.New(), changes: newChanges(), broken: make(chan error, 1)}
}

// Apply implements raft.FSM.
func (s *store) Apply(l *raft.Log) any {
	cmd := &vftv1.Command{}
	if err := proto.Unmarshal(l.Data, cmd); err != nil {
		return s.fail(fmt.Errorf("log entry %d is not a command: %w", l.Index, err))
	}
	s.mu.Lock()
	res := s.state.Apply(cmd, l.Index)
	s.mu.Unlock()
	if errors.Is(res.Err, fsm.ErrVersion) {
		return s.fail(fmt.Errorf("log entry %d: %w", l.Index, res.Err))
	}
	for _, id := range res.Jobs {
		s.changes.notify(id)
	}
	if res.Changed {
		s.changes.notify("")
	}
	return res
}

func (s *store) fail(err error) fsm.Result {
	select {
	case s.broken <- err:
	default:
	}
	return fsm.Result{Err: err}
}

// Snapshot implements raft.FSM.
func (s *store) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return snapshot{s.state.Snapshot()}, nil
}

// Restore implements raft.FSM.
func (s *store) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	data, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("reading the coordinator's snapshot: %w", err)
	}
	st, err := fsm.Decode(data)
	if err != nil {
		s.fail(err)
		return err
	}
	s.mu.Lock()
	s.state = st
	s.mu.Unlock()
	s.changes.notifyAll()
	return nil
}

type snapshot struct{ state *vftv1.State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	data, err := fsm.Encode(s.state)
	if err == nil {
		_, err = sink.Write(data)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing the coordinator's snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

func (s *store) job(id string) *vftv1.Job {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Job(id)
}

func (s *store) jobs() []*vftv1.Job {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Jobs()
}

func (s *store) node(id string) *vftv1.Node {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Node(id)
}

func (s *store) nodes() []*vftv1.Node {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Nodes()
}

func (s *store) applied() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Applied()
}

func (s *store) replica(id string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Replica(id)
}

// errNotLeader is returned for what only the leader may do.
var errNotLeader = errors.New("this replica is not the leader")

// apply puts a command into the log and returns what it did. The error is
// either that of the log, in which case the command may still take effect
// later (errNotLeader), or the refusal of the state machine.
func (c *Coordinator) apply(ctx context.Context, cmd *vftv1.Command) (fsm.Result, error) {
	cmd.Version, cmd.At = fsm.Version, c.cfg.Now().UnixNano()
	data, err := proto.Marshal(cmd)
	if err != nil {
		return fsm.Result{}, fmt.Errorf("encoding a command: %w", err)
	}
	type outcome struct {
		res fsm.Result
		err error
	}
	out := make(chan outcome, 1)
	if !c.waits.add() {
		return fsm.Result{}, fmt.Errorf("%w: shutting down", errNotLeader)
	}
	go func() {
		defer c.waits.done()
		f := c.node.raft.Apply(data, c.cfg.CommitDeadline)
		if err := f.Error(); err != nil {
			out <- outcome{err: fmt.Errorf("%w: %w", errNotLeader, err)}
			return
		}
		res, _ := f.Response().(fsm.Result)
		out <- outcome{res: res, err: res.Err}
	}()
	select {
	case o := <-out:
		return o.res, o.err
	case <-ctx.Done():
		return fsm.Result{}, fmt.Errorf("waiting for the log: %w", context.Cause(ctx))
	}
}

// changes tells waiters that a job (by id) or anything at all (empty id) has changed.
type changes struct {
	mu sync.Mutex
	ch map[string]chan struct{}
}

func newChanges() *changes { return &changes{ch: map[string]chan struct{}{}} }

// next returns a channel that is closed at the next change. Look at the state
// after taking it, not before.
func (n *changes) next(id string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	ch := n.ch[id]
	if ch == nil {
		ch = make(chan struct{})
		n.ch[id] = ch
	}
	return ch
}

func (n *changes) notify(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ch := n.ch[id]; ch != nil {
		close(ch)
		delete(n.ch, id)
	}
}

func (n *changes) notifyAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, ch := range n.ch {
		close(ch)
		delete(n.ch, id)
	}
}
