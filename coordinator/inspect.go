package coordinator

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// inspection is when a node was last asked what it has.
type inspection struct {
	since   int64 // Node.since
	session uint64
	at      time.Time
}

// inspectNodes compares what nodes have with what they should have: at once
// when they appear or come back, and from time to time.
func (t *term) inspectNodes(ctx context.Context) error {
	var mu sync.Mutex
	var calls sync.WaitGroup
	defer calls.Wait()
	done := map[string]inspection{}
	busy := map[string]bool{}
	for {
		changed := t.c.store.changes.next("")
		wait := t.c.cfg.InspectInterval
		for _, n := range t.c.store.nodes() {
			id := n.GetId()
			if n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE {
				continue
			}
			now := t.c.cfg.Now()
			mu.Lock()
			last := done[id]
			due := last.at.Add(t.c.cfg.InspectInterval)
			again := last.since != n.GetSince() || last.session != n.GetSession() || !due.After(now)
			if again && !busy[id] {
				busy[id] = true
				calls.Go(func() {
					err := t.inspect(ctx, n)
					mu.Lock()
					defer mu.Unlock()
					delete(busy, id)
					done[id] = inspection{n.GetSince(), n.GetSession(), t.c.cfg.Now()}
					if err != nil && ctx.Err() == nil {
						t.c.log.Info("node not inspected", "node", id, "err", err)
					}
				})
			} else if !again {
				wait = min(wait, due.Sub(now))
			}
			mu.Unlock()
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// inspect asks a node what parts it has, has it remove those that nobody needs,
// and records which ones it has lost or has besides.
//
// What is not needed is judged by the state after the node has answered: every
// part in the answer is of an epoch that had begun by then. What the node has
// lost is judged by the state before.
func (t *term) inspect(ctx context.Context, n *vftv1.Node) error {
	before := t.c.store.jobs()
	call, cancel := context.WithTimeout(ctx, t.c.cfg.CallTimeout)
	defer cancel()
	r, err := t.c.cfg.Sidecar(n.GetAddress()).ListParts(call, connect.NewRequest(&vftv1.ListPartsRequest{}))
	if err != nil {
		return err
	}
	if err := t.c.verify(ctx); err != nil {
		return err
	}
	t.c.removeUnneeded(ctx, n, append(r.Msg.GetShards(), r.Msg.GetParts()...))
	return t.c.reconcile(ctx, n.GetId(), before, r.Msg)
}

// removeUnneeded has a node remove parts of jobs and epochs that are no more.
func (c *Coordinator) removeUnneeded(ctx context.Context, n *vftv1.Node, parts []*vftv1.HeldPart) {
	gone := map[string][]uint64{}
	for _, p := range parts {
		if !p.GetFresh() && !hasParts(c.store.job(p.GetJob()), p.GetEpoch()) && !slices.Contains(gone[p.GetJob()], p.GetEpoch()) {
			gone[p.GetJob()] = append(gone[p.GetJob()], p.GetEpoch())
		}
	}
	for job, epochs := range gone {
		c.log.Info("removing parts that nobody needs", "node", n.GetId(), "job", job, "epochs", epochs)
		c.deleteParts(ctx, &vftv1.DeletePartsRequest{Job: job, Epochs: epochs}, []target{{node: n.GetId(), address: n.GetAddress()}})
	}
}

// reconcile records which parts a node has that the state did not know of, and
// which it should have had before it was asked and has not; of shards the
// latter.
func (c *Coordinator) reconcile(ctx context.Context, node string, before []*vftv1.Job, list *vftv1.ListPartsResponse) error {
	has := map[heldKey]string{}
	for _, p := range list.GetParts() {
		has[heldKey{p.GetJob(), p.GetEpoch(), p.GetGuest(), ""}] = p.GetManifest()
	}
	for _, p := range list.GetShards() {
		has[heldKey{p.GetJob(), p.GetEpoch(), p.GetGuest(), p.GetLevel()}] = p.GetManifest()
	}
	var errs []error
	for _, j := range before {
		id := j.GetSpec().GetId()
		for _, old := range j.GetEpochs() {
			if old.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
				continue
			}
			for _, l := range old.GetLevels() {
				if l.GetOutside() || l.GetLevel() == fsm.LevelPartner { // local stands for all whole copies
					continue
				}
				err := c.change(id, old.GetNumber(), func(e *vftv1.Epoch) error {
					u := &vftv1.UpdateLevel{Job: id, Epoch: e.GetNumber(), Revision: e.GetRevision(), Level: l.GetLevel()}
					u.Parts = c.differences(id, node, old, e, l, has)
					if len(u.GetParts()) == 0 {
						return nil
					}
					_, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_UpdateLevel{UpdateLevel: u}})
					return err
				})
				if err != nil && !errors.Is(err, fsm.ErrEpoch) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// heldKey names what a node may have of a part; level is that of shards.
type heldKey struct {
	job   string
	epoch uint64
	guest uint32
	level string
}

// differences returns what must be recorded so that the state is as the node
// says it is: old is the epoch before it was asked, e as it is now.
func (c *Coordinator) differences(id, node string, old, e *vftv1.Epoch, l *vftv1.EpochLevel, has map[heldKey]string) []*vftv1.PartUpdate {
	var out []*vftv1.PartUpdate
	whole := fsm.WholeCopies(l)
	nodesOf := func(p *vftv1.Part) []string {
		if whole {
			return p.GetNodes()
		}
		return fsm.FindPartLevel(p, l.GetLevel()).GetNodes()
	}
	for i, p := range e.GetParts() {
		k := heldKey{id, e.GetNumber(), p.GetGuest(), ""}
		if !whole {
			k.level = l.GetLevel()
		}
		good := has[k] == p.GetManifest()
		nodes := nodesOf(p)
		known, knew := slices.Contains(nodes, node), slices.Contains(nodesOf(old.GetParts()[i]), node)
		switch {
		case good && !known && whole:
			nodes = with(nodes, node)
		case !good && known && knew:
			c.log.Warn("a node has lost what it had of a part", "node", node, "job", id, "epoch", e.GetNumber(), "guest", p.GetGuest(), "level", l.GetLevel())
			nodes = without(nodes, node, whole)
		default:
			continue
		}
		out = append(out, &vftv1.PartUpdate{Guest: p.GetGuest(), Manifest: p.GetManifest(), Nodes: nodes})
	}
	return out
}
