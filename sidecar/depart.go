package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/quiesce"
	"github.com/mpirun-vft/vft/vm"
)

// departure is a guest on its way from this node. It is the snapshot of that
// guest in the hold of its move.
type departure struct {
	guest  *guestVM
	engine vm.Engine
	snap   vm.Snapshot
	out    *guestStream

	mu     sync.Mutex
	handed bool // the guest stands still until the leader says where it runs
	times  vm.CutTimes
}

// guestStream carries a guest to the new node's sidecar.
type guestStream struct {
	stream *connect.ClientStreamForClient[vftv1.SendGuestRequest, vftv1.SendGuestResponse]
	cancel context.CancelFunc

	mu   sync.Mutex
	sent int64
	err  error
}

// Write implements io.Writer for QEMU's stream.
func (g *guestStream) Write(p []byte) (int, error) {
	w := &messageWriter{send: func(p []byte) error { return g.stream.Send(&vftv1.SendGuestRequest{Data: p}) }}
	n, err := w.Write(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sent += int64(n)
	if err != nil {
		err = g.explain(err)
		g.err = err
	}
	return n, err
}

// explain asks the other end why it does not take any more.
func (g *guestStream) explain(err error) error {
	if _, why := g.stream.CloseAndReceive(); why != nil {
		err = why
	}
	return fmt.Errorf("sending the guest: %w", err)
}

// Close implements vm.Sink. The frames follow.
func (*guestStream) Close() error { return nil }

// CloseWithError gives the stream up.
func (g *guestStream) CloseWithError(error) error {
	g.cancel()
	return nil
}

func (g *guestStream) state() (int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sent, g.err
}

// finish sends what goes with the guest and waits until it is loaded.
func (g *guestStream) finish(frames [][]byte) error {
	if err := g.stream.Send(&vftv1.SendGuestRequest{End: true, Frames: frames}); err != nil {
		return g.explain(err)
	}
	if _, err := g.stream.CloseAndReceive(); err != nil {
		return fmt.Errorf("sending the guest: %w", err)
	}
	return nil
}

// moveBuffer is what waits at most between QEMU and the connection to the new
// node. All of it has to get there while the guest stands still, so it is little.
const moveBuffer = 2 << 20

// sendMost begins to send a guest and returns when only what cannot be sent
// while it runs is left.
func (inc *incarnation) sendMost(ctx context.Context, mv *move) (*vftv1.PrepareMoveResponse, error) {
	order := mv.order
	if err := inc.s.cfg.Faults.Hit(ctx, "sidecar.move.send"); err != nil {
		return nil, err
	}
	g, err := inc.guest(order.GetGuest())
	if err != nil {
		return nil, err
	}
	m := g.alive()
	if m == nil {
		return nil, fmt.Errorf("guest %d is lost", order.GetGuest())
	}
	engine, err := inc.s.moveEngine(order.GetCold())
	if err != nil {
		return nil, err
	}
	compat, err := m.Compat()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(compat)
	if err != nil {
		return nil, fmt.Errorf("describing the machine: %w", err)
	}
	inc.setLeaving(order.GetGuest(), true)
	if err := inc.save(); err != nil {
		return nil, err
	}
	sctx, cancel := context.WithCancel(inc.work.ctx)
	out := &guestStream{stream: inc.s.cfg.Peer(order.GetTo().GetAddress()).SendGuest(sctx), cancel: cancel}
	if err := out.stream.Send(&vftv1.SendGuestRequest{
		Context: &vftv1.Context{Job: inc.job, Incarnation: inc.number}, Epoch: order.GetEpoch(), Guest: order.GetGuest(), Compat: raw,
	}); err != nil {
		defer cancel()
		return nil, out.explain(err)
	}
	snap, err := m.Snapshot(inc.work.ctx, engine, out, vm.SnapshotOptions{HandOver: true, BufferBytes: moveBuffer})
	if err != nil {
		cancel()
		return nil, err
	}
	d := &departure{guest: g, engine: engine, snap: snap, out: out}
	if err := mv.take(d, nil); err != nil {
		return nil, errors.Join(err, snap.Abort(ctx))
	}
	if err := inc.prepareHold(ctx, order, map[int]quiesce.Snapshot{int(order.GetGuest()): d}); err != nil {
		return nil, err
	}
	sent, err := out.state()
	return &vftv1.PrepareMoveResponse{Bytes: sent}, err
}

// moveEngine chooses how a guest is copied.
func (s *Sidecar) moveEngine(cold bool) (vm.Engine, error) {
	want := []vm.Engine{vm.EnginePreCopy, vm.EngineStopCopy}
	if cold {
		want = want[1:]
	}
	for _, e := range want {
		for _, sup := range s.cfg.Capabilities.Engines {
			if sup.Engine == e && sup.OK {
				return e, nil
			}
		}
	}
	return "", fmt.Errorf("node %s cannot copy a guest: see `vft node probe`", s.cfg.Node.GetId())
}

// Prepare implements quiesce.Snapshot.
func (d *departure) Prepare(ctx context.Context) error { return d.snap.Prepare(ctx) }

// EarlyStop implements quiesce.Snapshot.
func (d *departure) EarlyStop() <-chan time.Time { return d.snap.EarlyStop() }

// Cut implements quiesce.Snapshot.
func (d *departure) Cut(ctx context.Context, atCut func(context.Context) error) error {
	times, err := d.snap.Cut(ctx, func(ctx context.Context) error {
		if err := atCut(ctx); err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.handed = true
		return nil
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.times = times
	return err
}

// Abort implements quiesce.Snapshot. A guest that may have been loaded on the
// new node stands still until the leader says where it runs, however long that
// takes: only the network is let go.
func (d *departure) Abort(ctx context.Context) error {
	d.mu.Lock()
	handed := d.handed
	d.mu.Unlock()
	if handed {
		return nil
	}
	d.out.cancel()
	return d.snap.Abort(ctx)
}

// sendRest sends what was left for when the guest stands still, and its frames.
func (d *departure) sendRest(ctx context.Context, frames [][]byte) (*vftv1.CutMoveResponse, error) {
	r, err := d.snap.Wait(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.out.finish(frames); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return &vftv1.CutMoveResponse{
		Stopped: int64(time.Since(d.times.Stopped)), Bytes: r.Bytes, Rest: r.BytesAfterCut,
		HeldFrames: uint32(len(frames)), Way: string(d.engine),
	}, nil
}

// takeBack lets the guest go on here.
func (d *departure) takeBack(ctx context.Context) error {
	d.out.cancel()
	if err := d.snap.Abort(ctx); err != nil {
		return err
	}
	return d.guest.machine.TakeBack(ctx)
}

// endDeparture ends the copy of a guest that runs on another node now.
func (inc *incarnation) endDeparture(ctx context.Context, mv *move) {
	index := mv.order.GetGuest()
	inc.mu.Lock()
	g := inc.guests[index]
	delete(inc.guests, index)
	inc.mu.Unlock()
	inc.setLeaving(index, false)
	if g == nil || g.machine == nil {
		return
	}
	g.leave()
	g.hangUp()
	if err := g.kill(ctx); err != nil {
		inc.log.Error("killing the copy of a guest that moved", "guest", index, "err", err)
		return
	}
	if leaving, _, _ := mv.parts(); leaving != nil {
		leaving.out.cancel()
	}
	if err := g.machine.Close(); err != nil {
		inc.log.Warn("letting go of a guest that moved", "guest", index, "err", err)
	}
	inc.removeGuestDir(index)
	inc.log.Info("guest has left", "guest", index, "to", mv.order.GetTo().GetNode())
}
