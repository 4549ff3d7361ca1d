package coordinator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func nodeOf(j *vftv1.Job, guest int) string { return j.GetGuests()[guest].GetNode() }

func (c *cluster) restoredFrom(j *vftv1.Job) []uint64 {
	var out []uint64
	for _, g := range j.GetGuests() {
		n := c.nodes[g.GetNode()]
		n.do(func() { out = append(out, n.restored[key(j.GetSpec().GetId(), g.GetIndex())]) })
	}
	return out
}

// A lost node restarts all guests from the last committed epoch (I2, I5), on
// survivors and the spare; when the node comes back, its guests die (I3).
func TestNodeLossRestartsFromLastEpoch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	for range 2 {
		if e := c.checkpoint("j"); e.GetState() != committed {
			t.Fatal(e)
		}
	}
	lost, stays := nodeOf(j, 1), nodeOf(j, 0)
	c.nodes[lost].setDown(true)
	j = c.running("j", 2)
	if nodeOf(j, 0) != stays || nodeOf(j, 1) == lost || nodeOf(j, 1) == stays {
		t.Errorf("placement %v", j.GetGuests())
	}
	for g, from := range c.restoredFrom(j) {
		if from != 2 {
			t.Errorf("guest %d restored from epoch %d", g, from)
		}
	}
	re := events(j, "restarted")
	if len(re) != 1 || len(events(j, "node-lost")) != 1 || len(events(j, "restarting")) != 1 {
		t.Fatalf("events:\n%s", c.describe())
	}
	t.Log(events(j, "node-lost")[0].GetText())
	t.Log(events(j, "restarting")[0].GetText())
	t.Log(re[0].GetText())
	for _, f := range []string{"detect", "fence", "restore", "lost"} {
		if _, ok := re[0].GetFigures()[f]; !ok {
			t.Errorf("no figure %s in %v", f, re[0].GetFigures())
		}
	}
	if d := time.Duration(re[0].GetFigures()["detect"]); d < 600*time.Millisecond || d > 5*time.Second {
		t.Errorf("detection %v with a lease of 700 ms", d)
	}
	if j.GetRestarts() != 1 {
		t.Errorf("restarts %d", j.GetRestarts())
	}
	c.nodes[lost].setDown(false)
	c.eventually("old guests dead", func() (gone bool) {
		c.nodes[lost].do(func() { gone = len(c.nodes[lost].guests) == 0 })
		return gone
	})
	c.nodesAlive(3)
	if c.finish("j", 1, 0) {
		t.Error("exit of the old incarnation accepted")
	}
	c.running("j", 2)
	if !c.finish("j", 2, 0) {
		t.Error("exit of the present incarnation refused")
	}
	c.waitPhase("j", ended)
}

func TestRestartFromTheBeginningWithoutEpoch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	c.nodes[nodeOf(j, 0)].setDown(true)
	j = c.running("j", 2)
	ev := events(j, "restarting")[0]
	if !strings.Contains(ev.GetText(), "no checkpoint yet") {
		t.Errorf("event %q", ev.GetText())
	}
	n := c.nodes[nodeOf(j, 0)]
	n.do(func() {
		if n.started["/j/2"] != 1 {
			t.Errorf("program started %v", n.started)
		}
	})
}

func TestDeadGuestRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	c.checkpoint("j")
	n := c.nodes[nodeOf(j, 1)]
	n.do(func() {
		n.guests["/j/1"].state = vftv1.GuestState_GUEST_STATE_DEAD
		n.guests["/j/1"].detail = "killed by signal 9"
	})
	j = c.running("j", 2)
	if ev := events(j, "guest-lost"); len(ev) != 1 || !strings.Contains(ev[0].GetText(), "killed by signal 9") {
		t.Errorf("events %v", ev)
	}
}

// A sidecar that came back with nothing, faster than its lease.
func TestRebootedNodeRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	c.checkpoint("j")
	n := c.nodes[nodeOf(j, 1)]
	n.do(func() {
		clear(n.guests)
		n.node.Session++
	})
	c.running("j", 2)
}

func TestRestartWithoutSpareOversubscribes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("j", 2)
	s.Cpus = 3
	c.submit(s)
	j := c.running("j", 1)
	c.checkpoint("j")
	c.nodes[nodeOf(j, 0)].setDown(true)
	j = c.running("j", 2)
	if nodeOf(j, 0) != nodeOf(j, 1) {
		t.Errorf("placement %v", j.GetGuests())
	}
	if ev := events(j, "restarting")[0]; !strings.Contains(ev.GetText(), "more guests than processors") {
		t.Errorf("event %q", ev.GetText())
	}
}

func TestRestoreFailureFallsBackToTheEpochBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 1))
	j := c.running("j", 1)
	c.checkpoint("j")
	c.checkpoint("j")
	for _, n := range c.nodes {
		n.hook("RestoreGuests", func(context.Context, string) error {
			if c.job("j").GetOperation().GetEpoch() == 2 {
				return connect.NewError(connect.CodeDataLoss, errors.New("bad page"))
			}
			return nil
		})
	}
	c.nodes[nodeOf(j, 0)].do(func() { c.nodes[nodeOf(j, 0)].guests["/j/0"].state = vftv1.GuestState_GUEST_STATE_DEAD })
	j = c.running("j", 3)
	if from := c.restoredFrom(j); from[0] != 1 {
		t.Errorf("restored from %v\n%s", from, c.describe())
	}
	if ev := events(j, "epoch-damaged"); len(events(j, "restarting")) != 2 || len(ev) != 1 || !strings.Contains(ev[0].GetText(), "bad page") {
		t.Errorf("%s", c.describe())
	}
}

// A guest that dies each time it is restored from the last epoch.
func TestDeathAfterRestoreFallsBackToTheEpochBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 1))
	c.running("j", 1)
	c.checkpoint("j")
	c.checkpoint("j")
	for incarnation := uint64(2); incarnation <= 4; incarnation++ {
		j := c.job("j")
		n := c.nodes[nodeOf(j, 0)]
		n.do(func() { n.guests["/j/0"].state = vftv1.GuestState_GUEST_STATE_DEAD })
		j = c.running("j", incarnation)
		from := c.restoredFrom(j)
		if want := map[uint64]uint64{2: 2, 3: 2, 4: 1}[incarnation]; from[0] != want {
			t.Errorf("incarnation %d restored from %v, want %d\n%s", incarnation, from, want, c.describe())
		}
	}
}

// A guest that was restored lazily and cannot get a page: its epoch loses its
// turn at once.
func TestLostPageFallsBackToTheEpochBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	c.running("j", 1)
	c.checkpoint("j")
	c.checkpoint("j")
	for incarnation := uint64(2); incarnation <= 3; incarnation++ {
		j := c.job("j")
		n := c.nodes[nodeOf(j, 1)]
		n.do(func() {
			g := n.guests["/j/1"]
			g.state, g.dataLost = vftv1.GuestState_GUEST_STATE_DEAD, incarnation == 3
		})
		c.running("j", incarnation)
	}
	j := c.job("j")
	if from := c.restoredFrom(j); from[0] != 1 || from[1] != 1 {
		t.Errorf("restored from %v\n%s", from, c.describe())
	}
	if len(events(j, "epoch-damaged")) != 1 {
		t.Errorf("%s", c.describe())
	}
}

func TestRestartLimit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("j", 1)
	s.RestartLimit = 1
	for _, n := range c.nodes {
		n.hook("BootGuests", func(context.Context, string) error { return errors.New("disk full") })
	}
	c.submit(s)
	j := c.waitPhase("j", ended)
	if x := j.GetExit(); x.GetCause() != vftv1.ExitCause_EXIT_CAUSE_FAILED || !strings.Contains(x.GetMessage(), "restart limit reached") || !strings.Contains(x.GetMessage(), "disk full") {
		t.Errorf("exit %v", x)
	}
	if j.GetRestarts() != 1 || j.GetIncarnation() != 2 {
		t.Errorf("restarts %d, incarnation %d", j.GetRestarts(), j.GetIncarnation())
	}
}

func TestBootFailureGoesToAnotherNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.nodes["n1"].hook("BootGuests", func(context.Context, string) error { return errors.New("no kvm") })
	c.submit(spec("j", 1))
	if j := c.running("j", 2); nodeOf(j, 0) != "n2" {
		t.Errorf("placed on %v", j.GetGuests())
	}
}

// A job whose guests never came up is not tried for ever.
func TestFirstBootGivesUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	for _, n := range c.nodes {
		n.hook("BootGuests", func(context.Context, string) error {
			return connect.NewError(connect.CodeDeadlineExceeded, errors.New("not ready in time"))
		})
	}
	c.submit(spec("j", 1))
	c.eventually("the job ends", func() bool { return c.job("j").GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED })
	j := c.job("j")
	if j.GetExit().GetCause() != vftv1.ExitCause_EXIT_CAUSE_FAILED || !strings.Contains(j.GetExit().GetMessage(), "3 attempts") ||
		!strings.Contains(j.GetExit().GetMessage(), "not ready in time") {
		t.Errorf("exit %v", j.GetExit())
	}
}

func TestUserRestartIsNotCounted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	s := spec("j", 2)
	s.RestartLimit = 0
	c.submit(s)
	c.running("j", 1)
	c.checkpoint("j")
	if _, err := c.leader().RestartJob(c.ctx, connect.NewRequest(&vftv1.RestartJobRequest{Id: "j"})); err != nil {
		t.Fatal(err)
	}
	if j := c.running("j", 2); j.GetRestarts() != 0 {
		t.Errorf("restarts %d", j.GetRestarts())
	}
}

// With no node alive that holds a part the job waits for one, and only then
// gives its epochs up.
func TestHoldersAway(t *testing.T) {
	t.Parallel()
	t.Run("one comes back", func(t *testing.T) {
		c := newCluster(t, 1, 3, func(cfg *Config) { cfg.HolderWait = 10 * time.Second; cfg.RestartWait = 10 * time.Second })
		c.submit(spec("j", 1))
		c.running("j", 1)
		holders := c.checkpoint("j").GetParts()[0].GetNodes()
		for _, n := range holders {
			c.nodes[n].setDown(true)
		}
		c.eventually("said so", func() bool { return len(events(c.job("j"), "waiting")) == 1 })
		c.nodes[holders[1]].setDown(false)
		if j := c.runsAgain("j"); c.restoredFrom(j)[0] != 1 {
			t.Errorf("not restored from the epoch\n%s", c.describe())
		}
	})
	t.Run("none comes back", func(t *testing.T) {
		c := newCluster(t, 1, 3)
		c.submit(spec("j", 1))
		c.running("j", 1)
		for _, n := range c.checkpoint("j").GetParts()[0].GetNodes() {
			c.nodes[n].setDown(true)
		}
		j := c.runsAgain("j")
		ev := events(j, "restarting")
		if len(committedEpochs(j)) != 0 || !strings.Contains(ev[len(ev)-1].GetText(), "out of reach") {
			t.Errorf("%s", c.describe())
		}
	})
}

func TestStormGuard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2, func(cfg *Config) { cfg.MaxRestarts = 1 })
	for _, n := range c.nodes {
		n.node.Cpus = 64
	}
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		s := spec(id, 1)
		s.Guests[0].Node = "n1"
		c.submit(s)
		c.running(id, 1)
		c.checkpoint(id)
	}
	busy := make(chan struct{}, len(ids))
	most := make(chan int, 100)
	c.nodes["n2"].hook("RestoreGuests", func(context.Context, string) error {
		busy <- struct{}{}
		most <- len(busy)
		time.Sleep(30 * time.Millisecond)
		<-busy
		return nil
	})
	c.nodes["n1"].setDown(true)
	for _, id := range ids {
		c.running(id, 2)
	}
	close(most)
	for n := range most {
		if n > 1 {
			t.Errorf("%d restarts at a time", n)
		}
	}
}

// A link that fails between two nodes which the leader reaches: the job moves
// to nodes that reach each other (I5). A short failure does nothing.
func TestLinkLossRestartsElsewhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	j := c.running("j", 1)
	c.checkpoint("j")
	a, b := c.nodes[nodeOf(j, 0)], c.nodes[nodeOf(j, 1)]
	cut := func(on bool) {
		a.do(func() { a.cut = nil })
		b.do(func() { b.cut = nil })
		if on {
			a.do(func() { a.cut = []string{b.id} })
			b.do(func() { b.cut = []string{a.id} })
		}
	}
	cut(true)
	time.Sleep(300 * time.Millisecond)
	cut(false)
	time.Sleep(300 * time.Millisecond)
	if j := c.job("j"); j.GetIncarnation() != 1 {
		t.Fatalf("restarted after a short failure\n%s", c.describe())
	}
	cut(true)
	j = c.running("j", 2)
	cut(false)
	nodes := nodesOf(j)
	if len(nodes) != 2 || (nodes[0] == min(a.id, b.id) && nodes[1] == max(a.id, b.id)) {
		t.Errorf("placed on %v again", nodes)
	}
	if ev := events(j, "restarting")[0]; !strings.Contains(ev.GetText(), "cannot reach each other") {
		t.Errorf("event %q", ev.GetText())
	}
}

// Two jobs that are placed at the same time do not get the same memory.
func TestPlacementsDoNotOverlap(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.nodesAlive(2)
	for _, id := range []string{"a", "b"} {
		s := spec(id, 1)
		s.MemoryMib = 6000
		c.submit(s)
	}
	if a, b := c.running("a", 1), c.running("b", 1); nodeOf(a, 0) == nodeOf(b, 0) {
		t.Errorf("both on %s", nodeOf(a, 0))
	}
}
