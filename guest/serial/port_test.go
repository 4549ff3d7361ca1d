package serial

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// switchPort behaves like the guest's port: with no host connected a read
// returns io.EOF at once and a write waits.
type switchPort struct {
	ctx context.Context
	mu  sync.Mutex
	cur net.Conn
}

func (p *switchPort) set(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur != nil {
		_ = p.cur.Close()
	}
	p.cur = c
}

func (p *switchPort) get() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cur
}

func (p *switchPort) Read(b []byte) (int, error) {
	c := p.get()
	if c == nil {
		return 0, io.EOF
	}
	n, err := c.Read(b)
	if err != nil {
		return 0, io.EOF
	}
	return n, nil
}

func (p *switchPort) Write(b []byte) (int, error) {
	done := 0
	for {
		if err := p.ctx.Err(); err != nil {
			return done, err
		}
		if c := p.get(); c != nil {
			n, err := c.Write(b[done:])
			done += n
			if err == nil {
				return done, nil
			}
		}
		time.Sleep(time.Millisecond)
	}
}
