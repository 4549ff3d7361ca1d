package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// errAnew says that a link has to begin anew.
var errAnew = errors.New("the peer does not know the link")

// run keeps the link connected until ctx ends.
func (l *outLink) run(ctx context.Context) {
	log := l.sw.log.With("peer", l.node)
	limits := l.sw.limits
	wait, patience := limits.RedialMin, limits.PeerTimeout
	for ctx.Err() == nil {
		began := time.Now()
		connected, err := l.live(ctx, patience)
		if ctx.Err() != nil {
			return
		}
		log.Debug("connection of a link ended", "error", err)
		switch {
		case errors.Is(err, errAnew):
			continue
		case !connected:
			patience = min(2*patience, limits.GreetTimeout)
		case time.Since(began) > limits.PeerTimeout:
			wait = limits.RedialMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, limits.RedialMax)
	}
}

// live is one connection of the link: dial and greet, for as long as patience
// permits, then send until it breaks.
func (l *outLink) live(ctx context.Context, patience time.Duration) (connected bool, err error) {
	l.mu.Lock()
	address, id := l.address, l.id
	l.mu.Unlock()
	dialling, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := l.sw.dial(dialling, address)
	if err != nil {
		return false, fmt.Errorf("dial %s at %s: %w", l.node, address, err)
	}
	defer abort(conn)
	stop := context.AfterFunc(ctx, func() { abort(conn) })
	defer stop()

	answer, err := l.greet(dialling, conn, id)
	if err != nil {
		return false, fmt.Errorf("greet %s: %w", l.node, err)
	}
	if err := l.up(conn, answer, address); err != nil {
		return false, fmt.Errorf("link to %s: %w", l.node, err)
	}
	defer l.down()
	l.sw.log.Info("link connected", "peer", l.node, "link", id, "resumed", answer.known)

	group, ctx := errgroup.WithContext(ctx)
	stopToo := context.AfterFunc(ctx, func() { abort(conn) })
	defer stopToo()
	group.Go(func() error { return l.write(ctx) })
	group.Go(func() error { return l.answers(conn) })
	return true, group.Wait()
}

func (l *outLink) greet(ctx context.Context, conn net.Conn, id uint64) (welcome, error) {
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return welcome{}, err
	}
	greeting := appendHello(nil, hello{session: l.sw.session, dial: l.sw.dials.Add(1), link: id, node: l.sw.node})
	if _, err := conn.Write(greeting); err != nil {
		return welcome{}, err
	}
	m, err := readMessage(conn)
	if err != nil {
		return welcome{}, err
	}
	answer, err := m.welcome()
	if err != nil {
		return welcome{}, err
	}
	if answer.node != l.node {
		return welcome{}, fmt.Errorf("it calls itself %s", answer.node)
	}
	if err := l.sw.checkPeer(conn, l.node); err != nil {
		return welcome{}, err
	}
	return answer, conn.SetDeadline(time.Time{})
}

// readMessage reads one message without reading ahead.
func readMessage(r io.Reader) (message, error) {
	buf := make([]byte, messageHeader, 256)
	if _, err := io.ReadFull(r, buf); err != nil {
		return message{}, err
	}
	length := int(buf[1])<<16 | int(buf[2])<<8 | int(buf[3])
	if length > 4*maxName {
		return message{}, fmt.Errorf("%w: %d bytes where a greeting was expected", errMessage, length)
	}
	buf = append(buf, make([]byte, length)...)
	if _, err := io.ReadFull(r, buf[messageHeader:]); err != nil {
		return message{}, err
	}
	m, _, err := parseMessage(buf)
	return m, err
}

// up makes conn the link's connection, if the link can go on there.
func (l *outLink) up(conn net.Conn, answer welcome, address string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.address != address {
		return fmt.Errorf("the node has moved from %s", address)
	}
	for l.writing { // to a former connection, which is closed
		l.idle.Wait()
	}
	switch w := &l.window; {
	case answer.known && answer.received >= w.acked && w.ack(answer.received, nil) == nil:
	case !answer.known && w.offered == 0:
	default:
		l.anew()
		return errAnew
	}
	l.window.rewind()
	l.conn, l.raw = conn, rawConn(conn)
	l.pings = appendPing(nil, uint64(time.Now().UnixNano()))
	l.stats.made.Add(1)
	if answer.known {
		l.stats.resumed.Add(1)
	}
	l.signal()
	return nil
}

// anew ends the link, and what the peer has not acknowledged with it, and
// begins another. Called with mu held and nothing being written.
func (l *outLink) anew() {
	lost := l.window.drop()
	l.stats.lost.Add(uint64(lost))
	l.sw.log.Warn("link begins anew: the peer's switch was started again", "peer", l.node, "lost", lost)
	l.id = l.sw.linkID()
	for handle, id := range l.networks {
		l.announce(handle, id)
	}
}

func (l *outLink) down() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.raw, l.pings = nil, nil, nil
	l.downAt = time.Now()
}

// abort closes conn without the farewell of TLS, which may block.
func abort(conn net.Conn) {
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		_ = secure.NetConn().Close()
		return
	}
	_ = conn.Close()
}

// rawConn returns the socket below conn, if it can be reached.
func rawConn(conn net.Conn) syscall.RawConn {
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	socket, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// write is the link's writer: what direct writes leave, and the pings.
func (l *outLink) write(ctx context.Context) error {
	tick := time.NewTicker(l.sw.limits.PingInterval)
	defer tick.Stop()
	for {
		if err := l.drain(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			l.mu.Lock()
			l.pings = appendPing(l.pings, uint64(now.UnixNano()))
			l.mu.Unlock()
		case <-l.wake:
		}
	}
}

func (l *outLink) drain() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.due() && !l.writing {
		if l.conn == nil {
			return errLinkBroken
		}
		if err := l.writeOut(); err != nil {
			return err
		}
	}
	return nil
}

// answers reads the other direction of the connection: acknowledgements, and
// the signs that the peer is there.
func (l *outLink) answers(conn net.Conn) error {
	buf := make([]byte, 4096)
	end := 0
	silence := l.sw.limits.GreetTimeout // until the first answer
	for {
		_ = conn.SetReadDeadline(time.Now().Add(silence))
		n, err := conn.Read(buf[end:])
		end += n
		start := 0
		for {
			m, size, perr := parseMessage(buf[start:end])
			if perr == nil && size > 0 {
				perr = l.answered(m)
				silence = l.sw.limits.PeerTimeout
			}
			if perr != nil {
				return perr
			}
			if size == 0 {
				break
			}
			start += size
		}
		end = copy(buf, buf[start:end])
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", errLinkBroken, err)
		case end == len(buf):
			return fmt.Errorf("%w: too long for an answer", errMessage)
		}
	}
}

func (l *outLink) answered(m message) error {
	received, err := m.answer()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.window.ack(received, l.busy)
}
