package sidecar

import (
	"context"
	"errors"
	"syscall"

	"connectrpc.com/connect"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/export"
	"github.com/mpirun-vft/vft/ckpt/level/backend"
	"github.com/mpirun-vft/vft/ckpt/level/outside"
	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/quiesce"
)

// Service answers the RPCs of SidecarService for a sidecar.
type Service struct {
	vftv1connect.UnimplementedSidecarServiceHandler
	s *Sidecar
}

// NewService returns the handler for s.
func NewService(s *Sidecar) *Service { return &Service{s: s} }

// coded gives an error the code by which the caller decides what to do.
func coded(err error) error {
	if err == nil {
		return nil
	}
	var already *connect.Error
	code := connect.CodeInternal
	switch {
	case errors.As(err, &already):
		return err
	case errors.Is(err, export.ErrDamaged), errors.Is(err, export.ErrVersion):
		code = connect.CodeInvalidArgument
	case errors.Is(err, ckpt.ErrConflict):
		code = connect.CodeAlreadyExists
	case errors.Is(err, errFenced), errors.Is(err, errOldMove), errors.Is(err, quiesce.ErrStale):
		code = connect.CodeFailedPrecondition
	case errors.Is(err, errNoLevel):
		code = connect.CodeFailedPrecondition
	case errors.Is(err, ckpt.ErrCorrupt), errors.Is(err, object.ErrCorrupt), errors.Is(err, outside.ErrGone):
		code = connect.CodeDataLoss
	case errors.Is(err, errUnknown), errors.Is(err, ckpt.ErrNotFound), errors.Is(err, object.ErrNotFound):
		code = connect.CodeNotFound
	case errors.Is(err, backend.ErrUnreachable), errors.Is(err, backend.ErrLost):
		code = connect.CodeUnavailable
	case errors.Is(err, backend.ErrDenied):
		code = connect.CodePermissionDenied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, backend.ErrNoSpace):
		code = connect.CodeResourceExhausted
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	return connect.NewError(code, err)
}

func reply[T any](msg *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(msg), nil
}

// BootGuests implements the RPC.
func (h *Service) BootGuests(ctx context.Context, req *connect.Request[vftv1.BootGuestsRequest]) (*connect.Response[vftv1.BootGuestsResponse], error) {
	return reply(h.s.bootGuests(ctx, req.Msg))
}

// StartProgram implements the RPC.
func (h *Service) StartProgram(ctx context.Context, req *connect.Request[vftv1.StartProgramRequest]) (*connect.Response[vftv1.StartProgramResponse], error) {
	return reply(&vftv1.StartProgramResponse{}, h.s.startProgram(ctx, req.Msg))
}

// RestoreGuests implements the RPC.
func (h *Service) RestoreGuests(ctx context.Context, req *connect.Request[vftv1.RestoreGuestsRequest]) (*connect.Response[vftv1.RestoreGuestsResponse], error) {
	return reply(h.s.restoreGuests(ctx, req.Msg))
}

// ContinueGuests implements the RPC.
func (h *Service) ContinueGuests(ctx context.Context, req *connect.Request[vftv1.ContinueGuestsRequest]) (*connect.Response[vftv1.ContinueGuestsResponse], error) {
	return reply(h.s.continueGuests(ctx, req.Msg.GetContext()))
}

// KillGuests implements the RPC.
func (h *Service) KillGuests(ctx context.Context, req *connect.Request[vftv1.KillGuestsRequest]) (*connect.Response[vftv1.KillGuestsResponse], error) {
	c := req.Msg.GetContext()
	h.s.killUpTo(c.GetJob(), c.GetIncarnation())
	var err error
	if req.Msg.GetForget() {
		err = errors.Join(h.s.forget(c.GetJob()), h.s.dropBlob(req.Msg.GetStage().GetDigest()))
	}
	return reply(&vftv1.KillGuestsResponse{}, err)
}

// Prepare implements the RPC.
func (h *Service) Prepare(ctx context.Context, req *connect.Request[vftv1.PrepareRequest]) (*connect.Response[vftv1.PrepareResponse], error) {
	inc, err := h.s.admit(req.Msg.GetContext())
	if err == nil {
		err = inc.prepare(ctx, req.Msg.GetEpoch(), req.Msg.GetEngine())
	}
	return reply(&vftv1.PrepareResponse{}, err)
}

// Hold implements the RPC.
func (h *Service) Hold(ctx context.Context, req *connect.Request[vftv1.HoldRequest]) (*connect.Response[vftv1.HoldResponse], error) {
	inc, err := h.s.admit(req.Msg.GetContext())
	if err != nil {
		return nil, coded(err)
	}
	pairs, err := inc.hold(ctx, req.Msg)
	return reply(&vftv1.HoldResponse{Pairs: pairs}, err)
}

// Cut implements the RPC.
func (h *Service) Cut(ctx context.Context, req *connect.Request[vftv1.CutRequest]) (*connect.Response[vftv1.CutResponse], error) {
	inc, err := h.s.admit(req.Msg.GetContext())
	if err != nil {
		return nil, coded(err)
	}
	return reply(inc.cutAll(ctx, req.Msg))
}

// Release implements the RPC.
func (h *Service) Release(ctx context.Context, req *connect.Request[vftv1.ReleaseRequest]) (*connect.Response[vftv1.ReleaseResponse], error) {
	inc, err := h.s.admit(req.Msg.GetContext())
	if err != nil {
		return nil, coded(err)
	}
	cut, err := inc.participant()
	if err != nil {
		return nil, coded(err)
	}
	outcome, err := cut.Release(ctx, req.Msg.GetEpoch())
	return reply(&vftv1.ReleaseResponse{ByOrder: outcome.ByOrder, Hold: int64(outcome.Held)}, err)
}

// WaitParts implements the RPC.
func (h *Service) WaitParts(ctx context.Context, req *connect.Request[vftv1.WaitPartsRequest]) (*connect.Response[vftv1.WaitPartsResponse], error) {
	inc, err := h.s.admit(req.Msg.GetContext())
	if err != nil {
		return nil, coded(err)
	}
	return reply(inc.waitParts(ctx, req.Msg.GetEpoch()))
}

// AbortEpoch implements the RPC.
func (h *Service) AbortEpoch(ctx context.Context, req *connect.Request[vftv1.AbortEpochRequest]) (*connect.Response[vftv1.AbortEpochResponse], error) {
	inc, err := h.s.admit(req.Msg.GetContext())
	switch {
	case errors.Is(err, errUnknown):
		// The guests are gone and with them the hold; parts may be left.
		h.s.deleteEpoch(ctx, req.Msg.GetContext().GetJob(), req.Msg.GetEpoch())
		err = nil
	case err == nil:
		err = inc.abortEpoch(ctx, req.Msg.GetEpoch())
	}
	return reply(&vftv1.AbortEpochResponse{}, err)
}

// PrepareMove implements the RPC.
func (h *Service) PrepareMove(ctx context.Context, req *connect.Request[vftv1.PrepareMoveRequest]) (*connect.Response[vftv1.PrepareMoveResponse], error) {
	return reply(h.s.prepareMove(ctx, req.Msg))
}

// CutMove implements the RPC.
func (h *Service) CutMove(ctx context.Context, req *connect.Request[vftv1.CutMoveRequest]) (*connect.Response[vftv1.CutMoveResponse], error) {
	return reply(h.s.cutMove(ctx, req.Msg))
}

// FinishMove implements the RPC.
func (h *Service) FinishMove(ctx context.Context, req *connect.Request[vftv1.FinishMoveRequest]) (*connect.Response[vftv1.FinishMoveResponse], error) {
	return reply(h.s.finishMove(ctx, req.Msg))
}

// AbortMove implements the RPC.
func (h *Service) AbortMove(ctx context.Context, req *connect.Request[vftv1.AbortMoveRequest]) (*connect.Response[vftv1.AbortMoveResponse], error) {
	return reply(&vftv1.AbortMoveResponse{}, h.s.abortMove(ctx, req.Msg))
}

// DeleteParts implements the RPC.
func (h *Service) DeleteParts(ctx context.Context, req *connect.Request[vftv1.DeletePartsRequest]) (*connect.Response[vftv1.DeletePartsResponse], error) {
	return reply(&vftv1.DeletePartsResponse{}, h.s.deleteEpochs(ctx, req.Msg))
}

// SecurePart implements the RPC.
func (h *Service) SecurePart(ctx context.Context, req *connect.Request[vftv1.SecurePartRequest]) (*connect.Response[vftv1.SecurePartResponse], error) {
	return reply(h.s.securePart(ctx, req.Msg))
}

// ListParts implements the RPC.
func (h *Service) ListParts(ctx context.Context, _ *connect.Request[vftv1.ListPartsRequest]) (*connect.Response[vftv1.ListPartsResponse], error) {
	return reply(h.s.listParts(ctx))
}

// RemoveEpochs implements the RPC.
func (h *Service) RemoveEpochs(ctx context.Context, req *connect.Request[vftv1.RemoveEpochsRequest]) (*connect.Response[vftv1.RemoveEpochsResponse], error) {
	return reply(&vftv1.RemoveEpochsResponse{}, h.s.removeEpochs(ctx, req.Msg))
}

// SignalProgram implements the RPC.
func (h *Service) SignalProgram(ctx context.Context, req *connect.Request[vftv1.SignalProgramRequest]) (*connect.Response[vftv1.SignalProgramResponse], error) {
	g, err := h.program(req.Msg.GetJob(), req.Msg.GetIncarnation())
	if err == nil {
		_, err = g.agent.Signal(ctx, connect.NewRequest(&agentv1.SignalRequest{Id: programID, Signal: req.Msg.GetSignal()}))
	}
	return reply(&vftv1.SignalProgramResponse{}, err)
}

// program returns the guest in which mpirun runs.
func (h *Service) program(job string, incarnation uint64) (*guestVM, error) {
	inc, err := h.s.enter(job, incarnation, nil)
	if err != nil {
		return nil, err
	}
	return inc.guest(0)
}

// Collect implements the RPC.
func (h *Service) Collect(ctx context.Context, req *connect.Request[vftv1.CollectRequest], stream *connect.ServerStream[vftv1.CollectResponse]) error {
	inc, err := h.s.enter(req.Msg.GetJob(), req.Msg.GetIncarnation(), nil)
	if err != nil {
		return coded(err)
	}
	g, err := inc.guest(req.Msg.GetGuest())
	if err != nil {
		return coded(err)
	}
	w := &messageWriter{send: func(p []byte) error { return stream.Send(&vftv1.CollectResponse{Data: p}) }}
	done, err := g.agent.CollectTar(ctx, inc.spec.GetDir(), req.Msg.GetToken(), w)
	if err != nil {
		return coded(err)
	}
	return stream.Send(&vftv1.CollectResponse{Token: done.GetToken()})
}

// PutBlob implements the RPC.
func (h *Service) PutBlob(ctx context.Context, stream *connect.ClientStream[vftv1.PutBlobRequest]) (*connect.Response[vftv1.PutBlobResponse], error) {
	if !stream.Receive() {
		return nil, coded(firstMissing(stream.Err()))
	}
	blob := stream.Msg().GetBlob()
	h.s.noteUpload(blob.GetDigest())
	existed, err := h.s.blobs.Put(ctx, blob.GetDigest(), blob.GetSize(), &messageReader{
		rest: stream.Msg().GetData(),
		next: func() ([]byte, error) {
			if !stream.Receive() {
				return nil, endOf(stream.Err())
			}
			return stream.Msg().GetData(), nil
		},
	})
	return reply(&vftv1.PutBlobResponse{Existed: existed}, err)
}

func firstMissing(err error) error {
	if err != nil {
		return err
	}
	return connect.NewError(connect.CodeInvalidArgument, errors.New("the stream ended before its first message"))
}

// GetBlob implements the RPC.
func (h *Service) GetBlob(ctx context.Context, req *connect.Request[vftv1.GetBlobRequest], stream *connect.ServerStream[vftv1.GetBlobResponse]) (err error) {
	r, err := h.s.blobs.Open(ctx, req.Msg.GetBlob().GetDigest())
	if err != nil {
		return connect.NewError(connect.CodeNotFound, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	w := &messageWriter{send: func(p []byte) error { return stream.Send(&vftv1.GetBlobResponse{Data: p}) }}
	return coded(copyChunks(w, r))
}

// GetManifest implements the RPC.
func (h *Service) GetManifest(ctx context.Context, req *connect.Request[vftv1.GetManifestRequest]) (*connect.Response[vftv1.GetManifestResponse], error) {
	return reply(h.s.sendManifest(ctx, req.Msg))
}

// GetObjects implements the RPC.
func (h *Service) GetObjects(ctx context.Context, req *connect.Request[vftv1.GetObjectsRequest], stream *connect.ServerStream[vftv1.GetObjectsResponse]) error {
	return coded(h.s.sendObjects(ctx, req.Msg, stream.Send))
}

// ExportEpoch implements the RPC.
func (h *Service) ExportEpoch(ctx context.Context, req *connect.Request[vftv1.ExportEpochRequest], stream *connect.ServerStream[vftv1.ExportEpochResponse]) error {
	return coded(h.s.exportEpoch(ctx, req.Msg, func(p []byte) error { return stream.Send(&vftv1.ExportEpochResponse{Data: p}) }))
}

// ImportFile implements the RPC.
func (h *Service) ImportFile(ctx context.Context, stream *connect.ClientStream[vftv1.ImportFileRequest]) (*connect.Response[vftv1.ImportFileResponse], error) {
	return reply(h.s.importFile(ctx, &messageReader{next: func() ([]byte, error) {
		if !stream.Receive() {
			return nil, endOf(stream.Err())
		}
		return stream.Msg().GetData(), nil
	}}))
}

// StoreUsage implements the RPC.
func (h *Service) StoreUsage(ctx context.Context, _ *connect.Request[vftv1.StoreUsageRequest]) (*connect.Response[vftv1.StoreUsageResponse], error) {
	return reply(h.s.storeUsage(ctx))
}

// VerifyPart implements the RPC.
func (h *Service) VerifyPart(ctx context.Context, req *connect.Request[vftv1.VerifyPartRequest]) (*connect.Response[vftv1.VerifyPartResponse], error) {
	return reply(h.s.verifyPart(ctx, req.Msg))
}

// CollectStore implements the RPC.
func (h *Service) CollectStore(ctx context.Context, req *connect.Request[vftv1.CollectStoreRequest]) (*connect.Response[vftv1.CollectStoreResponse], error) {
	return reply(h.s.collectStore(ctx, req.Msg))
}

// NodeInfo implements the RPC.
func (h *Service) NodeInfo(context.Context, *connect.Request[vftv1.NodeInfoRequest]) (*connect.Response[vftv1.NodeInfoResponse], error) {
	st := h.s.status()
	return connect.NewResponse(&vftv1.NodeInfoResponse{Node: st.GetNode(), Guests: st.GetGuests()}), nil
}
