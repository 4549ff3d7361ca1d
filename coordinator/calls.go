package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// target is a node to be called.
type target struct {
	node    string
	address string
	guests  []uint32 // of the job, placed there
}

// targetsOf returns the nodes that have guests of a job.
func (c *Coordinator) targetsOf(j *vftv1.Job) []target {
	by := map[string]*target{}
	for _, g := range j.GetGuests() {
		t := by[g.GetNode()]
		if t == nil {
			t = &target{node: g.GetNode(), address: c.store.node(g.GetNode()).GetAddress()}
			by[g.GetNode()] = t
		}
		t.guests = append(t.guests, g.GetIndex())
	}
	var out []target
	for _, id := range slices.Sorted(maps.Keys(by)) {
		out = append(out, *by[id])
	}
	return out
}

// reachable returns all nodes that are alive.
func (c *Coordinator) reachable() []target {
	var out []target
	for _, n := range c.store.nodes() {
		if n.GetState() == vftv1.NodeState_NODE_STATE_ALIVE {
			out = append(out, target{node: n.GetId(), address: n.GetAddress()})
		}
	}
	return out
}

func (c *Coordinator) members(j *vftv1.Job) []*vftv1.Member {
	var out []*vftv1.Member
	for _, g := range j.GetGuests() {
		out = append(out, &vftv1.Member{Guest: g.GetIndex(), Node: g.GetNode(), Address: c.store.node(g.GetNode()).GetAddress()})
	}
	return out
}

func (c *Coordinator) peerAddresses() []string {
	var out []string
	for _, t := range c.reachable() {
		out = append(out, t.address)
	}
	return out
}

func (c *Coordinator) callContext(j *vftv1.Job) *vftv1.Context {
	return &vftv1.Context{
		Job: j.GetSpec().GetId(), Incarnation: j.GetIncarnation(),
		Operation: j.GetOperation().GetId(), Applied: c.store.applied(),
	}
}

// nodeError is the failure of a call to one node.
type nodeError struct {
	node string
	call string
	err  error
}

func (e *nodeError) Error() string { return fmt.Sprintf("node %s: %s: %v", e.node, e.call, e.err) }
func (e *nodeError) Unwrap() error { return e.err }

// each calls all targets at once, each with the same deadline. With together
// the first failure ends the other calls, as their results are of no use
// alone; without, a node that hangs does not keep the others from finishing.
func each[T any](ctx context.Context, c *Coordinator, targets []target, call string, limit time.Duration, together bool,
	f func(context.Context, vftv1connect.SidecarServiceClient, target) (T, error),
) (map[string]T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v: %w", limit, context.DeadlineExceeded))
	defer cancel()
	var mu sync.Mutex
	var errs []error
	out := map[string]T{}
	var wg sync.WaitGroup
	for _, t := range targets {
		wg.Go(func() {
			r, err := f(ctx, c.cfg.Sidecar(t.address), t)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				out[t.node] = r
				return
			}
			if together && len(errs) > 0 && ctx.Err() != nil {
				return // ended by the first failure
			}
			if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
				err = cause
			}
			errs = append(errs, &nodeError{t.node, call, err})
			if together {
				cancel()
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// failedNodes names the nodes whose calls failed.
func failedNodes(err error) []string {
	var out []string
	var walk func(error)
	walk = func(err error) {
		if one, ok := err.(*nodeError); ok { //nolint:errorlint // walks the tree itself
			out = append(out, one.node)
			return
		}
		switch u := err.(type) { //nolint:errorlint // walks the tree itself
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				walk(e)
			}
		case interface{ Unwrap() error }:
			walk(u.Unwrap())
		}
	}
	walk(err)
	return out
}
