package fsm

import (
	"errors"
	"testing"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func publishCmd(p *vftv1.PublishedPort, remove bool) *vftv1.Command {
	return &vftv1.Command{Body: &vftv1.Command_PublishPort{PublishPort: &vftv1.PublishPort{Job: "a", Port: p, Remove: remove}}}
}

// TestPublish: ports are published once, until they are removed or the job
// ends, across restarts.
func TestPublish(t *testing.T) {
	x := newScript(t)
	web := &vftv1.PublishedPort{Port: 8080, Guest: 0, GuestPort: 80}
	local := &vftv1.PublishedPort{Address: "127.0.0.1", Port: 8081, Guest: 1, GuestPort: 80}
	for _, p := range []*vftv1.PublishedPort{web, local} {
		if res := x.do(publishCmd(p, false)); !res.Changed || lastEvent(res.Job).GetKind() != "published" {
			t.Errorf("%v was not published", p)
		}
		if res := x.do(publishCmd(p, false)); res.Changed {
			t.Errorf("%v was published twice", p)
		}
	}
	x.do(&vftv1.Command{Body: &vftv1.Command_RequestRestart{RequestRestart: &vftv1.RequestRestart{Job: "a"}}})
	x.do(begin(&vftv1.BeginOperation{Operation: 2, Kind: vftv1.OperationKind_OPERATION_KIND_RESTART, Incarnation: 2, Guests: guestsOn("n2", "n3")}))
	if n := len(x.s.Job("a").GetPublished()); n != 2 {
		t.Errorf("%d ports after a restart, want 2", n)
	}
	if res := x.do(publishCmd(&vftv1.PublishedPort{Port: 8081}, true)); res.Changed {
		t.Error("a port was removed by another address")
	}
	if res := x.do(publishCmd(&vftv1.PublishedPort{Address: "127.0.0.1", Port: 8081}, true)); !res.Changed || len(res.Job.GetPublished()) != 1 {
		t.Errorf("ports are %v, want the first", res.Job.GetPublished())
	}
	if res := x.do(publishCmd(&vftv1.PublishedPort{Address: "127.0.0.1", Port: 8081}, true)); res.Changed {
		t.Error("a port was removed twice")
	}
}

func TestPublishIsRefused(t *testing.T) {
	x := newScript(t)
	x.do(publishCmd(&vftv1.PublishedPort{Port: 8080, Guest: 0, GuestPort: 80}, false))
	for what, p := range map[string]*vftv1.PublishedPort{
		"the system's port":  {Port: 1023, GuestPort: 80},
		"no such port":       {Port: 65536, GuestPort: 80},
		"no port of a guest": {Port: 8081},
		"no such guest":      {Port: 8081, Guest: 2, GuestPort: 80},
		"no address":         {Address: "localhost", Port: 8081, GuestPort: 80},
		"taken":              {Port: 8080, Guest: 1, GuestPort: 80},
		"taken, one address": {Address: "127.0.0.1", Port: 8080, Guest: 1, GuestPort: 80},
	} {
		if res := x.try(publishCmd(p, false)); !errors.Is(res.Err, ErrInvalid) {
			t.Errorf("%s: %v", what, res.Err)
		}
	}
	for p := uint32(9000); p < 9000+maxPublished-1; p++ {
		x.do(publishCmd(&vftv1.PublishedPort{Port: p, GuestPort: 80}, false))
	}
	if res := x.try(publishCmd(&vftv1.PublishedPort{Port: 8999, GuestPort: 80}, false)); !errors.Is(res.Err, ErrInvalid) {
		t.Errorf("one more than there may be: %v", res.Err)
	}
	bad := testSpec("b")
	bad.Publish = []*vftv1.PublishedPort{{Port: 80, GuestPort: 80}}
	if res := x.try(&vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: bad}}}); !errors.Is(res.Err, ErrInvalid) {
		t.Errorf("a job with a port that it cannot have: %v", res.Err)
	}
	good := testSpec("b")
	good.Publish = []*vftv1.PublishedPort{{Port: 8080, GuestPort: 80}}
	if res := x.do(&vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: good}}}); len(res.Job.GetPublished()) != 1 {
		t.Errorf("ports are %v", res.Job.GetPublished())
	}
}
