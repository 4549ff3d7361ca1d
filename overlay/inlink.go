package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	ackBytes = 256 * 1024 // handled without an acknowledgement
	maxPeers = 1 << 14    // nodes whose links are remembered
)

// inLink is an accepted connection of a peer's link: frames of the peer for
// guests of this node.
type inLink struct {
	sw   *Switch
	conn net.Conn
	hello
	done chan struct{} // closed when no message is handled any more

	state *inState
	batch batch
	acked uint64 // highest acknowledgement sent
}

// inState is what is known of a peer's link, whatever connection it comes
// over. The connection that serves the link owns it.
type inState struct {
	session, link uint64
	received      uint64               // every message up to it has been handled
	networks      map[uint32]*resolved // by handle
}

// resolved is what a peer's handle means here.
type resolved struct {
	id      NetworkID
	counts  *pairTable
	network *Network // nil: not open here, or not any more
	from    *inbound
}

// ServeLink serves an accepted link from a peer until the peer or the link is
// gone, ctx ends or the switch is closed. It closes conn.
func (s *Switch) ServeLink(ctx context.Context, conn net.Conn) error {
	defer abort(conn)
	if !s.enter() {
		return ErrClosed
	}
	defer s.wg.Done()
	stop := context.AfterFunc(ctx, func() { abort(conn) })
	defer stop()
	stopToo := context.AfterFunc(s.ctx, func() { abort(conn) })
	defer stopToo()

	_ = conn.SetDeadline(time.Now().Add(s.limits.GreetTimeout))
	first, err := readMessage(conn)
	if err != nil {
		return fmt.Errorf("greeting of a link: %w", err)
	}
	greeting, err := first.hello()
	if err != nil {
		_, _ = conn.Write(refusal(err))
		return fmt.Errorf("greeting of a link: %w", err)
	}
	if err := s.checkPeer(conn, greeting.node); err != nil {
		_, _ = conn.Write(refusal(err))
		return fmt.Errorf("greeting of a link: %w", err)
	}
	l := &inLink{sw: s, conn: conn, hello: greeting, done: make(chan struct{})}
	known, err := s.register(ctx, l)
	if err != nil {
		_, _ = conn.Write(refusal(err))
		return fmt.Errorf("link from %s: %w", l.node, err)
	}
	defer s.unregister(l)
	answer := welcome{session: s.session, known: known, received: l.state.received, node: s.node}
	if _, err := conn.Write(appendWelcome(nil, answer)); err != nil {
		return fmt.Errorf("link from %s: %w", l.node, err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("link from %s: %w", l.node, err)
	}
	s.log.Info("link accepted", "peer", l.node, "link", l.link, "resumed", known)
	err = l.serve()
	s.log.Info("accepted link ended", "peer", l.node, "link", l.link, "error", err)
	return fmt.Errorf("link from %s: %w", l.node, err)
}

func refusal(err error) []byte {
	reason := err.Error()
	reason = reason[:min(len(reason), maxName)]
	return append(appendHeader(nil, messageRefuse, 0, len(reason)), reason...)
}

// register makes l the connection of its node. An older one is closed, and
// has ended when register returns. It reports whether the link is known; if
// not, the node's former link has ended.
func (s *Switch) register(ctx context.Context, l *inLink) (known bool, err error) {
	for {
		s.mu.Lock()
		old := s.inLinks[l.node]
		if old == nil {
			break
		}
		s.mu.Unlock()
		if old.session == l.session && old.dial >= l.dial {
			return false, errors.New("a later connection of the same session is served already")
		}
		abort(old.conn)
		select {
		case <-old.done:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	former := s.inStates[l.node]
	if former == nil && len(s.inStates) >= maxPeers {
		s.mu.Unlock()
		return false, fmt.Errorf("links of %d nodes are known", maxPeers)
	}
	s.inLinks[l.node] = l
	if former != nil && former.session == l.session && former.link == l.link {
		l.state = former
		s.mu.Unlock()
		return true, nil
	}
	l.state = &inState{session: l.session, link: l.link, networks: map[uint32]*resolved{}}
	s.inStates[l.node] = l.state
	networks := s.openNetworks()
	s.mu.Unlock()
	for _, n := range networks {
		if former != nil {
			n.linkEnded(l.node, former.link)
		}
	}
	return false, nil
}

func (s *Switch) unregister(l *inLink) {
	s.mu.Lock()
	delete(s.inLinks, l.node)
	if s.links[l.node] != nil {
		s.inDown[l.node] = time.Now()
	}
	s.mu.Unlock()
	close(l.done)
}

func (l *inLink) serve() error {
	buf := make([]byte, 2*maxBody)
	start, end := 0, 0
	limits := l.sw.limits
	silence := limits.GreetTimeout // until the first message
	handled, acked := 0, time.Now()
	for {
		now := time.Now()
		_ = l.conn.SetReadDeadline(now.Add(silence))
		n, err := l.conn.Read(buf[end:])
		end += n
		before := start
		for {
			m, size, err := parseMessage(buf[start:end])
			if err == nil && size > 0 {
				err = l.handle(m)
			}
			if err != nil {
				l.batch.flush(false)
				return err
			}
			if size == 0 {
				break
			}
			start += size
			silence = limits.PeerTimeout
		}
		l.batch.flush(false)
		if err != nil {
			return err
		}
		if handled += start - before; handled >= ackBytes || now.Sub(acked) >= limits.PingInterval {
			if err := l.acknowledge(); err != nil {
				return err
			}
			handled, acked = 0, now
		}
		if start == end {
			start, end = 0, 0
		} else if start > 0 && len(buf)-end < maxBody+messageHeader {
			end = copy(buf, buf[start:end])
			start = 0
		}
	}
}

// acknowledge tells the peer what has been handled, unless it knows.
func (l *inLink) acknowledge() error {
	if l.acked == l.state.received {
		return nil
	}
	l.acked = l.state.received
	return l.answer(appendAck(nil, l.acked))
}

func (l *inLink) answer(data []byte) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(l.sw.limits.GreetTimeout))
	_, err := l.conn.Write(data)
	return err
}

// handle handles a message. A numbered one is handled once.
func (l *inLink) handle(m message) error {
	if !m.kind.numbered() {
		if m.kind != messagePing {
			return fmt.Errorf("%w: type %d in mid-link", errMessage, m.kind)
		}
		token, err := m.ping()
		if err != nil {
			return err
		}
		l.batch.flush(false)
		l.acked = l.state.received
		return l.answer(appendPong(nil, token, l.acked))
	}
	switch due := l.state.received + 1; {
	case m.number < due:
		l.sw.stats.duplicates.Add(1)
		return nil
	case m.number > due:
		return fmt.Errorf("%w: number %d where %d is due", errMessage, m.number, due)
	}
	if err := l.apply(m); err != nil {
		return err
	}
	l.state.received = m.number
	return nil
}

func (l *inLink) apply(m message) error {
	if m.kind == messageFrames {
		return l.frames(m)
	}
	l.batch.flush(false) // MARK stands behind all frames before it
	if m.kind == messageNetwork {
		id, err := m.network()
		if err != nil {
			return err
		}
		l.state.networks[m.handle] = &resolved{id: id, counts: newPairTable(l.link)}
		return nil
	}
	epoch, err := m.epoch()
	if err != nil {
		return err
	}
	if r := l.state.networks[m.handle]; l.resolve(r) {
		if m.kind == messageMark {
			r.network.marked(r.from, r.counts, epoch)
		} else {
			r.network.unmarked(r.from, epoch)
		}
	}
	return nil
}

// resolve finds the open network that r means, if there is one.
func (l *inLink) resolve(r *resolved) bool {
	if r == nil {
		return false
	}
	if r.network != nil && !r.network.closed.Load() {
		return true
	}
	r.network, r.from = nil, nil
	n := l.sw.lookup(r.id)
	if n == nil {
		return false
	}
	from := n.from(l.node)
	if from == nil {
		return false // no guest of that network lives on the peer
	}
	r.network, r.from = n, from
	return true
}

func (l *inLink) frames(m message) error {
	source, destination, data, frames, err := m.run()
	if err != nil {
		return err
	}
	r := l.state.networks[m.handle]
	if r == nil {
		return fmt.Errorf("%w: frames of unannounced network %d", errMessage, m.handle)
	}
	if !l.resolve(r) {
		// The peer counts these frames as sent, so they are counted here too.
		r.counts.get(source, destination).dropped.Add(uint64(frames))
		l.sw.stats.unknownNetwork.Add(uint64(frames))
		return nil
	}
	n := r.network
	n.places.RLock()
	defer n.places.RUnlock()
	from, okFrom := n.byGuest[source]
	to, okTo := n.byGuest[destination]
	switch {
	case !okFrom || !okTo:
		r.counts.get(source, destination).dropped.Add(uint64(frames))
		l.sw.stats.misplaced.Add(uint64(frames))
	case n.members[from].node != l.node || n.members[to].port == nil:
		// One of them has moved, and the pair's counts have begun anew or will.
		l.sw.stats.misplaced.Add(uint64(frames))
	default:
		r.from.accept(&l.batch, n.members[to].port, r.counts, r.counts.get(source, destination), data, frames)
	}
	return nil
}
