package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// MigrateGuest implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) MigrateGuest(ctx context.Context, req *connect.Request[vftv1.MigrateGuestRequest]) (*connect.Response[vftv1.MigrateGuestResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	id, guest := job.GetSpec().GetId(), req.Msg.GetGuest()
	if int(guest) < len(job.GetGuests()) && req.Msg.GetTo() == job.GetGuests()[guest].GetNode() && job.GetOperation().GetMove() == nil {
		if ev := lastMove(job, guest, "migrated"); ev.GetLabels()["to"] == req.Msg.GetTo() {
			return connect.NewResponse(&vftv1.MigrateGuestResponse{Event: ev}), nil // asked again
		}
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("guest %d is on node %s", guest, req.Msg.GetTo()))
	}
	since := fsm.LastEvent(job)
	if m := job.GetOperation().GetMove(); m.GetGuest() == guest { // it may have begun already
		since = 0
	}
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RequestMove{RequestMove: &vftv1.RequestMove{Job: id, Move: &vftv1.Move{
		Guest: guest, To: req.Msg.GetTo(), Cold: req.Msg.GetCold(), Reason: req.Msg.GetReason(), Trigger: fsm.TriggerUser,
	}}}})
	if err != nil {
		return nil, c.fault(err)
	}
	for {
		changed := c.store.changes.next(id)
		job = c.store.job(id)
		for _, ev := range job.GetEvents() {
			if ev.GetNumber() <= since || uint64(ev.GetFigures()["request"]) != res.Ticket {
				continue
			}
			switch ev.GetKind() {
			case "migrated":
				return connect.NewResponse(&vftv1.MigrateGuestResponse{Event: ev}), nil
			case "migrate-failed":
				return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New(ev.GetText()))
			}
		}
		if job == nil || job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the job ended before the guest was migrated"))
		}
		select {
		case <-changed:
		case <-t.over:
			return nil, c.fault(errNotLeader)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lastMove returns the newest event of a kind about a guest, or nil.
func lastMove(job *vftv1.Job, guest uint32, kinds ...string) *vftv1.Event {
	for _, ev := range slices.Backward(job.GetEvents()) {
		if slices.Contains(kinds, ev.GetKind()) && ev.GetFigures()["guest"] == int64(guest) {
			return ev
		}
	}
	return nil
}

// DrainNode implements vftv1connect.CoordinatorServiceHandler. It does not wait:
// asked again, it says which guests are still there.
func (c *Coordinator) DrainNode(ctx context.Context, req *connect.Request[vftv1.DrainNodeRequest]) (*connect.Response[vftv1.DrainNodeResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	node := req.Msg.GetNode()
	reason := req.Msg.GetReason()
	if reason == "" {
		reason = "a user asked for it"
	}
	if req.Msg.GetUndrain() {
		reason = ""
	}
	if _, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_DrainNode{DrainNode: &vftv1.DrainNode{Node: node, Reason: reason}}}); err != nil {
		return nil, c.fault(err)
	}
	resp := &vftv1.DrainNodeResponse{Node: c.store.node(node)}
	for _, j := range c.store.jobs() {
		if j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			continue
		}
		for _, g := range j.GetGuests() {
			if g.GetNode() != node {
				continue
			}
			p := &vftv1.PlacedGuest{Job: j.GetSpec().GetId(), Guest: g.GetIndex()}
			if ev := lastMove(j, g.GetIndex(), "migrate-failed", "migrated"); ev.GetKind() == "migrate-failed" && ev.GetLabels()["trigger"] == fsm.TriggerDrain {
				p.Failure = ev.GetLabels()["reason"]
			}
			resp.Guests = append(resp.Guests, p)
		}
	}
	return connect.NewResponse(resp), nil
}
