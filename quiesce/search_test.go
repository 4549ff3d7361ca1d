package quiesce

import (
	"fmt"
	"hash/maphash"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// explore visits every state that spec can reach, each once, nearest first. It
// returns how many there are, and the shortest way to a broken invariant.
// States are told apart by a 64-bit hash: of ten million, two share one with a
// probability of 3 in a million.
func explore(c *spec, most int) (states int, err error) {
	type visit struct {
		parent int32
		step   specStep
	}
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{}
	var history []visit
	type open struct {
		state specState
		id    int32
	}
	first := c.initial()
	hash := func(s *specState) uint64 {
		return maphash.Bytes(seed, unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))) // it has no pointers
	}
	seen[hash(&first)] = struct{}{}
	history = append(history, visit{parent: -1})
	way := func(id int32, last specStep) string {
		lines := []string{last.String()}
		for ; id > 0; id = history[id].parent {
			lines = append(lines, history[id].step.String())
		}
		var b strings.Builder
		for i := range lines {
			fmt.Fprintf(&b, "\n%3d %s", i+1, lines[len(lines)-1-i])
		}
		return b.String()
	}
	for layer := []open{{first, 0}}; len(layer) > 0; {
		var next []open
		for i := range layer {
			from := &layer[i]
			followed := false
			c.steps(&from.state, func(step specStep, after *specState, broken error) {
				followed = true
				if err != nil {
					return
				}
				if broken != nil {
					err = fmt.Errorf("%w%s", broken, way(from.id, step))
					return
				}
				key := hash(after)
				if _, old := seen[key]; old {
					return
				}
				seen[key] = struct{}{}
				history = append(history, visit{from.id, step})
				next = append(next, open{*after, int32(len(history) - 1)})
			})
			if err == nil && !followed {
				if broken := c.settled(&from.state); broken != nil {
					err = fmt.Errorf("%w%s", broken, way(history[from.id].parent, history[from.id].step))
				}
			}
			if err != nil {
				return len(history), err
			}
			if len(history) > most {
				return len(history), fmt.Errorf("there are more than %d states", most)
			}
		}
		layer = next
	}
	return len(history), nil
}

// bounds is what the search of the right rules covers: which guest is on
// which node, how much of everything happens. Large ones take minutes and
// gigabytes, and are for VFT_SEARCH=large.
var bounds = []struct {
	name  string
	large bool
	spec
}{
	{"plain", false, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 3}},
	{"time-outs and calls again", false, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 2, expiries: 1, dups: 1}},
	{"two epochs", false, spec{place: []int{0, 1}, nodes: 2, epochs: 2, sends: 1}},
	{"leader changes", false, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 1, changes: 2}},
	{"sidecar dies", false, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 2, deaths: 1}},
	{"job restarts", false, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 1, restarts: 1}},
	{"two guests on a node", false, spec{place: []int{0, 0, 1}, nodes: 2, epochs: 1, sends: 1}},
	{"three nodes", false, spec{place: []int{0, 1, 2}, nodes: 3, epochs: 1}},

	{"time-outs and calls again", true, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 4, expiries: 2, dups: 2}},
	{"leader changes between epochs", true, spec{place: []int{0, 1}, nodes: 2, epochs: 2, changes: 1}},
	{"leader changes between epochs, frames", true, spec{place: []int{0, 1}, nodes: 2, epochs: 2, sends: 1, changes: 1}},
	{"sidecar dies, leader changes", true, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 2, deaths: 1, changes: 1}},
	{"job restarts", true, spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 3, restarts: 1, dups: 1}},
	{"two guests on a node", true, spec{place: []int{0, 0, 1}, nodes: 2, epochs: 1, sends: 3, expiries: 1}},
	{"three nodes", true, spec{place: []int{0, 1, 2}, nodes: 3, epochs: 1, sends: 1}},
	{"three nodes, time-outs", true, spec{place: []int{0, 1, 2}, nodes: 3, epochs: 1, sends: 2, expiries: 1}},
}

// TestSearch looks for a broken invariant in every state within the bounds.
func TestSearch(t *testing.T) {
	if racing {
		t.Skip("the search has one goroutine, and takes a hundred times as long with the race detector")
	}
	large := os.Getenv("VFT_SEARCH") == "large"
	total := 0
	for _, b := range bounds {
		if b.large && !large {
			continue
		}
		t.Run(b.name, func(t *testing.T) {
			n, err := explore(&b.spec, 30_000_000)
			if err != nil {
				t.Fatal(err)
			}
			total += n
			t.Logf("%d states", n)
		})
	}
	t.Logf("%d states in all", total)
}

// TestSearchFindsBrokenRules breaks one rule after the other: the checker must
// notice. Two that hold twice over are broken at both ends.
func TestSearchFindsBrokenRules(t *testing.T) {
	if racing {
		t.Skip("as above")
	}
	two := spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 2}
	shared := spec{place: []int{0, 0, 1}, nodes: 2, epochs: 1, sends: 2}
	with := func(c spec, f func(*spec)) spec { f(&c); return c }
	expiring := with(two, func(c *spec) { c.expiries = 1 })
	repeating := with(two, func(c *spec) { c.dups = 1 })
	restarting := with(two, func(c *spec) { c.restarts = 1 })
	changing := with(two, func(c *spec) { c.changes, c.sends = 1, 0 })
	for _, c := range []struct {
		name   string
		broken mutation
		spec
		want string
	}{
		{"a node releases before all its guests are cut", leaderReleasesEarly | nodeReleasesEarly, shared, "epoch 1"},
		{"the leader releases before all nodes have cut, and frames pass the mark", leaderReleasesEarly | latePassesMark, two, "1 were seen and 1 are channel state"},
		{"a mark overtakes frames", markOvertakes, two, "is drained, but of 1 frames"},
		{"a mark overtakes frames, and nobody counts them", markOvertakes | drainNotProven, two, "channel state"},
		{"drained before the marks have come", drainIgnoresMarks, two, "is drained, but of 1 frames"},
		{"drained before a guest has taken its frames", drainIgnoresGuests, two, "is drained, but of 1 frames"},
		{"a hold that timed out goes on", expiryDoesNotPoison, expiring, "epoch 1"},
		{"what a port holds is not channel state", channelStateForgotten, two, "channel state"},
		{"calls for older epochs are taken", oldEpochsAccepted, with(two, func(c *spec) { c.epochs, c.sends = 2, 0 }), "I6"},
		{"calls of older incarnations are taken", oldIncarnationAccepted, restarting, "I6"},
		{"a cut is made again", stepsRepeat, repeating, "I6"},
		{"frames of older incarnations are delivered", framesNotFenced, restarting, "I3"},
		{"a commit does not look at the log", commitUnseen, changing, "I1"},
		{"parts are given up before the log says so", abortBeforeLog, changing, "I1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.broken = c.broken
			n, err := explore(&c.spec, 3_000_000)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%d states, and the search found: %v\nwant: %s", n, err, c.want)
			}
			t.Logf("%d states: %v", n, err)
		})
	}
}

// TestSearchOfRulesThatHoldTwice breaks rules of the coordinator that do not
// stand alone: nothing may come of it.
func TestSearchOfRulesThatHoldTwice(t *testing.T) {
	if racing {
		t.Skip("as above")
	}
	for _, c := range []struct {
		name   string
		broken mutation
	}{
		{"the leader releases early: frames wait behind the mark", leaderReleasesEarly},
		{"nobody asks who released by itself: the parts are gone", releaseNotByOrder},
	} {
		t.Run(c.name, func(t *testing.T) {
			two := spec{place: []int{0, 1}, nodes: 2, epochs: 1, sends: 2, expiries: 1, broken: c.broken}
			if c.broken == leaderReleasesEarly {
				two.expiries = 0 // a peer that marked and timed out is the case in which it matters
			}
			if _, err := explore(&two, 3_000_000); err != nil {
				t.Error(err)
			}
		})
	}
}
