package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/overlay/gateway"
)

// gatewayHome is the guest on whose node the job's gateway is.
const gatewayHome = 0

// WithGateway adds the job's gateway to its guests: a member of their network,
// on the node of guest 0.
func WithGateway(members []*vftv1.Member) []*vftv1.Member {
	for _, m := range members {
		if m.GetGuest() == gatewayHome {
			all := make([]*vftv1.Member, 0, len(members)+1)
			return append(append(all, members...), &vftv1.Member{Guest: guest.GatewayIndex, Node: m.GetNode(), Address: m.GetAddress()})
		}
	}
	return members
}

// gatewayRun is a gateway that runs here.
type gatewayRun struct {
	*gateway.Gateway
	cancel context.CancelFunc
	done   chan struct{}
	ports  map[gateway.Port]*vftv1.PublishedPort // as they were told; guarded by the incarnation's mu
}

// tendGateway runs the job's gateway here if this is where it belongs, and
// ends it if not. It is called when the network has been opened and whenever
// guests have changed their places for good.
func (inc *incarnation) tendGateway() {
	here := false
	for _, m := range inc.memberList() {
		here = here || m.GetGuest() == gatewayHome && inc.s.isHere(m)
	}
	inc.mu.Lock()
	way := inc.way
	if !here {
		inc.way = nil
	}
	inc.mu.Unlock()
	switch {
	case here && way == nil:
		if err := inc.startGateway(); err != nil {
			inc.log.Error("the job has no gateway", "err", err) // its guests do without
		}
	case !here && way != nil:
		way.cancel()
		<-way.done
	}
}

func (inc *incarnation) startGateway() error {
	g, err := gateway.New(inc.gatewayConfig())
	if err != nil {
		return err
	}
	socket := filepath.Join(inc.runDir(), "gateway")
	if err := os.MkdirAll(inc.runDir(), 0o700); err != nil {
		return fmt.Errorf("making the gateway's directory: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the socket of an earlier gateway: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(inc.work.ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("making the gateway's socket: %w", err)
	}
	ctx, cancel := context.WithCancel(inc.work.ctx)
	way := &gatewayRun{Gateway: g, cancel: cancel, done: make(chan struct{})}
	if !inc.work.run(func(context.Context) {
		defer close(way.done)
		defer cancel()
		if err := g.Run(ctx, ln); err != nil && ctx.Err() == nil {
			inc.log.Error("the job's gateway ended", "err", err)
		}
	}) {
		cancel()
		return errors.Join(context.Canceled, ln.Close())
	}
	if _, err := inc.network().AttachPort(ctx, guest.GatewayIndex, socket); err != nil {
		cancel()
		return fmt.Errorf("attaching the gateway: %w", err)
	}
	inc.mu.Lock()
	defer inc.mu.Unlock()
	inc.way = way
	return nil
}

func (inc *incarnation) gatewayConfig() gateway.Config {
	cfg := gateway.Config{
		Network: netip.MustParsePrefix(guest.DefaultNet), Addr: guest.GatewayAddr(), Host: guest.HostAddr(),
		MAC: guest.MAC(guest.GatewayIndex), MTU: guest.DefaultMTU, Logger: inc.log,
	}
	for _, m := range inc.memberList() {
		i := int(m.GetGuest())
		cfg.Guests = append(cfg.Guests, gateway.Guest{Name: guest.HostName(i), Addr: guest.Addr(i), MAC: guest.MAC(i)})
	}
	return cfg
}

// setGateway has the gateway let through what the leader says, nil: nothing.
func (inc *incarnation) setGateway(told *vftv1.GatewayPolicy) {
	p := gateway.Policy{Out: told.GetOut(), Host: told.GetHost()}
	ports := map[gateway.Port]*vftv1.PublishedPort{}
	for _, t := range told.GetPorts() {
		port := gateway.Port{
			Listen: net.JoinHostPort(t.GetAddress(), strconv.Itoa(int(t.GetPort()))),
			To:     netip.AddrPortFrom(guest.Addr(int(t.GetGuest())), uint16(t.GetGuestPort())),
		}
		p.Ports = append(p.Ports, port)
		ports[port] = t
	}
	inc.mu.Lock()
	defer inc.mu.Unlock()
	if inc.way == nil || inc.ended {
		return
	}
	inc.way.ports = ports
	inc.way.Apply(p)
}

// showGateway says how the gateway does, nil: it is not here.
func (inc *incarnation) showGateway() *vftv1.NetworkGateway {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	if inc.way == nil {
		return nil
	}
	s := inc.way.Status()
	shown := &vftv1.NetworkGateway{Out: s.Policy.Out, Host: s.Policy.Host, Tcp: uint32(s.TCP), Udp: uint32(s.UDP), Refused: s.Refused}
	for _, p := range s.Ports {
		shown.Ports = append(shown.Ports, &vftv1.GatewayPort{
			Port: inc.way.ports[p.Port], Error: p.Error, Open: uint32(p.Open), Accepted: p.Accepted,
		})
	}
	return shown
}
