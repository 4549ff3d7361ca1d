package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// migrate asks for a migration at the present leader and waits for its end.
func (c *cluster) migrate(job string, guest uint32, to string) (*vftv1.Event, error) {
	c.t.Helper()
	r, err := c.leader().MigrateGuest(c.ctx, connect.NewRequest(&vftv1.MigrateGuestRequest{Id: job, Guest: guest, To: to, Reason: "test"}))
	if err != nil {
		return nil, err
	}
	return r.Msg.GetEvent(), nil
}

// oneCopy checks that a guest runs on one node, and that no two ever did (I3).
func (c *cluster) oneCopy(job string, guest uint32, want string) {
	c.t.Helper()
	var on []string
	for _, n := range c.nodes {
		n.do(func() {
			if g := n.guests[key(job, guest)]; g != nil && !n.down {
				on = append(on, fmt.Sprint(n.id, " ", g.state))
			}
			for _, f := range n.faults {
				c.t.Error(f)
			}
		})
	}
	if !slices.Equal(on, []string{want + " GUEST_STATE_RUNNING"}) {
		c.t.Errorf("guest %d is on %v, want it running on %s", guest, on, want)
	}
}

// other returns the node that has no guest of a job of two on three nodes.
func (c *cluster) other(j *vftv1.Job) string {
	for id := range c.nodes {
		if id != nodeOf(j, 0) && id != nodeOf(j, 1) {
			return id
		}
	}
	c.t.Fatal("no node is free")
	return ""
}

func TestMigrateGuest(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	to := c.other(j)
	ev, err := c.migrate("j", 1, to)
	if err != nil {
		t.Fatal(err)
	}
	if ev.GetLabels()["to"] != to || ev.GetFigures()["downtime"] < 20e6 || ev.GetFigures()["bytes"] != 1<<20 {
		t.Errorf("%v", ev)
	}
	j = c.running("j", 1)
	if nodeOf(j, 1) != to {
		t.Fatalf("guest 1 is on %s", nodeOf(j, 1))
	}
	c.oneCopy("j", 1, to)
	c.nothingHeld()
	if again, err := c.migrate("j", 1, to); err != nil || again.GetNumber() != ev.GetNumber() {
		t.Errorf("asked again: %v, %v", again, err)
	}
	if e := c.checkpoint("j"); e.GetState() != committed {
		t.Fatalf("checkpoint after the migration: %v", e)
	}
	// Its new node dies: the job goes on from there.
	c.nodes[to].setDown(true)
	j = c.running("j", 2)
	for g, from := range c.restoredFrom(j) {
		if from == 0 {
			t.Errorf("guest %d restored from %d", g, from)
		}
	}
}

func TestMigrationIsRefusedWithReason(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	for to, want := range map[string]string{nodeOf(j, 1): "guest 1 is on node", "n9": "not alive"} {
		if _, err := c.migrate("j", 1, to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %s: %v", to, err)
		}
	}
	c.nodes[c.other(j)].do(func() {})
	small := c.nodes[c.other(j)]
	small.do(func() { small.node.MemoryMib = 1 })
	c.eventually("the node has no memory", func() bool { return c.leader().store.node(small.id).GetMemoryMib() == 1 })
	if _, err := c.migrate("j", 1, small.id); err == nil || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("without memory: %v", err)
	}
	c.running("j", 1)
}

// A step that fails on any node leaves the guest where it was (I3, I5), and it
// can be migrated the next time.
func TestFailedMigrationLeavesTheGuestRunning(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"PrepareMove", "Hold", "CutMove"} {
		for _, where := range []string{"from", "to", "other"} {
			if call == "Hold" && where == "to" {
				continue // it has nothing to hold
			}
			t.Run(call+" "+where, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 1, 3)
				c.submit(spec("j", 2))
				j := c.running("j", 1)
				from, to := nodeOf(j, 1), c.other(j)
				node := c.nodes[map[string]string{"from": from, "to": to, "other": nodeOf(j, 0)}[where]]
				node.hook(call, func(context.Context, string) error { return errors.New("no room") })
				if _, err := c.migrate("j", 1, to); err == nil || !strings.Contains(err.Error(), "no room") {
					t.Fatalf("%v", err)
				}
				c.oneCopy("j", 1, from)
				c.nothingHeld()
				node.hook(call, nil)
				if _, err := c.migrate("j", 1, to); err != nil {
					t.Fatal(err)
				}
				c.oneCopy("j", 1, to)
				if j := c.running("j", 1); j.GetRestarts() != 0 {
					t.Errorf("%d restarts", j.GetRestarts())
				}
			})
		}
	}
}

// A leader that dies at any step: before the switch-over is in the log the next
// one takes it back, after that it finishes it (I3, I5).
func TestLeaderDiesDuringMigration(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		call  string
		moved bool
	}{{"PrepareMove", false}, {"Hold", false}, {"CutMove", false}, {"AbortMove", false}, {"FinishMove", true}} {
		t.Run(tc.call, func(t *testing.T) {
			c := newCluster(t, 3, 3)
			c.submit(spec("j", 2))
			j := c.running("j", 1)
			from, to := nodeOf(j, 1), c.other(j)
			if tc.call == "AbortMove" {
				c.nodes[to].hook("CutMove", func(context.Context, string) error { return errors.New("no room") })
			}
			reached := blockAt(c.nodes[from], tc.call)
			old := c.leader()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = old.MigrateGuest(c.ctx, connect.NewRequest(&vftv1.MigrateGuestRequest{Id: "j", Guest: 1, To: to}))
			}()
			waitFor(t, reached, tc.call)
			c.crash(old)
			waitFor(t, done, "the client's answer")
			c.eventually("the migration decided", func() bool { return c.job("j").GetOperation() == nil })
			j = c.running("j", 1)
			want, kind := from, "migrate-failed"
			if tc.moved {
				want, kind = to, "migrated"
			}
			if nodeOf(j, 1) != want || len(events(j, kind)) != 1 {
				t.Errorf("%s", c.describe())
			}
			c.eventually("the copy that is not wanted is gone", func() bool { return !c.nodes[from].paused("j", 1) })
			c.oneCopy("j", 1, want)
			c.nothingHeld()
			if e := c.checkpoint("j"); e.GetState() != committed {
				t.Errorf("next checkpoint %v", e)
			}
		})
	}
}

func (f *fakeSidecar) paused(job string, guest uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guests[key(job, guest)].getState() == vftv1.GuestState_GUEST_STATE_PAUSED
}

func (g *fakeGuest) getState() vftv1.GuestState {
	if g == nil {
		return vftv1.GuestState_GUEST_STATE_UNSPECIFIED
	}
	return g.state
}

// The new node dies: before the switch-over the guest goes on where it was,
// after it the job goes on from its last epoch. The old node dies: likewise.
func TestNodeDiesDuringMigration(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		call, where string
		incarnation uint64
	}{
		{"PrepareMove", "to", 1},
		{"CutMove", "to", 1},
		{"FinishMove", "to", 2},
		{"PrepareMove", "from", 2},
		{"CutMove", "from", 2},
		{"FinishMove", "from", 1}, // it had no other guest of the job
	} {
		t.Run(tc.call+" "+tc.where, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1, 3)
			c.submit(spec("j", 2))
			j := c.running("j", 1)
			if e := c.checkpoint("j"); e.GetState() != committed {
				t.Fatal(e)
			}
			from, to := nodeOf(j, 1), c.other(j)
			victim := c.nodes[map[string]string{"from": from, "to": to}[tc.where]]
			reached := make(chan struct{})
			victim.hook(tc.call, func(ctx context.Context, _ string) error {
				victim.setDown(true)
				close(reached)
				<-ctx.Done()
				return ctx.Err()
			})
			done := make(chan error, 1)
			go func() {
				_, err := c.leader().MigrateGuest(c.ctx, connect.NewRequest(&vftv1.MigrateGuestRequest{Id: "j", Guest: 1, To: to}))
				done <- err
			}()
			waitFor(t, reached, tc.call)
			err := <-done
			j = c.running("j", tc.incarnation)
			c.eventually("nothing is under way", func() bool { return c.job("j").GetOperation() == nil })
			if tc.incarnation == 1 && (err == nil) != (tc.call == "FinishMove") {
				t.Errorf("the client got %v", err)
			}
			c.oneCopy("j", 1, nodeOf(c.job("j"), 1))
			for g, epoch := range c.restoredFrom(j) {
				if tc.incarnation == 2 && epoch != 1 {
					t.Errorf("guest %d restored from %d", g, epoch)
				}
			}
		})
	}
}

func TestDrainNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	node, spare := nodeOf(j, 1), c.nodes[c.other(j)]
	refused := 0
	spare.hook("PrepareMove", func(context.Context, string) error { // it has to be tried again
		refused++
		if refused == 1 {
			return errors.New("no room")
		}
		return nil
	})
	drain := func(undrain bool) *vftv1.DrainNodeResponse {
		r, err := c.leader().DrainNode(c.ctx, connect.NewRequest(&vftv1.DrainNodeRequest{Node: node, Reason: "fan", Undrain: undrain}))
		if err != nil {
			t.Fatal(err)
		}
		return r.Msg
	}
	drain(false)
	c.eventually("the node is empty", func() bool { return len(drain(false).GetGuests()) == 0 })
	j = c.running("j", 1)
	if nodeOf(j, 1) == node || refused < 2 {
		t.Errorf("%s", c.describe())
	}
	c.oneCopy("j", 1, nodeOf(j, 1))
	c.submit(spec("k", 2))
	k := c.waitPhase("k", vftv1.JobPhase_JOB_PHASE_RUNNING)
	for _, g := range k.GetGuests() {
		if g.GetNode() == node {
			t.Errorf("guest %d of a new job is on the drained node", g.GetIndex())
		}
	}
	if drain(true).GetNode().GetDrained() != "" {
		t.Error("still drained")
	}
	if _, err := c.migrate("j", 1, node); err != nil {
		t.Error(err)
	}
}

func TestPlaceOne(t *testing.T) {
	drained, other, full := aNode("d", "", 4, 8192), aNode("k", "", 4, 8192), aNode("f", "", 1, 8192)
	drained.Drained, other.Accelerator = "fan", "kvm"
	nodes := []*vftv1.Node{aNode("a", "", 4, 8192), aNode("b", "", 2, 8192), aNode("c", "", 4, 8192), drained, other, full}
	in := placing{spec: spec("j", 2), nodes: nodes, present: guestsAt("a", "b")}
	for _, tc := range []struct {
		name, to, want, err string
		used                map[string]demand
	}{
		{name: "the emptiest", want: "c"},
		{name: "the one named", to: "a", want: "a"},
		{name: "named although crowded", to: "f", want: "f"},
		{name: "crowded if there is nothing else", used: map[string]demand{"a": {memory: 8000}, "c": {memory: 8000}}, want: "f"},
		{name: "where it is", to: "b", err: "it is there"},
		{name: "drained", to: "d", err: "being drained: fan"},
		{name: "another accelerator", to: "k", err: "runs guests with kvm"},
		{name: "unknown", to: "z", err: "no such node"},
		{name: "nowhere", used: map[string]demand{"a": {memory: 8000}, "c": {memory: 8000}, "f": {memory: 8000}}, err: "no node can take guest 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in.used = tc.used
			got, err := placeOne(in, 1, tc.to)
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func guestsAt(nodes ...string) []*vftv1.Guest {
	var out []*vftv1.Guest
	for i, n := range nodes {
		out = append(out, &vftv1.Guest{Index: uint32(i), Node: n})
	}
	return out
}
