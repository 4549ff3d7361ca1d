package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

type service = vftv1connect.CoordinatorServiceClient

// SubmitJob hands a job in; repeating it with the same id changes nothing.
func (c *Client) SubmitJob(ctx context.Context, spec *vftv1.JobSpec) (*vftv1.Job, error) {
	r, err := call(ctx, c, "submitting the job", c.cfg.Attempt, &vftv1.SubmitJobRequest{Spec: spec}, service.SubmitJob)
	return r.GetJob(), err
}

// GetJob returns a job by its id or a unique prefix of it.
func (c *Client) GetJob(ctx context.Context, id string) (*vftv1.Job, error) {
	r, err := call(ctx, c, "reading the job", c.cfg.Attempt, &vftv1.GetJobRequest{Id: id}, service.GetJob)
	return r.GetJob(), err
}

// ListJobs returns all jobs, without events.
func (c *Client) ListJobs(ctx context.Context) ([]*vftv1.Job, error) {
	r, err := call(ctx, c, "listing jobs", c.cfg.Attempt, &vftv1.ListJobsRequest{}, service.ListJobs)
	return r.GetJobs(), err
}

// StopJob ends a job; now: without letting the program end by itself first.
func (c *Client) StopJob(ctx context.Context, id, reason string, now bool) error {
	_, err := call(ctx, c, "stopping the job", c.cfg.Attempt, &vftv1.StopJobRequest{Id: id, Reason: reason, Now: now}, service.StopJob)
	return err
}

// RestartJob restarts a job from its last committed checkpoint.
func (c *Client) RestartJob(ctx context.Context, id string) error {
	_, err := call(ctx, c, "restarting the job", c.cfg.Attempt, &vftv1.RestartJobRequest{Id: id}, service.RestartJob)
	return err
}

// FinishJob reports that mpirun ended in an incarnation and that its output
// and files were taken. Not accepted: that incarnation is over and the job
// goes on in a newer one.
func (c *Client) FinishJob(ctx context.Context, id string, incarnation uint64, exit *vftv1.Exit) (accepted bool, err error) {
	r, err := call(ctx, c, "finishing the job", c.cfg.Attempt, &vftv1.FinishJobRequest{Id: id, Incarnation: incarnation, Exit: exit}, service.FinishJob)
	return r.GetAccepted(), err
}

// RenewClient keeps a client-bound job alive for the time returned.
func (c *Client) RenewClient(ctx context.Context, id string) (time.Duration, error) {
	r, err := call(ctx, c, "renewing the client's lease", c.cfg.Attempt, &vftv1.RenewClientRequest{Id: id}, service.RenewClient)
	return time.Duration(r.GetLease()), err
}

// TakeCheckpoint takes a checkpoint and returns when it is committed or
// aborted. Only ctx bounds it.
func (c *Client) TakeCheckpoint(ctx context.Context, id string) (*vftv1.Epoch, error) {
	r, err := call(ctx, c, "taking a checkpoint", 0, &vftv1.TakeCheckpointRequest{Id: id}, service.TakeCheckpoint)
	return r.GetEpoch(), err
}

// SuspendJob has a job take a checkpoint and give its nodes back, and returns
// when it has. Only ctx bounds it.
func (c *Client) SuspendJob(ctx context.Context, id, reason string) (*vftv1.Job, error) {
	r, err := call(ctx, c, "suspending the job", 0, &vftv1.SuspendJobRequest{Id: id, Reason: reason}, service.SuspendJob)
	return r.GetJob(), err
}

// ContinueJob has a suspended job go on, on the nodes named or on any. It does
// not wait.
func (c *Client) ContinueJob(ctx context.Context, id string, nodes []string) (*vftv1.Job, error) {
	r, err := call(ctx, c, "having the job go on", c.cfg.Attempt, &vftv1.ContinueJobRequest{Id: id, Nodes: nodes}, service.ContinueJob)
	return r.GetJob(), err
}

// MigrateGuest moves a guest of a running job to another node, "" whichever
// suits, and returns the event that tells how it went. Only ctx bounds it.
func (c *Client) MigrateGuest(ctx context.Context, id string, guest uint32, to, reason string, cold bool) (*vftv1.Event, error) {
	r, err := call(ctx, c, "migrating the guest", 0, &vftv1.MigrateGuestRequest{Id: id, Guest: guest, To: to, Cold: cold, Reason: reason}, service.MigrateGuest)
	return r.GetEvent(), err
}

// DrainNode has all guests moved away from a node and none placed there. It
// does not wait: asked again, it says which guests are still there.
func (c *Client) DrainNode(ctx context.Context, node, reason string) (*vftv1.DrainNodeResponse, error) {
	return call(ctx, c, "draining the node", c.cfg.Attempt, &vftv1.DrainNodeRequest{Node: node, Reason: reason}, service.DrainNode)
}

// CreateToken lets somebody enrol with a token whose id and digest are given.
func (c *Client) CreateToken(ctx context.Context, req *vftv1.CreateTokenRequest) (*vftv1.CreateTokenResponse, error) {
	return call(ctx, c, "making the token", c.cfg.Attempt, req, service.CreateToken)
}

// ExpelNode ends a node's membership, for ever.
func (c *Client) ExpelNode(ctx context.Context, node, reason string) error {
	_, err := call(ctx, c, "expelling the node", 0, &vftv1.ExpelNodeRequest{Node: node, Reason: reason}, service.ExpelNode)
	return err
}

// UndrainNode ends what DrainNode began.
func (c *Client) UndrainNode(ctx context.Context, node string) (*vftv1.DrainNodeResponse, error) {
	return call(ctx, c, "using the node again", c.cfg.Attempt, &vftv1.DrainNodeRequest{Node: node, Undrain: true}, service.DrainNode)
}

// PublishPort has a port of the node that carries the job's gateway lead to a
// guest, or ends that. The gateway follows with its node's next heartbeat.
func (c *Client) PublishPort(ctx context.Context, id string, port *vftv1.PublishedPort, remove bool) (*vftv1.Job, error) {
	r, err := call(ctx, c, "publishing the port", c.cfg.Attempt, &vftv1.PublishPortRequest{Id: id, Port: port, Remove: remove}, service.PublishPort)
	return r.GetJob(), err
}

// DeleteEpoch removes a checkpoint; last allows removing the only one that a
// job which has not ended can restart from, pinned one that is pinned.
func (c *Client) DeleteEpoch(ctx context.Context, id string, epoch uint64, last, pinned bool) error {
	_, err := call(ctx, c, "deleting the checkpoint", 0, &vftv1.DeleteEpochRequest{Id: id, Epoch: epoch, Last: last, Pinned: pinned}, service.DeleteEpoch)
	return err
}

// PinEpoch keeps a checkpoint under a name until it is unpinned; an empty name
// unpins it.
func (c *Client) PinEpoch(ctx context.Context, id string, epoch uint64, name string) (*vftv1.Epoch, error) {
	r, err := call(ctx, c, "pinning the checkpoint", c.cfg.Attempt, &vftv1.PinEpochRequest{Id: id, Epoch: epoch, Name: name}, service.PinEpoch)
	return r.GetEpoch(), err
}

// VerifyEpoch has every copy of a checkpoint's parts read and what is damaged
// repaired from another one; boot: also every guest restored into one that is
// thrown away. Only ctx bounds it.
func (c *Client) VerifyEpoch(ctx context.Context, id string, epoch uint64, boot bool) ([]*vftv1.Verdict, error) {
	r, err := call(ctx, c, "verifying the checkpoint", 0, &vftv1.VerifyEpochRequest{Id: id, Epoch: epoch, Boot: boot}, service.VerifyEpoch)
	return r.GetVerdicts(), err
}

// AdmitExport tells a node whether somebody may have an epoch, and where its
// parts are.
func (c *Client) AdmitExport(ctx context.Context, req *vftv1.AdmitExportRequest) (*vftv1.AdmitExportResponse, error) {
	return call(ctx, c, "asking for the checkpoint", c.cfg.Attempt, req, service.AdmitExport)
}

// AdmitImport tells a node whether somebody may bring an epoch in.
func (c *Client) AdmitImport(ctx context.Context, req *vftv1.AdmitImportRequest) (*vftv1.AdmitImportResponse, error) {
	return call(ctx, c, "asking whether the checkpoint may be imported", c.cfg.Attempt, req, service.AdmitImport)
}

// ImportEpoch makes an epoch known whose parts a node has imported.
func (c *Client) ImportEpoch(ctx context.Context, e *vftv1.Export, node string) (*vftv1.Job, error) {
	r, err := call(ctx, c, "importing the checkpoint", c.cfg.Attempt, &vftv1.ImportEpochRequest{
		Spec: e.GetSpec(), Incarnation: e.GetIncarnation(), Epoch: e.GetEpoch(), Node: node,
	}, service.ImportEpoch)
	return r.GetJob(), err
}

// ResumeJob has a job that has ended go on from one of its epochs, on the nodes
// named as far as they have room. It does not wait. The token is the same when
// the caller asks again.
func (c *Client) ResumeJob(ctx context.Context, id string, epoch uint64, nodes []string, token string) (*vftv1.Job, error) {
	r, err := call(ctx, c, "resuming the job", c.cfg.Attempt, &vftv1.ResumeJobRequest{Id: id, Epoch: epoch, Nodes: nodes, Token: token}, service.ResumeJob)
	return r.GetJob(), err
}

// CollectGarbage has all nodes free what no checkpoint needs. Only ctx bounds it.
func (c *Client) CollectGarbage(ctx context.Context) ([]*vftv1.Collection, error) {
	r, err := call(ctx, c, "collecting garbage", 0, &vftv1.CollectGarbageRequest{}, service.CollectGarbage)
	return r.GetCollections(), err
}

// ListScores returns how often the alarms of each health rule were right.
func (c *Client) ListScores(ctx context.Context) ([]*vftv1.RuleStanding, error) {
	r, err := call(ctx, c, "listing scores", c.cfg.Attempt, &vftv1.ListScoresRequest{}, service.ListScores)
	return r.GetRules(), err
}

// ListNodes returns the nodes and how many guests each has.
func (c *Client) ListNodes(ctx context.Context) (*vftv1.ListNodesResponse, error) {
	return call(ctx, c, "listing nodes", c.cfg.Attempt, &vftv1.ListNodesRequest{}, service.ListNodes)
}

// Status asks the replica at address about itself, "" whichever answers.
func (c *Client) Status(ctx context.Context, address string) (*vftv1.StatusResponse, error) {
	if address == "" {
		return call(ctx, c, "asking for the status", c.cfg.Attempt, &vftv1.StatusRequest{}, service.Status)
	}
	c.mu.Lock()
	client := c.clients[address]
	if client == nil {
		client = c.cfg.Dial(address)
		c.clients[address] = client
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Attempt)
	defer cancel()
	r, err := client.Status(ctx, connect.NewRequest(&vftv1.StatusRequest{}))
	if err != nil {
		return nil, fmt.Errorf("asking %s for its status: %w", address, err)
	}
	return r.Msg, nil
}

// WatchJob calls see with the job as it is and after every change, each event
// once and in order, also across broken connections and new leaders. It
// returns nil once the job has ended and everything was seen, and see's error
// if it returns one.
func (c *Client) WatchJob(ctx context.Context, id string, since uint64, see func(*vftv1.WatchJobResponse) error) error {
	s := c.search()
	ended := false
	for {
		address, client := c.target()
		if client == nil {
			return fmt.Errorf("watching the job: %w: no address is configured", ErrUnreachable)
		}
		err := func() error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := client.WatchJob(ctx, connect.NewRequest(&vftv1.WatchJobRequest{Id: id, Since: since}))
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				s.progress()
				m := stream.Msg()
				job := m.GetJob()
				fresh := job.GetEvents()
				for len(fresh) > 0 && fresh[0].GetNumber() <= since {
					fresh = fresh[1:]
				}
				if job != nil {
					job.Events = fresh
				}
				if n := len(fresh); n > 0 {
					since = fresh[n-1].GetNumber()
				}
				if err := see(m); err != nil {
					return &seen{err}
				}
				if ended = job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED; ended {
					return nil
				}
			}
			return stream.Err()
		}()
		var stop *seen
		switch {
		case errors.As(err, &stop):
			return stop.err
		case ended:
			return nil
		case err == nil:
			err = connect.NewError(connect.CodeUnavailable, fmt.Errorf("%s closed the stream", address))
		}
		if err := s.again(ctx, address, err); err != nil {
			return fmt.Errorf("watching the job: %w", err)
		}
	}
}

// seen carries the callback's error past those of the stream.
type seen struct{ err error }

func (s *seen) Error() string { return s.err.Error() }
