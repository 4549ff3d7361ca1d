package coordinator

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/coordinator/fsm"
)

// defaultKeep is how many of the newest committed epochs are kept.
const defaultKeep = 2

// retired returns the committed epochs that need not be kept. Kept are, of
// those that are not damaged: the newest so many, the newest of each of the
// last so many hours, the newest that is safe at each level, the one that the
// guests were restored from until they have been saved again (they may still
// read from it), and those that are on their way to a level (busy); and all
// that are pinned.
func retired(job *vftv1.Job, now time.Time, busy map[uint64]bool) []uint64 {
	ended := job.GetPhase() == vftv1.JobPhase_JOB_PHASE_ENDED
	spec := job.GetSpec()
	left := int(orElse(int64(spec.GetKeep()), defaultKeep))
	hours := map[int64]bool{}
	levels := map[string]bool{}
	anyGood := false
	saved := false // in the present incarnation
	var gone []uint64
	for _, e := range slices.Backward(job.GetEpochs()) {
		if e.GetState() != vftv1.EpochState_EPOCH_STATE_COMMITTED {
			continue
		}
		saved = saved || e.GetIncarnation() == job.GetIncarnation()
		keep := e.GetPin() != "" || e.GetNumber() == job.GetOperation().GetEpoch() || e.GetNumber() == job.GetRestoredFrom() && !saved
		switch {
		case ended || !fsm.Eligible(job, e):
		case e.GetDamaged() != "":
			keep = keep || !anyGood // perhaps it can be mended
		default:
			anyGood = true
			keep = keep || left > 0 || busy[e.GetNumber()]
			left--
			hour := e.GetEndedAt() / int64(time.Hour)
			if !hours[hour] && hour > now.UnixNano()/int64(time.Hour)-int64(spec.GetKeepHourly()) {
				hours[hour], keep = true, true
			}
			for _, l := range e.GetLevels() {
				if l.GetState() == vftv1.LevelState_LEVEL_STATE_SAFE && !levels[l.GetLevel()] {
					levels[l.GetLevel()], keep = true, true
				}
			}
		}
		if !keep {
			gone = append(gone, e.GetNumber())
		}
	}
	slices.Reverse(gone)
	return gone
}

// retire forgets epochs, first in the log, then on the nodes.
func (k *keeper) retire(ctx context.Context, epochs []uint64) error {
	for _, n := range epochs {
		_, err := k.c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_DeleteEpoch{DeleteEpoch: &vftv1.DeleteEpoch{Job: k.id, Epoch: n, Quiet: true}}})
		if err != nil {
			return err
		}
	}
	k.calls.Go(func() { k.c.cleanUp(ctx, k.id, epochs) })
	return nil
}

// cleanUp removes what nodes have of epochs that were deleted, and with the
// last one of a job that has ended all that is left of the job.
func (c *Coordinator) cleanUp(ctx context.Context, id string, epochs []uint64) {
	c.deleteParts(ctx, &vftv1.DeletePartsRequest{Job: id, Epochs: epochs}, c.reachable())
	job := c.store.job(id)
	if job.GetPhase() != vftv1.JobPhase_JOB_PHASE_ENDED || fsm.LastCommitted(job) != nil {
		return
	}
	stage := c.unneededStage(job)
	_, err := each(ctx, c, c.reachable(), "removal", c.cfg.CallTimeout, false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.KillGuests(ctx, connect.NewRequest(&vftv1.KillGuestsRequest{Context: c.callContext(job), Forget: true, Stage: stage}))
			return struct{}{}, err
		})
	if err != nil {
		c.log.Info("job not removed everywhere", "job", id, "err", err)
	}
}

// deleteParts has nodes remove parts. One that does not hear it is told when
// it is inspected.
func (c *Coordinator) deleteParts(ctx context.Context, req *vftv1.DeletePartsRequest, targets []target) {
	_, err := each(ctx, c, targets, "delete", c.cfg.CallTimeout, false,
		func(ctx context.Context, s vftv1connect.SidecarServiceClient, _ target) (struct{}, error) {
			_, err := s.DeleteParts(ctx, connect.NewRequest(req))
			return struct{}{}, err
		})
	if err != nil {
		c.log.Info("parts not deleted everywhere", "job", req.GetJob(), "epochs", req.GetEpochs(), "err", err)
	}
}

// pinned returns the numbers of a job's pinned epochs.
func pinned(job *vftv1.Job) []uint64 {
	var out []uint64
	for _, e := range job.GetEpochs() {
		if e.GetPin() != "" {
			out = append(out, e.GetNumber())
		}
	}
	return out
}

// hasParts says whether there may be parts of an epoch: the job has it, is
// taking it, or may take it before this replica knows.
func hasParts(job *vftv1.Job, epoch uint64) bool {
	switch fsm.FindEpoch(job, epoch).GetState() {
	case vftv1.EpochState_EPOCH_STATE_GATHERING, vftv1.EpochState_EPOCH_STATE_COMMITTED:
		return true
	default:
		return epoch >= job.GetNextEpoch() && job != nil
	}
}
