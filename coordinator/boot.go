package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// beginBoot places a new job, waiting a while for nodes that can take it.
func (k *controller) beginBoot(ctx context.Context, job *vftv1.Job) (next, error) {
	k.t.placing.Lock() // until the log knows what is taken
	defer k.t.placing.Unlock()
	p, err := place(placing{spec: job.GetSpec(), nodes: k.c.store.nodes(), used: k.c.used(k.id), avoid: k.avoid})
	if err != nil {
		left := k.waited(k.c.cfg.StartWait)
		if left <= 0 {
			return k.fail(ctx, err.Error())
		}
		return next{after: left, any: true}, nil
	}
	k.waiting = waiting{}
	_, err = k.begin(ctx, job, &vftv1.BeginOperation{
		Kind: vftv1.OperationKind_OPERATION_KIND_BOOT, Incarnation: job.GetIncarnation() + 1,
		Guests: k.c.guests(p), Oversubscribed: p.oversubscribed, Reason: "submitted",
	})
	return next{}, err
}

// waited returns what is left of a wait that begins with the first call.
func (k *controller) waited(limit time.Duration) time.Duration {
	now := k.c.cfg.Now()
	if k.waiting.since.IsZero() {
		k.waiting.since = now
	}
	return limit - now.Sub(k.waiting.since)
}

func (c *Coordinator) guests(p placement) []*vftv1.Guest {
	var out []*vftv1.Guest
	for i, n := range p.nodes {
		g := &vftv1.Guest{Index: uint32(i), Node: n}
		if c.cfg.GuestAddress != nil {
			g.Mac, g.Ip = c.cfg.GuestAddress(g.Index)
		}
		out = append(out, g)
	}
	return out
}

// used is what the guests of all other jobs take of each node.
func (c *Coordinator) used(but string) map[string]demand {
	out := map[string]demand{}
	for _, j := range c.store.jobs() {
		if j.GetSpec().GetId() == but || j.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED {
			continue
		}
		for _, g := range j.GetGuests() {
			d := out[g.GetNode()]
			d.cpus += int64(j.GetSpec().GetCpus())
			d.memory += int64(j.GetSpec().GetMemoryMib())
			out[g.GetNode()] = d
		}
		if to := j.GetOperation().GetMove().GetTo(); to != "" {
			d := out[to]
			d.cpus += int64(j.GetSpec().GetCpus())
			d.memory += int64(j.GetSpec().GetMemoryMib())
			out[to] = d
		}
	}
	return out
}

// boot brings a new job's guests up and starts its program.
func (k *controller) boot(ctx context.Context, job *vftv1.Job) (next, error) {
	if job.GetOperation().GetPhase() == vftv1.OperationPhase_OPERATION_PHASE_RESTORED {
		if err := k.startProgram(ctx, job); err != nil {
			return k.comingUpFailed(ctx, job, err)
		}
		return next{}, k.finish(ctx, job, nil)
	}
	figures, err := k.bootGuests(ctx, job)
	if err != nil {
		return k.comingUpFailed(ctx, job, err)
	}
	return next{}, k.advance(ctx, job, vftv1.OperationPhase_OPERATION_PHASE_RESTORED, figures)
}

// bootGuests boots all guests of the present incarnation. It may be repeated.
func (k *controller) bootGuests(ctx context.Context, job *vftv1.Job) (map[string]int64, error) {
	guarded, release := k.guard(ctx, job)
	defer release()
	limit := time.Duration(job.GetSpec().GetBootTimeout())
	if limit <= 0 {
		limit = 2 * time.Minute
	}
	targets := k.c.targetsOf(job)
	most := 1
	for _, t := range targets {
		most = max(most, len(t.guests))
	}
	out, err := each(guarded, k.c, targets, "boot", limit*time.Duration(most)+2*time.Minute, true,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (*vftv1.BootGuestsResponse, error) {
			r, err := s.BootGuests(ctx, connect.NewRequest(&vftv1.BootGuestsRequest{
				Context: k.c.callContext(job), Spec: job.GetSpec(), Members: k.c.members(job), Peers: k.c.peerAddresses(),
			}))
			if err != nil {
				return nil, err
			}
			return r.Msg, nil
		})
	if err != nil {
		return nil, err
	}
	figures := map[string]int64{}
	for _, r := range out {
		figures["boot"] = max(figures["boot"], r.GetBoot())
		figures["stage"] = max(figures["stage"], r.GetStage())
	}
	return figures, nil
}

// startProgram starts mpirun in guest 0; the sidecar does so once per incarnation.
func (k *controller) startProgram(ctx context.Context, job *vftv1.Job) error {
	guarded, release := k.guard(ctx, job)
	defer release()
	var err error
	for try := range 3 {
		if try > 0 && sleep(guarded, backoff(100*time.Millisecond, try, time.Second)) != nil {
			return fmt.Errorf("%w: %w", errInterrupted, err)
		}
		_, err = each(guarded, k.c, k.c.targetOf(job, 0), "start of the program", 2*k.c.cfg.CallTimeout, true,
			func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
				_, err := s.StartProgram(ctx, connect.NewRequest(&vftv1.StartProgramRequest{Context: k.c.callContext(job), Spec: job.GetSpec()}))
				return struct{}{}, err
			})
		if err == nil || permanent(err) || errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}

func (c *Coordinator) targetOf(job *vftv1.Job, guest uint32) []target {
	for _, g := range job.GetGuests() {
		if g.GetIndex() == guest {
			return []target{{node: g.GetNode(), address: c.store.node(g.GetNode()).GetAddress(), guests: []uint32{guest}}}
		}
	}
	return nil
}

// maxFirstBoots is how often a job that never ran is tried: what fails each
// time will fail again, and the user is waiting.
const maxFirstBoots = 3

// comingUpFailed decides what to do when guests could not be booted, restored
// or continued: the same again with a new incarnation, where possible on other
// nodes, or the end of the job if another try cannot help.
func (k *controller) comingUpFailed(ctx context.Context, job *vftv1.Job, err error) (next, error) {
	if ctx.Err() != nil || errors.Is(err, errInterrupted) {
		return next{}, nil // the next step sees why
	}
	for _, n := range failedNodes(err) {
		k.avoid[n]++
	}
	if permanent(err) {
		return k.fail(ctx, err.Error())
	}
	k.restartFailures++
	if job.GetStartedAt() == 0 && k.restartFailures >= maxFirstBoots {
		return k.fail(ctx, fmt.Sprintf("the guests did not come up in %d attempts: %v", k.restartFailures, err))
	}
	k.restartAfter = k.c.cfg.Now().Add(backoff(k.c.cfg.RestartBackoff, k.restartFailures, 30*time.Second))
	k.log.Warn("guests did not come up", "operation", job.GetOperation().GetId(), "incarnation", job.GetIncarnation(), "err", err)
	k.failed = &failedAttempt{job.GetIncarnation(), loss{reason: fmt.Sprintf("attempt %d failed: %v", job.GetIncarnation(), err)}}
	if e := fsm.FindEpoch(job, job.GetOperation().GetEpoch()); e != nil {
		k.epochFailures[e.GetNumber()]++
		if connect.CodeOf(err) == connect.CodeDataLoss {
			return next{}, k.loseTurn(ctx, e, err.Error())
		}
	}
	return next{}, nil
}

// permanent says that a sidecar found the request itself to be at fault.
func permanent(err error) bool { return connect.CodeOf(err) == connect.CodeInvalidArgument }
