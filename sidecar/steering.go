package sidecar

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// steerAgain is the pause before a guest that could not be stopped, or let run,
// is tried again.
const steerAgain = time.Second

// stopper is a machine that can be stopped and let run.
type stopper interface {
	Cont(ctx context.Context) error
	Pause(ctx context.Context) error
	Done() <-chan struct{}
}

// steering has a guest run or stand still as the lease wants. A guest whose
// memory is still being restored may take its time to obey, since its
// processors, and QEMU itself, can be waiting for a page. So the orders are
// given by a goroutine of their own, one at a time, and each looks at what is
// wanted when its turn comes: the last one that is carried out is never an old
// one.
type steering struct {
	machine stopper
	wanted  func() bool // shall it run?
	running func()      // it does
	timeout time.Duration
	log     *slog.Logger

	mu    sync.Mutex
	busy  bool
	again bool // something may have changed since the order was given
}

// follow brings the guest to what is wanted and returns when it is there, when
// the machine or ctx ends, or when another call sees to it.
func (s *steering) follow(ctx context.Context) {
	s.mu.Lock()
	if s.busy {
		s.again = true
		s.mu.Unlock()
		return
	}
	s.busy = true
	for {
		s.again = false
		s.mu.Unlock()
		err := s.order(ctx)
		if err != nil {
			select {
			case <-time.After(steerAgain):
			case <-s.machine.Done():
			case <-ctx.Done():
			}
		}
		over := ctx.Err() != nil
		select {
		case <-s.machine.Done():
			over = true
		default:
		}
		s.mu.Lock()
		if over || err == nil && !s.again {
			s.busy = false
			s.mu.Unlock()
			return
		}
	}
}

func (s *steering) order(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if s.wanted() {
		err := s.machine.Cont(ctx)
		if err != nil {
			s.log.Error("continuing a guest", "err", err)
			return err
		}
		s.running()
		return nil
	}
	err := s.machine.Pause(ctx)
	if err != nil {
		s.log.Error("stopping a guest", "err", err)
	}
	return err
}
