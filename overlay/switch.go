// Package overlay is the guests' private Ethernet: a user-mode switch per
// node, with a port for every local guest and a link to every node that has
// members of the same networks. It can hold, count and drain a network's
// traffic, which the consistent cut is made of. docs/NETWORK.md specifies the
// wire formats and the rules.
package overlay

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a switch needs to know.
type Config struct {
	// Node is the name of this node, as members of networks give it.
	Node string
	// Session is a random number that tells this switch from earlier ones of the node.
	Session uint64
	// Dial connects to another node's switch: authenticated and encrypted.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// CheckPeer tells whether a connection, made by either side, leads to the
	// node that its other end says it is; nil: it is taken at its word.
	CheckPeer func(conn net.Conn, node string) error
	// DialPort connects to QEMU's end of a port; nil: a unix socket.
	DialPort func(ctx context.Context, socket string) (Socket, error)
	// MAC gives the static address of a guest.
	MAC func(guest int) net.HardwareAddr
	// LinkID gives random numbers that name links; nil: from crypto/rand.
	LinkID func() uint64
	// Logger is told about links and ports; nil: nobody is.
	Logger *slog.Logger
	// Limits bound memory and time; zero fields mean DefaultLimits.
	Limits Limits
}

// Limits bound what a switch keeps and how long it waits.
type Limits struct {
	PortQueue    int           // bytes waiting for one guest
	LinkQueue    int           // bytes waiting for one link
	Held         int           // bytes held from one guest before it has to wait
	Late         int           // bytes held behind a peer's mark, per network
	PingInterval time.Duration // between pings on a link
	PeerTimeout  time.Duration // silence after which a link is dead
	GreetTimeout time.Duration // longest wait for the first messages of a connection
	RedialMin    time.Duration // first wait before a link is dialled again
	RedialMax    time.Duration // longest wait
	PartialWait  time.Duration // for the rest of a frame of a stopped guest; QEMU writes it at once if at all
}

// DefaultLimits are used where Config.Limits says 0.
func DefaultLimits() Limits {
	return Limits{
		PortQueue: 8 << 20, LinkQueue: 32 << 20, Held: 64 << 20, Late: 64 << 20,
		PingInterval: 500 * time.Millisecond, PeerTimeout: 2 * time.Second, GreetTimeout: 15 * time.Second,
		RedialMin: 20 * time.Millisecond, RedialMax: time.Second,
		PartialWait: 50 * time.Millisecond,
	}
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	return Limits{
		PortQueue: cmp.Or(l.PortQueue, d.PortQueue), LinkQueue: cmp.Or(l.LinkQueue, d.LinkQueue),
		Held: cmp.Or(l.Held, d.Held), Late: cmp.Or(l.Late, d.Late),
		PingInterval: cmp.Or(l.PingInterval, d.PingInterval), PeerTimeout: cmp.Or(l.PeerTimeout, d.PeerTimeout),
		GreetTimeout: max(cmp.Or(l.GreetTimeout, d.GreetTimeout), l.PeerTimeout),
		RedialMin:    cmp.Or(l.RedialMin, d.RedialMin), RedialMax: cmp.Or(l.RedialMax, d.RedialMax),
		PartialWait: cmp.Or(l.PartialWait, d.PartialWait),
	}
}

// Switch serves all networks of one node.
type Switch struct {
	node      string
	session   uint64
	dial      func(ctx context.Context, address string) (net.Conn, error)
	dialPort  func(ctx context.Context, socket string) (Socket, error)
	checkPeer func(conn net.Conn, node string) error
	mac       func(guest int) net.HardwareAddr
	linkID    func() uint64
	log       *slog.Logger
	limits    Limits
	pool      pool
	ctx       context.Context // ends when the switch is closed
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	dials     atomic.Uint64
	stats     switchStats
	metrics   *metrics

	mu       sync.Mutex
	closed   bool
	networks map[string]*Network // by job; at most one incarnation is open
	fences   map[string]uint64   // by job: incarnations below are dropped
	links    map[string]*outLink // by node
	inLinks  map[string]*inLink  // by node: the connection that is served
	inStates map[string]*inState // by node: its link
	inDown   map[string]time.Time
}

type switchStats struct {
	unknownNetwork, misplaced atomic.Uint64 // frames
	duplicates                atomic.Uint64 // messages
}

// New returns a switch that works until it is closed.
func New(cfg Config) (*Switch, error) {
	if cfg.Node == "" || len(cfg.Node) > maxName || cfg.Dial == nil || cfg.MAC == nil {
		return nil, errors.New("overlay: a switch needs the node's name, a dialler and the guests' addresses")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CheckPeer == nil {
		cfg.CheckPeer = func(net.Conn, string) error { return nil }
	}
	if cfg.DialPort == nil {
		cfg.DialPort = dialUnix
	}
	if cfg.LinkID == nil {
		cfg.LinkID = randomID
	}
	s := &Switch{
		node: cfg.Node, session: cfg.Session, dial: cfg.Dial, dialPort: cfg.DialPort, checkPeer: cfg.CheckPeer, mac: cfg.MAC, linkID: cfg.LinkID,
		log: cfg.Logger, limits: cfg.Limits.orDefault(), metrics: newMetrics(),
		networks: map[string]*Network{}, fences: map[string]uint64{},
		links: map[string]*outLink{}, inLinks: map[string]*inLink{}, inStates: map[string]*inState{}, inDown: map[string]time.Time{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func randomID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return max(1, binary.BigEndian.Uint64(b[:]))
}

// Run waits until ctx ends or the switch is closed, and closes it.
func (s *Switch) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	s.Close()
	return ctx.Err()
}

// Close closes all networks and links and waits for everything the switch
// started. It may be repeated.
func (s *Switch) Close() {
	s.mu.Lock()
	s.closed = true
	networks := s.openNetworks()
	s.mu.Unlock()
	s.cancel()
	for _, n := range networks {
		n.Close()
	}
	s.wg.Wait()
}

// enter counts a call that Close has to wait for; the caller calls wg.Done.
func (s *Switch) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

func (s *Switch) openNetworks() []*Network {
	networks := make([]*Network, 0, len(s.networks))
	for _, n := range s.networks {
		networks = append(networks, n)
	}
	return networks
}

// Open makes a network usable on this node. The same network may be opened
// again with the same members. A higher incarnation fences all lower ones of
// the job: they are closed, and opening one gives ErrFenced.
func (s *Switch) Open(id NetworkID, members []Member) (*Network, error) {
	return s.open(id, members, false)
}

// OpenHeld is Open for a network in which nothing flows until Release.
func (s *Switch) OpenHeld(id NetworkID, members []Member) (*Network, error) {
	return s.open(id, members, true)
}

func (s *Switch) open(id NetworkID, members []Member, held bool) (*Network, error) {
	if id.Job == "" || len(id.Job) > maxName {
		return nil, fmt.Errorf("open network %s: bad job name", id)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if id.Incarnation < s.fences[id.Job] {
		s.mu.Unlock()
		return nil, fmt.Errorf("open network %s: %w", id, ErrFenced)
	}
	old := s.networks[id.Job]
	if old != nil && old.id == id {
		s.mu.Unlock()
		if !slices.Equal(old.placesNow(), members) {
			return nil, fmt.Errorf("open network %s: it is open with other members", id)
		}
		return old, nil
	}
	n, err := newNetwork(s, id, members, held)
	if err == nil {
		err = s.join(n)
	}
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	s.fences[id.Job] = id.Incarnation
	s.networks[id.Job] = n
	if old != nil {
		s.leave(old)
	}
	s.mu.Unlock()
	if old != nil {
		old.shut()
	}
	return n, nil
}

// join gives the network its links. Called with mu held.
func (s *Switch) join(n *Network) error {
	byNode := map[string]peer{}
	for i := range n.members {
		m := &n.members[i]
		if m.port != nil {
			continue
		}
		p, ok := byNode[m.node]
		if !ok {
			var err error
			if p, err = s.meet(n, m.node, n.wanted[i].Address); err != nil {
				s.leave(n)
				return err
			}
			s.joined(n.inbound[m.node])
			byNode[m.node] = p
			n.peers = append(n.peers, p)
		}
		m.link, m.handle = p.link, p.handle
	}
	return nil
}

// leave takes the network's links away. Called with mu held, once.
func (s *Switch) leave(n *Network) {
	for _, p := range n.peers {
		s.part(p)
	}
	for _, p := range n.spare {
		s.part(p)
	}
}

// part gives up a network's use of a link. Called with mu held.
func (s *Switch) part(p peer) {
	p.link.remove(p.handle)
	s.unref(p.link)
}

// meet gives a network the use of a link. Called with mu held.
func (s *Switch) meet(n *Network, node, address string) (peer, error) {
	p := peer{node: node, link: s.linkTo(node, address)}
	p.link.refs++
	var err error
	if p.handle, err = p.link.add(n.id); err != nil {
		s.unref(p.link)
	}
	return p, err
}

func (s *Switch) unref(l *outLink) {
	if l.refs--; l.refs == 0 {
		l.cancel()
		delete(s.links, l.node)
		delete(s.inDown, l.node)
	}
}

// linkTo returns the link to a node. Called with mu held.
func (s *Switch) linkTo(node, address string) *outLink {
	if l := s.links[node]; l != nil {
		l.setAddress(address)
		return l
	}
	ctx, cancel := context.WithCancel(s.ctx)
	l := newOutLink(s, node, address, cancel)
	s.links[node] = l
	if s.inLinks[node] == nil {
		s.inDown[node] = l.downAt
	}
	s.wg.Go(func() { l.run(ctx) })
	return l
}

// drop takes a network off the switch.
func (s *Switch) drop(n *Network) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[n.id.Job] == n {
		delete(s.networks, n.id.Job)
		s.leave(n)
	}
}

// lookup returns the network if it is open.
func (s *Switch) lookup(id NetworkID) *Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.networks[id.Job]; n != nil && n.id == id {
		return n
	}
	return nil
}

// Fence closes every network of the job below the incarnation, and refuses
// to open one from now on. Nothing of them is delivered here any more when
// Fence returns.
func (s *Switch) Fence(job string, incarnation uint64) {
	s.mu.Lock()
	s.fences[job] = max(s.fences[job], incarnation)
	n := s.networks[job]
	s.mu.Unlock()
	if n != nil && n.id.Incarnation < incarnation {
		n.Close()
	}
}

// Forget closes the job's network and forgets its fence. It is for jobs that
// are over.
func (s *Switch) Forget(job string) {
	s.mu.Lock()
	delete(s.fences, job)
	n := s.networks[job]
	s.mu.Unlock()
	if n != nil {
		n.Close()
	}
}

// PeersDown returns the nodes that open networks need and with which the
// link in either direction has been missing for longer than PeerTimeout.
func (s *Switch) PeersDown() []string {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var down []string
	for node, l := range s.links {
		since, missing := s.inDown[node]
		if s.inLinks[node] != nil {
			missing = false
		}
		if l.missing(now) > s.limits.PeerTimeout || missing && now.Sub(since) > s.limits.PeerTimeout {
			down = append(down, node)
		}
	}
	slices.Sort(down)
	return down
}
