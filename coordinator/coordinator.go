// Package coordinator is the replicated brain of vft: a Raft node whose leader
// runs one controller per job. It decides where guests run, when epochs are
// taken and what is done about a loss, and tells the sidecars; what they do
// with pages and frames it does not know. docs/COORDINATOR.md describes it.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/policy"
)

// ErrCannotCommit is returned by Run when this replica leads but cannot write
// to its log. The process should exit: the others elect a leader that can.
var ErrCannotCommit = errors.New("this leader cannot commit to its log (is the disk of the coordinator's directory stalled or full?)")

// Coordinator is one replica.
type Coordinator struct {
	cfg     Config
	log     *slog.Logger
	store   *store
	node    *node
	metrics *metrics
	waits   gate                          // goroutines waiting for raft futures
	policy  atomic.Pointer[policy.Custom] // nil: that which is built in

	mu      sync.Mutex
	leading *term // nil: not the leader, or not ready to act

	closing  sync.Once
	closeErr error
}

// New opens the replica's state and joins Raft. The same call bootstraps a
// cluster, restarts a replica and adds one. Run must be called for it to lead.
func New(cfg Config) (*Coordinator, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Coordinator{cfg: cfg, log: cfg.Logger.With("replica", cfg.ID), store: newStore()}
	if c.metrics, err = newMetrics(c, cfg.Metrics); err != nil {
		return nil, err
	}
	if c.node, err = openNode(cfg, c.store); err != nil {
		c.metrics.unregister()
		return nil, err
	}
	return c, nil
}

// Run leads whenever Raft elects this replica, until the context ends or the
// replica cannot go on. Shutdown order: leader's duties, leadership transfer,
// Raft, transport, log.
func (c *Coordinator) Run(ctx context.Context) error {
	g, run := errgroup.WithContext(ctx)
	g.Go(func() error { return c.leadWhenElected(run) })
	g.Go(func() error {
		select {
		case err := <-c.store.broken:
			return err
		case <-run.Done():
			return nil
		}
	})
	if c.cfg.Refuse != nil {
		g.Go(func() error { return c.refuseExpelled(run) })
	}
	if len(c.cfg.Join) > 0 {
		g.Go(func() error { return c.join(run) })
	}
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, c.Close())
}

// Close ends the replica. Run does it too; without Run it must be called.
func (c *Coordinator) Close() error {
	c.closing.Do(func() {
		c.transferLeadership()
		c.waits.close()
		c.closeErr = c.node.stop(c.cfg.ShutdownTimeout)
		if c.closeErr == nil {
			c.waits.wait()
		}
		c.metrics.unregister()
	})
	return c.closeErr
}

// transferLeadership hands over to another replica, so that the cluster need
// not wait for this one's silence.
func (c *Coordinator) transferLeadership() {
	if c.node.raft.State() != raft.Leader {
		return
	}
	conf := c.node.raft.GetConfiguration()
	if err := conf.Error(); err != nil || len(conf.Configuration().Servers) < 2 {
		return
	}
	if !c.waits.add() {
		return
	}
	done := make(chan error, 1)
	go func() {
		defer c.waits.done()
		done <- c.node.raft.LeadershipTransfer().Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			c.log.Info("leadership not transferred", "err", err)
		}
	case <-time.After(c.cfg.ShutdownTimeout):
		c.log.Info("leadership not transferred in time")
	}
}

// leadWhenElected runs the leader's duties while Raft says so. LeaderCh may
// drop values, so a second true means that leadership was lost in between.
func (c *Coordinator) leadWhenElected(ctx context.Context) error {
	var wait func() error
	stop := func() error {
		if wait == nil {
			return nil
		}
		err := wait()
		wait = nil
		return err
	}
	failed := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return stop()
		case <-failed:
			return stop()
		case elected := <-c.node.raft.LeaderCh():
			if err := stop(); err != nil {
				return err
			}
			if !elected {
				continue
			}
			lead, cancel := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() {
				err := c.lead(lead)
				if err != nil {
					select {
					case failed <- struct{}{}:
					default:
					}
				}
				done <- err
			}()
			wait = func() error { cancel(); return <-done }
		}
	}
}

// join asks the replicas of an existing cluster for admission until this
// replica is in its configuration.
func (c *Coordinator) join(ctx context.Context) error {
	address := c.cfg.RaftAddress
	if address == "" {
		address = c.cfg.Stream.Addr().String()
	}
	for {
		conf := c.node.raft.GetConfiguration()
		if err := conf.Error(); err == nil {
			for _, s := range conf.Configuration().Servers {
				if s.ID == raft.ServerID(c.cfg.ID) {
					return nil
				}
			}
		}
		for _, client := range c.cfg.Join {
			call, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
			_, err := client.AddReplica(call, connect.NewRequest(&vftv1.AddReplicaRequest{Id: c.cfg.ID, RaftAddress: address}))
			cancel()
			if err == nil {
				break
			}
			c.log.Debug("not admitted yet", "err", err)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return nil
		}
	}
}

// leader returns the present term, or an error that tells a client where to ask.
func (c *Coordinator) leader() (*term, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leading == nil {
		return nil, errNotLeader
	}
	return c.leading, nil
}

// verify makes sure that this replica is still the leader.
func (c *Coordinator) verify(ctx context.Context) error {
	return c.await(ctx, func() raft.Future { return c.node.raft.VerifyLeader() })
}

// await waits for a raft future or the context.
func (c *Coordinator) await(ctx context.Context, start func() raft.Future) error {
	if !c.waits.add() {
		return fmt.Errorf("%w: shutting down", errNotLeader)
	}
	done := make(chan error, 1)
	go func() {
		defer c.waits.done()
		done <- start().Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %w", errNotLeader, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for raft: %w", context.Cause(ctx))
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gate counts goroutines and lets none in once it is closed.
type gate struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (g *gate) add() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Add(1)
	return true
}

func (g *gate) done() { g.wg.Done() }

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

func (g *gate) wait() { g.wg.Wait() }
