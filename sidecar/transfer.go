package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/internal/access"
)

// Epochs leave a cluster and come into one as export files (docs/CKPT.md). This
// node does not know whose a job is that has no guests here: the leader does.

// callerOf names who makes a call, for the leader.
func callerOf(ctx context.Context) string {
	if who := access.From(ctx); who != (access.Identity{}) {
		return who.String()
	}
	return ""
}

// exportEpoch sends an epoch as a file. What this node lacks comes from others.
func (s *Sidecar) exportEpoch(ctx context.Context, req *vftv1.ExportEpochRequest, send func([]byte) error) error {
	begun := time.Now()
	a, err := s.cfg.Leader.AdmitExport(ctx, &vftv1.AdmitExportRequest{Id: req.GetJob(), Epoch: req.GetEpoch(), Caller: callerOf(ctx)})
	if err != nil {
		return err
	}
	job, err := proto.Marshal(a.GetExport())
	if err != nil {
		return fmt.Errorf("encoding what the file says of the job: %w", err)
	}
	var parts []ckpt.Exported
	for _, p := range a.GetParts() {
		id := partIDOf(req.GetJob(), p)
		parts = append(parts, ckpt.Exported{ID: id, Manifest: p.GetManifest(), From: s.holders(id, p, 0)})
	}
	var blobs []string
	if stage := a.GetExport().GetSpec().GetStage(); stage.GetDigest() != "" {
		had, err := s.blobs.Has(stage.GetDigest())
		if err != nil {
			return err
		}
		if err := s.fetchBlob(ctx, stage, a.GetPeers()); err != nil {
			return err
		}
		if !had {
			defer func() {
				if err := s.dropBlob(stage.GetDigest()); err != nil {
					s.log.Warn("an archive that was only sent on stays", "blob", stage.GetDigest(), "err", err)
				}
			}()
		}
		blobs = append(blobs, stage.GetDigest())
	}
	w := bufio.NewWriterSize(&messageWriter{send: send}, chunkSize)
	size, err := s.parts.Export(ctx, w, job, parts, blobs)
	if err == nil {
		err = w.Flush()
	}
	var none *noHolder
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &none) && none.lost && len(none.errs) > 0:
		return connect.NewError(connect.CodeDataLoss, err)
	case errors.As(err, &none):
		return connect.NewError(connect.CodeUnavailable, err)
	default:
		return err
	}
	s.log.Info("epoch exported", "job", req.GetJob(), "epoch", req.GetEpoch(), "bytes", size, "took", time.Since(begun), "to", callerOf(ctx))
	return nil
}

// importFile takes an export file. Its parts count here when the leader has been
// told, which is the caller's to do.
func (s *Sidecar) importFile(ctx context.Context, r io.Reader) (*vftv1.ImportFileResponse, error) {
	begun := time.Now()
	e := &vftv1.Export{}
	infos, err := s.parts.Import(ctx, r, func(job []byte) (ckpt.Contents, error) {
		if err := proto.Unmarshal(job, e); err != nil {
			return ckpt.Contents{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("what the file says of the job cannot be read: %w", err))
		}
		c, err := contentsOf(e)
		if err != nil {
			return ckpt.Contents{}, connect.NewError(connect.CodeInvalidArgument, err)
		}
		if _, err := s.cfg.Leader.AdmitImport(ctx, &vftv1.AdmitImportRequest{Export: e, Caller: callerOf(ctx)}); err != nil {
			return ckpt.Contents{}, err
		}
		return c, nil
	}, func() {
		s.noteImport(epochOf{e.GetSpec().GetId(), e.GetEpoch().GetNumber()})
		if digest := e.GetSpec().GetStage().GetDigest(); digest != "" {
			s.noteUpload(digest)
		}
	})
	if err != nil {
		s.collectSoon() // what had come already
		return nil, err
	}
	s.log.Info("epoch imported", "job", e.GetSpec().GetId(), "epoch", e.GetEpoch().GetNumber(), "parts", len(infos), "took", time.Since(begun), "from", callerOf(ctx))
	return &vftv1.ImportFileResponse{Export: e, Node: s.cfg.Node.GetId()}, nil
}

// contentsOf is what the file of an epoch must have.
func contentsOf(e *vftv1.Export) (ckpt.Contents, error) {
	c := ckpt.Contents{Parts: map[ckpt.PartID]string{}, Blobs: map[string]int64{}}
	spec, epoch := e.GetSpec(), e.GetEpoch()
	if len(epoch.GetParts()) != len(spec.GetGuests()) || len(epoch.GetParts()) == 0 {
		return c, fmt.Errorf("the file is of a job with %d guests and an epoch with %d parts", len(spec.GetGuests()), len(epoch.GetParts()))
	}
	for i, p := range epoch.GetParts() {
		id := ckpt.PartID{Job: spec.GetId(), Epoch: epoch.GetNumber(), Guest: int(p.GetGuest())}
		if err := errors.Join(id.Validate(), ckpt.ValidateDigest(p.GetManifest())); err != nil {
			return c, err
		}
		if int(p.GetGuest()) != i {
			return c, fmt.Errorf("part %d of the epoch is of guest %d", i, p.GetGuest())
		}
		c.Parts[id] = p.GetManifest()
	}
	if stage := spec.GetStage(); stage.GetDigest() != "" {
		if err := ckpt.ValidateDigest(stage.GetDigest()); err != nil {
			return c, err
		}
		c.Blobs[stage.GetDigest()] = stage.GetSize()
	}
	return c, nil
}

// epochOf names an epoch.
type epochOf struct {
	job   string
	epoch uint64
}

// noteImport remembers that parts of an epoch are here that the leader may not
// have heard of yet.
func (s *Sidecar) noteImport(e epochOf) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, at := range s.imports {
		if time.Since(at) > uploadGrace {
			delete(s.imports, other)
		}
	}
	s.imports[e] = time.Now()
}

// imported says whether an epoch was imported of late.
func (s *Sidecar) imported(e epochOf) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.imports[e]
	return ok && time.Since(at) <= uploadGrace
}
