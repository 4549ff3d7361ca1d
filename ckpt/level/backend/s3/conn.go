package s3

import (
	"context"
	"net"
	"time"
)

// conn is a connection that fails when it has been silent for too long.
type conn struct {
	net.Conn
	silence time.Duration
}

func dialer(silence time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: min(silence, 15*time.Second)}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &conn{c, silence}, nil
	}
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// Write implements net.Conn. Whoever writes does not expect an answer before,
// so that a Read which waits for one goes on waiting.
func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
