package coordinator

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// moveKey names a copy of a guest that was loaded and does not run yet.
func (f *fakeSidecar) moveKey(c *vftv1.Context, m *vftv1.MoveOrder) string {
	return key(c.GetJob(), m.GetEpoch(), "coming")
}

func (f *fakeSidecar) PrepareMove(ctx context.Context, r *connect.Request[vftv1.PrepareMoveRequest]) (*connect.Response[vftv1.PrepareMoveResponse], error) {
	if err := f.enter(ctx, "PrepareMove", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&vftv1.PrepareMoveResponse{}), nil
}

func (f *fakeSidecar) CutMove(ctx context.Context, r *connect.Request[vftv1.CutMoveRequest]) (*connect.Response[vftv1.CutMoveResponse], error) {
	if err := f.enter(ctx, "CutMove", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job, m := r.Msg.GetContext().GetJob(), r.Msg.GetMove()
	if f.aborted[key(job, m.GetEpoch())] {
		return nil, connect.NewError(connect.CodeAborted, errors.New("taken back"))
	}
	if f.id == m.GetTo().GetNode() {
		f.coming[f.moveKey(r.Msg.GetContext(), m)] = true
		return connect.NewResponse(&vftv1.CutMoveResponse{}), nil
	}
	if f.held[job] != m.GetEpoch() {
		return nil, connect.NewError(connect.CodeAborted, errors.New("not held"))
	}
	if f.id == m.GetFrom().GetNode() {
		f.guests[key(job, m.GetGuest())].state = vftv1.GuestState_GUEST_STATE_PAUSED
	}
	return connect.NewResponse(&vftv1.CutMoveResponse{Stopped: 20e6, Bytes: 1 << 20, Rest: 1 << 10}), nil
}

func (f *fakeSidecar) FinishMove(ctx context.Context, r *connect.Request[vftv1.FinishMoveRequest]) (*connect.Response[vftv1.FinishMoveResponse], error) {
	if err := f.enter(ctx, "FinishMove", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	job, m := r.Msg.GetContext().GetJob(), r.Msg.GetMove()
	k := key(job, m.GetGuest())
	if f.id == m.GetTo().GetNode() { // I3
		for _, p := range f.peers {
			p.mu.Lock()
			g := p.guests[k]
			if p.id != f.id && g != nil && g.state == vftv1.GuestState_GUEST_STATE_RUNNING {
				f.do(func() {
					f.faults = append(f.faults, fmt.Sprintf("guest %d runs on %s and is to run on %s", m.GetGuest(), p.id, f.id))
				})
			}
			p.mu.Unlock()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.id {
	case m.GetTo().GetNode():
		if f.guests[k] == nil {
			if !f.coming[f.moveKey(r.Msg.GetContext(), m)] {
				return nil, connect.NewError(connect.CodeNotFound, errors.New("no such guest came"))
			}
			f.guests[k] = &fakeGuest{job: job, index: m.GetGuest(), incarnation: r.Msg.GetContext().GetIncarnation(), state: vftv1.GuestState_GUEST_STATE_RUNNING}
		}
	case m.GetFrom().GetNode():
		delete(f.guests, k)
	}
	delete(f.held, job)
	return connect.NewResponse(&vftv1.FinishMoveResponse{ByOrder: true}), nil
}

func (f *fakeSidecar) AbortMove(ctx context.Context, r *connect.Request[vftv1.AbortMoveRequest]) (*connect.Response[vftv1.AbortMoveResponse], error) {
	if err := f.enter(ctx, "AbortMove", r.Msg.GetContext()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	job, m := r.Msg.GetContext().GetJob(), r.Msg.GetMove()
	f.aborted[key(job, m.GetEpoch())] = true
	delete(f.coming, f.moveKey(r.Msg.GetContext(), m))
	if g := f.guests[key(job, m.GetGuest())]; g != nil && f.id == m.GetFrom().GetNode() {
		g.state = vftv1.GuestState_GUEST_STATE_RUNNING
	}
	if f.held[job] == m.GetEpoch() {
		delete(f.held, job)
	}
	return connect.NewResponse(&vftv1.AbortMoveResponse{}), nil
}
