package quiesce

import (
	"fmt"

	"github.com/mpirun-vft/vft/internal/cutcheck"
)

// The cut as a transition system for the search: the log, the leaders and
// what they are waiting for, the calls under way, participants, switches,
// links and guests. It says the same as docs/CUT.md and docs/NETWORK.md, with
// every choice that time, machines and wires have as a step of its own.

// Sizes of the state. A history that does not fit fails the test.
const (
	specNodes  = 3
	specGuests = 3
	specEpochs = 3 // 0 is none
	specTerms  = 3
	specQueue  = 7
)

// spec is a job, what may happen to it, and the rules that are broken on
// purpose.
type spec struct {
	place    []int // guest → node
	nodes    int
	epochs   uint8 // tried
	sends    uint8 // frames that guests send
	dups     uint8 // calls that come again
	expiries uint8 // holds that end by themselves
	deaths   uint8 // of sidecars
	changes  uint8 // of the leader
	restarts uint8 // of the job
	broken   mutation

	after specState // of the step that is looked at
}

// mutation is a set of rules that do not hold.
type mutation uint32

const (
	leaderReleasesEarly    mutation = 1 << iota // as soon as one node has cut
	nodeReleasesEarly                           // as soon as one of its guests is cut
	latePassesMark                              // frames behind a mark are delivered at once
	markOvertakes                               // a mark passes the frames before it
	drainNotProven                              // the leader does not compare the counts
	drainIgnoresMarks                           // a node has drained without its peers' marks
	drainIgnoresGuests                          // a node has drained though a guest has not taken its frames
	expiryDoesNotPoison                         // a hold that timed out goes on as if it held
	releaseNotByOrder                           // the leader does not ask how a node released
	channelStateForgotten                       // what a port holds does not get into the part
	oldEpochsAccepted                           // calls for older epochs are
	oldIncarnationAccepted                      // calls of older incarnations are
	stepsRepeat                                 // a cut that comes again is made again
	framesNotFenced                             // frames of older incarnations are delivered
	commitUnseen                                // the log commits whatever operation is under way
	abortBeforeLog                              // parts of a released epoch are given up before the log says so
)

type phase uint8

const (
	nothing phase = iota
	begun
	released
	restoring
)

type callKind uint8

const (
	callPrepare callKind = iota
	callHold
	callCut
	callRelease
	callAbort
	callParts // is not lost: the answer is what takes time
	callRestore
	callResume
	callKinds
)

func (k callKind) String() string {
	return [...]string{"Prepare", "Hold", "Cut", "Release", "Abort", "WaitParts", "Restore", "Resume"}[k]
}

var callsAgain = [...]string{"Prepare again", "Hold again", "Cut again", "Release again", "Abort again", "WaitParts again", "Restore again", "Resume again"}

type specState struct {
	phase                                            phase
	epoch                                            uint8 // of the operation
	next                                             uint8 // epoch
	committed                                        uint8 // last epoch
	incarnation                                      uint8
	from                                             uint8 // epoch that is restored
	term                                             uint8
	epochOf                                          [specEpochs]uint8 // incarnation of each epoch
	byOrder                                          [specEpochs]uint8 // nodes that released by order
	sentProof                                        [specEpochs][specGuests][specGuests]uint8
	gotProof                                         [specEpochs][specGuests][specGuests]uint8
	leaders                                          [specTerms]specLeader
	pending                                          [callKinds][specEpochs]uint8 // nodes that a call is on its way to
	done                                             [callKinds][specEpochs]uint8 // nodes that have had it
	parts                                            [specEpochs][specGuests]specPart
	world                                            specWorld
	sends, dups, expiries, deaths, changes, restarts uint8 // left
}

// specWorld is what calls act on.
type specWorld struct {
	nodes  [specNodes]specNode
	guests [specGuests]specGuest
	links  [specNodes][specNodes]specQ
}

type specLeader struct {
	busy     bool
	step     callKind
	epoch    uint8
	answered uint8 // nodes
}

type specNode struct {
	incarnation  uint8
	epoch        uint8
	state        State
	held         bool
	initial      bool
	broken       bool // a link ended during the hold
	netEpoch     uint8
	released     uint8
	mark, unmark [specNodes]uint8
	late         [specNodes]specQ
	sent, got    [specGuests][specGuests]uint8
}

type specGuest struct {
	stopped, paused, cut bool
	sent, seen           [specGuests]uint8
	inbox, held          specQ
}

type partState uint8

const (
	noPart partState = iota
	taken
	stored
)

type specPart struct {
	state      partState
	sent, seen [specGuests]uint8
	channel    specQ
}

// specM is a message on a link, packed: kind (0 frame, 1 mark, 2 unmark),
// incarnation, sender, receiver, number of the frame or epoch of the mark, and
// the mark that a late frame came behind. They have 2 bits each, number 4.
type specM uint16

func message(kind, incarnation, from, to, number uint8) specM {
	return specM(kind)<<12 | specM(incarnation)<<10 | specM(from)<<8 | specM(to)<<6 | specM(number)<<2
}

func (m specM) kind() uint8        { return uint8(m>>12) & 3 }
func (m specM) incarnation() uint8 { return uint8(m>>10) & 3 }
func (m specM) from() uint8        { return uint8(m>>8) & 3 }
func (m specM) to() uint8          { return uint8(m>>6) & 3 }
func (m specM) number() uint8      { return uint8(m>>2) & 15 }
func (m specM) behind() uint8      { return uint8(m) & 3 }

type specQ struct {
	n uint8
	m [specQueue]specM
}

func (q *specQ) push(m specM) {
	if q.n == specQueue {
		panic("the model's queue is too short")
	}
	q.m[q.n] = m
	q.n++
}

func (q *specQ) shift() specM {
	m := q.m[0]
	copy(q.m[:], q.m[1:q.n])
	q.n--
	q.m[q.n] = 0
	return m
}

func (q *specQ) pushFront(m specM) {
	q.push(m)
	copy(q.m[1:q.n], q.m[:q.n-1])
	q.m[0] = m
}

func (c *spec) initial() specState {
	s := specState{next: 1, incarnation: 1, sends: c.sends, dups: c.dups, expiries: c.expiries, deaths: c.deaths, changes: c.changes, restarts: c.restarts}
	for n := range c.nodes {
		s.world.nodes[n].incarnation = 1
	}
	return s
}

func (c *spec) is(m mutation) bool { return c.broken&m != 0 }
func (c *spec) all() uint8         { return 1<<c.nodes - 1 }

// specStep is one step: what happened and what it led to.
type specStep struct {
	what string
	a, b int
}

func (s specStep) String() string { return fmt.Sprintf("%s %d %d", s.what, s.a, s.b) }

// steps gives every state that can follow s. An error is a broken invariant.
func (c *spec) steps(s *specState, emit func(specStep, *specState, error)) {
	do := func(what string, a, b int, f func(*specState) error) {
		c.after = *s
		err := f(&c.after)
		emit(specStep{what, a, b}, &c.after, err)
	}
	for g := range c.place {
		c.guestSteps(s, g, do)
	}
	for n := range c.nodes {
		c.nodeSteps(s, n, do)
	}
	for k := range callKinds {
		for e := range specEpochs {
			for n := range c.nodes {
				bit := uint8(1) << n
				if s.pending[k][e]&bit != 0 {
					do(k.String(), e, n, func(s *specState) error {
						s.pending[k][e] &^= bit
						s.done[k][e] |= bit
						return c.call(s, k, uint8(e), n, false)
					})
				}
				if s.done[k][e]&bit != 0 && s.dups > 0 {
					do(callsAgain[k], e, n, func(s *specState) error {
						s.dups--
						return c.call(s, k, uint8(e), n, true)
					})
				}
			}
		}
	}
	for t := range specTerms {
		c.leaderSteps(s, t, do)
	}
	if s.changes > 0 {
		do("leader changes", int(s.term)+1, 0, func(s *specState) error {
			s.changes--
			s.term++
			return nil
		})
	}
}

type doer func(what string, a, b int, f func(*specState) error)

func (c *spec) guestSteps(s *specState, g int, do doer) {
	guest := &s.world.guests[g]
	node := &s.world.nodes[c.place[g]]
	if s.sends > 0 && !guest.stopped && !node.initial {
		for to := range c.place {
			if to != g {
				do("send", g, to, func(s *specState) error {
					s.sends--
					guest, n := &s.world.guests[g], c.place[g]
					guest.sent[to]++
					m := message(0, s.world.nodes[n].incarnation, uint8(g), uint8(to), guest.sent[to])
					if s.world.nodes[n].held {
						guest.held.push(m)
						return nil
					}
					c.forward(&s.world, m)
					return nil
				})
			}
		}
	}
	if guest.inbox.n > 0 && !guest.stopped && !guest.paused {
		do("take", g, 0, func(s *specState) error { return c.take(s, g) })
	}
	if node.state == Cutting && !guest.cut {
		if !guest.stopped {
			do("stop", g, 0, func(s *specState) error {
				s.world.guests[g].stopped = true
				return nil
			})
		} else {
			do("snapshot", g, 0, func(s *specState) error {
				c.snapshot(s, g)
				return nil
			})
		}
	}
}

// take gives the guest all that waits in its socket.
func (c *spec) take(s *specState, g int) error {
	guest, node := &s.world.guests[g], &s.world.nodes[c.place[g]]
	for guest.inbox.n > 0 {
		m := guest.inbox.shift()
		sent := uint64(m.number())
		if s.world.nodes[c.place[m.from()]].incarnation == m.incarnation() { // else the sender is of another incarnation
			sent = uint64(s.world.guests[m.from()].sent[g])
		}
		err := cutcheck.Deliver(cutcheck.Delivery{
			From: int(m.from()), To: g, Frame: uint64(m.incarnation()), At: uint64(node.incarnation),
			Number: uint64(m.number()), Sent: sent, Seen: uint64(guest.seen[m.from()]),
			Lossy: s.deaths != c.deaths || s.world.nodes[c.place[m.from()]].incarnation != node.incarnation,
		})
		if err != nil {
			return err
		}
		guest.seen[m.from()] = m.number()
		node.got[m.from()][g]++
	}
	return nil
}

// snapshot fixes the guest's part and lets it go on.
func (c *spec) snapshot(s *specState, g int) {
	guest, node := &s.world.guests[g], &s.world.nodes[c.place[g]]
	p := specPart{state: taken, sent: guest.sent, seen: guest.seen}
	if !c.is(channelStateForgotten) {
		p.channel = guest.held
	}
	s.parts[node.epoch][g] = p
	guest.stopped, guest.cut = false, true
	for other, n := range c.place {
		if n == c.place[g] && !s.world.guests[other].cut {
			return
		}
	}
	node.state = Cut
}

func (c *spec) forward(w *specWorld, m specM) {
	from, to := c.place[m.from()], c.place[m.to()]
	w.nodes[from].sent[m.from()][m.to()]++
	if from == to {
		w.guests[m.to()].inbox.push(m)
		return
	}
	w.links[from][to].push(m)
}

func (c *spec) nodeSteps(s *specState, n int, do doer) {
	node := &s.world.nodes[n]
	for peer := range c.nodes {
		if s.world.links[peer][n].n > 0 {
			do("arrive", peer, n, func(s *specState) error {
				c.receive(&s.world, n, peer, s.world.links[peer][n].shift())
				return nil
			})
		}
	}
	if node.state == Holding {
		if node.broken {
			do("link ended", n, 0, func(s *specState) error { c.poison(s, n); return nil })
		} else if c.drained(s, n) {
			do("drained", n, 0, func(s *specState) error {
				node := &s.world.nodes[n]
				node.state = Drained
				for from := range c.place {
					for to := range c.place {
						if c.place[from] == n {
							s.sentProof[node.epoch][from][to] = node.sent[from][to]
						}
						if c.place[to] == n {
							s.gotProof[node.epoch][from][to] = node.got[from][to]
						}
					}
				}
				return nil
			})
		}
	}
	if s.expiries > 0 && node.state >= Holding && node.state <= Cut {
		do("hold times out", n, 0, func(s *specState) error {
			s.expiries--
			if c.is(expiryDoesNotPoison) {
				c.release(&s.world, n, s.world.nodes[n].epoch)
				return nil
			}
			c.poison(s, n)
			return nil
		})
	}
	if s.deaths > 0 {
		do("sidecar dies", n, 0, func(s *specState) error {
			s.deaths--
			c.die(s, n)
			return nil
		})
	}
}

func (c *spec) drained(s *specState, n int) bool {
	node := &s.world.nodes[n]
	if !c.is(drainIgnoresMarks) {
		for peer := range c.nodes {
			if peer != n && node.mark[peer] != node.epoch {
				return false
			}
		}
	}
	if !c.is(drainIgnoresGuests) {
		for g, at := range c.place {
			if at == n && s.world.guests[g].inbox.n > 0 {
				return false
			}
		}
	}
	return true
}

// free is the epoch up to which frames behind a peer's mark may pass.
func (n *specNode) free(peer int) uint8 {
	if n.held {
		return n.released
	}
	return max(n.released, n.unmark[peer])
}

func (c *spec) receive(w *specWorld, n, peer int, m specM) {
	node := &w.nodes[n]
	if m.incarnation() != node.incarnation && !c.is(framesNotFenced) {
		return
	}
	switch m.kind() {
	case 1:
		if m.number() > node.released {
			node.mark[peer] = max(node.mark[peer], m.number())
		}
	case 2:
		node.unmark[peer] = max(node.unmark[peer], m.number())
		c.settle(w, n)
	default:
		if node.initial || node.mark[peer] > node.free(peer) && !c.is(latePassesMark) {
			node.late[peer].push(m | specM(node.mark[peer]))
			return
		}
		w.guests[m.to()].inbox.push(m)
	}
}

func (c *spec) settle(w *specWorld, n int) {
	node := &w.nodes[n]
	if node.initial {
		return
	}
	for peer := range c.nodes {
		for node.late[peer].n > 0 && node.late[peer].m[0].behind() <= node.free(peer) {
			m := node.late[peer].shift()
			w.guests[m.to()].inbox.push(m &^ 3)
		}
	}
}

// hold holds the network; false: it cannot be.
func (c *spec) hold(w *specWorld, n int, epoch uint8) bool {
	node := &w.nodes[n]
	if node.initial || epoch <= node.released || node.held && epoch < node.netEpoch {
		return false
	}
	for peer := range c.nodes {
		if node.unmark[peer] >= epoch {
			return false
		}
	}
	if node.held && epoch > node.netEpoch {
		c.release(w, n, node.netEpoch)
	}
	node.held, node.netEpoch, node.broken = true, epoch, false
	for peer := range c.nodes {
		if peer != n {
			m := message(1, node.incarnation, 0, 0, epoch)
			if c.is(markOvertakes) {
				w.links[n][peer].pushFront(m)
			} else {
				w.links[n][peer].push(m)
			}
		}
	}
	return true
}

func (c *spec) release(w *specWorld, n int, epoch uint8) {
	node := &w.nodes[n]
	if node.held && epoch < node.netEpoch {
		return
	}
	node.released = max(node.released, epoch)
	if node.held && !node.initial {
		for peer := range c.nodes {
			if peer != n {
				w.links[n][peer].push(message(2, node.incarnation, 0, 0, node.released))
			}
		}
	}
	node.held, node.initial = false, false
	for g, at := range c.place {
		if at == n {
			guest := &w.guests[g]
			guest.paused = false
			for guest.held.n > 0 {
				c.forward(w, guest.held.shift())
			}
		}
	}
	c.settle(w, n)
}

// reset makes a new participant.
func (c *spec) reset(s *specState, n int) {
	node := &s.world.nodes[n]
	node.epoch, node.state = 0, Idle
	for g, at := range c.place {
		if at == n {
			guest := &s.world.guests[g]
			guest.stopped, guest.paused, guest.cut = false, false, false
			guest.held, guest.inbox = specQ{}, specQ{}
			for e := range specEpochs {
				if s.parts[e][g].state == taken {
					s.parts[e][g] = specPart{}
				}
			}
		}
	}
}

// die ends a sidecar and starts the next: it takes over the guests, which
// have run on, opens the network anew, and its links are new ones.
func (c *spec) die(s *specState, n int) {
	c.reset(s, n)
	s.world.nodes[n] = specNode{incarnation: s.world.nodes[n].incarnation, initial: s.world.nodes[n].initial, held: s.world.nodes[n].initial}
	for peer := range c.nodes {
		if peer == n {
			continue
		}
		s.world.links[n][peer], s.world.links[peer][n] = specQ{}, specQ{}
		node := &s.world.nodes[peer]
		node.broken = node.held && !node.initial
		if !node.held {
			node.unmark[n] = max(node.unmark[n], node.mark[n])
		}
		for from, at := range c.place {
			for to, where := range c.place {
				if at == n && where == peer {
					node.got[from][to] = 0
				}
				if at == peer && where == n {
					node.sent[from][to] = 0
				}
			}
		}
		c.settle(&s.world, peer)
	}
}

// poison ends an epoch that can never commit and undoes what it did.
func (c *spec) poison(s *specState, n int) {
	node := &s.world.nodes[n]
	if node.state == Released || node.state == Poisoned {
		return
	}
	began := node.state
	node.state = Poisoned
	if began == Idle {
		return
	}
	c.release(&s.world, n, node.epoch)
	c.letGo(s, n)
}

// letGo gives up the snapshots of the node's epoch.
func (c *spec) letGo(s *specState, n int) {
	for g, at := range c.place {
		if at == n {
			guest := &s.world.guests[g]
			guest.stopped, guest.cut = false, false
			s.parts[s.world.nodes[n].epoch][g] = specPart{}
		}
	}
}

// call is a call that reaches a node.
func (c *spec) call(s *specState, k callKind, epoch uint8, n int, again bool) error {
	before := s.world
	node := &s.world.nodes[n]
	harmless := func(why string) error {
		if before == s.world {
			return nil
		}
		return cutcheck.Harmless(fmt.Sprintf("%s(%d) at node %d, %s,", k, epoch, n, why), before, s.world)
	}
	if k == callRestore || k == callResume {
		late := epoch < node.incarnation
		c.restore(s, k, epoch, n)
		if late {
			return harmless("of an older incarnation")
		}
		return nil
	}
	late := s.epochOf[epoch] != node.incarnation
	if late && !c.is(oldIncarnationAccepted) {
		return nil
	}
	if epoch < node.epoch && !c.is(oldEpochsAccepted) {
		return nil
	}
	stale := epoch < node.epoch
	was := node.state
	repeated := again && epoch == node.epoch && was >= [...]State{Preparing, Holding, Cutting, Released}[min(k, callRelease)] && k != callAbort
	if epoch != node.epoch {
		c.poison(s, n)
		node.epoch, node.state = epoch, Idle
		for g, at := range c.place {
			if at == n {
				s.world.guests[g].cut = false
			}
		}
	}
	if err := c.dispatch(s, k, n); err != nil {
		return err
	}
	if stale || late {
		return harmless("late")
	}
	if repeated {
		return harmless("again")
	}
	return nil
}

func (c *spec) dispatch(s *specState, k callKind, n int) error {
	node := &s.world.nodes[n]
	switch {
	case k == callPrepare && node.state == Idle:
		node.state = Preparing
	case k == callHold && node.state == Preparing:
		node.state = Holding
		if !c.hold(&s.world, n, node.epoch) {
			c.poison(s, n)
		}
	case k == callCut && (node.state == Drained || node.state == Cut && c.is(stepsRepeat)):
		node.state = Cutting
		for g, at := range c.place {
			if at == n {
				s.world.guests[g].paused, s.world.guests[g].cut = true, false
			}
		}
	case k == callRelease && (node.state == Cut || node.state == Cutting && c.is(nodeReleasesEarly) && c.anyCut(s, n)):
		s.byOrder[node.epoch] |= 1 << n
		if node.state == Cut {
			node.state = Released
		}
		c.release(&s.world, n, node.epoch)
	case k == callAbort:
		if s.committed == node.epoch {
			return fmt.Errorf("I1: node %d gives up its part of epoch %d, which is committed", n, node.epoch)
		}
		if node.state == Released {
			c.letGo(s, n)
		}
		c.poison(s, n)
	}
	return nil
}

func (c *spec) anyCut(s *specState, n int) bool {
	for g, at := range c.place {
		if at == n && s.world.guests[g].cut {
			return true
		}
	}
	return false
}

// restore makes the node's side of an incarnation, or lets it run.
func (c *spec) restore(s *specState, k callKind, incarnation uint8, n int) {
	node := &s.world.nodes[n]
	if k == callResume {
		if incarnation == node.incarnation {
			c.release(&s.world, n, 0)
		}
		return
	}
	if incarnation <= node.incarnation {
		return
	}
	c.reset(s, n)
	*node = specNode{incarnation: incarnation, held: true, initial: true}
	for g, at := range c.place {
		if at == n {
			p := s.parts[s.from][g]
			guest := &s.world.guests[g]
			*guest = specGuest{sent: p.sent, seen: p.seen, held: p.channel}
			for i := range guest.held.n {
				m := guest.held.m[i]
				guest.held.m[i] = message(0, incarnation, m.from(), m.to(), m.number())
			}
		}
	}
}
