package quiesce

import (
	"fmt"
	"math/bits"

	"github.com/mpirun-vft/vft/internal/cutcheck"
)

var (
	answersTo = [...]string{"answer to Prepare", "answer to Hold", "answer to Cut", "answer to Release", "", "answer to WaitParts", "answer to Restore", "answer to Resume"}
	after     = [...]string{"all prepared", "all drained", "all cut", "all released", "", "all stored", "all restored", "all resumed"}
	givesUpAt = [...]string{"gives up at Prepare", "gives up at Hold", "gives up at Cut", "gives up at Release", "", "gives up at WaitParts", "", ""}
)

// leaderSteps is the coordinator of one term. One that was deposed goes on
// with what it was doing until it next writes to the log.
func (c *spec) leaderSteps(s *specState, t int, do doer) {
	l := &s.leaders[t]
	leads := int(s.term) == t
	if !l.busy {
		if leads {
			c.idleSteps(s, t, do)
		}
		return
	}
	for n := range c.nodes {
		if l.answered&(1<<n) == 0 && c.answers(s, l, n) {
			do(answersTo[l.step], n, t, func(s *specState) error {
				l := &s.leaders[t]
				l.answered |= 1 << n
				if l.step == callParts {
					for g, at := range c.place {
						if at == n {
							s.parts[l.epoch][g].state = stored
						}
					}
				}
				return nil
			})
		}
	}
	early := c.is(leaderReleasesEarly) && l.step == callCut && l.answered != 0
	if l.answered == c.all() || early {
		do(after[l.step], t, 0, func(s *specState) error { return c.advance(s, t) })
	}
	if l.step != callRestore && l.step != callResume { // those go on until they succeed
		do(givesUpAt[l.step], t, 0, func(s *specState) error {
			c.giveUp(s, t)
			return nil
		})
	}
}

// idleSteps is what a leader does that does nothing yet.
func (c *spec) idleSteps(s *specState, t int, do doer) {
	switch s.phase {
	case nothing:
		if s.next <= c.epochs {
			do("begin epoch", int(s.next), t, func(s *specState) error {
				s.phase, s.epoch = begun, s.next
				s.epochOf[s.next] = s.incarnation
				s.next++
				c.ask(s, t, callPrepare, s.epoch)
				return nil
			})
		}
	case begun: // by an earlier leader
		do("take over, abort epoch", int(s.epoch), t, func(s *specState) error {
			s.pending[callAbort][s.epoch] |= c.all()
			s.phase = nothing
			return nil
		})
	case released:
		do("take over, gather epoch", int(s.epoch), t, func(s *specState) error {
			c.wait(s, t, callParts, s.epoch)
			return nil
		})
	case restoring:
		do("take over, restore", int(s.incarnation), t, func(s *specState) error {
			c.ask(s, t, callRestore, s.incarnation)
			return nil
		})
	}
	if s.restarts > 0 && s.phase != restoring {
		do("restart", t, 0, func(s *specState) error {
			s.restarts--
			s.incarnation++
			s.phase, s.from = restoring, s.committed
			c.ask(s, t, callRestore, s.incarnation)
			return nil
		})
	}
}

func (c *spec) wait(s *specState, t int, step callKind, epoch uint8) {
	s.leaders[t] = specLeader{busy: true, step: step, epoch: epoch}
}

// ask calls all nodes and waits.
func (c *spec) ask(s *specState, t int, step callKind, epoch uint8) {
	c.wait(s, t, step, epoch)
	s.pending[step][epoch] |= c.all() &^ s.done[step][epoch]
}

// answers reports whether a node has answered a leader's call well.
func (c *spec) answers(s *specState, l *specLeader, n int) bool {
	node := &s.world.nodes[n]
	switch l.step {
	case callRestore:
		return node.incarnation == l.epoch
	case callResume:
		return node.incarnation == l.epoch && !node.initial
	case callParts:
		for g, at := range c.place {
			if at == n && s.parts[l.epoch][g].state == noPart {
				return false
			}
		}
		return true
	}
	if node.epoch != l.epoch || s.epochOf[l.epoch] != node.incarnation {
		return false
	}
	switch l.step {
	case callPrepare:
		return node.state >= Preparing && node.state != Poisoned
	case callHold:
		return node.state >= Drained && node.state != Poisoned
	case callCut:
		return node.state == Cut || node.state == Released
	default: // Release
		return node.state == Released || node.state == Poisoned && c.is(releaseNotByOrder) || s.byOrder[l.epoch]&(1<<n) != 0 && c.is(nodeReleasesEarly)
	}
}

// advance is what a leader does when all have answered.
func (c *spec) advance(s *specState, t int) error {
	l := s.leaders[t]
	leads := int(s.term) == t
	switch l.step {
	case callPrepare:
		c.ask(s, t, callHold, l.epoch)
	case callHold:
		for from := range c.place {
			for to := range c.place {
				sent, got := s.sentProof[l.epoch][from][to], s.gotProof[l.epoch][from][to]
				if sent == got || c.is(drainNotProven) {
					continue
				}
				c.giveUp(s, t)
				if s.deaths == c.deaths { // nobody has lost anything
					return fmt.Errorf("epoch %d is drained, but of %d frames from %d to %d came %d", l.epoch, sent, from, to, got)
				}
				return nil
			}
		}
		c.ask(s, t, callCut, l.epoch)
	case callCut:
		c.ask(s, t, callRelease, l.epoch)
	case callRelease:
		s.leaders[t] = specLeader{}
		if leads && s.phase == begun && s.epoch == l.epoch {
			s.phase = released
			c.wait(s, t, callParts, l.epoch)
		}
	case callParts:
		s.leaders[t] = specLeader{}
		if c.is(commitUnseen) || leads && s.phase == released && s.epoch == l.epoch {
			return c.commit(s, l.epoch)
		}
	case callRestore:
		if !leads {
			s.leaders[t] = specLeader{}
			return nil
		}
		c.ask(s, t, callResume, l.epoch)
	default: // Resume
		s.leaders[t] = specLeader{}
		if leads && s.phase == restoring && s.incarnation == l.epoch {
			s.phase = nothing
		}
	}
	return nil
}

// giveUp is a leader whose call failed or took too long.
func (c *spec) giveUp(s *specState, t int) {
	l := s.leaders[t]
	s.leaders[t] = specLeader{}
	leads := int(s.term) == t && s.epoch == l.epoch && (s.phase == begun || s.phase == released)
	if l.step != callParts || leads || c.is(abortBeforeLog) {
		s.pending[callAbort][l.epoch] |= c.all()
	}
	if leads {
		s.phase = nothing
	}
}

func (c *spec) commit(s *specState, epoch uint8) error {
	e := cutcheck.Epoch{Number: uint64(epoch), Incarnation: uint64(s.epochOf[epoch])}
	for n := range c.nodes {
		e.ByOrder = append(e.ByOrder, s.byOrder[epoch]&(1<<n) != 0)
	}
	for g := range c.place {
		p := &s.parts[epoch][g]
		e.Durable = append(e.Durable, p.state == stored)
		guest := cutcheck.Guest{Channel: make([]uint64, len(c.place))}
		for to := range c.place {
			guest.Sent = append(guest.Sent, uint64(p.sent[to]))
			guest.Seen = append(guest.Seen, uint64(p.seen[to]))
		}
		for _, m := range p.channel.m[:p.channel.n] {
			guest.Channel[m.to()]++
		}
		e.Guests = append(e.Guests, guest)
	}
	if err := cutcheck.Commit(uint64(s.committed), uint64(s.incarnation), e); err != nil {
		return err
	}
	if s.deaths == c.deaths {
		if err := cutcheck.Whole(e.Guests); err != nil {
			return fmt.Errorf("epoch %d: %w", epoch, err)
		}
	}
	s.committed, s.phase = epoch, nothing
	return nil
}

// settled checks a state that nothing follows: the job goes on (I7).
func (c *spec) settled(s *specState) error {
	for g := range c.place {
		guest := &s.world.guests[g]
		if guest.stopped || guest.paused || guest.held.n > 0 || guest.inbox.n > 0 {
			return fmt.Errorf("I7: in the end guest %d is left with %+v", g, *guest)
		}
	}
	for n := range c.nodes {
		node := &s.world.nodes[n]
		late := 0
		for peer := range c.nodes {
			late += int(node.late[peer].n)
		}
		if node.held || late > 0 {
			return fmt.Errorf("I7: in the end node %d is held: %t, %d frames wait behind a mark", n, node.held, late)
		}
	}
	if s.phase != nothing {
		return fmt.Errorf("I7: in the end operation %d of %d nodes is under way", s.phase, bits.OnesCount8(c.all()))
	}
	return nil
}
