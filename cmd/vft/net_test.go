package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/api/client"
	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// netCluster is a coordinator that knows one job on two nodes, and the nodes'
// sidecars, all at one address.
type netCluster struct {
	vftv1connect.UnimplementedCoordinatorServiceHandler
	vftv1connect.UnimplementedSidecarServiceHandler
	*httptest.Server
	restart chan struct{} // the job is in incarnation 2 when it is closed
	end     chan struct{} // and over
	tapped  chan uint64   // incarnations of taps that were opened
	tap     func(context.Context, *vftv1.TapNetworkRequest, *connect.ServerStream[vftv1.TapNetworkResponse]) error
}

func newNetCluster(t *testing.T) *netCluster {
	c := &netCluster{restart: make(chan struct{}), end: make(chan struct{}), tapped: make(chan uint64, 16)}
	mux := http.NewServeMux()
	mux.Handle(vftv1connect.NewCoordinatorServiceHandler(c))
	mux.Handle(vftv1connect.NewSidecarServiceHandler(c))
	c.Server = httptest.NewServer(mux)
	t.Cleanup(c.Close)
	return c
}

func (c *netCluster) client() *client.Client {
	return client.New(client.Config{Coordinators: []string{c.URL}, Patience: time.Second, Dial: func(url string) vftv1connect.CoordinatorServiceClient {
		return vftv1connect.NewCoordinatorServiceClient(c.Client(), url)
	}})
}

func (c *netCluster) sidecar(address string) vftv1connect.SidecarServiceClient {
	return vftv1connect.NewSidecarServiceClient(c.Client(), c.URL+address)
}

func (c *netCluster) job(incarnation uint64, phase vftv1.JobPhase) *vftv1.Job {
	return &vftv1.Job{
		Spec: &vftv1.JobSpec{Id: "j1"}, Phase: phase, Incarnation: incarnation,
		Guests: []*vftv1.Guest{{Index: 0, Node: "n1"}, {Index: 1, Node: "n2"}},
	}
}

func (c *netCluster) GetJob(context.Context, *connect.Request[vftv1.GetJobRequest]) (*connect.Response[vftv1.GetJobResponse], error) {
	return connect.NewResponse(&vftv1.GetJobResponse{Job: c.job(1, vftv1.JobPhase_JOB_PHASE_RUNNING)}), nil
}

func (c *netCluster) ListNodes(context.Context, *connect.Request[vftv1.ListNodesRequest]) (*connect.Response[vftv1.ListNodesResponse], error) {
	return connect.NewResponse(&vftv1.ListNodesResponse{Nodes: []*vftv1.Node{{Id: "n1"}, {Id: "n2"}, {Id: "n3"}}}), nil
}

func (c *netCluster) WatchJob(ctx context.Context, _ *connect.Request[vftv1.WatchJobRequest], stream *connect.ServerStream[vftv1.WatchJobResponse]) error {
	incarnation, phase := uint64(1), vftv1.JobPhase_JOB_PHASE_RUNNING
	for restart := c.restart; ; {
		if err := stream.Send(&vftv1.WatchJobResponse{Job: c.job(incarnation, phase)}); err != nil || phase == vftv1.JobPhase_JOB_PHASE_ENDED {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-restart:
			incarnation, restart = 2, nil
		case <-c.end:
			phase = vftv1.JobPhase_JOB_PHASE_ENDED
		}
	}
}

func (c *netCluster) TapNetwork(ctx context.Context, req *connect.Request[vftv1.TapNetworkRequest], stream *connect.ServerStream[vftv1.TapNetworkResponse]) error {
	c.tapped <- req.Msg.GetIncarnation()
	if err := stream.Send(&vftv1.TapNetworkResponse{}); err != nil {
		return err
	}
	return c.tap(ctx, req.Msg, stream)
}

func frameOf(incarnation uint64, at int64) *vftv1.TapFrame {
	data := append(bytes.Repeat([]byte{0xff}, 6), 0x52, 0x54, 0, 0x77, 0, 0, 0x88, 0xb5, byte(incarnation))
	return &vftv1.TapFrame{Guest: 0, At: at, Length: 60, Data: data}
}

// TestTapAcrossARestart: frames of both incarnations are in one file that
// others can read, with their times, lengths and interfaces.
func TestTapAcrossARestart(t *testing.T) {
	c := newNetCluster(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	sent := make(chan struct{}, 16)
	c.tap = func(ctx context.Context, req *vftv1.TapNetworkRequest, stream *connect.ServerStream[vftv1.TapNetworkResponse]) error {
		if err := stream.Send(&vftv1.TapNetworkResponse{
			Frames:  []*vftv1.TapFrame{frameOf(req.GetIncarnation(), at.UnixNano())},
			Dropped: []*vftv1.TapDrops{{Guest: 0, Frames: 7}},
		}); err != nil {
			return err
		}
		sent <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	file := filepath.Join(t.TempDir(), "out.pcapng")
	f, err := os.Create(file)
	require.NoError(t, err)
	capture := newCapture(f, 0, 0)
	done := make(chan error, 1)
	go func() {
		done <- (&tapper{client: c.client(), nodes: c.sidecar, capture: capture}).run(t.Context(), "j1")
	}()
	for range 2 {
		assert.EqualValues(t, 1, <-c.tapped)
		<-sent
	}
	require.Eventually(t, func() bool { n, _ := capture.sums(); return n == 2 }, 10*time.Second, time.Millisecond)
	close(c.restart)
	for range 2 {
		assert.EqualValues(t, 2, <-c.tapped)
		<-sent
	}
	require.Eventually(t, func() bool { n, _ := capture.sums(); return n == 4 }, 10*time.Second, time.Millisecond)
	close(c.end)
	require.NoError(t, <-done)
	frames, dropped, err := capture.finish()
	require.NoError(t, err)
	assert.EqualValues(t, 4, frames)
	assert.EqualValues(t, 4*7, dropped)
	require.NoError(t, f.Close())

	in, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = in.Close() }()
	r, err := pcapgo.NewNgReader(in, pcapgo.DefaultNgReaderOptions)
	require.NoError(t, err)
	require.Equal(t, layers.LinkTypeEthernet, r.LinkType())
	perInterface := map[string]int{}
	for range 4 {
		data, info, err := r.ReadPacketData()
		require.NoError(t, err)
		assert.Equal(t, at, info.Timestamp.UTC(), "to the nanosecond")
		assert.Equal(t, 60, info.Length)
		assert.Len(t, data, info.CaptureLength)
		intf, err := r.Interface(info.InterfaceIndex)
		require.NoError(t, err)
		perInterface[intf.Name]++
	}
	assert.Equal(t, map[string]int{"guest0@n1": 2, "guest0@n2": 2}, perInterface)

	tcpdump, err := exec.LookPath("tcpdump")
	require.NoError(t, err, "install it: apt-get install tcpdump (scripts/deps.sh does)")
	out, err := exec.Command(tcpdump, "-nn", "-e", "-tt", "--nano", "-r", file).CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Equal(t, 4, strings.Count(string(out), "1767323045.678901234 52:54:00:77:00:00 > ff:ff:ff:ff:ff:ff, ethertype Unknown (0x88b5), length 60"), string(out))
}

// TestTapEndsWithEnough: the capture ends by itself at the number asked for.
func TestTapEndsWithEnough(t *testing.T) {
	c := newNetCluster(t)
	c.tap = func(ctx context.Context, req *vftv1.TapNetworkRequest, stream *connect.ServerStream[vftv1.TapNetworkResponse]) error {
		for ctx.Err() == nil {
			if err := stream.Send(&vftv1.TapNetworkResponse{Frames: []*vftv1.TapFrame{frameOf(1, 1)}}); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	var out bytes.Buffer
	capture := newCapture(&out, 0, 5)
	require.NoError(t, (&tapper{client: c.client(), nodes: c.sidecar, capture: capture}).run(t.Context(), "j1"))
	frames, _, err := capture.finish()
	require.NoError(t, err)
	assert.EqualValues(t, 5, frames)
}

// TestTapThatCannotBeWritten: a full disk ends the capture with its error.
func TestTapThatCannotBeWritten(t *testing.T) {
	c := newNetCluster(t)
	c.tap = func(ctx context.Context, _ *vftv1.TapNetworkRequest, _ *connect.ServerStream[vftv1.TapNetworkResponse]) error {
		<-ctx.Done()
		return ctx.Err()
	}
	full := errors.New("no space left")
	err := (&tapper{client: c.client(), nodes: c.sidecar, capture: newCapture(writerFunc(func([]byte) (int, error) { return 0, full }), 0, 0)}).run(t.Context(), "j1")
	require.ErrorIs(t, err, full)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (c *netCluster) ShowNetwork(_ context.Context, req *connect.Request[vftv1.ShowNetworkRequest]) (*connect.Response[vftv1.ShowNetworkResponse], error) {
	return connect.NewResponse(&vftv1.ShowNetworkResponse{
		Node: "n1", State: vftv1.NetworkState_NETWORK_STATE_HELD, Epoch: 12,
		Ports: []*vftv1.NetworkPort{{Guest: 0, FramesIn: 17, BytesIn: 4096, Connected: true, Dropped: map[string]uint64{"spoofed": 3, "overflow": 2}}},
		Links: []*vftv1.NetworkLink{{Peer: "n2", Path: "direct", Address: "10.0.0.2:1", Up: true}},
	}), nil
}

func TestShowNetwork(t *testing.T) {
	c := newNetCluster(t)
	shown, err := showNetwork(t.Context(), c.client(), c.sidecar, "j1")
	require.NoError(t, err)
	require.Len(t, shown, 2)
	var out bytes.Buffer
	require.NoError(t, printNetwork(&out, false, shown[:1]))
	for _, want := range []string{"held for checkpoint 12", "17", "4.0 KiB", "2 overflow, 3 spoofed", "direct 10.0.0.2:1", "up, not from there"} {
		assert.Contains(t, out.String(), want)
	}
	out.Reset()
	require.NoError(t, printNetwork(&out, true, nil))
	assert.Equal(t, "[]\n", out.String())
}
