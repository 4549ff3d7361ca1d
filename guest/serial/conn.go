package serial

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// ErrReset says that the session ended because a newer one took its place or
// because bytes of it were lost.
var ErrReset = errors.New("serial session was reset")

// bufferLimit bounds what one session may hold unread. HTTP/2's own flow
// control stays far below it.
const bufferLimit = 16 << 20

// line is the shared byte line; whole records are written under its lock.
type line struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (l *line) send(r record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = appendRecord(l.buf[:0], r)
	for b := l.buf; len(b) > 0; {
		n, err := l.w.Write(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// conn is one end of a session.
type conn struct {
	line    *line
	session uint64
	onClose func()

	mu       sync.Mutex
	change   *sync.Cond
	in       []byte
	err      error // why reading ends, after in is empty
	closed   bool
	recvSeq  uint32
	deadline time.Time
	timer    *time.Timer

	sendMu  sync.Mutex
	sendSeq uint32
}

func newConn(l *line, session uint64, onClose func()) *conn {
	c := &conn{line: l, session: session, onClose: onClose}
	c.change = sync.NewCond(&c.mu)
	return c
}

// deliver takes the payload of a data record; false means that the session
// cannot go on.
func (c *conn) deliver(r record, wait bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	if r.seq != c.recvSeq {
		c.failLocked(ErrReset)
		return false
	}
	for wait && len(c.in) > bufferLimit && c.err == nil {
		c.change.Wait()
	}
	if c.err != nil {
		return false
	}
	if len(c.in) > bufferLimit {
		c.failLocked(ErrReset)
		return false
	}
	c.recvSeq++
	c.in = append(c.in, r.payload...)
	c.change.Broadcast()
	return true
}

func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *conn) failLocked(err error) {
	if c.err == nil {
		c.err = err
	}
	c.change.Broadcast()
}

// Read implements [net.Conn].
func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.in) == 0 {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.err != nil:
			return 0, c.err
		case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		}
		c.change.Wait()
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	if len(c.in) == 0 {
		c.in = nil
	}
	c.change.Broadcast()
	return n, nil
}

// Write implements [net.Conn].
func (c *conn) Write(b []byte) (int, error) {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	done := 0
	for len(b) > 0 {
		if err := c.state(); err != nil {
			return done, err
		}
		n := min(len(b), MaxPayload)
		if err := c.line.send(record{kind: kindData, session: c.session, seq: c.sendSeq, payload: b[:n]}); err != nil {
			c.fail(err)
			return done, err
		}
		c.sendSeq++
		done += n
		b = b[n:]
	}
	return done, nil
}

func (c *conn) state() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.err
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.failLocked(net.ErrClosed)
	c.mu.Unlock()
	if c.onClose != nil {
		c.onClose()
	}
	return nil
}

// LocalAddr implements [net.Conn].
func (c *conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements [net.Conn].
func (c *conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements [net.Conn]; it bounds reads only.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements [net.Conn].
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if !t.IsZero() {
		c.timer = time.AfterFunc(max(time.Until(t), 0), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.change.Broadcast()
		})
	}
	c.change.Broadcast()
	return nil
}

// SetWriteDeadline implements [net.Conn]. A write waits for the line as long
// as the guest or the host is away; the session's reset ends it.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

type addr struct{}

// Network implements [net.Addr].
func (addr) Network() string { return "virtio-serial" }

// String implements [net.Addr].
func (addr) String() string { return "virtio-serial" }
