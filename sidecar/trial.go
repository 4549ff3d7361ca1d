package sidecar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/vm"
)

// tryPart restores a part into a guest that has no network, never runs, and is
// thrown away: bytes that are what they were may still be something that QEMU
// here does not load. A node does one at a time. Codes to decide on:
// failed_precondition, it does not load; resource_exhausted, there is no memory
// to find out.
func (s *Sidecar) tryPart(ctx context.Context, req *vftv1.VerifyPartRequest) (*vftv1.VerifyPartResponse, error) {
	select {
	case s.trial <- struct{}{}:
		defer func() { <-s.trial }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	begun := time.Now()
	if err := s.roomFor(req.GetBoot()); err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	id := partIDOf(req.GetJob(), req.GetPart())
	from := s.holders(id, req.GetPart(), 0)
	p, err := s.parts.OpenFrom(ctx, id, req.GetPart().GetManifest(), from)
	if err != nil {
		return nil, from.explain(ctx, id, err)
	}
	defer p.Close()
	err = s.try(ctx, req.GetBoot(), id, p)
	var load *vm.RestoreError
	var other *vm.CompatError
	switch {
	case err == nil:
		return &vftv1.VerifyPartResponse{Bytes: p.Info().Size, Took: int64(time.Since(begun))}, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, ckpt.ErrCorrupt):
	case errors.As(err, &load), errors.As(err, &other):
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return nil, from.explain(ctx, id, err)
}

func (s *Sidecar) try(ctx context.Context, job *vftv1.JobSpec, id ckpt.PartID, p *ckpt.Part) (err error) {
	spec, err := s.machineSpec(job, uint32(id.Guest))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.cfg.Run, "t")
	if err != nil {
		return fmt.Errorf("making the guest's directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	spec.Name, spec.Dir, spec.KillWithParent = fmt.Sprintf("trial-%s-%d", id.Job, id.Guest), dir, true
	if spec, err = s.likeSaved(spec, p); err != nil {
		return err
	}
	if _, err := p.ChannelState(ctx); err != nil {
		return err
	}
	m, err := vm.Restore(ctx, spec, savedPart{p}, vm.RestorePlain, s.machineOptions())
	if err != nil {
		return err
	}
	_, err = m.Status(ctx) // it must still be there
	return errors.Join(err, m.Kill(context.WithoutCancel(ctx)), m.Close())
}

// trialReserve is the share of a trial guest's memory that must be free besides:
// what QEMU takes itself, and what others ask for meanwhile.
const trialReserve = 8

// roomFor fails when the machine has no memory for one more guest of a job.
func (s *Sidecar) roomFor(job *vftv1.JobSpec) error {
	if s.cfg.FreeMemory == nil {
		return nil
	}
	free, err := s.cfg.FreeMemory()
	if err != nil {
		return fmt.Errorf("finding out how much memory is free: %w", err)
	}
	guest := uint64(job.GetMemoryMib())
	if need := guest + guest/trialReserve; free < need {
		return fmt.Errorf("node %s has no memory for a guest to try the checkpoint in: %d MiB are free, a guest of %d MiB needs %d: wait until guests there have ended, or free some",
			s.cfg.Node.GetId(), free, guest, need)
	}
	return nil
}
