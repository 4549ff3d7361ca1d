package guest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/mpirun-vft/vft/guest/serial"
)

// line sends HTTP requests over the one session that can exist at a time.
type line struct {
	dial      func(ctx context.Context) (net.Conn, error)
	transport *http.Transport

	// opening is held while a session is being opened; unlike a mutex it can be
	// waited for with a context.
	opening chan struct{}

	mu      sync.Mutex
	session net.Conn
	conn    *http.ClientConn
	closed  bool
}

func newLine(dial func(ctx context.Context) (net.Conn, error)) *line {
	l := &line{dial: dial, opening: make(chan struct{}, 1)}
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	l.transport = &http.Transport{
		Protocols: protocols,
		HTTP2:     &http.HTTP2Config{MaxReadFrameSize: 256 << 10},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			raw, err := l.dial(ctx)
			if err != nil {
				return nil, fmt.Errorf("connect to the guest's agent: %w", err)
			}
			session, err := serial.Dial(ctx, raw)
			if err != nil {
				return nil, err
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.session = session
			return session, nil
		},
	}
	return l
}

// RoundTrip implements [http.RoundTripper].
func (l *line) RoundTrip(req *http.Request) (*http.Response, error) {
	conn, err := l.open(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return conn.RoundTrip(req)
}

// open returns the connection in use, or a new one.
func (l *line) open(ctx context.Context) (*http.ClientConn, error) {
	select {
	case l.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-l.opening }()
	l.mu.Lock()
	conn, closed := l.conn, l.closed
	l.mu.Unlock()
	if closed {
		return nil, ErrClientClosed
	}
	if conn != nil && conn.Err() == nil {
		return conn, nil
	}
	l.reset(false)
	conn, err := l.transport.NewClientConn(ctx, "http", "guest:80")
	if err != nil {
		l.reset(false)
		return nil, err
	}
	l.mu.Lock()
	l.conn, closed = conn, l.closed
	l.mu.Unlock()
	if closed {
		l.reset(true)
		return nil, ErrClientClosed
	}
	return conn, nil
}

// reset ends the session, for good if asked to.
func (l *line) reset(forGood bool) {
	l.mu.Lock()
	session, conn := l.session, l.conn
	l.session, l.conn = nil, nil
	l.closed = l.closed || forGood
	l.mu.Unlock()
	// The session first: the connection then has nothing to say goodbye to.
	if session != nil {
		_ = session.Close()
	}
	if conn != nil {
		_ = conn.Close()
	}
}
