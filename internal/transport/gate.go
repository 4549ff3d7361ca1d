package transport

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// Gate cuts a process off from the network without touching the kernel: while
// it is shut, connections made through it carry nothing in either direction,
// as when a cable is pulled. Nothing is refused and nothing is closed; the
// other side finds out by its own time-outs. A laboratory cluster without
// network namespaces partitions its nodes with it. The zero Gate is open.
type Gate struct {
	mu     sync.Mutex
	shut   bool
	change chan struct{} // closed at every change
}

// Set shuts or opens the gate.
func (g *Gate) Set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == shut {
		return
	}
	g.shut = shut
	if g.change != nil {
		close(g.change)
		g.change = nil
	}
}

// state returns whether the gate is shut and a channel closed when that changes.
func (g *Gate) state() (bool, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.change == nil {
		g.change = make(chan struct{})
	}
	return g.shut, g.change
}

// Dial connects through the gate. While it is shut it waits, as for a host
// that does not answer, until ctx ends.
func (g *Gate) Dial(ctx context.Context, address string) (net.Conn, error) {
	for {
		shut, change := g.state()
		if !shut {
			break
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return g.wrap(conn), nil
}

func (g *Gate) wrap(conn net.Conn) *gatedConn {
	return &gatedConn{Conn: conn, gate: g, closed: make(chan struct{})}
}

// gatedConn withholds what it reads and does not write while the gate is shut.
type gatedConn struct {
	net.Conn
	gate   *Gate
	once   sync.Once
	gone   func() // told of the end; set before others have the connection
	closed chan struct{}

	reading sync.Mutex
	held    []byte // read and not handed out

	mu            sync.Mutex
	readDeadline  time.Time
	writeDeadline time.Time
}

func (c *gatedConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(c.held) > 0 {
		if err := c.pass(&c.readDeadline); err != nil {
			return 0, err
		}
		n := copy(p, c.held)
		c.held = c.held[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	// What arrived while the gate is shut stays in the cable, also when the
	// reader gives up: it is there when the gate opens.
	if perr := c.pass(&c.readDeadline); perr != nil {
		c.held = append([]byte(nil), p[:n]...)
		return 0, perr
	}
	return n, err
}

func (c *gatedConn) Write(p []byte) (int, error) {
	if err := c.pass(&c.writeDeadline); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// pass waits until the gate is open, the deadline is over or the connection closed.
func (c *gatedConn) pass(deadline *time.Time) error {
	for {
		shut, change := c.gate.state()
		if !shut {
			return nil
		}
		c.mu.Lock()
		at := *deadline
		c.mu.Unlock()
		// A deadline may be moved while we wait; look again now and then.
		wait := 200 * time.Millisecond
		if !at.IsZero() {
			left := time.Until(at)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			wait = min(wait, left)
		}
		timer := time.NewTimer(wait)
		select {
		case <-change:
		case <-c.closed:
			timer.Stop()
			return net.ErrClosed
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Close also frees those that wait for the gate.
func (c *gatedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		if c.gone != nil {
			c.gone()
		}
	})
	return c.Conn.Close()
}

// SetDeadline holds for waiting at the gate, too.
func (c *gatedConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.readDeadline, c.writeDeadline = t, t
	c.mu.Unlock()
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline holds for waiting at the gate, too.
func (c *gatedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.readDeadline = t
	c.mu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline holds for waiting at the gate, too.
func (c *gatedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.writeDeadline = t
	c.mu.Unlock()
	return c.Conn.SetWriteDeadline(t)
}
