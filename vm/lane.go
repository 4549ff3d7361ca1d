package vm

import (
	"context"
	"sync"
	"time"
)

// lane lets one sender at a time to a connection, urgent ones first, and knows
// how many pages are being waited for.
type lane struct {
	mu     sync.Mutex
	free   *sync.Cond
	busy   bool
	urgent int           // senders that wait
	open   int           // pages that were asked for and not answered
	idle   chan struct{} // closed when open becomes 0
}

func newLane() *lane {
	l := &lane{idle: make(chan struct{})}
	l.free = sync.NewCond(&l.mu)
	close(l.idle)
	return l
}

// enter waits for the lane; leave gives it back.
func (l *lane) enter(urgent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if urgent {
		l.urgent++
		defer func() { l.urgent-- }()
	}
	for l.busy || !urgent && l.urgent > 0 {
		l.free.Wait()
	}
	l.busy = true
}

func (l *lane) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
	l.free.Broadcast()
}

// ask and answered count the pages that are waited for.
func (l *lane) ask() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open++; l.open == 1 {
		l.idle = make(chan struct{})
	}
}

func (l *lane) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open--; l.open == 0 {
		close(l.idle)
	}
}

// yield waits while pages are waited for, at most limit.
func (l *lane) yield(ctx context.Context, limit time.Duration) {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
		return
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	case <-ctx.Done():
	}
}
