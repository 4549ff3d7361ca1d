package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeMachine obeys after a time, as one does whose QEMU waits for a page.
type fakeMachine struct {
	mu      sync.Mutex
	slow    time.Duration
	fails   int // so many orders time out
	orders  []string
	running bool
	done    chan struct{}
}

func (m *fakeMachine) obey(ctx context.Context, order string, running bool) error {
	m.mu.Lock()
	m.orders = append(m.orders, order)
	slow, fails := m.slow, m.fails > 0
	if fails {
		m.fails--
	}
	m.mu.Unlock()
	if fails {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = running
	return nil
}

func (m *fakeMachine) Cont(ctx context.Context) error  { return m.obey(ctx, "cont", true) }
func (m *fakeMachine) Pause(ctx context.Context) error { return m.obey(ctx, "stop", false) }
func (m *fakeMachine) Done() <-chan struct{}           { return m.done }

func (m *fakeMachine) state() (running bool, orders int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running, len(m.orders)
}

func steer(m *fakeMachine, wanted *atomic.Bool) *steering {
	return &steering{
		machine: m, wanted: wanted.Load, running: func() {}, timeout: 8 * time.Second, log: slog.New(slog.DiscardHandler),
	}
}

// A guest that is slow to stop, and is let run meanwhile, runs in the end; and
// the other way round.
func TestGuestFollowsTheLastOrder(t *testing.T) {
	for _, last := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := &fakeMachine{slow: 3 * time.Second, running: last, done: make(chan struct{})}
			wanted := &atomic.Bool{}
			wanted.Store(!last)
			s := steer(m, wanted)
			var wg sync.WaitGroup
			follow := func() { wg.Go(func() { s.follow(t.Context()) }) }
			follow()
			time.Sleep(time.Second)
			wanted.Store(last)
			for range 5 { // as every heartbeat in doubt does
				follow()
			}
			wg.Wait()
			running, orders := m.state()
			assert.Equal(t, last, running)
			assert.Equal(t, 2, orders)
		})
	}
}

// An order that times out is given again: nobody else would let the guest run.
func TestOrderIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{fails: 3, done: make(chan struct{})}
		wanted := &atomic.Bool{}
		wanted.Store(true)
		steer(m, wanted).follow(t.Context())
		running, orders := m.state()
		assert.True(t, running)
		assert.Equal(t, 4, orders)
	})
}

func TestSteeringEndsWithTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{fails: 1000, done: make(chan struct{})}
		begun := time.Now()
		time.AfterFunc(20*time.Second, func() { close(m.done) })
		steer(m, &atomic.Bool{}).follow(t.Context())
		assert.Less(t, time.Since(begun), 40*time.Second)

		ctx, cancel := context.WithCancelCause(t.Context())
		m = &fakeMachine{fails: 1000, done: make(chan struct{})}
		time.AfterFunc(20*time.Second, func() { cancel(errors.New("over")) })
		steer(m, &atomic.Bool{}).follow(ctx)
		require.Error(t, ctx.Err())
	})
}
