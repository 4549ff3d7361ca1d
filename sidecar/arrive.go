package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/vm"
)

// arrival is a guest on its way to this node.
type arrival struct {
	cancel context.CancelFunc
	loaded *future[*loadedGuest]
	stream chan *incoming // one
}

// incoming is the stream of a guest from the old node.
type incoming struct {
	compat []byte
	body   io.Reader
	frames *[][]byte // valid when body is at its end
}

// loadedGuest is a guest that could run here.
type loadedGuest struct {
	machine *vm.Machine
	frames  [][]byte
}

// expectGuest readies this node for a guest.
func (inc *incarnation) expectGuest(ctx context.Context, mv *move) error {
	if err := inc.s.cfg.Faults.Hit(ctx, "sidecar.move.expect"); err != nil {
		return err
	}
	spec, err := inc.machineSpec(mv.order.GetGuest())
	if err != nil {
		return err
	}
	if inc.network() == nil {
		if err := inc.open(); err != nil {
			return err
		}
	}
	inc.mu.Lock()
	inc.arriving = []uint32{mv.order.GetGuest()}
	inc.mu.Unlock()
	if err := inc.save(); err != nil {
		return err
	}
	lctx, cancel := context.WithCancel(inc.work.ctx)
	a := &arrival{cancel: cancel, stream: make(chan *incoming, 1)}
	a.loaded = begin(inc.work, func(context.Context) (*loadedGuest, error) {
		select {
		case in := <-a.stream:
			return inc.s.loadIncoming(lctx, spec, in)
		case <-lctx.Done():
			return nil, fmt.Errorf("waiting for the guest: %w", lctx.Err())
		}
	})
	if err := mv.take(nil, a); err != nil {
		cancel()
		return err
	}
	if inc.arrivingOnly() {
		return nil // no guest of it is here: nothing to hold
	}
	return inc.prepareHold(ctx, mv.order, map[int]quiesce.Snapshot{})
}

// loadIncoming starts QEMU and loads what comes.
func (s *Sidecar) loadIncoming(ctx context.Context, spec vm.Spec, in *incoming) (*loadedGuest, error) {
	var saved vm.Compat
	if err := json.Unmarshal(in.compat, &saved); err != nil {
		return nil, fmt.Errorf("reading what machine comes: %w", err)
	}
	spec.CPUModel = saved.CPUModel // as in a restore
	here, err := vm.CompatOf(spec, s.cfg.Capabilities.QEMUVersion)
	if err != nil {
		return nil, err
	}
	if err := vm.CheckCompat(saved, here); err != nil {
		return nil, err
	}
	m, err := vm.RestoreStream(ctx, spec, in.body, s.machineOptions())
	if err != nil {
		return nil, err
	}
	return &loadedGuest{machine: m, frames: *in.frames}, nil
}

// SendGuest implements the RPC: a guest comes from the old node's sidecar.
func (h *Service) SendGuest(ctx context.Context, stream *connect.ClientStream[vftv1.SendGuestRequest]) (*connect.Response[vftv1.SendGuestResponse], error) {
	if !stream.Receive() {
		return nil, coded(firstMissing(stream.Err()))
	}
	first := stream.Msg()
	inc, err := h.s.admit(first.GetContext())
	if err != nil {
		return nil, coded(err)
	}
	mv, err := inc.moveOf(&vftv1.MoveOrder{Epoch: first.GetEpoch()})
	if err != nil {
		return nil, coded(err)
	}
	_, a, _ := mv.parts()
	if a == nil || mv.order.GetGuest() != first.GetGuest() {
		return nil, coded(fmt.Errorf("guest %d is not expected here: %w", first.GetGuest(), errUnknown))
	}
	var frames [][]byte
	ended := false
	in := &incoming{compat: first.GetCompat(), frames: &frames, body: &messageReader{next: func() ([]byte, error) {
		switch {
		case ended:
			return nil, io.EOF
		case !stream.Receive():
			return nil, fmt.Errorf("the guest did not come in full: %w", errors.Join(io.ErrUnexpectedEOF, stream.Err()))
		case stream.Msg().GetEnd():
			frames, ended = stream.Msg().GetFrames(), true
			return nil, io.EOF
		}
		return stream.Msg().GetData(), nil
	}}}
	select {
	case a.stream <- in:
	default:
		return nil, coded(errors.New("this guest has been sent before"))
	}
	_, err = a.loaded.wait(ctx)
	if err != nil { // nobody reads the stream when this has returned
		a.cancel()
		<-a.loaded.done
	}
	return reply(&vftv1.SendGuestResponse{}, err)
}

// attachArrival joins a loaded guest, which stands still, to the network, which
// is held.
func (inc *incarnation) attachArrival(ctx context.Context, mv *move, came *loadedGuest) error {
	index := mv.order.GetGuest()
	if err := inc.network().Preload(int(index), came.frames); err != nil {
		return err
	}
	g := inc.newGuest(index, came.machine, vftv1.GuestState_GUEST_STATE_PAUSED)
	inc.mu.Lock()
	if inc.ended {
		inc.mu.Unlock()
		return context.Canceled
	}
	inc.arrived = g
	inc.mu.Unlock()
	if err := inc.s.cfg.Faults.Hit(ctx, "sidecar.move.loaded"); err != nil {
		return err
	}
	return inc.join(ctx, g)
}

// runArrival makes a guest that came one of the node's guests and lets it run.
func (inc *incarnation) runArrival(ctx context.Context, index uint32) error {
	inc.mu.Lock()
	g := inc.guests[index]
	if g == nil && inc.arrived != nil && inc.arrived.index == index {
		g = inc.arrived
		inc.guests[index], inc.arrived, inc.arriving = g, nil, nil
	}
	if g != nil {
		inc.phase = phaseRunning
	}
	inc.mu.Unlock()
	if g == nil {
		return fmt.Errorf("job %s guest %d did not come: %w", inc.job, index, errUnknown)
	}
	m := g.alive()
	if m == nil {
		return fmt.Errorf("guest %d is lost", index)
	}
	if inc.s.suspended.Load() {
		return nil // the next renewal of the lease continues it
	}
	if err := m.Cont(ctx); err != nil {
		return err
	}
	g.set(vftv1.GuestState_GUEST_STATE_RUNNING, "")
	inc.log.Info("guest has come", "guest", index, "pid", m.PID())
	return nil
}

// dropArrival ends a guest that will not run here.
func (inc *incarnation) dropArrival(ctx context.Context, index uint32, coming *arrival) {
	coming.cancel()
	<-coming.loaded.done
	inc.mu.Lock()
	g := inc.arrived
	inc.arrived, inc.arriving = nil, nil
	inc.mu.Unlock()
	if g != nil {
		g.leave()
		g.hangUp()
	}
	if came := coming.loaded.value; came != nil {
		if err := errors.Join(came.machine.Kill(ctx), came.machine.Close()); err != nil {
			inc.log.Error("killing a guest that will not run here", "guest", index, "err", err)
			return
		}
	}
	inc.removeGuestDir(index)
}
