package serial

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	idleFirst = 2 * time.Millisecond
	idleMax   = 100 * time.Millisecond
)

// Listener accepts sessions at the guest's end of the line. A new session ends
// the one before it.
type Listener struct {
	line     *line
	r        io.Reader
	accepted chan net.Conn
	closing  chan struct{}
	once     sync.Once

	mu      sync.Mutex
	current *conn
}

// NewListener uses port, whose Read returns 0 bytes or io.EOF at once while
// nobody is connected at the host's end, and whose Write blocks then.
func NewListener(port io.ReadWriter) *Listener {
	return &Listener{line: &line{w: port}, r: port, accepted: make(chan net.Conn), closing: make(chan struct{})}
}

// Run reads the line until ctx ends or the port fails. It does not interrupt a
// Read of the port that blocks.
func (l *Listener) Run(ctx context.Context) error {
	defer close(l.accepted)
	defer l.replace(nil)
	var s scanner
	buf := make([]byte, 64<<10)
	idle := idleFirst
	for ctx.Err() == nil {
		n, err := l.r.Read(buf)
		if n == 0 && (err == nil || errors.Is(err, io.EOF)) {
			// The host has hung up: what was under way is lost. The port says so
			// again at once on every read, so wait between the reads.
			l.replace(nil)
			s.reset()
			if !sleep(ctx, idle) {
				break
			}
			idle = min(idle*2, idleMax)
			continue
		}
		idle = idleFirst
		s.feed(buf[:n])
		if err := l.dispatch(ctx, &s); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (l *Listener) dispatch(ctx context.Context, s *scanner) error {
	for {
		r, ok := s.next()
		if !ok {
			return nil
		}
		cur := l.active()
		known := cur != nil && cur.session == r.session
		switch {
		case r.kind == kindSyn:
			if !known {
				cur = newConn(l.line, r.session, nil)
				cur.onClose = func() { l.closed(cur) }
				l.replace(cur)
				select {
				case l.accepted <- cur:
				case <-l.closing:
					return net.ErrClosed
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := l.line.send(record{kind: kindSynAck, session: r.session}); err != nil {
				return err
			}
		case r.kind == kindData && known:
			if !cur.deliver(r, false) {
				// Tell the host, so that it dials again.
				if err := l.line.send(record{kind: kindFin, session: r.session}); err != nil {
					return err
				}
				l.replace(nil)
			}
		case r.kind == kindFin && known:
			l.replace(nil)
		}
	}
}

// Accept waits for the next session. It returns [net.ErrClosed] when Run has
// ended or after Close.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c, ok := <-l.accepted:
		if ok {
			return c, nil
		}
	case <-l.closing:
	}
	return nil, net.ErrClosed
}

// Close ends Accept, and Run with its next record.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closing) })
	return nil
}

// Addr implements [net.Listener].
func (l *Listener) Addr() net.Addr { return addr{} }

func (l *Listener) active() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

func (l *Listener) replace(c *conn) {
	l.mu.Lock()
	old := l.current
	l.current = c
	l.mu.Unlock()
	if old != nil {
		old.fail(ErrReset)
	}
}

func (l *Listener) closed(c *conn) {
	l.mu.Lock()
	was := l.current == c
	if was {
		l.current = nil
	}
	l.mu.Unlock()
	if was {
		// In its own time: the line blocks while the host is away.
		go func() { _ = l.line.send(record{kind: kindFin, session: c.session}) }()
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
