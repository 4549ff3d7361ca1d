package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxHandshakes is how many connections of guests may be waiting for their
// outer end at once.
const maxHandshakes = 256

// errRefused says that the policy does not let a connection through.
var errRefused = errors.New("gateway: not allowed")

// loopback is where Config.Host leads.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// outer returns what a guest reaches by an address, or errRefused.
func (g *Gateway) outer(p Policy, to netip.AddrPort) (netip.AddrPort, error) {
	a := to.Addr()
	if a == g.cfg.Host {
		if !p.Host {
			return netip.AddrPort{}, errRefused
		}
		return netip.AddrPortFrom(loopback, to.Port()), nil
	}
	// 0.0.0.0/8 is this host to Linux; IsGlobalUnicast leaves out loopback,
	// link-local, multicast and limited broadcast.
	if !p.Out || !a.Is4() || !a.IsGlobalUnicast() || a.As4()[0] == 0 || g.cfg.Network.Contains(a) {
		return netip.AddrPort{}, errRefused
	}
	own, err := g.cfg.Own()
	if err != nil {
		return netip.AddrPort{}, errors.Join(errRefused, err)
	}
	for _, o := range own {
		if o == a {
			return netip.AddrPort{}, errRefused
		}
	}
	return to, nil
}

// forwardTCP connects guests to the world. The outer end is connected first,
// so that a guest sees a refusal as one.
func (g *Gateway) forwardTCP(s *serving) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	return tcp.NewForwarder(s.stack, 0, maxHandshakes, func(r *tcp.ForwarderRequest) {
		if !s.start(func(ctx context.Context) { g.connectOut(ctx, r) }) {
			r.Complete(true)
		}
	}).HandlePacket
}

func (g *Gateway) connectOut(ctx context.Context, r *tcp.ForwarderRequest) {
	id := r.ID()
	to, err := g.outer(g.allowed(), netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort))
	if err != nil || !take(g.slots) {
		g.refused.Add(1)
		r.Complete(true)
		return
	}
	defer func() { <-g.slots }()
	dctx, cancel := context.WithTimeout(ctx, g.limits.DialTimeout)
	defer cancel()
	outer, err := g.cfg.Dial(dctx, "tcp4", to.String())
	if err != nil {
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(terr != nil)
	if terr != nil {
		reset(outer)
		return
	}
	ep.SocketOptions().SetKeepAlive(true)
	g.tcp.Add(1)
	defer g.tcp.Add(-1)
	relay(ctx, gonet.NewTCPConn(&wq, ep), outer)
}

// halfCloser is a connection whose directions end one by one.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// relay copies both ways until both have ended, one breaks, or ctx ends, and
// closes both. What breaks on one end is reset on the outer one.
func relay(ctx context.Context, guest halfCloser, outer net.Conn) {
	ctx, fail := context.WithCancel(ctx)
	defer fail()
	stop := context.AfterFunc(ctx, func() {
		_ = guest.Close()
		reset(outer)
	})
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := io.Copy(outer, guest); err != nil || closeWrite(outer) != nil {
			fail()
		}
	})
	both.Go(func() {
		if _, err := io.Copy(guest, outer); err != nil || guest.CloseWrite() != nil {
			fail()
		}
	})
	both.Wait()
	if stop() {
		_ = guest.Close()
		_ = outer.Close()
	}
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(halfCloser); ok {
		return h.CloseWrite()
	}
	return nil
}

// reset closes a connection so that the other end does not take it for a
// regular end.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// forwardUDP lets datagrams of guests out and the answers in.
func (g *Gateway) forwardUDP(s *serving) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	return udp.NewForwarder(s.stack, func(r *udp.ForwarderRequest) bool {
		id := r.ID()
		to := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
		if to.Addr() == g.cfg.Host || to.Addr() == g.cfg.Addr {
			return false
		}
		_, err := g.outer(g.allowed(), to)
		if err != nil || !take(g.flows) {
			g.refused.Add(1)
			return false
		}
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq) // now: it takes the first datagram
		if terr != nil {
			<-g.flows
			return false
		}
		guest := gonet.NewUDPConn(&wq, ep)
		if !s.start(func(ctx context.Context) {
			defer func() { <-g.flows }()
			defer guest.Close() //nolint:errcheck // nothing follows
			g.flow(ctx, guest, to)
		}) {
			<-g.flows
			_ = guest.Close()
		}
		return true
	}).HandlePacket
}

// flow is one UDP flow until it has been idle for FlowIdle.
func (g *Gateway) flow(ctx context.Context, guest net.Conn, to netip.AddrPort) {
	outer, err := g.cfg.Dial(ctx, "udp4", to.String())
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = guest.Close()
		_ = outer.Close()
	})
	defer stop()
	defer outer.Close() //nolint:errcheck // nothing follows
	alive := func() error {
		until := time.Now().Add(g.limits.FlowIdle)
		return errors.Join(guest.SetReadDeadline(until), outer.SetReadDeadline(until))
	}
	var both sync.WaitGroup
	copyAll := func(to, from net.Conn) {
		defer cancel()
		buf := make([]byte, 64<<10)
		for alive() == nil {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			_, _ = to.Write(buf[:n]) // a datagram that cannot be sent is lost
		}
	}
	both.Go(func() { copyAll(outer, guest) })
	both.Go(func() { copyAll(guest, outer) })
	both.Wait()
}

// dialGuest connects to a guest.
func (g *Gateway) dialGuest(ctx context.Context, s *serving, to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.limits.DialTimeout)
	defer cancel()
	return gonet.DialTCPWithBind(ctx, s.stack, tcpip.FullAddress{NIC: nicID, Addr: address(g.cfg.Addr)}, full(to), tcpipIPv4)
}
