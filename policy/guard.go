package policy

import (
	"fmt"
	"time"
)

// Guard keeps a flood of alarms from becoming a flood of moves. A zero field
// does not limit.
type Guard struct {
	// PerNode bounds the migrations that leave or reach one node at a time.
	PerNode int
	// Cluster bounds the migrations and planned restarts at a time.
	Cluster int
	// MinHealthy is how many nodes must stay healthy and not emptied.
	MinHealthy int
	// Cooldown is how long a node is left alone after guests were moved off
	// or onto it.
	Cooldown time.Duration
}

// DefaultGuard is used where nothing else is configured.
func DefaultGuard() Guard {
	return Guard{PerNode: 2, Cluster: 8, MinHealthy: 1, Cooldown: 30 * time.Second}
}

// Situation is what a guard looks at before guests leave Source for Target.
type Situation struct {
	// AtSource and AtTarget are the moves under way at the two nodes.
	AtSource, AtTarget int
	// InCluster is the number of moves under way.
	InCluster int
	// Healthy is the number of healthy nodes besides the source.
	Healthy int
	// SinceMove is the time since the last move that the source or the target
	// had a part in; negative: there was none.
	SinceMove time.Duration
}

// Allow returns "" when one more move may begin, else what stands against it.
// A node that fails for certain is left whatever the cool-down says: urgent
// drops only that rule.
func (g Guard) Allow(s Situation, urgent bool) string {
	switch {
	case g.PerNode > 0 && max(s.AtSource, s.AtTarget) >= g.PerNode:
		return fmt.Sprintf("%d moves are under way at one of the nodes, at most %d are allowed", max(s.AtSource, s.AtTarget), g.PerNode)
	case g.Cluster > 0 && s.InCluster >= g.Cluster:
		return fmt.Sprintf("%d moves are under way in the cluster, at most %d are allowed", s.InCluster, g.Cluster)
	case s.Healthy < g.MinHealthy:
		return fmt.Sprintf("%d other nodes are healthy, at least %d are wanted", s.Healthy, g.MinHealthy)
	case !urgent && s.SinceMove >= 0 && s.SinceMove < g.Cooldown:
		return fmt.Sprintf("the last move was %v ago, nodes rest for %v", s.SinceMove, g.Cooldown)
	}
	return ""
}
