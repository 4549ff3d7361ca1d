package coordinator

import (
	"context"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// PublishPort implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) PublishPort(ctx context.Context, req *connect.Request[vftv1.PublishPortRequest]) (*connect.Response[vftv1.PublishPortResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_PublishPort{PublishPort: &vftv1.PublishPort{
		Job: job.GetSpec().GetId(), Port: req.Msg.GetPort(), Remove: req.Msg.GetRemove(),
	}}})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.PublishPortResponse{Job: res.Job}), nil
}

// gatewayOn returns what the job's gateway lets through, if it belongs on the
// node: where guest 0 is.
func gatewayOn(j *vftv1.Job, node string) *vftv1.GatewayPolicy {
	if len(j.GetGuests()) == 0 || j.GetGuests()[0].GetNode() != node {
		return nil
	}
	return &vftv1.GatewayPolicy{Ports: j.GetPublished(), Out: j.GetSpec().GetNetOut(), Host: j.GetSpec().GetNetHost()}
}
