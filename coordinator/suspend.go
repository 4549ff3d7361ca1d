package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// suspend takes a checkpoint, and when one began after the wish takes the
// job's nodes from it.
func (k *controller) suspend(ctx context.Context, job *vftv1.Job) (next, error) {
	e := fsm.LastCommitted(job)
	if e.GetIncarnation() != job.GetIncarnation() || e.GetNumber() < job.GetSuspension().GetEpoch() || e.GetDamaged() != "" {
		if wait := k.checkpointAfter.Sub(k.c.cfg.Now()); wait > 0 {
			return next{after: wait}, nil
		}
		return k.beginCheckpoint(ctx, job, fsm.TriggerSuspend)
	}
	_, err := k.begin(ctx, job, &vftv1.BeginOperation{
		Kind: vftv1.OperationKind_OPERATION_KIND_SUSPEND, Incarnation: job.GetIncarnation() + 1, Epoch: e.GetNumber(), Reason: job.GetSuspension().GetReason(),
	})
	return next{}, err
}

// suspended ends the guests of a job that has given its nodes back, and has it
// go on when it is asked to.
func (k *controller) suspended(ctx context.Context, job *vftv1.Job) (next, error) {
	switch {
	case job.GetOperation() != nil:
		k.killOld(ctx, job) // a node that cannot be reached learns it by its next heartbeat
		if ctx.Err() != nil {
			return next{}, ctx.Err()
		}
		k.log.Info("job suspended", "epoch", job.GetOperation().GetEpoch())
		return next{}, k.finish(ctx, job, nil)
	case job.GetSuspension().GetOver():
		return k.beginRestart(ctx, job, loss{reason: "a user has it go on", requested: true})
	}
	return next{after: idle}, nil
}

// forNow are the nodes that a job may be placed on: all, or for a suspended job
// that is to go on those that the user named.
func (k *controller) forNow(job *vftv1.Job) []*vftv1.Node {
	nodes := k.c.store.nodes()
	if named := job.GetSuspension().GetNodes(); len(named) > 0 {
		return slices.DeleteFunc(nodes, func(n *vftv1.Node) bool { return !slices.Contains(named, n.GetId()) })
	}
	return nodes
}

// SuspendJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) SuspendJob(ctx context.Context, req *connect.Request[vftv1.SuspendJobRequest]) (*connect.Response[vftv1.SuspendJobResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	id, reason := job.GetSpec().GetId(), req.Msg.GetReason()
	if reason == "" {
		reason = "a user asked for it"
	}
	if _, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RequestSuspend{RequestSuspend: &vftv1.RequestSuspend{Job: id, Reason: reason}}}); err != nil {
		return nil, c.fault(err)
	}
	for {
		changed := c.store.changes.next(id)
		job = c.store.job(id)
		switch {
		case job.GetPhase() == vftv1.JobPhase_JOB_PHASE_SUSPENDED && job.GetOperation() == nil:
			return connect.NewResponse(&vftv1.SuspendJobResponse{Job: fsm.Without(job, 0, true)}), nil
		case job == nil || job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED:
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the job ended before it was suspended"))
		case job.GetSuspension() == nil:
			return nil, connect.NewError(connect.CodeAborted, errors.New("somebody had the job go on before it was suspended"))
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

// ContinueJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) ContinueJob(ctx context.Context, req *connect.Request[vftv1.ContinueJobRequest]) (*connect.Response[vftv1.ContinueJobResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	for _, n := range req.Msg.GetNodes() {
		if c.store.node(n) == nil {
			return nil, c.fault(fmt.Errorf("node %q: %w", n, fsm.ErrUnknownNode))
		}
	}
	id := job.GetSpec().GetId()
	t.leases.renewClient(id, c.cfg.Now()) // its client was not waited for
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RequestContinue{RequestContinue: &vftv1.RequestContinue{Job: id, Nodes: req.Msg.GetNodes()}}})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.ContinueJobResponse{Job: fsm.Without(res.Job, 0, true)}), nil
}

// patient says that a job waits for nodes as long as it takes: nobody is hurt.
func patient(job *vftv1.Job) (next, bool) {
	return next{after: time.Minute, any: true}, job.GetPhase() == vftv1.JobPhase_JOB_PHASE_SUSPENDED
}
