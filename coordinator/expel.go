package coordinator

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/access"
)

// ExpelNode implements vftv1connect.CoordinatorServiceHandler. A replica leaves
// Raft first: it must not have a say in it.
func (c *Coordinator) ExpelNode(ctx context.Context, req *connect.Request[vftv1.ExpelNodeRequest]) (*connect.Response[vftv1.ExpelNodeResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	node := req.Msg.GetNode()
	if node == c.cfg.ID {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
			"node %s leads the coordinators and cannot expel itself: end its daemons, and ask again when another one leads", node))
	}
	reason := req.Msg.GetReason()
	if reason == "" {
		reason = "by " + access.From(ctx).String()
	}
	replicas, err := c.replicas()
	if err != nil {
		return nil, c.fault(err)
	}
	for _, r := range replicas {
		if r.GetId() != node {
			continue
		}
		if err := c.await(ctx, func() raft.Future {
			return c.node.raft.RemoveServer(raft.ServerID(node), 0, c.cfg.CallTimeout)
		}); err != nil {
			return nil, c.fault(err)
		}
	}
	if _, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_ExpelNode{ExpelNode: &vftv1.ExpelNode{Node: node, Reason: reason}}}); err != nil {
		return nil, c.fault(err)
	}
	c.log.Warn("node expelled", "node", node, "reason", reason)
	return connect.NewResponse(&vftv1.ExpelNodeResponse{}), nil
}

// refuseExpelled keeps this replica's connections clear of expelled nodes.
func (c *Coordinator) refuseExpelled(ctx context.Context) error {
	for {
		changed := c.store.changes.next("")
		if expelled := c.store.expelled(); len(expelled) > 0 {
			c.cfg.Refuse(expelled)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *store) expelled() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Expelled()
}
