package overlay

import (
	"context"
	"testing"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// holdAll holds and drains all nodes and returns their reports.
func holdAll(t *testing.T, nets map[string]*Network, epoch uint64) map[string][]*vftv1.PairCount {
	t.Helper()
	reports, err := tryHold(timeout(t, 10*time.Second), nets, epoch)
	require.NoError(t, err)
	return reports
}

func tryHold(ctx context.Context, nets map[string]*Network, epoch uint64) (map[string][]*vftv1.PairCount, error) {
	return tryHoldLate(ctx, nets, epoch, nil)
}

// tryHoldLate lets each node's hold begin after its delay.
func tryHoldLate(ctx context.Context, nets map[string]*Network, epoch uint64, delays map[string]time.Duration) (map[string][]*vftv1.PairCount, error) {
	type report struct {
		node   string
		counts []*vftv1.PairCount
	}
	all := make(chan report, len(nets))
	group, ctx := errgroup.WithContext(ctx)
	for node, n := range nets {
		group.Go(func() error {
			time.Sleep(delays[node])
			if err := n.Hold(ctx, epoch); err != nil {
				return err
			}
			counts, err := n.Drained(ctx, epoch)
			all <- report{node, counts}
			return err
		})
	}
	err := group.Wait()
	close(all)
	reports := map[string][]*vftv1.PairCount{}
	for r := range all {
		reports[r.node] = r.counts
	}
	return reports, err
}

func releaseAll(nets map[string]*Network, epoch uint64) {
	for _, n := range nets {
		n.Release(epoch)
	}
}

type pairKey struct {
	source, destination uint32
	link                uint64
}

// imbalance returns the pairs whose counts do not add up over all reports.
func imbalance(reports map[string][]*vftv1.PairCount) map[pairKey][3]uint64 {
	sums := map[pairKey][3]uint64{}
	for _, counts := range reports {
		for _, c := range counts {
			k := pairKey{c.GetSource(), c.GetDestination(), c.GetLink()}
			s := sums[k]
			sums[k] = [3]uint64{s[0] + c.GetSent(), s[1] + c.GetDelivered(), s[2] + c.GetDropped()}
		}
	}
	for k, s := range sums {
		if s[0] == s[1]+s[2] {
			delete(sums, k)
		}
	}
	return sums
}

func verify(t *testing.T, _ *cluster, _ []Member, reports map[string][]*vftv1.PairCount) {
	t.Helper()
	require.Empty(t, imbalance(reports), "sent, delivered, dropped")
}

func TestHoldKeepsFramesInOrder(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1, g2 := newGuest(t, nets["a"], 0), newGuest(t, nets["a"], 1), newGuest(t, nets["b"], 2)
	g0.send(2)
	g2.receive()

	verify(t, c, members, holdAll(t, nets, 5))
	for range 10 {
		g0.send(2)
		g0.send(1)
		g2.send(0)
	}
	g0.quiet()
	g1.quiet()
	g2.quiet()

	frames, err := nets["a"].DrainPort(context.Background(), 0)
	require.NoError(t, err)
	require.Len(t, frames, 20)
	assert.EqualValues(t, 2, frameNumber(frames[0]))
	g0.send(1) // after the cut
	again, err := nets["a"].DrainPort(context.Background(), 2)
	require.ErrorIs(t, err, ErrNotLocal)
	assert.Nil(t, again)

	nets["a"].Release(4)
	g1.quiet()
	releaseAll(nets, 5)
	releaseAll(nets, 5)
	for i := range 10 {
		assert.EqualValues(t, 2+2*i, frameNumber(g2.receive()))
		assert.EqualValues(t, 3+2*i, frameNumber(g1.receive()))
		assert.EqualValues(t, 1+i, frameNumber(g0.receive()))
	}
	assert.EqualValues(t, 22, frameNumber(g1.receive()))

	require.ErrorIs(t, nets["a"].Hold(context.Background(), 5), ErrStale)
	_, err = nets["a"].Drained(context.Background(), 5)
	require.ErrorIs(t, err, ErrNotHeld)
	_, err = nets["a"].DrainPort(context.Background(), 0)
	require.ErrorIs(t, err, ErrNotHeld)
}

func TestMarkBeforeHold(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	ctx := timeout(t, 5*time.Second)

	require.NoError(t, nets["a"].Hold(ctx, 1))
	in := nets["b"].inbound["a"]
	require.Eventually(t, func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.mark == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, nets["b"].Hold(ctx, 1))
	require.NoError(t, nets["b"].Hold(ctx, 1), "a repeated call")
	for _, n := range nets {
		_, err := n.Drained(ctx, 1)
		require.NoError(t, err)
	}
	// The faster node's frames after its release wait for the slower one's.
	nets["a"].Release(1)
	g0.send(1)
	g1.quiet()
	nets["b"].Release(1)
	assert.EqualValues(t, 1, frameNumber(g1.receive()))

	// A node that never holds is not cut off for ever.
	require.NoError(t, nets["a"].Hold(ctx, 2))
	g0.send(1)
	g1.quiet()
	nets["a"].Release(2)
	assert.EqualValues(t, 2, frameNumber(g1.receive()))
	require.ErrorIs(t, nets["b"].Hold(ctx, 2), ErrStale, "its peer has gone on")

	// A later epoch replaces an earlier one.
	holdAll(t, nets, 3)
	g0.send(1)
	require.Eventually(t, func() bool { return nets["a"].members[0].port.heldBytes() > 0 }, 5*time.Second, time.Millisecond)
	got := make(chan uint64)
	go func() { got <- frameNumber(g1.receive()) }()
	verify(t, c, members, holdAll(t, nets, 4))
	assert.EqualValues(t, 3, <-got)
	require.ErrorIs(t, nets["a"].Hold(ctx, 3), ErrStale)
	releaseAll(nets, 4)
}

func (p *Port) heldBytes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held.bytes
}

func TestHoldBackPressure(t *testing.T) {
	c := newCluster(t, Limits{Held: 256 * 1024}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a"))
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["a"], 1)
	holdAll(t, nets, 1)
	const total = 3000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range total {
			g0.write(testFrame(0, 1, uint64(i), 1514))
		}
	}()
	p := nets["a"].members[0].port
	require.Eventually(t, func() bool { return p.heldBytes() >= 256*1024 }, 5*time.Second, time.Millisecond)
	select {
	case <-done:
		t.Error("the guest did not have to wait")
	case <-time.After(50 * time.Millisecond):
	}
	assert.Less(t, p.heldBytes(), 2<<20)
	nets["a"].Release(1)
	for i := range total {
		require.EqualValues(t, i, frameNumber(g1.receive()))
	}
	<-done
}

func TestDrainWaitsForSlowGuest(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	for range 1000 {
		g0.write(testFrame(0, 1, g0.sent.Add(1), 1514))
	}
	require.Eventually(t, func() bool { return nets["a"].members[0].port.stats.frames.Load() == 1000 }, 5*time.Second, time.Millisecond)
	_, err := tryHold(timeout(t, 100*time.Millisecond), nets, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	read := make(chan uint64)
	go func() {
		last := uint64(0)
		for last < 1000 {
			last = frameNumber(g1.receive())
		}
		read <- last
	}()
	verify(t, c, members, holdAll(t, nets, 1))
	assert.EqualValues(t, 1000, <-read)
}

// TestPausedGuestKeepsItsFrames stops a guest before its traffic has drained.
func TestPausedGuestKeepsItsFrames(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	g0.send(1)
	require.EqualValues(t, 1, frameNumber(g1.receive()))
	nets["b"].PauseDelivery(1)
	g0.send(1)
	g0.send(1)
	require.Eventually(t, func() bool { return nets["a"].members[0].port.stats.frames.Load() == 3 }, 5*time.Second, time.Millisecond)
	verify(t, c, members, holdAll(t, nets, 1))
	g1.quiet()
	g1.send(0)
	frames, err := nets["b"].DrainPort(timeout(t, time.Second), 1)
	require.NoError(t, err)
	require.Len(t, frames, 3)
	releaseAll(nets, 1)
	assert.EqualValues(t, 2, frameNumber(g1.receive()), "the guest that goes on gets them too")
	assert.EqualValues(t, 3, frameNumber(g1.receive()))
	g0.receive()
	verify(t, c, members, holdAll(t, nets, 2))

	restored := map[string]*Network{}
	for _, node := range []string{"a", "b"} {
		n, err := c.switches[node].OpenHeld(NetworkID{"job", 2}, members)
		require.NoError(t, err)
		restored[node] = n
	}
	require.NoError(t, restored["b"].Preload(1, frames))
	c.waitLinks(restored)
	r0, r1 := newGuest(t, restored["a"], 0), newGuest(t, restored["b"], 1)
	r0.write(testFrame(0, 1, 50, 60))
	r0.quiet()
	r1.quiet()
	require.Error(t, restored["a"].Hold(timeout(t, time.Second), 9), "not released yet")
	restored["a"].Release(0)
	r1.quiet()
	restored["b"].Release(0)
	assert.EqualValues(t, 1, frameNumber(r0.receive()))
	got := map[uint64]bool{}
	for range 3 {
		got[frameNumber(r1.receive())] = true
	}
	assert.Equal(t, map[uint64]bool{2: true, 3: true, 50: true}, got)
	require.ErrorIs(t, restored["b"].Preload(1, frames), ErrNotHeld)
	verify(t, c, members, holdAll(t, restored, 3))
}

func TestGuestStoppedWithinFrame(t *testing.T) {
	c := newCluster(t, Limits{PartialWait: 700 * time.Millisecond}, "a")
	nets := c.open(NetworkID{"job", 1}, c.members("a", "a"))
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["a"], 1)
	holdAll(t, nets, 1)
	g0.send(1)
	whole := appendFrame(nil, testFrame(0, 1, 2, 1000))
	_, err := g0.conn.Write(whole[:500])
	require.NoError(t, err)
	time.AfterFunc(5*time.Millisecond, func() { _, _ = g0.conn.Write(whole[500:]) })
	frames, err := nets["a"].DrainPort(timeout(t, 5*time.Second), 0)
	require.NoError(t, err)
	require.Len(t, frames, 2, "the rest that QEMU's main loop writes is waited for")

	_, err = g0.conn.Write(whole[:500])
	require.NoError(t, err)
	frames, err = nets["a"].DrainPort(timeout(t, 5*time.Second), 0)
	require.NoError(t, err)
	require.Len(t, frames, 2)
	g0.accept() // the rest never comes: a new connection
	nets["a"].Release(1)
	g1.receive()
	g1.receive()
	g0.write(testFrame(0, 1, 3, 60))
	assert.EqualValues(t, 3, frameNumber(g1.receive()))
}

func TestSuspend(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	g0, g1 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1)
	nets["a"].Suspend("lease")
	require.ErrorIs(t, nets["a"].Hold(context.Background(), 1), ErrSuspended)
	g0.send(1)
	g1.send(0)
	g0.quiet()
	g1.quiet()
	nets["a"].Resume()
	g0.receive()
	g1.receive()

	holdAll(t, nets, 1)
	nets["a"].Suspend("lease")
	g0.send(1)
	releaseAll(nets, 1)
	g1.quiet()
	nets["a"].Resume()
	assert.EqualValues(t, 2, frameNumber(g1.receive()))
	verify(t, c, members, holdAll(t, nets, 2))
}

func TestPreloadRefusesBadFrames(t *testing.T) {
	c := newCluster(t, Limits{}, "a")
	n, err := c.switches["a"].OpenHeld(NetworkID{"job", 1}, c.members("a", "a"))
	require.NoError(t, err)
	require.Error(t, n.Preload(0, [][]byte{make([]byte, 13)}))
	require.Error(t, n.Preload(0, [][]byte{make([]byte, maxFrame+1)}))
	require.ErrorIs(t, n.Preload(7, nil), ErrNotLocal)

	// More than one read's worth, in front of what the guest sends itself.
	var frames [][]byte
	for i := range 100 {
		frames = append(frames, testFrame(0, 1, uint64(i), 60000))
	}
	require.NoError(t, n.Preload(0, frames))
	g0, g1 := newGuest(t, n, 0), newGuest(t, n, 1)
	g0.write(testFrame(0, 1, 100, 60))
	n.Release(0)
	for i := range 101 {
		require.EqualValues(t, i, frameNumber(g1.receive()))
	}
}
