package coordinator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// demand is what guests of other jobs take of a node.
type demand struct {
	cpus   int64
	memory int64 // MiB
}

// placing is everything that a placement is decided from.
type placing struct {
	spec  *vftv1.JobSpec
	nodes []*vftv1.Node
	used  map[string]demand // by guests of other jobs
	// restart: the job has run; where its guests were is preferred, a node that
	// the user named is only a wish, and processors may be oversubscribed.
	restart bool
	present []*vftv1.Guest
	holders map[uint32][]string // nodes that hold the part to be restored
	avoid   map[string]int      // failures of a node with this job
}

// placement is where each guest goes, by index.
type placement struct {
	nodes          []string
	oversubscribed bool
}

type slot struct {
	node   *vftv1.Node
	cpus   int64 // free
	memory int64 // free
	own    int   // guests of this job
	last   int   // the higher, the later it is taken; see wanted
	refuse string
}

// Why a node is taken after others.
const (
	lastSuspect = 1 + iota // guests that are there stay there
	lastDrained
	lastFailing
)

// place decides where the guests of a job run: on nodes that are alive, hold
// the image and have the memory, not on those that are failing or being drained
// and rather not on suspect ones; one guest per node first, spread over failure
// domains, then by free capacity. Failing and drained nodes are taken only in a
// restart that has no others: a job that waits for them in vain would be lost. It
// is deterministic.
func place(in placing) (placement, error) {
	slots, order := slotsOf(in)

	p := placement{nodes: make([]string, len(in.spec.GetGuests()))}
	take := func(i int, s *slot) {
		p.nodes[i] = s.node.GetId()
		s.take(in.spec)
		p.oversubscribed = p.oversubscribed || s.cpus < 0
	}
	over := in.spec.GetOversubscribe() || in.restart
	fits := func(s *slot, crowded bool) bool { return s.fits(in.spec, crowded) }
	if in.restart { // guests whose node goes on stay there
		for _, g := range in.present {
			if i := int(g.GetIndex()); i < len(p.nodes) && in.avoid[g.GetNode()] == 0 && slots[g.GetNode()].wanted() && fits(slots[g.GetNode()], true) {
				take(i, slots[g.GetNode()])
			}
		}
	}
	for i, g := range in.spec.GetGuests() { // guests that the user placed
		if g.GetNode() == "" || p.nodes[i] != "" {
			continue
		}
		s := slots[g.GetNode()]
		if fits(s, over) && (!in.restart || in.avoid[g.GetNode()] == 0 && s.wanted()) {
			take(i, s)
			continue
		}
		if !in.restart {
			return placement{}, fmt.Errorf("guest %d cannot run on node %s as asked: %s", i, g.GetNode(), whyNot(in.spec, s))
		}
	}
	for i := range p.nodes {
		if p.nodes[i] != "" {
			continue
		}
		best := choose(in, order, uint32(i), func(s *slot) bool { return fits(s, false) })
		if best == nil && over {
			best = choose(in, order, uint32(i), func(s *slot) bool { return fits(s, true) })
		}
		if best == nil {
			return placement{}, unplaceable(in, order, i)
		}
		take(i, best)
	}
	return p, nil
}

// slotsOf says what each node has left for guests of the job.
func slotsOf(in placing) (byNode map[string]*slot, order []*slot) {
	byNode = map[string]*slot{}
	for _, n := range in.nodes {
		u := in.used[n.GetId()]
		s := &slot{node: n, cpus: int64(n.GetCpus()) - u.cpus, memory: int64(n.GetMemoryMib()) - u.memory}
		switch {
		case n.GetState() != vftv1.NodeState_NODE_STATE_ALIVE:
			s.refuse = "lost"
		case in.spec.GetImage() != "" && !slices.Contains(n.GetImages(), in.spec.GetImage()):
			s.refuse = "does not hold image " + in.spec.GetImage()
		case failing(n) && !in.restart:
			s.refuse = "is failing: " + n.GetHealth().GetReasons()[0].GetEvidence()
		case failing(n):
			s.last = lastFailing
		case n.GetDrained() != "" && !in.restart:
			s.refuse = "is being drained: " + n.GetDrained()
		case n.GetDrained() != "":
			s.last = lastDrained
		case n.GetHealth().GetState() == vftv1.HealthState_HEALTH_STATE_SUSPECT:
			s.last = lastSuspect
		}
		byNode[n.GetId()] = s
		order = append(order, s)
	}
	slices.SortFunc(order, func(a, b *slot) int { return strings.Compare(a.node.GetId(), b.node.GetId()) })
	return byNode, order
}

func (s *slot) take(spec *vftv1.JobSpec) {
	s.own++
	s.cpus -= int64(spec.GetCpus())
	s.memory -= int64(spec.GetMemoryMib())
}

// fits says whether a guest can go there, with crowded on more processors than
// there are.
func (s *slot) fits(spec *vftv1.JobSpec, crowded bool) bool {
	return s != nil && s.refuse == "" && s.memory >= int64(spec.GetMemoryMib()) && (crowded || s.cpus >= int64(spec.GetCpus()))
}

// wanted says that the node is neither being drained nor failing.
func (s *slot) wanted() bool { return s != nil && s.last < lastDrained }

// failing says that a node expects to fail, and why.
func failing(n *vftv1.Node) bool {
	return n.GetHealth().GetState() == vftv1.HealthState_HEALTH_STATE_FAILING && len(n.GetHealth().GetReasons()) > 0
}

// placeOne decides where a guest of a running job moves to: the node named, or
// the best. It must be able to go on there: the same accelerator, QEMU as new.
func placeOne(in placing, guest uint32, to string) (string, error) {
	slots, order := slotsOf(in)
	from := slots[in.present[guest].GetNode()]
	for _, g := range in.present {
		if s := slots[g.GetNode()]; s != nil && g.GetIndex() != guest {
			s.take(in.spec)
		}
	}
	for _, s := range order {
		switch {
		case s.refuse != "":
		case s == from:
			s.refuse = "it is there"
		case from != nil && s.node.GetAccelerator() != from.node.GetAccelerator():
			s.refuse = fmt.Sprintf("runs guests with %s, and this one runs with %s", s.node.GetAccelerator(), from.node.GetAccelerator())
		}
	}
	if to != "" {
		if s := slots[to]; !s.fits(in.spec, true) {
			return "", fmt.Errorf("guest %d cannot move to node %s: %s", guest, to, whyNot(in.spec, s))
		}
		return to, nil
	}
	best := choose(in, order, guest, func(s *slot) bool { return s.fits(in.spec, false) })
	if best == nil {
		best = choose(in, order, guest, func(s *slot) bool { return s.fits(in.spec, true) })
	}
	if best == nil {
		return "", unplaceable(in, order, int(guest))
	}
	return best.node.GetId(), nil
}

func choose(in placing, order []*slot, guest uint32, fits func(*slot) bool) *slot {
	domain := map[string]int{}
	for _, s := range order {
		domain[domainOf(s.node)] += s.own
	}
	var best *slot
	for _, s := range order {
		if fits(s) && (best == nil || cmp.Or(
			cmp.Compare(s.last, best.last),
			cmp.Compare(in.avoid[s.node.GetId()], in.avoid[best.node.GetId()]),
			cmp.Compare(s.own, best.own),
			cmp.Compare(domain[domainOf(s.node)], domain[domainOf(best.node)]),
			-compareBool(slices.Contains(in.holders[guest], s.node.GetId()), slices.Contains(in.holders[guest], best.node.GetId())),
			-cmp.Compare(s.cpus, best.cpus),
			-cmp.Compare(s.memory, best.memory),
		) < 0) {
			best = s
		}
	}
	return best
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// domainOf names a node's failure domain; a node without one is its own.
func domainOf(n *vftv1.Node) string {
	if d := n.GetFailureDomain(); d != "" {
		return d
	}
	return "node " + n.GetId()
}

func whyNot(spec *vftv1.JobSpec, s *slot) string {
	switch {
	case s == nil:
		return "no such node"
	case s.refuse != "":
		return s.refuse
	case s.memory < int64(spec.GetMemoryMib()):
		return fmt.Sprintf("%d of %d MiB free", max(s.memory, 0), s.node.GetMemoryMib())
	default:
		return fmt.Sprintf("%d of %d processors free", max(s.cpus, 0), s.node.GetCpus())
	}
}

func unplaceable(in placing, order []*slot, guest int) error {
	if len(order) == 0 {
		return fmt.Errorf("no node is known: start a sidecar on the nodes that shall take guests")
	}
	var why []string
	for _, s := range order {
		why = append(why, s.node.GetId()+": "+whyNot(in.spec, s))
	}
	hint := "add nodes, ask for less"
	if !in.restart && !in.spec.GetOversubscribe() {
		hint += ", or allow oversubscribing"
	}
	return fmt.Errorf("no node can take guest %d of %d, which needs %d processors and %d MiB (%s): %s",
		guest, len(in.spec.GetGuests()), in.spec.GetCpus(), in.spec.GetMemoryMib(), strings.Join(why, "; "), hint)
}
