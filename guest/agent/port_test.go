package agent_test

import (
	"io"
	"net"
	"sync"
	"time"
)

// fakePort is the guest's end of a virtio-serial port: while no host is
// connected a read returns io.EOF at once and a write waits.
type fakePort struct {
	mu     sync.Mutex
	host   net.Conn
	closed bool
}

func newFakePort() *fakePort { return &fakePort{} }

// connect plugs in a new host and returns its end.
func (p *fakePort) connect() net.Conn {
	a, b := net.Pipe()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != nil {
		_ = p.host.Close()
	}
	p.host = b
	return a
}

func (p *fakePort) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.host != nil {
		_ = p.host.Close()
	}
}

func (p *fakePort) current() (net.Conn, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host, p.closed
}

func (p *fakePort) Read(b []byte) (int, error) {
	c, _ := p.current()
	if c == nil {
		return 0, io.EOF
	}
	n, err := c.Read(b)
	if err != nil {
		return 0, io.EOF
	}
	return n, nil
}

func (p *fakePort) Write(b []byte) (int, error) {
	for done := 0; ; {
		c, closed := p.current()
		if closed {
			return done, io.ErrClosedPipe
		}
		if c != nil {
			n, err := c.Write(b[done:])
			if done += n; err == nil {
				return done, nil
			}
		}
		time.Sleep(time.Millisecond)
	}
}
