package coordinator

import "errors"

// Healthy says what keeps this replica from doing its part, nil when nothing does.
func (c *Coordinator) Healthy() error {
	if _, id := c.node.raft.LeaderWithID(); id == "" {
		return errors.New("no leader is known to this replica")
	}
	return nil
}
