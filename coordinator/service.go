package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
	"github.com/mpirun-vft/vft/internal/access"
)

var _ vftv1connect.CoordinatorServiceHandler = (*Coordinator)(nil)

// SubmitJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) SubmitJob(ctx context.Context, req *connect.Request[vftv1.SubmitJobRequest]) (*connect.Response[vftv1.SubmitJobResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	if err := checkSpec(req.Msg.GetSpec()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	// A call that is repeated is about a job that was let in.
	if err := c.checkNodes(req.Msg.GetSpec()); err != nil && c.store.job(req.Msg.GetSpec().GetId()) == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	t.leases.renewClient(req.Msg.GetSpec().GetId(), c.cfg.Now())
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_SubmitJob{SubmitJob: &vftv1.SubmitJob{Spec: c.owned(ctx, req.Msg.GetSpec(), nil)}}})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.SubmitJobResponse{Job: res.Job}), nil
}

func checkSpec(s *vftv1.JobSpec) error {
	switch {
	case s.GetId() == "":
		return errors.New("the job has no id")
	case len(s.GetGuests()) == 0:
		return errors.New("the job has no guests")
	case len(s.GetArgv()) == 0:
		return errors.New("the job has no command")
	case s.GetMemoryMib() == 0 || s.GetCpus() == 0:
		return errors.New("the job's guests need memory and at least one processor")
	case s.GetInterval() < 0:
		return errors.New("the interval between checkpoints is negative")
	}
	return checkLevels(s)
}

// GetJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) GetJob(_ context.Context, req *connect.Request[vftv1.GetJobRequest]) (*connect.Response[vftv1.GetJobResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.GetJobResponse{Job: job}), nil
}

// find returns the job with this id, or the only one whose id begins so.
func (c *Coordinator) find(id string) (*vftv1.Job, error) {
	if _, err := c.leader(); err != nil {
		return nil, err
	}
	if j := c.store.job(id); j != nil {
		return j, nil
	}
	var found []*vftv1.Job
	for _, j := range c.store.jobs() {
		if id != "" && strings.HasPrefix(j.GetSpec().GetId(), id) {
			found = append(found, j)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("job %q: %w", id, fsm.ErrUnknownJob)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d jobs have ids that begin with %q: %w", len(found), id, fsm.ErrUnknownJob)
}

// ListJobs implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) ListJobs(ctx context.Context, _ *connect.Request[vftv1.ListJobsRequest]) (*connect.Response[vftv1.ListJobsResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	out := &vftv1.ListJobsResponse{}
	for _, j := range c.store.jobs() {
		out.Jobs = append(out.Jobs, listed(access.From(ctx), j))
	}
	return connect.NewResponse(out), nil
}

// WatchJob implements vftv1connect.CoordinatorServiceHandler. The stream ends
// after the job has ended, or with unavailable when this replica stops leading.
func (c *Coordinator) WatchJob(ctx context.Context, req *connect.Request[vftv1.WatchJobRequest], stream *connect.ServerStream[vftv1.WatchJobResponse]) error {
	t, err := c.leader()
	if err != nil {
		return c.fault(err)
	}
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return c.fault(err)
	}
	id, since := job.GetSpec().GetId(), req.Msg.GetSince()
	for {
		changed := c.store.changes.next(id)
		job = c.store.job(id)
		if job == nil {
			return c.fault(fmt.Errorf("job %q: %w", id, fsm.ErrUnknownJob))
		}
		resp := &vftv1.WatchJobResponse{Job: fsm.Without(job, since, false), NodeAddresses: map[string]string{}}
		for _, g := range job.GetGuests() {
			resp.NodeAddresses[g.GetNode()] = c.store.node(g.GetNode()).GetAddress()
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		since = max(since, fsm.LastEvent(job))
		if job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			return nil
		}
		select {
		case <-changed:
		case <-t.over:
			return c.fault(errNotLeader)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// StopJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) StopJob(ctx context.Context, req *connect.Request[vftv1.StopJobRequest]) (*connect.Response[vftv1.StopJobResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	reason := req.Msg.GetReason()
	if reason == "" {
		reason = "a user asked for it"
	}
	if _, err := c.apply(ctx, requestStop(job.GetSpec().GetId(), reason, vftv1.ExitCause_EXIT_CAUSE_STOPPED, 143, req.Msg.GetNow())); err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.StopJobResponse{}), nil
}

// RestartJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) RestartJob(ctx context.Context, req *connect.Request[vftv1.RestartJobRequest]) (*connect.Response[vftv1.RestartJobResponse], error) {
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	_, err = c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RequestRestart{RequestRestart: &vftv1.RequestRestart{Job: job.GetSpec().GetId()}}})
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.RestartJobResponse{}), nil
}

// FinishJob implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) FinishJob(ctx context.Context, req *connect.Request[vftv1.FinishJobRequest]) (*connect.Response[vftv1.FinishJobResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	_, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RecordExit{RecordExit: &vftv1.RecordExit{
		Job: req.Msg.GetId(), Incarnation: req.Msg.GetIncarnation(), Exit: req.Msg.GetExit(),
	}}})
	if errors.Is(err, fsm.ErrIncarnation) {
		return connect.NewResponse(&vftv1.FinishJobResponse{Accepted: false}), nil
	}
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(&vftv1.FinishJobResponse{Accepted: true}), nil
}

// RenewClient implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) RenewClient(_ context.Context, req *connect.Request[vftv1.RenewClientRequest]) (*connect.Response[vftv1.RenewClientResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	if c.store.job(req.Msg.GetId()) == nil {
		return nil, c.fault(fmt.Errorf("job %q: %w", req.Msg.GetId(), fsm.ErrUnknownJob))
	}
	t.leases.renewClient(req.Msg.GetId(), c.cfg.Now())
	return connect.NewResponse(&vftv1.RenewClientResponse{Lease: int64(c.cfg.ClientLease)}), nil
}

// TakeCheckpoint implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) TakeCheckpoint(ctx context.Context, req *connect.Request[vftv1.TakeCheckpointRequest]) (*connect.Response[vftv1.TakeCheckpointResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	job, err := c.find(req.Msg.GetId())
	if err != nil {
		return nil, c.fault(err)
	}
	id := job.GetSpec().GetId()
	res, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RequestCheckpoint{RequestCheckpoint: &vftv1.RequestCheckpoint{Job: id}}})
	if err != nil {
		return nil, c.fault(err)
	}
	for {
		changed := c.store.changes.next(id)
		job = c.store.job(id)
		if job.GetCheckpointsDone() >= res.Ticket {
			if e := answered(job, job.GetCheckpointsDone()-res.Ticket); e != nil {
				return connect.NewResponse(&vftv1.TakeCheckpointResponse{Epoch: e}), nil
			}
			return nil, connect.NewError(connect.CodeAborted, errors.New("the checkpoint was taken and has been deleted since"))
		}
		if job == nil || job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the job ended before a checkpoint could be taken"))
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

// answered returns the epoch of a request, counted back from the newest.
func answered(job *vftv1.Job, back uint64) *vftv1.Epoch {
	epochs := job.GetEpochs()
	for i := len(epochs) - 1; i >= 0; i-- {
		if epochs[i].GetTrigger() != fsm.TriggerRequest || epochs[i].GetState() == vftv1.EpochState_EPOCH_STATE_GATHERING {
			continue
		}
		if back == 0 {
			return epochs[i]
		}
		back--
	}
	return nil
}

// ListNodes implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) ListNodes(context.Context, *connect.Request[vftv1.ListNodesRequest]) (*connect.Response[vftv1.ListNodesResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	out := &vftv1.ListNodesResponse{Nodes: c.store.nodes(), Guests: map[string]uint32{}}
	for _, j := range c.store.jobs() {
		if j.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED {
			for _, g := range j.GetGuests() {
				out.Guests[g.GetNode()]++
			}
		}
	}
	return connect.NewResponse(out), nil
}

// Heartbeat implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) Heartbeat(ctx context.Context, req *connect.Request[vftv1.HeartbeatRequest]) (*connect.Response[vftv1.HeartbeatResponse], error) {
	t, err := c.leader()
	if err != nil {
		return nil, c.fault(err)
	}
	if req.Msg.GetNode().GetId() == "" || req.Msg.GetNode().GetAddress() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a node needs an id and an address"))
	}
	resp, err := t.heartbeat(ctx, req.Msg)
	if err != nil {
		return nil, c.fault(err)
	}
	return connect.NewResponse(resp), nil
}

// Status implements vftv1connect.CoordinatorServiceHandler. Every replica answers.
func (c *Coordinator) Status(context.Context, *connect.Request[vftv1.StatusRequest]) (*connect.Response[vftv1.StatusResponse], error) {
	r := c.node.raft
	hint := c.leaderHint()
	out := &vftv1.StatusResponse{
		Id: c.cfg.ID, State: strings.ToLower(r.State().String()), Leader: hint.GetId(), LeaderAddress: hint.GetAddress(),
		Term: r.CurrentTerm(), Applied: c.store.applied(), Version: c.cfg.Version,
	}
	conf := r.GetConfiguration()
	if err := conf.Error(); err != nil {
		return nil, c.fault(fmt.Errorf("%w: %w", errNotLeader, err))
	}
	for _, s := range conf.Configuration().Servers {
		out.Replicas = append(out.Replicas, &vftv1.ReplicaStatus{Id: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return connect.NewResponse(out), nil
}

// AddReplica implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) AddReplica(ctx context.Context, req *connect.Request[vftv1.AddReplicaRequest]) (*connect.Response[vftv1.AddReplicaResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	if req.Msg.GetId() == "" || req.Msg.GetRaftAddress() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a replica needs an id and an address"))
	}
	err := c.await(ctx, func() raft.Future {
		return c.node.raft.AddVoter(raft.ServerID(req.Msg.GetId()), raft.ServerAddress(req.Msg.GetRaftAddress()), 0, c.cfg.CallTimeout)
	})
	if err != nil {
		return nil, c.fault(err)
	}
	c.log.Info("replica added", "added", req.Msg.GetId(), "address", req.Msg.GetRaftAddress())
	return connect.NewResponse(&vftv1.AddReplicaResponse{}), nil
}

func (c *Coordinator) leaderHint() *vftv1.LeaderHint {
	_, id := c.node.raft.LeaderWithID()
	return &vftv1.LeaderHint{Id: string(id), Address: c.store.replica(string(id))}
}

// fault turns an error into what a client gets.
func (c *Coordinator) fault(err error) error {
	code := connect.CodeUnknown
	switch {
	case errors.Is(err, errNotLeader):
		e := connect.NewError(connect.CodeUnavailable, err)
		if d, derr := connect.NewErrorDetail(c.leaderHint()); derr == nil {
			e.AddDetail(d)
		}
		return e
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, fsm.ErrUnknownJob), errors.Is(err, fsm.ErrUnknownNode):
		code = connect.CodeNotFound
	case errors.Is(err, fsm.ErrToken), errors.Is(err, fsm.ErrExpelled):
		code = connect.CodePermissionDenied
	case errors.Is(err, fsm.ErrJobExists), errors.Is(err, fsm.ErrTaken):
		code = connect.CodeAlreadyExists
	case errors.Is(err, fsm.ErrInvalid):
		code = connect.CodeInvalidArgument
	case errors.Is(err, fsm.ErrVersion):
		code = connect.CodeInternal
	case errors.Is(err, fsm.ErrJobEnded), errors.Is(err, fsm.ErrPhase), errors.Is(err, fsm.ErrEpoch), errors.Is(err, fsm.ErrOperation),
		errors.Is(err, fsm.ErrIncarnation), errors.Is(err, fsm.ErrStale), errors.Is(err, fsm.ErrProof), errors.Is(err, fsm.ErrPinned),
		errors.Is(err, fsm.ErrFilling):
		code = connect.CodeFailedPrecondition
	}
	return connect.NewError(code, err)
}
