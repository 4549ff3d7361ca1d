package coordinator

import (
	"context"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

const sigTerm = 15

// beginStop gives a running program the chance to end by itself, then starts
// the end of the job.
func (k *controller) beginStop(ctx context.Context, job *vftv1.Job) (next, error) {
	if job.GetPhase() == vftv1.JobPhase_JOB_PHASE_RUNNING && !job.GetStopNow() {
		now := k.c.cfg.Now()
		if k.askedToEnd.IsZero() {
			k.askedToEnd = now
			k.background(func() { k.terminate(ctx, job) })
		}
		if left := k.c.cfg.StopGrace - now.Sub(k.askedToEnd); left > 0 {
			return next{after: left}, nil
		}
	}
	_, err := k.begin(ctx, job, &vftv1.BeginOperation{
		Kind: vftv1.OperationKind_OPERATION_KIND_STOP, Incarnation: job.GetIncarnation(), Reason: job.GetStopReason(),
	})
	return next{}, err
}

// terminate sends SIGTERM to the program. When it ends, the client says so.
func (k *controller) terminate(ctx context.Context, job *vftv1.Job) {
	_, err := each(ctx, k.c, k.c.targetOf(job, 0), "signal", k.c.cfg.StopGrace, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.SignalProgram(ctx, connect.NewRequest(&vftv1.SignalProgramRequest{Job: k.id, Incarnation: job.GetIncarnation(), Signal: sigTerm}))
			return struct{}{}, err
		})
	if err != nil {
		k.log.Info("program not told to end", "err", err)
	}
}

// stop ends the guests and removes what the job left on the nodes, but for
// pinned epochs. A node that cannot be reached learns of the end by its next
// heartbeat, and is inspected then.
func (k *controller) stop(ctx context.Context, job *vftv1.Job) (next, error) {
	stage := k.c.unneededStage(job)
	_, err := each(ctx, k.c, k.c.reachable(), "removal", k.c.cfg.CallTimeout, false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.KillGuests(ctx, connect.NewRequest(&vftv1.KillGuestsRequest{Context: k.c.callContext(job), Forget: true, Stage: stage}))
			if err != nil {
				return struct{}{}, err
			}
			_, err = s.DeleteParts(ctx, connect.NewRequest(&vftv1.DeletePartsRequest{Job: k.id, All: true, Keep: pinned(job)}))
			return struct{}{}, err
		})
	if err != nil {
		k.log.Info("job not removed everywhere", "err", err)
	}
	if ctx.Err() != nil {
		return next{}, ctx.Err()
	}
	if err := k.finish(ctx, job, nil); err != nil {
		return next{}, err
	}
	k.log.Info("job ended", "cause", job.GetStopExit().GetCause(), "code", job.GetStopExit().GetCode())
	return next{}, nil
}

// unneededStage is the archive of a job that ends, nil when the job has pinned
// epochs, or another job that has not ended or has some was staged from the same.
func (c *Coordinator) unneededStage(job *vftv1.Job) *vftv1.Blob {
	stage := job.GetSpec().GetStage()
	for _, other := range c.store.jobs() {
		ended := other.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED || other.GetSpec().GetId() == job.GetSpec().GetId()
		if other.GetSpec().GetStage().GetDigest() == stage.GetDigest() && (!ended || len(pinned(other)) > 0) {
			return nil
		}
	}
	return stage
}
