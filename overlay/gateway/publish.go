package gateway

import (
	"context"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

const tcpipIPv4 = ipv4.ProtocolNumber

// published is one port that leads to a guest.
type published struct {
	g      *Gateway
	port   Port
	cancel context.CancelFunc

	mu       sync.Mutex
	problem  string
	open     int
	accepted uint64
}

// publish opens a port until it is stopped. Called with g.mu held.
func (g *Gateway) publish(s *serving, port Port) *published {
	ctx, cancel := context.WithCancel(s.ctx)
	p := &published{g: g, port: port, cancel: cancel, problem: "it is being opened"}
	s.start(func(context.Context) {
		defer cancel()
		p.run(ctx, s)
	})
	return p
}

// stop closes the port and its connections.
func (p *published) stop() { p.cancel() }

func (p *published) status() PortStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PortStatus{Port: p.port, Error: p.problem, Open: p.open, Accepted: p.accepted}
}

// note keeps why the port is not open, nil: it is; the log hears of changes.
func (p *published) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.problem
	p.problem = ""
	if err != nil {
		p.problem = err.Error()
	}
	switch {
	case p.problem == old:
	case err != nil:
		p.g.log.Warn("a published port cannot be opened, and is tried again", "port", p.port.Listen, "err", err)
	default:
		p.g.log.Info("port published", "port", p.port.Listen, "to", p.port.To)
	}
}

// run tries to have the port, again and again: the one who has it may be the
// gateway of another node's former incarnation that is about to end.
func (p *published) run(ctx context.Context, s *serving) {
	for {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.port.Listen)
		if err == nil {
			p.note(nil)
			err = p.serve(ctx, s, ln)
		}
		if ctx.Err() != nil {
			return
		}
		p.note(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.g.limits.ListenRetry):
		}
	}
}

func (p *published) serve(ctx context.Context, s *serving, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer ln.Close() //nolint:errcheck // it may be closed already
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		if !take(p.g.slots) {
			reset(conn)
			continue
		}
		if !s.start(func(context.Context) {
			defer func() { <-p.g.slots }()
			p.connect(ctx, s, conn)
		}) {
			<-p.g.slots
			reset(conn)
		}
	}
}

// connect leads one connection to the guest.
func (p *published) connect(ctx context.Context, s *serving, outer net.Conn) {
	p.count(1)
	defer p.count(-1)
	guest, err := p.g.dialGuest(ctx, s, p.port.To)
	if err != nil {
		reset(outer)
		return
	}
	relay(ctx, guest, outer)
}

func (p *published) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open += n
	if n > 0 {
		p.accepted++
	}
}
