package sidecar

import (
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level"
)

// levelLocal names a node's own copy.
const levelLocal = string(level.KindLocal)

// securePart does this node's share of making a part safe at a level.
func (s *Sidecar) securePart(ctx context.Context, req *vftv1.SecurePartRequest) (*vftv1.SecurePartResponse, error) {
	id := partIDOf(req.GetJob(), req.GetPart())
	switch l, err := level.Parse(req.GetLevel()); {
	case err != nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	case l.Kind == level.KindLocal, l.Kind == level.KindPartner:
		if err := s.cfg.Faults.Hit(ctx, "sidecar.part.before-copy"); err != nil {
			return nil, err
		}
		bytes, err := s.fetchPart(ctx, id, req.GetPart(), req.GetBandwidth())
		return &vftv1.SecurePartResponse{Bytes: bytes}, err
	default:
		bytes, err := s.putPart(ctx, id, req)
		return &vftv1.SecurePartResponse{Bytes: bytes}, err
	}
}

// listParts tells what parts the node has whole.
func (s *Sidecar) listParts(ctx context.Context) (*vftv1.ListPartsResponse, error) {
	jobs, err := s.parts.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	resp := &vftv1.ListPartsResponse{}
	for _, job := range jobs {
		infos, err := s.parts.List(ctx, job)
		if err != nil {
			s.log.Error("parts that cannot be read", "job", job, "err", err)
		}
		for _, i := range infos {
			resp.Parts = append(resp.Parts, &vftv1.HeldPart{
				Job: job, Epoch: i.ID.Epoch, Guest: uint32(i.ID.Guest), Manifest: i.Manifest, Size: i.Size,
				Fresh: s.imported(epochOf{job, i.ID.Epoch}),
			})
		}
	}
	return resp, nil
}

// deleteEpochs removes what the node has of epochs of a job.
func (s *Sidecar) deleteEpochs(ctx context.Context, req *vftv1.DeletePartsRequest) error {
	return s.deleteParts(ctx, req.GetJob(), func(epoch uint64) bool {
		if req.GetAll() {
			return !slices.Contains(req.GetKeep(), epoch)
		}
		return slices.Contains(req.GetEpochs(), epoch)
	})
}

// deleteEpoch removes the parts of one epoch that is given up here.
func (s *Sidecar) deleteEpoch(ctx context.Context, job string, epoch uint64) {
	if err := s.deleteParts(ctx, job, func(e uint64) bool { return e == epoch }); err != nil {
		s.log.Error("deleting parts", "job", job, "epoch", epoch, "err", err)
	}
}

func (s *Sidecar) deleteParts(ctx context.Context, job string, which func(epoch uint64) bool) error {
	if err := ckpt.ValidateJob(job); err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	ids, err := s.parts.Parts(job)
	errs := []error{err}
	for _, id := range ids {
		if which(id.Epoch) {
			errs = append(errs, s.parts.Delete(ctx, id))
			s.collectSoon()
		}
	}
	return errors.Join(errs...)
}

// collectSoon lets the store free what nothing needs, some time from now.
func (s *Sidecar) collectSoon() {
	select {
	case s.garbage <- struct{}{}:
	default: // it is noted already
	}
}

// keepCollecting frees what parts that were deleted took.
func (s *Sidecar) keepCollecting(ctx context.Context) error {
	for {
		select {
		case <-s.garbage:
		case <-ctx.Done():
			return nil
		}
		if _, err := s.collect(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("the store keeps what nothing needs", "err", err)
		}
	}
}

// collect frees what nothing needs and returns how many bytes that were.
func (s *Sidecar) collect(ctx context.Context) (int64, error) {
	c, err := s.parts.Collect(ctx)
	if c.Deleted > 0 {
		s.log.Info("removed packs that nothing needs", "packs", c.Deleted, "rewritten", c.Rewritten, "freed", c.Freed)
	}
	return c.Freed, err
}

// collectStore frees what nothing needs in the node's own store, or at a level
// outside.
func (s *Sidecar) collectStore(ctx context.Context, req *vftv1.CollectStoreRequest) (*vftv1.CollectStoreResponse, error) {
	var freed int64
	var err error
	if l := req.GetLevel(); l != "" {
		freed, err = s.collectOutside(ctx, l)
	} else {
		freed, err = s.collect(ctx)
	}
	return &vftv1.CollectStoreResponse{Freed: freed}, err
}

// storeUsage tells what the node's store takes.
func (s *Sidecar) storeUsage(ctx context.Context) (*vftv1.StoreUsageResponse, error) {
	u, err := s.parts.Usage(ctx)
	if err != nil {
		return nil, err
	}
	jobs, err := s.parts.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	resp := &vftv1.StoreUsageResponse{
		Node: s.cfg.Node.GetId(), Parts: int64(u.Parts), Packs: int64(u.Packs), Objects: u.Objects, StoredBytes: u.StoredBytes, RawBytes: u.RawBytes,
		Blobs: int64(u.Blobs), BlobBytes: u.BlobBytes, Free: u.Free,
	}
	for _, job := range jobs {
		infos, err := s.parts.List(ctx, job)
		if err != nil {
			s.log.Error("parts that cannot be read", "job", job, "err", err)
		}
		of := &vftv1.JobUsage{Job: job, Parts: int64(len(infos))}
		for _, i := range infos {
			of.Bytes += i.Size
			of.Changed += i.Changed
		}
		resp.Jobs = append(resp.Jobs, of)
	}
	return resp, nil
}
