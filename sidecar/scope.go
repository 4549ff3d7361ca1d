package sidecar

import (
	"context"
	"sync"
)

// scope owns goroutines that share a life: end cancels them all and waits.
type scope struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	ended bool
	wg    sync.WaitGroup
}

func newScope(parent context.Context) *scope {
	ctx, cancel := context.WithCancel(parent)
	return &scope{ctx: ctx, cancel: cancel}
}

// run starts f unless the scope has ended, and says whether it did.
func (s *scope) run(f func(context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f(s.ctx)
	}()
	return true
}

func (s *scope) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}
