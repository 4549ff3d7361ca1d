package sidecar

import (
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/guest"
)

// TestNetworkIsSeen: what a guest sends is counted and captured, for its own
// incarnation only.
func TestNetworkIsSeen(t *testing.T) {
	s := idle(t, testConfig(t, "n1", &leader{}))
	inc := place(t, s, "job", 2)
	inc.net.Resume() // an idle sidecar has no lease
	socket := filepath.Join(s.cfg.Run, "q")
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	_, err = inc.net.AttachPort(t.Context(), 0, socket)
	require.NoError(t, err)
	qemu, err := ln.Accept()
	require.NoError(t, err)
	defer func() { _ = qemu.Close() }()

	mux := http.NewServeMux()
	mux.Handle(vftv1connect.NewSidecarServiceHandler(NewService(s)))
	server := httptest.NewServer(mux)
	defer server.Close()
	client := vftv1connect.NewSidecarServiceClient(server.Client(), server.URL)

	tap, err := client.TapNetwork(t.Context(), connect.NewRequest(&vftv1.TapNetworkRequest{Job: "job", Incarnation: 2, Snap: 20}))
	require.NoError(t, err)
	defer func() { _ = tap.Close() }()
	require.True(t, tap.Receive(), "%v", tap.Err())

	frame := append([]byte{0x52, 0x54, 0, 0x77, 0, 9}, guest.MAC(0)...)
	frame = append(frame, make([]byte, 48)...)
	_, err = qemu.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	require.NoError(t, err)
	require.True(t, tap.Receive(), "%v", tap.Err())
	require.Len(t, tap.Msg().GetFrames(), 1)
	got := tap.Msg().GetFrames()[0]
	assert.EqualValues(t, len(frame), got.GetLength())
	assert.Equal(t, frame[:20], got.GetData())

	show := func(incarnation uint64) (*vftv1.ShowNetworkResponse, error) {
		r, err := client.ShowNetwork(t.Context(), connect.NewRequest(&vftv1.ShowNetworkRequest{Job: "job", Incarnation: incarnation}))
		if err != nil {
			return nil, err
		}
		return r.Msg, nil
	}
	shown, err := show(2)
	require.NoError(t, err)
	require.Len(t, shown.GetPorts(), 2, "the guest and the gateway")
	port := shown.GetPorts()[0]
	assert.True(t, port.GetConnected())
	assert.EqualValues(t, 1, port.GetFramesIn())
	assert.Equal(t, map[string]uint64{"unknown": 1}, port.GetDropped(), "nobody has that address")
	assert.Equal(t, vftv1.NetworkState_NETWORK_STATE_FLOWING, shown.GetState())

	require.NoError(t, inc.net.Hold(t.Context(), 7))
	shown, err = show(2)
	require.NoError(t, err)
	assert.Equal(t, vftv1.NetworkState_NETWORK_STATE_HELD, shown.GetState())
	assert.EqualValues(t, 7, shown.GetEpoch())

	_, err = show(1)
	assert.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "an older incarnation is not shown")
	inc.end()
	assert.False(t, tap.Receive(), "the capture ends with the incarnation")
	assert.Equal(t, connect.CodeUnavailable, connect.CodeOf(tap.Err()))
}
