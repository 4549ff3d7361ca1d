package quiesce

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"
)

// fate is what happens to one epoch.
type fate struct {
	hold      time.Duration // time-out that nodes are given
	dawdle    time.Duration // longest wait before each call
	gap       time.Duration // after the epoch
	failing   int           // guest whose cut fails, -1: none
	early     int           // guest that stops by itself, -1: none
	forgets   bool          // the coordinator dies where it first fails, and does not abort
	quits     int           // step after which the coordinator dies, 4: does not
	repeats   int           // calls out of a hundred that are made again later
	crossings int           // calls out of a hundred that arrive twice at once
}

func drawFate(t *rapid.T, guests int) fate {
	micros := func(most int, label string) time.Duration {
		return time.Duration(rapid.IntRange(0, most).Draw(t, label)) * time.Microsecond
	}
	seldom := func(label string) int {
		if rapid.IntRange(0, 5).Draw(t, label+" at all") != 5 {
			return -1
		}
		return rapid.IntRange(0, guests-1).Draw(t, label)
	}
	return fate{
		hold:    rapid.SampledFrom([]time.Duration{5, 12, 20, 30, 50}).Draw(t, "hold") * time.Millisecond,
		dawdle:  micros(3000, "dawdle"),
		gap:     micros(10_000, "gap"),
		failing: seldom("failing"),
		early:   seldom("early"),
		forgets: rapid.Bool().Draw(t, "forgets"),
		quits:   rapid.SampledFrom([]int{4, 4, 4, 4, 0, 1, 2, 3}).Draw(t, "quits"),
		repeats: rapid.IntRange(0, 50).Draw(t, "repeats"), crossings: rapid.IntRange(0, 50).Draw(t, "crossings"),
	}
}

// director is a coordinator with a memory for old calls.
type director struct {
	w       *world
	parts   []*Participant
	members []Member
	random  *rand.Rand

	mu      sync.Mutex
	results []error // violations
	wg      sync.WaitGroup
	commits int
}

func (d *director) complain(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.results = append(d.results, fmt.Errorf(format, args...))
}

func (d *director) roll(hundred int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.random.IntN(100) < hundred
}

func (d *director) pause(most time.Duration) {
	d.mu.Lock()
	wait := time.Duration(d.random.Int64N(int64(most) + 1))
	d.mu.Unlock()
	time.Sleep(wait)
}

// call makes a call, perhaps twice at once and perhaps again much later. A
// late call gives the same answer, or is refused; it must not do anything.
func call[T any](d *director, f fate, name string, work func() (T, error)) (T, error) {
	d.pause(f.dawdle)
	if d.roll(f.crossings) {
		d.wg.Go(func() { _, _ = work() })
	}
	value, err := work()
	if d.roll(f.repeats) {
		d.wg.Go(func() {
			d.pause(60 * time.Millisecond)
			again, lateErr := work()
			switch {
			case errors.Is(lateErr, ErrStale), errors.Is(lateErr, ErrClosed):
			case err == nil && lateErr == nil && !reflect.DeepEqual(value, again):
				d.complain("%s answered %v, and later %v", name, value, again)
			case err == nil && lateErr != nil && !errors.Is(lateErr, ErrPoisoned):
				d.complain("%s answered well, and later: %v", name, lateErr)
			}
		})
	}
	return value, err
}

// each calls all nodes at once.
func each[T any](d *director, f fate, name string, work func(node int, p *Participant) (T, error)) ([]T, error) {
	values := make([]T, len(d.parts))
	var group errgroup.Group
	for node, p := range d.parts {
		group.Go(func() (err error) {
			values[node], err = call(d, f, name, func() (T, error) { return work(node, p) })
			return err
		})
	}
	return values, group.Wait()
}

// take tries one epoch and reports whether it commits.
func (d *director) take(ctx context.Context, number uint64, f fate) error {
	snapshots := map[int]*simSnapshot{}
	byNode := make([]map[int]Snapshot, len(d.parts))
	for node := range d.parts {
		byNode[node] = map[int]Snapshot{}
	}
	for _, g := range d.w.guests {
		s := &simSnapshot{w: d.w, g: g, random: rand.New(rand.NewPCG(number, uint64(g.index))), fails: g.index == f.failing}
		if g.index == f.early {
			s.early = make(chan time.Time, 1)
		}
		snapshots[g.index], byNode[g.node.index][g.index] = s, s
	}
	errQuit := errors.New("the coordinator died")
	_, err := each(d, f, "prepare", func(node int, p *Participant) (struct{}, error) {
		return struct{}{}, p.Prepare(ctx, number, byNode[node])
	})
	if err != nil || f.quits == 0 {
		return errors.Join(err, errQuit)
	}
	counts, err := each(d, f, "hold", func(_ int, p *Participant) ([]*vftv1.PairCount, error) {
		return p.Hold(ctx, number, f.hold)
	})
	if err != nil || f.quits == 1 {
		return errors.Join(err, errQuit)
	}
	reports := map[string][]*vftv1.PairCount{}
	for node, c := range counts {
		reports[fmt.Sprint(node)] = c
	}
	if _, err := Verify(d.members, reports); err != nil {
		d.complain("epoch %d: %w", number, err) // nothing is lost in this world
		return err
	}
	cuts, err := each(d, f, "cut", func(_ int, p *Participant) (map[int]CutResult, error) { return p.Cut(ctx, number) })
	if err != nil || f.quits == 2 {
		return errors.Join(err, errQuit)
	}
	outcomes, err := each(d, f, "release", func(_ int, p *Participant) (Outcome, error) { return p.Release(ctx, number) })
	if err != nil || f.quits == 3 {
		return errors.Join(err, errQuit)
	}
	for _, o := range outcomes {
		if !o.ByOrder {
			return errors.New("released by itself")
		}
		if o.Held > f.hold {
			d.complain("epoch %d was held for %s, longer than %s", number, o.Held, f.hold)
		}
	}
	results := map[int]CutResult{}
	for _, c := range cuts {
		for guest, r := range c {
			results[guest] = r
		}
	}
	if err := d.w.checkCut(snapshots, results); err != nil {
		d.complain("epoch %d is committed: %w", number, err)
	}
	d.commits++
	return nil
}

// TestHistories runs epochs with delays, repeated and late calls, failures,
// time-outs and coordinators that die, and checks I4 for every epoch that
// commits, I6 for all calls, and that the job goes on in the end.
func TestHistories(t *testing.T) {
	commits := 0
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(1, 4).Draw(rt, "nodes")
		var perNode []int
		guests := 0
		for range nodes {
			n := rapid.IntRange(1, 2).Draw(rt, "guests")
			perNode = append(perNode, n)
			guests += n
		}
		lag := time.Duration(rapid.IntRange(0, 3000).Draw(rt, "lag")) * time.Microsecond
		seed := rapid.Uint64().Draw(rt, "seed")
		var fates []fate
		for range rapid.IntRange(1, 6).Draw(rt, "epochs") {
			fates = append(fates, drawFate(rt, guests))
		}
		var broken []error
		synctest.Test(t, func(t *testing.T) {
			var n int
			broken, n = history(t, seed, nodes, perNode, lag, fates)
			commits += n
		})
		if len(broken) > 0 {
			rt.Fatalf("%v", errors.Join(broken...))
		}
	})
	if commits == 0 {
		t.Error("no epoch was ever committed")
	}
	t.Logf("%d epochs committed", commits)
}

func history(t *testing.T, seed uint64, nodes int, perNode []int, lag time.Duration, fates []fate) ([]error, int) {
	ctx, cancel := context.WithCancel(t.Context())
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(ctx, random, nodes, perNode, lag)
	d := &director{w: w, random: rand.New(rand.NewPCG(seed, 3))}
	for i, n := range w.nodes {
		d.parts = append(d.parts, NewParticipant(Config{Network: n}))
		for _, g := range w.guests {
			if g.node == n {
				d.members = append(d.members, Member{Guest: g.index, Node: fmt.Sprint(i)})
			}
		}
	}
	time.Sleep(time.Millisecond)
	for i, f := range fates {
		number := uint64(i + 1)
		if err := d.take(ctx, number, f); err != nil && !f.forgets {
			_, _ = each(d, f, "abort", func(_ int, p *Participant) (struct{}, error) { return struct{}{}, p.Abort(ctx, number) })
		}
		d.pause(f.gap)
	}
	d.wg.Wait()
	time.Sleep(200 * time.Millisecond) // longer than any hold
	for _, p := range d.parts {
		p.Close()
	}
	time.Sleep(200 * time.Millisecond)
	cancel()
	w.wg.Wait()
	d.checkFlow()
	return d.results, d.commits
}

// checkFlow checks that a job goes on whatever became of its checkpoints.
func (d *director) checkFlow() {
	w := d.w
	for _, g := range w.guests {
		if g.stopped != 0 || g.paused || len(g.held) > 0 || len(g.inbox) > 0 {
			d.complain("I7: guest %d: stopped %d, paused %t, %d frames held, %d not taken", g.index, g.stopped, g.paused, len(g.held), len(g.inbox))
		}
	}
	for _, n := range w.nodes {
		for peer := range w.nodes {
			if n.held || len(n.late[peer]) > 0 {
				d.complain("I7: node %d: held %t, %d frames of node %d wait", n.index, n.held, len(n.late[peer]), peer)
			}
		}
	}
}
