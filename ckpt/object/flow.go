package object

import (
	"context"
	"sync"
)

// fifo is a queue without a bound: what goes in has paid at the gate.
type fifo[T any] struct {
	mu     sync.Mutex
	filled sync.Cond
	items  []T
	closed bool
}

func newFIFO[T any]() *fifo[T] {
	q := &fifo[T]{}
	q.filled.L = &q.mu
	return q
}

// push adds an item, and reports false when the queue has been closed.
func (q *fifo[T]) push(item T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.items = append(q.items, item)
	q.filled.Signal()
	return true
}

// pop waits for an item. It reports false when the queue has been closed and is
// empty.
func (q *fifo[T]) pop() (item T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.filled.Wait()
	}
	if len(q.items) == 0 {
		return item, false
	}
	item = q.items[0]
	var zero T
	q.items[0] = zero
	q.items = q.items[1:]
	return item, true
}

func (q *fifo[T]) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.filled.Broadcast()
}

// gate bounds the memory of what is on its way to the disk.
type gate struct {
	limit int64

	mu      sync.Mutex
	used    int64
	changed chan struct{} // closed when memory is given back, nil when nobody waits
}

// wait waits until less than limit is used. What is charged afterwards may go
// over it by one extent for each who waited.
func (g *gate) wait(ctx context.Context, limit int64) error {
	for {
		g.mu.Lock()
		if g.used < limit {
			g.mu.Unlock()
			return nil
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// charge adds n bytes to what is used, or gives them back when n is negative.
func (g *gate) charge(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used += n
	if n < 0 && g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// fill returns how much of the limit is used, in eighths.
func (g *gate) fill() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used * 8 / g.limit
}

// workers run what needs the processor. Of two tasks that wait, an urgent one
// runs first.
type workers struct {
	mu     sync.Mutex
	filled sync.Cond
	urgent []func()
	normal []func()
	closed bool
	wg     sync.WaitGroup
}

func startWorkers(n int) *workers {
	w := &workers{}
	w.filled.L = &w.mu
	for range n {
		w.wg.Go(w.run)
	}
	return w
}

func (w *workers) run() {
	for {
		task := w.next()
		if task == nil {
			return
		}
		task()
	}
}

func (w *workers) next() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for _, queue := range []*[]func(){&w.urgent, &w.normal} {
			if len(*queue) > 0 {
				task := (*queue)[0]
				(*queue)[0] = nil
				*queue = (*queue)[1:]
				return task
			}
		}
		if w.closed {
			return nil
		}
		w.filled.Wait()
	}
}

func (w *workers) do(task func(), urgent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if urgent {
		w.urgent = append(w.urgent, task)
	} else {
		w.normal = append(w.normal, task)
	}
	w.filled.Signal()
}

// close runs what is queued and waits for it.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	w.filled.Broadcast()
	w.mu.Unlock()
	w.wg.Wait()
}
