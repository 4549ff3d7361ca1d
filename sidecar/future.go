package sidecar

import "context"

// future is the result of work that is started once and waited for by every
// call that asks for it, so that a repeated call does not repeat the work and
// a caller that goes away does not end it.
type future[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// begin runs work in a goroutine of owner.
func begin[T any](owner *scope, work func(context.Context) (T, error)) *future[T] {
	f := &future[T]{done: make(chan struct{})}
	if !owner.run(func(ctx context.Context) {
		defer close(f.done)
		f.value, f.err = work(ctx)
	}) {
		f.err = context.Canceled
		close(f.done)
	}
	return f
}

// wait returns the result, or ctx's error when that ends first.
func (f *future[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// succeeded says whether the work has been done without an error; a future that
// was not begun has not.
func (f *future[T]) succeeded() bool {
	if f == nil {
		return false
	}
	select {
	case <-f.done:
		return f.err == nil
	default:
		return false
	}
}
