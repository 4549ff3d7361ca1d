package overlay

import (
	"fmt"
	"slices"
)

// placesNow returns the members as they were given last.
func (n *Network) placesNow() []Member {
	n.places.RLock()
	defer n.places.RUnlock()
	return slices.Clone(n.wanted)
}

// Expect makes the link to a node that may soon have a guest of the network,
// so that the first frames for it do not wait for a connection. The link is
// kept until Settle or Close.
func (n *Network) Expect(node, address string) error {
	s := n.sw
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := n.spare[node]
	if node == s.node || known || slices.ContainsFunc(n.peers, func(p peer) bool { return p.node == node }) {
		return nil
	}
	if s.closed || n.closed.Load() || s.networks[n.id.Job] != n {
		return ErrClosed
	}
	p, err := s.meet(n, node, address)
	if err != nil {
		return fmt.Errorf("network %s: %w", n.id, err)
	}
	n.spare[node] = p
	return nil
}

// undo is what a guest's move would have to be taken back with.
type undo struct {
	index  int
	before member // its port, if it was here, still has what is held
	tx     map[*Port]*pair
	tables map[*pairTable]map[uint32]*pair
}

// discard closes the ports of guests that left, and forgets what is held there.
func discard(moved []undo) {
	for _, u := range moved {
		if p := u.before.port; p != nil {
			p.attach.Lock()
			p.stop()
			p.attach.Unlock()
			p.forget()
		}
	}
}

// Rehome changes the nodes of guests of an open network: all its members, as
// they are from now on. A guest that came here gets a port, held if the network
// is. Pairs with a guest that moved are counted anew, at both ends.
//
// Settle makes it final. Until then it can be taken back by naming the places of
// before: port, held frames and counts are then as they were.
//
// Frames are neither lost nor doubled if all nodes do this while they hold the
// same epoch, and none releases before all have done it. On a node that does
// not hold, frames on their way to or from the guest's former place are lost;
// no count suffers if the node that it comes to was the first. Doing it again
// changes nothing.
func (n *Network) Rehome(members []Member) error {
	s := n.sw
	s.mu.Lock()
	var left []undo
	var err error
	if !slices.Equal(members, n.wanted) {
		left, err = n.rehome(members)
	} else if n.closed.Load() {
		err = ErrClosed
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("members of network %s: %w", n.id, err)
	}
	discard(left)
	return nil
}

// Settle makes the last Rehome final: the ports of guests that left are closed,
// and what is held there is forgotten (DrainPort gave it to whoever moved the
// guest), as are links that were expected to be needed. It may be repeated.
func (n *Network) Settle() {
	s := n.sw
	s.mu.Lock()
	final := n.undo
	n.undo = nil
	if s.networks[n.id.Job] == n {
		for _, p := range n.spare {
			s.part(p)
		}
		clear(n.spare)
	}
	s.mu.Unlock()
	discard(final)
}

// rehome is Rehome with the switch's mu held. It returns what cannot be taken
// back any more.
func (n *Network) rehome(members []Member) (final []undo, err error) {
	if len(members) != len(n.members) {
		return nil, fmt.Errorf("%d guests, it has %d", len(members), len(n.members))
	}
	for i, m := range members {
		if m.Guest != n.members[i].guest {
			return nil, fmt.Errorf("guest %d in the place of guest %d", m.Guest, n.members[i].guest)
		}
	}
	if n.closed.Load() || n.sw.networks[n.id.Job] != n {
		return nil, ErrClosed
	}
	peers, spare, err := n.peersFor(members)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	// Nothing is forwarded while places change.
	all := n.localPorts()
	for _, p := range all {
		p.mu.Lock()
	}
	n.places.Lock()
	n.setPeers(peers)
	n.spare = spare
	past := n.undo
	n.undo = nil
	for i, m := range members {
		now := &n.members[i]
		if m.Node != now.node {
			u := undo{index: i, before: *now}
			u.tx, u.tables = n.recount(i, all)
			*now = member{guest: now.guest, mac: now.mac, node: m.Node}
			if k := slices.IndexFunc(past, func(p undo) bool { return p.index == i && p.before.node == m.Node }); k >= 0 {
				now.port = past[k].before.port
				past[k].restore(i)
				past = slices.Delete(past, k, k+1)
				final = append(final, u)
			} else {
				if m.Node == n.sw.node {
					now.port = newPort(n, m.Guest, i)
					now.port.holding = true
					now.port.out.setSuspended(n.suspended)
				}
				n.undo = append(n.undo, u)
			}
		}
		now.link, now.handle = peers[m.Node].link, peers[m.Node].handle
	}
	n.wanted = slices.Clone(members)
	n.places.Unlock()
	for _, p := range all {
		p.mu.Unlock()
	}
	if !n.held { // it let go by itself meanwhile
		n.ports(func(p *Port) { p.out.setPaused(false) })
	}
	n.restart()
	return append(final, past...), nil
}

// setPeers makes peers those that the network exchanges frames with. Called
// with the switch's mu, mu and places held.
func (n *Network) setPeers(peers map[string]peer) {
	old := n.peers
	n.peers = nil
	for _, p := range peers {
		n.peers = append(n.peers, p)
		if slices.ContainsFunc(old, func(o peer) bool { return o.node == p.node }) {
			continue
		}
		in := n.inbound[p.node]
		if in == nil {
			in = &inbound{network: n, node: p.node}
			n.inbound[p.node] = in
		}
		n.sw.joined(in)
	}
}

// joined begins the traffic that comes from a node which became a peer. Called
// with mu held.
func (s *Switch) joined(in *inbound) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.counts, in.markCounts = nil, nil
	if st := s.inStates[in.node]; st != nil {
		in.former = st.link
	}
}

// recount begins the counts of the pairs of a guest that moves anew and returns
// the old ones. Called with the ports' mu and places held.
func (n *Network) recount(index int, ports []*Port) (map[*Port]*pair, map[*pairTable]map[uint32]*pair) {
	tx, tables := map[*Port]*pair{}, map[*pairTable]map[uint32]*pair{}
	for _, p := range ports {
		tx[p], p.tx[index] = p.tx[index], nil
	}
	for _, in := range n.inbound {
		in.mu.Lock()
		for _, t := range []*pairTable{in.counts, in.markCounts} {
			if t != nil && tables[t] == nil {
				tables[t] = t.forget(n.members[index].guest)
			}
		}
		in.mu.Unlock()
	}
	return tx, tables
}

// restore takes the old counts back. Called as recount is.
func (u undo) restore(index int) {
	for p, counts := range u.tx {
		p.tx[index] = counts
	}
	for t, pairs := range u.tables {
		t.restore(pairs)
	}
}

// peersFor returns the peers that members need, with links, and those that
// they do not need, or not any more. Called with the switch's mu held.
func (n *Network) peersFor(members []Member) (peers, spare map[string]peer, err error) {
	have := map[string]peer{}
	for _, p := range n.peers {
		have[p.node] = p
	}
	for node, p := range n.spare {
		have[node] = p
	}
	peers = map[string]peer{}
	var made []peer
	for _, m := range members {
		if _, ok := peers[m.Node]; ok || m.Node == n.sw.node {
			continue
		}
		p, ok := have[m.Node]
		if !ok {
			if p, err = n.sw.meet(n, m.Node, m.Address); err != nil {
				for _, p := range made {
					n.sw.part(p)
				}
				return nil, nil, err
			}
			made = append(made, p)
		}
		peers[m.Node] = p
	}
	spare = map[string]peer{}
	for node, p := range have {
		if _, ok := peers[node]; !ok {
			spare[node] = p
		}
	}
	return peers, spare, nil
}
