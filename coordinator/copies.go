package coordinator

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// held is where a part is.
type held struct {
	guest uint32
	home  string   // the guest's node
	nodes []string // that have a whole copy and are alive
}

// candidates names for each part the nodes that could keep a further copy of
// it, the best first: alive, without a copy, not expected to fail, of a failure
// domain that has none where possible, the guest's own, which may have most of it, and evenly used
// when the first copies of each are taken.
// load is what nodes keep already. rotate shifts the choice, so that the epoch
// after a failed one is copied elsewhere.
func candidates(nodes []*vftv1.Node, parts []held, copies int, load map[string]int, rotate int) map[uint32][]*vftv1.Node {
	alive := slices.DeleteFunc(slices.Clone(nodes), func(n *vftv1.Node) bool { return n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE })
	slices.SortFunc(alive, func(a, b *vftv1.Node) int { return strings.Compare(a.GetId(), b.GetId()) })
	place := map[string]int{}
	domain := map[string]string{}
	for i, n := range alive {
		place[n.GetId()] = (i + rotate) % len(alive)
		domain[n.GetId()] = domainOf(n)
	}
	load = maps.Clone(load)
	if load == nil {
		load = map[string]int{}
	}
	out := map[uint32][]*vftv1.Node{}
	for _, p := range parts {
		taken := map[string]bool{}
		for _, n := range p.nodes {
			taken[domain[n]] = true
		}
		var c []*vftv1.Node
		for _, n := range alive {
			if !slices.Contains(p.nodes, n.GetId()) {
				c = append(c, n)
			}
		}
		here := place[p.home]
		slices.SortFunc(c, func(a, b *vftv1.Node) int {
			// Ties go to the next node in the ring, so that not all start with the first.
			ringA := (place[a.GetId()] - here + len(alive) + rotate) % len(alive)
			ringB := (place[b.GetId()] - here + len(alive) + rotate) % len(alive)
			return cmp.Or(
				compareBool(failing(a), failing(b)),
				compareBool(taken[domain[a.GetId()]], taken[domain[b.GetId()]]),
				-compareBool(a.GetId() == p.home, b.GetId() == p.home),
				cmp.Compare(load[a.GetId()], load[b.GetId()]),
				cmp.Compare(ringA, ringB),
			)
		})
		for _, n := range c[:max(0, min(len(c), copies-len(p.nodes)))] {
			load[n.GetId()]++
		}
		out[p.guest] = c
	}
	return out
}

// shardTargets names the node of each of a part's n shards, by number. Shards
// stay where they are on nodes that are alive; the others go to nodes that have
// none, of failure domains with the fewest shards, then the least busy. Without
// enough nodes the result is nil.
func shardTargets(nodes []*vftv1.Node, present []string, n int, load map[string]int) []string {
	free := map[string]*vftv1.Node{}
	for _, x := range nodes {
		if x.GetState() == vftv1.NodeState_NODE_STATE_ALIVE {
			free[x.GetId()] = x
		}
	}
	if len(free) < n {
		return nil
	}
	out := make([]string, n)
	domains := map[string]int{}
	take := func(i int, x *vftv1.Node) {
		out[i] = x.GetId()
		domains[domainOf(x)]++
		delete(free, x.GetId())
	}
	for i := range min(n, len(present)) {
		if x := free[present[i]]; x != nil {
			take(i, x)
		}
	}
	for i := range out {
		if out[i] != "" {
			continue
		}
		take(i, slices.MinFunc(slices.Collect(maps.Values(free)), func(a, b *vftv1.Node) int {
			return cmp.Or(
				cmp.Compare(domains[domainOf(a)], domains[domainOf(b)]),
				cmp.Compare(load[a.GetId()], load[b.GetId()]),
				strings.Compare(a.GetId(), b.GetId()),
			)
		}))
	}
	return out
}
