package sidecar

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt"
	"github.com/mpirun-vft/vft/vm"
)

// manifestPeer is another node's sidecar that is asked for manifests.
type manifestPeer struct {
	vftv1connect.SidecarServiceClient
	answer func(ctx context.Context) ([]byte, error)
}

func (p manifestPeer) GetManifest(ctx context.Context, _ *connect.Request[vftv1.GetManifestRequest]) (*connect.Response[vftv1.GetManifestResponse], error) {
	raw, err := p.answer(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&vftv1.GetManifestResponse{Manifest: raw}), nil
}

func silentPeer(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
}

func failingPeer(code connect.Code) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return nil, connect.NewError(code, errors.New("no")) }
}

// While a guest waits no node is waited for for ever, nodes that cannot be
// reached are asked again, and what is gone for good is not.
func TestSourceOfARunningGuest(t *testing.T) {
	content := []byte("manifest")
	good := func(context.Context) ([]byte, error) { return content, nil }
	for name, tc := range map[string]struct {
		peers   []func(context.Context) ([]byte, error)
		comes   bool
		forGood bool // lost
		atLeast time.Duration
		atMost  time.Duration
	}{
		"at once":         {peers: []func(context.Context) ([]byte, error){good}, comes: true},
		"the first hangs": {peers: []func(context.Context) ([]byte, error){silentPeer, good}, comes: true, atLeast: nodePatience, atMost: nodePatience},
		"gone for good": {
			peers:   []func(context.Context) ([]byte, error){failingPeer(connect.CodeNotFound), failingPeer(connect.CodeDataLoss)},
			forGood: true,
		},
		"away": {
			peers:   []func(context.Context) ([]byte, error){failingPeer(connect.CodeNotFound), failingPeer(connect.CodeUnavailable)},
			atLeast: pagePatience, atMost: pagePatience + 2*pageAgain,
		},
		"all hang": {
			peers:   []func(context.Context) ([]byte, error){silentPeer, silentPeer},
			atLeast: pagePatience, atMost: pagePatience + 2*nodePatience + 2*pageAgain,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &vftv1.PartSource{}
				cfg := testConfig(t, "n0", &leader{})
				cfg.Peer = func(address string) vftv1connect.SidecarServiceClient {
					var i int
					_, err := fmt.Sscan(address, &i)
					assert.NoError(t, err)
					return manifestPeer{answer: tc.peers[i]}
				}
				for i := range tc.peers {
					src.Nodes = append(src.Nodes, &vftv1.Member{Node: fmt.Sprint("n", i+1), Address: fmt.Sprint(i)})
				}
				from := idle(t, cfg).holders(ckpt.PartID{}, src, 0)
				from.patience = true
				begun := time.Now()
				raw, err := patient{from}.Manifest(t.Context(), ckpt.PartID{Job: "j", Epoch: 1}, ckpt.Digest(content))
				took := time.Since(begun)
				assert.GreaterOrEqual(t, took, tc.atLeast)
				assert.LessOrEqual(t, took, tc.atMost)
				if tc.comes {
					require.NoError(t, err)
					assert.Equal(t, content, raw)
					return
				}
				require.Error(t, err)
				lost := &vm.PageError{Block: "pc.ram", Number: 7, Err: err}
				assert.Equal(t, tc.forGood, lostForGood(lost), "%v", lost)
				assert.ErrorContains(t, lost, "page 7")
				for _, m := range src.GetNodes() {
					assert.ErrorContains(t, lost, m.GetNode(), "the error does not name who was asked")
				}
			})
		})
	}
}

// A sidecar back after a time is waited for.
func TestSourceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		cfg := testConfig(t, "n0", &leader{})
		cfg.Peer = func(string) vftv1connect.SidecarServiceClient {
			return manifestPeer{answer: func(context.Context) ([]byte, error) {
				if time.Since(begun) < 4*time.Second {
					return nil, connect.NewError(connect.CodeUnavailable, errors.New("connection refused"))
				}
				return []byte("m"), nil
			}}
		}
		from := idle(t, cfg).holders(ckpt.PartID{}, &vftv1.PartSource{Nodes: []*vftv1.Member{{Node: "n1", Address: "0"}}}, 0)
		_, err := patient{from}.Manifest(t.Context(), ckpt.PartID{Job: "j", Epoch: 1}, ckpt.Digest([]byte("m")))
		require.NoError(t, err)
		assert.Less(t, time.Since(begun), 5*time.Second)
	})
}
