package sidecar

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/vm"
)

// photographed is a guest's machine as far as snapshots go.
type photographed struct {
	slow chan struct{} // aborting waits for it, nil: not at all

	mu   sync.Mutex
	busy *frozen
}

// frozen is a snapshot that is copied until it is aborted.
type frozen struct {
	of   *photographed
	sink vm.Sink
	once sync.Once
	over chan struct{}
}

// Snapshot implements camera.
func (p *photographed) Snapshot(_ context.Context, _ vm.Engine, sink vm.Sink, _ vm.SnapshotOptions) (vm.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy != nil {
		return nil, vm.ErrBusy
	}
	p.busy = &frozen{of: p, sink: sink, over: make(chan struct{})}
	return p.busy, nil
}

// AwaitSnapshot implements camera.
func (p *photographed) AwaitSnapshot(ctx context.Context) error {
	p.mu.Lock()
	busy := p.busy
	p.mu.Unlock()
	if busy == nil {
		return nil
	}
	select {
	case <-busy.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *photographed) free() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.busy == nil
}

func (*frozen) Engine() vm.Engine { return vm.EngineBackground }

func (*frozen) Prepare(context.Context) error { return nil }

func (*frozen) EarlyStop() <-chan time.Time { return nil }

func (*frozen) Cut(context.Context, func(context.Context) error) (vm.CutTimes, error) {
	return vm.CutTimes{}, nil
}

func (*frozen) Wait(context.Context) (vm.Result, error) { return vm.Result{}, nil }

// Abort implements vm.Snapshot.
func (f *frozen) Abort(ctx context.Context) error {
	if f.of.slow != nil {
		select {
		case <-f.of.slow:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.once.Do(func() {
		f.of.mu.Lock()
		f.of.busy = nil
		f.of.mu.Unlock()
		close(f.over)
	})
	return nil
}

// preparing returns an incarnation with one guest, and what prepares an epoch of it.
func preparing(t *testing.T, p *photographed) (*incarnation, func(ctx context.Context, epoch uint64) error) {
	t.Helper()
	inc := place(t, idle(t, testConfig(t, "n1", &leader{})), "job", 1)
	return inc, func(ctx context.Context, epoch uint64) error {
		return inc.prepareWith(ctx, epoch, vm.EngineBackground, func(*guestVM) camera { return p })
	}
}

// An abort that comes before the call it is meant for wins, and the snapshot
// that was made for nothing does not keep the guest from being saved again.
func TestPrepareAfterAbort(t *testing.T) {
	p := &photographed{}
	inc, prepare := preparing(t, p)
	require.NoError(t, inc.abortEpoch(t.Context(), 1))
	require.ErrorIs(t, prepare(t.Context(), 1), quiesce.ErrPoisoned)
	require.True(t, p.free(), "a snapshot is left over")
	require.ErrorIs(t, prepare(t.Context(), 1), quiesce.ErrPoisoned, "a repeated call has the same answer")
	require.NoError(t, prepare(t.Context(), 2))
	require.ErrorIs(t, prepare(t.Context(), 1), quiesce.ErrPoisoned)
}

// The next epoch waits for the end of a snapshot that was given up, however long
// that takes, and does not fail over it.
func TestPrepareWaitsForTheFormerEpoch(t *testing.T) {
	p := &photographed{}
	p.slow = make(chan struct{})
	inc, prepare := preparing(t, p)
	require.NoError(t, prepare(t.Context(), 1))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, inc.abortEpoch(gone, 1), context.Canceled, "it goes on behind")

	// Its leader gives the second one up, too; that must not take the guest.
	second := make(chan error, 1)
	go func() { second <- prepare(t.Context(), 2) }()
	assert.Never(t, func() bool { return len(second) > 0 }, 50*time.Millisecond, 10*time.Millisecond)
	third := make(chan error, 1)
	go func() { third <- prepare(t.Context(), 3) }()
	require.Error(t, <-second)
	close(p.slow)
	require.NoError(t, <-third)
	assert.False(t, p.free())
}

// An epoch that nobody aborted here, because the call was lost, makes room for
// the next one.
func TestPrepareEndsTheFormerEpoch(t *testing.T) {
	p := &photographed{}
	_, prepare := preparing(t, p)
	require.NoError(t, prepare(t.Context(), 1))
	require.NoError(t, prepare(t.Context(), 1), "a repeated call")
	require.NoError(t, prepare(t.Context(), 3))
	assert.False(t, p.free())
	require.ErrorIs(t, prepare(t.Context(), 2), quiesce.ErrStale, "a late call")
	assert.False(t, p.free(), "it has no effect")
}

// A call for an epoch that will be refused may be faster to the guest.
func TestPrepareWaitsForTheRefused(t *testing.T) {
	p := &photographed{slow: make(chan struct{})}
	inc, prepare := preparing(t, p)
	require.NoError(t, inc.abortEpoch(t.Context(), 1))
	refused := make(chan error, 1)
	go func() { refused <- prepare(t.Context(), 1) }()
	require.Eventually(t, func() bool { return !p.free() }, 10*time.Second, time.Millisecond)
	second := make(chan error, 1)
	go func() { second <- prepare(t.Context(), 2) }()
	assert.Never(t, func() bool { return len(second) > 0 }, 20*time.Millisecond, 5*time.Millisecond)
	close(p.slow)
	require.NoError(t, <-second)
	require.Error(t, <-refused)
}
