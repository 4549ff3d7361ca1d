package s3test

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Proxy passes connections on, and can spoil them.
type Proxy struct {
	Addr string // HOST:PORT

	to       string
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool
	up, down *rule
	flipped  bool
}

// rule is what happens to what flows in one direction.
type rule struct {
	after int64 // bytes, over all connections
	times int   // how often it happens; each time the count begins again
	do    func(c, other net.Conn)
	stall chan struct{}
	seen  int64
}

// NewProxy passes connections on to addr until the test ends.
func NewProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), to: addr, listener: l, conns: map[net.Conn]bool{}, up: &rule{}, down: &rule{}}
	ctx, cancel := context.WithCancel(context.Background())
	p.wg.Go(func() { p.accept(ctx) })
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		p.Heal()
		p.closeAll()
		p.wg.Wait()
	})
	return p
}

// CutUp cuts the connection after so many bytes to the server, so often.
func (p *Proxy) CutUp(after int64, times int) { p.set(&p.up, cutting(after, times)) }

// CutDown cuts the connection after so many bytes from the server, so often.
func (p *Proxy) CutDown(after int64, times int) { p.set(&p.down, cutting(after, times)) }

// FlipUp inverts a bit of the byte after so many bytes to the server, once.
func (p *Proxy) FlipUp(after int64) {
	p.mu.Lock()
	p.flipped = false
	p.mu.Unlock()
	p.set(&p.up, &rule{after: after, times: 1})
}

// StallDown passes nothing on any more after so many bytes from the server,
// on every connection, until Heal.
func (p *Proxy) StallDown(after int64) {
	p.set(&p.down, &rule{after: after, times: 1 << 30, stall: make(chan struct{})})
}

// Heal ends all spoiling.
func (p *Proxy) Heal() {
	p.set(&p.up, &rule{})
	p.set(&p.down, &rule{})
}

// Flipped reports whether the bit of FlipUp has been inverted.
func (p *Proxy) Flipped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flipped
}

func cutting(after int64, times int) *rule {
	return &rule{after: after, times: times, do: func(c, other net.Conn) {
		_ = c.Close()
		_ = other.Close()
	}}
}

func (p *Proxy) set(at **rule, r *rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (*at).stall != nil {
		close((*at).stall)
	}
	*at = r
}

func (p *Proxy) accept(ctx context.Context) {
	var d net.Dialer
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := d.DialContext(ctx, "tcp", p.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.pass(server, client, &p.up) })
		p.wg.Go(func() { p.pass(client, server, &p.down) })
	}
}

func (p *Proxy) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) pass(to, from net.Conn, at **rule) {
	defer func() {
		_ = to.Close()
		p.mu.Lock()
		delete(p.conns, to)
		p.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		b, then := p.apply(buf[:n], at)
		if _, err := to.Write(b); err != nil {
			return
		}
		if then != nil {
			then(to, from)
		}
		if err != nil {
			return
		}
	}
}

// apply spoils b, or tells what to do after a part of it.
func (p *Proxy) apply(b []byte, at **rule) ([]byte, func(to, from net.Conn)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := *at
	begin := r.seen
	r.seen += int64(len(b))
	if r.times == 0 || r.seen <= r.after {
		return b, nil
	}
	cut := r.after - begin
	switch {
	case r.stall != nil:
		r.seen = r.after
		return b[:cut], func(net.Conn, net.Conn) { <-r.stall }
	case r.do != nil:
		r.times, r.seen = r.times-1, 0
		return b[:cut], r.do
	default:
		r.times, p.flipped = 0, true
		b[cut] ^= 1
		return b, nil
	}
}
