package coordinator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func (c *cluster) resume(job string, epoch uint64, token string) (*vftv1.Job, error) {
	r, err := c.leader().ResumeJob(c.ctx, connect.NewRequest(&vftv1.ResumeJobRequest{Id: job, Epoch: epoch, Token: token}))
	if err != nil {
		return nil, err
	}
	return r.Msg.GetJob(), nil
}

// A job that has ended goes on from a pinned epoch, and never from a newer one
// of its former life.
func TestResume(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.submit(spec("j", 2))
	c.running("j", 1)
	for n := uint64(1); n <= 3; n++ {
		c.checkpoint("j")
		if err := c.pin("j", n, string(rune('a'+n))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.resume("j", 2, "x"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a running job resumed: %v", err)
	}
	c.finish("j", 1, 0)
	c.waitPhase("j", ended)
	if _, err := c.resume("j", 9, "x"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("resumed from an epoch that is not there: %v", err)
	}
	for range 2 { // a repeated call is the same resumption
		if _, err := c.resume("j", 2, "x"); err != nil {
			t.Fatal(err)
		}
	}
	j := c.running("j", 2)
	if from := c.restoredFrom(j); !slices.Equal(from, []uint64{2, 2}) || j.GetExit() != nil || j.GetStopRequested() {
		t.Errorf("restored from %v: %v", from, j)
	}
	if _, lost := events(j, "restarted")[0].GetFigures()["lost"]; lost {
		t.Error("the time between the lives counts as lost work")
	}
	n := c.nodes[nodeOf(j, 1)]
	n.do(func() { n.guests["/j/1"].state = vftv1.GuestState_GUEST_STATE_DEAD })
	j = c.running("j", 3)
	if from := c.restoredFrom(j); !slices.Equal(from, []uint64{2, 2}) {
		t.Errorf("after a failure restored from %v\n%s", from, c.describe())
	}
	if e := c.checkpoint("j"); e.GetNumber() != 4 || e.GetState() != committed {
		t.Errorf("%v", e)
	}
	n = c.nodes[nodeOf(j, 1)]
	n.do(func() { n.guests["/j/1"].state = vftv1.GuestState_GUEST_STATE_DEAD })
	j = c.running("j", 4)
	if from := c.restoredFrom(j); !slices.Equal(from, []uint64{4, 4}) {
		t.Errorf("after a new epoch restored from %v", from)
	}
	c.finish("j", 4, 0)
	c.waitPhase("j", ended)
	if got := committedEpochs(c.job("j")); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("epochs in the end: %v", got)
	}
}

// A resumption that cannot succeed ends the job with the reason instead of
// beginning anew.
func TestResumeThatFails(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.submit(spec("j", 1))
	c.running("j", 1)
	c.checkpoint("j")
	if err := c.pin("j", 1, "p"); err != nil {
		t.Fatal(err)
	}
	c.finish("j", 1, 0)
	c.waitPhase("j", ended)
	for _, n := range c.nodes {
		n.hook("RestoreGuests", func(context.Context, string) error {
			return connect.NewError(connect.CodeDataLoss, errors.New("page 7 is nowhere"))
		})
	}
	if _, err := c.resume("j", 1, "x"); err != nil {
		t.Fatal(err)
	}
	c.eventually("ended again", func() bool { return len(events(c.job("j"), "ended")) == 2 })
	x := c.job("j").GetExit()
	if x.GetCause() != vftv1.ExitCause_EXIT_CAUSE_FAILED || !strings.Contains(x.GetMessage(), "cannot be resumed from checkpoint 1") || !strings.Contains(x.GetMessage(), "page 7 is nowhere") {
		t.Errorf("%v", x)
	}
}

// A job that another cluster exported goes on here.
func TestImport(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.nodesAlive(2)
	s := spec("foreign", 1)
	s.ClientBound = true
	exported := &vftv1.Epoch{
		Number: 7, Incarnation: 3, State: committed, Proof: &vftv1.DrainProof{}, EndedAt: 5,
		Parts: []*vftv1.Part{{Guest: 0, Manifest: "m", Size: 5, Nodes: []string{"elsewhere"}}},
	}
	c.nodes["n2"].do(func() { c.nodes["n2"].parts["/foreign/7/0"] = &vftv1.Part{Manifest: "m"} })
	take := func() (*vftv1.Job, error) {
		r, err := c.leader().ImportEpoch(c.ctx, connect.NewRequest(&vftv1.ImportEpochRequest{Spec: s, Incarnation: 4, Epoch: exported, Node: "n2"}))
		if err != nil {
			return nil, err
		}
		return r.Msg.GetJob(), nil
	}
	s.Image = "other"
	if _, err := take(); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "no node holds image other") {
		t.Errorf("without the image: %v", err)
	}
	s.Image = "img"
	for range 2 { // may be repeated
		j, err := take()
		if err != nil {
			t.Fatal(err)
		}
		if e := j.GetEpochs()[0]; j.GetPhase() != ended || e.GetPin() != "import-7" || e.GetParts()[0].GetNodes()[0] != "n2" {
			t.Errorf("%v", j)
		}
	}
	c.eventually("a second copy is made", func() bool { return stateAt(c.epoch("foreign", 7), "partner") == safeLevel })
	if _, err := c.resume("foreign", 7, "x"); err != nil {
		t.Fatal(err)
	}
	c.eventually("running", func() bool { return c.job("foreign").GetPhase() == running })
	j := c.job("foreign")
	if from := c.restoredFrom(j); from[0] != 7 || j.GetIncarnation() <= 4 || j.GetSpec().GetClientBound() {
		t.Errorf("restored from %v, %v", from, j)
	}
	if e := c.checkpoint("foreign"); e.GetNumber() != 8 || e.GetState() != committed {
		t.Errorf("%v", e)
	}
	exported.Number = 9
	if _, err := take(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("another epoch of a running job: %v", err)
	}
	s.Name = "other"
	if _, err := take(); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("another job of the same id: %v", err)
	}
}
