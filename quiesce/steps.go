package quiesce

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"golang.org/x/sync/errgroup"
)

// step is a piece of work that is done once and whose result is given to
// everybody who asks.
type step[T any] struct {
	over  chan struct{}
	value T
	err   error
}

// begin starts a step, which the participant waits for in Close. Called with
// the participant's mu held and the participant not closed.
func begin[T any](p *Participant, work func() (T, error)) *step[T] {
	s := &step[T]{over: make(chan struct{})}
	p.wg.Go(func() {
		defer close(s.over)
		s.value, s.err = work()
	})
	return s
}

func (s *step[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-s.over:
		return s.value, s.err
	default:
	}
	select {
	case <-s.over:
		return s.value, s.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// done reports whether the step has ended well.
func (s *step[T]) done() bool {
	select {
	case <-s.over:
		return s.err == nil
	default:
		return false
	}
}

// join waits for a step that may not have begun.
func join[T any](s *step[T]) {
	if s != nil {
		<-s.over
	}
}

// fail poisons the epoch for err, unless it is over already, and returns why
// it is poisoned.
func (p *Participant) fail(e *epoch, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	p.poison(e, err)
	return e.poisoned()
}

// advance moves a live epoch to the next state.
func (p *Participant) advance(e *epoch, from, to State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.state != from {
		return e.refuse("end of a step")
	}
	e.state = to
	return nil
}

func (p *Participant) doPrepare(e *epoch) error {
	join(e.before) // its snapshots let go of the guests first
	group, ctx := errgroup.WithContext(e.ctx)
	for guest, s := range e.snapshots {
		if early := s.EarlyStop(); early != nil {
			p.wg.Go(func() { p.watch(e, guest, early) })
		}
		group.Go(func() error {
			if err := s.Prepare(ctx); err != nil {
				return fmt.Errorf("prepare guest %d: %w", guest, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return p.fail(e, err)
	}
	return nil
}

// watch stops the delivery to a guest that stops by itself, so that QEMU does
// not take in frames that its snapshot will not have.
func (p *Participant) watch(e *epoch, guest int, early <-chan time.Time) {
	select {
	case <-early:
		_ = p.pause(e, guest)
	case <-e.ctx.Done():
	}
}

// pause pauses delivery unless the epoch has ended, after which nobody would
// undo it.
func (p *Participant) pause(e *epoch, guest int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.state == Released || e.state == Poisoned {
		return e.refuse("pause")
	}
	p.network.PauseDelivery(guest)
	return nil
}

func (p *Participant) doHold(e *epoch) ([]*vftv1.PairCount, error) {
	err := p.network.Hold(e.ctx, e.number)
	var counts []*vftv1.PairCount
	if err == nil {
		counts, err = p.network.Drained(e.ctx, e.number)
	}
	if err != nil {
		return nil, p.fail(e, err)
	}
	return counts, p.advance(e, Holding, Drained)
}

func (p *Participant) doCut(e *epoch) (map[int]CutResult, error) {
	var mu sync.Mutex
	results := make(map[int]CutResult, len(e.snapshots))
	group, ctx := errgroup.WithContext(e.ctx)
	for guest, s := range e.snapshots {
		group.Go(func() error {
			r, err := p.cutGuest(ctx, e, guest, s)
			if err != nil {
				return fmt.Errorf("cut guest %d: %w", guest, err)
			}
			mu.Lock()
			defer mu.Unlock()
			results[guest] = r
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, p.fail(e, err)
	}
	if err := p.advance(e, Cutting, Cut); err != nil {
		return nil, err
	}
	return results, nil
}

func (p *Participant) cutGuest(ctx context.Context, e *epoch, guest int, s Snapshot) (CutResult, error) {
	var r CutResult
	if err := p.pause(e, guest); err != nil {
		return r, err
	}
	began := time.Now()
	err := s.Cut(ctx, func(ctx context.Context) (err error) {
		r.Stopped = time.Now()
		r.Frames, err = p.network.DrainPort(ctx, guest)
		return err
	})
	r.Took = time.Since(began)
	if err == nil && r.Stopped.IsZero() {
		err = errors.New("the guest was not stopped")
	}
	return r, err
}

// doUndo undoes an epoch that was in state began.
func (p *Participant) doUndo(e *epoch, began State) error {
	if began == Idle {
		join(e.before)
		return nil
	}
	p.network.Release(e.number)
	join(e.prepare)
	join(e.hold)
	join(e.cut)
	if began != Preparing {
		p.network.Release(e.number) // if its hold began after the first
	}
	return p.abortSnapshots(e)
}

func (p *Participant) abortSnapshots(e *epoch) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), p.abortTimeout)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for guest, s := range e.snapshots {
		wg.Go(func() {
			if err := s.Abort(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("abort snapshot of guest %d: %w", guest, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
