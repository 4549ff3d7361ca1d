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

// keptOutside lists what lies at levels outside.
func (c *cluster) keptOutside() (keys []string) {
	c.nodes["n1"].outside.do(func(parts map[string]string) {
		for k := range parts {
			keys = append(keys, k)
		}
	})
	slices.Sort(keys)
	return keys
}

func leveled(id string, commit string, levels ...string) *vftv1.JobSpec {
	s := spec(id, 1)
	s.Levels, s.Commit = levels, commit
	return s
}

func TestAllLevelsAreReached(t *testing.T) {
	t.Parallel()
	for _, commit := range []string{"local", "partner", "rs:2+1", "s3:bucket/p"} {
		c := newCluster(t, 1, 4)
		c.submit(leveled("j", commit, "local", "partner", "rs:2+1", "s3:bucket/p"))
		c.running("j", 1)
		if e := c.checkpoint("j"); e.GetState() != committed || stateAt(e, commit) != safeLevel {
			t.Errorf("commit at %s: %v", commit, e)
		}
		for _, l := range []string{"local", "partner", "rs:2+1", "s3:bucket/p"} {
			c.eventually("safe at "+l, func() bool { return stateAt(c.epoch("j", 1), l) == safeLevel })
		}
		p := c.epoch("j", 1).GetParts()[0]
		shards := slices.Clone(fsm.FindPartLevel(p, "rs:2+1").GetNodes())
		slices.Sort(shards)
		if len(slices.Compact(shards)) != 3 || len(p.GetNodes()) != 2 || !slices.Equal(c.keptOutside(), []string{"s3:bucket/p/j/1/0"}) {
			t.Errorf("commit at %s: copies %v, shards %v, outside %v", commit, p.GetNodes(), shards, c.keptOutside())
		}
	}
}

// What lies outside the nodes goes with its epoch, in the end also when the
// level does not answer for a while, and with its job.
func TestEpochsLeaveLevelsOutside(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(leveled("j", "dir:/d", "dir:/d"))
	c.running("j", 1)
	for _, n := range c.nodes {
		n.hook("RemoveEpochs", func(context.Context, string) error { return errors.New("not mounted") })
	}
	for range 4 {
		if e := c.checkpoint("j"); e.GetState() != committed {
			t.Fatal(e)
		}
	}
	c.eventually("deleted, not forgotten", func() bool {
		return c.epoch("j", 1).GetState() == vftv1.EpochState_EPOCH_STATE_DELETED && len(c.keptOutside()) == 4
	})
	for _, n := range c.nodes {
		n.hook("RemoveEpochs", nil)
	}
	c.eventually("forgotten", func() bool { return c.epoch("j", 1) == nil && c.epoch("j", 2) == nil })
	if got := c.keptOutside(); !slices.Equal(got, []string{"dir:/d/j/3/0", "dir:/d/j/4/0"}) {
		t.Errorf("outside: %v", got)
	}
	c.finish("j", 1, 0)
	c.eventually("nothing is left", func() bool { return len(c.keptOutside()) == 0 && len(c.job("j").GetEpochs()) == 0 })
}

// An epoch that is given up after some of it was stored outside.
func TestAbortedEpochLeavesNothingOutside(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("j", 2)
	s.Levels, s.Commit = []string{"dir:/d"}, "dir:/d"
	c.submit(s)
	j := c.running("j", 1)
	stored := make(chan struct{})
	c.nodes[nodeOf(j, 0)].hook("WaitParts", func(context.Context, string) error { return nil })
	c.nodes[nodeOf(j, 1)].hook("SecurePart", func(ctx context.Context, _ string) error {
		c.eventually("one part stored", func() bool { return len(c.keptOutside()) == 1 })
		close(stored)
		return errors.New("quota")
	})
	if e := c.checkpoint("j"); e.GetState() != aborted || !strings.Contains(e.GetReason(), "quota") {
		t.Errorf("%v", e)
	}
	<-stored
	c.eventually("nothing is left", func() bool { return len(c.keptOutside()) == 0 && !c.epoch("j", 1).GetLeftovers() })
}

// A job whose copies are gone with their nodes is restored from shards or from
// outside.
func TestRestoreFromOtherLevels(t *testing.T) {
	t.Parallel()
	for _, l := range []string{"rs:2+1", "s3:bucket"} {
		c := newCluster(t, 1, 4)
		c.submit(leveled("j", l, "local", l))
		j := c.running("j", 1)
		if e := c.checkpoint("j"); e.GetState() != committed {
			t.Fatal(e)
		}
		var asked *vftv1.PartSource
		home := nodeOf(j, 0)
		c.nodes[home].setDown(true)
		j = c.running("j", 2)
		n := c.nodes[nodeOf(j, 0)]
		n.do(func() { asked = n.sources[0] })
		if from := c.restoredFrom(j); from[0] != 1 || len(asked.GetLevels()) != 1 || asked.GetLevels()[0].GetLevel() != l || len(asked.GetNodes()) != 0 && asked.GetNodes()[0].GetNode() == home {
			t.Errorf("%s: restored from epoch %v, sources %v\n%s", l, from, asked, c.describe())
		}
		if l == "rs:2+1" && len(asked.GetLevels()[0].GetNodes()) < 2 {
			t.Errorf("shards asked for at %v", asked.GetLevels())
		}
	}
}

// Shards that went with a node are made anew; those on other nodes stay.
func TestShardsAreRestored(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 5)
	c.submit(leveled("j", "rs:2+1", "rs:2+1"))
	j := c.running("j", 1)
	before := fsm.FindPartLevel(c.checkpoint("j").GetParts()[0], "rs:2+1").GetNodes()
	i := slices.IndexFunc(before, func(n string) bool { return !placedOn(j, n) })
	c.nodes[before[i]].setDown(true)
	var after []string
	c.eventually("safe again", func() bool {
		e := c.epoch("j", 1)
		after = fsm.FindPartLevel(e.GetParts()[0], "rs:2+1").GetNodes()
		return stateAt(e, "rs:2+1") == safeLevel && after[i] != before[i]
	})
	for k := range after {
		if k != i && after[k] != before[k] {
			t.Errorf("shards went from %v to %v though only %s was lost", before, after, before[i])
		}
	}
	if ev := events(c.job("j"), "copies-restored"); len(ev) != 1 || ev[0].GetText() != "copies of checkpoint 1 at rs:2+1 restored on "+after[i] {
		t.Errorf("%s", c.describe())
	}
}

func (c *cluster) verify(job string, epoch uint64) map[string]string {
	c.t.Helper()
	r, err := c.leader().VerifyEpoch(c.ctx, connect.NewRequest(&vftv1.VerifyEpochRequest{Id: job, Epoch: epoch, Boot: true}))
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string]string{}
	for _, v := range r.Msg.GetVerdicts() {
		what := v.GetFault()
		if v.GetRepaired() > 0 {
			what = "repaired"
		}
		out[fmt.Sprintf("%d %s %s", v.GetGuest(), v.GetLevel(), v.GetNode())] = what
	}
	return out
}

func TestVerify(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(leveled("j", "partner", "partner", "dir:/d"))
	j := c.running("j", 1)
	for range 2 {
		c.checkpoint("j")
		c.eventually("at all levels", func() bool {
			e := c.epoch("j", c.job("j").GetNextEpoch()-1)
			return stateAt(e, "dir:/d") == safeLevel && stateAt(e, "partner") == safeLevel
		})
	}
	home := nodeOf(j, 0)
	other := map[string]string{"n1": "n2", "n2": "n1"}[home]
	good := map[string]string{"0 local n1": "", "0 local n2": "", "0 dir:/d " + home: "", "0 boot " + home: ""}
	expect := func(want map[string]string) {
		t.Helper()
		got := c.verify("j", 2)
		for k, v := range want {
			if fault, there := got[k]; !there || !strings.Contains(fault, v) || v == "" && fault != "" {
				t.Errorf("%s: %q, want %q", k, fault, v)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%v", got)
		}
	}
	expect(good)

	c.nodes[other].do(func() { delete(c.nodes[other].parts, "/j/2/0") })
	good["0 local "+other] = "repaired"
	expect(good)
	good["0 local "+other] = ""

	c.nodes[home].outside.do(func(parts map[string]string) { delete(parts, "dir:/d/j/2/0") })
	good["0 dir:/d "+home] = "page 7 is bad"
	expect(good)
	good["0 dir:/d "+home] = ""
	c.eventually("stored again", func() bool {
		return stateAt(c.epoch("j", 2), "dir:/d") == safeLevel && slices.Contains(c.keptOutside(), "dir:/d/j/2/0")
	})

	c.nodes[home].outside.do(func(parts map[string]string) { delete(parts, "dir:/d/j/2/0") })
	for _, n := range c.nodes {
		n.do(func() { delete(n.parts, "/j/2/0") })
	}
	for k := range good {
		good[k] = "page 7 is bad"
	}
	expect(good)
	if c.epoch("j", 2).GetDamaged() == "" || c.epoch("j", 1).GetDamaged() != "" {
		t.Errorf("%s", c.describe())
	}
	n := c.nodes[home]
	n.do(func() { n.guests["/j/0"].state = vftv1.GuestState_GUEST_STATE_DEAD })
	j = c.running("j", 2)
	if from := c.restoredFrom(j); from[0] != 1 {
		t.Errorf("restored from %v", from)
	}
}

func TestVerifyWithANodeAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(leveled("j", "partner", "partner"))
	j := c.running("j", 1)
	c.checkpoint("j")
	n := c.spare(j, c.epoch("j", 1))
	home := c.nodes[nodeOf(j, 0)]
	n.hook("VerifyPart", func(context.Context, string) error {
		return connect.NewError(connect.CodeUnavailable, errors.New("busy"))
	})
	home.hook("VerifyPart", func(context.Context, string) error { return connect.NewError(connect.CodeDataLoss, errors.New("bad")) })
	c.verify("j", 1)
	if e := c.epoch("j", 1); e.GetDamaged() != "" {
		t.Errorf("judged without hearing %s: %v", n.id, e)
	}
}

func TestCollectGarbage(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2, func(cfg *Config) { cfg.CollectInterval = 50 * time.Millisecond })
	c.submit(leveled("j", "local", "s3:bucket"))
	c.running("j", 1)
	c.nodes["n1"].do(func() { c.nodes["n1"].parts["/gone/1/0"] = &vftv1.Part{Manifest: "m"} })
	r, err := c.leader().CollectGarbage(c.ctx, connect.NewRequest(&vftv1.CollectGarbageRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range r.Msg.GetCollections() {
		got = append(got, fmt.Sprintf("%s %s %d", x.GetNode(), x.GetLevel(), x.GetFreed()))
	}
	if !slices.Equal(got, []string{"n1  42", "n2  42", "n1 s3:bucket 42"}) {
		t.Errorf("%q", got)
	}
	if len(c.keepsParts("n1")) != 0 {
		t.Error("parts of an unknown job are still there")
	}
	c.eventually("levels are collected by themselves", func() (again bool) {
		for _, n := range c.nodes {
			n.do(func() {
				count := 0
				for _, call := range n.calls {
					if call == "CollectStore s3:bucket" {
						count++
					}
				}
				again = again || count > 1
			})
		}
		return again
	})
}

func TestShardTargets(t *testing.T) {
	nodes := []*vftv1.Node{aNode("a1", "A", 4, 1), aNode("a2", "A", 4, 1), aNode("b1", "B", 4, 1), aNode("b2", "B", 4, 1), aNode("c1", "C", 4, 1)}
	for name, tc := range map[string]struct {
		present []string
		n       int
		load    map[string]int
		want    []string
	}{
		"domains first":     {nil, 3, nil, []string{"a1", "b1", "c1"}},
		"then the others":   {nil, 5, nil, []string{"a1", "b1", "c1", "a2", "b2"}},
		"busy ones last":    {nil, 3, map[string]int{"a1": 2, "b2": 1}, []string{"a2", "b1", "c1"}},
		"what is there":     {[]string{"b2", "", "a1"}, 3, nil, []string{"b2", "c1", "a1"}},
		"twice on one node": {[]string{"b2", "b2", "a1"}, 3, nil, []string{"b2", "c1", "a1"}},
		"lost ones":         {[]string{"x", "b1", "y"}, 3, nil, []string{"a1", "b1", "c1"}},
		"too many asked":    {nil, 6, nil, nil},
	} {
		if got := shardTargets(nodes, tc.present, tc.n, tc.load); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// A job is told at once that a node cannot keep what it asks for.
func TestJobsWithLevelsThatANodeCannotKeep(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.nodesAlive(2)
	_, err := c.leader().SubmitJob(c.ctx, connect.NewRequest(&vftv1.SubmitJobRequest{Spec: leveled("j", "local", "dir:/elsewhere")}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "nodes n1, n2 cannot keep level dir:/elsewhere") {
		t.Fatalf("%v", err)
	}
}
