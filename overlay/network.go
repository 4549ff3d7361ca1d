package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// NetworkID names one incarnation of one job's private Ethernet.
type NetworkID struct {
	Job         string
	Incarnation uint64
}

func (id NetworkID) String() string { return fmt.Sprintf("%s/%d", id.Job, id.Incarnation) }

// Member places one guest of a network.
type Member struct {
	Guest   int    // index within the job, at most 65535
	Node    string // name of the node it runs on
	Address string // where that node's switch accepts links
}

// Errors that callers decide on.
var (
	// ErrClosed says that the switch or the network has been closed.
	ErrClosed = errors.New("overlay: closed")
	// ErrFenced says that a later incarnation of the job has been seen.
	ErrFenced = errors.New("overlay: incarnation is fenced")
	// ErrStale says that the epoch has been held and released, here or at a peer.
	ErrStale = errors.New("overlay: epoch is past")
	// ErrNotHeld says that the network is not held at that epoch.
	ErrNotHeld = errors.New("overlay: network is not held")
	// ErrSuspended says that the network is suspended.
	ErrSuspended = errors.New("overlay: network is suspended")
	// ErrLinkBroken says that a link ended during a hold, so that its counts prove nothing.
	ErrLinkBroken = errors.New("overlay: link ended")
	// ErrNotLocal says that the guest does not belong to this network on this node.
	ErrNotLocal = errors.New("overlay: guest is not on this node")
)

// member is one guest as the switch sees it: behind a port or a link.
type member struct {
	guest  int
	node   string
	mac    macAddress
	port   *Port // nil: on another node
	link   *outLink
	handle uint32
}

// Network is one incarnation of one job's Ethernet on this node.
type Network struct {
	id      NetworkID
	sw      *Switch
	log     *slog.Logger
	ctx     context.Context // ends when the network is closed
	cancel  context.CancelFunc
	byGuest map[int]int // guest → index in members
	byMAC   map[macAddress]int
	closed  atomic.Bool
	taps    atomic.Pointer[[]*Tap] // nil: none; written under mu

	// places guards who is where, which only Rehome changes. Members are read
	// under it or a port's mu, peers under it or mu.
	places  sync.RWMutex
	wanted  []Member
	members []member
	inbound map[string]*inbound // by node; never taken out
	peers   []peer
	spare   map[string]peer // nodes that may become peers, by node; guarded by the switch
	undo    []undo          // of the last Rehome; guarded by the switch

	// Locks are taken in this order: the switch's, mu, a port's, places, an
	// inbound's, an out queue's or a link's.
	mu        sync.Mutex
	held      bool
	initial   bool   // held since it was opened
	epoch     uint64 // of the hold
	released  uint64 // highest epoch released
	suspended bool
	broken    error // a link ended during the hold
	marks     map[string]uint64
}

// peer is another node with members of the network.
type peer struct {
	node   string
	link   *outLink
	handle uint32
}

// newNetwork builds the tables. Links are added by the switch.
func newNetwork(s *Switch, id NetworkID, members []Member, held bool) (*Network, error) {
	n := &Network{
		id: id, sw: s, log: s.log.With("job", id.Job, "incarnation", id.Incarnation),
		wanted:  slices.Clone(members),
		members: make([]member, len(members)),
		byGuest: make(map[int]int, len(members)), byMAC: make(map[macAddress]int, len(members)),
		inbound: map[string]*inbound{}, marks: map[string]uint64{}, spare: map[string]peer{},
		held: held, initial: held,
	}
	for i, m := range members {
		hardware := s.mac(m.Guest)
		if len(hardware) != len(macAddress{}) || m.Guest < 0 || m.Guest > 0xffff {
			return nil, fmt.Errorf("open network %s: guest %d has no usable address", id, m.Guest)
		}
		mac := macAddress(hardware)
		if _, twice := n.byGuest[m.Guest]; twice {
			return nil, fmt.Errorf("open network %s: guest %d is named twice", id, m.Guest)
		}
		if _, twice := n.byMAC[mac]; twice || mac.group() {
			return nil, fmt.Errorf("open network %s: address %s of guest %d is in use or no unicast address", id, hardware, m.Guest)
		}
		n.byGuest[m.Guest], n.byMAC[mac] = i, i
		n.members[i] = member{guest: m.Guest, node: m.Node, mac: mac}
	}
	for i := range n.members {
		if m := &n.members[i]; m.node == s.node {
			m.port = newPort(n, m.guest, i)
			m.port.holding = held
		} else if n.inbound[m.node] == nil {
			n.inbound[m.node] = &inbound{network: n, node: m.node, hold: held}
		}
	}
	n.ctx, n.cancel = context.WithCancel(s.ctx)
	return n, nil
}

// ID returns the network's name.
func (n *Network) ID() NetworkID { return n.id }

// local returns the port of a guest of this node.
func (n *Network) local(guest int) (*Port, error) {
	n.places.RLock()
	defer n.places.RUnlock()
	i, ok := n.byGuest[guest]
	if !ok || n.members[i].port == nil {
		return nil, fmt.Errorf("%w: guest %d of %s", ErrNotLocal, guest, n.id)
	}
	return n.members[i].port, nil
}

func (n *Network) ports(f func(*Port)) {
	for _, p := range n.localPorts() {
		f(p)
	}
}

func (n *Network) localPorts() []*Port {
	n.places.RLock()
	defer n.places.RUnlock()
	var ports []*Port
	for i := range n.members {
		if p := n.members[i].port; p != nil {
			ports = append(ports, p)
		}
	}
	return ports
}

// from returns the traffic that comes from a node, nil if none of the
// network's guests lives or has lived there.
func (n *Network) from(node string) *inbound {
	n.places.RLock()
	defer n.places.RUnlock()
	return n.inbound[node]
}

func (n *Network) froms() []*inbound {
	n.places.RLock()
	defer n.places.RUnlock()
	all := make([]*inbound, 0, len(n.inbound))
	for _, in := range n.inbound {
		all = append(all, in)
	}
	return all
}

// AttachPort dials the guest's QEMU until it answers or ctx ends, and moves
// frames until DetachPort or Close; when the connection breaks it is dialled
// again. Attaching the same socket twice does nothing; another socket
// replaces the first.
func (n *Network) AttachPort(ctx context.Context, guest int, socket string) (*Port, error) {
	p, err := n.local(guest)
	if err != nil {
		return nil, err
	}
	p.attach.Lock()
	defer p.attach.Unlock()
	if p.socket == socket {
		return p, nil
	}
	p.stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	sock, err := n.sw.reach(ctx, socket)
	if err != nil {
		if n.closed.Load() {
			err = ErrClosed
		}
		return nil, fmt.Errorf("attach guest %d of %s: %w", guest, n.id, err)
	}
	if !n.sw.enter() {
		_ = sock.Close()
		return nil, ErrClosed
	}
	defer n.sw.wg.Done()
	if n.closed.Load() {
		_ = sock.Close()
		return nil, ErrClosed
	}
	p.start(sock, socket)
	return p, nil
}

// DetachPort gives up the guest's connection. Frames held from the guest
// stay; frames for it are dropped and counted from now on.
func (n *Network) DetachPort(guest int) {
	if p, err := n.local(guest); err == nil {
		p.attach.Lock()
		defer p.attach.Unlock()
		p.stop()
	}
}

// Close ends all traffic of the network and forgets what is held. Nothing of
// it is delivered any more when Close returns.
func (n *Network) Close() {
	n.sw.drop(n)
	n.shut()
}

// shut does the work of Close; it waits for a Close under way.
func (n *Network) shut() {
	n.closed.Store(true)
	n.cancel()
	n.ports(func(p *Port) {
		p.attach.Lock()
		defer p.attach.Unlock()
		p.stop()
		p.hold()
		p.forget()
	})
	n.sw.mu.Lock()
	moved := n.undo
	n.undo = nil
	n.sw.mu.Unlock()
	discard(moved)
	for _, in := range n.froms() {
		in.drop()
	}
	n.endTaps()
}

// Suspend stops the network's traffic in both directions, for the reason
// given, until Resume or Close. Frames wait as in a hold.
func (n *Network) Suspend(reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.suspended || n.closed.Load() {
		return
	}
	n.log.Warn("network suspended", "reason", reason)
	n.suspended = true
	n.ports(func(p *Port) {
		p.hold()
		p.out.setSuspended(true)
	})
	for _, in := range n.froms() {
		in.settle()
	}
}

// Resume undoes Suspend. A hold stays a hold.
func (n *Network) Resume() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.suspended || n.closed.Load() {
		return
	}
	n.log.Info("network resumed")
	n.suspended = false
	n.ports(func(p *Port) { p.out.setSuspended(false) })
	n.restart()
}

// restart lets frames flow as far as hold and suspension permit. Called with
// mu held.
func (n *Network) restart() {
	if n.suspended {
		return
	}
	if !n.held {
		n.ports((*Port).release)
	}
	for _, in := range n.froms() {
		in.settle()
	}
}
