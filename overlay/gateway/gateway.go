// Package gateway is the way between the guests of one private Ethernet and
// everything else, in user mode: a TCP/IP stack of its own (gVisor's) with a
// name server, DHCP, published ports and, where that is allowed, a way out.
// It speaks frames on a stream socket as QEMU does, so that a switch needs to
// know nothing of it. docs/GATEWAY.md says what it lets through and why.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Guest is one guest of the network.
type Guest struct {
	Name string // without domain, lower case
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Config is what a gateway needs to know of its network and its node.
type Config struct {
	Network netip.Prefix // of the guests, IPv4
	Addr    netip.Addr   // the gateway's
	Host    netip.Addr   // stands for the node's loopback address, with Policy.Host
	MAC     net.HardwareAddr
	MTU     int // bytes of an IP packet
	Guests  []Guest

	// Dial connects to the world; nil: with a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Own returns the node's addresses, which are not the world's; nil: those of
	// its interfaces.
	Own func() ([]netip.Addr, error)
	// Resolvers returns host:port of the node's name servers; nil: those of
	// /etc/resolv.conf.
	Resolvers func() ([]string, error)
	// Logger is told about ports; nil: nobody is.
	Logger *slog.Logger
	// Limits bound memory and time; zero fields mean DefaultLimits.
	Limits Limits
}

// Limits bound what a gateway keeps and how long it waits.
type Limits struct {
	Connections int           // TCP connections, all together
	Flows       int           // UDP flows
	Questions   int           // to the world's name servers at once
	FlowIdle    time.Duration // after which a UDP flow is forgotten
	DialTimeout time.Duration // to the world, and to guests
	ListenRetry time.Duration // between two attempts to have a port
}

// DefaultLimits are used where Config.Limits says 0.
func DefaultLimits() Limits {
	return Limits{
		Connections: 512, Flows: 512, Questions: 64,
		FlowIdle: 90 * time.Second, DialTimeout: 10 * time.Second, ListenRetry: time.Second,
	}
}

// Policy is what a gateway lets through. The zero value is nothing.
type Policy struct {
	Ports []Port
	Out   bool // guests reach the world
	Host  bool // guests reach the node's loopback address as Config.Host
}

// Port is a TCP port of the node that leads to a guest.
type Port struct {
	Listen string // host:port; without host: all of the node's addresses
	To     netip.AddrPort
}

// PortStatus says how a published port does.
type PortStatus struct {
	Port
	Error    string // why it is not open, empty: it is
	Open     int    // connections
	Accepted uint64 // connections so far
}

// Status says how a gateway does.
type Status struct {
	Policy  Policy
	Ports   []PortStatus // as in Policy
	TCP     int          // connections of guests to the world or the node
	UDP     int          // flows of guests to the world
	Refused uint64       // attempts of guests that the policy or a limit refused
}

// Gateway serves one network. Create it with New, then Run it.
type Gateway struct {
	cfg     Config
	log     *slog.Logger
	limits  Limits
	byMAC   map[[6]byte]Guest
	names   *names
	slots   chan struct{} // TCP connections
	flows   chan struct{} // UDP flows
	asking  chan struct{} // questions to name servers
	tcp     atomic.Int64
	refused atomic.Uint64

	mu     sync.Mutex
	policy Policy
	ports  map[Port]*published
	serve  *serving // nil: Run was not called, or has ended
	ran    bool
}

// serving is what Run has started.
type serving struct {
	ctx   context.Context
	stack *stack.Stack
	link  *channel.Endpoint

	mu    sync.Mutex
	ended bool
	wg    sync.WaitGroup
}

// start runs f unless the gateway is ending, and says whether it does.
func (s *serving) start(f func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.wg.Go(func() { f(s.ctx) })
	return true
}

// end waits for everything that start has started.
func (s *serving) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.wg.Wait()
}

// New returns a gateway that lets nothing through until Apply.
func New(cfg Config) (*Gateway, error) {
	if !cfg.Network.Addr().Is4() || !cfg.Network.Contains(cfg.Addr) || !cfg.Network.Contains(cfg.Host) || cfg.Addr == cfg.Host {
		return nil, fmt.Errorf("gateway %s, host %s: not two addresses of the IPv4 network %s", cfg.Addr, cfg.Host, cfg.Network)
	}
	if len(cfg.MAC) != 6 || cfg.MTU < 576 || cfg.MTU > 65535 {
		return nil, fmt.Errorf("gateway: Ethernet address %q or MTU %d is not usable", cfg.MAC, cfg.MTU)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Own == nil {
		cfg.Own = interfaceAddrs
	}
	if cfg.Resolvers == nil {
		cfg.Resolvers = nodeResolvers
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	limits, d := cfg.Limits, DefaultLimits()
	limits.Connections = positive(limits.Connections, d.Connections)
	limits.Flows = positive(limits.Flows, d.Flows)
	limits.Questions = positive(limits.Questions, d.Questions)
	limits.FlowIdle = positive(limits.FlowIdle, d.FlowIdle)
	limits.DialTimeout = positive(limits.DialTimeout, d.DialTimeout)
	limits.ListenRetry = positive(limits.ListenRetry, d.ListenRetry)
	g := &Gateway{
		cfg: cfg, log: cfg.Logger, limits: limits, names: newNames(cfg),
		slots: make(chan struct{}, limits.Connections), flows: make(chan struct{}, limits.Flows), asking: make(chan struct{}, limits.Questions),
		byMAC: make(map[[6]byte]Guest, len(cfg.Guests)), ports: map[Port]*published{},
	}
	for _, guest := range cfg.Guests {
		if len(guest.MAC) != 6 || !cfg.Network.Contains(guest.Addr) {
			return nil, fmt.Errorf("gateway: guest %s has no usable address", guest.Name)
		}
		g.byMAC[[6]byte(guest.MAC)] = guest
	}
	return g, nil
}

func positive[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

// Run serves until ctx ends: frames with whoever connects to ln last, as a
// switch does to a QEMU, and ports as Apply says. It closes ln, and every
// connection, before it returns. It can be called once.
func (g *Gateway) Run(ctx context.Context, ln net.Listener) error {
	defer ln.Close() //nolint:errcheck // it may be closed already
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &serving{ctx: ctx}
	g.mu.Lock()
	if g.ran {
		g.mu.Unlock()
		return errors.New("gateway: it has run already")
	}
	g.ran = true
	g.mu.Unlock()
	if err := g.build(s); err != nil {
		return err
	}
	err := g.listen(s)
	if err == nil {
		g.mu.Lock()
		g.serve = s
		g.settle()
		g.mu.Unlock()
		err = g.accept(ctx, s, ln)
	}
	cancel()
	g.mu.Lock()
	g.serve = nil
	for _, p := range g.ports {
		p.stop()
	}
	clear(g.ports)
	g.mu.Unlock()
	s.stack.Close()
	s.end()
	s.link.Close()
	s.stack.Wait()
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Apply makes the gateway let through what the policy says and nothing else.
// Connections by way of what it does not allow any more are closed.
func (g *Gateway) Apply(p Policy) {
	p.Ports = slices.Clone(p.Ports)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.policy = p
	if g.serve != nil {
		g.settle()
	}
}

// settle opens and closes ports. Called with mu held.
func (g *Gateway) settle() {
	for port, p := range g.ports {
		if !slices.Contains(g.policy.Ports, port) {
			p.stop()
			delete(g.ports, port)
		}
	}
	for _, port := range g.policy.Ports {
		if g.ports[port] == nil {
			g.ports[port] = g.publish(g.serve, port)
		}
	}
}

// allowed returns the policy of this moment.
func (g *Gateway) allowed() Policy {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.policy
}

// Status returns how the gateway does.
func (g *Gateway) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Status{
		Policy: g.policy, TCP: int(g.tcp.Load()), UDP: len(g.flows), Refused: g.refused.Load(),
	}
	s.Policy.Ports = slices.Clone(g.policy.Ports)
	for _, port := range g.policy.Ports {
		if p := g.ports[port]; p != nil {
			s.Ports = append(s.Ports, p.status())
		} else {
			s.Ports = append(s.Ports, PortStatus{Port: port, Error: "the gateway does not run"})
		}
	}
	return s
}

// take takes one of bounded places, if one is left.
func take(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

// interfaceAddrs returns the addresses of the node's interfaces.
func interfaceAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own, nil
}
