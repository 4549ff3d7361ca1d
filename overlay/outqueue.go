package overlay

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const writeBatch = 64 // frames runs in one writev

// queued is a run that waits for its guest. The buffer begins with a frame.
type queued struct {
	buf     *buffer
	off     int // bytes of buf written already
	frames  int
	pair    *pair
	settled int // bytes of buf that already count as handed over
}

// outQueue is the way out of a port: QEMU's socket and, in front of it, a
// queue that is empty most of the time. Whoever has frames writes them
// directly when nothing waits; the port's writer empties the queue.
type outQueue struct {
	pool  *pool
	limit int
	wake  chan struct{} // capacity 1: the writer has something to do

	mu         sync.Mutex
	sock       Socket // nil: not connected
	generation uint64
	queue      []queued
	head       int
	bytes      int // capacity of the queued buffers
	paused     bool
	suspended  bool
	iov        [writeBatch]unix.Iovec

	stats outStats
}

type outStats struct {
	frames, bytes      atomic.Uint64
	overflow, detached atomic.Uint64
}

func (q *outQueue) init(p *pool, limit int) {
	q.pool, q.limit = p, limit
	q.wake = make(chan struct{}, 1)
}

// connect makes sock the guest's socket. The caller keeps it open until it has
// called disconnect.
func (q *outQueue) connect(sock Socket) (generation uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sock = sock
	q.generation++
	return q.generation
}

// disconnect forgets the socket and drops what waits for it.
func (q *outQueue) disconnect() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sock = nil
	q.generation++
	for i := q.head; i < len(q.queue); i++ {
		e := &q.queue[i]
		if e.pair != nil {
			e.pair.dropped.Add(uint64(e.frames))
		}
		q.stats.detached.Add(uint64(e.frames))
		q.pool.put(e.buf)
	}
	q.queue, q.head, q.bytes = nil, 0, 0
}

// send hands runs to the guest in order. The data is the caller's again when
// send returns. With force the queue's limit does not apply.
func (q *outQueue) send(runs []run, force bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sock == nil {
		for _, r := range runs {
			q.drop(r, &q.stats.detached)
		}
		return
	}
	if q.head == len(q.queue) && !q.paused && !q.suspended {
		runs = q.direct(runs)
	}
	for _, r := range runs {
		q.enqueue(r, force)
	}
	if q.head < len(q.queue) && !q.paused && !q.suspended {
		q.signal()
	}
}

func (q *outQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *outQueue) drop(r run, reason *atomic.Uint64) {
	if r.pair != nil {
		r.pair.dropped.Add(uint64(r.frames))
	}
	reason.Add(uint64(r.frames))
}

// direct writes what the socket takes at once and returns the runs that are
// left; the rest of a run begun is already queued.
func (q *outQueue) direct(runs []run) []run {
	for len(runs) > 0 {
		n := min(len(runs), writeBatch)
		want := 0
		for i, r := range runs[:n] {
			q.iov[i].Base = &r.data[0]
			q.iov[i].SetLen(len(r.data))
			want += len(r.data)
		}
		written := q.writev(n)
		short := written < want
		for written > 0 {
			r := runs[0]
			if written < len(r.data) {
				whole, _ := prefix(r.data, written)
				buf := q.pool.get(len(r.data) - whole)
				buf.b = append(buf.b, r.data[whole:]...)
				q.push(queued{buf: buf, off: written - whole, frames: r.frames, pair: r.pair})
				runs = runs[1:]
				break
			}
			written -= len(r.data)
			q.count(r.pair, r.frames)
			runs = runs[1:]
		}
		if short {
			break
		}
	}
	return runs
}

// writev writes the first n entries of q.iov without blocking and returns
// how many bytes went out. After an error the socket is shut down, which the
// port's reader notices.
func (q *outQueue) writev(n int) int {
	for {
		written, err := q.sock.Writev(q.iov[:n])
		switch {
		case err == nil:
			q.stats.bytes.Add(uint64(written))
			return written
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return 0
		default:
			q.sock.Shutdown()
			return 0
		}
	}
}

func (q *outQueue) count(p *pair, frames int) {
	if p != nil {
		p.delivered.Add(uint64(frames))
	}
	q.stats.frames.Add(uint64(frames))
}

// enqueue copies what fits of r.
func (q *outQueue) enqueue(r run, force bool) {
	if !force {
		room := q.limit - q.bytes
		if len(r.data) > room {
			n, frames := prefix(r.data, room)
			q.drop(run{frames: r.frames - frames, pair: r.pair}, &q.stats.overflow)
			r.data, r.frames = r.data[:n], frames
			if n == 0 {
				return
			}
		}
	}
	if q.head < len(q.queue) {
		last := &q.queue[len(q.queue)-1]
		if last.pair == r.pair && cap(last.buf.b)-len(last.buf.b) >= len(r.data) {
			last.buf.b = append(last.buf.b, r.data...)
			last.frames += r.frames
			return
		}
	}
	buf := q.pool.get(len(r.data))
	buf.b = append(buf.b, r.data...)
	q.push(queued{buf: buf, frames: r.frames, pair: r.pair})
}

func (q *outQueue) push(e queued) {
	if q.head > 0 && q.head == len(q.queue) {
		q.queue, q.head = q.queue[:0], 0
	} else if q.head > 1024 && q.head > len(q.queue)/2 {
		n := copy(q.queue, q.queue[q.head:])
		clear(q.queue[n:])
		q.queue, q.head = q.queue[:n], 0
	}
	q.queue = append(q.queue, e)
	q.bytes += cap(e.buf.b)
}

// flush writes what waits, as far as the socket takes it. It returns false
// when the socket is full: call again when it is writable.
func (q *outQueue) flush(generation uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.generation != generation || q.sock == nil || q.paused || q.suspended || q.head == len(q.queue) {
			return true
		}
		n, want := 0, 0
		for i := q.head; i < len(q.queue) && n < writeBatch; i++ {
			data := q.queue[i].buf.b[q.queue[i].off:]
			q.iov[n].Base = &data[0]
			q.iov[n].SetLen(len(data))
			want += len(data)
			n++
		}
		written := q.writev(n)
		short := written < want
		q.advance(written)
		if short {
			return false
		}
	}
}

func (q *outQueue) advance(written int) {
	for written > 0 {
		e := &q.queue[q.head]
		left := len(e.buf.b) - e.off
		if written < left {
			e.off += written
			return
		}
		written -= left
		q.count(e.pair, e.frames)
		q.bytes -= cap(e.buf.b)
		q.pool.put(e.buf)
		*e = queued{}
		q.head++
	}
}

// drained reports whether the guest has taken everything that was for it. If
// delivery is paused, what waits is settled instead: it counts as handed
// over, because it becomes channel state.
func (q *outQueue) drained() (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sock == nil {
		return true, nil
	}
	if q.suspended {
		return false, nil
	}
	if q.paused {
		q.settle()
		return true, nil
	}
	if q.head != len(q.queue) {
		return false, nil
	}
	unread, err := q.sock.Unread()
	return unread == 0 && err == nil, err
}

func (q *outQueue) settle() {
	for i := q.head; i < len(q.queue); i++ {
		e := &q.queue[i]
		if e.pair != nil {
			e.pair.delivered.Add(uint64(e.frames))
			e.pair = nil
		}
		e.settled = len(e.buf.b)
	}
}

// kept returns copies of the whole frames that were settled and not written.
// A frame begun stays out: its guest gets the rest on release.
func (q *outQueue) kept() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	var frames [][]byte
	for i := q.head; i < len(q.queue); i++ {
		e := &q.queue[i]
		whole, _ := prefix(e.buf.b, e.off)
		if whole < e.off {
			whole += frameHeader + int(binary.BigEndian.Uint32(e.buf.b[whole:]))
		}
		if whole < e.settled {
			frames = splitFrames(frames, e.buf.b[whole:e.settled])
		}
	}
	return frames
}

func (q *outQueue) setPaused(paused bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.paused = paused
	if !paused {
		q.signal()
	}
}

func (q *outQueue) setSuspended(suspended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.suspended = suspended
	if !suspended {
		q.signal()
	}
}

func (q *outQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}
