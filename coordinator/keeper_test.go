package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

func stateAt(e *vftv1.Epoch, name string) vftv1.LevelState { return fsm.FindLevel(e, name).GetState() }

const (
	pendingLevel = vftv1.LevelState_LEVEL_STATE_PENDING
	safeLevel    = vftv1.LevelState_LEVEL_STATE_SAFE
	failedLevel  = vftv1.LevelState_LEVEL_STATE_FAILED
)

func (c *cluster) epoch(job string, number uint64) *vftv1.Epoch {
	return fsm.FindEpoch(c.job(job), number)
}

// spare returns a node that has parts of an epoch but no guest of the job.
func (c *cluster) spare(j *vftv1.Job, e *vftv1.Epoch) *fakeSidecar {
	c.t.Helper()
	for _, p := range e.GetParts() {
		for _, n := range p.GetNodes() {
			if !placedOn(j, n) {
				return c.nodes[n]
			}
		}
	}
	c.t.Fatalf("no node has parts only: %v", e.GetParts())
	return nil
}

// keepsParts tells what parts a node really has.
func (c *cluster) keepsParts(node string) (keys []string) {
	c.nodes[node].do(func() {
		for k := range c.nodes[node].parts {
			keys = append(keys, k)
		}
	})
	slices.Sort(keys)
	return keys
}

// Copies that went with a node are made anew on others while the job runs on,
// and a leader that dies meanwhile does not matter (I5).
func TestCopiesAreRestored(t *testing.T) {
	t.Parallel()
	for _, leaderDies := range []bool{false, true} {
		replicas := 1
		if leaderDies {
			replicas = 3
		}
		c := newCluster(t, replicas, 4)
		s := spec("j", 1)
		c.submit(s)
		j := c.running("j", 1)
		for range 2 {
			if e := c.checkpoint("j"); stateAt(e, "partner") != safeLevel {
				t.Fatal(e)
			}
		}
		lost := c.spare(j, c.epoch("j", 2))
		old := c.leader()
		if leaderDies {
			var reached []<-chan struct{}
			for id, n := range c.nodes {
				if id != lost.id {
					reached = append(reached, blockAt(n, "SecurePart"))
				}
			}
			lost.setDown(true)
			c.eventually("a copy is being made", func() bool {
				return slices.ContainsFunc(reached, func(ch <-chan struct{}) bool {
					select {
					case <-ch:
						return true
					default:
						return false
					}
				})
			})
			c.crash(old)
		} else {
			lost.setDown(true)
		}
		for _, n := range []uint64{2, 1} {
			c.eventually("the level is safe again", func() bool {
				e := c.epoch("j", n)
				return stateAt(e, "partner") == safeLevel && slices.ContainsFunc(e.GetParts()[0].GetNodes(), func(id string) bool {
					return id != lost.id && !placedOn(j, id)
				})
			})
		}
		j = c.job("j")
		if ev := events(j, "copies-restored"); len(ev) != 2 || !strings.HasPrefix(ev[0].GetText(), "copies of checkpoint 2 restored on n") {
			t.Errorf("newest first: %s", c.describe())
		}
		if j.GetIncarnation() != 1 || j.GetPhase() != running {
			t.Errorf("the job was disturbed: %s", c.describe())
		}
	}
}

// A level that fails or hangs holds up neither commits nor the job.
func TestLevelThatCannotBeReached(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("j", 1)
	s.Commit = "local"
	s.Keep = 3
	for _, n := range c.nodes {
		n.hook("SecurePart", func(ctx context.Context, _ string) error { return errors.New("disk full") })
	}
	c.submit(s)
	c.running("j", 1)
	if e := c.checkpoint("j"); e.GetState() != committed || e.GetRequired() != "local" {
		t.Fatal(e)
	}
	c.eventually("the failure is shown", func() bool {
		l := fsm.FindLevel(c.epoch("j", 1), "partner")
		return l.GetState() == failedLevel && strings.Contains(l.GetReason(), "disk full")
	})
	for _, n := range c.nodes {
		n.hook("SecurePart", func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
	}
	for range 2 {
		if e := c.checkpoint("j"); e.GetState() != committed {
			t.Error(e)
		}
	}
	if ev := events(c.job("j"), "level-failed"); len(ev) != 1 {
		t.Errorf("%v", ev)
	}
}

// A level that is not required is reached after the commit, at last.
func TestLevelAfterTheCommit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	s := spec("j", 2)
	s.Commit = "local"
	c.submit(s)
	c.running("j", 1)
	failures := 0
	for _, n := range c.nodes {
		n.hook("SecurePart", func(context.Context, string) (err error) {
			n.do(func() {
				if failures < 1 {
					failures++
					err = errors.New("flaky")
				}
			})
			return err
		})
	}
	c.checkpoint("j")
	c.eventually("safe", func() bool { return stateAt(c.epoch("j", 1), "partner") == safeLevel })
	l := fsm.FindLevel(c.epoch("j", 1), "partner")
	if l.GetAt() == 0 || l.GetBytes() != 2000 || l.GetReason() != "" {
		t.Errorf("%v", l)
	}
	if ev := events(c.job("j"), "level-safe"); len(ev) != 1 || !strings.Contains(ev[0].GetText(), "checkpoint 1 is safe at partner") {
		t.Errorf("%s", c.describe())
	}
}

func (c *cluster) pin(job string, epoch uint64, name string) error {
	_, err := c.leader().PinEpoch(c.ctx, connect.NewRequest(&vftv1.PinEpochRequest{Id: job, Epoch: epoch, Name: name}))
	return err
}

// A pinned epoch outlives newer ones and its job; unpinned it goes, and with
// it what the job left on the nodes.
func TestPinnedEpochOutlivesItsJob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.checkpoint("j")
	if err := c.pin("j", 1, "good"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.checkpoint("j")
	}
	c.eventually("retention", func() bool { return slices.Equal(committedEpochs(c.job("j")), []uint64{1, 3, 4}) })
	if err := c.pin("j", 3, "good"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a second epoch of the same name: %v", err)
	}
	del := &vftv1.DeleteEpochRequest{Id: "j", Epoch: 1}
	if _, err := c.leader().DeleteEpoch(c.ctx, connect.NewRequest(del)); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("deleted: %v", err)
	}
	c.finish("j", 1, 0)
	c.waitPhase("j", ended)
	c.eventually("only the pinned epoch is left", func() bool {
		return slices.Equal(committedEpochs(c.job("j")), []uint64{1}) && slices.Equal(c.keepsParts("n1"), []string{"/j/1/0", "/j/1/1"})
	})
	c.nodes["n1"].do(func() { c.nodes["n1"].forgot = map[string]bool{} })
	if err := c.pin("j", 1, ""); err != nil {
		t.Fatal(err)
	}
	c.eventually("nothing is left", func() bool {
		forgot := false
		c.nodes["n1"].do(func() { forgot = c.nodes["n1"].forgot["j"] })
		return forgot && len(c.job("j").GetEpochs()) == 0 && len(c.keepsParts("n1"))+len(c.keepsParts("n2")) == 0
	})
}

// A node that comes back without its disk, and with parts that were deleted
// meanwhile: the state follows what it has, and it removes what nobody needs.
func TestNodeIsInspected(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 1))
	j := c.running("j", 1)
	c.checkpoint("j")
	n := c.spare(j, c.epoch("j", 1))
	n.do(func() {
		clear(n.parts)
		n.parts["/j/77/0"] = &vftv1.Part{Manifest: "kept: it may be newer than what the leader knows"}
		n.parts["/gone/3/0"] = &vftv1.Part{Manifest: "of a job that nobody knows"}
		n.node.Session++
	})
	c.eventually("the copy is made again", func() bool {
		e := c.epoch("j", 1)
		return len(events(c.job("j"), "copies-restored")) == 1 && stateAt(e, "partner") == safeLevel
	})
	c.eventually("only what is needed is kept", func() bool {
		return !slices.Contains(c.keepsParts(n.id), "/gone/3/0") && slices.Contains(c.keepsParts(n.id), "/j/77/0")
	})
	// A copy that nobody knew of is put to use.
	home := nodeOf(j, 0)
	for id, other := range c.nodes {
		if id == home {
			continue
		}
		other.do(func() {
			c.nodes[home].do(func() { other.parts["/j/1/0"] = c.nodes[home].parts["/j/1/0"] })
			other.node.Session++
		})
	}
	c.eventually("all copies are known", func() bool { return len(c.epoch("j", 1).GetParts()[0].GetNodes()) == 3 })
}

func TestRetired(t *testing.T) {
	const hour = int64(time.Hour)
	now := time.Unix(0, 100*hour+hour/2)
	local := func(state vftv1.LevelState) *vftv1.EpochLevel { return &vftv1.EpochLevel{Level: "s3:b", State: state} }
	epochs := func(change func(n uint64, e *vftv1.Epoch)) []*vftv1.Epoch {
		var out []*vftv1.Epoch
		for n := uint64(1); n <= 6; n++ { // two each in hours 98, 99, 100
			e := &vftv1.Epoch{
				Number: n, Incarnation: 3, State: committed, EndedAt: 98*hour + int64(n-1)*hour/2,
				Levels: []*vftv1.EpochLevel{local(pendingLevel)},
			}
			change(n, e)
			out = append(out, e)
		}
		return out
	}
	same := func(uint64, *vftv1.Epoch) {}
	for name, tc := range map[string]struct {
		job  *vftv1.Job
		busy map[uint64]bool
		want []uint64
	}{
		"default":         {&vftv1.Job{Epochs: epochs(same)}, nil, []uint64{1, 2, 3, 4}},
		"keep five":       {&vftv1.Job{Spec: &vftv1.JobSpec{Keep: 5}, Epochs: epochs(same)}, nil, []uint64{1}},
		"hourly":          {&vftv1.Job{Spec: &vftv1.JobSpec{Keep: 1, KeepHourly: 2}, Epochs: epochs(same)}, nil, []uint64{1, 2, 3, 5}},
		"hourly for long": {&vftv1.Job{Spec: &vftv1.JobSpec{Keep: 1, KeepHourly: 99}, Epochs: epochs(same)}, nil, []uint64{1, 3, 5}},
		"on their way":    {&vftv1.Job{Epochs: epochs(same)}, map[uint64]bool{2: true}, []uint64{1, 3, 4}},
		"pinned": {&vftv1.Job{Epochs: epochs(func(n uint64, e *vftv1.Epoch) {
			if n == 1 {
				e.Pin = "p"
			}
		})}, nil, []uint64{2, 3, 4}},
		"newest at a level": {&vftv1.Job{Epochs: epochs(func(n uint64, e *vftv1.Epoch) {
			if n == 2 || n == 3 {
				e.Levels[0].State = safeLevel
			}
		})}, nil, []uint64{1, 2, 4}},
		"damaged do not count": {&vftv1.Job{Epochs: epochs(func(n uint64, e *vftv1.Epoch) {
			if n == 4 || n == 6 {
				e.Damaged = "bad"
			}
		})}, nil, []uint64{1, 2, 4}},
		"being restored":       {&vftv1.Job{Operation: &vftv1.Operation{Epoch: 1}, Epochs: epochs(same)}, nil, []uint64{2, 3, 4}},
		"restored, not saved":  {&vftv1.Job{Incarnation: 4, RestoredFrom: 3, Epochs: epochs(same)}, nil, []uint64{1, 2, 4}},
		"restored, then saved": {&vftv1.Job{Incarnation: 3, RestoredFrom: 3, Epochs: epochs(same)}, nil, []uint64{1, 2, 3, 4}},
		"ended": {&vftv1.Job{Phase: ended, Epochs: epochs(func(n uint64, e *vftv1.Epoch) {
			if n == 3 {
				e.Pin = "p"
			}
		})}, nil, []uint64{1, 2, 4, 5, 6}},
	} {
		if got := retired(tc.job, now, tc.busy); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestRequiredLevel(t *testing.T) {
	levels := []*vftv1.EpochLevel{
		{Level: "local", Nodes: 1, Needs: 1},
		{Level: "partner", Nodes: 2, Needs: 1},
		{Level: "rs:3+2", Nodes: 5, Needs: 3},
		{Level: "s3:b", Outside: true},
	}
	for _, tc := range []struct {
		commit string
		alive  int
		want   string
	}{
		{"partner", 2, "partner"},
		{"partner", 1, "local"},
		{"local", 9, "local"},
		{"", 9, "local"},
		{"rs:3+2", 5, "rs:3+2"},
		{"rs:3+2", 4, "partner"},
		{"rs:3+2", 1, "local"},
		{"s3:b", 1, "s3:b"},
	} {
		if got := required(levels, tc.commit, tc.alive); got != tc.want {
			t.Errorf("%s with %d nodes: %s, want %s", tc.commit, tc.alive, got, tc.want)
		}
	}
}

func TestLevelsThatAreRefused(t *testing.T) {
	for name, s := range map[string]*vftv1.JobSpec{
		"unknown":           {Levels: []string{"tape"}},
		"not canonical":     {Levels: []string{"dir:/a/../b"}},
		"twice":             {Levels: []string{"partner", "partner"}},
		"commit not kept":   {Levels: []string{"local"}, Commit: "partner"},
		"bandwidth":         {Bandwidth: -1},
		"commit of nothing": {Commit: "nowhere"},
	} {
		if err := checkLevels(s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := checkLevels(&vftv1.JobSpec{Levels: []string{"partner"}, Commit: "local"}); err != nil {
		t.Error(err)
	}
}

func TestLevelsThatNodesCannotKeep(t *testing.T) {
	node := func(id string, levels ...string) *vftv1.Node { return &vftv1.Node{Id: id, Levels: levels} }
	all, some, old := node("all", "s3", "dir:/"), node("some", "s3", "dir:/scratch", "dir:/data/vft"), node("old")
	for _, tc := range []struct {
		level string
		nodes []*vftv1.Node
		want  string
	}{
		{"local", []*vftv1.Node{all, old}, ""},
		{"partner", []*vftv1.Node{all, old}, ""},
		{"s3:bucket", []*vftv1.Node{all, some}, ""},
		{"s3:bucket", []*vftv1.Node{all, old}, "nodes old cannot keep level s3:bucket: their vft is too old"},
		{"rs:2+1", []*vftv1.Node{all, some}, "nodes all, some cannot keep level rs:2+1: shards are not implemented"},
		{"dir:/scratch", []*vftv1.Node{all, some}, ""},
		{"dir:/scratch/me", []*vftv1.Node{all, some}, ""},
		{"dir:/data/vft/x/y", []*vftv1.Node{all, some}, ""},
		{"dir:/scratchy", []*vftv1.Node{all, some}, "nodes some cannot keep level dir:/scratchy: their operator can allow it"},
		{"dir:/data", []*vftv1.Node{some, old}, "nodes some, old cannot keep level dir:/data: "},
	} {
		err := kept([]string{"local", tc.level}, tc.nodes)
		if got := fmt.Sprint(err); (err == nil) != (tc.want == "") || !strings.HasPrefix(got, tc.want) && tc.want != "" {
			t.Errorf("%s: %v, want %q", tc.level, err, tc.want)
		}
	}
}

func TestTasks(t *testing.T) {
	nodes := []*vftv1.Node{aNode("a", "A", 4, 1), aNode("b", "B", 4, 1), aNode("c", "C", 4, 1)}
	epoch := func(number uint64, holders ...string) *vftv1.Epoch {
		return &vftv1.Epoch{
			Number: number, State: committed,
			Levels: []*vftv1.EpochLevel{
				{Level: "local", Nodes: 1, Needs: 1, State: safeLevel}, {Level: "partner", Nodes: 2, Needs: 1, State: pendingLevel},
			},
			Parts: []*vftv1.Part{{Guest: 0, Manifest: "m", Nodes: holders}},
		}
	}
	lost := map[string]bool{}
	p := planning{
		job:   &vftv1.Job{Guests: []*vftv1.Guest{{Index: 0, Node: "a"}}, Epochs: []*vftv1.Epoch{epoch(1, "a"), epoch(2, "a", "b"), epoch(3, "a")}},
		nodes: nodes, alive: func(n string) bool { return !lost[n] }, tries: map[epochLevel]int{}, avoid: map[string]int{},
	}
	show := func() (out []string) {
		for _, x := range p.tasks() {
			out = append(out, strings.Join([]string{string(rune('0' + x.epoch)), x.level, x.node}, " "))
		}
		return out
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if got := show(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("newest first, the less busy node", "3 partner c", "1 partner c")
	p.tries[epochLevel{3, "partner"}] = 1
	expect("what failed comes later", "1 partner c", "3 partner c")
	p.avoid["c"] = 1
	expect("another node", "1 partner b", "3 partner b")
	p.job.Epochs[0].Damaged = "bad"
	expect("not a damaged one", "3 partner b")
	lost["a"] = true
	nodes[0].State = vftv1.NodeState_NODE_STATE_LOST
	expect("nothing to copy from", "2 partner c")
	p.job.Operation = &vftv1.Operation{Kind: vftv1.OperationKind_OPERATION_KIND_RESTART}
	expect("guests come first")
}
