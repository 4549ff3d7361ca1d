package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt/level"
)

// fakeOutside is what lies at levels outside the nodes.
type fakeOutside struct {
	mu    sync.Mutex
	parts map[string]string // level/job/epoch/guest → manifest
}

func (o *fakeOutside) do(fn func(parts map[string]string)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fn(o.parts)
}

// SecurePart does what the level asks of a node.
func (f *fakeSidecar) SecurePart(ctx context.Context, r *connect.Request[vftv1.SecurePartRequest]) (*connect.Response[vftv1.SecurePartResponse], error) {
	if err := f.reach(ctx, "SecurePart", r.Msg.GetJob()); err != nil {
		return nil, err
	}
	src := r.Msg.GetPart()
	k := key(r.Msg.GetJob(), src.GetEpoch(), src.GetGuest())
	var p *vftv1.Part
	f.do(func() { p = f.parts[k] })
	if p == nil {
		p = f.fetch(k, src)
	}
	if p == nil {
		return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("no source has %s", k))
	}
	l, err := level.Parse(r.Msg.GetLevel())
	if err != nil {
		return nil, err
	}
	switch l.Kind {
	case level.KindLocal, level.KindPartner:
		f.do(func() { f.parts[k] = p })
	case level.KindRS:
		if len(r.Msg.GetTargets()) != l.Data+l.Parity {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d targets", len(r.Msg.GetTargets())))
		}
		for _, t := range r.Msg.GetTargets() {
			to := f.peers[t.GetNode()]
			to.do(func() { to.shards[k+" "+l.String()] = p })
		}
	default:
		f.outside.do(func(parts map[string]string) { parts[l.String()+k] = p.GetManifest() })
	}
	return connect.NewResponse(&vftv1.SecurePartResponse{Bytes: 1000}), nil
}

// fetch reads a part from wherever it can be had.
func (f *fakeSidecar) fetch(k string, src *vftv1.PartSource) *vftv1.Part {
	var found *vftv1.Part
	for _, n := range src.GetNodes() {
		from := f.peers[n.GetNode()]
		from.do(func() {
			if p := from.parts[k]; p.GetManifest() == src.GetManifest() && !from.down {
				found = p
			}
		})
	}
	part := &vftv1.Part{Guest: src.GetGuest(), Manifest: src.GetManifest()}
	for _, l := range src.GetLevels() {
		shards := 0
		for _, n := range l.GetNodes() {
			from := f.peers[n.GetNode()]
			from.do(func() {
				if from.shards[k+" "+l.GetLevel()] != nil && !from.down {
					shards++
				}
			})
		}
		spec, err := level.Parse(l.GetLevel())
		if err == nil && spec.Kind == level.KindRS && shards >= spec.Data {
			found = part
		}
		f.outside.do(func(parts map[string]string) {
			if parts[l.GetLevel()+k] == src.GetManifest() {
				found = part
			}
		})
	}
	return found
}

// RemoveEpochs forgets what is outside.
func (f *fakeSidecar) RemoveEpochs(ctx context.Context, r *connect.Request[vftv1.RemoveEpochsRequest]) (*connect.Response[vftv1.RemoveEpochsResponse], error) {
	if err := f.reach(ctx, "RemoveEpochs", r.Msg.GetJob()); err != nil {
		return nil, err
	}
	f.outside.do(func(parts map[string]string) {
		for _, e := range r.Msg.GetEpochs() {
			for k := range parts {
				if strings.HasPrefix(k, r.Msg.GetLevel()+key(r.Msg.GetJob(), e)+"/") {
					delete(parts, k)
				}
			}
		}
	})
	return connect.NewResponse(&vftv1.RemoveEpochsResponse{}), nil
}

// VerifyPart finds what was removed behind the coordinator's back.
func (f *fakeSidecar) VerifyPart(ctx context.Context, r *connect.Request[vftv1.VerifyPartRequest]) (*connect.Response[vftv1.VerifyPartResponse], error) {
	if err := f.reach(ctx, "VerifyPart", r.Msg.GetJob()); err != nil {
		return nil, err
	}
	src := r.Msg.GetPart()
	k := key(r.Msg.GetJob(), src.GetEpoch(), src.GetGuest())
	resp := &vftv1.VerifyPartResponse{Bytes: 7}
	good := false
	switch r.Msg.GetLevel() {
	case "", "local":
		f.do(func() { good = f.parts[k] != nil })
		if p := f.fetch(k, src); !good && p != nil {
			f.do(func() { f.parts[k] = p })
			good, resp.Repaired = true, 7
		}
	default:
		src = proto.CloneOf(src)
		src.Nodes = nil
		src.Levels = slices.DeleteFunc(src.Levels, func(l *vftv1.LevelSource) bool { return l.GetLevel() != r.Msg.GetLevel() })
		good = f.fetch(k, src) != nil
	}
	if !good {
		return nil, connect.NewError(connect.CodeDataLoss, errors.New("page 7 is bad"))
	}
	return connect.NewResponse(resp), nil
}

// CollectStore says that it was asked.
func (f *fakeSidecar) CollectStore(ctx context.Context, r *connect.Request[vftv1.CollectStoreRequest]) (*connect.Response[vftv1.CollectStoreResponse], error) {
	if err := f.reach(ctx, "CollectStore", r.Msg.GetLevel()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&vftv1.CollectStoreResponse{Freed: 42}), nil
}

func (f *fakeSidecar) ListParts(ctx context.Context, _ *connect.Request[vftv1.ListPartsRequest]) (*connect.Response[vftv1.ListPartsResponse], error) {
	if err := f.reach(ctx, "ListParts", ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	held := func(k string, p *vftv1.Part) *vftv1.HeldPart {
		h := &vftv1.HeldPart{Guest: p.GetGuest(), Manifest: p.GetManifest(), Size: p.GetSize()}
		words := strings.Split(k, "/")
		h.Job = words[1]
		h.Epoch, _ = strconv.ParseUint(words[2], 10, 64)
		return h
	}
	resp := &vftv1.ListPartsResponse{}
	for k, p := range f.parts {
		resp.Parts = append(resp.Parts, held(k, p))
	}
	for k, p := range f.shards {
		k, l, _ := strings.Cut(k, " ")
		h := held(k, p)
		h.Level = l
		resp.Shards = append(resp.Shards, h)
	}
	return connect.NewResponse(resp), nil
}
