package transport

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"github.com/mpirun-vft/vft/internal/access"
)

// errRefused ends a connection with somebody who is expelled.
var errRefused = errors.New("the node is expelled from the cluster")

// peers knows who an endpoint is connected with, and who it must not be.
type peers struct {
	mu      sync.Mutex
	refused map[string]bool              // common names
	open    map[string]map[net.Conn]bool // by common name
}

// RefuseNodes closes all connections with these nodes and makes and takes no
// more. There is no way back.
func (e *Endpoint) RefuseNodes(nodes []string) {
	e.peers.mu.Lock()
	defer e.peers.mu.Unlock()
	for _, n := range nodes {
		name := access.Identity{Kind: access.Node, Name: n}.String()
		if e.peers.refused[name] {
			continue
		}
		if e.peers.refused == nil {
			e.peers.refused = map[string]bool{}
		}
		e.peers.refused[name] = true
		for conn := range e.peers.open[name] {
			go conn.Close() //nolint:errcheck // its users hear of it
		}
	}
}

// admit notes a connection over raw after its handshake, before others have it.
func (p *peers) admit(secure *tls.Conn, raw net.Conn) error {
	state := secure.ConnectionState()
	name := PeerName(&state)
	conn, ok := raw.(*gatedConn)
	if !ok || name == "" {
		return nil
	}
	conn.gone = func() { p.forget(name, conn) }
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused[name] {
		return errRefused
	}
	if p.open == nil {
		p.open = map[string]map[net.Conn]bool{}
	}
	if p.open[name] == nil {
		p.open[name] = map[net.Conn]bool{}
	}
	p.open[name][conn] = true
	return nil
}

func (p *peers) forget(name string, conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open[name], conn)
	if len(p.open[name]) == 0 {
		delete(p.open, name)
	}
}
