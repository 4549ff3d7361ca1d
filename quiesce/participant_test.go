package quiesce

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeNetwork does what it is told and writes it down.
type fakeNetwork struct {
	mu       sync.Mutex
	calls    []string
	held     bool
	paused   map[int]bool
	drain    time.Duration
	holdErr  error
	drainErr error
}

func (n *fakeNetwork) note(call string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, call)
}

func (n *fakeNetwork) Hold(_ context.Context, _ uint64) error {
	n.note("hold")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = true
	return n.holdErr
}

func (n *fakeNetwork) Drained(ctx context.Context, _ uint64) ([]*vftv1.PairCount, error) {
	n.note("drained")
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(n.drain):
		return []*vftv1.PairCount{count(0, 1, 1, 1, 0, 0)}, n.drainErr
	}
}

func (n *fakeNetwork) PauseDelivery(guest int) {
	n.note("pause")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused[guest] = true
}

func (n *fakeNetwork) DrainPort(_ context.Context, guest int) ([][]byte, error) {
	n.note("port")
	return [][]byte{{byte(guest)}}, nil
}

func (n *fakeNetwork) Release(_ uint64) {
	n.note("release")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = false
	clear(n.paused)
}

func (n *fakeNetwork) count(call string) (times int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.calls {
		if c == call {
			times++
		}
	}
	return times
}

func (n *fakeNetwork) flows() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.held && len(n.paused) == 0
}

type fakeSnapshot struct {
	prepare, cut time.Duration
	prepareErr   error
	cutErr       error
	silent       bool // does not call atCut
	early        chan time.Time

	mu      sync.Mutex
	cuts    int
	aborted int
}

func (s *fakeSnapshot) Prepare(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.prepare):
		return s.prepareErr
	}
}

func (s *fakeSnapshot) EarlyStop() <-chan time.Time { return s.early }

func (s *fakeSnapshot) Cut(ctx context.Context, atCut func(context.Context) error) error {
	s.mu.Lock()
	s.cuts++
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.cut):
	}
	if s.cutErr != nil || s.silent {
		return s.cutErr
	}
	return atCut(ctx)
}

func (s *fakeSnapshot) Abort(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted++
	return nil
}

func (s *fakeSnapshot) abortCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aborted
}

// bench is a participant with two guests.
type bench struct {
	*Participant
	net   *fakeNetwork
	snaps [2]*fakeSnapshot
}

func newBench() *bench {
	net := &fakeNetwork{paused: map[int]bool{}, drain: 2 * time.Millisecond}
	return &bench{
		Participant: NewParticipant(Config{Network: net}), net: net,
		snaps: [2]*fakeSnapshot{{cut: time.Millisecond}, {cut: 3 * time.Millisecond, early: make(chan time.Time, 1)}},
	}
}

func (b *bench) snapshots() map[int]Snapshot {
	return map[int]Snapshot{0: b.snaps[0], 1: b.snaps[1]}
}

func (b *bench) upToCut(t *testing.T, epoch uint64, timeout time.Duration) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, b.Prepare(ctx, epoch, b.snapshots()))
	_, err := b.Hold(ctx, epoch, timeout)
	require.NoError(t, err)
	_, err = b.Cut(ctx, epoch)
	require.NoError(t, err)
}

func with(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		defer b.Close()
		f(t, b)
	})
}

func TestGoodEpoch(t *testing.T) {
	with(t, func(t *testing.T, b *bench) {
		ctx := t.Context()
		for range 2 { // each call twice
			require.NoError(t, b.Prepare(ctx, 1, b.snapshots()))
		}
		for range 2 {
			counts, err := b.Hold(ctx, 1, time.Second)
			require.NoError(t, err)
			assert.Len(t, counts, 1)
		}
		began := time.Now()
		for range 2 {
			results, err := b.Cut(ctx, 1)
			require.NoError(t, err)
			assert.Equal(t, [][]byte{{1}}, results[1].Frames)
			assert.Equal(t, 3*time.Millisecond, results[1].Took)
			assert.Equal(t, time.Millisecond, results[0].Took)
		}
		assert.Equal(t, 3*time.Millisecond, time.Since(began), "guests are cut at the same time")
		for range 2 {
			outcome, err := b.Release(ctx, 1)
			require.NoError(t, err)
			assert.Equal(t, Outcome{ByOrder: true, Held: 5 * time.Millisecond}, outcome)
		}
		time.Sleep(2 * time.Second)
		number, state := b.State()
		assert.EqualValues(t, 1, number)
		assert.Equal(t, Released, state)
		assert.True(t, b.net.flows())
		for _, call := range []string{"hold", "drained", "release"} {
			assert.Equal(t, 1, b.net.count(call), call)
		}
		assert.Equal(t, 1, b.snaps[0].cuts)
		assert.Zero(t, b.snaps[0].abortCount())

		require.NoError(t, b.Abort(ctx, 1), "parts that cannot be stored are given up after the release")
		require.NoError(t, b.Abort(ctx, 1))
		assert.Equal(t, 1, b.snaps[0].abortCount())
		outcome, err := b.Release(ctx, 1)
		require.NoError(t, err)
		assert.True(t, outcome.ByOrder)
	})
}

func TestHoldTimesOut(t *testing.T) {
	for name, reach := range map[string]State{"draining": Holding, "drained": Drained, "cutting": Cutting, "cut": Cut} {
		t.Run(name, func(t *testing.T) {
			with(t, func(t *testing.T, b *bench) {
				ctx := t.Context()
				switch reach {
				case Holding:
					b.net.drain = time.Hour
				case Cutting:
					b.snaps[1].cut = time.Hour
				}
				require.NoError(t, b.Prepare(ctx, 1, b.snapshots()))
				began := time.Now()
				_, err := b.Hold(ctx, 1, 50*time.Millisecond)
				if reach == Holding {
					require.ErrorIs(t, err, ErrExpired)
				} else {
					require.NoError(t, err)
				}
				if reach >= Cutting {
					_, err = b.Cut(ctx, 1)
					if reach == Cutting {
						require.ErrorIs(t, err, ErrExpired)
						require.ErrorIs(t, err, ErrPoisoned)
					} else {
						require.NoError(t, err)
					}
				}
				time.Sleep(time.Until(began.Add(51 * time.Millisecond)))
				assert.True(t, b.net.flows())
				assert.Equal(t, 1, b.snaps[1].abortCount(), "the guests go on")
				outcome, err := b.Release(ctx, 1)
				require.NoError(t, err)
				assert.Equal(t, Outcome{Held: 50 * time.Millisecond}, outcome)
				if reach < Cutting {
					_, err = b.Cut(ctx, 1)
					require.ErrorIs(t, err, ErrPoisoned)
				}
				require.NoError(t, b.Abort(ctx, 1))
				b.upToCut2(t)
			})
		})
	}
}

// upToCut2 checks that a next epoch works.
func (b *bench) upToCut2(t *testing.T) {
	t.Helper()
	b.net.drain, b.snaps[1].cut = 0, 0
	b.upToCut(t, 2, time.Second)
	outcome, err := b.Release(t.Context(), 2)
	require.NoError(t, err)
	assert.True(t, outcome.ByOrder)
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	for name, test := range map[string]struct {
		breaks func(b *bench)
		at     State
	}{
		"prepare":         {func(b *bench) { b.snaps[0].prepareErr = boom }, Preparing},
		"hold":            {func(b *bench) { b.net.holdErr = boom }, Holding},
		"drain":           {func(b *bench) { b.net.drainErr = boom }, Holding},
		"cut":             {func(b *bench) { b.snaps[0].cutErr = boom }, Cutting},
		"cut of a silent": {func(b *bench) { b.snaps[0].silent = true }, Cutting},
	} {
		t.Run(name, func(t *testing.T) {
			with(t, func(t *testing.T, b *bench) {
				ctx := t.Context()
				test.breaks(b)
				for range 2 {
					err := b.Prepare(ctx, 1, b.snapshots())
					if test.at > Preparing {
						require.NoError(t, err)
						_, err = b.Hold(ctx, 1, time.Second)
					}
					if test.at > Holding {
						require.NoError(t, err)
						_, err = b.Cut(ctx, 1)
					}
					require.ErrorIs(t, err, ErrPoisoned)
				}
				synctest.Wait()
				assert.True(t, b.net.flows())
				for _, s := range b.snaps {
					assert.Equal(t, 1, s.abortCount())
				}
				outcome, err := b.Release(ctx, 1)
				require.NoError(t, err)
				assert.False(t, outcome.ByOrder)
				b.net.holdErr, b.net.drainErr = nil, nil
				b.snaps = [2]*fakeSnapshot{{}, {}}
				b.upToCut2(t)
			})
		})
	}
}

func TestOrder(t *testing.T) {
	with(t, func(t *testing.T, b *bench) {
		ctx := t.Context()
		_, err := b.Hold(ctx, 1, time.Second)
		require.ErrorIs(t, err, ErrOrder)
		_, err = b.Cut(ctx, 1)
		require.ErrorIs(t, err, ErrOrder)
		_, err = b.Release(ctx, 1)
		require.ErrorIs(t, err, ErrOrder)
		require.NoError(t, b.Prepare(ctx, 1, b.snapshots()))
		_, err = b.Hold(ctx, 1, 0)
		require.ErrorIs(t, err, ErrOrder)
		_, err = b.Cut(ctx, 1)
		require.ErrorIs(t, err, ErrOrder)
		_, err = b.Hold(ctx, 1, time.Second)
		require.NoError(t, err)
		_, err = b.Release(ctx, 1)
		require.ErrorIs(t, err, ErrOrder, "nothing was cut")
		assert.Zero(t, b.net.count("release"))

		// An abort that comes before the epoch it aborts.
		require.NoError(t, b.Abort(ctx, 7))
		assert.True(t, b.net.flows(), "epoch 1 was given up")
		require.ErrorIs(t, b.Prepare(ctx, 7, b.snapshots()), ErrPoisoned)
		require.ErrorIs(t, b.Prepare(ctx, 1, b.snapshots()), ErrStale)
		require.ErrorIs(t, b.Abort(ctx, 1), ErrStale)
	})
}

func TestNewerEpochReplacesOlder(t *testing.T) {
	with(t, func(t *testing.T, b *bench) {
		ctx := t.Context()
		b.net.drain = time.Hour
		require.NoError(t, b.Prepare(ctx, 1, b.snapshots()))
		answer := make(chan error, 1)
		go func() {
			_, err := b.Hold(ctx, 1, 2*time.Hour)
			answer <- err
		}()
		synctest.Wait()
		fresh := [2]*fakeSnapshot{{}, {}}
		require.NoError(t, b.Prepare(ctx, 2, map[int]Snapshot{0: fresh[0], 1: fresh[1]}))
		require.ErrorIs(t, <-answer, ErrPoisoned)
		assert.Equal(t, 1, b.snaps[0].abortCount(), "old snapshots are gone before new ones are prepared")
		assert.True(t, b.net.flows())
		for _, call := range []func() error{
			func() error { return b.Prepare(ctx, 1, b.snapshots()) },
			func() error { _, err := b.Hold(ctx, 1, time.Hour); return err },
			func() error { _, err := b.Cut(ctx, 1); return err },
			func() error { _, err := b.Release(ctx, 1); return err },
			func() error { return b.Abort(ctx, 1) },
		} {
			require.ErrorIs(t, call(), ErrStale)
		}
		number, state := b.State()
		assert.EqualValues(t, 2, number)
		assert.Equal(t, Preparing, state)
	})
}

func TestCallerGivesUp(t *testing.T) {
	with(t, func(t *testing.T, b *bench) {
		b.net.drain = 10 * time.Millisecond
		require.NoError(t, b.Prepare(t.Context(), 1, b.snapshots()))
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := b.Hold(short, 1, time.Second)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		counts, err := b.Hold(t.Context(), 1, time.Second)
		require.NoError(t, err)
		assert.Len(t, counts, 1)
		assert.Equal(t, 1, b.net.count("drained"))
	})
}

func TestEarlyStop(t *testing.T) {
	with(t, func(t *testing.T, b *bench) {
		require.NoError(t, b.Prepare(t.Context(), 1, b.snapshots()))
		b.snaps[1].early <- time.Now()
		synctest.Wait()
		assert.Equal(t, map[int]bool{1: true}, b.net.paused)
		require.NoError(t, b.Abort(t.Context(), 1))
		assert.True(t, b.net.flows())

		b.upToCut(t, 2, time.Second)
		_, err := b.Release(t.Context(), 2)
		require.NoError(t, err)
		b.snaps[1].early <- time.Now()
		synctest.Wait()
		assert.True(t, b.net.flows(), "too late to mean anything")
	})
}

func TestCloseUndoes(t *testing.T) {
	with(t, func(t *testing.T, b *bench) {
		b.upToCut(t, 1, time.Hour)
		b.Close()
		b.Close()
		assert.True(t, b.net.flows())
		assert.Equal(t, 1, b.snaps[0].abortCount())
		_, err := b.Release(t.Context(), 1)
		require.ErrorIs(t, err, ErrClosed)
	})
}
