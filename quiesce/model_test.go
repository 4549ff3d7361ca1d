package quiesce

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/cutcheck"
)

// world is a job of talking guests on several nodes, with links that take
// their time. Everything is guarded by mu; nothing is ever lost in it.
type world struct {
	mu     sync.Mutex
	random *rand.Rand
	nodes  []*simNode
	guests []*simGuest
	wg     sync.WaitGroup
	ctx    context.Context
	lag    time.Duration // longest delay of a message on a link
}

type simGuest struct {
	index   int
	node    *simNode
	stopped int // how many want it stopped
	paused  bool
	sent    []uint64
	seen    []uint64
	inbox   []simFrame // while stopped or paused
	held    []simFrame
}

type simFrame struct{ from, to int }

// simLink carries messages in order, each at its time.
type simLink struct {
	queue []simMessage
	wake  chan struct{}
}

type simMessage struct {
	frame  simFrame
	mark   uint64
	unmark uint64
}

// simNode is a Network.
type simNode struct {
	w        *world
	index    int
	held     bool
	epoch    uint64
	released uint64
	mark     []uint64 // by peer
	unmark   []uint64
	late     [][]lateFrame // by peer
	links    []*simLink    // by peer
	sent     map[simFrame]uint64
	got      map[simFrame]uint64
}

type lateFrame struct {
	frame simFrame
	epoch uint64
}

func newWorld(ctx context.Context, random *rand.Rand, nodes int, perNode []int, lag time.Duration) *world {
	w := &world{random: random, ctx: ctx, lag: lag}
	for i := range nodes {
		w.nodes = append(w.nodes, &simNode{
			w: w, index: i, mark: make([]uint64, nodes), unmark: make([]uint64, nodes),
			late: make([][]lateFrame, nodes), links: make([]*simLink, nodes),
			sent: map[simFrame]uint64{}, got: map[simFrame]uint64{},
		})
	}
	total := 0
	for i, n := range perNode {
		for range n {
			w.guests = append(w.guests, &simGuest{index: total, node: w.nodes[i]})
			total++
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.guests {
		g.sent, g.seen = make([]uint64, total), make([]uint64, total)
		own := rand.New(rand.NewPCG(random.Uint64(), 1))
		w.wg.Go(func() { w.chat(g, own) })
	}
	for _, from := range w.nodes {
		for _, to := range w.nodes {
			if from != to {
				l := &simLink{wake: make(chan struct{}, 1)}
				from.links[to.index] = l
				own := rand.New(rand.NewPCG(random.Uint64(), 2))
				w.wg.Go(func() { w.carry(l, from, to, own) })
			}
		}
	}
	return w
}

// sleep waits for up to most, unless the world ends.
func (w *world) sleep(random *rand.Rand, most time.Duration) bool {
	select {
	case <-w.ctx.Done():
		return false
	case <-time.After(time.Duration(random.Int64N(int64(most) + 1))):
		return true
	}
}

func (w *world) chat(g *simGuest, random *rand.Rand) {
	for w.sleep(random, 500*time.Microsecond) {
		w.mu.Lock()
		to := random.IntN(len(w.guests))
		if g.stopped == 0 && to != g.index {
			g.sent[to]++
			f := simFrame{g.index, to}
			if g.node.held {
				g.held = append(g.held, f)
			} else {
				w.forward(f)
			}
		}
		w.mu.Unlock()
	}
}

func (w *world) forward(f simFrame) {
	from, to := w.guests[f.from].node, w.guests[f.to]
	from.sent[f]++
	if to.node == from {
		w.deliver(f)
		return
	}
	from.post(to.node.index, simMessage{frame: f})
}

func (n *simNode) post(peer int, m simMessage) {
	l := n.links[peer]
	l.queue = append(l.queue, m)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (w *world) deliver(f simFrame) {
	g := w.guests[f.to]
	if g.stopped > 0 || g.paused {
		g.inbox = append(g.inbox, f)
		return
	}
	g.node.got[f]++
	g.seen[f.from]++
}

func (w *world) empty(g *simGuest) {
	if g.stopped == 0 && !g.paused {
		inbox := g.inbox
		g.inbox = nil
		for _, f := range inbox {
			w.deliver(f)
		}
	}
}

func (w *world) carry(l *simLink, from, to *simNode, random *rand.Rand) {
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-l.wake:
		}
		for {
			w.mu.Lock()
			if len(l.queue) == 0 {
				w.mu.Unlock()
				break
			}
			m := l.queue[0]
			l.queue = l.queue[1:]
			w.mu.Unlock()
			if random.IntN(4) == 0 && !w.sleep(random, w.lag) {
				return
			}
			w.mu.Lock()
			to.receive(from.index, m)
			w.mu.Unlock()
		}
	}
}

func (n *simNode) receive(peer int, m simMessage) {
	switch {
	case m.mark > 0:
		if m.mark > n.released {
			n.mark[peer] = max(n.mark[peer], m.mark)
		}
	case m.unmark > 0:
		n.unmark[peer] = max(n.unmark[peer], m.unmark)
		n.settle(peer)
	case n.mark[peer] > n.free(peer):
		n.late[peer] = append(n.late[peer], lateFrame{m.frame, n.mark[peer]})
	default:
		n.w.deliver(m.frame)
	}
}

func (n *simNode) free(peer int) uint64 {
	if n.held {
		return n.released
	}
	return max(n.released, n.unmark[peer])
}

func (n *simNode) settle(peer int) {
	for len(n.late[peer]) > 0 && n.late[peer][0].epoch <= n.free(peer) {
		n.w.deliver(n.late[peer][0].frame)
		n.late[peer] = n.late[peer][1:]
	}
}

var errSimStale = errors.New("stale hold")

func (n *simNode) Hold(_ context.Context, epoch uint64) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if epoch <= n.released || n.held && epoch < n.epoch || slices.Max(n.unmark) >= epoch {
		return errSimStale
	}
	if n.held && epoch > n.epoch {
		n.release(n.epoch)
	}
	n.held, n.epoch = true, epoch
	for peer := range n.links {
		if peer != n.index {
			n.post(peer, simMessage{mark: epoch})
		}
	}
	return nil
}

func (n *simNode) Drained(ctx context.Context, epoch uint64) ([]*vftv1.PairCount, error) {
	for {
		if counts, err := n.look(epoch); counts != nil || err != nil {
			return counts, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Microsecond):
		}
	}
}

func (n *simNode) look(epoch uint64) ([]*vftv1.PairCount, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if !n.held || n.epoch != epoch {
		return nil, errSimStale
	}
	for peer := range n.links {
		if peer != n.index && n.mark[peer] < epoch {
			return nil, nil
		}
	}
	for _, g := range n.w.guests {
		if g.node == n && len(g.inbox) > 0 {
			return nil, nil
		}
	}
	counts := []*vftv1.PairCount{}
	for _, m := range []map[simFrame]uint64{n.sent, n.got} {
		for f := range m {
			from, to := n.w.guests[f.from].node, n.w.guests[f.to].node
			c := &vftv1.PairCount{Source: uint32(f.from), Destination: uint32(f.to), Link: uint64(from.index*100 + to.index + 1)}
			if from == to {
				c.Link = 0
			}
			if from == n {
				c.Sent = n.sent[f]
			}
			if to == n {
				c.Delivered = n.got[f]
			}
			if !slices.ContainsFunc(counts, func(o *vftv1.PairCount) bool {
				return o.GetSource() == c.GetSource() && o.GetDestination() == c.GetDestination()
			}) {
				counts = append(counts, c)
			}
		}
	}
	return counts, nil
}

func (n *simNode) PauseDelivery(guest int) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.guests[guest].paused = true
}

func (n *simNode) DrainPort(_ context.Context, guest int) ([][]byte, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if !n.held {
		return nil, errSimStale
	}
	var frames [][]byte
	for _, f := range n.w.guests[guest].held {
		frames = append(frames, []byte{byte(f.to)})
	}
	return frames, nil
}

func (n *simNode) Release(epoch uint64) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if !n.held || epoch >= n.epoch {
		n.release(epoch)
	}
}

func (n *simNode) release(epoch uint64) {
	n.released = max(n.released, epoch)
	if n.held {
		for peer := range n.links {
			if peer != n.index {
				n.post(peer, simMessage{unmark: n.released})
			}
		}
	}
	n.held = false
	for _, g := range n.w.guests {
		if g.node == n {
			held := g.held
			g.held = nil
			for _, f := range held {
				n.w.forward(f)
			}
			g.paused = false
			n.w.empty(g)
		}
	}
	for peer := range n.links {
		n.settle(peer)
	}
}

// simSnapshot is the snapshot of one guest for one epoch.
type simSnapshot struct {
	w      *world
	g      *simGuest
	random *rand.Rand
	fails  bool
	early  chan time.Time

	stopped    bool // by this snapshot
	over       bool
	sent, seen []uint64
}

func (s *simSnapshot) Prepare(ctx context.Context) error {
	if !s.w.sleep(s.random, time.Millisecond) {
		return ctx.Err()
	}
	if s.early != nil {
		s.w.mu.Lock()
		s.stop()
		s.w.mu.Unlock()
		s.early <- time.Now()
	}
	return nil
}

func (s *simSnapshot) EarlyStop() <-chan time.Time { return s.early }

func (s *simSnapshot) stop() {
	if !s.stopped && !s.over {
		s.stopped = true
		s.g.stopped++
	}
}

func (s *simSnapshot) resume() {
	if s.stopped {
		s.stopped = false
		s.g.stopped--
		s.w.empty(s.g)
	}
}

func (s *simSnapshot) Cut(ctx context.Context, atCut func(context.Context) error) error {
	s.w.sleep(s.random, time.Millisecond)
	if s.fails {
		return errors.New("the guest cannot be snapshot")
	}
	s.w.mu.Lock()
	s.stop()
	s.w.mu.Unlock()
	s.w.sleep(s.random, time.Millisecond)
	err := atCut(ctx)
	s.w.mu.Lock()
	s.sent, s.seen = slices.Clone(s.g.sent), slices.Clone(s.g.seen)
	s.w.mu.Unlock()
	s.w.sleep(s.random, time.Millisecond)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.resume()
	return errors.Join(err, ctx.Err())
}

func (s *simSnapshot) Abort(context.Context) error {
	s.w.sleep(s.random, 200*time.Microsecond)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.over = true
	s.resume()
	return nil
}

// checkCut checks I4, and that whatever was sent and not seen is channel state.
func (w *world) checkCut(snapshots map[int]*simSnapshot, results map[int]CutResult) error {
	guests := make([]cutcheck.Guest, len(w.guests))
	for i := range guests {
		guests[i] = cutcheck.Guest{Sent: snapshots[i].sent, Seen: snapshots[i].seen, Channel: make([]uint64, len(w.guests))}
		for _, frame := range results[i].Frames {
			guests[i].Channel[frame[0]]++
		}
	}
	return errors.Join(cutcheck.Cut(guests), cutcheck.Whole(guests))
}
