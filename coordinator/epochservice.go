package coordinator

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// DeleteEpoch implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) DeleteEpoch(ctx context.Context, req *connect.Request[vftv1.DeleteEpochRequest]) (*connect.Response[vftv1.DeleteEpochResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	id := job.GetSpec().GetId()
	_, err = c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: &vftv1.DeleteEpoch{
		Job: id, Epoch: req.Msg.GetEpoch(), Last: req.Msg.GetLast(), Pinned: req.Msg.GetPinned(),
	}}})
	if err != nil {
		return nil, c.fault(err)
	}
	c.cleanUp(ctx, id, []uint64{req.Msg.GetEpoch()})
	return connect.NewResponse(&vftv1.DeleteEpochResponse{}), nil
}

// maxPinName bounds the name of a pin, in bytes.
const maxPinName = 64

// PinEpoch implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) PinEpoch(ctx context.Context, req *connect.Request[vftv1.PinEpochRequest]) (*connect.Response[vftv1.PinEpochResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	if len(req.Msg.GetName()) > maxPinName {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the name of a pin has at most %d bytes", maxPinName))
	}
	id, number := job.GetSpec().GetId(), req.Msg.GetEpoch()
	err = c.change(id, number, func(e *vftv1.Epoch) error {
		_, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_PinEpoch{PinEpoch: &vftv1.PinEpoch{
			Job: id, Epoch: number, Revision: e.GetRevision(), Name: req.Msg.GetName(),
		}}})
		return err
	})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.PinEpochResponse{Epoch: fsm.FindEpoch(c.store.job(id), number)}), nil
}

// importLead is how many incarnations after its last known one an imported job
// goes on. A node may remember later ones of it, from before it was forgotten
// here, and refuses what is not newer.
const importLead = 1000

// ImportEpoch implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) ImportEpoch(ctx context.Context, req *connect.Request[vftv1.ImportEpochRequest]) (*connect.Response[vftv1.ImportEpochResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	spec := c.owned(ctx, req.Msg.GetSpec(), c.store.job(req.Msg.GetSpec().GetId()))
	levels, err := c.importable(spec)
	if err != nil {
		return nil, err
	}
	if !c.alive(req.Msg.GetNode()) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("node %s, which has the parts, is not alive", req.Msg.GetNode()))
	}
	e := proto.CloneOf(req.Msg.GetEpoch())
	for _, p := range e.GetParts() {
		p.Nodes, p.Levels = []string{req.Msg.GetNode()}, nil
	}
	if e.GetPin() == "" {
		e.Pin = fmt.Sprintf("import-%d", e.GetNumber())
	}
	incarnation := req.Msg.GetIncarnation()
	if c.store.job(spec.GetId()) == nil {
		incarnation += importLead
	}
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_ImportEpoch{ImportEpoch: &vftv1.ImportEpoch{
		Spec: spec, Incarnation: incarnation, Epoch: e, Levels: levels,
	}}})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.ImportEpochResponse{Job: res.Job}), nil
}

// checkImage says what to do when no node has the image that a job runs on.
func (c *Coordinator) checkImage(image string) error {
	for _, n := range c.store.nodes() {
		if n.GetState() == vftv1.NodeState_NODE_STATE_ALIVE && slices.Contains(n.GetImages(), image) {
			return nil
		}
	}
	return fmt.Errorf("no node holds image %s, which the job's guests boot from: copy it into the nodes' image caches (`vft image ls` shows what is there)", image)
}

// ResumeJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) ResumeJob(ctx context.Context, req *connect.Request[vftv1.ResumeJobRequest]) (*connect.Response[vftv1.ResumeJobResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	for _, n := range req.Msg.GetNodes() {
		if !c.alive(n) {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("node %s is not one of the cluster that is alive: `vft node ls` shows those", n))
		}
	}
	if err := c.checkImage(job.GetSpec().GetImage()); err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	id := job.GetSpec().GetId()
	if t, err := c.leader(); err == nil {
		t.leases.renewClient(id, c.cfg.Now())
	}
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_ResumeJob{ResumeJob: &vftv1.ResumeJob{
		Job: id, Epoch: req.Msg.GetEpoch(), Incarnation: job.GetIncarnation(), ClientBound: req.Msg.GetClientBound(), Token: req.Msg.GetToken(),
		Nodes: req.Msg.GetNodes(),
	}}})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.ResumeJobResponse{Job: res.Job}), nil
}
