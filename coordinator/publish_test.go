package coordinator

import (
	"testing"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// TestGatewayFollowsGuest0: the node of guest 0, and no other, hears what the
// job's gateway lets through, also after a restart elsewhere.
func TestGatewayFollowsGuest0(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	s := spec("a", 2)
	s.NetOut = true
	c.submit(s)
	j := c.running("a", 1)
	port := &vftv1.PublishedPort{Port: 8080, Guest: 1, GuestPort: 80}
	for range 2 {
		r, err := c.leader().PublishPort(c.ctx, connect.NewRequest(&vftv1.PublishPortRequest{Id: "a", Port: port}))
		if err != nil || len(r.Msg.GetJob().GetPublished()) != 1 {
			t.Fatalf("published: %v, %v", r, err)
		}
	}
	if _, err := c.leader().PublishPort(c.ctx, connect.NewRequest(&vftv1.PublishPortRequest{Id: "a", Port: &vftv1.PublishedPort{Port: 22, GuestPort: 22}})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("the system's port: %v", err)
	}
	told := func(j *vftv1.Job, node string) *vftv1.WantedJob {
		t.Helper()
		req := c.nodes[node].heartbeat()
		if req == nil {
			t.Fatalf("node %s is down", node)
		}
		r, err := c.leader().Heartbeat(c.ctx, connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range r.Msg.GetJobs() {
			if w.GetJob() == "a" {
				return w
			}
		}
		t.Fatalf("node %s hears nothing of the job", node)
		return nil
	}
	check := func(j *vftv1.Job) {
		t.Helper()
		w := told(j, nodeOf(j, 0))
		if g := w.GetGateway(); w.GetIncarnation() != j.GetIncarnation() || !g.GetOut() || g.GetHost() || len(g.GetPorts()) != 1 || g.GetPorts()[0].GetGuest() != 1 {
			t.Errorf("node of guest 0: %v", w)
		}
		if w := told(j, nodeOf(j, 1)); nodeOf(j, 1) != nodeOf(j, 0) && w.GetGateway() != nil {
			t.Errorf("node of guest 1: %v", w)
		}
	}
	check(j)
	c.nodes[nodeOf(j, 0)].setDown(true)
	check(c.running("a", 2))
}
