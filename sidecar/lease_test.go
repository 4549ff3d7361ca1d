package sidecar

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/overlay"
)

func good(context.Context, int) (*vftv1.HeartbeatResponse, error) {
	return &vftv1.HeartbeatResponse{Lease: int64(testLease)}, nil
}

// silent is a leader that cannot be reached: the call ends with its context.
func silent(ctx context.Context, _ int) (*vftv1.HeartbeatResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// leased runs test beside a sidecar that keeps its lease, in a bubble.
func leased(t *testing.T, l *leader, test func(t *testing.T, s *Sidecar)) {
	synctest.Test(t, func(t *testing.T) {
		s := idle(t, testConfig(t, "n1", l))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { assert.NoError(t, s.keepLease(ctx)) })
		defer wg.Wait()
		defer cancel()
		synctest.Wait()
		test(t, s)
	})
}

func until(t *testing.T, limit time.Duration, condition func() bool) time.Duration {
	t.Helper()
	begun := time.Now()
	for !condition() {
		if time.Since(begun) > limit {
			t.Fatalf("not within %s", limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(begun)
}

func TestLeaseThatIsRenewedHolds(t *testing.T) {
	l := &leader{answer: good}
	leased(t, l, func(t *testing.T, s *Sidecar) {
		assert.False(t, s.suspended.Load(), "the first renewal lets guests go")
		assert.NoError(t, s.Healthy())
		begun := time.Now()
		for time.Since(begun) < 10*testLease {
			time.Sleep(10 * time.Millisecond)
			require.False(t, s.suspended.Load())
		}
		assert.InDelta(t, 1+10*testLease/testHeartbeat, len(l.requests()), 2, "heartbeats are not at their interval")
		assert.Equal(t, "n1", l.requests()[0].GetNode().GetId())
		assert.Equal(t, uint64(1), l.requests()[0].GetNode().GetSession())
	})
}

func TestNothingRunsBeforeTheFirstRenewal(t *testing.T) {
	leased(t, &leader{answer: silent}, func(t *testing.T, s *Sidecar) {
		time.Sleep(2 * testLease)
		assert.True(t, s.suspended.Load())
		assert.Error(t, s.Healthy())
	})
}

// The guests stand still before the lease is over, counted from when the last
// renewal that was answered had been sent, and run again after the next.
func TestLeaseInDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		fail  func(context.Context, int) (*vftv1.HeartbeatResponse, error)
		delay time.Duration // of good answers
	}{
		"silence":      {fail: silent},
		"refusal":      {fail: func(context.Context, int) (*vftv1.HeartbeatResponse, error) { return nil, errors.New("no leader") }},
		"slow answers": {fail: silent, delay: testLease / 3},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var sent time.Time // of the last renewal that was answered
			answering := func(ctx context.Context, n int) (*vftv1.HeartbeatResponse, error) {
				at := time.Now()
				time.Sleep(test.delay)
				mu.Lock()
				defer mu.Unlock()
				sent = at
				return good(ctx, n)
			}
			l := &leader{answer: answering}
			leased(t, l, func(t *testing.T, s *Sidecar) {
				inc := place(t, s, "job", 1)
				time.Sleep(2 * testLease)
				require.False(t, s.suspended.Load())
				l.set(test.fail)
				until(t, 2*testLease, s.suspended.Load)
				mu.Lock()
				after := time.Since(sent)
				mu.Unlock()
				assert.Less(t, after, testLease, "the leader may have acted already")
				assert.GreaterOrEqual(t, after, testLease/2, "suspended without need")
				assert.ErrorIs(t, inc.net.Hold(t.Context(), 1), overlay.ErrSuspended, "frames still flow")

				time.Sleep(3 * testLease)
				assert.True(t, s.suspended.Load())
				late := place(t, s, "late", 1) // what starts meanwhile stands still, too
				assert.ErrorIs(t, late.net.Hold(t.Context(), 1), overlay.ErrSuspended)
				assert.Error(t, s.Healthy())

				l.set(answering)
				until(t, testLease, func() bool { return !s.suspended.Load() })
				synctest.Wait()
				assert.NoError(t, s.Healthy())
				assert.NoError(t, inc.net.Hold(t.Context(), 1))
				inc.net.Release(1)
			})
		})
	}
}

func TestLeaderDecidesHowLongALeaseIs(t *testing.T) {
	const short = testLease / 3
	l := &leader{answer: func(context.Context, int) (*vftv1.HeartbeatResponse, error) {
		return &vftv1.HeartbeatResponse{Lease: int64(short)}, nil
	}}
	leased(t, l, func(t *testing.T, s *Sidecar) {
		l.set(silent)
		assert.Less(t, until(t, testLease, s.suspended.Load), short)
	})
}

func TestHeartbeatAtOnce(t *testing.T) {
	l := &leader{answer: good}
	leased(t, l, func(t *testing.T, s *Sidecar) {
		n := len(l.requests())
		s.heartbeatNow()
		s.heartbeatNow() // does not block
		synctest.Wait()
		assert.Greater(t, len(l.requests()), n, "it waited for its turn")

		// One that is wanted while another is under way follows it.
		release := make(chan struct{})
		l.set(func(ctx context.Context, n int) (*vftv1.HeartbeatResponse, error) { <-release; return good(ctx, n) })
		s.heartbeatNow()
		synctest.Wait()
		n = len(l.requests())
		s.heartbeatNow()
		synctest.Wait()
		require.Len(t, l.requests(), n, "two heartbeats at once")
		close(release)
		synctest.Wait()
		assert.Greater(t, len(l.requests()), n)
	})
}

func TestObeysTheLeader(t *testing.T) {
	for name, test := range map[string]struct {
		resp    *vftv1.HeartbeatResponse
		applied uint64 // that the incarnation was made by
		ends    bool
		fence   uint64 // highest incarnation that is refused afterwards, 0: none
	}{
		"nothing said":       {&vftv1.HeartbeatResponse{Applied: 9}, 5, false, 0},
		"as it is":           {&vftv1.HeartbeatResponse{Applied: 9, Jobs: []*vftv1.WantedJob{{Job: "job", Incarnation: 2}}}, 5, false, 0},
		"a newer one":        {&vftv1.HeartbeatResponse{Applied: 9, Jobs: []*vftv1.WantedJob{{Job: "job", Incarnation: 4}}}, 5, true, 3},
		"over":               {&vftv1.HeartbeatResponse{Applied: 9, Jobs: []*vftv1.WantedJob{{Job: "job", Incarnation: 2, Ended: true}}}, 5, true, 2},
		"another is over":    {&vftv1.HeartbeatResponse{Applied: 9, Jobs: []*vftv1.WantedJob{{Job: "other", Incarnation: 2, Ended: true}}}, 5, false, 0},
		"an answer too old":  {&vftv1.HeartbeatResponse{Applied: 4, Jobs: []*vftv1.WantedJob{{Job: "job", Incarnation: 2, Ended: true}}}, 5, false, 0},
		"an older one there": {&vftv1.HeartbeatResponse{Applied: 9, Jobs: []*vftv1.WantedJob{{Job: "job", Incarnation: 1}}}, 5, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := idle(t, testConfig(t, "n1", &leader{}))
			inc := place(t, s, "job", 2)
			inc.applied = test.applied
			require.NoError(t, inc.save())
			s.obey(test.resp)
			assert.Equal(t, test.ends, inc.over(), "at once: the lease counts as renewed from now on")
			s.life.end()
			s.life = newScope(context.Background())
			assert.Equal(t, test.ends, len(s.incarnations()) == 0)
			if test.fence > 0 {
				create, _ := making(s, "job", test.fence)
				_, err := s.enter("job", test.fence, create)
				assert.ErrorIs(t, err, errFenced)
			}
		})
	}
}

func TestStatusNamesEveryGuest(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	inc := place(t, s, "job", 2)
	inc.guests[3] = &guestVM{index: 3}
	inc.lost(inc.guests[3], "QEMU ended")
	inc.guests[3].set(vftv1.GuestState_GUEST_STATE_RUNNING, "") // the dead stay dead
	states := map[uint32]string{}
	for _, g := range s.status().GetGuests() {
		assert.Equal(t, "job", g.GetJob())
		assert.Equal(t, uint64(2), g.GetIncarnation())
		states[g.GetIndex()] = g.GetState().String() + " " + g.GetDetail()
	}
	assert.Equal(t, map[uint32]string{0: "GUEST_STATE_RUNNING ", 3: "GUEST_STATE_DEAD QEMU ended"}, states)
	select {
	case <-s.kick:
	default:
		t.Error("the leader is not told at once")
	}
}

// Guests that stood still because the lease was in doubt run again when it
// holds, also those that had not booted yet; restored ones wait for the leader.
func TestGuestsGoOnWhenTheLeaseHolds(t *testing.T) {
	for _, test := range []struct {
		phase        phase
		before, then vftv1.GuestState
		runs         bool
	}{
		{phaseBooting, vftv1.GuestState_GUEST_STATE_BOOTING, vftv1.GuestState_GUEST_STATE_BOOTING, true},
		{phaseBooting, vftv1.GuestState_GUEST_STATE_READY, vftv1.GuestState_GUEST_STATE_READY, true},
		{phaseRunning, vftv1.GuestState_GUEST_STATE_RUNNING, vftv1.GuestState_GUEST_STATE_RUNNING, true},
		{phaseRestoring, vftv1.GuestState_GUEST_STATE_PAUSED, vftv1.GuestState_GUEST_STATE_PAUSED, false},
	} {
		t.Run(string(test.phase)+" "+test.before.String(), func(t *testing.T) {
			leased(t, &leader{answer: good}, func(t *testing.T, s *Sidecar) {
				inc := place(t, s, "job", 1)
				m := &fakeMachine{done: make(chan struct{}), running: test.runs}
				g := inc.guests[0]
				g.state, g.steering = test.before, inc.steer(g, m)
				inc.phase = test.phase
				s.suspend(t.Context(), testLease)
				synctest.Wait()
				running, _ := m.state()
				require.False(t, running, "it was to stand still")
				s.resume(t.Context())
				synctest.Wait()
				running, _ = m.state()
				assert.Equal(t, test.runs, running)
				state, _ := g.get()
				assert.Equal(t, test.then, state)
			})
		})
	}
}
