package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Port joins one local guest to its network through QEMU's unix socket.
type Port struct {
	network *Network
	guest   int
	self    int // index of the guest in the network's members
	tx      []*pair
	out     outQueue

	attach sync.Mutex // one AttachPort or DetachPort at a time
	socket string     // empty: detached
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex // of the way in
	sock    Socket     // nil: not connected
	buf     []byte
	r, w    int // unread part of buf
	holding bool
	preload heldQueue
	held    heldQueue
	unblock chan struct{} // not nil: the reader waits for the hold to end
	batch   batch

	stats inStats
}

type inStats struct {
	frames, bytes                        atomic.Uint64
	runts, spoofed, unknown, reflections atomic.Uint64
	reconnects                           atomic.Uint64
}

func newPort(n *Network, guest, self int) *Port {
	p := &Port{network: n, guest: guest, self: self, tx: make([]*pair, len(n.members))}
	p.out.init(&n.sw.pool, n.sw.limits.PortQueue)
	p.held.pool, p.preload.pool = &n.sw.pool, &n.sw.pool
	return p
}

// Guest returns the index of the port's guest.
func (p *Port) Guest() int { return p.guest }

// start serves conn, and what replaces it, until stop.
func (p *Port) start(sock Socket, socket string) {
	c := p.connect(sock)
	ctx, cancel := context.WithCancel(p.network.ctx)
	p.socket, p.cancel, p.done = socket, cancel, make(chan struct{})
	p.network.sw.wg.Go(func() {
		defer close(p.done)
		p.run(ctx, c, socket)
	})
}

func (p *Port) stop() {
	if p.cancel != nil {
		p.cancel()
		<-p.done
		p.socket, p.cancel, p.done = "", nil, nil
	}
}

func (p *Port) run(ctx context.Context, c connection, socket string) {
	log := p.network.log.With("guest", p.guest)
	for {
		err := p.serve(ctx, c)
		if ctx.Err() != nil {
			return
		}
		log.Info("port lost its connection", "error", err)
		sock, err := p.network.sw.reach(ctx, socket)
		if err != nil {
			return // only when ctx is done
		}
		c = p.connect(sock)
		p.stats.reconnects.Add(1)
		log.Info("port connected again")
	}
}

// reach dials QEMU until it answers or ctx ends.
func (s *Switch) reach(ctx context.Context, socket string) (Socket, error) {
	const first, last = 5 * time.Millisecond, 250 * time.Millisecond
	var why error
	for wait := first; ; wait = min(2*wait, last) {
		sock, err := s.dialPort(ctx, socket)
		if why == nil || !errors.Is(err, context.DeadlineExceeded) {
			why = err // what QEMU's side said, not that time was up
		}
		if err == nil {
			return sock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial QEMU at %s: %w (%w)", socket, ctx.Err(), why)
		case <-time.After(wait):
		}
	}
}

// connection is one life of a port's socket.
type connection struct {
	Socket
	generation uint64
}

// connect makes sock the port's socket, in both directions.
func (p *Port) connect(sock Socket) connection {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sock, p.r, p.w = sock, 0, 0
	if p.buf == nil {
		p.buf = make([]byte, readBuffer)
	}
	return connection{sock, p.out.connect(sock)}
}

// serve moves frames until the connection breaks or ctx ends.
func (p *Port) serve(ctx context.Context, c connection) error {
	stop := context.AfterFunc(ctx, c.Interrupt)
	writing, writer := make(chan struct{}), make(chan struct{})
	go func() { // ends when serve closes the connection and writing
		defer close(writer)
		p.write(c, writing)
	}()

	err := p.read(ctx, c)

	// Nobody may use the socket once it is closed, since its number is reused.
	stop()
	p.mu.Lock()
	p.sock, p.r, p.w = nil, 0, 0
	p.mu.Unlock()
	p.out.disconnect()
	close(writing)
	_ = c.Close()
	<-writer
	return err
}

func (p *Port) write(c connection, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-p.out.wake:
		}
		if err := c.AwaitWrite(func() bool { return p.out.flush(c.generation) }); err != nil {
			return
		}
	}
}

type readState int

const (
	readMore    readState = iota // there may be more
	readEmpty                    // the socket is empty
	readBlocked                  // too much is held
	readFailed
)

func (p *Port) read(ctx context.Context, c connection) error {
	var (
		state readState
		err   error
	)
	for {
		rerr := c.AwaitRead(func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			state, err = p.readOnce(false)
			return state != readEmpty
		})
		switch {
		case rerr != nil:
			return rerr
		case state == readFailed:
			return err
		case state == readBlocked:
			p.mu.Lock()
			unblock := p.unblock
			p.mu.Unlock()
			if unblock == nil {
				continue
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-unblock:
			}
		}
	}
}

// readOnce reads what one system call gives and forwards or holds it. With
// beyond the limit of what may be held does not count. Called with mu held.
func (p *Port) readOnce(beyond bool) (readState, error) {
	if p.sock == nil {
		return readFailed, net.ErrClosed
	}
	if p.holding && !beyond && p.held.bytes >= p.network.sw.limits.Held {
		if p.unblock == nil {
			p.unblock = make(chan struct{})
		}
		return readBlocked, nil
	}
	n, err := p.sock.Read(p.buf[p.w:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return readEmpty, nil
	case errors.Is(err, unix.EINTR):
		return readMore, nil
	case err != nil:
		return readFailed, fmt.Errorf("read from QEMU: %w", err)
	case n == 0:
		return readFailed, io.EOF
	}
	p.w += n
	p.stats.bytes.Add(uint64(n))
	whole, err := wholeFrames(p.buf[p.r:p.w])
	frames := p.buf[p.r : p.r+whole]
	if taps := p.network.taps.Load(); taps != nil && whole > 0 {
		now := time.Now()
		for _, t := range *taps {
			t.add(p.guest, now, frames)
		}
	}
	if p.holding {
		p.held.append(frames)
	} else {
		p.route(frames, false, false)
	}
	p.r += whole
	if err != nil {
		return readFailed, fmt.Errorf("read from QEMU: %w", err)
	}
	if p.r == p.w {
		p.r, p.w = 0, 0
	} else if len(p.buf)-p.w < maxWholeRun {
		p.w = copy(p.buf, p.buf[p.r:p.w])
		p.r = 0
	}
	return readMore, nil
}

// route forwards whole frames of the guest. With restored, frames from other
// guests are channel state on its way to this one. Called with mu held.
func (p *Port) route(frames []byte, force, restored bool) {
	n := p.network
	own := n.members[p.self].mac
	to, begin, end, count := -1, 0, 0, 0
	flush := func() {
		if to >= 0 {
			p.forward(to, frames[begin:end], count)
		}
		to = -1
	}
	for at := 0; at < len(frames); {
		size, _ := frameSize(frames[at:])
		frame := frames[at+frameHeader : at+size]
		next := at + size
		if len(frame) < minFrame {
			p.stats.runts.Add(1)
			at = next
			continue
		}
		p.stats.frames.Add(1)
		destination := destinationOf(frame)
		switch index, known := n.byMAC[destination]; {
		case sourceOf(frame) != own:
			flush()
			if restored {
				p.batch.toPort(p, run{data: frames[at:next], frames: 1})
			} else {
				p.stats.spoofed.Add(1)
			}
		case destination.group():
			flush()
			for i := range n.members {
				if i != p.self {
					p.forward(i, frames[at:next], 1)
				}
			}
		case !known:
			p.stats.unknown.Add(1)
		case index == p.self:
			p.stats.reflections.Add(1)
		case index == to && end == at && next-begin <= maxRun:
			end = next
			count++
		default:
			flush()
			to, begin, end, count = index, at, next, 1
		}
		at = next
	}
	flush()
	p.batch.flush(force)
}

// forward gives a run to the batch and, for a guest on this node, counts it
// as sent; a link counts for itself, because its counts are its own.
func (p *Port) forward(to int, data []byte, frames int) {
	n := p.network
	counts := p.tx[to]
	if counts == nil {
		counts = &pair{source: p.guest, destination: n.members[to].guest}
		p.tx[to] = counts
	}
	r := run{data: data, frames: frames, pair: counts}
	if m := &n.members[to]; m.port != nil {
		counts.sent.Add(uint64(frames))
		p.batch.toPort(m.port, r)
	} else {
		p.batch.toLink(m.link, m.handle, r)
	}
}

// hold makes the reader queue frames from now on. What it has read before is
// forwarded when hold returns.
func (p *Port) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding = true
}

// release forwards what is held, in order, and frames as they come again.
func (p *Port) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preload.drain(func(frames []byte) { p.route(frames, true, true) })
	p.held.drain(func(frames []byte) { p.route(frames, true, false) })
	p.holding = false
	if p.unblock != nil {
		close(p.unblock)
		p.unblock = nil
	}
}

// forget drops what is held. Called when the network closes.
func (p *Port) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preload.drain(func([]byte) {})
	p.held.drain(func([]byte) {})
}

// drain reads what the stopped guest has sent and returns the channel state.
func (p *Port) drain(ctx context.Context) ([][]byte, error) {
	for began := time.Now(); ; {
		frames, done, err := p.drainOnce(time.Since(began) > p.network.sw.limits.PartialWait)
		if done || err != nil {
			return frames, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("rest of a frame of guest %d: %w", p.guest, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func (p *Port) drainOnce(giveUp bool) ([][]byte, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.holding {
		return nil, false, ErrNotHeld
	}
	for state := readMore; state != readEmpty; {
		var err error
		if state, err = p.readOnce(true); err != nil {
			return nil, false, fmt.Errorf("drain the port of guest %d: %w", p.guest, err)
		}
	}
	if p.r != p.w {
		if !giveUp {
			return nil, false, nil
		}
		p.network.log.Warn("guest stopped within a frame, port is remade", "guest", p.guest)
		p.sock.Shutdown()
	}
	frames := p.out.kept()
	frames = p.preload.frames(frames)
	return p.held.frames(frames), true, nil
}

// heldQueue is frames in order, in QEMU's framing, none of them across two
// buffers.
type heldQueue struct {
	pool    *pool
	buffers []*buffer
	bytes   int // capacity of the buffers
}

func (h *heldQueue) append(frames []byte) {
	if len(frames) == 0 {
		return
	}
	if n := len(h.buffers); n > 0 {
		if last := h.buffers[n-1]; cap(last.b)-len(last.b) >= len(frames) {
			last.b = append(last.b, frames...)
			return
		}
	}
	const step = 64 * 1024
	b := h.pool.get(max(step, len(frames)))
	b.b = append(b.b, frames...)
	h.buffers = append(h.buffers, b)
	h.bytes += cap(b.b)
}

func (h *heldQueue) drain(f func(frames []byte)) {
	for _, b := range h.buffers {
		f(b.b)
		h.pool.put(b)
	}
	h.buffers, h.bytes = nil, 0
}

func (h *heldQueue) frames(all [][]byte) [][]byte {
	for _, b := range h.buffers {
		all = splitFrames(all, b.b)
	}
	return all
}
