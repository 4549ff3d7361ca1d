package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// term is one leadership of this replica, from election to loss.
type term struct {
	c        *Coordinator
	leases   *leases
	wake     *changes      // jobs whose guests are in trouble
	restarts chan struct{} // storm guard: a token per restart under way
	over     chan struct{} // closed when the term ends
	placing  sync.Mutex    // one placement at a time
	slots    *slots        // what nodes are doing for keepers
}

// lead carries out the leader's duties until the context ends. An error means
// that this replica must not go on.
func (c *Coordinator) lead(ctx context.Context) error {
	if err := c.takeOver(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	t := &term{
		c: c, leases: newLeases(c.cfg.Now()), wake: newChanges(),
		restarts: make(chan struct{}, c.cfg.MaxRestarts), over: make(chan struct{}), slots: newSlots(),
	}
	c.setLeading(t)
	defer func() {
		c.setLeading(nil)
		close(t.over)
	}()
	c.log.Info("leading", "applied", c.store.applied())
	defer c.log.Info("no longer leading")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.watchSelf(ctx) })
	g.Go(func() error { return t.watchLeases(ctx) })
	g.Go(func() error {
		return t.forEachJob(ctx, func(j *vftv1.Job) bool { return j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED },
			func(ctx context.Context, id string) { newController(t, id).run(ctx) })
	})
	g.Go(func() error {
		return t.forEachJob(ctx, keeping, func(ctx context.Context, id string) { newKeeper(t, id).run(ctx) })
	})
	g.Go(func() error { return t.inspectNodes(ctx) })
	g.Go(func() error { return t.collectOutside(ctx) })
	g.Go(func() error { return t.prune(ctx) })
	g.Go(func() error { return t.settleAlarms(ctx) })
	return g.Wait()
}

func (c *Coordinator) setLeading(t *term) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leading = t
}

// takeOver waits until all that earlier leaders decided is applied here, and
// says where this leader is to be found.
func (c *Coordinator) takeOver(ctx context.Context) error {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, c.cfg.CommitDeadline)
		err := c.await(call, func() raft.Future { return c.node.raft.Barrier(c.cfg.CommitDeadline) })
		if err == nil {
			_, err = c.apply(call, &vftv1.Command{Body: &vftv1.Command_PutReplica{
				PutReplica: &vftv1.PutReplica{Id: c.cfg.ID, Address: c.cfg.APIAddress},
			}})
		}
		late := call.Err() != nil
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return nil
		case late && c.node.raft.State() == raft.Leader:
			return fmt.Errorf("%w: nothing committed for %v", ErrCannotCommit, c.cfg.CommitDeadline)
		}
		c.log.Debug("not leading yet", "err", err)
		_ = sleep(ctx, 100*time.Millisecond)
	}
	return nil
}

// watchSelf ends this replica when it leads but cannot commit. Raft keeps
// sending heartbeats from a leader whose disk stalls, so nobody else would
// notice (hashicorp/raft issue 503).
func (c *Coordinator) watchSelf(ctx context.Context) error {
	for {
		if err := sleep(ctx, c.cfg.CommitDeadline/5); err != nil {
			return nil
		}
		call, cancel := context.WithTimeout(ctx, c.cfg.CommitDeadline)
		err := c.await(call, func() raft.Future { return c.node.raft.Barrier(c.cfg.CommitDeadline) })
		late := call.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && late && c.node.raft.State() == raft.Leader {
			return fmt.Errorf("%w: nothing committed for %v", ErrCannotCommit, c.cfg.CommitDeadline)
		}
	}
}

// forEachJob keeps f running once for every job that needs it.
func (t *term) forEachJob(ctx context.Context, needs func(*vftv1.Job) bool, f func(ctx context.Context, id string)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	running := map[string]bool{}
	over := make(chan struct{}, 1) // a job may have begun another life while f returned
	for {
		next := t.c.store.changes.next("")
		for _, j := range t.c.store.jobs() {
			id := j.GetSpec().GetId()
			mu.Lock()
			start := needs(j) && !running[id]
			if start {
				running[id] = true
			}
			mu.Unlock()
			if !start {
				continue
			}
			wg.Go(func() {
				f(ctx, id)
				mu.Lock()
				delete(running, id)
				mu.Unlock()
				select {
				case over <- struct{}{}:
				default:
				}
			})
		}
		select {
		case <-next:
		case <-over:
		case <-ctx.Done():
			return nil
		}
	}
}

// prune forgets old history from time to time.
func (t *term) prune(ctx context.Context) error {
	for {
		now := t.c.cfg.Now()
		p := &vftv1.Prune{
			EpochsBefore: now.Add(-t.c.cfg.KeepAborted).UnixNano(),
			JobsBefore:   now.Add(-t.c.cfg.KeepJobs).UnixNano(),
		}
		if t.prunable(p) {
			if _, err := t.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_Prune{Prune: p}}); err != nil && !errors.Is(err, errNotLeader) {
				t.c.log.Warn("could not prune history", "err", err)
			}
		}
		if err := sleep(ctx, time.Minute); err != nil {
			return nil
		}
	}
}

func (t *term) prunable(p *vftv1.Prune) bool {
	for _, j := range t.c.store.jobs() {
		if fsm.Prunable(j, p) || slices.ContainsFunc(j.GetEpochs(), func(e *vftv1.Epoch) bool { return fsm.PrunableEpoch(e, p) }) {
			return true
		}
	}
	return false
}
