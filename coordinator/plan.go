package coordinator

import (
	"cmp"
	"slices"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// taskKey names what a keeper can be doing at most once.
type taskKey struct {
	epoch uint64
	level string
	guest uint32
}

// task is something that a node shall do to make a part safe at a level; with
// remove, to remove what is left of an epoch at all levels outside.
type task struct {
	taskKey
	node    string   // for whole copies: that gets one
	targets []string // for shards: node of each, by number
	remove  bool
}

type epochLevel struct {
	epoch uint64
	level string
}

// planning is everything that a keeper's tasks are decided from.
type planning struct {
	job   *vftv1.Job
	nodes []*vftv1.Node
	alive func(string) bool
	tries map[epochLevel]int // failures
	avoid map[string]int     // failures of a node
}

// tasks returns what is to be done, in order: epochs that failed less often
// first, of these the newest, and for each the levels as the job names them.
// While guests are being restored nothing is: they come first, and leave
// copies on their new nodes. Removals come last.
func (p planning) tasks() []task {
	if p.job.GetOperation().GetKind() == vftv1.OperationKind_OPERATION_KIND_RESTART {
		return nil
	}
	type pending struct {
		epoch *vftv1.Epoch
		level *vftv1.EpochLevel
	}
	var todo []pending
	for _, e := range slices.Backward(p.job.GetEpochs()) {
		if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED || e.GetDamaged() != "" {
			continue
		}
		for _, l := range e.GetLevels() {
			if l.GetState() != vftv1.LevelState_LEVEL_STATE_SAFE {
				todo = append(todo, pending{e, l})
			}
		}
	}
	slices.SortStableFunc(todo, func(a, b pending) int {
		return cmp.Compare(p.tries[epochLevel{a.epoch.GetNumber(), a.level.GetLevel()}], p.tries[epochLevel{b.epoch.GetNumber(), b.level.GetLevel()}])
	})
	var out []task
	for _, x := range todo {
		if fsm.WholeCopies(x.level) {
			out = append(out, p.copies(x.epoch, x.level)...)
		} else {
			out = append(out, p.derived(x.epoch, x.level)...)
		}
	}
	return append(out, p.removals()...)
}

// derived returns what is to be done for a level that is made from whole
// copies: shards, or something outside.
func (p planning) derived(e *vftv1.Epoch, l *vftv1.EpochLevel) []task {
	var out []task
	for _, part := range e.GetParts() {
		if fsm.SafeAt(part, l, p.alive) {
			continue
		}
		t := task{taskKey: taskKey{e.GetNumber(), l.GetLevel(), part.GetGuest()}}
		for _, n := range part.GetNodes() { // the first is the one that took it
			if p.alive(n) && (t.node == "" || p.avoid[n] < p.avoid[t.node]) {
				t.node = n
			}
		}
		if !l.GetOutside() {
			t.targets = shardTargets(p.nodes, fsm.FindPartLevel(part, l.GetLevel()).GetNodes(), int(l.GetNodes()), p.load())
		}
		if t.node == "" || !l.GetOutside() && t.targets == nil {
			continue // a copy must be made first, or not enough nodes are alive
		}
		out = append(out, t)
	}
	return out
}

// removals returns what is left outside the nodes of epochs that are no more.
func (p planning) removals() []task {
	var alive []string
	for _, n := range p.nodes {
		if p.alive(n.GetId()) {
			alive = append(alive, n.GetId())
		}
	}
	var out []task
	for _, e := range p.job.GetEpochs() {
		if e.GetLeftovers() && len(alive) > 0 {
			node := alive[p.tries[epochLevel{e.GetNumber(), ""}]%len(alive)]
			out = append(out, task{taskKey: taskKey{epoch: e.GetNumber()}, node: node, remove: true})
		}
	}
	return out
}

// copies returns what is to be done for a level of whole copies.
func (p planning) copies(e *vftv1.Epoch, l *vftv1.EpochLevel) []task {
	var parts []held
	for _, part := range e.GetParts() {
		if fsm.SafeAt(part, l, p.alive) || !p.readable(e, part) {
			continue
		}
		h := held{guest: part.GetGuest(), nodes: slices.DeleteFunc(slices.Clone(part.GetNodes()), func(n string) bool { return !p.alive(n) })}
		if len(h.nodes) == 0 && l.GetLevel() != fsm.LevelLocal {
			continue // the first copy is made for level local
		}
		for _, g := range p.job.GetGuests() {
			if g.GetIndex() == h.guest {
				h.home = g.GetNode()
			}
		}
		parts = append(parts, h)
	}
	found := candidates(p.nodes, parts, int(l.GetNodes()), p.load(), 0)
	var out []task
	for _, h := range parts {
		c := found[h.guest]
		if len(c) == 0 {
			continue // no other node is alive
		}
		slices.SortStableFunc(c, func(a, b *vftv1.Node) int { return cmp.Compare(p.avoid[a.GetId()], p.avoid[b.GetId()]) })
		out = append(out, task{taskKey: taskKey{e.GetNumber(), l.GetLevel(), h.guest}, node: c[0].GetId()})
	}
	return out
}

func (p planning) readable(e *vftv1.Epoch, part *vftv1.Part) bool {
	return slices.ContainsFunc(e.GetLevels(), func(l *vftv1.EpochLevel) bool { return fsm.Readable(part, l, p.alive) })
}

// load is of how many of the job's parts each node keeps something.
func (p planning) load() map[string]int {
	load := map[string]int{}
	for _, e := range p.job.GetEpochs() {
		for _, part := range e.GetParts() {
			for _, n := range part.GetNodes() {
				load[n]++
			}
			for _, l := range part.GetLevels() {
				for _, n := range l.GetNodes() {
					load[n]++
				}
			}
		}
	}
	return load
}
