package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/ckpt/export"
)

// exporter is a sidecar that sends a file, and then an error if there is one.
type exporter struct {
	vftv1connect.UnimplementedSidecarServiceHandler
	file []byte
	err  error
}

func (e exporter) ExportEpoch(_ context.Context, _ *connect.Request[vftv1.ExportEpochRequest], stream *connect.ServerStream[vftv1.ExportEpochResponse]) error {
	for rest := e.file; len(rest) > 0; {
		n := min(len(rest), 100)
		if err := stream.Send(&vftv1.ExportEpochResponse{Data: rest[:n]}); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return e.err
}

func smallFile(t *testing.T) []byte {
	t.Helper()
	job, err := proto.Marshal(&vftv1.Export{Spec: &vftv1.JobSpec{Id: "j", Image: "img"}, Epoch: &vftv1.Epoch{Number: 7}})
	require.NoError(t, err)
	var b bytes.Buffer
	w := export.NewWriter(&b)
	require.NoError(t, w.Job(job))
	require.NoError(t, w.Manifest(bytes.Repeat([]byte("x"), 1000)))
	require.NoError(t, w.End())
	return b.Bytes()
}

// A file gets its name when it is whole, from the first node that sends it so.
func TestExportEpoch(t *testing.T) {
	file := smallFile(t)
	denied := connect.NewError(connect.CodePermissionDenied, errors.New("not yours"))
	for name, x := range map[string]struct {
		nodes  []exporter
		stdout bool
		want   string // in the error
		asked  int
	}{
		"one node":               {nodes: []exporter{{file: file}}, asked: 1},
		"to a pipe":              {nodes: []exporter{{file: file}}, stdout: true, asked: 1},
		"cut off":                {nodes: []exporter{{file: file[:len(file)-1]}}, want: "it is not complete", asked: 1},
		"an error in the middle": {nodes: []exporter{{file: file[:300], err: errors.New("page 7 is nowhere")}}, want: "page 7 is nowhere", asked: 1},
		"the next one has it":    {nodes: []exporter{{file: file[:300], err: errors.New("page 7 is nowhere")}, {file: file}}, asked: 2},
		"half of it is out":      {nodes: []exporter{{file: file[:300]}, {file: file}}, stdout: true, want: "it is not complete", asked: 1},
		"not yours":              {nodes: []exporter{{err: denied}, {file: file}}, want: "not yours", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			asked, mux := 0, map[string]vftv1connect.SidecarServiceClient{}
			var addresses []string
			for i, n := range x.nodes {
				srv := httptest.NewUnstartedServer(func() http.Handler {
					m := http.NewServeMux()
					m.Handle(vftv1connect.NewSidecarServiceHandler(n))
					return m
				}())
				srv.EnableHTTP2 = true
				srv.StartTLS()
				defer srv.Close()
				address := string(rune('a' + i))
				addresses = append(addresses, address)
				mux[address] = vftv1connect.NewSidecarServiceClient(srv.Client(), srv.URL)
			}
			nodes := func(address string) vftv1connect.SidecarServiceClient { asked++; return mux[address] }
			cmd := &cobra.Command{}
			cmd.SetContext(t.Context())
			var out, said bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&said)
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			if x.stdout {
				path = "-"
			}
			job := &vftv1.Job{Spec: &vftv1.JobSpec{Id: "j", Image: "img"}}
			err := exportEpoch(cmd, nodes, addresses, job, &vftv1.Epoch{Number: 7}, path)
			assert.Equal(t, x.asked, asked)
			if x.want != "" {
				require.ErrorContains(t, err, x.want)
				left, _ := os.ReadDir(dir)
				assert.Empty(t, left)
				return
			}
			require.NoError(t, err)
			got := out.Bytes()
			if !x.stdout {
				got, err = os.ReadFile(path)
				require.NoError(t, err)
			}
			assert.Equal(t, file, got)
			assert.Contains(t, said.String(), "its guests boot from image img")
		})
	}
}

func TestReadHead(t *testing.T) {
	file := smallFile(t)
	head, job, err := readHead(bytes.NewReader(file))
	require.NoError(t, err)
	assert.Equal(t, "img", job.GetSpec().GetImage())
	seen := make([]byte, 10)
	_, err = head.Read(seen)
	require.NoError(t, err)
	assert.Equal(t, file[:10], seen, "what was read is sent, too")
	for _, bad := range []string{"", "GIF89a and more", string(file[:20])} {
		_, _, err := readHead(strings.NewReader(bad))
		assert.ErrorIs(t, err, errFile, "%q", bad)
	}
}

func TestImportNode(t *testing.T) {
	alive := vftv1.NodeState_NODE_STATE_ALIVE
	nodes := []*vftv1.Node{
		{Id: "lost", State: vftv1.NodeState_NODE_STATE_LOST, Images: []string{"img"}},
		{Id: "bare", State: alive},
		{Id: "drained", State: alive, Images: []string{"img"}, Drained: "repair"},
		{Id: "a", State: alive, Images: []string{"img"}},
		{Id: "b", State: alive, Images: []string{"other", "img"}},
	}
	for want, wished := range map[string][]string{"a": nil, "b": {"bare", "b"}} {
		n, err := importNode(nodes, "img", wished)
		require.NoError(t, err)
		assert.Equal(t, want, n.GetId())
	}
	_, err := importNode(nodes, "third", nil)
	assert.ErrorContains(t, err, "no node that is alive holds image third")
}
