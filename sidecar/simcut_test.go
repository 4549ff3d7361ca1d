package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/internal/cutcheck"
	"github.com/mpirun-vft/vft/overlay"
	"github.com/mpirun-vft/vft/quiesce"
)

// unsafeBytes are the bytes that a vector of writev means.
func unsafeBytes(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// simFate is what happens to one epoch.
type simFate struct {
	hold    time.Duration // time-out
	quits   int           // step after which the coordinator dies, 4: does not
	forgets bool          // and does not abort
	fails   int           // guest that cannot be snapshot, -1: none
	breaks  int           // times that all links break
	repeats int           // calls out of a hundred that come twice, and late
}

func drawSimFate(t *rapid.T, guests int) simFate {
	return simFate{
		hold:    time.Duration(rapid.SampledFrom([]int{4, 15, 200, 200}).Draw(t, "hold")) * time.Millisecond,
		quits:   rapid.SampledFrom([]int{4, 4, 4, 0, 1, 2, 3}).Draw(t, "quits"),
		forgets: rapid.Bool().Draw(t, "forgets"),
		fails:   rapid.SampledFrom([]int{-1, -1, -1, -1, -1, guests - 1}).Draw(t, "fails"),
		breaks:  rapid.IntRange(0, 3).Draw(t, "breaks"),
		repeats: rapid.IntRange(0, 40).Draw(t, "repeats"),
	}
}

// ask calls all nodes at once; some calls come twice, the second one at any
// time. It returns when all first ones are answered.
func ask[T any](j *simJob, f simFate, call func(*simNode) (T, error)) ([]T, error) {
	answers := make([]T, len(j.nodes))
	var group errgroup.Group
	for i, n := range j.nodes {
		group.Go(func() (err error) {
			j.sleep(time.Millisecond)
			if j.dice(100) < f.repeats {
				j.wg.Go(func() {
					j.sleep(50 * time.Millisecond)
					_, _ = call(n) // the checker sees what comes of it
				})
			}
			answers[i], err = call(n)
			return err
		})
	}
	return answers, group.Wait()
}

// take tries an epoch as the coordinator does; nil: it is committed.
func (j *simJob) take(number, last uint64, f simFate) error {
	ctx := j.ctx
	var breaking sync.WaitGroup
	defer breaking.Wait()
	for range f.breaks {
		breaking.Go(func() {
			j.sleep(10 * time.Millisecond)
			j.breakLinks()
		})
	}
	died := errors.New("the coordinator died")
	photos := make([]*photo, len(j.guests))
	for i, g := range j.guests {
		photos[i] = &photo{g: g, fails: i == f.fails}
	}
	_, err := ask(j, f, func(n *simNode) (struct{}, error) {
		local := map[int]quiesce.Snapshot{}
		for i, g := range j.guests {
			if g.node == n {
				local[i] = photos[i]
			}
		}
		return struct{}{}, n.part.Prepare(ctx, number, local)
	})
	if err != nil || f.quits == 0 {
		return errors.Join(err, died)
	}
	counts, err := ask(j, f, func(n *simNode) ([]*vftv1.PairCount, error) { return n.part.Hold(ctx, number, f.hold) })
	if err != nil || f.quits == 1 {
		return errors.Join(err, died)
	}
	reports, members := map[string][]*vftv1.PairCount{}, []quiesce.Member{}
	for i, n := range j.nodes {
		reports[n.name] = counts[i]
	}
	for i, g := range j.guests {
		members = append(members, quiesce.Member{Guest: i, Node: g.node.name})
	}
	if _, err := quiesce.Verify(members, reports); err != nil {
		j.complain("epoch %d: %w", number, err) // nothing is lost here
		return err
	}
	cuts, err := ask(j, f, func(n *simNode) (map[int]quiesce.CutResult, error) { return n.part.Cut(ctx, number) })
	if err != nil || f.quits == 2 {
		return errors.Join(err, died)
	}
	outcomes, err := ask(j, f, func(n *simNode) (quiesce.Outcome, error) { return n.part.Release(ctx, number) })
	if err != nil || f.quits == 3 {
		return errors.Join(err, died)
	}
	e := cutcheck.Epoch{Number: number, Incarnation: 1}
	for _, o := range outcomes {
		if !o.ByOrder {
			return errors.New("released by itself")
		}
		e.ByOrder = append(e.ByOrder, o.ByOrder)
	}
	for i, g := range j.guests {
		p := cutcheck.Guest{Sent: photos[i].sent, Seen: photos[i].seen, Channel: make([]uint64, len(j.guests))}
		for _, frame := range cuts[slices.Index(j.nodes, g.node)][i].Frames {
			_, to, _ := decode(frame)
			p.Channel[to]++
		}
		e.Guests, e.Durable = append(e.Guests, p), append(e.Durable, p.Sent != nil)
	}
	if err := errors.Join(cutcheck.Commit(last, 1, e), cutcheck.Whole(e.Guests)); err != nil {
		j.complain("epoch %d is committed: %w", number, err)
	}
	return nil
}

// simOutcome is what came of a history.
type simOutcome struct {
	violations []error
	commits    int    // epochs
	resumed    uint64 // links that went on over a new connection
}

// run goes through the epochs, then checks that every frame arrives, and
// returns how many epochs were committed.
func (j *simJob) run(fates []simFate) (commits int) {
	j.sleep(5 * time.Millisecond)
	last := uint64(0)
	for i, f := range fates {
		number := uint64(i + 1)
		switch err := j.take(number, last, f); {
		case err == nil:
			last = number
			commits++
		case !f.forgets:
			_, _ = ask(j, f, func(n *simNode) (struct{}, error) { return struct{}{}, n.part.Abort(j.ctx, number) })
		}
		j.sleep(10 * time.Millisecond)
	}
	j.mu.Lock()
	j.quiet = true
	j.mu.Unlock()
	time.Sleep(5 * time.Second) // longer than any hold and any pause before a link is made again
	j.mu.Lock()
	defer j.mu.Unlock()
	for from, g := range j.guests {
		if g.stopped {
			j.violations = append(j.violations, fmt.Errorf("I7: guest %d stands still", from))
		}
		for to, other := range j.guests {
			if g.sent[to] != other.seen[from] {
				j.violations = append(j.violations, fmt.Errorf("guest %d has sent %d frames to %d, which has got %d", from, g.sent[to], to, other.seen[from]))
			}
		}
	}
	return commits
}

// simulate runs a job in simulated time.
func simulate(t *testing.T, seed uint64, perNode []int, lag time.Duration, swap bool, sabotage func(*overlay.Network) quiesce.Network, fates []simFate) (o simOutcome) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		j, err := newSimJob(ctx, seed, perNode, lag, swap, sabotage)
		if err != nil {
			t.Fatal(err)
		}
		o.commits = j.run(fates)
		for _, n := range j.nodes {
			for _, l := range n.sw.Stats().Links {
				o.resumed += l.Resumed
			}
		}
		j.close(cancel)
		o.violations = j.violations
	})
	return o
}

// TestSimulatedCuts runs the real switch and the real participant with links
// that are slow and break, calls that come late and twice, holds that time out
// and coordinators that die: every commit and every delivery must pass the
// checker, and in the end every frame has arrived once.
func TestSimulatedCuts(t *testing.T) {
	commits, histories, resumed := 0, 0, uint64(0)
	rapid.Check(t, func(rt *rapid.T) {
		var perNode []int
		guests := 0
		for range rapid.IntRange(1, 3).Draw(rt, "nodes") {
			perNode = append(perNode, rapid.IntRange(1, 2).Draw(rt, "guests"))
			guests += perNode[len(perNode)-1]
		}
		var fates []simFate
		for range rapid.IntRange(1, 5).Draw(rt, "epochs") {
			fates = append(fates, drawSimFate(rt, guests))
		}
		lag := time.Duration(rapid.IntRange(0, 2000).Draw(rt, "lag")) * time.Microsecond
		o := simulate(t, rapid.Uint64().Draw(rt, "seed"), perNode, lag, false, nil, fates)
		commits += o.commits
		resumed += o.resumed
		histories++
		if len(o.violations) > 0 {
			rt.Fatalf("%v", errors.Join(o.violations...))
		}
	})
	if commits == 0 || resumed == 0 {
		t.Error("no epoch was ever committed, or no link ever broke")
	}
	t.Logf("%d histories, %d epochs committed, links went on over %d new connections", histories, commits, resumed)
}

// forgetful loses the channel state.
type forgetful struct{ *overlay.Network }

func (n forgetful) DrainPort(ctx context.Context, guest int) ([][]byte, error) {
	_, err := n.Network.DrainPort(ctx, guest)
	return nil, err
}

// hasty releases when the first of its guests is about to be cut.
type hasty struct{ *overlay.Network }

func (n hasty) PauseDelivery(int) { n.Release(n.State().Epoch) }

func (n hasty) DrainPort(ctx context.Context, guest int) ([][]byte, error) {
	frames, err := n.Network.DrainPort(ctx, guest)
	if errors.Is(err, overlay.ErrNotHeld) {
		return nil, nil
	}
	return frames, err
}

// TestSimulatedCutsFindFaults breaks the network on purpose: the checker must
// notice.
func TestSimulatedCutsFindFaults(t *testing.T) {
	for _, c := range []struct {
		name     string
		swap     bool
		sabotage func(*overlay.Network) quiesce.Network
	}{
		{"channel state is forgotten", false, func(n *overlay.Network) quiesce.Network { return forgetful{n} }},
		{"released before all are cut", false, func(n *overlay.Network) quiesce.Network { return hasty{n} }},
		{"a mark overtakes frames", true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			good := simFate{hold: 200 * time.Millisecond, quits: 4, fails: -1}
			for seed := range uint64(20) {
				o := simulate(t, seed, []int{2, 1, 2}, 500*time.Microsecond, c.swap, c.sabotage, []simFate{good, good, good})
				if len(o.violations) > 0 {
					t.Logf("history %d: %v", seed, o.violations[0])
					return
				}
			}
			t.Error("nobody noticed")
		})
	}
}
