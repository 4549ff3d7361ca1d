package client

import (
	"context"
	"slices"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Heartbeat renews a node's lease. Only ctx bounds it: a lease is short.
func (c *Client) Heartbeat(ctx context.Context, req *vftv1.HeartbeatRequest) (*vftv1.HeartbeatResponse, error) {
	resp, err := call(ctx, c, "renewing the lease", c.cfg.Attempt, req, service.Heartbeat)
	if err == nil {
		c.learn(resp.GetCoordinators())
	}
	return resp, err
}

// learn takes note of replicas that were added since the client was configured.
func (c *Client) learn(addresses []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addresses {
		if !slices.Contains(c.known, a) {
			c.known = append(c.known, a)
		}
	}
}
