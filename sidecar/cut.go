package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/vm"
)

// epochWork is this node's share of one epoch in the making.
type epochWork struct {
	number uint64
	engine vm.Engine

	mu    sync.Mutex
	parts map[uint32]*partWork
	cut   *future[*vftv1.CutResponse]
	// stored is the outcome of writing all parts.
	stored *future[*vftv1.WaitPartsResponse]
}

// partWork is the snapshot of one guest.
type partWork struct {
	guest  *guestVM
	snap   vm.Snapshot
	writer *ckpt.Writer

	cutAt  time.Time
	frames [][]byte
}

// Prepare readies the snapshot before the network is held.
func (p *partWork) Prepare(ctx context.Context) error { return p.snap.Prepare(ctx) }

// Cut fixes the guest's state; atCut runs while the guest stands still.
func (p *partWork) Cut(ctx context.Context, atCut func(context.Context) error) error {
	_, err := p.snap.Cut(ctx, func(ctx context.Context) error {
		p.cutAt = time.Now()
		return atCut(ctx)
	})
	return err
}

// Abort gives the snapshot up; the guest runs on.
func (p *partWork) Abort(ctx context.Context) error {
	p.writer.Abort()
	return p.snap.Abort(ctx)
}

// EarlyStop is closed when the guest stood still before it was asked to.
func (p *partWork) EarlyStop() <-chan time.Time { return p.snap.EarlyStop() }

// prepare begins the epoch on this node.
func (inc *incarnation) prepare(ctx context.Context, epoch uint64, engine vftv1.Engine) error {
	inc.mu.Lock()
	if w := inc.epochs[epoch]; w != nil {
		inc.mu.Unlock()
		return nil // a repeated call
	}
	inc.mu.Unlock()
	chosen, err := inc.s.chooseEngine(engine)
	if err != nil {
		return err
	}
	w := &epochWork{number: epoch, engine: chosen, parts: map[uint32]*partWork{}}
	snaps := map[int]quiesce.Snapshot{}
	for _, g := range inc.all() {
		if state, why := g.get(); state == vftv1.GuestState_GUEST_STATE_DEAD {
			w.drop()
			return fmt.Errorf("guest %d is lost: %s", g.index, why)
		}
		writer, err := inc.s.parts.Create(inc.work.ctx, ckpt.PartID{Job: inc.job, Epoch: epoch, Guest: int(g.index)})
		if err != nil {
			w.drop()
			return fmt.Errorf("guest %d: %w", g.index, err)
		}
		snap, err := g.machine.Snapshot(inc.work.ctx, chosen, newPartSink(writer), vm.SnapshotOptions{})
		if err != nil {
			writer.Abort()
			w.drop()
			return fmt.Errorf("guest %d: %w", g.index, err)
		}
		p := &partWork{guest: g, snap: snap, writer: writer}
		w.parts[g.index] = p
		snaps[int(g.index)] = p
	}
	inc.mu.Lock()
	inc.epochs[epoch] = w
	inc.mu.Unlock()
	cut, err := inc.participant()
	if err == nil {
		err = cut.Prepare(ctx, epoch, snaps)
	}
	if err != nil {
		return fmt.Errorf("preparing epoch %d: %w", epoch, err)
	}
	return nil
}

// drop abandons parts that never reached the participant.
func (w *epochWork) drop() {
	for _, p := range w.parts {
		p.writer.Abort()
	}
}

func (inc *incarnation) epoch(number uint64) (*epochWork, error) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	w := inc.epochs[number]
	if w == nil {
		return nil, fmt.Errorf("job %s epoch %d was not prepared here: %w", inc.job, number, errUnknown)
	}
	return w, nil
}

// hold stops the job's frames on this node and reports the drained pairs.
func (inc *incarnation) hold(ctx context.Context, req *vftv1.HoldRequest) ([]*vftv1.PairCount, error) {
	if err := inc.s.cfg.Faults.Hit(ctx, "sidecar.hold"); err != nil {
		return nil, err
	}
	cut, err := inc.participant()
	if err != nil {
		return nil, err
	}
	pairs, err := cut.Hold(ctx, req.GetEpoch(), time.Duration(req.GetTimeout()))
	if err != nil {
		return nil, fmt.Errorf("holding the network for epoch %d: %w", req.GetEpoch(), err)
	}
	return pairs, nil
}

// cutAll cuts every guest of this node and lets the storing of the parts go
// on by itself.
func (inc *incarnation) cutAll(ctx context.Context, req *vftv1.CutRequest) (*vftv1.CutResponse, error) {
	w, err := inc.epoch(req.GetEpoch())
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	if w.cut == nil {
		w.cut = begin(inc.work, func(ctx context.Context) (*vftv1.CutResponse, error) {
			participant, err := inc.participant()
			if err != nil {
				return nil, err
			}
			results, err := participant.Cut(ctx, w.number)
			if err != nil {
				return nil, err
			}
			resp := &vftv1.CutResponse{}
			for index, r := range results {
				p := w.parts[uint32(index)]
				p.frames = r.Frames
				resp.Parts = append(resp.Parts, p.describe(w.engine))
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.stored = begin(inc.work, func(ctx context.Context) (*vftv1.WaitPartsResponse, error) {
				return inc.storeAll(ctx, w)
			})
			return resp, nil
		})
	}
	cut := w.cut
	w.mu.Unlock()
	return cut.wait(ctx)
}

func (p *partWork) describe(engine vm.Engine) *vftv1.Part {
	part := &vftv1.Part{
		Guest: p.guest.index, CutAt: p.cutAt.UnixNano(), HeldFrames: uint32(len(p.frames)), Engine: protoEngine(engine),
	}
	for _, f := range p.frames {
		part.HeldBytes += uint64(len(f))
	}
	return part
}

// storeAll waits for the snapshots and commits the parts to the node's store.
func (inc *incarnation) storeAll(ctx context.Context, w *epochWork) (*vftv1.WaitPartsResponse, error) {
	resp := &vftv1.WaitPartsResponse{}
	var mu sync.Mutex
	err := inc.each(ctx, func(ctx context.Context, index uint32) error {
		p := w.parts[index]
		part, err := inc.store(ctx, w, p)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		resp.Parts = append(resp.Parts, part)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("storing epoch %d: %w", w.number, err)
	}
	return resp, nil
}

func (inc *incarnation) store(ctx context.Context, w *epochWork, p *partWork) (*vftv1.Part, error) {
	result, err := p.snap.Wait(ctx)
	if err != nil {
		p.writer.Abort()
		return nil, err
	}
	compat, err := p.guest.machine.Compat()
	if err != nil {
		p.writer.Abort()
		return nil, err
	}
	raw, err := json.Marshal(compat)
	if err != nil {
		p.writer.Abort()
		return nil, fmt.Errorf("describing the machine: %w", err)
	}
	if err := inc.s.cfg.Faults.Hit(ctx, "sidecar.part.before-commit"); err != nil {
		p.writer.Abort()
		return nil, err
	}
	info, err := p.writer.Commit(ctx, ckpt.Meta{
		Incarnation: inc.number, ChannelState: p.frames, Compat: raw, Engine: string(w.engine), CutAt: p.cutAt,
	})
	if err != nil {
		return nil, err
	}
	part := p.describe(w.engine)
	part.Manifest, part.Size = info.Manifest, info.Size
	part.Pause, part.Copy = int64(result.Pause), int64(result.Total)
	part.Nodes = []string{inc.s.cfg.Node.GetId()}
	return part, nil
}

// waitParts waits until this node's parts are stored.
func (inc *incarnation) waitParts(ctx context.Context, epoch uint64) (*vftv1.WaitPartsResponse, error) {
	w, err := inc.epoch(epoch)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	stored := w.stored
	w.mu.Unlock()
	if stored == nil {
		return nil, fmt.Errorf("epoch %d was not cut here", epoch)
	}
	resp, err := stored.wait(ctx)
	if err == nil {
		inc.retire(epoch)
	}
	return resp, err
}

// retire drops finished epochs older than the given one.
func (inc *incarnation) retire(epoch uint64) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	for n := range inc.epochs {
		if n < epoch {
			delete(inc.epochs, n)
		}
	}
}

// abortEpoch releases the network and forgets the epoch's parts. What QEMU
// still sends is drained in the background: an old one hangs otherwise.
func (inc *incarnation) abortEpoch(ctx context.Context, epoch uint64) error {
	cut, err := inc.participant()
	if err == nil {
		err = cut.Abort(ctx, epoch)
	} else {
		err = nil // nothing was held yet
	}
	inc.mu.Lock()
	w := inc.epochs[epoch]
	inc.mu.Unlock()
	if w != nil {
		w.mu.Lock()
		stored := w.stored
		w.mu.Unlock()
		if stored != nil {
			// The copy is past its cut and can only be let finish; its result is not wanted.
			inc.work.run(func(ctx context.Context) {
				_, _ = stored.wait(ctx)
				inc.s.deleteEpoch(ctx, inc.job, epoch)
			})
			return err
		}
	}
	inc.s.deleteEpoch(ctx, inc.job, epoch)
	return err
}

// chooseEngine returns the engine asked for, or, when the choice is the
// node's, the one with the shortest pause that the probe saw working.
func (s *Sidecar) chooseEngine(want vftv1.Engine) (vm.Engine, error) {
	if want != vftv1.Engine_ENGINE_UNSPECIFIED {
		e := engineOf(want)
		for _, sup := range s.cfg.Capabilities.Engines {
			if sup.Engine == e && !sup.OK {
				return "", fmt.Errorf("engine %s does not work on node %s: %s; use --vft-engine auto", e, s.cfg.Node.GetId(), sup.Why)
			}
		}
		return e, nil
	}
	for _, e := range vm.Engines() {
		for _, sup := range s.cfg.Capabilities.Engines {
			if sup.Engine == e && sup.OK {
				return e, nil
			}
		}
	}
	return "", errors.New("no snapshot engine works on this node: see `vft node probe`")
}

func engineOf(e vftv1.Engine) vm.Engine {
	switch e {
	case vftv1.Engine_ENGINE_BACKGROUND:
		return vm.EngineBackground
	case vftv1.Engine_ENGINE_PRE_COPY:
		return vm.EnginePreCopy
	default:
		return vm.EngineStopCopy
	}
}

func protoEngine(e vm.Engine) vftv1.Engine {
	switch e {
	case vm.EngineBackground:
		return vftv1.Engine_ENGINE_BACKGROUND
	case vm.EnginePreCopy:
		return vftv1.Engine_ENGINE_PRE_COPY
	default:
		return vftv1.Engine_ENGINE_STOP_COPY
	}
}
