package coordinator

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// CollectGarbage implements vftv1connect.CoordinatorServiceHandler: nodes are
// inspected first, so that what nobody needs is free to go.
func (c *Coordinator) CollectGarbage(ctx context.Context, _ *connect.Request[vftv1.CollectGarbageRequest]) (*connect.Response[vftv1.CollectGarbageResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	resp := &vftv1.CollectGarbageResponse{}
	var mu sync.Mutex
	add := func(x *vftv1.Collection) {
		mu.Lock()
		defer mu.Unlock()
		resp.Collections = append(resp.Collections, x)
	}
	var calls sync.WaitGroup
	for _, n := range c.reachable() {
		calls.Go(func() {
			if err := t.inspect(ctx, c.store.node(n.node)); err != nil {
				c.log.Info("node not inspected", "node", n.node, "err", err)
			}
			add(c.collectStore(ctx, n, ""))
		})
	}
	calls.Wait()
	for i, l := range c.outsideLevels() {
		if targets := c.reachable(); len(targets) > 0 {
			add(c.collectStore(ctx, targets[i%len(targets)], l))
		}
	}
	if ctx.Err() != nil {
		return nil, c.fault(context.Cause(ctx))
	}
	slices.SortFunc(resp.Collections, func(a, b *vftv1.Collection) int {
		return cmp.Or(cmp.Compare(a.GetLevel(), b.GetLevel()), cmp.Compare(a.GetNode(), b.GetNode()))
	})
	return connect.NewResponse(resp), nil
}

// collectStore has a node free what nothing needs, in its own store or at a
// level outside.
func (c *Coordinator) collectStore(ctx context.Context, n target, level string) *vftv1.Collection {
	out := &vftv1.Collection{Node: n.node, Level: level}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.PartsTimeout)
	defer cancel()
	ctx, release := c.whileAlive(ctx, n.node)
	defer release()
	r, err := c.cfg.Sidecar(n.address).CollectStore(ctx, connect.NewRequest(&vftv1.CollectStoreRequest{Level: level}))
	if err != nil {
		out.Fault = err.Error()
		return out
	}
	out.Freed = r.Msg.GetFreed()
	return out
}

// outsideLevels names the levels outside the nodes that jobs use or have used.
func (c *Coordinator) outsideLevels() []string {
	var out []string
	for _, j := range c.store.jobs() {
		levels, err := levelsOf(j.GetSpec())
		if err != nil {
			c.log.Warn("a job's levels cannot be read", "job", j.GetSpec().GetId(), "err", err)
		}
		for _, l := range levels {
			if l.GetOutside() && !slices.Contains(out, l.GetLevel()) {
				out = append(out, l.GetLevel())
			}
		}
	}
	slices.Sort(out)
	return out
}

// collectOutside frees what nothing needs at levels outside, now and then: a
// level keeps what no part names for a day, in case one is on its way.
func (t *term) collectOutside(ctx context.Context) error {
	for {
		if err := sleep(ctx, t.c.cfg.CollectInterval); err != nil {
			return nil
		}
		for _, level := range t.c.outsideLevels() {
			targets := t.c.reachable()
			if len(targets) == 0 {
				continue
			}
			x := t.c.collectStore(ctx, targets[0], level)
			if x.GetFault() != "" {
				t.c.log.Warn("what nothing needs was not removed", "level", level, "err", x.GetFault())
				continue
			}
			t.c.log.Info("removed what nothing needs", "level", level, "freed", x.GetFreed())
		}
	}
}
