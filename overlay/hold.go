package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

const (
	drainPoll = 100 * time.Microsecond // first wait between two looks
	drainMax  = 2 * time.Millisecond
)

// Hold stops forwarding frames of local guests, which wait at their ports
// from now on, and marks every link to a node with members of the network,
// behind all frames forwarded. It does not wait. The network is held until
// Release. A hold of a later epoch releases an earlier one.
func (n *Network) Hold(_ context.Context, epoch uint64) error {
	if err := n.hold(epoch); err != nil {
		return fmt.Errorf("hold %s at epoch %d: %w", n.id, epoch, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (n *Network) hold(epoch uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed.Load():
		return ErrClosed
	case n.suspended:
		return ErrSuspended
	case n.initial:
		return errors.New("not released since it was opened")
	case epoch <= n.released || n.held && epoch < n.epoch:
		return ErrStale
	}
	for _, p := range n.peers {
		in := n.from(p.node)
		in.mu.Lock()
		past := in.unmark >= epoch
		in.mu.Unlock()
		if past {
			return fmt.Errorf("%w: node %s released it or was lost", ErrStale, in.node)
		}
	}
	if n.held && epoch > n.epoch {
		n.release(n.epoch)
	}
	if !n.held {
		n.held, n.epoch, n.broken = true, epoch, nil
		clear(n.marks)
		n.ports((*Port).hold)
		for _, in := range n.froms() {
			in.settle()
		}
		for _, p := range n.peers {
			n.marks[p.node] = p.link.mark(messageMark, p.handle, epoch)
		}
	}
	return nil
}

// Drained waits until no frame of the network is on its way to a local
// guest, and returns this node's counts. It fails if a link broke since the
// hold began or the hold ended.
func (n *Network) Drained(ctx context.Context, epoch uint64) ([]*vftv1.PairCount, error) {
	for wait := drainPoll; ; wait = min(2*wait, drainMax) {
		counts, missing, err := n.drained(epoch)
		if err != nil {
			return nil, fmt.Errorf("drain %s at epoch %d: %w", n.id, epoch, err)
		}
		if missing == "" {
			return counts, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, fmt.Errorf("drain %s at epoch %d: wait for %s: %w", n.id, epoch, missing, err)
		}
	}
}

// drained is one look; missing says what is not yet so.
func (n *Network) drained(epoch uint64) (counts []*vftv1.PairCount, missing string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed.Load():
		return nil, "", ErrClosed
	case n.suspended:
		return nil, "", ErrSuspended
	case !n.held || n.initial || n.epoch != epoch:
		return nil, "", ErrNotHeld
	case n.broken != nil:
		return nil, "", n.broken
	}
	for _, p := range n.peers {
		if p.link.current() != n.marks[p.node] {
			return nil, "", fmt.Errorf("%w: to node %s since the hold began", ErrLinkBroken, p.node)
		}
	}
	for _, p := range n.peers {
		if came, err := n.from(p.node).closed(epoch); err != nil {
			return nil, "", err
		} else if !came {
			return nil, "mark of node " + p.node, nil
		}
	}
	missing, err = n.undelivered()
	if missing != "" || err != nil {
		return nil, missing, err
	}
	for _, p := range n.peers {
		counts = append(counts, n.from(p.node).report()...)
	}
	n.ports(func(p *Port) { counts = append(counts, p.sent(n.marks)...) })
	slices.SortFunc(counts, func(a, b *vftv1.PairCount) int {
		return cmp.Or(cmp.Compare(a.GetSource(), b.GetSource()), cmp.Compare(a.GetDestination(), b.GetDestination()))
	})
	return counts, "", nil
}

// undelivered names a local guest that has not taken all its frames.
func (n *Network) undelivered() (string, error) {
	for _, p := range n.localPorts() {
		if empty, err := p.out.drained(); err != nil {
			return "", err
		} else if !empty {
			return fmt.Sprintf("guest %d to take its frames", p.guest), nil
		}
	}
	return "", nil
}

// sent returns the counts of the pairs that begin at the port. Pairs that
// had no traffic since their link was made are left out.
func (p *Port) sent(marks map[string]uint64) []*vftv1.PairCount {
	p.mu.Lock()
	defer p.mu.Unlock()
	var counts []*vftv1.PairCount
	for i, c := range p.tx {
		if c == nil {
			continue
		}
		m := &p.network.members[i]
		if m.link != nil {
			m.link.mu.Lock()
			current := c.link == marks[m.node]
			m.link.mu.Unlock()
			if !current {
				continue
			}
		}
		if !c.idle() {
			counts = append(counts, c.report())
		}
	}
	return counts
}

// PauseDelivery stops writing to the guest until the next Release. What
// waits for it at Drained becomes part of its channel state.
func (n *Network) PauseDelivery(guest int) {
	if p, err := n.local(guest); err == nil {
		p.out.setPaused(true)
	}
}

// DrainPort is called while the guest is stopped and the network held. It
// reads what the guest had sent, and returns copies of all frames held for
// it, in order: the channel state. Frames that the guest sends later are held
// behind them.
func (n *Network) DrainPort(ctx context.Context, guest int) ([][]byte, error) {
	p, err := n.local(guest)
	if err != nil {
		return nil, err
	}
	return p.drain(ctx)
}

// Release ends a hold of an epoch up to this one: peers are told, held frames
// go out in order, frames held for local guests are delivered in order. It
// does nothing if a later epoch is held, and may be repeated.
func (n *Network) Release(epoch uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed.Load() || n.held && epoch < n.epoch {
		return
	}
	n.release(epoch)
}

// release is Release with mu held.
func (n *Network) release(epoch uint64) {
	n.released = max(n.released, epoch)
	n.ports(func(p *Port) { p.out.setPaused(false) })
	if n.held && !n.initial {
		for _, p := range n.peers {
			p.link.mark(messageUnmark, p.handle, n.released)
		}
	}
	n.held, n.initial = false, false
	n.restart()
}

// Preload puts channel state of a checkpoint in front of what is held for the
// guest. The network must be held.
func (n *Network) Preload(guest int, frames [][]byte) error {
	p, err := n.local(guest)
	if err != nil {
		return err
	}
	var run []byte
	for i, frame := range frames {
		if len(frame) < minFrame || len(frame) > maxFrame {
			return fmt.Errorf("preload guest %d of %s: frame %d has %d bytes", guest, n.id, i, len(frame))
		}
		run = appendFrame(run, frame)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.held {
		return fmt.Errorf("preload guest %d of %s: %w", guest, n.id, ErrNotHeld)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(run) > 0 {
		size, _ := prefix(run, maxRun)
		p.preload.append(run[:size])
		run = run[size:]
	}
	return nil
}

// State says what keeps a network from carrying frames, if anything does.
type State struct {
	Held      bool   // at Epoch, or with Initial since it was opened
	Initial   bool   // a restored network that was not released yet
	Suspended bool   // by the node, whose lease is in doubt
	Epoch     uint64 // of the hold
	Released  uint64 // highest epoch released
}

// State returns the network's state.
func (n *Network) State() State {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := State{Held: n.held, Initial: n.initial, Suspended: n.suspended, Released: n.released}
	if n.held && !n.initial {
		s.Epoch = n.epoch
	}
	return s
}

// Stats returns the figures of the network's local ports, and what waits
// behind marks of peers, in bytes of memory by node.
func (n *Network) Stats() (ports []PortStats, late map[string]int) {
	n.ports(func(p *Port) { ports = append(ports, p.Stats()) })
	late = make(map[string]int, len(n.inbound))
	for node, in := range n.inbound {
		in.mu.Lock()
		late[node] = in.bytes
		in.mu.Unlock()
	}
	return ports, late
}
