package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/overlay"
)

const (
	tapQueue   = 8 << 20   // bytes of frames that wait for whoever reads a tap
	tapMessage = 512 << 10 // bytes of frames in one message
	wholeFrame = 1 << 20   // more than any frame has
)

// networkOf returns the job's open network of that incarnation.
func (s *Sidecar) networkOf(job string, incarnation uint64) (*overlay.Network, error) {
	inc, err := s.enter(job, incarnation, nil)
	if err != nil {
		return nil, err
	}
	network := inc.network()
	if network == nil {
		return nil, fmt.Errorf("job %s: its network is not open yet: %w", job, errUnknown)
	}
	return network, nil
}

// ShowNetwork implements the RPC.
func (h *Service) ShowNetwork(_ context.Context, req *connect.Request[vftv1.ShowNetworkRequest]) (*connect.Response[vftv1.ShowNetworkResponse], error) {
	network, err := h.s.networkOf(req.Msg.GetJob(), req.Msg.GetIncarnation())
	if err != nil {
		return nil, coded(err)
	}
	shown := h.s.showNetwork(network)
	if inc, err := h.s.enter(req.Msg.GetJob(), req.Msg.GetIncarnation(), nil); err == nil {
		shown.Gateway = inc.showGateway()
	}
	return connect.NewResponse(shown), nil
}

func (s *Sidecar) showNetwork(network *overlay.Network) *vftv1.ShowNetworkResponse {
	state := network.State()
	shown := &vftv1.ShowNetworkResponse{
		Node: s.cfg.Node.GetId(), Incarnation: network.ID().Incarnation,
		State: networkState(state), Epoch: state.Epoch, Released: state.Released,
	}
	ports, late := network.Stats()
	for _, p := range ports {
		shown.Ports = append(shown.Ports, &vftv1.NetworkPort{
			Guest: uint32(p.Guest), Connected: p.Connected,
			FramesIn: p.FramesIn, BytesIn: p.BytesIn, FramesOut: p.FramesOut, BytesOut: p.BytesOut,
			Dropped: counted(map[string]uint64{
				"runt": p.Runts, "spoofed": p.Spoofed, "unknown": p.Unknown, "reflected": p.Loops,
				"overflow": p.Overflow, "detached": p.Detached,
			}),
			Reconnects: p.Reconnects, Queued: uint64(p.Queued), Held: uint64(p.Held),
		})
	}
	for _, l := range s.net.Stats().Links {
		waiting, ours := late[l.Peer]
		if !ours {
			continue
		}
		shown.Links = append(shown.Links, &vftv1.NetworkLink{
			Peer: l.Peer, Path: "direct", Address: l.Address, Up: l.Up, Accepted: l.Accepted,
			Frames: l.Frames, Bytes: l.Bytes,
			Dropped: counted(map[string]uint64{"overflow": l.Overflow, "down": l.Down, "lost": l.Lost}),
			Made:    l.Made, Resumed: l.Resumed, Queued: uint64(l.Queued), Late: uint64(waiting),
		})
	}
	slices.SortFunc(shown.Ports, func(a, b *vftv1.NetworkPort) int { return cmp.Compare(a.GetGuest(), b.GetGuest()) })
	slices.SortFunc(shown.Links, func(a, b *vftv1.NetworkLink) int { return cmp.Compare(a.GetPeer(), b.GetPeer()) })
	return shown
}

func networkState(s overlay.State) vftv1.NetworkState {
	switch {
	case s.Suspended:
		return vftv1.NetworkState_NETWORK_STATE_SUSPENDED
	case s.Initial:
		return vftv1.NetworkState_NETWORK_STATE_LOADING
	case s.Held:
		return vftv1.NetworkState_NETWORK_STATE_HELD
	}
	return vftv1.NetworkState_NETWORK_STATE_FLOWING
}

func counted(all map[string]uint64) map[string]uint64 {
	maps.DeleteFunc(all, func(_ string, n uint64) bool { return n == 0 })
	return all
}

// TapNetwork implements the RPC.
func (h *Service) TapNetwork(ctx context.Context, req *connect.Request[vftv1.TapNetworkRequest], stream *connect.ServerStream[vftv1.TapNetworkResponse]) error {
	network, err := h.s.networkOf(req.Msg.GetJob(), req.Msg.GetIncarnation())
	if err != nil {
		return coded(err)
	}
	tap, err := network.Tap(cmp.Or(int(req.Msg.GetSnap()), wholeFrame), tapQueue)
	if errors.Is(err, overlay.ErrTooManyTaps) {
		return connect.NewError(connect.CodeResourceExhausted, err)
	} else if err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	defer tap.Close()
	// The first message tells the caller that the capture has begun.
	for msg := (&vftv1.TapNetworkResponse{}); ; {
		if err := stream.Send(msg); err != nil {
			return err
		}
		frames, dropped, err := tap.Next(ctx)
		if err != nil {
			return connect.NewError(connect.CodeUnavailable, err)
		}
		if msg, err = sendFrames(frames, stream.Send); err != nil {
			return err
		}
		for guest, n := range dropped {
			msg.Dropped = append(msg.Dropped, &vftv1.TapDrops{Guest: uint32(guest), Frames: n})
		}
	}
}

// sendFrames sends all of frames but a last message, which it returns.
func sendFrames(frames []overlay.Captured, send func(*vftv1.TapNetworkResponse) error) (*vftv1.TapNetworkResponse, error) {
	msg, bytes := &vftv1.TapNetworkResponse{}, 0
	for _, f := range frames {
		if bytes > 0 && bytes+len(f.Data) > tapMessage {
			if err := send(msg); err != nil {
				return nil, err
			}
			msg, bytes = &vftv1.TapNetworkResponse{}, 0
		}
		msg.Frames = append(msg.Frames, &vftv1.TapFrame{Guest: uint32(f.Guest), At: f.At.UnixNano(), Length: uint32(f.Length), Data: f.Data})
		bytes += len(f.Data)
	}
	return msg, nil
}
