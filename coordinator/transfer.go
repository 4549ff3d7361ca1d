package coordinator

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/internal/access"
)

// AdmitExport implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) AdmitExport(_ context.Context, req *connect.Request[vftv1.AdmitExportRequest]) (*connect.Response[vftv1.AdmitExportResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	if err := callerMayUse(req.Msg.GetCaller(), job); err != nil {
		return nil, err
	}
	e := fsm.FindEpoch(job, req.Msg.GetEpoch())
	switch {
	case e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED:
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("only a committed checkpoint can be exported"))
	case e.GetDamaged() != "":
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("checkpoint %d is damaged: %s", e.GetNumber(), e.GetDamaged()))
	}
	resp := &vftv1.AdmitExportResponse{Export: exportOf(job, e), Peers: c.peerAddresses()}
	for _, p := range e.GetParts() {
		resp.Parts = append(resp.Parts, c.source(e, p))
	}
	return connect.NewResponse(resp), nil
}

// exportOf is what of a job and an epoch means something in another cluster.
func exportOf(job *vftv1.Job, e *vftv1.Epoch) *vftv1.Export {
	spec, e := proto.CloneOf(job.GetSpec()), proto.CloneOf(e)
	spec.Owner = ""
	for _, g := range spec.GetGuests() {
		g.Node = ""
	}
	for _, p := range e.GetParts() {
		p.Nodes, p.Levels = nil, nil
	}
	e.Levels, e.Required, e.Pin, e.Revision, e.Leftovers = nil, "", "", 0, false
	return &vftv1.Export{Spec: spec, Incarnation: job.GetIncarnation(), Epoch: e}
}

// AdmitImport implements vftv1connect.CoordinatorServiceHandler. What it lets
// pass ImportEpoch may refuse all the same, since the state goes on.
func (c *Coordinator) AdmitImport(_ context.Context, req *connect.Request[vftv1.AdmitImportRequest]) (*connect.Response[vftv1.AdmitImportResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	spec, e := req.Msg.GetExport().GetSpec(), req.Msg.GetExport().GetEpoch()
	if _, err := c.importable(spec); err != nil {
		return nil, err
	}
	job := c.store.job(spec.GetId())
	if job == nil {
		return connect.NewResponse(&vftv1.AdmitImportResponse{}), nil
	}
	if err := callerMayUse(req.Msg.GetCaller(), job); err != nil {
		return nil, err
	}
	same := proto.CloneOf(spec)
	same.Owner = job.GetSpec().GetOwner()
	known := fsm.FindEpoch(job, e.GetNumber())
	switch {
	case !fsm.SameJob(job.GetSpec(), same):
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("another job of this cluster has the id %s", spec.GetId()))
	case known.GetState() == vftv1.EpochState_EPOCH_STATE_COMMITTED:
	case job.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED:
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("job %s runs here: stop it first (`vft job stop`)", spec.GetId()))
	}
	return connect.NewResponse(&vftv1.AdmitImportResponse{}), nil
}

// importable fails when no job as this one can be resumed here, and returns the
// levels that its epochs are kept at.
func (c *Coordinator) importable(spec *vftv1.JobSpec) ([]*vftv1.EpochLevel, error) {
	err := checkSpec(spec)
	if err == nil {
		err = c.checkImage(spec.GetImage())
	}
	levels, lerr := levelsOf(spec)
	if err := errors.Join(err, lerr); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return levels, nil
}

// callerMayUse is mayUse for somebody whom a node names. Where nobody shows a
// certificate there is nobody to be told apart.
func callerMayUse(caller string, job *vftv1.Job) error {
	if caller == "" {
		return nil
	}
	who, err := access.Parse(caller)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	return mayUse(who, job)
}
