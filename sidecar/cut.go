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

// camera takes snapshots of one guest: its machine.
type camera interface {
	Snapshot(ctx context.Context, engine vm.Engine, sink vm.Sink, opts vm.SnapshotOptions) (vm.Snapshot, error)
	// AwaitSnapshot returns when the snapshot in progress is over.
	AwaitSnapshot(ctx context.Context) error
}

// epochWork is this node's share of one epoch in the making.
type epochWork struct {
	number uint64
	engine vm.Engine
	// prepared is when the snapshots are ready to be cut, cancel ends the wait for it.
	prepared *future[struct{}]
	cancel   context.CancelFunc

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

// prepare begins the epoch on this node and returns when all local guests can be
// cut. What it has begun goes on when the caller gives up.
func (inc *incarnation) prepare(ctx context.Context, epoch uint64, engine vftv1.Engine) error {
	chosen, err := inc.s.chooseEngine(engine)
	if err != nil {
		return err
	}
	return inc.prepareWith(ctx, epoch, chosen, func(g *guestVM) camera { return g.machine })
}

func (inc *incarnation) prepareWith(ctx context.Context, epoch uint64, engine vm.Engine, cameraOf func(*guestVM) camera) error {
	inc.mu.Lock()
	w := inc.epochs[epoch]
	if w == nil {
		w = &epochWork{number: epoch, engine: engine, parts: map[uint32]*partWork{}}
		ctx, cancel := context.WithCancel(inc.work.ctx)
		w.cancel = cancel
		w.prepared = begin(inc.work, func(context.Context) (struct{}, error) {
			defer cancel()
			return struct{}{}, inc.readyEpoch(ctx, w, cameraOf)
		})
		inc.epochs[epoch] = w
	}
	inc.mu.Unlock()
	if _, err := w.prepared.wait(ctx); err != nil {
		return fmt.Errorf("preparing epoch %d: %w", epoch, err)
	}
	return nil
}

// readyEpoch makes the snapshots of all local guests ready to be cut. Those that
// the participant does not take are given up: a guest that has one left over
// could never be saved again.
func (inc *incarnation) readyEpoch(ctx context.Context, w *epochWork, cameraOf func(*guestVM) camera) error {
	cut, err := inc.participant()
	if err != nil {
		return err
	}
	if err := inc.endFormer(ctx, cut, w.number); err != nil {
		return err
	}
	snaps := map[int]quiesce.Snapshot{}
	for _, g := range inc.all() {
		p, err := inc.aim(ctx, w, g, cameraOf)
		if err != nil {
			w.drop(ctx)
			return fmt.Errorf("guest %d: %w", g.index, err)
		}
		w.parts[g.index] = p
		snaps[int(g.index)] = p
	}
	if err := cut.Prepare(ctx, w.number, snaps); err != nil {
		w.drop(ctx)
		return err
	}
	return nil
}

// endFormer gives up an earlier epoch that was not completed and that nobody has
// aborted here: the call may be on its way, or have been lost. It refuses one
// that is itself an earlier one.
func (inc *incarnation) endFormer(ctx context.Context, cut *quiesce.Participant, number uint64) error {
	former, _ := cut.State()
	inc.mu.Lock()
	w := inc.epochs[former] // nil: a migration, which is ended by its own calls
	for n, other := range inc.epochs {
		if n < number {
			other.cancel()
		}
	}
	inc.mu.Unlock()
	switch {
	case former > number:
		return fmt.Errorf("%w: %d", quiesce.ErrStale, former)
	case w == nil || former == number || w.complete():
		return nil
	}
	// The time that this may take is the caller's, and the copies' end is waited
	// for below, so what Abort makes of it does not matter.
	if err := cut.Abort(ctx, former); err != nil {
		inc.s.log.Info("the epoch before is not over yet", "job", inc.job, "epoch", former, "err", err)
	}
	return ctx.Err()
}

// aim begins the snapshot of one guest, when the one before is over.
func (inc *incarnation) aim(ctx context.Context, w *epochWork, g *guestVM, cameraOf func(*guestVM) camera) (*partWork, error) {
	if state, why := g.get(); state == vftv1.GuestState_GUEST_STATE_DEAD {
		return nil, fmt.Errorf("it is lost: %s", why)
	}
	c := cameraOf(g)
	if err := c.AwaitSnapshot(ctx); err != nil {
		return nil, err
	}
	writer, err := inc.s.parts.Create(inc.work.ctx, ckpt.PartID{Job: inc.job, Epoch: w.number, Guest: int(g.index)})
	if err != nil {
		return nil, err
	}
	for {
		snap, err := c.Snapshot(inc.work.ctx, w.engine, newPartSink(writer), vm.SnapshotOptions{})
		if errors.Is(err, vm.ErrBusy) { // a late call for another epoch was faster, and will be refused
			err = c.AwaitSnapshot(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			writer.Abort()
			return nil, err
		}
		return &partWork{guest: g, snap: snap, writer: writer}, nil
	}
}

// complete says whether all parts are stored.
func (w *epochWork) complete() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored.succeeded()
}

// dropTimeout bounds how long snapshots may take to be given up; their machines
// stay busy until they are over.
const dropTimeout = 10 * time.Second

// drop abandons the snapshots of an epoch that came to nothing here.
func (w *epochWork) drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	for _, p := range w.parts {
		_ = p.Abort(ctx) // the next epoch waits for what is left
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
	inc.mu.Lock()
	w := inc.epochs[epoch]
	inc.mu.Unlock()
	if w != nil {
		w.cancel()
	}
	cut, err := inc.participant()
	if err == nil {
		err = cut.Abort(ctx, epoch)
	} else {
		err = nil // nothing was held yet
	}
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
