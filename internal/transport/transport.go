// Package transport is how daemons of one cluster reach one another: one TCP
// port per daemon, TLS 1.3 with certificates checked at both ends, and the
// protocol of a connection chosen by ALPN: HTTP/2 for RPC, Raft between
// coordinators, and links between switches.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/internal/access"
)

// ALPN names of what a connection carries.
const (
	ProtoRPC  = "h2"
	ProtoRaft = "vft-raft/1"
	ProtoLink = "vft-link/1"
	// ProtoEnrol needs no certificate of who calls: it is how one gets one.
	ProtoEnrol = "vft-enrol/1"
)

// nodesOnly are the protocols that nobody but a node speaks.
var nodesOnly = map[string]bool{ProtoRaft: true, ProtoLink: true}

// handshakeTimeout bounds what a stranger that says nothing can hold up.
const handshakeTimeout = 5 * time.Second

// Endpoint dials and accepts on behalf of one daemon or client.
type Endpoint struct {
	tls  *tls.Config
	gate *Gate
	http *http.Client

	peers peers
}

// New returns an endpoint that shows the certificate in conf (see
// pki.Identity.TLS) and sends everything through gate, which may be nil.
func New(conf *tls.Config, gate *Gate) *Endpoint {
	if gate == nil {
		gate = &Gate{}
	}
	e := &Endpoint{tls: conf, gate: gate}
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	e.http = &http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return e.Dial(ctx, address, ProtoRPC)
		},
		// A peer that fell silent must not hold a call until its own deadline.
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:               2 * time.Second,
			PingTimeout:                   2 * time.Second,
			MaxReceiveBufferPerConnection: 8 << 20,
			MaxReceiveBufferPerStream:     4 << 20,
		},
		IdleConnTimeout: time.Minute,
	}}
	return e
}

// HTTP is a client for RPC; URLs are https://host:port.
func (e *Endpoint) HTTP() *http.Client { return e.http }

// Close drops idle connections.
func (e *Endpoint) Close() { e.http.CloseIdleConnections() }

// Dial connects to address, checks its certificate and agrees on proto.
func (e *Endpoint) Dial(ctx context.Context, address, proto string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := e.gate.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	conf := e.tls.Clone()
	conf.NextProtos = []string{proto}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("agreeing on TLS with %s: %w", address, err)
	}
	if err := e.peers.admit(conn, raw); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	return conn, nil
}

// Listener accepts connections and hands them out by what they carry.
type Listener struct {
	ln    net.Listener
	gate  *Gate
	conf  *tls.Config
	log   *slog.Logger
	lanes map[string]*lane
	peers *peers          // the endpoint's
	ctx   context.Context // ends when the listener is closed
	stop  context.CancelFunc
	done  <-chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// Listen binds address for the protocols named.
func (e *Endpoint) Listen(ctx context.Context, address string, log *slog.Logger, protos ...string) (*Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	conf := e.tls.Clone()
	conf.NextProtos = slices.DeleteFunc(slices.Clone(protos), func(p string) bool { return p == ProtoEnrol })
	if slices.Contains(protos, ProtoEnrol) {
		enrol := e.tls.Clone()
		enrol.NextProtos, enrol.ClientAuth, enrol.SessionTicketsDisabled = []string{ProtoEnrol}, tls.NoClientCert, true
		conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Equal(hello.SupportedProtos, []string{ProtoEnrol}) {
				return enrol, nil
			}
			return nil, nil // the usual one
		}
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &Listener{ln: ln, gate: e.gate, peers: &e.peers, conf: conf, log: log, lanes: map[string]*lane{}, ctx: life, stop: stop, done: life.Done()}
	for _, p := range protos {
		l.lanes[p] = &lane{parent: l, conns: make(chan net.Conn), closed: make(chan struct{})}
	}
	l.wg.Add(1)
	go l.accept()
	return l, nil
}

// Addr is the bound address.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Lane is the listener for one of the protocols. Closing it closes only the lane.
func (l *Listener) Lane(proto string) net.Listener { return l.lanes[proto] }

// Close stops accepting on all lanes.
func (l *Listener) Close() error {
	err := l.shut()
	l.wg.Wait()
	return err
}

func (l *Listener) shut() error {
	var err error
	l.once.Do(func() {
		l.stop()
		err = l.ln.Close()
	})
	return err
}

func (l *Listener) accept() {
	defer l.wg.Done()
	for {
		raw, err := l.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors and the like: wait for some to come back.
			l.log.Warn("accepting a connection failed", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-l.done:
				return
			}
		}
		l.wg.Add(1)
		go l.route(l.gate.wrap(raw))
	}
}

func (l *Listener) route(raw *gatedConn) {
	defer l.wg.Done()
	conn := tls.Server(raw, l.conf)
	ctx, cancel := context.WithTimeout(l.ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		l.log.Debug("refused a connection", "remote", raw.RemoteAddr(), "err", err)
		_ = raw.Close()
		return
	}
	state := conn.ConnectionState()
	if err := l.peers.admit(conn, raw); err != nil {
		l.log.Warn("refused a connection", "remote", raw.RemoteAddr(), "who", PeerName(&state), "err", err)
		_ = raw.Close()
		return
	}
	lane := l.lanes[state.NegotiatedProtocol]
	if lane == nil {
		_ = conn.Close()
		return
	}
	if who, err := access.Parse(PeerName(&state)); nodesOnly[state.NegotiatedProtocol] && (err != nil || who.Kind != access.Node) {
		l.log.Warn("refused a connection that only nodes may make", "remote", raw.RemoteAddr(), "who", PeerName(&state), "protocol", state.NegotiatedProtocol)
		_ = conn.Close()
		return
	}
	select {
	case lane.conns <- conn:
	case <-lane.closed:
		_ = conn.Close()
	case <-l.done:
		_ = conn.Close()
	}
}

// lane is the part of a Listener that carries one protocol.
type lane struct {
	parent *Listener
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// Accept waits for the next connection of the lane's protocol.
func (l *lane) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.parent.done:
		return nil, net.ErrClosed
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections of this protocol are no longer taken.
func (l *lane) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is the bound address of the whole listener.
func (l *lane) Addr() net.Addr { return l.parent.Addr() }
