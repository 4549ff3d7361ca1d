package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// source says where a part can be had.
func (c *Coordinator) source(e *vftv1.Epoch, p *vftv1.Part) *vftv1.PartSource {
	src := &vftv1.PartSource{Guest: p.GetGuest(), Epoch: e.GetNumber(), Manifest: p.GetManifest()}
	src.Nodes = c.holders(p.GetNodes())
	for _, l := range e.GetLevels() {
		if !fsm.WholeCopies(l) && fsm.Readable(p, l, c.alive) {
			src.Levels = append(src.Levels, &vftv1.LevelSource{
				Level: l.GetLevel(), Nodes: c.holders(fsm.FindPartLevel(p, l.GetLevel()).GetNodes()),
			})
		}
	}
	return src
}

// holders says how to reach those of the nodes that are alive.
func (c *Coordinator) holders(nodes []string) []*vftv1.Member {
	var out []*vftv1.Member
	for _, n := range nodes {
		if c.alive(n) {
			out = append(out, &vftv1.Member{Node: n, Address: c.store.node(n).GetAddress()})
		}
	}
	return out
}

func (c *Coordinator) alive(node string) bool {
	return c.store.node(node).GetState() == vftv1.NodeState_NODE_STATE_ALIVE
}

// errNodeLost ends a call to a node that was lost meanwhile.
var errNodeLost = errors.New("the node was lost")

// whileAlive returns a context that ends when one of the nodes is lost. release
// waits for the watcher to end.
func (c *Coordinator) whileAlive(ctx context.Context, nodes ...string) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			changed := c.store.changes.next("")
			if lost := slices.IndexFunc(nodes, func(n string) bool { return !c.alive(n) }); lost >= 0 {
				cancel(fmt.Errorf("%s: %w", nodes[lost], errNodeLost))
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// securing is what it takes to make a part safe at a level.
type securing struct {
	job       string
	epoch     *vftv1.Epoch
	part      *vftv1.Part
	level     string
	targets   []string // for shards: node of each, by number
	bandwidth int64    // bytes per second, 0: no limit
}

// securePart has a node do its share: for whole copies keep one, else make
// from its copy what the level consists of. It returns the bytes written.
func (c *Coordinator) securePart(ctx context.Context, node string, x securing) (int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.PartsTimeout, fmt.Errorf("not done in %v: %w", c.cfg.PartsTimeout, context.DeadlineExceeded))
	defer cancel()
	ctx, release := c.whileAlive(ctx, append([]string{node}, x.targets...)...)
	defer release()
	r, err := c.cfg.Sidecar(c.store.node(node).GetAddress()).SecurePart(ctx, connect.NewRequest(&vftv1.SecurePartRequest{
		Job: x.job, Part: c.source(x.epoch, x.part), Level: x.level, Bandwidth: x.bandwidth, Targets: c.holders(x.targets),
	}))
	if err != nil {
		if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
			err = cause
		}
		return 0, &nodeError{node, fmt.Sprintf("part of guest %d at level %s", x.part.GetGuest(), x.level), err}
	}
	c.metrics.levelBytes.WithLabelValues(x.level).Add(float64(r.Msg.GetBytes()))
	return r.Msg.GetBytes(), nil
}

// secureRequired makes parts that one node has stored safe at the level that
// the epoch requires, and adds to them where they are.
func (k *controller) secureRequired(ctx context.Context, job *vftv1.Job, e *vftv1.Epoch, parts []*vftv1.Part, candidates map[uint32][]*vftv1.Node) error {
	l := fsm.FindLevel(e, e.GetRequired())
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		p.Levels = append(p.Levels, &vftv1.PartLevel{Level: fsm.LevelLocal, Bytes: p.GetSize()})
		if l.GetLevel() == fsm.LevelLocal {
			continue
		}
		at := &vftv1.PartLevel{Level: l.GetLevel()}
		x := securing{job: k.id, epoch: e, part: p, level: l.GetLevel()}
		if fsm.WholeCopies(l) {
			p.Levels = append(p.Levels, at) // before the part is shared
			g.Go(func() error { return k.copyPart(ctx, x, l, at, candidates[p.GetGuest()]) })
			continue
		}
		g.Go(func() (err error) {
			if !l.GetOutside() {
				if x.targets = shardTargets(k.c.store.nodes(), nil, int(l.GetNodes()), nil); x.targets == nil {
					return fmt.Errorf("not enough nodes are alive for level %s", l.GetLevel())
				}
			}
			at.Bytes, err = k.c.securePart(ctx, p.GetNodes()[0], x)
			if err == nil {
				at.Nodes = x.targets
				p.Levels = append(p.Levels, at)
			}
			return err
		})
	}
	return g.Wait()
}

// copyPart has candidates keep copies of a part, one after the other until
// there are enough.
func (k *controller) copyPart(ctx context.Context, x securing, l *vftv1.EpochLevel, at *vftv1.PartLevel, candidates []*vftv1.Node) error {
	var errs []error
	for _, n := range candidates {
		if fsm.SafeAt(x.part, l, k.c.alive) {
			return nil
		}
		bytes, err := k.c.securePart(ctx, n.GetId(), x)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		x.part.Nodes = append(x.part.Nodes, n.GetId())
		at.Bytes += bytes
	}
	if fsm.SafeAt(x.part, l, k.c.alive) {
		return nil
	}
	if len(errs) == 0 {
		return fmt.Errorf("part of guest %d: not enough nodes are alive for level %s", x.part.GetGuest(), l.GetLevel())
	}
	return errors.Join(errs...)
}

// candidatesOf names for each part of an epoch in the making the nodes that
// could keep a copy besides the guest's own.
func (k *controller) candidatesOf(job *vftv1.Job, e *vftv1.Epoch) map[uint32][]*vftv1.Node {
	l := fsm.FindLevel(e, e.GetRequired())
	if l.GetLevel() != fsm.LevelPartner {
		return nil
	}
	var parts []held
	for _, g := range job.GetGuests() {
		parts = append(parts, held{guest: g.GetIndex(), home: g.GetNode(), nodes: []string{g.GetNode()}})
	}
	return candidates(k.c.store.nodes(), parts, int(l.GetNodes()), nil, k.checkpointFailures)
}

// change makes a change to a committed epoch that names the revision it was
// decided on, again when something else has changed meanwhile.
func (c *Coordinator) change(job string, epoch uint64, f func(*vftv1.Epoch) error) error {
	var err error
	for range 5 {
		e := fsm.FindEpoch(c.store.job(job), epoch)
		if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
			return fmt.Errorf("epoch %d is not committed: %w", epoch, fsm.ErrEpoch)
		}
		if err = f(e); !errors.Is(err, fsm.ErrStale) {
			return err
		}
	}
	return err
}

// with returns the nodes and one more.
func with(nodes []string, more string) []string {
	if slices.Contains(nodes, more) {
		return nodes
	}
	return append(slices.Clone(nodes), more)
}

// without returns the nodes but one. Unless they are all alike its place stays,
// empty.
func without(nodes []string, less string, alike bool) []string {
	nodes = slices.Clone(nodes)
	if alike {
		return slices.DeleteFunc(nodes, func(n string) bool { return n == less })
	}
	for i, n := range nodes {
		if n == less {
			nodes[i] = ""
		}
	}
	return nodes
}
