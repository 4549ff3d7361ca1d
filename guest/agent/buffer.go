package agent

import (
	"sync"
)

// notifier lets any number of waiters see that something changed, with a
// context where a sync.Cond cannot.
type notifier struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next broadcast closes.
func (n *notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *notifier) broadcast() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// outputBuffer keeps a stream's bytes from the acknowledged offset on.
type outputBuffer struct {
	limit  int
	change *notifier

	mu   sync.Mutex
	base uint64
	data []byte
}

func newOutputBuffer(limit int, change *notifier) *outputBuffer {
	return &outputBuffer{limit: limit, change: change}
}

// room returns how many bytes may be appended now.
func (b *outputBuffer) room() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit - len(b.data)
}

func (b *outputBuffer) append(p []byte) {
	b.mu.Lock()
	b.data = append(b.data, p...)
	b.mu.Unlock()
	b.change.broadcast()
}

// ack forgets the bytes below offset.
func (b *outputBuffer) ack(offset uint64) {
	b.mu.Lock()
	if offset > b.base {
		n := min(offset-b.base, uint64(len(b.data)))
		b.base += n
		b.data = b.data[n:]
		if len(b.data) == 0 {
			b.data = nil
		}
	}
	b.mu.Unlock()
	b.change.broadcast()
}

// from returns a copy of at most limit bytes at offset, or at the first one
// retained after it, and that offset.
func (b *outputBuffer) from(offset uint64, limit int) ([]byte, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	offset = max(offset, b.base)
	i := offset - b.base
	if i >= uint64(len(b.data)) {
		return nil, offset
	}
	p := b.data[i:]
	return append([]byte(nil), p[:min(len(p), limit)]...), offset
}

// total returns how many bytes were ever appended.
func (b *outputBuffer) total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.base + uint64(len(b.data))
}

// inputBuffer holds a program's standard input on the way to it.
type inputBuffer struct {
	limit  int
	change *notifier

	mu     sync.Mutex
	next   uint64
	data   []byte
	eof    bool
	broken bool
}

func newInputBuffer(limit int, change *notifier) *inputBuffer {
	return &inputBuffer{limit: limit, change: change}
}

// state returns the next wanted offset and whether no more is wanted.
func (b *inputBuffer) state() (uint64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next, b.eof || b.broken
}

// offer takes what is new and fits of data at offset. It reports whether all
// of it has been taken, now or before; eof counts only then. A gap takes
// nothing.
func (b *inputBuffer) offer(offset uint64, data []byte, eof bool) (done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.eof || b.broken {
		return true
	}
	if offset > b.next {
		return false
	}
	end := offset + uint64(len(data))
	if end > b.next {
		fresh := data[b.next-offset:]
		fresh = fresh[:min(len(fresh), b.limit-len(b.data))]
		b.data = append(b.data, fresh...)
		b.next += uint64(len(fresh))
	}
	if end > b.next {
		if len(data) > 0 {
			b.change.broadcast()
		}
		return false
	}
	if eof && end == b.next {
		b.eof = true
	}
	b.change.broadcast()
	return true
}

// peek returns the bytes that wait for the program, and whether the input
// ends after them.
func (b *inputBuffer) peek(limit int) (p []byte, eof bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.data), limit)
	return append([]byte(nil), b.data[:n]...), b.eof && n == len(b.data)
}

// consumed drops n bytes that the program's pipe has taken.
func (b *inputBuffer) consumed(n int) {
	b.mu.Lock()
	b.data = b.data[n:]
	if len(b.data) == 0 {
		b.data = nil
	}
	b.mu.Unlock()
	b.change.broadcast()
}

// abandon says that nobody reads the input any more.
func (b *inputBuffer) abandon() {
	b.mu.Lock()
	b.broken = true
	b.data = nil
	b.mu.Unlock()
	b.change.broadcast()
}
