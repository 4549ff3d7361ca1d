package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/vm"
)

// restoreGuests loads this node's guests from their parts and leaves them
// paused with their channel state queued; repeated calls wait for the same work.
func (s *Sidecar) restoreGuests(ctx context.Context, req *vftv1.RestoreGuestsRequest) (*vftv1.RestoreGuestsResponse, error) {
	c := req.GetContext()
	inc, err := s.enter(c.GetJob(), c.GetIncarnation(), func() *incarnation {
		return s.newIncarnation(c, req.GetSpec(), req.GetMembers(), phaseRestoring)
	})
	if err != nil {
		return nil, err
	}
	inc.mu.Lock()
	if inc.restore == nil {
		if inc.phase != phaseRestoring {
			inc.mu.Unlock()
			return &vftv1.RestoreGuestsResponse{}, nil // adopted: they continued in an earlier process
		}
		inc.restore = begin(inc.work, func(ctx context.Context) (*vftv1.RestoreGuestsResponse, error) {
			return inc.restoreAll(ctx, req.GetParts())
		})
	}
	restore := inc.restore
	inc.mu.Unlock()
	return restore.wait(ctx)
}

func (inc *incarnation) restoreAll(ctx context.Context, sources []*vftv1.PartSource) (*vftv1.RestoreGuestsResponse, error) {
	if err := inc.open(); err != nil {
		return nil, err
	}
	inc.tendGateway()
	if err := inc.save(); err != nil {
		return nil, err
	}
	bySource := map[uint32]*vftv1.PartSource{}
	for _, p := range sources {
		bySource[p.GetGuest()] = p
	}
	way, why := inc.s.cfg.Capabilities.RestoreWay(restoreWayOf(inc.spec.GetRestore()))
	if why != "" {
		inc.log.Info("guests are restored plainly", "asked", inc.spec.GetRestore(), "why", why)
	}
	var fetch, load longest
	var lazy atomic.Uint32
	err := inc.each(ctx, func(ctx context.Context, index uint32) error {
		src := bySource[index]
		if src == nil {
			return errors.New("the call names no part for it")
		}
		begun := time.Now()
		id := ckpt.PartID{Job: inc.job, Epoch: src.GetEpoch(), Guest: int(index)}
		if way == vm.RestoreLazy {
			r, err := inc.startLazily(ctx, index, id, src)
			if err == nil {
				lazy.Add(1)
				load.add(time.Since(begun))
				return inc.admitRestored(ctx, index, r)
			}
			if ctx.Err() != nil {
				return err
			}
			inc.log.Warn("a guest could not be restored lazily; it is restored plainly", "guest", index, "err", err)
		}
		if _, err := inc.s.fetchPart(ctx, id, src, 0); err != nil {
			return err
		}
		fetch.add(time.Since(begun))
		begun = time.Now()
		if err := inc.load(ctx, index, id, src.GetManifest(), way); err != nil {
			return err
		}
		load.add(time.Since(begun))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &vftv1.RestoreGuestsResponse{Fetch: int64(fetch.d), Load: int64(load.d), Lazy: lazy.Load()}, nil
}

// load starts one guest from its part, which the store has whole, and gives it
// all of its memory.
func (inc *incarnation) load(ctx context.Context, index uint32, id ckpt.PartID, manifest string, way vm.RestoreWay) error {
	if way != vm.RestoreFile {
		way = vm.RestorePlain
	}
	p, err := inc.s.parts.Open(id, manifest)
	if err != nil {
		return err
	}
	defer p.Close()
	r, err := inc.start(ctx, index, p, way)
	if err != nil {
		return err
	}
	return inc.admitRestored(ctx, index, r)
}

// restored is a machine that was made from a part.
type restored struct {
	machine *vm.Machine
	epoch   uint64
	frames  [][]byte // that were in the guest's port
}

// start starts the machine of a guest from a part.
func (inc *incarnation) start(ctx context.Context, index uint32, p *ckpt.Part, way vm.RestoreWay) (*restored, error) {
	spec, err := inc.machineSpec(index)
	if err != nil {
		return nil, err
	}
	if spec, err = inc.s.likeSaved(spec, p); err != nil {
		return nil, err
	}
	frames, err := p.ChannelState(ctx)
	if err != nil {
		return nil, err
	}
	m, err := vm.Restore(ctx, spec, savedPart{p}, way, inc.s.machineOptions())
	if err != nil {
		return nil, err
	}
	return &restored{machine: m, epoch: p.Manifest().Epoch, frames: frames}, nil
}

// likeSaved makes a machine's description one that can load a part, or says why
// it cannot be.
func (s *Sidecar) likeSaved(spec vm.Spec, p *ckpt.Part) (vm.Spec, error) {
	var saved vm.Compat
	if err := json.Unmarshal(p.Manifest().Compat, &saved); err != nil {
		return spec, fmt.Errorf("reading what machine was saved: %w", err)
	}
	// A snapshot is executed by the accelerator and processor model it was
	// taken with, whatever this node would choose for a new guest.
	spec.CPUModel = saved.CPUModel
	here, err := vm.CompatOf(spec, s.cfg.Capabilities.QEMUVersion)
	if err != nil {
		return spec, err
	}
	return spec, vm.CheckCompat(saved, here)
}

// admitRestored gives a restored machine its channel state and makes it one of
// the node's guests.
func (inc *incarnation) admitRestored(ctx context.Context, index uint32, r *restored) error {
	if err := inc.net.Preload(int(index), r.frames); err != nil {
		return errors.Join(err, r.machine.Kill(context.WithoutCancel(ctx)), r.machine.Close())
	}
	if _, err := inc.connect(ctx, index, r.machine, vftv1.GuestState_GUEST_STATE_PAUSED); err != nil {
		return err
	}
	inc.log.Info("guest restored", "guest", index, "epoch", r.epoch, "frames", len(r.frames), "filling", lacksMemory(r.machine))
	return nil
}

// continueGuests lets restored guests run and their channel state flow.
// It returns those that do not have all of their memory yet.
func (s *Sidecar) continueGuests(ctx context.Context, c *vftv1.Context) (*vftv1.ContinueGuestsResponse, error) {
	inc, err := s.admit(c)
	if err != nil {
		return nil, err
	}
	inc.mu.Lock()
	restore := inc.restore
	inc.mu.Unlock()
	if restore != nil {
		if _, err := restore.wait(ctx); err != nil {
			return nil, fmt.Errorf("the guests are not restored: %w", err)
		}
	}
	// From here on another process of this node may adopt them.
	inc.mu.Lock()
	inc.phase = phaseRunning
	inc.mu.Unlock()
	if err := inc.save(); err != nil {
		return nil, err
	}
	inc.net.Release(0)
	if !s.suspended.Load() { // else the next renewal of the lease continues them
		err := inc.each(ctx, func(ctx context.Context, index uint32) error {
			g, err := inc.guest(index)
			if err != nil {
				return err
			}
			m := g.alive()
			if m == nil {
				return fmt.Errorf("guest %d is lost", index)
			}
			if err := m.Cont(ctx); err != nil {
				return err
			}
			g.set(vftv1.GuestState_GUEST_STATE_RUNNING, "")
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	resp := &vftv1.ContinueGuestsResponse{}
	for _, g := range inc.all() {
		if lacks, _ := g.filling(); lacks {
			resp.Filling = append(resp.Filling, g.index)
		}
	}
	return resp, nil
}
