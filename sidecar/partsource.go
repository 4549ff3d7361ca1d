package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/ckpt/level/outside"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// fetchPart makes sure that the node holds a whole copy of a part, reading at
// most so many bytes per second from other nodes and levels outside if there is
// a limit, and returns how many bytes came. The error has the code data_loss
// when all who should have it answered that they have not.
func (s *Sidecar) fetchPart(ctx context.Context, id ckpt.PartID, src *vftv1.PartSource, bandwidth int64) (int64, error) {
	from := s.holders(id, src, bandwidth)
	_, moved, err := s.parts.Fetch(ctx, id, src.GetManifest(), from)
	if err != nil {
		return moved.Bytes, from.explain(ctx, id, err)
	}
	return moved.Bytes, nil
}

// verifyPart reads every byte of a part and takes what is damaged from others.
func (s *Sidecar) verifyPart(ctx context.Context, req *vftv1.VerifyPartRequest) (*vftv1.VerifyPartResponse, error) {
	if req.GetBoot() != nil {
		return s.tryPart(ctx, req)
	}
	if req.GetLevel() != levelLocal {
		return s.verifyOutside(ctx, req)
	}
	begun := time.Now()
	id := partIDOf(req.GetJob(), req.GetPart())
	from := s.holders(id, req.GetPart(), 0)
	_, moved, err := s.parts.Verify(ctx, id, req.GetPart().GetManifest(), from)
	if err != nil {
		return nil, from.explain(ctx, id, err)
	}
	if moved.Objects > 0 {
		// What is damaged is passed over only until the store is opened again; a
		// collection rewrites the packs that it is in.
		s.collectSoon()
	}
	return &vftv1.VerifyPartResponse{Bytes: moved.Read, Repaired: moved.Bytes, Took: int64(time.Since(begun))}, nil
}

// partIDOf is the name in the store of a part of a job.
func partIDOf(job string, p *vftv1.PartSource) ckpt.PartID {
	return ckpt.PartID{Job: job, Epoch: p.GetEpoch(), Guest: int(p.GetGuest())}
}

// holders are who has a copy of a part besides this node, as a source of it:
// other nodes first, then levels outside. What one does not give is asked for
// at the next one.
type holders struct {
	s       *Sidecar
	origins []origin
	own     bool // this node is said to have one, too
	limit   *rate.Limiter

	patience bool // with one origin for one answer is limited
}

// origin is where a copy of a part may be.
type origin interface {
	ckpt.Source
	fmt.Stringer
	// patience is how long it is waited for while a guest waits for a page.
	patience() time.Duration
}

func (s *Sidecar) holders(id ckpt.PartID, src *vftv1.PartSource, bandwidth int64) *holders {
	h := &holders{s: s, limit: rate.NewLimiter(rate.Inf, 0)}
	if bandwidth > 0 {
		h.limit = rate.NewLimiter(rate.Limit(bandwidth), object.MaxSize)
	}
	for _, m := range src.GetNodes() {
		if m.GetNode() == s.cfg.Node.GetId() {
			h.own = true
			continue
		}
		h.origins = append(h.origins, &otherNode{s, m})
	}
	for _, l := range src.GetLevels() {
		h.origins = append(h.origins, &outsidePlace{s: s, level: l.GetLevel(), id: id, manifest: src.GetManifest()})
	}
	return h
}

// noHolder says that nobody gave what was asked for.
type noHolder struct {
	errs []error // one of each that was asked
	lost bool    // all answered, and asking again would not help
}

// Error says what they said.
func (e *noHolder) Error() string {
	if len(e.errs) == 0 {
		return "no other node should have one"
	}
	return errors.Join(e.errs...).Error()
}

// Unwrap returns what they said.
func (e *noHolder) Unwrap() []error { return e.errs }

// try asks one origin after the other until one answers well. An error of ask
// that is not the origin's ends it.
func (h *holders) try(ctx context.Context, ask func(context.Context, origin) error, local *error) error {
	failed := &noHolder{lost: true}
	if h.own {
		failed.errs = append(failed.errs, fmt.Errorf("%s: not here any more", h.s.cfg.Node.GetId()))
	}
	for _, p := range h.origins {
		one, cancel := h.bound(ctx, p)
		err := ask(one, p)
		cancel()
		switch {
		case err == nil:
			return nil
		case *local != nil:
			return *local
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		failed.lost = failed.lost && lost(err)
		failed.errs = append(failed.errs, fmt.Errorf("%v: %w", p, err))
	}
	return failed
}

// bound bounds what is asked of one origin.
func (h *holders) bound(ctx context.Context, p origin) (context.Context, context.CancelFunc) {
	if h.patience {
		return context.WithTimeout(ctx, p.patience())
	}
	return context.WithCancel(ctx)
}

// lost says that asking the same origin again would not help.
func lost(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeNotFound, connect.CodeDataLoss:
		return true
	default:
		return errors.Is(err, ckpt.ErrTransfer) || errors.Is(err, outside.ErrGone)
	}
}

// Manifest implements ckpt.Source.
func (h *holders) Manifest(ctx context.Context, id ckpt.PartID, digest string) (raw []byte, err error) {
	var local error
	err = h.try(ctx, func(ctx context.Context, p origin) error {
		raw, err = p.Manifest(ctx, id, digest)
		if err != nil {
			return err
		}
		if got := ckpt.Digest(raw); got != digest {
			return fmt.Errorf("%w: it sent manifest %s", ckpt.ErrTransfer, got)
		}
		return nil
	}, &local)
	return raw, err
}

// Objects implements ckpt.Source.
func (h *holders) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	missing := make(map[object.ID]bool, len(ids))
	for _, id := range ids {
		missing[id] = true
	}
	var local error // of got, and not the origin's fault
	return h.try(ctx, func(ctx context.Context, p origin) error {
		want := make([]object.ID, 0, len(missing))
		for _, id := range ids { // in order: neighbours are stored together
			if missing[id] {
				want = append(want, id)
			}
		}
		err := p.Objects(ctx, kind, want, func(e object.Extent) error {
			if err := h.limit.WaitN(ctx, len(e.Stored)); err != nil {
				return err
			}
			if err := got(e); err != nil {
				if !errors.Is(err, ckpt.ErrTransfer) {
					local = err
				}
				return err
			}
			for _, id := range e.IDs {
				delete(missing, id)
			}
			return nil
		})
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("%w: %d objects were not sent", ckpt.ErrTransfer, len(missing))
		}
		return err
	}, &local)
}

// otherNode is a node that has a copy of a part.
type otherNode struct {
	s *Sidecar
	m *vftv1.Member
}

// String names the node.
func (n *otherNode) String() string { return n.m.GetNode() }

func (n *otherNode) patience() time.Duration { return nodePatience }

// Manifest implements ckpt.Source.
func (n *otherNode) Manifest(ctx context.Context, id ckpt.PartID, digest string) ([]byte, error) {
	resp, err := n.s.cfg.Peer(n.m.GetAddress()).GetManifest(ctx, connect.NewRequest(&vftv1.GetManifestRequest{
		Job: id.Job, Epoch: id.Epoch, Guest: uint32(id.Guest), Manifest: digest,
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetManifest(), nil
}

// Objects implements ckpt.Source.
func (n *otherNode) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	want := make([]byte, 0, len(ids)*len(object.ID{}))
	for _, id := range ids {
		want = append(want, id[:]...)
	}
	stream, err := n.s.cfg.Peer(n.m.GetAddress()).GetObjects(ctx, connect.NewRequest(&vftv1.GetObjectsRequest{Kind: uint32(kind), Ids: want}))
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // Receive reports what matters
	for stream.Receive() {
		e, err := extentOf(kind, stream.Msg())
		if err != nil {
			return err
		}
		if err := got(e); err != nil {
			return err
		}
	}
	return stream.Err()
}

// outsidePlace is a level outside the nodes that has a part.
type outsidePlace struct {
	s        *Sidecar
	level    string
	id       ckpt.PartID
	manifest string

	mu     sync.Mutex
	source *outside.Source // nil: not opened yet
}

// String names the level.
func (p *outsidePlace) String() string { return p.level }

// patience is longer than for a node: it has to read indexes first.
func (p *outsidePlace) patience() time.Duration { return 4 * nodePatience }

// open opens the level, which may be for the first time.
func (p *outsidePlace) open() (*outside.Source, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.source == nil {
		l, err := p.s.outsideAt(p.level)
		if err != nil {
			return nil, err
		}
		p.source = l.Source(p.id, p.manifest)
	}
	return p.source, nil
}

// Manifest implements ckpt.Source.
func (p *outsidePlace) Manifest(ctx context.Context, id ckpt.PartID, digest string) ([]byte, error) {
	src, err := p.open()
	if err != nil {
		return nil, err
	}
	return src.Manifest(ctx, id, digest)
}

// Objects implements ckpt.Source.
func (p *outsidePlace) Objects(ctx context.Context, kind object.Kind, ids []object.ID, got func(object.Extent) error) error {
	src, err := p.open()
	if err != nil {
		return err
	}
	return src.Objects(ctx, kind, ids, got)
}

// extentOf reads an extent from a message. The limits of the format hold.
func extentOf(kind object.Kind, m *vftv1.GetObjectsResponse) (object.Extent, error) {
	ids, err := objectIDs(m.GetIds())
	if err != nil {
		return object.Extent{}, fmt.Errorf("%w: %w", ckpt.ErrTransfer, err)
	}
	e := object.Extent{
		Kind: kind, IDs: ids, Lengths: m.GetLengths(), Length: int(m.GetLength()),
		Compressed: m.GetCompressed(), Stored: m.GetStored(),
	}
	if err := e.Check(); err != nil {
		return e, fmt.Errorf("%w: %w", ckpt.ErrTransfer, err)
	}
	return e, nil
}

// objectIDs takes ids that stand one after the other apart.
func objectIDs(b []byte) ([]object.ID, error) {
	const size = len(object.ID{})
	if len(b)%size != 0 {
		return nil, fmt.Errorf("%d bytes of object ids", len(b))
	}
	ids := make([]object.ID, 0, len(b)/size)
	for part := range slices.Chunk(b, size) {
		ids = append(ids, object.ID(part))
	}
	return ids, nil
}

// explain makes of an error one that the leader can decide on.
func (h *holders) explain(ctx context.Context, id ckpt.PartID, err error) error {
	var none *noHolder
	var code connect.Code
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ENOSPC):
		code = connect.CodeResourceExhausted
	case errors.As(err, &none):
		code = connect.CodeUnavailable
		if none.lost && len(none.errs) > 0 {
			code = connect.CodeDataLoss
		}
		err = fmt.Errorf("%s gave a good copy of epoch %d of guest %d: %w", h.nobody(), id.Epoch, id.Guest, err)
	default:
		return coded(err)
	}
	return connect.NewError(code, err)
}

// nobody names all who could have had a copy.
func (h *holders) nobody() string {
	for _, p := range h.origins {
		if _, ok := p.(*outsidePlace); ok {
			return "no node and no level"
		}
	}
	return "no node"
}

// sendManifest answers another node that lacks a part.
func (s *Sidecar) sendManifest(ctx context.Context, req *vftv1.GetManifestRequest) (*vftv1.GetManifestResponse, error) {
	id := ckpt.PartID{Job: req.GetJob(), Epoch: req.GetEpoch(), Guest: int(req.GetGuest())}
	raw, err := s.parts.Manifest(ctx, id, req.GetManifest())
	return &vftv1.GetManifestResponse{Manifest: raw}, err
}

// sendObjects answers another node that lacks objects.
func (s *Sidecar) sendObjects(ctx context.Context, req *vftv1.GetObjectsRequest, send func(*vftv1.GetObjectsResponse) error) error {
	ids, err := objectIDs(req.GetIds())
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	return s.parts.Objects(ctx, object.Kind(req.GetKind()), ids, func(e object.Extent) error {
		own := make([]byte, 0, len(e.IDs)*len(object.ID{}))
		for _, id := range e.IDs {
			own = append(own, id[:]...)
		}
		return send(&vftv1.GetObjectsResponse{
			Ids: own, Lengths: e.Lengths, Length: uint32(e.Length), Compressed: e.Compressed, Stored: e.Stored,
		})
	})
}
