package overlay

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// moving is a job whose guests change their nodes.
type moving struct {
	t       *testing.T
	c       *cluster
	id      NetworkID
	members []Member
	nets    map[string]*Network // of nodes with guests
	all     []*chatter
	hold    uint64
}

// move takes a guest to a node while everybody talks, as a migration does.
func (x *moving) move(random *rand.Rand, guest int, to string) {
	t, g, ctx := x.t, x.all[guest], timeout(x.t, 10*time.Second)
	x.hold++
	from := x.members[guest].Node
	members := slices.Clone(x.members)
	members[guest].Node, members[guest].Address = to, x.c.address[to]
	dest := x.nets[to]
	if dest == nil {
		var err error
		dest, err = x.c.switches[to].OpenHeld(x.id, x.members)
		require.NoError(t, err)
	}
	for node, n := range x.nets {
		if random.IntN(2) == 0 && node != to {
			require.NoError(t, n.Expect(to, x.c.address[to]))
		}
	}
	delays := map[string]time.Duration{}
	for node := range x.nets {
		delays[node] = time.Duration(random.IntN(2000)) * time.Microsecond
	}
	reports, err := tryHoldLate(ctx, x.nets, x.hold, delays)
	require.NoError(t, err)
	verify(t, x.c, x.members, reports)

	g.n.PauseDelivery(guest)
	g.mu.Lock()
	g.stopped = true
	frames, err := g.n.DrainPort(ctx, guest)
	require.NoError(t, err)
	require.NoError(t, dest.Rehome(members))
	require.NoError(t, dest.Preload(guest, frames))
	old := g.conn
	oldReader := g.r
	g.attach(dest)
	for _, n := range x.nets {
		require.NoError(t, n.Rehome(members))
	}
	if random.IntN(4) == 0 { // taken back: the guest goes on where it was
		taken := g.conn
		g.n, g.conn, g.r = x.nets[from], old, oldReader
		g.stopped = false
		g.running.Broadcast()
		g.mu.Unlock()
		require.NoError(t, dest.Rehome(x.members))
		_ = taken.Close() // later than the port, which would dial again
		for _, n := range x.nets {
			require.NoError(t, n.Rehome(x.members))
			n.Settle()
		}
		x.release(random, x.nets)
		if x.nets[to] == nil {
			dest.Close()
		}
		return
	}
	g.listen()
	g.stopped = false
	g.running.Broadcast()
	g.mu.Unlock()

	x.nets[to], x.members = dest, members
	for _, n := range x.nets {
		require.NoError(t, n.Rehome(members))
		n.Settle()
	}
	_ = old.Close()           // later than the port, which would dial again
	x.release(random, x.nets) // one after the other
	if !slices.ContainsFunc(members, func(m Member) bool { return m.Node == from }) {
		x.nets[from].Close()
		delete(x.nets, from)
	}
}

func (x *moving) release(random *rand.Rand, nets map[string]*Network) {
	for _, n := range nets {
		n.Release(x.hold)
		time.Sleep(time.Duration(random.IntN(500)) * time.Microsecond)
	}
}

// TestMovesUnderTraffic moves guests that talk all the time between nodes, some
// of which have no other guest of the job: no frame is lost, doubled or
// overtaken, and every drain proof holds.
func TestMovesUnderTraffic(t *testing.T) {
	const guests, moves = 4, 30
	c := newCluster(t, Limits{PortQueue: 512 << 20, LinkQueue: 512 << 20}, "a", "b", "c", "d")
	x := &moving{t: t, c: c, id: NetworkID{"job", 1}, members: c.members("a", "a", "b", "c")}
	x.nets = c.open(x.id, x.members)
	for i, m := range x.members {
		x.all = append(x.all, newChatter(t, x.nets[m.Node], i, guests))
	}
	for _, g := range x.all {
		g.start()
	}
	random := rand.New(rand.NewPCG(3, 9))
	moved := 0
	for range moves {
		time.Sleep(time.Duration(random.IntN(5)) * time.Millisecond)
		guest, to := random.IntN(guests), []string{"a", "b", "c", "d"}[random.IntN(4)]
		if x.members[guest].Node == to {
			continue
		}
		x.move(random, guest, to)
		moved++
	}
	require.Greater(t, moved, moves/2)
	for _, g := range x.all { // nobody sends any more, and what was sent arrives
		g.mu.Lock()
		g.quit.Store(true)
		g.mu.Unlock()
	}
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		for to, g := range x.all {
			g.mu.Lock()
			seen := slices.Clone(g.seenFrom)
			g.mu.Unlock()
			for from, s := range x.all {
				s.mu.Lock()
				sent := s.sentTo[to]
				s.mu.Unlock()
				assert.Equal(t, sent, seen[from], "frames from %d to %d", from, to)
			}
		}
	}, 5*time.Second, 5*time.Millisecond)
	for _, g := range x.all {
		g.stop()
		require.NoError(t, g.err)
		assert.Equal(t, make([]uint64, guests), g.lost, "gaps at guest %d", g.index)
	}
	for node, s := range c.switches {
		assert.Zero(t, s.stats.misplaced.Load(), "at node %s", node)
		assert.Zero(t, s.stats.unknownNetwork.Load(), "at node %s", node)
	}
}

// TestRehomeWithoutHold: a node that did not hold loses frames that are under
// way, but the next drain proof holds all the same.
func TestRehomeWithoutHold(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b", "c")
	id, members := NetworkID{"job", 1}, c.members("a", "b", "c")
	nets := c.open(id, members)
	g0, g1, g2 := newGuest(t, nets["a"], 0), newGuest(t, nets["b"], 1), newGuest(t, nets["c"], 2)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for _, g := range []*guest{g0, g2} {
		wg.Go(func() {
			for i := uint64(1); ; i++ {
				select {
				case <-done:
					return
				default:
				}
				g.write(testFrame(g.index, 1, i, 200))
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	now := slices.Clone(members)
	now[1].Node, now[1].Address = "c", c.address["c"]
	for _, node := range []string{"c", "b", "a"} {
		require.NoError(t, nets[node].Rehome(now))
		time.Sleep(2 * time.Millisecond)
	}
	nets["b"].Settle() // it does not dial the guest any more
	_ = g1.conn.Close()
	g1.attach(nets["c"])
	go func() { // it takes what comes
		for {
			if _, err := readFrame(g1.r); err != nil {
				return
			}
		}
	}()
	time.Sleep(5 * time.Millisecond)
	close(done)
	wg.Wait()
	nets["b"].Close()
	delete(nets, "b")
	reports, err := tryHoldLate(timeout(t, 5*time.Second), nets, 1, nil)
	require.NoError(t, err)
	verify(t, c, now, reports)
	_ = g1.conn.Close()
}

func TestRehomeIsRefused(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	require.Error(t, nets["a"].Rehome(members[:1]))
	require.Error(t, nets["a"].Rehome([]Member{members[1], members[0]}))
	require.NoError(t, nets["a"].Rehome(members))
	nets["a"].Settle()
	nets["a"].Close()
	require.ErrorIs(t, nets["a"].Rehome(members), ErrClosed)
	require.ErrorIs(t, nets["a"].Expect("c", "x"), ErrClosed)
	require.Empty(t, c.switches["a"].links)
}

// TestExpectedLinkIsGivenUp: a link to a node that got no guest after all does
// not stay.
func TestExpectedLinkIsGivenUp(t *testing.T) {
	c := newCluster(t, Limits{}, "a", "b", "c")
	members := c.members("a", "b")
	nets := c.open(NetworkID{"job", 1}, members)
	require.NoError(t, nets["a"].Expect("c", c.address["c"]))
	require.NoError(t, nets["a"].Expect("c", c.address["c"]))
	linked := func() bool {
		s := c.switches["a"]
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.links["c"] != nil && s.links["c"].missing(time.Now()) == 0
	}
	require.Eventually(t, linked, 5*time.Second, time.Millisecond)
	require.NoError(t, nets["a"].Rehome(members))
	require.True(t, linked())
	nets["a"].Settle()
	require.False(t, linked())
	require.NoError(t, nets["a"].Hold(context.Background(), 1))
}
